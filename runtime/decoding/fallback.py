"""Decodes windows at rising temperatures until their text looks right, and records why.

Radford et al. 2022, section 4.5. Only the windows that look wrong are decoded again; those that
loop under a prompt are so without it, for the prompt is what most often leads them there.

A text that leaves out speech is wrong, too. Higher temperatures do not bring back words: such a
window is decoded with timestamps, and then in parts.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from whisper_npu.runtime.decoding.decode import DecodedWindow, DecodingOptions, decode_windows
from whisper_npu.runtime.decoding.loop_detection import is_loop
from whisper_npu.runtime.decoding.unheard import (
    NEGLIGIBLE_SPEECH,
    seconds_of,
    unheard_by_segments,
    unheard_by_words,
)
from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Stretch
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Retry
from whisper_npu.runtime.text.prompts import CONTEXT_TEMPERATURE
from whisper_npu.runtime.text.segments import split_at_timestamps
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP, Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

logger = logging.getLogger("whisper_npu")

# Average log probability of text that a model writes by chance: of real speech that is hard to hear
# it is about -2, of a model with random weights about -10.
_CHANCE = -4.0

WindowCallback = Callable[[int, float, tuple[int, ...]], None]
"""Takes the number of a window, the temperature, and the window's tokens so far."""


@dataclass(frozen=True)
class Outcome:
    """What became of a window.

    Attributes:
        decoded: the best attempt.
        language: code of the language it was decoded in.
        retries: why the attempts before it were not taken, in order.
        flaw: what is still wrong with it after the last temperature; None if nothing is.
        is_silence: the model holds the window for silence; its text is to be left out.
        is_gibberish: every attempt was a loop, or went on by chance until the context was full.
        leaves_out: nothing is wrong with it but that there is speech it does not account for.
        in_parts: it is to be decoded in parts: an attempt was a loop or left out speech, and no
            other was made.
    """

    decoded: DecodedWindow
    language: str
    retries: tuple[Retry, ...]
    flaw: str | None
    is_silence: bool
    is_gibberish: bool = False
    leaves_out: bool = False
    in_parts: bool = False

    @property
    def is_doubtful(self) -> bool:
        """Whether its text is no context for what follows: it looks wrong, or is mere chance."""
        is_wrong = self.flaw is not None and not self.leaves_out
        return is_wrong or self.decoded.temperature > CONTEXT_TEMPERATURE


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
    on_tokens: WindowCallback | None = None,
) -> list[Outcome]:
    """Decode a batch of encoded windows.

    Args:
        backend: the model.
        tokenizer: its tokens.
        vocabulary: its suppression lists.
        audio: float32 `(windows, n_audio_ctx, n_audio_state)`.
        seeds: a number per window; sampling depends on it alone, not on the rest of the batch.
        decoding: how to decode; its temperature is replaced by each of `options.temperature`.
        options: thresholds and temperatures.
        times: where stage times are added.
        prompts: see `decode_windows`.
        min_end_time: see `decode_windows`.
        n_frames: see `decode_windows`.
        speech: where the detector hears speech in each window; by default nobody knows. Needs
            `n_frames`.
        continued: for each window, whether the caller decodes what is left behind its text; by
            default it goes on where the timestamps end, as the reference does.
        splittable: for each window, whether the caller decodes it in parts if it loops or leaves
            out speech: higher temperatures are not tried then.
        on_tokens: called after each step for each window being decoded.

    Returns:
        one outcome per window.
    """
    retries: list[list[Retry]] = [[] for _ in seeds]
    attempts: list[list[DecodedWindow]] = [[] for _ in seeds]

    def attempt(windows: list[int], wanted: DecodingOptions, *, prompted: bool) -> list[int]:
        """Decode some windows; returns those that look wrong."""

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
        )
        flawed = []
        for window, found in zip(windows, decoded, strict=True):
            tried = found
            if speech:
                where = _unheard(
                    found,
                    speech[window],
                    n_frames[window],
                    tokenizer,
                    options,
                    is_continued=bool(continued) and continued[window],
                )
                tried = replace(found, unheard=where)
            attempts[window].append(tried)
            flaw = find_flaw(tried, options)
            if flaw is not None:
                reason = f"{flaw}, without timestamps" if wanted.aligned else flaw
                retries[window].append(Retry(wanted.temperature, reason))
                flawed.append(window)
                logger.debug("retry: at temperature %.1f %s", wanted.temperature, flaw)
        return flawed

    pending = list(range(len(seeds)))
    misled: list[int] = []  # windows that a prompt has led into a loop
    divided: set[int] = set()  # windows to be decoded in parts
    can_divide = {window for window, can in enumerate(splittable) if can}
    has_prompt = any(prompts)
    rungs = _rungs(decoding, options)
    for wanted in rungs:
        is_last = wanted is rungs[-1]
        flawed = attempt(pending, wanted, prompted=has_prompt) if pending else []
        pending = []
        for window in flawed:
            if has_prompt and repeats_itself(attempts[window][-1], options):
                misled.append(window)
            else:
                pending.append(window)
        if misled:
            misled = attempt(sorted(misled), wanted, prompted=False)
        for window in (*pending, *misled):
            following = _what_follows(
                attempts[window],
                options,
                has_second_form=wanted.aligned and not is_last,
                is_last=is_last,
                is_divisible=window in can_divide,
            )
            if following is _Next.ATTEMPT:
                continue
            if following is _Next.PARTS:
                divided.add(window)
            if following is _Next.NOTHING_FALLING:
                retries[window][-1] = _falling(retries[window][-1])
            (pending if window in pending else misled).remove(window)
        if not pending and not misled:
            break
    return [
        _outcome(tried, decoding.language, retries[window], options, in_parts=window in divided)
        for window, tried in enumerate(attempts)
    ]


