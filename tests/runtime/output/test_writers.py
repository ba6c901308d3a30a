"""Output files, against expectations written out by hand after openai/whisper's writers."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from whisper_npu.errors import OutputError, UsageError
from whisper_npu.runtime.output.formats import (
    FORMATS,
    expand_formats,
    format_transcript,
    make_formatter,
)
from whisper_npu.runtime.output.subtitles import SubtitleOptions, format_timestamp
from whisper_npu.runtime.output.writers import OutputFiles, write, write_transcript
from whisper_npu.runtime.results import Segment, Transcription, Word


def segment(start: float, end: float, text: str, words=None, index: int = 0) -> Segment:
    return Segment(
        id=index,
        seek=0,
        start=start,
        end=end,
        text=text,
        tokens=(50364, 440, 50464),
        temperature=0.0,
        avg_logprob=-0.25,
        compression_ratio=1.5,
        no_speech_prob=0.125,
        words=words,
    )


def transcription(*segments: Segment, **fields) -> Transcription:
    defaults = {
        "text": "".join(item.text for item in segments),
        "language": "en",
        "segments": segments,
        "duration": 12.5,
        "model": "tiny.en",
        "device": "CPU",
        "kv_cache": "stateful",
    }
    return Transcription(**(defaults | fields))


def spoken(start: float, text: str, *, pace: float = 0.5) -> Segment:
    """A segment whose words follow one another at a steady pace."""
    pieces = [" " + word for word in text.split()]
    words = tuple(
        Word(start + index * pace, start + (index + 1) * pace, word, 0.9)
        for index, word in enumerate(pieces)
    )
    return segment(words[0].start, words[-1].end, "".join(pieces), words)


PLAIN = transcription(
    segment(0.0, 3.2504, " Hello, world."),
    segment(3.25, 3661.5, " Arrow --> and\ttab. ", index=1),
)


class TestWithoutWords:
    def test_txt(self):
        assert format_transcript(PLAIN, "txt") == "Hello, world.\nArrow --> and\ttab.\n"

    def test_the_name_of_a_format_in_capitals(self):
        assert format_transcript(PLAIN, "TXT") == format_transcript(PLAIN, "txt")

    def test_a_layout_of_words_needs_words(self, tmp_path):
        layout = SubtitleOptions(max_line_width=20)
        for call in (
            lambda: format_transcript(PLAIN, "srt", layout),
            lambda: write_transcript(PLAIN, tmp_path / "a.srt", layout),
        ):
            with pytest.raises(UsageError, match="transcribe with word_timestamps=True"):
                call()
        assert list(tmp_path.iterdir()) == []

    def test_tsv(self):
        assert format_transcript(PLAIN, "tsv") == (
            "start\tend\ttext\n0\t3250\tHello, world.\n3250\t3661500\tArrow --> and tab.\n"
        )

    def test_srt(self):
        assert format_transcript(PLAIN, "srt") == (
            "1\n00:00:00,000 --> 00:00:03,250\nHello, world.\n\n"
            "2\n00:00:03,250 --> 01:01:01,500\nArrow -> and\ttab.\n\n"
        )

    def test_vtt(self):
        assert format_transcript(PLAIN, "vtt") == (
            "WEBVTT\n\n"
            "00:00.000 --> 00:03.250\nHello, world.\n\n"
            "00:03.250 --> 01:01:01.500\nArrow -> and\ttab.\n\n"
        )

    def test_json(self):
        """openai/whisper's keys come first, in its order and ASCII; ours follow."""
        result = transcription(segment(0.0, 2.0, " Žluť"), warnings=("damaged",))
        content = format_transcript(result, "json")
        assert content.startswith(
            '{"text": " \\u017dlu\\u0165", "segments": [{"id": 0, "seek": 0, "start": 0.0,'
            ' "end": 2.0, "text": " \\u017dlu\\u0165", "tokens": [50364, 440, 50464],'
            ' "temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.5,'
            ' "no_speech_prob": 0.125}], "language": "en", "duration": 12.5,'
            ' "model": "tiny.en", "device": "CPU", "kv_cache": "stateful"'
        )
        assert json.loads(content)["warnings"] == ["damaged"]
        assert not content.endswith("\n")

    @pytest.mark.parametrize(
        ("output_format", "expected"),
        [("txt", ""), ("srt", ""), ("vtt", "WEBVTT\n\n"), ("tsv", "start\tend\ttext\n")],
    )
    def test_silence(self, output_format, expected):
        assert format_transcript(transcription(), output_format) == expected
        assert json.loads(format_transcript(transcription(), "json"))["text"] == ""


