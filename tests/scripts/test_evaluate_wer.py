import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from whisper_npu import api
from whisper_npu.errors import AudioError, DeviceError
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Transcription
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.scripts import evaluate_wer, main
from whisper_npu.scripts.common.outputs import write_text


@dataclass
class FakeModel:
    """Hears what the test says it hears, by the recording's name."""

    folder: SimpleNamespace
    backend: SimpleNamespace
    heard: dict[str, str]
    calls: list

    def resolve(self, options: TranscribeOptions) -> TranscribeOptions:
        if self.folder.name.endswith(".en"):
            return replace(options, language=options.language or "en")
        return options

    def transcribe_all(self, recordings, options):
        for recording in recordings:
            try:
                yield self.transcribe(recording, options)
            except AudioError as error:
                yield error

    def transcribe(self, audio, options):
        self.calls.append((self.folder.name, audio, options))
        if isinstance(audio, np.ndarray):
            return SimpleNamespace(result=lambda: None)  # the warm-up
        if not audio.is_file():
            raise AudioError(f"{audio}: no such file")
        times = StageTimes()
        for stage in ("encoder", "decoder"):
            times.add(stage, 0.75 if audio.name == "a.wav" else 1.5)
        text = self.heard.get(f"{self.folder.name}/{audio.name}", self.heard.get(audio.name, ""))
        return SimpleNamespace(
            result=lambda: Transcription(
                text=text,
                language=options.language or "de",
                segments=(),
                duration=2.0,
                model=self.folder.name,
                device="CPU",
                kv_cache=self.backend.kv_cache,
                precision=self.backend.precision,
            ),
            times=times,
        )


@pytest.fixture
def bench(tmp_path, monkeypatch) -> SimpleNamespace:
    """Two recordings, their manifest, two model folders, and models that hear `heard`."""
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.zeros(32000, np.float32), 16000)
    manifest = tmp_path / "references.tsv"
    manifest.write_text("audio\treference\na.wav\ttake the red book\nb.wav\toh yes\n")
    bench = SimpleNamespace(
        folder=tmp_path,
        manifest=str(manifest),
        en=str(tmp_path / "tiny.en"),
        base=str(tmp_path / "base"),
        heard={"a.wav": "Take the bread.", "b.wav": "oh yes"},
        calls=[],
        loads=[],
    )
    for folder in (bench.en, bench.base):
        Path(folder).mkdir()

    def load_model(folder, *, device, backend, kv_cache, precision, threads, variant):
        bench.loads.append((folder.name, device, kv_cache, precision, threads))
        if device == "NPU":
            raise DeviceError("device NPU is not available here")
        engine = SimpleNamespace(
            device=device,
            kv_cache="stateful" if kv_cache == "auto" else kv_cache,
            precision="f32" if precision == "auto" else precision,
        )
        return FakeModel(SimpleNamespace(name=folder.name), engine, bench.heard, bench.calls)

    monkeypatch.setattr(api, "load_model", load_model)
    return bench


def run(*arguments: str) -> int:
    return evaluate_wer.main(list(arguments))


def test_last_line_is_the_corpus_rate(bench, capsys) -> None:
    assert run(bench.manifest, "--model", bench.en) == 0
    out, err = capsys.readouterr()
    # One word of six replaced, one missing; the mean over recordings would be 25.
    assert out.splitlines()[-1] == "WER: 33.33"
    assert err == ""


def test_every_recording_and_what_ran_are_shown(bench, capsys) -> None:
    run(bench.manifest, "--model", bench.en, "--kv-cache", "static", "--without-timestamps")
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "tiny.en, backend openvino, device CPU, kv_cache static, precision f32, mode auto"
    )
    rows = [line.split() for line in lines]
    assert ["a.wav", "4", "1", "1", "0", "50.00", "2.0"] in [row[:7] for row in rows]
    assert ["b.wav", "2", "0", "0", "0", "0.00", "2.0"] in [row[:7] for row in rows]
    assert "without_timestamps=True" in "\n".join(lines)
    assert "normaliser english" in "\n".join(lines)