class _Next(Enum):
    """What is done about a window that looks wrong."""

    ATTEMPT = auto()
    PARTS = auto()
    NOTHING = auto()
    NOTHING_FALLING = auto()  # as higher temperatures have only made its text less likely


def _what_follows(
    tried: Sequence[DecodedWindow],
    options: TranscribeOptions,
    *,
    has_second_form: bool,
    is_last: bool,
    is_divisible: bool,
) -> _Next:
    """What is done about a window whose last attempt looks wrong.

    Args:
        tried: the attempts.
        options: thresholds and temperatures.
        has_second_form: whether the text can be decoded with timestamps at the same temperature.
        is_last: whether there is no further attempt.
        is_divisible: whether the window can be decoded in parts.
    """
    last = tried[-1]
    leaves_out = _only_leaves_out(last, options)
    has_ladder = len(options.temperature) > 1
    if has_second_form and (has_ladder or leaves_out):
        return _Next.ATTEMPT
    if is_divisible and (leaves_out or repeats_itself(last, options)):
        return _Next.PARTS
    if leaves_out or has_second_form:
        return _Next.NOTHING  # higher temperatures bring back no words
    if not is_last and _worsens(tried, options):
        return _Next.NOTHING_FALLING
    return _Next.ATTEMPT


def _falling(last: Retry) -> Retry:
    return replace(last, reason=f"{last.reason}, and falling: higher temperatures are not tried")


def _rungs(decoding: DecodingOptions, options: TranscribeOptions) -> list[DecodingOptions]:
    """How a window is decoded, attempt by attempt."""
    finds_loops = options.compression_ratio_threshold is not None
    rungs = [
        replace(decoding, temperature=temperature, cut_loops=finds_loops)
        for temperature in options.temperature
    ]
    if decoding.aligned:
        return [rungs[0], *(replace(each, aligned=False) for each in rungs)]
    return rungs


def _outcome(
    tried: Sequence[DecodedWindow],
    language: str,
    retries: Sequence[Retry],
    options: TranscribeOptions,
    *,
    in_parts: bool,
) -> Outcome:
    best = tried[-1]
    flaw = find_flaw(best, options)
    if flaw is not None:
        best = _least_flawed(tried, options)
        flaw = find_flaw(best, options)
    return Outcome(
        decoded=best,
        language=language,
        retries=tuple(retries),
        flaw=flaw,
        is_silence=is_silence(best, options),
        is_gibberish=all(_is_gibberish(attempt, options) for attempt in tried),
        leaves_out=_only_leaves_out(best, options),
        in_parts=in_parts,
    )


def _is_gibberish(decoded: DecodedWindow, options: TranscribeOptions) -> bool:
    """Whether a text is a loop, or goes on and on by chance."""
    is_endless = decoded.reached_limit and options.sample_len is None
    if is_endless and options.logprob_threshold is not None and decoded.avg_logprob < _CHANCE:
        return True
    return repeats_itself(decoded, options) is not None