class TestWithWords:
    def test_each_segment_is_a_cue_by_default(self):
        result = transcription(spoken(0, "One two."), spoken(1.5, "Three."))
        assert format_transcript(result, "srt") == (
            "1\n00:00:00,000 --> 00:00:01,000\nOne two.\n\n"
            "2\n00:00:01,500 --> 00:00:02,000\nThree.\n\n"
        )

    def test_segments_without_words_among_others(self):
        """Cues come from words, so a segment whose words were all removed gives none."""
        result = transcription(
            segment(0, 0, "", ()), spoken(1, "One."), segment(2, 3, " No words.", None)
        )
        assert format_transcript(result, "vtt") == (
            "WEBVTT\n\n00:01.000 --> 00:01.500\nOne.\n\n00:02.000 --> 00:03.000\nNo words.\n\n"
        )

    def test_highlight_words(self):
        words = (Word(0.0, 0.4, " One", 0.9), Word(0.6, 1.0, " two", 0.9))
        result = transcription(segment(0.0, 1.0, " One two", words))
        assert format_transcript(result, "vtt", SubtitleOptions(highlight_words=True)) == (
            "WEBVTT\n\n"
            "00:00.000 --> 00:00.400\n<u>One</u> two\n\n"
            "00:00.400 --> 00:00.600\nOne two\n\n"
            "00:00.600 --> 00:01.000\nOne <u>two</u>\n\n"
        )

    def test_highlight_keeps_the_line_break_outside(self):
        result = transcription(spoken(0, "alpha beta"))
        options = SubtitleOptions(highlight_words=True, max_line_width=6)
        assert format_transcript(result, "srt", options) == (
            "1\n00:00:00,000 --> 00:00:00,500\n<u>alpha</u>\nbeta\n\n"
            "2\n00:00:00,500 --> 00:00:01,000\nalpha\n<u>beta</u>\n\n"
        )

    def test_max_line_width_breaks_lines_within_the_cue(self):
        result = transcription(spoken(0, "aaa bbb ccc ddd"), spoken(2, "eee"))
        # " bbb" makes "aaa bbb" 7 characters wide; " ccc" would make 11.
        assert format_transcript(result, "srt", SubtitleOptions(max_line_width=7)) == (
            "1\n00:00:00,000 --> 00:00:02,000\naaa bbb\nccc ddd\n\n"
            "2\n00:00:02,000 --> 00:00:02,500\neee\n\n"
        )

    def test_max_line_count_and_width_fill_cues_across_segments(self):
        result = transcription(spoken(0, "aaa bbb ccc"), spoken(1.5, "ddd eee fff"))
        options = SubtitleOptions(max_line_width=7, max_line_count=2)
        assert format_transcript(result, "srt", options) == (
            "1\n00:00:00,000 --> 00:00:02,000\naaa bbb\nccc ddd\n\n"
            "2\n00:00:02,000 --> 00:00:03,000\neee fff\n\n"
        )

    @pytest.mark.parametrize(("pause", "cues"), [(3.0, 1), (3.25, 2)])
    def test_a_long_pause_starts_a_new_cue(self, pause, cues):
        words = (Word(0.0, 0.5, " aaa", 0.9), Word(pause, pause + 0.5, " bbb", 0.9))
        result = transcription(segment(0, 4, " aaa bbb", words))
        options = SubtitleOptions(max_line_width=40, max_line_count=2)
        assert format_transcript(result, "srt", options).count("-->") == cues

    def test_max_words_per_line(self):
        result = transcription(spoken(0, "a b c d e"), spoken(3, "f"))
        assert format_transcript(result, "srt", SubtitleOptions(max_words_per_line=2)) == (
            "1\n00:00:00,000 --> 00:00:01,000\na b\n\n"
            "2\n00:00:01,000 --> 00:00:02,000\nc d\n\n"
            "3\n00:00:02,000 --> 00:00:02,500\ne\n\n"
            "4\n00:00:03,000 --> 00:00:03,500\nf\n\n"
        )

    def test_channels_are_named(self):
        """WebVTT has a mark for who speaks; a cue never holds two of them."""
        two = transcription(
            dataclasses.replace(segment(0.0, 1.0, " Hello."), channel="left"),
            dataclasses.replace(segment(0.5, 2.0, " Hi."), channel="right"),
        )
        assert format_transcript(two, "txt") == "[left] Hello.\n[right] Hi.\n"
        assert format_transcript(two, "tsv").endswith(
            "0\t1000\t[left] Hello.\n500\t2000\t[right] Hi.\n"
        )
        assert "00:00.000 --> 00:01.000\n<v left>Hello.\n" in format_transcript(two, "vtt")
        assert "00:00:00,500 --> 00:00:02,000\n[right] Hi.\n" in format_transcript(two, "srt")
        assert [each["channel"] for each in two.to_dict()["segments"]] == ["left", "right"]

    def test_a_cue_of_words_ends_with_its_channel(self):
        turns = transcription(
            dataclasses.replace(spoken(0.0, "one two"), channel="left"),
            dataclasses.replace(spoken(1.0, "three"), channel="right"),
            dataclasses.replace(spoken(1.5, "four five"), channel="left"),
        )
        wide = SubtitleOptions(max_line_width=40, max_line_count=2)
        texts = [
            cue.split("\n", 1)[1]
            for cue in format_transcript(turns, "vtt", wide).split("\n\n")[1:-1]
        ]
        assert texts == ["<v left>one two", "<v right>three", "<v left>four five"]
        one_by_one = SubtitleOptions(highlight_words=True)
        assert "[right] <u>three</u>" in format_transcript(turns, "srt", one_by_one)

    def test_json_has_the_words(self):
        result = transcription(segment(0, 1, " One", (Word(0.0, 0.5, " One", 0.75),)))
        assert json.loads(format_transcript(result, "json"))["segments"][0]["words"] == [
            {"word": " One", "start": 0.0, "end": 0.5, "probability": 0.75}
        ]

    def test_cues_come_out_as_soon_as_they_are_complete(self):
        formatter = make_formatter("srt")
        assert formatter.segment(spoken(0, "One.")) == ""
        assert formatter.segment(spoken(1, "Two.")) == (
            "1\n00:00:00,000 --> 00:00:00,500\nOne.\n\n"
        )