def test_every_combination_is_measured(bench, capsys) -> None:
    bench.heard["base/a.wav"] = "take the red book"
    code = run(
        *(bench.manifest, "--model", bench.en, "--model", bench.base, "--language", "en"),
        *("--kv-cache", "static", "--kv-cache", "off", "--mode", "sequential", "--mode", "batched"),
    )
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-8:] == ["WER: 33.33"] * 4 + ["WER: 0.00"] * 4
    # A model is loaded once for all its modes.
    assert [load[:3] for load in bench.loads] == [
        (model, "CPU", cache) for model in ("tiny.en", "base") for cache in ("static", "off")
    ]
    modes = [options.mode for _, audio, options in bench.calls if not isinstance(audio, np.ndarray)]
    assert modes == (["sequential"] * 2 + ["batched"] * 2) * 4


def test_options_reach_the_model(bench) -> None:
    arguments = ["--language", "fr", "--task", "translate", "--beam_size", "3", "--threads", "1"]
    run(bench.manifest, "--model", bench.base, *arguments)
    for _, _, options in bench.calls:
        assert (options.language, options.task, options.beam_size) == ("fr", "translate", 3)
    assert bench.loads == [("base", "CPU", "auto", "auto", 1)]


def test_languages_to_choose_from_reach_the_model(bench) -> None:
    run(bench.manifest, "--model", bench.base, "--languages", "de, English")
    for _, _, options in bench.calls:
        assert options.languages == ("de", "English")


def test_a_warm_up_comes_first_and_is_not_counted(bench, tmp_path) -> None:
    out = tmp_path / "out.json"
    run(bench.manifest, "--model", bench.en, "--json", str(out))
    assert [type(audio) is np.ndarray for _, audio, _ in bench.calls] == [True, False, False]
    assert json.loads(out.read_text())["configurations"][0]["audio_seconds"] == 4.0


def test_each_recording_s_work_is_told(bench, capsys) -> None:
    """Also where all texts come at once, as those that are decoded together do."""
    run(bench.manifest, "--model", bench.en)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines if line[:1] in (["a.wav"], ["b.wav"])] == ["1.50", "3.00"]


@pytest.mark.parametrize(("limit", "code"), [("33.33", 0), ("33.32", 1), ("100", 0), ("0", 1)])
def test_max_wer_is_a_gate(bench, capsys, limit, code) -> None:
    assert run(bench.manifest, "--model", bench.en, "--max-wer", limit) == code
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "WER: 33.33"
    assert (f"WER 33.33 is above {limit}" in err) == bool(code)


def test_max_wer_does_not_hold_where_there_are_no_words(bench, capsys) -> None:
    empty = bench.folder / "empty.tsv"
    empty.write_text("a.wav\t\n")
    assert run(str(empty), "--model", bench.en, "--max-wer", "20") == 1
    assert "WER has no value: there are no words to compare with" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["nan", "-1"])
def test_max_wer_is_a_percentage(bench, limit) -> None:
    assert run(bench.manifest, "--model", bench.en, f"--max-wer={limit}") == 2
    assert bench.loads == []


def test_options_not_given_are_not_told(bench, capsys) -> None:
    run(bench.manifest, "--model", bench.en)
    assert "options: defaults" in capsys.readouterr().out


def test_max_wer_holds_for_every_configuration(bench) -> None:
    bench.heard["base/a.wav"] = "take the red book"
    models = ["--model", bench.en, "--model", bench.base]
    assert run(bench.manifest, *models, "--language", "en", "--max-wer", "20") == 1


def test_a_recording_that_fails_is_one_line_and_the_others_go_on(bench, capsys) -> None:
    lines = Path(bench.manifest).read_text()
    Path(bench.manifest).write_text("none.wav\tseven\n" + lines.replace("audio\treference\n", ""))
    out = bench.folder / "out.json"
    assert run(bench.manifest, "--model", bench.en, "--json", str(out)) == 1
    printed, err = capsys.readouterr()
    assert err.splitlines() == [f"error: {bench.folder / 'none.wav'}: no such file"]
    assert printed.splitlines()[-1] == "WER: 33.33"
    (configuration,) = json.loads(out.read_text())["configurations"]
    assert configuration["recordings"] == 2
    assert [failure["audio"] for failure in configuration["failed"]] == ["none.wav"]