def _worsens(tried: Sequence[DecodedWindow], options: TranscribeOptions) -> bool:
    """Whether two attempts in a row, no loops, are less likely than one before them.

    Higher temperatures only make text less likely then: what they are for is to break loops. The
    reference tries all of them, which on speech that is hard to hear takes most of the time.
    """
    if len(tried) < 3:
        return False
    *before, one, other = tried
    honest = [attempt for attempt in before if not repeats_itself(attempt, options)]
    if not honest or repeats_itself(one, options) or repeats_itself(other, options):
        return False
    return max(one.avg_logprob, other.avg_logprob) <= max(a.avg_logprob for a in honest)


def _least_flawed(tried: Sequence[DecodedWindow], options: TranscribeOptions) -> DecodedWindow:
    """The attempt that leaves out least, of those that look right otherwise.

    Else the likeliest that is no loop; of loops, the one that says least twice.

    The reference takes the last, at the highest temperature: of improbable texts, the worst.
    """
    honest = [attempt for attempt in tried if not repeats_itself(attempt, options)]
    if honest:
        complete = [one for one in honest if find_flaw(replace(one, unheard=()), options) is None]
        if complete:
            return max(complete, key=lambda one: (-seconds_of(one.unheard), one.avg_logprob))
        return max(honest, key=lambda one: one.avg_logprob)
    return min(tried, key=lambda attempt: attempt.compression_ratio)


def find_flaw(decoded: DecodedWindow, options: TranscribeOptions) -> str | None:
    """Why a window looks wrong; None if it does not."""
    if is_silence(decoded, options):
        return None
    repetition = repeats_itself(decoded, options)
    if repetition is not None:
        return repetition
    logprob_limit = options.logprob_threshold
    if logprob_limit is not None and decoded.avg_logprob < logprob_limit:
        return f"average log probability {decoded.avg_logprob:.2f} is below {logprob_limit}"
    if decoded.unheard:
        where = ", ".join(f"{start:.1f} to {stop:.1f}" for start, stop in decoded.unheard)
        return f"speech in it has no text: {where} s"
    return None


def _only_leaves_out(decoded: DecodedWindow, options: TranscribeOptions) -> bool:
    """Whether nothing is wrong with a text but that it leaves out speech."""
    if not decoded.unheard:
        return False
    return find_flaw(replace(decoded, unheard=()), options) is None


def _unheard(
    decoded: DecodedWindow,
    speech: Sequence[Stretch],
    n_frames: int,
    tokenizer: Tokenizer,
    options: TranscribeOptions,
    *,
    is_continued: bool,
) -> tuple[Stretch, ...]:
    """Where there is speech in a window that its text does not account for.

    Args:
        decoded: the window.
        speech: where the detector hears speech in it.
        n_frames: frames of 10 ms of audio in it.
        tokenizer: the model's.
        options: thresholds.
        is_continued: whether the caller decodes what is left behind the text.
    """
    least = options.unheard_speech_threshold
    if least is None:
        return ()
    if decoded.words is not None and (decoded.words or not decoded.tokens):
        return unheard_by_words(decoded.words, speech, least)
    begin = tokenizer.special.timestamp_begin
    segments, advance = split_at_timestamps(
        decoded.tokens, begin, n_frames, keep_open_end=is_continued
    )
    first = segments[0]
    if first.tokens and first.tokens[0] >= begin:  # a single segment would begin with the window
        segments[0] = replace(first, start=(first.tokens[0] - begin) * TIMESTAMP_STEP)
    end = advance / FRAMES_PER_SECOND
    if is_continued and any(token < begin for token in decoded.tokens):
        text_end = segments[-1].end
        end = text_end if text_end >= NEGLIGIBLE_SPEECH else end
    return unheard_by_segments(segments, tokenizer, speech, end, least)


def repeats_itself(decoded: DecodedWindow, options: TranscribeOptions) -> str | None:
    """Why a window's text must be a loop; None if it is none."""
    limit = options.compression_ratio_threshold
    if limit is None:
        return None
    if decoded.compression_ratio > limit:
        return f"compression ratio {decoded.compression_ratio:.2f} is above {limit}"
    if is_loop(decoded.tokens):
        return "a phrase is repeated over and over"
    return None


def is_silence(decoded: DecodedWindow, options: TranscribeOptions) -> bool:
    """Whether the model itself holds the window for silence, and its text for improbable."""
    if options.no_speech_threshold is None:
        return False
    if decoded.no_speech_prob <= options.no_speech_threshold:
        return False
    return options.logprob_threshold is None or decoded.avg_logprob <= options.logprob_threshold
