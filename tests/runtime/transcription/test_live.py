"""Live speech: what is committed when, that it stays, and that neither memory nor delay grow."""

from collections import deque

import numpy as np
import pytest
import tiny_whisper
from fake_backend import FakeBackend, Say, fake_model
from live_speech import LoudIsSpeech, listening_model, reading, silence, speech

from whisper_npu import load_model
from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.text.tokenizer import Tokenizer
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.live import Committed, LiveTranscriber, Tentative
from whisper_npu.runtime.transcription.scheduler import Scheduler

TENTH = SAMPLE_RATE // 10
# The tiny Whisper invents text: every window of sound becomes some.
INVENT = {
    "vad": False,
    "language": "en",
    "no_speech_threshold": None,
    "logprob_threshold": None,
    "compression_ratio_threshold": None,
    "temperature": (0.0,),
}


@pytest.fixture
def model(tmp_path):
    return listening_model(tmp_path)


def heard(live, audio, chunk=TENTH):
    """All updates for `audio` fed in chunks, each with the seconds of audio heard when it came."""
    updates = []
    for start in range(0, len(audio), chunk):
        fed = live.feed(audio[start : start + chunk])
        updates += [(live.duration, update) for update in fed]
    return updates


def session(live, audio, chunk=TENTH):
    """The updates of a whole session."""
    return [update for _, update in heard(live, audio, chunk)] + live.finish()


def text(updates):
    return "".join(update.text for update in updates if isinstance(update, Committed))


def english(model, **options):
    return LiveTranscriber(model, **{"language": "en", **options})


def last_windows(model):
    """Frames with sound in each window that was encoded."""
    return [int((window.max(axis=0) > window.min() + 1).sum()) for window in model.backend.windows]