def test_no_recording_at_all(bench, capsys) -> None:
    Path(bench.manifest).write_text("none.wav\tseven\n")
    assert run(bench.manifest, "--model", bench.en) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no recording could be read" in err.splitlines()[-1]


def test_a_configuration_that_fails_leaves_the_others(bench, capsys) -> None:
    code = run(bench.manifest, "--model", bench.en, "--device", "NPU", "--device", "CPU")
    assert code == 3
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "WER: 33.33"
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "NPU is not available" in line


def test_a_missing_model_is_told_before_anything_is_measured(bench, capsys) -> None:
    assert run(bench.manifest, "--model", bench.en, "--model", "nonesuch") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "model nonesuch does not exist; " in line
    assert bench.loads == []


def test_empty_and_truncated_outputs_are_counted(bench) -> None:
    words = "eins zwei drei vier fünf sechs sieben acht neun zehn"
    Path(bench.manifest).write_text(f"a.wav\t{words}\nb.wav\toh yes\n", encoding="utf-8")
    bench.heard.update({"a.wav": "eins zwei", "b.wav": "!"})
    out = bench.folder / "out.json"
    run(bench.manifest, "--model", bench.base, "--json", str(out))
    (configuration,) = json.loads(out.read_text())["configurations"]
    assert (configuration["empty"], configuration["truncated"]) == (1, 1)


def test_json_has_figures_and_texts(bench) -> None:
    out = bench.folder / "out.json"
    run(bench.manifest, "--model", bench.en, "--precision", "bf16", "--json", str(out))
    content = json.loads(out.read_text())
    assert (content["metric"], content["normalizer"]) == ("WER", "english")
    assert content["references"] == [bench.manifest]
    (configuration,) = content["configurations"]
    expected = {"model": "tiny.en", "device": "CPU", "kv_cache": "stateful", "precision": "bf16"}
    assert configuration.items() >= expected.items()
    assert configuration["wer"] == pytest.approx(100 / 3)
    assert configuration["interval"] == pytest.approx([0, 50])
    counts = [configuration[name] for name in ("words", "substitutions", "deletions", "insertions")]
    assert counts == [6, 1, 1, 0]
    assert configuration["rtf"] * configuration["rtfx"] == pytest.approx(1)
    first, second = configuration["files"]
    assert first["hypothesis"] == "Take the bread."
    assert first["reference"] == "take the red book"
    assert second["wer"] == 0


def test_markdown_has_tables_and_the_worst(bench) -> None:
    out = bench.folder / "out.md"
    run(bench.manifest, "--model", bench.en, "--worst", "1", "--markdown", str(out))
    text = out.read_text()
    assert "| tiny.en | openvino | CPU | stateful | f32 | auto | 33.33 |" in text
    assert "| a.wav | 4 | 1 | 1 | 0 | 50.00 |" in text
    assert "### a.wav: WER 50.00 %" in text
    assert "b.wav: WER" not in text


def test_worst_are_shown_aligned(bench, capsys) -> None:
    run(bench.manifest, "--model", bench.en, "--worst", "5")
    out = capsys.readouterr().out
    i = out.index("a.wav: WER 50.00 %\n\n")
    _, _, said, heard, edits = out[i:].splitlines()[:5]
    assert said.split() == ["REF:", "take", "the", "red", "book"]
    assert len(heard.split()) == 5
    assert sorted(edits.split()) == ["D", "S"]
    assert "b.wav: WER" not in out  # nothing is wrong there


