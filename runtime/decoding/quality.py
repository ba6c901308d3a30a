"""Decides whether a decoded text is believed, and what is done if it is not.

Only this module decides; other modules measure, or carry out its decisions. Every function is pure.

The reference (Radford et al. 2022, section 4.5) believes a text that does not compress too well and
is not too improbable, and tries higher temperatures otherwise. Three more rules apply here:

- A text that leaves out speech is wrong. Higher temperatures do not bring back words, so the window
  is decoded with timestamps, and then in parts.
- A loop under a prompt is decoded again without the prompt, which mostly caused it. A loop in a
  long window is decoded in parts: its cause, laughter or music, mostly fills a small part.
  Higher temperatures end loops too, but in hallucinated text.
- A window that was encoded short is decoded again as a whole window before higher temperatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from whisper_npu.runtime.decoding.decode import DecodedWindow
from whisper_npu.runtime.decoding.loop_detection import (
    ends_twice,
    is_loop,
    says_twice,
    spoken_length,
)
from whisper_npu.runtime.decoding.unheard import NEGLIGIBLE_SPEECH, seconds_of
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.text.prompts import CONTEXT_TEMPERATURE
from whisper_npu.runtime.timestamps.hallucinations import first_hallucination

# Average log probability below which a text is random. Speech that is hard to hear has about -2, a
# model with random weights about -10.
_CHANCE = -4.0

# Letters per second above which a phrase that is written twice was said once. Audio books have
# about 15.
_HURRIED_SPEECH = 20

# Whisper invents whole sentences, with a high probability, for clips of a second or less.
_SHORT = 2.0  # seconds
_SYLLABLE = 8  # letters that fit into any time
_FASTEST_SPEECH = 25  # letters in a second

# Seconds of speech after the end of a text that are worth another window. A text without timestamps
# leaves out at least a sentence; shorter speech is noise, or the last word.
_REST, _REST_ALIGNED = NEGLIGIBLE_SPEECH, 2.0


class Action(Enum):
    """An action on a decoded window."""

    ACCEPT = "accept"
    """Take its text."""
    RETRY = "retry"
    """Decode it again: with timestamps if it had none, else at the next temperature."""
    RETRY_WITHOUT_PROMPT = "retry without prompt"
    """Decode it again in the same way, without the text before it."""
    ENCODE_WHOLE = "encode whole"
    """Encode it as a whole window and decode it again."""
    SPLIT = "split"
    """Cut it at a pause and decode its parts; or decode its rest, after the end of the text."""
    SILENCE = "silence"
    """Leave out its text: nobody speaks."""
    DROP = "drop"
    """Leave out its text, or its rest: there is speech, but no credible text."""


@dataclass(frozen=True)
class Verdict:
    """The action on a decoded window, and its reason.

    Attributes:
        action: the action.
        reason: the flaw of the last attempt, for people; empty if it has none.
        attempt: index of the attempt with the best text.
        flaw: the flaw of that text; None if it has none.
        leaves_out: the only flaw of that text is that it leaves out speech.
        is_gibberish: every attempt was a loop, or random text until the context was full.
    """

    action: Action
    reason: str = ""
    attempt: int = 0
    flaw: str | None = None
    leaves_out: bool = False
    is_gibberish: bool = False

    @property
    def is_left_out(self) -> bool:
        """Whether the text is not believed, and the window is not decoded again."""
        return self.action in (Action.SILENCE, Action.DROP)


@dataclass(frozen=True)
class WindowFacts:
    """The facts about a window that the judge needs besides its text.

    Attributes:
        seconds: seconds of audio in the window.
        encoded_short: the window was encoded shorter than a whole window.
        text_tokens: tokens of its last text, without timestamps; needed if it was encoded short.
        can_encode_whole: a window with a flawed text is decoded again, from a whole window and at
            all temperatures. It was encoded short, or together with windows that were.
        splittable: the caller decodes the window in parts if it loops or leaves out speech.
        prompted: the last attempt was given the text before the window.
        aligned: the last attempt was decoded without timestamps, and can be decoded with them.
        temperatures_left: number of higher temperatures that have not been tried.
    """

    seconds: float
    encoded_short: bool = False
    text_tokens: Sequence[int] = ()
    can_encode_whole: bool = False
    splittable: bool = False
    prompted: bool = False
    aligned: bool = False
    temperatures_left: int = 0


def judge(
    attempts: Sequence[DecodedWindow], facts: WindowFacts, options: TranscribeOptions
) -> Verdict:
    """Decide on the action after the last attempt at a window.

    Args:
        attempts: all attempts at the window, in order; at least one. The verdict on all but the
            last was to retry.
        facts: facts about the window.
        options: thresholds.
    """
    last = attempts[-1]
    flaw = find_flaw(last, options)
    if flaw is None:
        return _judge_sound(attempts, facts, options)
    reason = f"{flaw}, without timestamps" if facts.aligned else flaw
    loops = find_loop(last, options) is not None
    leaves_out = _only_leaves_out(last, options)
    if facts.prompted and loops:
        return Verdict(Action.RETRY_WITHOUT_PROMPT, reason)
    if facts.aligned and (leaves_out or facts.temperatures_left):
        return Verdict(Action.RETRY, reason)
    if facts.splittable and (leaves_out or loops):
        return _conclude(attempts, facts, options, reason, split=True)
    if not leaves_out and not facts.aligned and facts.temperatures_left:
        if not _worsens(attempts, options):
            return Verdict(Action.RETRY, reason)
        reason = f"{reason}, and falling: higher temperatures are not tried"
    return _conclude(attempts, facts, options, reason)


def _judge_sound(
    attempts: Sequence[DecodedWindow], facts: WindowFacts, options: TranscribeOptions
) -> Verdict:
    """The verdict on a window whose last attempt has no flaw."""
    last = attempts[-1]
    verdict = Verdict(
        Action.ACCEPT,
        attempt=len(attempts) - 1,
        is_gibberish=_are_gibberish(attempts, options),
    )
    if is_silence(last, options):
        reason = f"the model hears no speech (probability {last.no_speech_prob:.2f})"
        return replace(verdict, action=Action.SILENCE, reason=reason)
    repeat = _find_repeat(last, facts) if options.compression_ratio_threshold is not None else None
    if repeat is not None:
        return replace(verdict, action=Action.ENCODE_WHOLE, reason=repeat, flaw=repeat)
    return _drop_if_too_long(verdict, last, facts)


def _find_repeat(decoded: DecodedWindow, facts: WindowFacts) -> str | None:
    """Why a text may say a phrase twice that was said once; None if it does not.

    In a window that was encoded short, the decoder may miss the end of the audio and repeat the
    last sentence. Encoded as a whole window, the same audio gives the right text.
    """
    if not facts.encoded_short:
        return None
    if ends_twice(facts.text_tokens):  # people do so too, but seldom: it may cost a second look
        return f"its last phrase is said twice, in {facts.seconds:.2f} s"
    is_hurried = spoken_length(decoded.text) > _HURRIED_SPEECH * facts.seconds
    if is_hurried and says_twice(facts.text_tokens):
        return f"a phrase is said twice, all of it in {facts.seconds:.2f} s"
    return None


def _conclude(
    attempts: Sequence[DecodedWindow],
    facts: WindowFacts,
    options: TranscribeOptions,
    reason: str,
    *,
    split: bool = False,
) -> Verdict:
    """The verdict on a window whose attempts all have a flaw, and are not repeated.

    Args:
        attempts: all attempts.
        facts: facts about the window.
        options: thresholds.
        reason: the flaw of the last attempt.
        split: whether the window is decoded in parts.
    """
    number = _least_flawed(attempts, options)
    best = attempts[number]
    verdict = Verdict(
        Action.ACCEPT,
        reason,
        attempt=number,
        flaw=find_flaw(best, options),
        leaves_out=_only_leaves_out(best, options),
        is_gibberish=_are_gibberish(attempts, options),
    )
    # Speech that is left out of a short window is left out of the whole window, too.
    if facts.can_encode_whole and not (split and verdict.leaves_out):
        return replace(verdict, action=Action.ENCODE_WHOLE)
    if split:
        return replace(verdict, action=Action.SPLIT, reason=split_reason(reason))
    return _drop_if_too_long(verdict, best, facts)


def _drop_if_too_long(verdict: Verdict, decoded: DecodedWindow, facts: WindowFacts) -> Verdict:
    """The verdict; DROP if nobody can say the text in so little time."""
    seconds = facts.seconds
    if seconds >= _SHORT or spoken_length(decoded.text) <= _SYLLABLE + _FASTEST_SPEECH * seconds:
        return verdict
    reason = f"more than can be said in {seconds:.2f} s: {decoded.text!r}"
    return replace(verdict, action=Action.DROP, reason=reason)


def split_reason(reason: str) -> str:
    """The reason for decoding a window in parts, from the flaw of its text."""
    return f"{reason}; decoded in parts"


def judge_rest(start: int, n_frames: int, speech: float, *, aligned: bool) -> Verdict:
    """Decide on the rest of a window, after the end of its text.

    Args:
        start: frames of 10 ms into the window at which the rest begins.
        n_frames: frames of 10 ms in the rest.
        speech: seconds of speech in the rest.
        aligned: whether the text was decoded without timestamps.

    Returns:
        ACCEPT if the rest is not worth another window, SPLIT if it is one, DROP if decoding the
        rest would only give the same text again.
    """
    least = _REST_ALIGNED if aligned else _REST
    if n_frames < least * FRAMES_PER_SECOND or speech < least:
        return Verdict(Action.ACCEPT)
    if start < NEGLIGIBLE_SPEECH * FRAMES_PER_SECOND:
        return Verdict(Action.DROP, "the text ends before it")
    return Verdict(Action.SPLIT)


def separate_hallucinations(
    segments: Sequence[Segment],
    threshold: float | None,
    *,
    window_start: float,
    window_end: float,
    last_speech_end: float,
) -> tuple[list[Segment], list[Segment]]:
    """Separate the believed segments of a window from the hallucinated segments.

    Args:
        segments: all segments of the window, with words.
        threshold: seconds without words that count as silence; None: all segments are believed.
        window_start: seconds from the start of the recording.
        window_end: seconds from the start of the recording, without padding.
        last_speech_end: end of the last word before the window, in seconds.

    Returns:
        the believed segments in order, and the hallucinated segments in the order of finding.
    """
    believed, hallucinated = list(segments), []
    while threshold is not None:
        place = first_hallucination(
            believed,
            threshold=threshold,
            window_start=window_start,
            window_end=window_end,
            last_speech_end=last_speech_end,
        )
        if place is None:
            break
        hallucinated.append(believed.pop(place))
    return believed, hallucinated


def find_flaw(decoded: DecodedWindow, options: TranscribeOptions) -> str | None:
    """Why a text looks wrong; None if it looks right."""
    if is_silence(decoded, options):
        return None
    loop = find_loop(decoded, options)
    if loop is not None:
        return loop
    limit = options.logprob_threshold
    if limit is not None and decoded.avg_logprob < limit:
        return f"average log probability {decoded.avg_logprob:.2f} is below {limit}"
    if decoded.unheard:
        where = ", ".join(f"{start:.1f} to {stop:.1f}" for start, stop in decoded.unheard)
        return f"speech in it has no text: {where} s"
    return None


def find_loop(decoded: DecodedWindow, options: TranscribeOptions) -> str | None:
    """Why a text is taken for a loop; None if it is not."""
    limit = options.compression_ratio_threshold
    if limit is None:
        return None
    if decoded.compression_ratio > limit:
        return f"compression ratio {decoded.compression_ratio:.2f} is above {limit}"
    if is_loop(decoded.tokens):
        return "a phrase is repeated over and over"
    return None


def find_cut(decoded: DecodedWindow, timestamp_begin: int) -> str | None:
    """Why a text without timestamps is incomplete; None if it is complete.

    Args:
        decoded: the text.
        timestamp_begin: the token of 0.00 s. A text with timestamps is continued where it ends.
    """
    if not decoded.reached_limit or any(token >= timestamp_begin for token in decoded.tokens):
        return None
    return "the text is cut off: the decoder takes no more tokens"


def is_silence(decoded: DecodedWindow, options: TranscribeOptions) -> bool:
    """Whether the model takes the window for silence, and its text for improbable."""
    if options.no_speech_threshold is None:
        return False
    if decoded.no_speech_prob <= options.no_speech_threshold:
        return False
    return options.logprob_threshold is None or decoded.avg_logprob <= options.logprob_threshold


def is_doubtful(decoded: DecodedWindow, verdict: Verdict) -> bool:
    """Whether a text must not be context: it looks wrong, or its temperature is too high.

    A text that only leaves out speech is context.
    """
    is_wrong = verdict.flaw is not None and not verdict.leaves_out
    return is_wrong or decoded.temperature > CONTEXT_TEMPERATURE


def _only_leaves_out(decoded: DecodedWindow, options: TranscribeOptions) -> bool:
    """Whether the only flaw of a text is that it leaves out speech."""
    return bool(decoded.unheard) and find_flaw(replace(decoded, unheard=()), options) is None


def _are_gibberish(attempts: Sequence[DecodedWindow], options: TranscribeOptions) -> bool:
    """Whether every text is a loop, or random text until the context is full."""

    def is_gibberish(decoded: DecodedWindow) -> bool:
        is_endless = decoded.reached_limit and options.sample_len is None
        if is_endless and options.logprob_threshold is not None and decoded.avg_logprob < _CHANCE:
            return True
        return find_loop(decoded, options) is not None

    return all(map(is_gibberish, attempts))


def _worsens(attempts: Sequence[DecodedWindow], options: TranscribeOptions) -> bool:
    """Whether the last two attempts are no loops, and not likelier than an attempt before them.

    Higher temperatures, which serve to break loops, only make the text less likely then. The
    reference tries all temperatures; on speech that is hard to hear, they take most of the time.
    """
    if len(attempts) < 3:
        return False
    *before, one, other = attempts
    honest = [attempt for attempt in before if find_loop(attempt, options) is None]
    if not honest or find_loop(one, options) or find_loop(other, options):
        return False
    return max(one.avg_logprob, other.avg_logprob) <= max(a.avg_logprob for a in honest)


def _least_flawed(attempts: Sequence[DecodedWindow], options: TranscribeOptions) -> int:
    """Index of the attempt that leaves out least speech, among attempts without another flaw.

    If there is none: the likeliest attempt that is no loop; of loops, the least compressible.

    The reference takes the attempt at the highest temperature: the worst of improbable texts.
    """
    numbers = range(len(attempts))
    honest = [i for i in numbers if find_loop(attempts[i], options) is None]
    complete = [i for i in honest if find_flaw(replace(attempts[i], unheard=()), options) is None]
    if complete:
        return max(
            complete, key=lambda i: (-seconds_of(attempts[i].unheard), attempts[i].avg_logprob)
        )
    if honest:
        return max(honest, key=lambda i: attempts[i].avg_logprob)
    return min(numbers, key=lambda i: attempts[i].compression_ratio)
