"""Live text in sentences: lines, the flowing line of a terminal, files."""

import io
import json

import pytest

from whisper_npu.errors import UsageError
from whisper_npu.runtime.transcription.live import Committed, Tentative
from whisper_npu.runtime.transcription.live_sentences import LiveSentences
from whisper_npu.scripts.common.live_output import Lines, SavedFile, Session

CLEAR = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said(*texts, seconds=1.0, language="en"):
    """Pieces of committed text, one after the other."""
    return [
        Committed(number * seconds, (number + 1) * seconds, text, language)
        for number, text in enumerate(texts)
    ]


def sentences(pieces):
    """What they are joined to, in texts."""
    joined = LiveSentences()
    found = [each for piece in pieces for each in joined.add(piece)]
    return [each.text for each in [*found, *joined.end()]]


class TestSentences:
    @pytest.mark.parametrize(
        ("pieces", "expected"),
        [
            (
                [" Now when a", " man", " sleeps. He", " dreams."],
                [" Now when a man sleeps.", " He dreams."],
            ),
            ([" One. Two! Three?"], [" One.", " Two!", " Three?"]),
            ([' He said "Go', '." And', " went"], [' He said "Go."', " And went"]),
            ([" It is 3", ".5 metres."], [" It is 3.5 metres."]),
            ([" Mr.", " Hale went."], [" Mr. Hale went."]),
            (["你好。", "再见。好"], ["你好。", "再见。", "好"]),
            ([" नमस्ते।", " और"], [" नमस्ते।", " और"]),
            ([" Wait...", " what"], [" Wait...", " what"]),
            (["  "], []),
        ],
    )
    def test_end_where_their_marks_are(self, pieces, expected):
        assert sentences(said(*pieces)) == expected

    def test_text_is_neither_lost_nor_changed(self):
        pieces = said(" One. Two", " and. Three, ", " four? ", "five")
        assert "".join(sentences(pieces)) == "".join(piece.text for piece in pieces)

    def test_times_are_shared_by_letters(self):
        first, second = LiveSentences().add(Committed(10.0, 20.0, "aaaa. bbb.", "en", "a flaw"))
        assert (first.start, first.end, first.flaw) == (10.0, 15.0, "a flaw")
        assert (second.start, second.end) == (15.0, 20.0)

    def test_a_pause_ends_one(self):
        joined = LiveSentences()
        assert list(joined.add(Committed(0.0, 1.0, " Lights", "en"))) == []
        assert list(joined.silence_until(1.9)) == []
        (line,) = joined.silence_until(2.0)
        assert (line.text, joined.text) == (" Lights", "")
        pieces = [Committed(0.0, 1.0, " Lights", "en"), Committed(2.0, 3.0, " off", "en")]
        assert sentences(pieces) == [" Lights", " off"]

    def test_so_do_another_language_and_a_quarter_of_a_minute(self):
        assert sentences([*said(" Good"), Committed(1.0, 2.0, " gut", "de")]) == [" Good", " gut"]
        assert sentences(said(*[" on and"] * 4, seconds=7.5)) == [" on and on and"] * 2


class TestLines:
    def test_one_a_sentence(self):
        out = io.StringIO()
        lines = Lines(out)
        lines.show([Tentative(0.0, 1.0, " maybe"), *said(" Now when", " a man sleeps. He")], 2.0)
        assert out.getvalue() == "[00:00.000 --> 00:01.824]  Now when a man sleeps.\n"
        lines.end()
        assert out.getvalue().endswith("[00:01.824 --> 00:02.000]  He\n")

    def test_what_may_change_flows_below_on_a_terminal(self):
        out = Terminal()
        lines = Lines(out)
        lines.show([*said(" Now"), Tentative(1.0, 2.0, " wen")], 2.0)
        lines.show([], 2.1)  # nothing new is nothing drawn
        lines.show([Committed(1.0, 2.0, " when.", "en"), Tentative(2.0, 2.0, "")], 2.2)
        line = "[00:00.000 --> 00:02.000]  Now when.\n"
        assert out.getvalue() == f"Now wen{CLEAR}{line}"

    def test_text_does_not_control_the_terminal(self):
        out = Terminal()
        Lines(out).show([Tentative(0.0, 1.0, "\x1b]0;title\a")], 1.0)
        assert out.getvalue() == r"\u001b]0;title\u0007"

    @pytest.mark.parametrize("letter", ["a", "好"])
    def test_long_text_stays_on_its_line(self, letter, monkeypatch):
        monkeypatch.setenv("COLUMNS", "20")
        terminal = Terminal()
        Lines(terminal).show([Tentative(0.0, 1.0, letter * 50 + "end")], 1.0)
        shown = terminal.getvalue()
        assert shown.endswith("end")
        assert 17 <= len(shown) + shown.count("好") <= 19


class TestFiles:
    def test_a_session(self, tmp_path):
        path = tmp_path / "talk.srt"
        with SavedFile(path) as file:
            file.show(said(" One.", " Two"), 2.0)
            first = "1\n00:00:00,000 --> 00:00:01,000\nOne.\n\n"
            assert (tmp_path / "talk.partial.srt").read_text() == first
            assert not path.exists()
        assert path.read_text() == f"{first}2\n00:00:01,000 --> 00:00:02,000\nTwo\n\n"
        assert list(tmp_path.iterdir()) == [path]

    def test_json(self, tmp_path):
        with SavedFile(tmp_path / "talk.json") as file:
            file.session = lambda: Session(2.5, "tiny", "CPU", "stateful", "f32", ("a warning",))
            file.show(said(" One.", " Two"), 2.0)
        document = json.loads((tmp_path / "talk.json").read_text())
        first = {"id": 0, "start": 0.0, "end": 1.0, "text": " One.", "language": "en"}
        assert list(document)[:3] == ["text", "segments", "language"]
        assert (document["text"], document["segments"][0]) == ("One. Two", first)
        assert (document["duration"], document["warnings"]) == (2.5, ["a warning"])

    def test_a_session_that_is_stopped(self, tmp_path, capsys):
        def session():
            with SavedFile(tmp_path / "talk.txt") as file:
                file.show(said(" One.", " Two"), 2.0)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session()
        partial = tmp_path / "talk.partial.txt"
        assert list(tmp_path.iterdir()) == [partial]
        assert partial.read_text() == "One.\nTwo\n"
        assert capsys.readouterr().err == f"stopped: the text so far is in {partial}\n"

    def test_an_unknown_suffix(self, tmp_path):
        with pytest.raises(UsageError, match="not one of txt"):
            SavedFile(tmp_path / "talk")
