"""Decodes windows until the judge accepts their text, and records why it rejected attempts.

`quality.judge` decides after each attempt. This module carries its verdicts out, for all windows of
a batch together.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from whisper_npu.runtime.decoding.decode import DecodedWindow, DecodingOptions, decode_windows
from whisper_npu.runtime.decoding.quality import Action, Verdict, WindowFacts, is_doubtful, judge
from whisper_npu.runtime.decoding.unheard import find_unheard
from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Stretch
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Retry
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

logger = logging.getLogger("whisper_npu")

WindowCallback = Callable[[int, float, tuple[int, ...]], None]
"""Takes the number of a window, the temperature, and the window's tokens so far."""


@dataclass(frozen=True)
class Outcome:
    """The best attempt at a window, and the verdict on it.

    Attributes:
        decoded: the best attempt.
        language: code of the language it was decoded in.
        retries: flaws of the attempts, in order; a last attempt without a flaw has no entry.
        verdict: the action on the window, and its reason.
    """

    decoded: DecodedWindow
    language: str
    retries: tuple[Retry, ...]
    verdict: Verdict

    @property
    def flaw(self) -> str | None:
        """The flaw of its text after the last attempt; None if it has none."""
        return self.verdict.flaw

    @property
    def is_silence(self) -> bool:
        """Whether the model takes the window for silence; its text is left out."""
        return self.verdict.action is Action.SILENCE

    @property
    def is_doubtful(self) -> bool:
        """Whether its text must not be context for the next window."""
        return is_doubtful(self.decoded, self.verdict)