class TestOptions:
    @pytest.mark.parametrize("name", ["max_line_width", "max_line_count", "max_words_per_line"])
    def test_limits_below_one_are_refused(self, name):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be at least 1"):
            SubtitleOptions(**{name: 0})

    def test_all_of_them_need_word_times(self):
        assert SubtitleOptions().check(word_timestamps=False) == []
        options = SubtitleOptions(highlight_words=True, max_line_width=40)
        with pytest.raises(
            UsageError, match="--highlight-words, --max-line-width: add --word-timestamps"
        ):
            options.check(word_timestamps=False)
        assert options.check(word_timestamps=True) == []

    def test_options_without_effect_are_told(self):
        lines = SubtitleOptions(max_line_count=2).check(word_timestamps=True)
        assert lines == ["--max-line-count has no effect without --max-line-width"]
        full = SubtitleOptions(max_line_count=2, max_line_width=40, max_words_per_line=3)
        assert "--max-words-per-line has no effect" in full.check(word_timestamps=True)[0]
        result = transcription(spoken(0, "a b c d e f g"))
        without = dataclasses.replace(full, max_words_per_line=None)
        assert format_transcript(result, "srt", full) == format_transcript(result, "srt", without)


@pytest.mark.parametrize(
    ("seconds", "short", "srt"),
    [
        (0, "00:00.000", "00:00:00,000"),
        (59.9996, "01:00.000", "00:01:00,000"),
        (3599.9994, "59:59.999", "00:59:59,999"),
        (3600, "01:00:00.000", "01:00:00,000"),
        (360_000.0625, "100:00:00.062", "100:00:00,062"),  # half to even, as Python rounds
    ],
)
def test_timestamps(seconds, short, srt):
    assert format_timestamp(seconds) == short
    assert format_timestamp(seconds, always_include_hours=True, decimal_marker=",") == srt
    with pytest.raises(ValueError, match="cannot be negative"):
        format_timestamp(-0.001)