def held(thing, seen=None):
    """Items and array bytes that can be reached from a session, but not from its model."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, FakeBackend | Scheduler | Tokenizer | StageTimes):
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(held(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple | set | deque):
        return len(thing) + sum(held(value, seen) for value in thing)
    return held(vars(thing), seen) if hasattr(thing, "__dict__") else 0


class TestCommitting:
    def test_every_decoding_counts_towards_giving_memory_back(self, model, monkeypatch):
        counted = []
        monkeypatch.setattr(model.scheduler, "after_batch", counted.append)
        session(english(model), speech(0, 5))
        assert counted == [1] * len(model.backend.windows) != []

    def test_two_hypotheses_must_agree(self, model):
        updates = heard(english(model), speech(0, 4))
        assert [update for _, update in updates][:4] == [
            Tentative(0.0, pytest.approx(1.09), reading(0, 1)),
            Tentative(0.0, pytest.approx(2.09), reading(0, 2)),
            Committed(0.0, pytest.approx(1.09), reading(0, 1), "en"),  # a word waits for the next
            Tentative(pytest.approx(1.09), pytest.approx(3.09), reading(1, 3)),
        ]

    def test_what_was_misheard_is_not_committed(self, model):
        """Decoded every 1.5 s, every other word is cut in two when it is first heard."""
        updates = session(english(model, min_chunk=1.5), speech(0, 12))
        seen = "".join(update.text for update in updates if isinstance(update, Tentative))
        assert len(seen.split()) > len(set(seen.split()) & set(reading(0, 12).split()))
        assert text(updates) == reading(0, 12)

    def test_committed_and_tentative_text_is_what_was_heard(self, model):
        committed, so_far = "", reading(0, 9)
        for seconds, update in heard(english(model), speech(0, 9)):
            if isinstance(update, Committed):
                committed += update.text
            else:
                assert so_far.startswith(committed + update.text)
                assert len((committed + update.text).split()) >= int(seconds) - 1

    def test_times_go_forward_and_hold_the_words(self, model):
        updates = session(english(model), np.concatenate([speech(0, 8), silence(4)] * 2))
        pieces = [update for update in updates if isinstance(update, Committed)]
        assert all(piece.start < piece.end for piece in pieces)
        edges = [edge for piece in pieces for edge in (piece.start, piece.end)]
        assert edges == sorted(edges)
        second_half = text(pieces).rindex(reading(0, 1))
        before = ""
        for piece in pieces:
            assert (piece.start >= 11.9) == (len(before) >= second_half)
            before += piece.text

    @pytest.mark.parametrize("min_chunk", [1.0, 2.0, 3.0])
    def test_words_first_heard_together_take_time(self, model, min_chunk):
        updates = session(english(model, min_chunk=min_chunk), speech(0, 20))
        pieces = [update for update in updates if isinstance(update, Committed)]
        assert all(piece.start < piece.end for piece in pieces)
        assert [piece.end for piece in pieces] == sorted(piece.end for piece in pieces)
        for number, piece in enumerate(pieces[:-1]):
            n_words = len(text(pieces[: number + 1]).split())
            assert piece.end == pytest.approx(n_words, abs=min_chunk)

    def test_the_last_word_waits_for_the_end(self, model):
        live = english(model)
        updates = [update for _, update in heard(live, speech(0, 4))]
        assert text(updates) == reading(0, 1)
        last = live.finish()
        assert text(updates + last) == reading(0, 4)
        assert last[-1].text == ""  # nothing is tentative any more

    def test_committed_text_is_what_decoding_goes_on_from(self, model):
        """Of every word the decoder says it once or twice, not at each of many decodings."""
        live = english(model)
        session(live, speech(0, 14))
        assert live.times.calls["decoder"] < 14 * 4 * 7

    def test_a_hypothesis_that_looks_wrong_is_not_shown(self, tmp_path):
        model = fake_model(tmp_path, [Say(())])
        model.backend.script = [Say(tuple(model.tokenizer.encode(" dubious")), logit=4.0)]
        live = LiveTranscriber(model, vad=False, language="en", temperature=(0.0,))
        assert heard(live, speech(0, 4)) == []
        (piece,) = live.finish()
        assert piece.text == " dubious"
        assert "log probability" in piece.flaw


class TestPauses:
    def test_a_pause_commits_at_once(self, model):
        live = english(model)
        heard(live, speech(0, 4))
        updates = heard(live, silence(2))
        assert updates[0][0] <= 4.0 - 0.1 + 0.5 + 0.1 + 1e-6
        assert text([update for _, update in updates]) == reading(1, 4)
        assert isinstance(updates[-1][1], Tentative)
        assert updates[-1][1].text == ""

    def test_what_is_known_is_not_decoded_again(self, model):
        live = english(model)
        heard(live, np.concatenate([speech(0, 3), silence(0.3)]))
        before = len(model.backend.windows)
        heard(live, silence(20))
        assert len(model.backend.windows) <= before + 1

    def test_silence_is_neither_encoded_nor_committed(self, model):
        noise = np.random.default_rng(0).standard_normal(20 * SAMPLE_RATE).astype(np.float32)
        for quiet in (silence(20), 0.001 * noise):
            live = english(model)
            assert session(live, quiet) == []
            assert model.backend.windows == []
            assert live.duration == 20.0

    def test_digital_silence_without_a_detector(self, model):
        assert session(english(model, vad=False), silence(40)) == []
        assert model.backend.windows == []

    def test_speech_without_a_detector(self, model):
        audio = np.concatenate([silence(3), speech(0, 40), silence(2)])
        assert text(session(english(model, vad=False), audio)) == reading(0, 40)

    def test_long_silence_is_passed_over(self, model):
        audio = np.concatenate([speech(0, 4), silence(100), speech(4, 8), silence(100)])
        live = english(model)
        assert text(session(live, audio)) == reading(0, 8)
        assert max(last_windows(model)) <= 420

    def test_utterances_that_arrive_together_are_told_apart(self, model):
        audio = np.concatenate([speech(0, 3), silence(4), speech(7, 9), silence(4), speech(1, 4)])
        updates = english(model)
        pieces = [u for u in session(updates, audio, len(audio)) if isinstance(u, Committed)]
        assert [piece.text for piece in pieces] == [reading(0, 3), reading(7, 9), reading(1, 4)]


class TestBounds:
    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"vad": False}])
    def test_endless_speech(self, model, options):
        """No pause to cut at: nothing is lost, and nothing said twice."""
        live = english(model, **options)
        late = []
        said = ""
        for seconds, update in heard(live, speech(0, 120)):
            if isinstance(update, Committed):
                said += update.text
                late.append(seconds - len(said.split()))
        assert said + text(live.finish()) == reading(0, 120)
        assert max(late) < 3
        assert max(last_windows(model)) <= 3000

    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [8, 10, 12, 13])
    def test_endless_speech_that_comes_late(self, model, seconds):
        """Words that wait for another decoding are not cut off with those before them."""
        updates = session(english(model), speech(0, 120), seconds * SAMPLE_RATE)
        assert text(updates) == reading(0, 120)

    def test_a_recogniser_that_never_agrees_with_itself(self, tmp_path):
        model = fake_model(tmp_path, [Say(())])
        model.voice_activity = LoudIsSpeech()
        letters = "abcdefghijklmnopqrstuvwxyz"
        model.backend.script = [
            Say(tuple(model.tokenizer.encode(f" {letter}"))) for letter in letters
        ] * 4
        live = english(model)
        commits = [seconds for seconds, u in heard(live, speech(0, 95)) if isinstance(u, Committed)]
        assert len(commits) >= 3
        assert commits[0] <= 30.1
        assert np.diff(commits).max() <= 30.1

    def test_text_of_many_tokens_leaves_room_for_more(self, tmp_path):
        model = listening_model(tmp_path)
        model.backend.n_text_ctx = 96
        assert text(session(english(model), speech(0, 60))) == reading(0, 60)

    @pytest.mark.slow
    def test_what_is_held_does_not_grow(self, model):
        live = english(model)
        sizes = []
        for _minute in range(12):
            heard(live, np.concatenate([speech(0, 25), silence(4), speech(0, 25), silence(1)]))
            sizes.append(held(live))
        assert max(sizes[6:]) <= max(sizes[:6])


class TestChunks:
    @pytest.mark.slow
    @pytest.mark.parametrize("chunk", [160, 1111, SAMPLE_RATE, 7 * SAMPLE_RATE, 10**9])
    def test_the_same_is_heard(self, model, chunk):
        audio = np.concatenate([speech(0, 6), silence(1), speech(6, 40), silence(5), speech(0, 3)])
        live = english(model)
        assert text(session(live, audio, chunk)) == reading(0, 40) + reading(0, 3)
        assert live.duration == len(audio) / SAMPLE_RATE

    def test_all_that_has_arrived_is_decoded_once(self, model):
        """A caller that was late feeds more at a time: no decoding is made up for."""
        live = english(model)
        live.feed(speech(0, 12))
        assert len(model.backend.windows) == 1

    def test_integers(self, model):
        audio = speech(0, 4)
        whole = np.round(audio * 32767).astype(np.int16)
        assert session(english(model), whole) == session(english(model), audio)
        wide = whole.astype(np.int32) << 16
        assert session(english(model), wide) == session(english(model), whole)

    def test_nothing_at_all(self, model):
        live = english(model)
        assert live.feed(np.empty(0, np.float32)) == []
        assert live.finish() == []
        assert live.duration == 0.0

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            (np.zeros((2, 100), np.float32), "shape"),
            (np.zeros(100, np.int64), "int64"),
            (b"\0\0", r"type bytes; feed a numpy array, which np\.frombuffer"),
            (np.full(100, np.nan, np.float32), "finite"),
            (np.full(100, 1e12), "finite"),
        ],
    )
    def test_other_arrays(self, model, samples, message):
        with pytest.raises(AudioError, match=message):
            english(model).feed(samples)


class TestSessions:
    def test_finishing_twice(self, model):
        live = english(model)
        heard(live, speech(0, 3))
        assert live.finish()
        assert live.finish() == []
        with pytest.raises(UsageError, match="finished"):
            live.feed(speech(0, 1))

    def test_nothing_leaks_from_one_to_the_next(self, model):
        first = session(english(model), speech(0, 20))
        other = session(english(model), speech(30, 45))
        assert session(english(model), speech(0, 20)) == first
        assert text(other) == reading(30, 45)

    @pytest.mark.slow
    def test_two_at_the_same_time(self, model):
        alone = session(english(model), speech(0, 20))
        one, two = english(model), english(model)
        mine, theirs = [], []
        for start in range(0, 20 * SAMPLE_RATE, TENTH):
            mine += one.feed(speech(0, 20)[start : start + TENTH])
            theirs += two.feed(speech(25, 45)[start : start + TENTH])
        assert mine + one.finish() == alone
        assert text(theirs + two.finish()) == reading(25, 45)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "batched"}, "mode does not work with live"),
            ({"prefix": "And"}, "prefix does not work with live"),
            ({"word_timestamps": True}, "word_timestamps does not work with live"),
            ({"max_initial_timestamp": 2.0}, "max_initial_timestamp does not work with live"),
            ({"min_chunk": 0}, "min_chunk is 0"),
            ({"min_chunk": float("nan")}, "min_chunk is nan"),
            ({"pause": 9}, "pause is 9"),
            ({"trim_after": 31}, "trim_after is 31"),
            ({"beams": 5}, "unknown option"),
        ],
    )
    def test_options_that_cannot_be(self, model, options, message):
        with pytest.raises(UsageError, match=message):
            LiveTranscriber(model, **options)


class TestContext:
    def test_text_that_was_let_go_of_is_the_prompt(self, model):
        session(english(model), np.concatenate([speech(0, 6), silence(4), speech(6, 8)]))
        special = model.tokenizer.special
        fed = model.backend.asked[-1].tokens[0]
        assert fed[0] == special.sot_prev
        assert reading(0, 6) in model.tokenizer.decode(fed[: fed.index(special.sot)])

    def test_or_is_not(self, model):
        audio = np.concatenate([speech(0, 6), silence(4), speech(6, 8)])
        session(english(model, condition_on_previous_text=False), audio)
        assert model.backend.asked[-1].tokens[0][0] == model.tokenizer.special.sot

    def test_the_prompt_that_was_given(self, model):
        live = english(model, initial_prompt="Glossary of terms")
        heard(live, speech(0, 2))
        fed = model.backend.asked[0].tokens[0]
        assert model.tokenizer.decode(fed).startswith(" Glossary of terms")

    def test_the_language_is_settled_by_what_is_committed(self, tmp_path):
        model = fake_model(tmp_path, [Say(())])
        here, there = (
            tuple(model.tokenizer.encode(word)) for word in (" here it is", " there it is")
        )
        model.backend.script = [
            Say(here, language="de"),
            Say(there, language="es"),
            Say(there, language="es"),
            Say(there, language="fr"),
        ]
        pieces = [
            update
            for update in session(LiveTranscriber(model, vad=False), speech(0, 5))
            if isinstance(update, Committed)
        ]
        assert {piece.language for piece in pieces} == {"es"}

    def test_several_languages(self, tmp_path):
        model = fake_model(tmp_path, [Say(())])
        model.voice_activity = LoudIsSpeech()
        word = tuple(model.tokenizer.encode(" word"))
        model.backend.script = [
            Say(word, language="de"),
            Say(word, language="es"),
        ]
        audio = np.concatenate([speech(0, 3), silence(1), speech(3, 6), silence(1)])
        live = LiveTranscriber(model, multilingual=True, min_chunk=10)
        pieces = [u for u in session(live, audio) if isinstance(u, Committed)]
        assert [piece.language for piece in pieces] == ["de", "es"]


class TestRealGraphs:
    @pytest.mark.slow
    def test_a_random_model(self, tiny_folder):
        """Whatever it invents: pieces join to one text, and sessions do not touch each other."""
        model = load_model(tiny_folder)
        audio = tiny_whisper.synthetic_speech(1, 9)

        def run():
            return session(LiveTranscriber(model, **INVENT), audio, SAMPLE_RATE // 2)

        first = run()
        assert text(first)
        session(LiveTranscriber(model, **INVENT), tiny_whisper.synthetic_speech(2, 5))
        assert run() == first

    def test_real_speech(self, tiny_en_folder, beckett):
        model = load_model(tiny_en_folder)
        live = LiveTranscriber(model)
        said = text(session(live, load_audio(beckett)))
        whole = model.transcribe(beckett).text
        letters = [[char for char in text.lower() if char.isalpha()] for text in (said, whole)]
        assert letters[0] == letters[1]


def test_a_name_is_no_loaded_model():
    with pytest.raises(UsageError, match=r"^model is of type str; give a loaded model: "):
        LiveTranscriber("tiny.en")