def decode_with_fallback(
    backend: Backend,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    audio: Float32Array,
    seeds: Sequence[int],
    decoding: DecodingOptions,
    options: TranscribeOptions,
    times: StageTimes,
    *,
    prompts: Sequence[Sequence[int]] = (),
    min_end_time: Sequence[float] = (),
    n_frames: Sequence[int] = (),
    speech: Sequence[Sequence[Stretch]] = (),
    continued: Sequence[bool] = (),
    splittable: Sequence[bool] = (),
    encoded_short: Sequence[bool] = (),
    can_encode_whole: bool = False,
    on_tokens: WindowCallback | None = None,
    is_wanted: Callable[[int], bool] | None = None,
    make_way: Callable[[], None] | None = None,
) -> list[Outcome]:
    """Decode a batch of encoded windows.

    Args:
        backend: the model.
        tokenizer: the model's tokenizer.
        vocabulary: the model's suppression lists.
        audio: float32 `(windows, n_audio_ctx, n_audio_state)`.
        seeds: a number per window; sampling depends on it alone, not on the rest of the batch.
        decoding: how to decode; its temperature is replaced by each of `options.temperature`.
        options: thresholds and temperatures.
        times: where stage times are added.
        prompts: see `decode_windows`.
        min_end_time: see `decode_windows`.
        n_frames: see `decode_windows`.
        speech: where the detector finds speech in each window; by default unknown. Needs
            `n_frames`.
        continued: for each window, whether the caller decodes the rest after its text; by default
            the caller goes on where the timestamps end, as the reference does.
        splittable: for each window, whether the caller decodes it in parts if it loops or leaves
            out speech; then higher temperatures are not tried.
        encoded_short: for each window, whether it was encoded shorter than a whole window; by
            default none was.
        can_encode_whole: whether the caller decodes flawed windows again, from whole windows.
        on_tokens: called after each step for each window being decoded.
        is_wanted: tells by a window's number whether a caller still waits for its text; by default
            a caller does. The other windows are decoded no further.
        make_way: see `decode_windows`.

    Returns:
        one outcome per window.
    """
    retries: list[list[Retry]] = [[] for _ in seeds]
    attempts: list[list[DecodedWindow]] = [[] for _ in seeds]
    verdicts: dict[int, Verdict] = {}
    rungs = _rungs(decoding, options)

    def attempt(windows: list[int], rung: int, *, prompted: bool) -> None:
        """Decode windows once and judge them."""
        wanted = rungs[rung]

        def report(tokens: list[tuple[int, ...]]) -> None:
            if on_tokens is not None:
                for window, so_far in zip(windows, tokens, strict=True):
                    on_tokens(window, wanted.temperature, so_far)

        decoded = decode_windows(
            backend,
            tokenizer,
            vocabulary,
            audio if len(windows) == len(audio) else audio[windows],
            wanted,
            times,
            prompts=[prompts[window] for window in windows] if prompted else (),
            seeds=[seeds[window] for window in windows],
            min_end_time=[min_end_time[window] for window in windows] if min_end_time else (),
            n_frames=[n_frames[window] for window in windows] if n_frames else (),
            on_tokens=None if on_tokens is None else report,
            is_wanted=None if is_wanted is None else lambda: [is_wanted(each) for each in windows],
            make_way=make_way,
        )
        for window, found in zip(windows, decoded, strict=True):
            tried = found
            if speech and options.unheard_speech_threshold is not None:
                where = find_unheard(
                    found,
                    speech[window],
                    n_frames[window],
                    tokenizer,
                    options.unheard_speech_threshold,
                    is_continued=bool(continued) and continued[window],
                )
                tried = replace(found, unheard=where)
            attempts[window].append(tried)
            is_short = bool(encoded_short) and encoded_short[window]
            facts = WindowFacts(
                seconds=n_frames[window] / FRAMES_PER_SECOND if n_frames else inf,
                encoded_short=is_short,
                text_tokens=_text_tokens(tried, tokenizer) if is_short else (),
                can_encode_whole=can_encode_whole,
                splittable=bool(splittable) and splittable[window],
                prompted=prompted,
                aligned=wanted.aligned,
                temperatures_left=len(rungs) - 1 - max(rung, int(decoding.aligned)),
            )
            verdict = judge(attempts[window], facts, options)
            if is_wanted is not None and not is_wanted(window):
                verdict = Verdict(Action.DROP, "nobody waits for it")
            verdicts[window] = verdict
            if verdict.reason and not verdict.is_left_out:
                retries[window].append(Retry(wanted.temperature, verdict.reason))
                logger.debug(
                    "%s: at temperature %.1f %s",
                    verdict.action.value,
                    wanted.temperature,
                    verdict.reason,
                )

    pending = list(range(len(seeds)))
    misled: list[int] = []  # windows that looped under a prompt
    has_prompt = any(prompts)
    for rung in range(len(rungs)):
        if pending:
            attempt(pending, rung, prompted=has_prompt)
        looping = {w for w in pending if verdicts[w].action is Action.RETRY_WITHOUT_PROMPT}
        misled = sorted({*misled, *looping})
        if misled:
            attempt(misled, rung, prompted=False)
        pending = [w for w in pending if w not in looping and verdicts[w].action is Action.RETRY]
        misled = [w for w in misled if verdicts[w].action is Action.RETRY]
        if not pending and not misled:
            break
    return [
        Outcome(
            attempts[window][verdicts[window].attempt],
            decoding.language,
            tuple(retries[window]),
            verdicts[window],
        )
        for window in range(len(seeds))
    ]


def _text_tokens(decoded: DecodedWindow, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text without its timestamps."""
    return [token for token in decoded.tokens if token < tokenizer.special.eot]


def _rungs(decoding: DecodingOptions, options: TranscribeOptions) -> list[DecodingOptions]:
    """The decoding options of each attempt, in order."""
    finds_loops = options.compression_ratio_threshold is not None
    rungs = [
        replace(decoding, temperature=temperature, cut_loops=finds_loops)
        for temperature in options.temperature
    ]
    if decoding.aligned:
        return [rungs[0], *(replace(each, aligned=False) for each in rungs)]
    return rungs