def test_formats():
    assert FORMATS == ("txt", "vtt", "srt", "tsv", "json")
    assert expand_formats("all") == FORMATS
    assert expand_formats("srt, TXT,srt") == ("srt", "txt")
    assert expand_formats(["json", "all"])[0] == "json"
    for wrong in ("docx", "", "srt,,txt"):
        with pytest.raises(UsageError, match=f"one of {', '.join(FORMATS)}, all"):
            expand_formats(wrong)
    with pytest.raises(UsageError, match="no output format"):
        expand_formats([])


class TestFiles:
    def test_all_formats_beside_one_another(self, tmp_path):
        paths = write(PLAIN, "/recordings/my talk.v2.mp3", tmp_path / "new" / "out", "all")
        assert paths == [tmp_path / "new" / "out" / f"my talk.v2.{name}" for name in FORMATS]
        assert sorted((tmp_path / "new" / "out").iterdir()) == sorted(paths)
        for path in paths:
            assert path.read_bytes().decode("utf-8") == format_transcript(PLAIN, path.suffix[1:])

    def test_utf8_whatever_the_locale(self, tmp_path):
        (path,) = write(transcription(segment(0, 1, " 日本語 🎙")), "x.wav", tmp_path, "txt")
        assert path.read_bytes() == "日本語 🎙\n".encode()

    def test_options_reach_the_files(self, tmp_path):
        result = transcription(spoken(0, "a b"))
        (path,) = write(result, "x.wav", tmp_path, "srt", SubtitleOptions(max_words_per_line=1))
        assert path.read_text().count("-->") == 2

    @pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX")
    def test_readable_like_any_new_file(self, tmp_path):
        (tmp_path / "plain").touch()
        (path,) = write(PLAIN, "x.wav", tmp_path, "txt")
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(
            (tmp_path / "plain").stat().st_mode
        )

    def test_segments_are_written_as_they_come(self, tmp_path):
        with OutputFiles("x.wav", tmp_path, "txt,srt") as outputs:
            for item in PLAIN.segments:
                outputs.segment(item)
            assert not (tmp_path / "x.txt").exists()
            paths = outputs.finish(PLAIN)
        assert [path.read_text() for path in paths] == [
            format_transcript(PLAIN, "txt"),
            format_transcript(PLAIN, "srt"),
        ]

    def test_a_run_that_is_stopped_leaves_the_old_files(self, tmp_path):
        (tmp_path / "x.txt").write_text("old")

        def stopped_run():
            with OutputFiles("x.wav", tmp_path, "all") as outputs:
                outputs.segment(PLAIN.segments[0])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stopped_run()
        assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
        assert (tmp_path / "x.txt").read_text() == "old"
        write(PLAIN, "x.wav", tmp_path, "txt")
        assert (tmp_path / "x.txt").read_text() == format_transcript(PLAIN, "txt")

    def test_a_name_as_long_as_a_name_can_be(self, tmp_path):
        stem = "n" * 251
        (path,) = write(PLAIN, f"{stem}.wav", tmp_path, "txt")
        assert path.name == f"{stem}.txt"

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match=r"file: cannot be made: .*--output-dir"):
            write(PLAIN, "x.wav", tmp_path / "file", "txt")

    def test_no_recording_is_written_over(self, tmp_path):
        """One that is called like its output, in the folder of the outputs."""
        recording = tmp_path / "x.txt"
        recording.write_bytes(b"RIFF")
        with pytest.raises(OutputError, match=r"x\.txt: is the recording"):
            OutputFiles(recording, tmp_path, ("srt", "txt"))
        assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
        assert recording.read_bytes() == b"RIFF"

    def test_a_name_that_is_taken_by_a_folder(self, tmp_path):
        (tmp_path / "x.srt").mkdir()
        with pytest.raises(OutputError, match=r"x\.srt: cannot be written"):
            write(PLAIN, "x.wav", tmp_path, "srt")
        assert [path.name for path in tmp_path.iterdir()] == ["x.srt"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    @pytest.mark.parametrize("size", [10, 10**6])  # noticed when closing, and when writing
    def test_a_full_disk(self, tmp_path, monkeypatch, size):
        real_open = Path.open

        def open_full(path, *args, **options):
            real_open(path, *args, **options).close()
            return real_open(Path("/dev/full"), "w", encoding="utf-8")

        (tmp_path / "x.txt").write_text("old")
        monkeypatch.setattr(Path, "open", open_full)
        with pytest.raises(OutputError, match=r"x\.txt: cannot be written: No space left"):
            write(transcription(segment(0, 1, "x" * size)), "x.wav", tmp_path, "txt")
        monkeypatch.undo()
        assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
        assert (tmp_path / "x.txt").read_text() == "old"


class TestWriteTranscript:
    """One file by one call."""

    @pytest.mark.parametrize("name", [*FORMATS, "SRT"])
    def test_the_suffix_names_the_format(self, tmp_path, name):
        path = tmp_path / "new" / f"talk.v2.{name}"
        assert write_transcript(PLAIN, str(path)) == path
        assert path.read_bytes().decode("utf-8") == format_transcript(PLAIN, name.lower())
        assert list(path.parent.iterdir()) == [path]

    def test_options_shape_subtitles(self, tmp_path):
        result = transcription(spoken(0, "One two."))
        options = SubtitleOptions(max_words_per_line=1)
        path = write_transcript(result, tmp_path / "talk.vtt", options)
        assert path.read_text("utf-8") == format_transcript(result, "vtt", options)
        assert path.read_text("utf-8") != format_transcript(result, "vtt")

    @pytest.mark.parametrize("name", ["talk", "talk.doc", ".srt"])
    def test_another_suffix_is_refused(self, tmp_path, name):
        with pytest.raises(UsageError, match=r"give one of \.txt, \.vtt, \.srt, \.tsv, \.json"):
            write_transcript(PLAIN, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_written_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "talk.srt"
        path.write_text("old", encoding="utf-8")

        def fail(*_arguments):
            raise RuntimeError("stopped")

        monkeypatch.setattr("whisper_npu.runtime.output.writers._Output.publish", fail)
        with pytest.raises(RuntimeError):
            write_transcript(PLAIN, path)
        assert path.read_text(encoding="utf-8") == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_in_its_place(self, tmp_path):
        (tmp_path / "talk.srt").mkdir()
        with pytest.raises(OutputError, match=r"talk\.srt: cannot be written"):
            write_transcript(PLAIN, tmp_path / "talk.srt")


class TestPartial:
    def test_what_there_is_under_another_name(self, tmp_path):
        (tmp_path / "talk.srt").write_text("old")
        with OutputFiles("talk.mp3", tmp_path, "srt, json") as outputs:
            outputs.segment(segment(0, 1, " One."))
            # The second was decoded, but not written yet.
            result = transcription(segment(0, 1, " One."), segment(1, 2, " Two."))
            paths = outputs.keep_partial(result)
        assert paths == [tmp_path / "talk.partial.srt", tmp_path / "talk.partial.json"]
        assert paths[0].read_text() == format_transcript(result, "srt")
        assert json.loads(paths[1].read_text())["text"] == " One. Two."
        assert (tmp_path / "talk.srt").read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 3


def test_results_are_values():
    assert segment(0, 1, "x") == segment(0, 1, "x")
    assert hash(transcription(spoken(0, "a"))) == hash(transcription(spoken(0, "a")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        segment(0, 1, "x").text = "y"


def test_numbers_of_numpy_become_plain_json():
    result = transcription(
        dataclasses.replace(
            segment(0, 1, "x"), start=np.float32(0.5), tokens=(np.int64(7),), id=np.int32(3)
        )
    )
    first = json.loads(format_transcript(result, "json"))["segments"][0]
    assert (first["start"], first["tokens"], first["id"]) == (0.5, [7], 3)
