"""The command line: what it prints and writes, and that its exit code is true."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE, Track, bad_files, cut, voice, write_film

from whisper_npu.runtime.output.formats import FORMATS
from whisper_npu.scripts import main as console
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.journal import JOURNAL
from whisper_npu.scripts.transcribe import main

LINE = re.compile(r"\[(\d\d:)?\d\d:\d\d\.\d{3} --> (\d\d:)?\d\d:\d\d\.\d{3}\]  ?\S.*")
# The tiny Whisper invents text: every window of sound becomes some.
INVENT = [
    *("--vad", "False", "--language", "en", "--without-timestamps"),
    *("--no-speech-threshold", "None", "--temperature-increment-on-fallback", "None"),
]


@pytest.fixture
def run(tiny_folder, capsys):
    """A function from arguments to exit code, standard output and lines of standard error."""

    def run_program(*arguments, model=tiny_folder):
        try:
            code = main([*map(str, arguments), "--model", str(model)])
        except SystemExit as end:  # argparse
            code = end.code
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        return code, output.out, output.err.splitlines()

    return run_program


def outputs(folder):
    """The names of the files in an output folder, other than the journal."""
    return sorted(path.name for path in folder.iterdir() if path.name != JOURNAL)


@pytest.fixture
def sound(tmp_path):
    """Three seconds of a synthetic voice."""
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice(3.0), RATE)
    return path


class TestExitCodes:
    def test_0_when_everything_was_done(self, run, sound):
        code, out, err = run(sound, *INVENT)
        assert code == 0
        assert err == []
        (line,) = out.splitlines()
        assert LINE.match(line)

    @pytest.mark.slow
    def test_1_with_one_line_for_each_file_that_failed(self, run, sound, tmp_path):
        folder = tmp_path / "bad"
        folder.mkdir()
        bad = bad_files(folder)
        first, *others = bad
        code, out, err = run(first, sound, *others, *INVENT)
        assert code == 1
        assert len(err) == len(bad)
        for path, reason in bad.items():
            (line,) = (line for line in err if line.startswith(f"error: {path}"))
            assert reason in line
        assert any(LINE.match(line) for line in out.splitlines())  # the others were done

    def test_1_when_all_failed(self, run, tmp_path):
        code, out, err = run(tmp_path / "missing.wav")
        assert (code, out) == (1, "")
        assert err == [f"error: {tmp_path / 'missing.wav'}: no such file"]

    def test_1_for_an_address(self, run):
        address = "https://example.com/a.mp3"
        code, _, err = run(address)
        assert code == 1
        assert err == [f"error: {address}: addresses are not fetched; download the recording first"]

    def test_1_before_a_model_is_fetched_if_no_recording_exists(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(cli, "find_model", lambda *_: pytest.fail("the model was looked for"))
        missing = tmp_path / "missing.wav"
        (empty := tmp_path / "empty").mkdir()
        code, out, err = run(missing, empty)
        assert (code, out) == (1, "")
        first, second = err
        assert first.startswith(f"error: {empty}: no audio or video file in this folder")
        assert second == f"error: {missing}: no such file"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--language", "Klingon"], "unknown language 'Klingon'"),
            (["--language", "cy"], "no language token for welsh"),
            (["--languages", "en, cy"], "no language token for welsh"),
            (["--temperature", "-1"], "temperature takes"),
            (["--temperature", "nan"], "temperature takes"),
            (["--beam-size", "0"], "beam_size is 0"),
            (["--best-of", "0"], "best_of is 0"),
            (["--patience", "0"], "patience is 0"),
            (["--length-penalty", "2"], "length_penalty is 2"),
            (["--suppress-tokens", "a"], "suppress_tokens is 'a'; give token ids"),
            (["--temperature-increment-on-fallback", "1e-9"], "takes 0.01 or more"),
            (["--temperature-increment-on-fallback", "nan"], "takes 0.01 or more"),
            (["--patience", "inf"], "patience is inf"),
            (["--max-initial-timestamp", "inf"], "max_initial_timestamp is inf"),
            (["--output-format", "docx"], "docx"),
            (["--threads", "-2"], "threads is -2"),
            (["--verbose", "False"], "say with -o or -f"),
            (["--suppress-tokens=-1,99999999"], "suppress_tokens has 99999999"),
            (["--suppress-tokens", "-5"], "suppress_tokens has -5"),
            (["--max-initial-timestamp", "-1"], "max_initial_timestamp is -1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_2_for_options_that_cannot_work(self, run, sound, arguments, message):
        code, out, err = run(sound, *arguments)
        assert (code, out) == (2, "")
        assert len(err) == 1
        assert err[0].startswith("error: ")
        assert message in err[0]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--no-such-option"],
            ["--kv-cache", "magic"],
            ["--task", "sing"],
            ["--verbose", "maybe"],
            ["--beam-size", "many"],
            ["--threads"],
        ],
        ids=" ".join,
    )
    def test_2_for_command_lines_that_argparse_refuses(self, run, sound, arguments):
        code, out, err = run(sound, *arguments)
        assert (code, out) == (2, "")
        (line,) = err
        assert line.startswith("error: ")
        assert line.endswith("(see `whisper-npu transcribe --help`)")

    def test_a_mistyped_option_is_corrected(self, run, sound):
        """Whatever argparse makes of its value."""
        code, _, err = run("--langauge", "de")
        assert (code, err) == (
            2,
            [
                "error: there is no option --langauge: did you mean --language? "
                "(see `whisper-npu transcribe --help`)"
            ],
        )

    def test_2_without_files(self, run):
        code, _, err = run()
        assert code == 2
        assert "the following arguments are required: FILE" in err[-1]

    def test_3_without_a_model(self, run, sound, tmp_path):
        code, out, err = run(sound, model=tmp_path / "none")
        assert (code, out) == (3, "")
        assert len(err) == 1
        assert err[0].startswith(f"error: model {tmp_path / 'none'}")

    def test_3_for_a_folder_that_is_no_model(self, run, sound, tmp_path):
        code, out, err = run(sound, model=tmp_path)
        assert (code, out) == (3, "")
        assert len(err) == 1
        assert "lacks an encoder (encoder_model.onnx)" in err[0]

    def test_3_for_a_damaged_model(self, run, sound, tmp_path, tiny_folder):
        folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
        (folder / "decoder_model.onnx").write_bytes(b"no graph")
        code, _, err = run(sound, model=folder)
        assert code == 3
        assert len(err) == 1

    def test_3_for_a_missing_device(self, run, sound):
        code, _, err = run(sound, "--device", "GPU.7")
        assert code == 3
        assert len(err) == 1
        assert "GPU.7" in err[0]

    def test_1_for_an_output_that_cannot_be_written(self, run, sound, tmp_path):
        """Which costs its recording alone."""
        other = shutil.copy(sound, tmp_path / "other.wav")
        (tmp_path / "out" / "voice.srt").mkdir(parents=True)
        code, _, err = run(sound, other, *INVENT, "-o", tmp_path / "out", "-f", "srt")
        assert code == 1
        assert len(err) == 1
        assert "voice.srt: cannot be written" in err[0]
        assert (tmp_path / "out" / "other.srt").read_text()

    def test_1_for_a_recording_that_would_be_written_over(self, run, sound, tmp_path):
        """By its own transcript; that by another's is told before anything is decoded."""
        called = Path(shutil.copy(sound, tmp_path / "voice.srt"))
        content = called.read_bytes()
        code, _, err = run(called, *INVENT, "-o", tmp_path, "-f", "srt")
        assert code == 1
        assert len(err) == 1
        assert f"{called}: is the recording, and is not written over" in err[0]
        assert called.read_bytes() == content

    def test_the_help_documents_them(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        meanings = {0: "everything", 1: "some files", 2: "the command line", 3: "the model"}
        for code, meaning in {**meanings, 130: "interrupted", 143: "ended by SIGTERM"}.items():
            assert f"\n  {code:<3}  {meaning}" in text

    def test_0_for_the_list_of_languages(self, run):
        code, out, err = run("--list-languages")
        assert (code, err) == (0, [])
        assert "de\tgerman" in out.splitlines()

    @pytest.mark.parametrize(
        ("language", "told"),
        [("", "--language: the value is empty"), ("Germn", "did you mean german")],
    )
    def test_2_for_an_unknown_language_at_once(self, run, sound, tmp_path, language, told):
        code, _, err = run(sound, "--language", language, model=tmp_path / "no model")
        assert code == 2
        assert len(err) == 1
        assert told in err[0]


class TestInput:
    def test_channels_of_a_call(self, run, tmp_path):
        pair = np.stack([voice(3.0), np.zeros(3 * RATE, np.float32)], axis=1)
        soundfile.write(tmp_path / "call.wav", pair, RATE)
        options = [*INVENT, "--channels", "split", "--report", "-o", tmp_path, "-f", "json"]
        code, out, err = run(tmp_path / "call.wav", *options)
        assert code == 0
        assert "] [left] " in out
        assert "left: 3.00 s of audio: transcribed 3.00 s" in err[0]
        assert sum(line.startswith("right: 3.00 s of audio") for line in err) == 1
        written = json.loads((tmp_path / "call.json").read_text())
        assert written["segments"][0]["channel"] == "left"

    @pytest.mark.slow
    def test_tracks_of_a_film(self, run, tmp_path):
        tracks = [Track(voice(3.0), language="eng"), Track(voice(2.0), language="ger")]
        film = write_film(tmp_path / "film.mkv", *tracks, seconds=3)
        code, _, err = run(film, *INVENT)
        assert code == 0
        assert "not 2 (German): choose by --audio-track" in err[0]
        code, _, err = run(film, *INVENT, "--audio-track", "de", "--report")
        assert code == 0
        assert err[0].startswith("2.")
        code, out, err = run(film, *INVENT, "--audio-track", "all")
        assert (code, err) == (0, [])
        assert "] [track 2] " in out
        code, _, err = run(film, *INVENT, "--audio-track", "3")
        assert code == 1
        assert "no audio track 3; it has 1 (English), 2 (German)" in err[0]

    def test_silence_gives_empty_text(self, run, tmp_path):
        soundfile.write(tmp_path / "silence.wav", np.zeros(40 * RATE), RATE)
        code, out, err = run(
            tmp_path / "silence.wav", "--output-dir", tmp_path / "out", "--vad", "False"
        )
        assert (code, out, err) == (0, "", [])
        assert (tmp_path / "out" / "silence.txt").read_text() == ""
        document = json.loads((tmp_path / "out" / "silence.json").read_text())
        assert (document["text"], document["segments"]) == ("", [])
        assert document["duration"] == 40.0

    def test_odd_recordings(self, run, tmp_path):
        soundfile.write(tmp_path / "one sample.wav", np.full(1, 0.5), RATE)
        soundfile.write(tmp_path / "50 ms.wav", voice(0.05), RATE)
        soundfile.write(tmp_path / "phone.wav", voice(2.0, 8000), 8000, subtype="ULAW")
        wide = np.stack([voice(2.0, 96_000)] * 2, axis=1)
        soundfile.write(tmp_path / "studio.wav", wide, 96_000, subtype="PCM_24")
        soundfile.write(tmp_path / 'it\'s "кот" 世界.wav', voice(2.0), RATE)
        files = sorted(tmp_path.iterdir())
        code, out, err = run(*files, *INVENT)
        assert (code, err) == (0, [])
        for file in files:
            assert f"==> {file} <==" in out

    @pytest.mark.slow
    def test_warnings_are_one_line_and_no_failure(self, run, tmp_path):
        samples = voice(2.0)
        samples[4000:4010] = np.nan
        soundfile.write(tmp_path / "nan.wav", samples, RATE, "FLOAT")
        soundfile.write(tmp_path / "x.mp3", voice(6.0), RATE)
        cut(tmp_path / "x.mp3", tmp_path / "cut.mp3", 0.5)
        code, _, err = run(tmp_path / "nan.wav", tmp_path / "cut.mp3", *INVENT)
        assert code == 0
        assert len(err) == 2
        assert err[0].startswith("warning: ")
        assert "10 samples are not finite" in err[0]
        assert "cut off or damaged" in err[1]

    def test_folders_are_walked(self, run, tmp_path):
        deep = tmp_path / "a" / "b"
        deep.mkdir(parents=True)
        soundfile.write(tmp_path / "a" / "one.wav", voice(1.0), RATE)
        soundfile.write(deep / "two.flac", voice(1.5), RATE)
        (deep / "notes.txt").write_text("no audio")
        code, out, err = run(tmp_path / "a", "--output-dir", tmp_path / "out", *INVENT)
        assert (code, err) == (0, [])
        assert out.index("two.flac") < out.index("one.wav")  # sorted: a/b before a/one.wav
        written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.txt")}
        assert written == {Path("one.txt"), Path("b/two.txt")}

    def test_standard_input(self, run, sound, tmp_path, monkeypatch):
        class Stdin:
            buffer = io.BytesIO(sound.read_bytes())

        monkeypatch.setattr(sys, "stdin", Stdin())
        monkeypatch.chdir(tmp_path)
        code, out, err = run("-", "--output-format", "json", *INVENT)
        assert (code, err) == (0, [])
        assert LINE.match(out)
        assert json.loads((tmp_path / "stdin.json").read_text())["duration"] == 3.0


class TestOptions:
    def test_underscores_are_hyphens(self, run, sound, tmp_path):
        code, out, err = run(
            sound,
            *("--output_dir", tmp_path / "out", "--output_format=srt,txt", "--kv_cache=static"),
            *("--no_speech_threshold", "None", "--vad", "False", "--without_timestamps"),
            *("--condition_on_previous_text=False", "--temperature_increment_on_fallback=None"),
            *("--language", "english"),
        )
        assert (code, err) == (0, [])
        assert out
        assert outputs(tmp_path / "out") == ["voice.srt", "voice.txt"]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["stateful", "concat", "static", "off"])
    def test_kinds_of_cache(self, run, sound, tmp_path, kind):
        code, _, _ = run(
            sound, "--kv-cache", kind, "-o", tmp_path, "-f", "json", *INVENT, "--precision", "f32"
        )
        assert code == 0
        document = json.loads((tmp_path / "voice.json").read_text())
        assert (document["kv_cache"], document["device"]) == (kind, "CPU")
        assert document["model"] == "tiny"
        assert document["text"]

    @pytest.mark.slow
    def test_the_model_is_asked_in_the_language_given(self, run, sound, tmp_path):
        for name, code in (("German", "de"), ("fr", "fr")):
            assert run(sound, *INVENT, "--language", name, "-o", tmp_path, "-f", "json")[0] == 0
            assert json.loads((tmp_path / "voice.json").read_text())["language"] == code

    def test_quiet(self, run, sound):
        code, out, err = run(sound, *INVENT, "--verbose", "False", "--report")
        assert (code, out) == (0, "")
        assert err[0].startswith("3.00 s of audio: transcribed 3.00 s")

    def test_debug_tells_contract_shapes_and_times(self, run, sound):
        code, _, err = run(sound, *INVENT, "--debug", "--kv-cache", "concat")
        assert code == 0
        assert "KV contract: accumulated (from the manifest)" in err
        steps = [line for line in err if line.startswith("step ")]
        assert steps[:3] == [
            # <|sot|>, language, task and <|notimestamps|>, then token by token
            "step 1: self (1, 2, 4, 32), cross (1, 2, 1500, 32)",
            "step 2: self (1, 2, 5, 32), cross (1, 2, 1500, 32)",
            "step 3: self (1, 2, 6, 32), cross (1, 2, 1500, 32)",
        ]
        (stages,) = (line for line in err if line.startswith("stages: "))
        for stage in ("encoder", "prefill", "decoder"):
            assert re.search(rf"{stage} \d+\.\d{{3}} s \(\d+\)", stages)

    def test_not_debugging_tells_nothing(self, run, sound):
        assert run(sound, *INVENT)[2] == []


