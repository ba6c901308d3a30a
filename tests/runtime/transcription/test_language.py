"""The language of a recording: what short phrases do not decide, and what they are taken for.

The fake recogniser knows languages by their pitch. What is shorter than a second it takes for
Chinese, as base does with some short phrases.
"""

import numpy as np
import pytest
from fake_backend import Say, fake_model
from live_speech import LoudIsSpeech, Pitches, silence

from whisper_npu import load_model
from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.languages import LANGUAGES
from whisper_npu.runtime.transcription.language import SpokenLanguage
from whisper_npu.runtime.transcription.live import Committed, LiveTranscriber
from whisper_npu.runtime.transcription.model import WhisperModel

PITCH = {"de": (1000, 26), "es": (1500, 36), "fr": (2250, 47)}  # hertz and mel band


def likely(**probabilities):
    """Probabilities of all languages, likeliest first; those not named share the rest."""
    rest = (1 - sum(probabilities.values())) / (len(LANGUAGES) - len(probabilities))
    every = {code: probabilities.get(code, rest) for code in LANGUAGES}
    return dict(sorted(every.items(), key=lambda item: -item[1]))


def after(*windows, given=None, may_change=False):
    language = SpokenLanguage.of(given, may_change=may_change)
    for seconds, probabilities in windows:
        language.add_evidence(seconds, probabilities)
    return language


GERMAN = (5, likely(de=0.95))


class TestOneLanguage:
    def test_given(self):
        language = SpokenLanguage.of("de", may_change=False)
        assert (language.code, language.main, language.is_open) == ("de", "de", False)
        assert language.probabilities == {}
        assert language.warnings == ()

    def test_certain_at_once(self):
        language = after(GERMAN)
        assert (language.code, language.main, language.is_open) == ("de", "de", False)
        assert language.probabilities == GERMAN[1]
        assert language.warnings == ()

    @pytest.mark.parametrize(
        ("window", "is_open"),
        [
            ((1.19, likely(de=0.99)), True),
            ((1.2, likely(de=0.8)), False),
            ((9.99, likely(de=0.79)), True),
            ((10.0, likely(no=0.5, da=0.45)), False),
            ((28.0, likely(nn=0.48)), True),
        ],
    )
    def test_it_is_open_until_enough_was_heard(self, window, is_open):
        assert after(window).is_open is is_open

    def test_the_first_guess_is_corrected(self):
        language = after((1.2, likely(zh=0.55, de=0.005)), GERMAN)
        assert (language.code, language.main, language.is_open) == ("de", "de", False)
        assert language.probabilities == GERMAN[1]

    def test_a_guess_binds_nothing_that_tells(self):
        language = after((1.1, likely(nn=0.5)), (12, likely(en=0.6, nn=0.3)))
        assert (language.code, language.main, language.is_open) == ("en", "en", False)

    def test_doubts_make_no_certainty(self):
        """Long, but neither language is likely: the guess stays a guess, and is corrected."""
        doubts = [(0.7, likely(en=0.35, de=0.01)), (14, likely(de=0.36, en=0.23))]
        language = after(*doubts)
        assert (language.code, language.is_open) == ("en", True)
        assert "english, with a probability of 0.35" in language.warnings[0]
        assert after(*doubts, GERMAN).main == "de"

    @pytest.mark.parametrize(
        "last", [likely(zh=0.41, de=1e-4), likely(en=0.37, de=0.04)], ids=["another", "the same"]
    )
    def test_of_guesses_the_surest_is_the_recordings(self, last):
        language = after((1.0, likely(de=0.65)), (1.1, last))
        assert language.main == "de"
        assert next(iter(language.probabilities.items())) == ("de", 0.65)
        assert language.warnings == ()

    def test_its_probability_comes_first(self):
        language = after((1.0, likely(de=0.3)), (1.1, likely(en=0.5, de=0.4)))
        assert list(language.probabilities)[:2] == ["de", "en"]

    def test_a_guess_is_told(self):
        (warning,) = after((1.2, likely(pl=0.59, it=0.3))).warnings
        assert warning == (
            "taken to be in polish, with a probability of 0.59 only; "
            "give the language if it is another"
        )
        assert after((1.2, likely(pl=0.6, it=0.3))).warnings == ()


