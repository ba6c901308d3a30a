"""A backend that decodes the tokens that a test gives it, and records its calls.

The tokenizer is the tiny Whisper's; no graph is run.
"""

import json
from dataclasses import dataclass, field

import msgspec
import numpy as np
import tiny_whisper
from own_layout import own_layout

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.protocol import N_LOGITS, NoAttention, SingleStream
from whisper_npu.runtime.model_folder.config import GenerationConfig, ModelConfig
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.text.tokenizer import Tokenizer
from whisper_npu.runtime.transcription.model import WhisperModel

SEQUENTIAL = {"vad": False, "mode": "sequential"}
ENGLISH = {**SEQUENTIAL, "language": "en"}
INVENT = {**ENGLISH, "no_speech_threshold": None, "temperature": (0.0,)}
N_TEXT_CTX = 64
SURE = 30.0  # logit of a scripted token; the others have 0


@dataclass
class Say:
    """The output of the decoder for one window.

    Attributes:
        tokens: the tokens that are sampled one after the other, before the end of text.
        logit: the logit of each token; low logits make an improbable text.
        no_speech: logit of `<|nospeech|>` after `<|startoftranscript|>`.
        language: the likeliest language token after `<|startoftranscript|>`.
        certainty: logit of that token; the others have 0.
    """

    tokens: tuple[int, ...]
    logit: float = SURE
    no_speech: float = -SURE
    language: str = "en"
    certainty: float = 5.0


@dataclass
class Asked:
    """One decoding session: its number of rows, and all tokens that it was fed."""

    rows: int
    tokens: list[list[int]] = field(default_factory=list)


class FakeBackend(SingleStream):
    """Each session that decodes says the next entry of `script`; the last entry is repeated."""

    n_mels = 80
    n_audio_ctx = 1500
    window_frames = (3000,)
    n_text_ctx = N_TEXT_CTX
    device = "FAKE"
    kv_cache = "none"
    precision = "f32"
    can_align = False

    def __init__(self, tokenizer, script):
        self.special = tokenizer.special
        self.n_vocab = self.special.timestamp_begin + 1501
        self.script = list(script)
        self.windows = []  # features of every encoded window
        self.asked = []
        self.open_sessions = 0

    def encode(self, features):
        self.windows += list(features)
        return np.zeros((len(features), features.shape[2] // 2, 4), np.float32)

    def start(self, audio, rows_per_window=1):
        self.open_sessions += 1
        return FakeSession(self, len(audio) * rows_per_window)


class FakeSession(NoAttention):
    def __init__(self, backend, rows):
        self.backend = backend
        self.rows = rows
        self.length = 0
        self.said = 0
        self.say = backend.script[0]
        self.asked = Asked(rows, [[] for _ in range(rows)])
        backend.asked.append(self.asked)

    def step(self, tokens):
        special = self.backend.special
        rows, n_new = tokens.shape
        assert rows == self.rows
        if self.length + n_new > self.backend.n_text_ctx:
            raise UsageError("too many tokens for the fake context")
        for row, new in zip(self.asked.tokens, tokens.tolist(), strict=True):
            row.extend(new)
        self.length += n_new
        logits = np.zeros((rows, n_new, self.backend.n_vocab), np.float32)
        for place, token in enumerate(tokens[0]):
            if token == special.sot:
                logits[:, place, special.no_speech] = self.say.no_speech
                logits[:, place, special.languages[self.say.language]] = self.say.certainty
        rest = (*self.say.tokens, special.eot)
        logits[:, -1, rest[min(self.said, len(rest) - 1)]] += self.say.logit
        if n_new == 1 or self.asked.tokens[0][-1] != special.sot:
            self.said += self.length > 1
        return logits[:, -N_LOGITS:]

    def reorder(self, rows):
        self.asked.tokens = [list(self.asked.tokens[row]) for row in rows]

    def keep(self, rows):
        return False

    def close(self):
        self.backend.open_sessions -= 1
        if self.length > 1 and len(self.backend.script) > 1:  # it was no language detection
            self.backend.script.pop(0)


def write_companions(folder, **generation):
    """A model folder's tokenizer and configurations, without graphs."""
    (folder / "tokenizer.json").write_bytes(tiny_whisper.build_tokenizer_json())
    content = {"suppress_tokens": [], "begin_suppress_tokens": [], "is_multilingual": True}
    (folder / "generation_config.json").write_text(json.dumps(content | generation))
    return folder


def fake_model(folder, script, **generation):
    """A model whose decoder follows `script`."""
    write_companions(folder, **generation)
    config = json.loads((folder / "generation_config.json").read_text())
    model_folder = ModelFolder(
        path=folder,
        config=ModelConfig(),
        generation_config=msgspec.convert(config, GenerationConfig),
        manifest={},
        layout=own_layout(folder),
    )
    tokenizer = Tokenizer(folder / "tokenizer.json")
    return WhisperModel(model_folder, FakeBackend(tokenizer, script))


def scripted_model(folder, *script, **generation):
    """The same as `fake_model`, with `stamp(s)`, which gives the token of a time."""
    model = fake_model(folder, script, **generation)
    begin = model.tokenizer.special.timestamp_begin
    model.stamp = lambda seconds: begin + round(seconds / 0.02)
    return model


def sound(seconds, seed=0):
    return tiny_whisper.synthetic_speech(seed, seconds)