def test_words_invented_in_silence_come_first(bench, capsys) -> None:
    Path(bench.manifest).write_text("a.wav\ttake the red book\nb.wav\t\n")
    run(bench.manifest, "--model", bench.en, "--worst", "1")
    out = capsys.readouterr().out
    assert "b.wav: 2 insertions" in out
    assert out.splitlines()[-1] == "WER: 100.00"


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot(bench, suffix, start) -> None:
    out = bench.folder / f"out{suffix}"
    models = ["--model", bench.en, "--model", bench.base]
    assert run(bench.manifest, *models, "--language", "en", "--plot", str(out)) == 0
    content = out.read_bytes()
    assert content.startswith(start)
    if suffix == ".svg":
        assert b"<!-- tiny.en -->" in content  # matplotlib notes the text of each label
        assert b"<!-- base -->" in content


def test_models_of_the_same_name_are_told_apart(bench, capsys) -> None:
    other = bench.folder / "other" / "base"
    other.mkdir(parents=True)
    run(bench.manifest, "--model", bench.base, "--model", str(other), "--language", "de")
    out = capsys.readouterr().out
    assert f"{other}, backend openvino, device CPU" in out
    assert f"{bench.base}, backend openvino, device CPU" in out


@pytest.mark.parametrize(
    ("models", "options", "language"),
    [
        (["base"], [], "de"),  # detected
        (["base"], ["--language", "French"], "french"),
        (["base", "tiny.en"], [], "en"),
        (["base"], ["--task", "translate"], "en"),
    ],
)
def test_language_of_the_comparison(bench, monkeypatch, models, options, language) -> None:
    monkeypatch.setattr(
        FakeModel,
        "resolve",
        lambda self, options: replace(
            options,
            language="en"
            if self.folder.name.endswith(".en")
            else options.language and options.language.lower(),
        ),
    )
    out = bench.folder / "out.json"
    names = [part for model in models for part in ("--model", str(bench.folder / model))]
    run(bench.manifest, *names, *options, "--json", str(out))
    assert json.loads(out.read_text())["language"] == language


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tsv"], "no such manifest"),
        (["{manifest}", "--plot", "out.txt"], "a plot is written as one of .pdf, .png, .svg"),
        (["{manifest}", "--json", "none/out.json"], "its folder does not exist"),
        (["{manifest}", "--markdown", "{folder}"], "is a folder"),
        (["{manifest}", "--worst", "-1"], "give 0 or more"),
    ],
)
def test_wrong_command_lines_are_told_before_anything_is_measured(
    bench, capsys, arguments, message
) -> None:
    places = {"manifest": bench.manifest, "folder": bench.folder}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert bench.loads == []


@pytest.mark.slow
@pytest.mark.parametrize("module", ["jiwer", "whisper_normalizer.basic", "matplotlib"])
def test_missing_extra_is_one_line(bench, module) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from whisper_npu.scripts import evaluate_wer\n"
        f"sys.exit(evaluate_wer.main([{bench.manifest!r}, '--plot', 'out.png']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"needs {module.split('.')[0]}: pip install 'whisper-npu[eval]'" in line


def test_help_needs_no_extra() -> None:
    code = (
        "import sys; sys.modules['jiwer'] = sys.modules['openvino'] = None\n"
        "from whisper_npu.scripts import evaluate_wer\n"
        "evaluate_wer.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--max-wer" in done.stdout
    assert "exit codes:" in done.stdout


def test_it_is_a_subcommand(capsys) -> None:
    with pytest.raises(SystemExit):
        main.main(["wer", "--help"])
    assert capsys.readouterr().out.startswith("usage: whisper-npu wer ")


def test_real_speech(tiny_en_folder, beckett, tmp_path, capsys) -> None:
    manifest = tmp_path / "references.tsv"
    text = "ever tried ever failed no matter try again fail again fail better"
    manifest.write_text(f"{beckett}\t{text}\n")
    arguments = [str(manifest), "--model", str(tiny_en_folder), "--precision", "f32"]
    assert run(*arguments, "--max-wer", "0") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "WER: 0.00"


def test_results_name_files_that_are_no_utf8(tmp_path) -> None:
    write_text(tmp_path / "out.json", json.dumps({"audio": "caf\udce9.wav"}, ensure_ascii=False))
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == {"audio": "caf\udce9.wav"}
