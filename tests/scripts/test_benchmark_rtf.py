import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.runtime.engines import cpu_capabilities
from whisper_npu.runtime.engines.openvino.int8_weights import round_products
from whisper_npu.runtime.engines.protocol import N_LOGITS
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import DECODER_WITH_PAST, ENCODER
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.scripts import benchmark_rtf, main
from whisper_npu.scripts.benchmarks.engine_process import EngineProcess, start_once
from whisper_npu.scripts.benchmarks.observed_backend import Observations, Step, observe
from whisper_npu.scripts.benchmarks.recordings import clip, find_recordings, of_length
from whisper_npu.scripts.benchmarks.roofline import Machine, Work, read_sizes, roofline
from whisper_npu.scripts.benchmarks.rtf import OTHER, Run, alternate
from whisper_npu.scripts.benchmarks.rtf_configurations import separate_lengths
from whisper_npu.scripts.benchmarks.spread import ratios, spread

# Synthetic sounds are no speech, and what the tiny Whisper hears in them is improbable.
PLAIN = (
    *("--vad", "False", "--temperature-increment-on-fallback", "None"),
    *("--no-speech-threshold", "None"),
)


def run(*arguments: object) -> int:
    return benchmark_rtf.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def measured(tiny_folder, tiny_audio, tmp_path_factory) -> SimpleNamespace:
    """Two configurations over two recordings, one of which has a reference."""
    folder = tmp_path_factory.mktemp("rtf")
    manifest = folder / "references.tsv"
    manifest.write_text(f"{tiny_audio[0]}\tsome words\n")
    code = run(
        *(tiny_audio[0], tiny_audio[1], "--references", manifest, "--model", tiny_folder),
        *("--language", "en", "--repeats", "2", "--no-start", *PLAIN),
        *("--compare", "kv-cache=concat batch_size=2", "--lengths", "3"),
        *("--json", folder / "out.json", "--markdown", folder / "out.md"),
        *("--plot", folder / "out.png"),
    )
    assert code == 0
    return SimpleNamespace(folder=folder, found=json.loads((folder / "out.json").read_text()))


def test_rtfx_is_the_median_of_audio_by_processing_time(measured) -> None:
    first = measured.found["workloads"][0]
    seconds = first["configurations"][0]["processing_seconds"]
    assert len(seconds) == 2
    assert first["audio_seconds"] == pytest.approx(15.0)
    assert measured.found["rtfx"] == pytest.approx(np.median([15.0 / each for each in seconds]))


def test_every_configuration_says_what_really_ran(measured) -> None:
    given, other = measured.found["workloads"][0]["configurations"]
    assert (given["label"], given["device"], given["kv_cache"]) == ("as given", "CPU", "stateful")
    assert (other["kv_cache"], other["options"]["batch_size"]) == ("concat", 2)
    assert given["options"]["batch_size"] == TranscribeOptions().batch_size
    assert other["speed_against_first"]["runs"] == 2
    assert given["speed_against_first"] is None


def test_stages_add_up_to_all_of_the_time(measured) -> None:
    for configuration in measured.found["workloads"][0]["configurations"]:
        stages = configuration["stages"]
        assert {"audio decoding", "features", "encoder", "decoder", OTHER} <= set(stages)
        assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
        in_run = [stage["median"] for stage in stages.values()]
        assert sum(in_run) == pytest.approx(np.mean(configuration["processing_seconds"]), rel=0.01)


def test_first_words_come_after_the_first_token(measured) -> None:
    for configuration in measured.found["workloads"][0]["configurations"]:
        first_token = configuration["first_token_seconds"]["lowest"]
        assert 0 < first_token < configuration["first_segment_seconds"]["highest"]


def test_accuracy_is_measured_as_far_as_there_are_references(measured) -> None:
    recordings, short = measured.found["workloads"]
    assert recordings["accuracy_note"] == "accuracy is unchecked for 1 of 2 recordings"
    assert recordings["configurations"][0]["accuracy"]["recordings"] == 1
    assert measured.found["wer"] == recordings["configurations"][0]["accuracy"]["rate"] > 0
    assert short["accuracy_note"] == "accuracy is unchecked: no --references were given"
    assert (short["name"], short["audio_seconds"]) == ("3 s", 3.0)