class TestSeveralLanguages:
    @pytest.mark.parametrize(
        ("window", "code"),
        [
            ((1.1, likely(zh=0.9, de=0.001)), "de"),
            ((1.1, likely(zh=0.99, de=0.0005)), "zh"),
            ((3.0, likely(pt=0.7, de=0.036)), "de"),
            ((3.0, likely(pt=0.75, de=0.036)), "pt"),
            ((3.0, likely(de=0.3, pt=0.2)), "de"),
            ((12.0, likely(en=0.93, de=0.05)), "en"),
            ((12.0, likely(en=0.6, de=0.2)), "de"),
        ],
    )
    def test_one_that_is_new_has_to_be_much_likelier(self, window, code):
        assert after(GERMAN, window, may_change=True).code == code

    @pytest.mark.parametrize(("spanish", "code"), [(0.7, "de"), (0.9, "es")])
    def test_one_that_was_there_before_is_believed_sooner(self, spanish, code):
        back = (1.2, likely(es=spanish, de=0.2 if spanish < 0.8 else 0.09))
        windows = [(5, likely(es=0.99)), (5, likely(de=0.99))]
        assert after(*windows, back, may_change=True).code == code

    def test_one_that_is_kept_against_the_odds_is_not_certain(self):
        language = after(GERMAN, (3.0, likely(pt=0.85, de=0.06)), may_change=True)
        assert (language.code, language.is_guess) == ("de", True)

    def test_a_guess_does_not_count_as_having_been_there(self):
        windows = [(1.2, likely(es=0.7)), GERMAN, (1.2, likely(es=0.9, de=0.09))]
        assert after(*windows, may_change=True).code == "de"

    def test_the_first_is_the_recordings(self):
        language = after(GERMAN, (5, likely(es=0.99)), may_change=True)
        assert (language.code, language.main) == ("es", "de")
        assert language.probabilities == GERMAN[1]
        assert language.is_open
        assert language.warnings == ()


class Polyglot(Pitches):
    """Hears the language of each window by its pitch, and says that language's name."""

    times_said = 1

    def start(self, audio, rows_per_window=1):
        session = super().start(audio, rows_per_window)
        bands = np.rint(audio[0, :, 0])
        seconds = {code: (abs(bands - band) <= 1).sum() / 50 for code, (_, band) in PITCH.items()}
        code = max(seconds, key=seconds.get)
        word = tuple(self.tokenizer.encode(f" {code}" * self.times_said))
        guess = sum(seconds.values()) < 1
        session.say = Say(word, language="zh", certainty=1.5) if guess else Say(word, language=code)
        return session


@pytest.fixture
def model(tmp_path):
    fake = fake_model(tmp_path, [Say(())])
    polyglot = Polyglot(fake.tokenizer)
    return WhisperModel(fake.folder, polyglot, fake.tokenizer, LoudIsSpeech())


@pytest.fixture
def untried(monkeypatch):
    """Nobody tries other languages: `decoded` tells of the windows alone."""
    monkeypatch.setattr("whisper_npu.runtime.transcription.session.is_sure", lambda *_: True)


def voice(code, seconds):
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * PITCH[code][0] * time)).astype(np.float32)


def decoded(model):
    """Of each window decoded, in order: its language's code, and the text before it."""
    special = model.tokenizer.special
    codes = {token: code for code, token in special.languages.items()}
    found = []
    for session in model.backend.asked:
        for tokens in session.tokens:
            sot = tokens.index(special.sot)
            if len(tokens) > sot + 1:  # it was no language detection
                before = model.tokenizer.decode(tokens[1:sot]).strip()
                found.append((codes[tokens[sot + 1]], before))
    return found


