"""Which language a window is in: the model's guess, and where that is unsure, what can be heard.

Asked for the language alone, the model guesses from the first token. Decoded in the wrong language,
speech makes improbable text. So the likeliest languages are each given a try, and what counts is
how probable the language and its text are together.
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

_TRIED = 3  # languages at most...
_PROBABLE = 0.01  # ...that are at least so probable
_TEXT = 64  # tokens that tell one language from another
# The tokens of a text depend on each other: taken for all they say, they make the probabilities too
# sure of themselves (docs/accuracy.md).
_WEIGHT = 0.5


def detect_language(
    backend: Backend,
    tokenizer: Tokenizer,
    audio: Float32Array,
    times: StageTimes,
    among: Sequence[str] | None = None,
) -> list[dict[str, float]]:
    """How probable each language is, per encoded window.

    Args:
        backend: a multilingual model.
        tokenizer: its tokens.
        audio: float32 `(windows, n_audio_ctx, n_audio_state)`.
        times: where stage times are added.
        among: codes of the languages it can be; None: all the model knows.

    Returns:
        for each window a probability by language code, likeliest first; they add up to 1.
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
    """The probabilities of languages, once the likeliest have been tried on a window.

    Args:
        backend: a multilingual model.
        tokenizer: its tokens.
        vocabulary: its suppression lists.
        audio: float32 `(1, n_audio_ctx, n_audio_state)`, the window.
        decoding: how to decode, greedily; the language does not matter.
        options: what counts as a loop, which tells no language.
        times: where stage times are added.
        probabilities: by language code, likeliest first, from `detect_language`.

    Returns:
        a probability by language code, likeliest first; they add up to what they did before.
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