class TestOutput:
    def test_nothing_is_written_unless_asked(self, run, sound, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        run(sound, *INVENT)
        assert list(tmp_path.iterdir()) == [sound]

    def test_all_formats(self, run, sound, tmp_path):
        code, out, _ = run(sound, *INVENT, "--output-dir", tmp_path / "new" / "folder")
        assert code == 0
        folder = tmp_path / "new" / "folder"
        assert outputs(folder) == sorted(f"voice.{f}" for f in FORMATS)
        document = json.loads((folder / "voice.json").read_text(encoding="utf-8"))
        (segment,) = document["segments"]
        assert document["text"] == segment["text"].strip()
        spoken = segment["text"].strip()
        assert (folder / "voice.txt").read_text(encoding="utf-8") == spoken + "\n"
        assert (folder / "voice.vtt").read_text(encoding="utf-8").startswith("WEBVTT\n\n")
        assert "00:00:00,000 --> 00:00:03,000\n" in (folder / "voice.srt").read_text("utf-8")
        assert (folder / "voice.tsv").read_text(encoding="utf-8").startswith("start\tend\ttext\n")
        assert segment["text"].strip().splitlines()[0] in out

    def test_keys_of_the_json(self, run, sound, tmp_path):
        run(sound, *INVENT, "--output-dir", tmp_path, "--output-format", "json")
        document = json.loads((tmp_path / "voice.json").read_text())
        assert list(document)[:3] == ["text", "segments", "language"]
        assert {"duration", "model", "device", "kv_cache"} <= set(document)
        assert list(document["segments"][0])[:10] == [
            "id",
            "seek",
            "start",
            "end",
            "text",
            "tokens",
            "temperature",
            "avg_logprob",
            "compression_ratio",
            "no_speech_prob",
        ]

    def test_an_output_folder_that_is_a_file(self, run, sound, tmp_path):
        (tmp_path / "taken").write_text("")
        code, _, err = run(sound, *INVENT, "--output-dir", tmp_path / "taken")
        assert code == 2
        assert len(err) == 1
        assert err[0].startswith("error: ")
        assert "taken" in err[0]

    def test_recordings_that_would_share_a_file_are_refused(self, run, tmp_path):
        """Before a model is loaded: what a file is called never depends on its neighbours."""
        for suffix in ("wav", "flac"):
            soundfile.write(tmp_path / f"talk.{suffix}", voice(1.0), RATE)
        options = ("-o", tmp_path / "out", "-f", "txt")
        code, out, err = run(tmp_path, *options, model=tmp_path / "no model")
        assert (code, out) == (2, "")
        (line,) = err
        both = f"{tmp_path / 'talk.flac'} and {tmp_path / 'talk.wav'}"
        assert line.startswith(f"error: {both} would both be written to {tmp_path / 'out'}")
        assert "--keep-suffix" in line
        assert run(tmp_path, *INVENT, *options, "--keep-suffix")[0] == 0
        assert outputs(tmp_path / "out") == ["talk.flac.txt", "talk.wav.txt"]

    def test_an_output_folder_that_cannot_be_used_is_told_first(self, run, sound, tmp_path):
        (tmp_path / "file").write_text("")
        code, _, err = run(sound, "-o", tmp_path / "file" / "x", model=tmp_path / "no model")
        assert code == 2
        assert err == [
            f"error: {tmp_path / 'file' / 'x'}: cannot be made: Not a directory; "
            "choose another --output-dir"
        ]

    def test_a_recording_named_twice_is_transcribed_once(self, run, sound):
        code, out, err = run(sound, sound.parent / ".." / sound.parent.name / sound.name, *INVENT)
        assert (code, err) == (0, [])
        assert len(out.splitlines()) == 1

    def test_a_name_that_is_nearly_all_suffix(self, run, sound, tmp_path):
        """Which no other recording of the batch has to suffer for."""
        odd = Path(shutil.copy(sound, tmp_path / "..wav"))
        code, _, err = run(odd, sound, *INVENT, "-o", tmp_path / "out", "-f", "txt")
        assert (code, err) == (0, [])
        assert outputs(tmp_path / "out") == ["..txt", "voice.txt"]

    def test_a_file_is_no_folder_for_outputs(self, run, sound, tmp_path):
        code, _, err = run(sound, "-o", tmp_path / "talk.srt")
        assert code == 2
        assert err == [
            f"error: -o names a folder, and {tmp_path}/talk.srt looks like a file: "
            f"write -o {tmp_path} -f srt"
        ]
        assert outputs(tmp_path) == ["voice.wav"]

    def test_formats_can_be_given_one_by_one(self, run, sound, tmp_path):
        code, _, err = run(sound, *INVENT, "-o", tmp_path / "out", "-f", "srt", "-f", "vtt,txt")
        assert (code, err) == (0, [])
        assert outputs(tmp_path / "out") == ["voice.srt", "voice.txt", "voice.vtt"]

    def test_warnings_of_several_files_name_them(self, run, sound, tmp_path):
        cut = tmp_path / "cut.wav"
        cut.write_bytes(sound.read_bytes()[:-20_000])
        code, _, err = run(sound, cut, *INVENT)
        assert code == 0
        assert err
        assert all(line.startswith(f"warning: {cut}: ") for line in err)
        _, _, alone = run(cut, *INVENT)
        assert [line.replace(f"{cut}: ", "") for line in err] == alone

    @pytest.mark.parametrize("option", ["--initial-prompt", "--hotwords", "--prefix"])
    def test_texts_that_are_no_utf8(self, run, sound, option):
        code, _, err = run(sound, option, "Ren\udce9")
        assert code == 2
        name = option.strip("-").replace("-", "_")
        assert err == [f"error: {name} is not valid UTF-8; write it anew in UTF-8"]


class TestRealModel:
    def test_english_only_refuses_german(self, run, tiny_en_folder, beckett):
        code, out, err = run(beckett, "--language", "German", model=tiny_en_folder)
        assert (code, out) == (2, "")
        assert err == [
            "error: this model is English-only and cannot transcribe german; "
            "use a multilingual model such as base"
        ]

    def test_english_only_refuses_translation(self, run, tiny_en_folder, beckett):
        code, _, err = run(beckett, "--task", "translate", model=tiny_en_folder)
        assert code == 2
        assert len(err) == 1

    def test_speech_becomes_text(self, run, tiny_en_folder, beckett, tmp_path):
        code, out, err = run(beckett, "-o", tmp_path, model=tiny_en_folder)
        assert (code, err) == (0, [])
        document = json.loads((tmp_path / "beckett.json").read_text())
        words = re.findall(r"[a-z]+", document["text"].lower())
        assert " ".join(words).startswith("ever tried ever failed no matter try again fail again")
        assert all(LINE.match(line) for line in out.splitlines())

    def test_shapes_in_the_log(self, run, tiny_en_folder, beckett):
        code, _, err = run(
            beckett, "--debug", "--kv-cache", "static", "--without-timestamps", model=tiny_en_folder
        )
        assert code == 0
        assert "step 3: self (1, 6, 4, 64), cross (1, 6, 1500, 64)" in err


class TestAsACommand:
    def test_subcommand(self, tiny_folder, sound, capsys):
        assert console.main(["transcribe", str(sound), "--model", str(tiny_folder), *INVENT]) == 0
        assert LINE.match(capsys.readouterr().out)

    def test_interrupted(self, monkeypatch, capsys, sound, tiny_folder):
        def interrupt(*_arguments, **_options):
            raise KeyboardInterrupt

        monkeypatch.setattr("whisper_npu.api.load_model", interrupt)
        assert main([str(sound), "--model", str(tiny_folder)]) == 130
        assert capsys.readouterr().err == "interrupted\n"