def session(live, audio):
    """What comes of audio fed a tenth of a second at a time."""
    pieces = np.split(audio, range(1600, len(audio), 1600))
    return [update for piece in pieces for update in live.feed(piece)]


def said(updates):
    return [(each.language, each.text) for each in updates if isinstance(each, Committed)]


OPENING = np.concatenate([voice("de", 0.7), silence(4), voice("de", 6), silence(4)])


class TestRecordings:
    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_a_short_opening_is_in_the_language_of_what_follows(self, model, mode):
        result = model.transcribe(OPENING, mode=mode, without_timestamps=True).result()
        assert {code for code, _ in decoded(model)} == {"de"}
        assert result.language == next(iter(result.language_probabilities)) == "de"
        assert result.warnings == ()

    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_a_guess_is_corrected_by_the_text(self, tmp_path, mode):
        fake = fake_model(tmp_path, [Say(())])
        word = tuple(fake.tokenizer.encode(" Wort"))
        zh, en, de = (Say(word, logit, language="zh", certainty=1.5) for logit in (2.0, 2.0, 30.0))
        fake.backend.script = [zh, en, de, Say(word)]
        fake.voice_activity = LoudIsSpeech()
        result = fake.transcribe(voice("de", 2), mode=mode, without_timestamps=True).result()
        assert [code for code, _ in decoded(fake)] == ["zh", "en", "de", "de"]
        assert result.language == next(iter(result.language_probabilities)) == "de"
        assert (result.text, result.warnings) == ("Wort", ())
        assert len(fake.backend.windows) == 1

    def test_what_was_certain_is_not_tried_again(self, model):
        audio = np.concatenate([voice("de", 6), silence(35), voice("de", 0.7)])
        model.transcribe(audio, multilingual=True, without_timestamps=True).result()
        assert [code for code, _ in decoded(model)] == ["de", "de"]

    def test_a_single_one_is_not_asked_for(self, model):
        options = {"languages": ("German",), "without_timestamps": True}
        result = model.transcribe(OPENING[:SAMPLE_RATE], **options).result()
        assert (result.language, result.language_probabilities) == ("de", {})
        assert [code for code, _ in decoded(model)] == ["de"]
        assert result.warnings == ()

    @pytest.mark.usefixtures("untried")
    @pytest.mark.parametrize("multilingual", [False, True])
    def test_it_is_one_of_those_it_can_be(self, model, multilingual):
        """Chinese is not, and of the others none is likelier: the first is taken."""
        options = {"languages": ("Spanish", "de"), "multilingual": multilingual}
        result = model.transcribe(
            OPENING[:SAMPLE_RATE], without_timestamps=True, **options
        ).result()
        assert result.language_probabilities == {"es": 0.5, "de": 0.5}
        assert [code for code, _ in decoded(model)] == [result.language] == ["es"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"languages": ("de", "Klingon")}, "unknown language 'Klingon'"),
            ({"languages": ("de", "cy")}, "no language token for welsh"),
            ({"languages": ("de",), "language": "de"}, "give no language with it"),
            ({"languages": ()}, "languages takes a list"),
            ({"languages": "de"}, "languages takes a list"),
        ],
    )
    def test_what_is_none_of_the_models_is_refused(self, model, options, message):
        with pytest.raises(UsageError, match=message):
            model.transcribe(OPENING, **options)

    def test_of_silence_it_is_one_of_those_it_can_be(self, model):
        result = model.transcribe(silence(3), languages=("de", "fr")).result()
        assert (result.language, result.language_probabilities) == ("de", {})

    @pytest.mark.usefixtures("untried")
    def test_so_is_one_before_a_long_pause(self, model):
        """More than a window later: in batches, what is a guess waits for what tells."""
        audio = np.concatenate([voice("de", 0.7), silence(35), voice("de", 6)])
        result = model.transcribe(audio, mode="batched", without_timestamps=True).result()
        assert [code for code, _ in decoded(model)] == ["de", "de"]
        assert len(model.backend.windows) == 2  # each is encoded once
        assert [segment.start < 1 for segment in result.segments] == [True, False]

    @pytest.mark.usefixtures("untried")
    @pytest.mark.parametrize(("n_guesses", "n_wrong"), [(3, 0), (4, 4), (5, 4)])
    def test_it_does_not_wait_for_long(self, model, n_guesses, n_wrong):
        pieces = [part for _ in range(n_guesses) for part in (voice("de", 0.7), silence(35))]
        audio = np.concatenate([*pieces, voice("de", 6)])
        result = model.transcribe(audio, mode="batched", without_timestamps=True).result()
        assert [code for code, _ in decoded(model)].count("zh") == n_wrong
        assert result.language == "de"
        assert len(result.segments) == n_guesses + 1

    def test_a_short_recording_is_guessed_and_says_so(self, model):
        result = model.transcribe(OPENING[:SAMPLE_RATE], without_timestamps=True).result()
        assert result.language == "zh"
        assert "taken to be in chinese" in result.warnings[0]

    def test_silence_behind_a_short_recording_is_not_asked(self, model):
        quiet = np.concatenate([voice("de", 0.7), silence(10)])
        assert model.transcribe(quiet, without_timestamps=True).result().language == "zh"
        assert len(model.backend.windows) == 1

    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_pauses_are_no_speech(self, model, mode, monkeypatch):
        evidence = []
        monkeypatch.setattr(
            SpokenLanguage, "add_evidence", lambda self, seconds, found: evidence.append(seconds)
        )
        audio = np.concatenate([silence(2), voice("de", 0.5), silence(2), voice("de", 0.5)])
        model.transcribe(audio, mode=mode, without_timestamps=True).result()
        assert evidence == pytest.approx([1.0], abs=0.2)

    def test_later_windows_are_not_asked(self, model):
        audio = np.concatenate([OPENING, voice("es", 2), silence(4), voice("es", 2)])
        result = model.transcribe(audio, mode="sequential", without_timestamps=True).result()
        assert [code for code, _ in decoded(model)] == ["de"] * 4
        n_detections = sum(session.tokens[0][1:] == [] for session in model.backend.asked)
        assert n_detections == 2  # the first window, and the same with what follows
        assert len(result.segments) == 4

    @pytest.mark.parametrize("context", [True, False])
    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_each_window_is_in_its_own_language(self, model, mode, context):
        audio = [voice(code, 5) for code in ("de", "es", "es", "de")]
        audio.insert(1, voice("de", 0.5))  # by themselves these two would be Chinese
        audio.insert(4, voice("es", 0.5))
        audio = np.concatenate([part for each in audio for part in (each, silence(1))])
        result = model.transcribe(
            audio,
            mode=mode,
            multilingual=True,
            without_timestamps=True,
            condition_on_previous_text=context,
        ).result()
        expected = ["de", "de", "es", "es", "es", "de"]
        assert [segment.language for segment in result.segments] == expected
        assert sorted(code for code, _ in decoded(model)) == sorted(expected)

    def test_text_in_another_language_is_no_context(self, model):
        audio = [voice(code, 5) for code in ("de", "de", "es", "es", "de")]
        audio = np.concatenate([part for each in audio for part in (each, silence(1))])
        model.transcribe(
            audio, mode="sequential", multilingual=True, without_timestamps=True
        ).result()
        assert decoded(model) == [("de", ""), ("de", "de"), ("es", ""), ("es", "es"), ("de", "")]

    def test_but_the_users_prompt_is(self, model):
        audio = [voice(code, 5) for code in ("de", "es", "es")]
        audio = np.concatenate([part for each in audio for part in (each, silence(1))])
        options = {"initial_prompt": "Klaus", "multilingual": True, "without_timestamps": True}
        model.transcribe(audio, mode="sequential", **options).result()
        before = [("de", "Klaus"), ("es", "Klaus"), ("es", "Klaus es")]
        assert decoded(model) == before

    def test_nor_is_it_in_batches(self, model):
        """Every other window has the text before it, if that is long enough."""
        model.backend.times_said = 20
        audio = [voice(code, 5) for code in ("de", "de", "de", "es")]
        audio = np.concatenate([part for each in audio for part in (each, silence(1))])
        options = {"condition_on_previous_text": True, "compression_ratio_threshold": None}
        model.transcribe(
            audio, mode="batched", multilingual=True, without_timestamps=True, **options
        ).result()
        contexts = {(code, before[:2]) for code, before in decoded(model)}
        assert contexts == {("de", ""), ("de", "de"), ("es", "")}


