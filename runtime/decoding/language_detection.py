"""Detects the language of a window: the model's guess, checked by decoding if it is unsure.

The model guesses the language from the first token alone. Speech decoded in a wrong language gives
improbable text. So the window is decoded in each of the likeliest languages, and the score is the
joint probability of the language and its text.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows
from whisper_npu.runtime.decoding.logit_filters import log_normalizer
from whisper_npu.runtime.decoding.quality import find_loop
from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

_TRIED = 3  # most languages that are tried
_PROBABLE = 0.01  # least probability of a language that is tried
_TEXT = 64  # tokens that tell one language from another
# The tokens of a text depend on each other. With weight 1 they would make the probabilities
# overconfident (docs/accuracy.md).
_WEIGHT = 0.5


def detect_language(
    backend: Backend,
    tokenizer: Tokenizer,
    audio: Float32Array,
    times: StageTimes,
    among: Sequence[str] | None = None,
) -> list[dict[str, float]]:
    """The probability of each language, per encoded window.

    Args:
        backend: a multilingual model.
        tokenizer: the model's tokenizer.
        audio: float32 `(windows, n_audio_ctx, n_audio_state)`.
        times: where stage times are added.
        among: codes of the possible languages; None: all languages of the model.

    Returns:
        for each window the probabilities by language code, likeliest first; their sum is 1.
    """
    special = tokenizer.special
    with times.measure("language detection"):
        session = backend.start(audio)
        try:
            logits = session.step(np.full((len(audio), 1), special.sot, np.int64))[:, -1]
            codes = list(special.languages if among is None else dict.fromkeys(among))
            scores = logits[:, [special.languages[code] for code in codes]]
            probabilities = np.exp(scores - log_normalizer(scores)[:, None])
        finally:
            session.close()
    return [
        {codes[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in probabilities
    ]


def try_languages(
    backend: Backend,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    audio: Float32Array,
    decoding: DecodingOptions,
    options: TranscribeOptions,
    times: StageTimes,
    probabilities: dict[str, float],
) -> dict[str, float]:
    """The probabilities of languages, after decoding a window in each of the likeliest.

    Args:
        backend: a multilingual model.
        tokenizer: the model's tokenizer.
        vocabulary: the model's suppression lists.
        audio: float32 `(1, n_audio_ctx, n_audio_state)`, the window.
        decoding: how to decode, greedily; its language is ignored.
        options: thresholds of a loop; a loop tells nothing about the language.
        times: where stage times are added.
        probabilities: by language code, likeliest first, from `detect_language`.

    Returns:
        the probabilities by language code, likeliest first; their sum is that of `probabilities`.
    """
    tried = [code for code, probability in probabilities.items() if probability >= _PROBABLE]
    scores: dict[str, float] = {}
    loops: set[str] = set()
    if len(tried) < 2:
        return probabilities
    for code in tried[:_TRIED]:
        wanted = replace(decoding, language=code, sample_len=_TEXT)
        with times.measure("language detection"):
            (text,) = decode_windows(backend, tokenizer, vocabulary, audio, wanted, StageTimes())
        of_text = text.avg_logprob * (len(text.tokens) + 1)
        scores[code] = float(np.log(probabilities[code])) + _WEIGHT * of_text
        if find_loop(text, options) is not None:
            loops.add(code)
    if len(loops) < len(scores):
        scores = {code: -np.inf if code in loops else score for code, score in scores.items()}
    total = float(np.logaddexp.reduce(list(scores.values())))
    mass = sum(probabilities[code] for code in scores)
    found = probabilities | {
        code: mass * float(np.exp(score - total)) for code, score in scores.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))
