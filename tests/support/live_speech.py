"""Speech for a simulated recogniser: second `k` is tone `k`, which means word `k`.

The text depends on the audio and on the prefix tokens, as with a real model: a word that is cut off
becomes a wrong word.
"""

import numpy as np
from fake_backend import FakeBackend, FakeSession, Say, fake_model

from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.features.log_mel import mel_filters
from whisper_npu.runtime.features.vad import CHUNK
from whisper_npu.runtime.transcription.model import WhisperModel

_FIRST_BAND = 28  # below it, bands are too narrow to tell apart
N_WORDS = 50
_LETTERS = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (N_WORDS, 4))
WORDS = tuple("".join(letters) for letters in _LETTERS)  # words that look like no loop
WHOLE = 80  # frames of a word from which it is recognised correctly
_SPOKEN = 0.9  # share of every second that is speech


def speech(first, last):
    """Seconds `first` to `last` of a reading of all words."""
    return np.concatenate([_tone(second % N_WORDS) for second in range(first, last)])


def silence(seconds):
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def reading(first, last):
    """The text of `speech(first, last)`."""
    return "".join(f" {WORDS[second % N_WORDS]}" for second in range(first, last))


def _tone(number):
    band = mel_filters(80)[_FIRST_BAND + number]
    hertz = np.argmax(band) * SAMPLE_RATE / 2 / (len(band) - 1)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return np.where(time < _SPOKEN, 0.5 * np.sin(2 * np.pi * hertz * time), 0).astype(np.float32)


class LoudIsSpeech:
    """A speech detector by loudness; its threshold is above the level of amplified quiet audio."""

    def detector(self):
        return self

    def judge(self, chunks):
        assert chunks.shape[1] == CHUNK
        return lambda: (np.abs(chunks).max(axis=1) > 0.1).astype(np.float32)


class Pitches(FakeBackend):
    """Encodes audio as the loudest mel band of each position."""

    n_text_ctx = 448

    def __init__(self, tokenizer):
        super().__init__(tokenizer, [Say(())])
        self.tokenizer = tokenizer

    def encode(self, features):
        super().encode(features)
        return np.repeat(features.argmax(axis=1)[:, ::2, None], 4, axis=2).astype(np.float32)


class Listener(Pitches):
    """Says the words it hears."""

    def hear(self, audio, begun):
        """The tokens after the prefix tokens `begun`, in a window encoded as `audio`."""
        bands = audio[0, :, 0].astype(int)
        heard = []  # number, first and last frame
        for place in np.flatnonzero(np.isin(bands, range(_FIRST_BAND, _FIRST_BAND + N_WORDS))):
            number = bands[place] - _FIRST_BAND
            if not heard or heard[-1][0] != number:
                heard.append([number, 2 * place, 2 * place])
            heard[-1][2] = 2 * place
        heard = [word for word in heard if word[2] - word[1] > 10]
        said = self.tokenizer.decode(begun).split()
        tokens = list(begun)
        if said:
            known = [WORDS[number] for number, *_ in heard]
            if said[-1] not in known:
                return ()
            heard = heard[known.index(said[-1]) + 1 :]
        for number, start, end in heard:
            whole = end - start >= WHOLE
            tokens += self.tokenizer.encode(f" {WORDS[number][: None if whole else 2]}")
        return tuple(tokens[len(begun) :])

    def start(self, audio, rows_per_window=1):
        self.open_sessions += 1
        return _ListenerSession(self, np.repeat(audio, rows_per_window, axis=0))


class _ListenerSession(FakeSession):
    def __init__(self, backend, audio):
        super().__init__(backend, len(audio))
        self.audio = audio

    def step(self, tokens):
        if self.said == 0:
            fed = [*self.asked.tokens[0], *tokens[0].tolist()]
            special = self.backend.special
            sot = fed.index(special.sot)
            begun = [t for t in fed[sot + 3 :] if t != special.no_timestamps]
            self.say = Say(self.backend.hear(self.audio, begun))
        return super().step(tokens)


def listening_model(folder):
    """A model that understands `speech`."""
    model = fake_model(folder, [Say(())])
    recorder = Listener(model.tokenizer)
    return WhisperModel(model.folder, recorder, model.tokenizer, LoudIsSpeech())