def test_results_are_written(measured) -> None:
    text = (measured.folder / "out.md").read_text()
    assert "| as given |" in text
    assert "**accuracy is unchecked" in text
    assert (measured.folder / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_last_line_is_the_speed_and_roofline_covers_all_stages(
    tiny_folder, tiny_audio, capsys, monkeypatch
) -> None:
    from whisper_npu.scripts.benchmarks import roofline

    machine = Machine({"f32": 1e11, "bf16": 2e11, "int8": 4e11}, 1e10)
    monkeypatch.setattr(roofline, "measure_machine", lambda threads: machine)
    arguments = ["--model", tiny_folder, "--language", "en", "--repeats", "1", "--no-start"]
    assert run(tiny_audio[0], *arguments, *PLAIN, "--roofline") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("RTFx: ")
    assert float(lines[-1].split()[1]) > 0
    assert "accuracy is unchecked: no --references were given" in lines
    assert any(line.startswith("encoder") and "arithmetic" in line for line in lines)
    assert any(line.startswith("most to gain: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "lengths", "files"),
    [
        (None, [], ["a.wav"]),
        ([], [5, 30, 60, 300], ["a.wav"]),
        (["5,30.5", "60"], [5, 30.5, 60], ["a.wav"]),
        (["b.wav", "10", "30s.wav"], [10], ["a.wav", "b.wav", "30s.wav"]),
    ],
)
def test_lengths_and_files_are_told_apart(words, lengths, files) -> None:
    arguments = argparse.Namespace(files=["a.wav"], lengths=words)
    assert separate_lengths(arguments) == lengths
    assert arguments.files == files


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--repeats", "0"], "--repeats is 0"),
        (["--compare", "colour=red"], "--compare: unrecognized arguments: --colour=red"),
        (["--compare", "precision=f31"], "--compare: argument --precision"),
        (["--compare", " "], "--compare takes options"),
        (["--lengths", "0"], "--lengths takes seconds above 0"),
        (["--plot", "out.txt"], "out.txt: a plot is written as"),
        (["--references", "nowhere.tsv"], "nowhere.tsv: no such manifest"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, complaint, capsys, tiny_folder) -> None:
    assert run("--model", tiny_folder, *arguments) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_it_is_a_command(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["benchmark", "--help"])
    assert "--roofline" in capsys.readouterr().out


def test_configurations_take_turns() -> None:
    assert list(alternate(3, 3)) == [0, 1, 2, 2, 1, 0, 0, 1, 2]


def test_spread_and_ratios() -> None:
    assert spread([3.0, 1.0, 8.0]).to_dict() == {
        "median": 3.0,
        "lowest": 1.0,
        "highest": 8.0,
        "runs": 3,
    }
    assert spread([2.5]).text() == "2.5"
    assert spread([1.0, 3.0]).text() == "2.0 (1.0 to 3.0)"
    # Of pairs, not of medians.
    assert ratios([10.0, 1.0, 3.0], [5.0, 1.0, 1.0]).median == 2.0


def test_time_per_token_leaves_out_what_is_done_per_window() -> None:
    stages = {"features": 1.0, "encoder": 2.0, "decoder": 3.0, "token choice": 1.0, OTHER: 9.0}
    measured = Run(30.0, 16.0, stages, 8, (), (), ("",))
    assert measured.token_seconds == 0.5
    assert measured.rtfx == 30 / 16


def test_recordings_get_their_words_from_manifests(tmp_path, tiny_audio) -> None:
    manifest = tmp_path / "r.tsv"
    manifest.write_text(f"{tiny_audio[1]}\thello\n")
    assert [each.reference for each in find_recordings(tiny_audio, [manifest])] == [
        None,
        "hello",
        None,
    ]
    alone = find_recordings([], [manifest])
    assert [(each.path, each.reference) for each in alone] == [(tiny_audio[1], "hello")]


def test_a_length_is_made_by_repeating(tmp_path, tiny_audio) -> None:
    import soundfile

    samples = np.arange(4, dtype=np.float32)
    assert len(of_length(samples, 0.5)) == 8000
    assert of_length(samples, 0.5)[4:8].tolist() == [0, 1, 2, 3]
    made = clip(find_recordings(tiny_audio[:2], []), 20, tmp_path / "clip.wav")
    heard, rate = soundfile.read(made, dtype="float32")
    assert (len(heard), rate) == (20 * 16000, 16000)
    first, _ = soundfile.read(tiny_audio[0], dtype="float32")
    np.testing.assert_allclose(heard[: len(first)], first, atol=2 / 32768)
    np.testing.assert_array_equal(heard[15 * 16000 : 19 * 16000], heard[: 4 * 16000])


@pytest.mark.slow
def test_observing_finds_the_first_token_and_changes_nothing(tiny_folder, tiny_audio) -> None:
    from whisper_npu import load_model

    model = load_model(tiny_folder, precision="f32")
    watched, seen = observe(model)
    options = {"temperature": (0.0,), "vad": False, "no_speech_threshold": None}
    text = watched.transcribe(tiny_audio[0], **options).text
    assert text == model.transcribe(tiny_audio[0], **options).text
    detection, prefill, *steps = seen.steps  # the language was detected first
    assert (detection.rows, detection.tokens, detection.past) == (1, 1, 0)
    assert (prefill.stage, prefill.tokens, prefill.past) == ("prefill", 3, 0)
    assert {(step.rows, step.tokens, step.projected) for step in steps} == {(1, 1, 1)}
    assert [step.past for step in steps] == list(range(3, 3 + len(steps)))
    assert {step.stage for step in steps} == {"decoder"}
    assert seen.windows == [1500]
    assert seen.first_token is not None
    seen.clear()
    assert (seen.steps, seen.windows, seen.first_token) == ([], [], None)


def test_observing_steps_of_several_rows(tiny_folder, tiny_audio) -> None:
    from whisper_npu import load_model

    watched, seen = observe(load_model(tiny_folder, precision="f32"))
    options = {"temperature": (0.0,), "vad": False, "language": "en", "beam_size": 2}
    assert watched.transcribe(tiny_audio[0], **options).text
    prefill, *steps = seen.steps
    assert (prefill.rows, prefill.tokens, prefill.projected) == (2, 3, 3)
    assert {(step.rows, step.tokens, step.projected) for step in steps} == {(2, 1, 1)}
    assert [step.past for step in steps] == list(range(3, 3 + len(steps)))
    assert seen.first_token is not None


def is_in_8_bits(product: ov.Node) -> bool:
    weights = product.input_value(1).get_node()
    while weights.get_type_name() in {"Multiply", "Convert"}:
        weights = weights.input_value(0).get_node()
    return weights.get_type_name() == "Constant" and weights.get_element_type() == ov.Type.i8


def graph_flops(model: ov.Model, counts=lambda _node: True) -> int:
    """Two for every multiplication in the matrix products and convolutions of a static graph."""
    total = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in {"MatMul", "Convolution"} or not counts(node):
            continue
        if kind == "MatMul":
            transposed = node.get_attributes()["transpose_a"]
            inner = node.input_value(0).shape[-2 if transposed else -1]
            total += 2 * int(np.prod(node.output(0).shape)) * inner
        elif kind == "Convolution":
            weights = node.input_value(1).shape
            total += 2 * int(np.prod(node.output(0).shape)) * int(np.prod(weights[1:]))
    return total


def test_work_is_what_the_graphs_say(tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: ("avx512_vnni",))
    sizes = read_sizes(read_model_folder(tiny_folder), "f32")
    core = ov.Core()
    encoder = core.read_model(tiny_folder / ENCODER)
    encoder.reshape({"input_features": [1, 80, 3000]})
    assert sizes.encoder(1500).flops == {"f32": graph_flops(encoder)}
    rounded = read_sizes(read_model_folder(tiny_folder), "int8+bf16").encoder(1500)
    assert rounded.total_flops == graph_flops(encoder)
    round_products(encoder, attention=False)
    in_8_bits = graph_flops(encoder, is_in_8_bits)
    assert rounded.flops["int8"] == in_8_bits > 0
    monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: ("avx512_vnni", "amx_bf16"))
    with_tiles = read_sizes(read_model_folder(tiny_folder), "int8+bf16")
    assert with_tiles.encoder(1500).flops == {"bf16": graph_flops(encoder)}
    assert list(with_tiles.projection(1500).flops.values())[1:] == []

    rows, past = 2, 7
    decoder = core.read_model(tiny_folder / DECODER_WITH_PAST)
    shapes = {}
    for port in decoder.inputs:
        shape = list(port.partial_shape)
        names = port.get_names()
        shape[0] = rows
        if any(".decoder." in name for name in names):
            shape[2] = past
        elif any(".encoder." in name for name in names):
            shape[2] = 1500
        else:
            shape[1] = 1
        shapes[port] = ov.PartialShape(shape)
    decoder.reshape(shapes)
    assert sizes.step(Step("decoder", rows, 1, past, 1500, 1)).total_flops == graph_flops(decoder)
    # Of a long prompt only the last positions are projected to the vocabulary.
    long, longer = (
        sizes.step(Step("prefill", 1, n, 0, 1500, N_LOGITS)).total_flops for n in (50, 51)
    )
    assert longer - long < sizes.step(Step("decoder", 1, 1, 50, 1500, 1)).total_flops
    assert N_LOGITS < 50


def test_roofline_takes_the_tighter_bound() -> None:
    machine = Machine({"f32": 100.0, "int8": 200.0}, 10.0)
    assert Work({"f32": 50.0}, 1.0).seconds(machine) == 0.5
    assert Work({"f32": 50.0}, 20.0).seconds(machine) == 2.0
    assert Work({"f32": 50.0, "int8": 100.0}, 1.0).seconds(machine) == 1.0
    sizes = SimpleNamespace(
        encoder=lambda ctx: Work({"f32": 50.0}, 1.0),
        projection=lambda ctx: Work({"f32": 0.0}, 1.0),
        step=lambda step: Work({"f32": 10.0}, 20.0),
    )
    seen = Observations(windows=[1500, 1500], steps=[Step("decoder", 1, 1, 3, 1500, 1)])
    stages = {"encoder": 2.0, "decoder": 4.0, "text": 2.0}
    encoder, decoder, text = roofline(stages, seen, sizes, machine)
    assert (encoder.roof_seconds, encoder.bound, encoder.share) == (1.0, "arithmetic", 0.25)
    assert (decoder.roof_seconds, decoder.bound, decoder.bandwidth) == (2.0, "memory", 5.0)
    assert (text.roof_seconds, text.above) == (None, 2.0)


@pytest.mark.slow
def test_a_started_process_transcribes_and_tells_its_memory(tiny_folder, tiny_audio) -> None:
    from whisper_npu import load_model

    options = {"temperature": [0.0], "vad": False, "no_speech_threshold": None}
    job = {"engine": "whisper-npu", "model": str(tiny_folder), "threads": 0, "language": "en"}
    job |= {"load": {"precision": "f32"}, "options": options}
    with EngineProcess(job) as process:
        answer = process.transcribe(tiny_audio[:2])
        assert process.versions["openvino"] != "unknown"
    model = load_model(tiny_folder, precision="f32")
    assert list(answer.texts) == [
        model.transcribe(path, language="en", **options).text for path in tiny_audio[:2]
    ]
    assert answer.peak_bytes is None or answer.peak_bytes > 50 << 20
    assert start_once(job, tiny_audio[:1]).seconds > answer.seconds[0] > 0


def test_a_process_that_fails_says_why(tmp_path) -> None:
    job = {"engine": "whisper-npu", "model": str(tmp_path), "threads": 0, "language": "en"}
    with pytest.raises(DeviceError, match=r"whisper-npu ended with code 1: .*ModelError"):
        EngineProcess(job)


def test_an_english_reference_needs_no_extra_spelled_out(monkeypatch) -> None:
    from whisper_npu.scripts.common.outputs import needing_the_extra

    with (
        pytest.raises(
            UsageError, match=r"plots needs matplotlib: pip install 'whisper-npu\[eval\]'"
        ),
        needing_the_extra("drawing plots"),
    ):
        raise ModuleNotFoundError("no matplotlib", name="matplotlib.axes")


def test_outputs_are_checked_before_measuring(tmp_path: Path) -> None:
    from whisper_npu.scripts.common.outputs import check_outputs

    check_outputs([None, tmp_path / "new.json"])
    with pytest.raises(UsageError, match="is a folder"):
        check_outputs([tmp_path])
    with pytest.raises(UsageError, match="its folder does not exist"):
        check_outputs([tmp_path / "no" / "out.json"])