class TestLive:
    def test_what_is_not_certain_waits_for_a_pause_and_binds_nobody(self, model):
        live = LiveTranscriber(model, min_chunk=0.2)
        opening, rest = np.split(OPENING, [round(0.7 * SAMPLE_RATE)])
        assert said(session(live, opening)) == []
        assert len(model.backend.windows) > 2  # they agreed
        assert said([*session(live, rest), *live.finish()]) == [("zh", " de"), ("de", " de")]

    @pytest.mark.parametrize("at_once", [False, True])
    def test_each_piece_is_in_its_own_language(self, model, at_once):
        audio = [voice(code, 5) for code in ("de", "de", "es", "es")]
        audio.insert(1, voice("de", 0.5))
        audio = np.concatenate([part for each in audio for part in (each, silence(1))])
        live = LiveTranscriber(model, multilingual=True, min_chunk=10)
        pieces = [*(live.feed(audio) if at_once else session(live, audio)), *live.finish()]
        assert [code for code, _ in said(pieces)] == ["de", "de", "de", "es", "es"]
        before = [context for _, context in decoded(model)]
        assert before == ["", "de", "de de", "", "es"]

    def test_hotwords_are_given_in_every_language(self, model):
        audio = [voice(code, 5) for code in ("de", "es")]
        audio = np.concatenate([part for each in audio for part in (each, silence(1))])
        live = LiveTranscriber(model, multilingual=True, min_chunk=10, hotwords="Lviv")
        session(live, audio)
        live.finish()
        assert decoded(model) == [("de", "Lviv"), ("es", "Lviv")]

    def test_a_guess_is_told(self, model):
        live = LiveTranscriber(model)
        session(live, np.concatenate([voice("de", 0.7), silence(1)]))
        live.finish()
        assert "taken to be in chinese" in live.warnings[0]

    def test_a_draft_binds_nobody(self, model):
        """The first of them takes it for Chinese."""
        live = LiveTranscriber(model, min_chunk=0.3)
        audio = np.concatenate([voice("de", 1.4), silence(1)])
        assert [code for code, _ in said(session(live, audio))] == ["de"]

    def test_committed_text_binds_what_is_said_in_one_breath(self, model):
        model.backend.times_said = 3
        live = LiveTranscriber(model, multilingual=True, compression_ratio_threshold=None)
        audio = np.concatenate([voice("de", 4), voice("es", 8), silence(1)])
        pieces = said(session(live, audio))
        assert len(pieces) > 2
        assert {code for code, _ in pieces} == {"de"}


def test_real_speech_in_two_languages(base_folder, shared_audio):
    """Its second clause lasts two seconds; by itself it would be Portuguese."""
    german, spanish = (
        load_audio(shared_audio / "words" / f"test_{code}.wav") for code in ("de", "es")
    )
    audio = np.concatenate([german, silence(1), spanish])
    segments = load_model(base_folder).transcribe(audio, multilingual=True).segments
    change = len(german) / SAMPLE_RATE + 0.5
    assert len(segments) > 2
    for segment in segments:
        assert segment.language == ("de" if segment.end < change else "es")
