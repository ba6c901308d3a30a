"""Accounts for every second of a recording: transcribed, silent, skipped or dropped, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Fate = Literal["transcribed", "silent", "skipped", "dropped"]
FATES: tuple[str, ...] = get_args(Fate)
_NEGLIGIBLE = 1e-6  # seconds


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording and its fate.

    Attributes:
        start: Seconds from the start of the recording.
        end: Seconds from the start of the recording.
        fate: `transcribed`: decoded, and the text is in the result; `silent`: not decoded, because
            no speech was detected; `skipped`: decoded, but the model itself took it for silence;
            `dropped`: decoded, but the text was rejected as hallucinated, or not decoded, because
            the transcription was stopped before.
        reason: Why, in a few words; empty for `transcribed`.
        channel: Its channel, if channels or tracks were transcribed separately; see `Segment`.
    """

    start: float
    end: float
    fate: Fate
    reason: str = ""
    channel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the span for our JSON; with `channel` only if there is one."""
        fields = {
            "start": round(self.start, 2),
            "end": round(self.end, 2),
            "fate": self.fate,
            "reason": self.reason,
        }
        return fields if self.channel is None else {**fields, "channel": self.channel}


@dataclass
class Coverage:
    """The spans of a recording; complete once `finish` has been called."""

    _spans: list[Span] = field(default_factory=list)

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans; in order of time after `finish`."""
        return tuple(self._spans)

    def add(self, start: float, end: float, fate: Fate, reason: str = "") -> None:
        """Record the fate of the time from `start` to `end` seconds, in any order of time."""
        if end - start > _NEGLIGIBLE:
            self._spans.append(Span(start, end, fate, reason))

    def cut(self, at: float) -> None:
        """Remove all records of the time after `at` seconds."""
        kept = [span for span in self._spans if span.start < at]
        self._spans = [replace(span, end=min(span.end, at)) for span in kept]

    def finish(self, duration: float) -> None:
        """Sort the spans, join neighbours of the same fate, and end with the recording."""
        joined: list[Span] = []
        for span in sorted(self._spans, key=lambda span: span.start):
            clipped = replace(span, end=min(span.end, duration))
            last = joined[-1] if joined else None
            if last is not None and (last.fate, last.reason) == (clipped.fate, clipped.reason):
                joined[-1] = replace(last, end=clipped.end)
            elif clipped.end - clipped.start > _NEGLIGIBLE:
                joined.append(clipped)
        if joined:  # frames are 10 ms long: the rest is shorter than a frame
            joined[-1] = replace(joined[-1], end=duration)
        self._spans = joined

    @classmethod
    def of_channels(cls, coverages: Mapping[str, "Coverage"]) -> "Coverage":
        """Join the finished coverages of channels or tracks, by name."""
        spans = [
            replace(span, channel=channel)
            for channel, coverage in coverages.items()
            for span in coverage.spans
        ]
        return cls(sorted(spans, key=lambda span: span.start))

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels or tracks that were transcribed separately; empty if there are none."""
        return tuple(dict.fromkeys(span.channel for span in self._spans if span.channel))

    def seconds(self, channel: str | None = None) -> dict[str, float]:
        """Return seconds by fate; they add up to the duration, or to that of all channels.

        Args:
            channel: Count only this channel.
        """
        totals = dict.fromkeys(FATES, 0.0)
        for span in self._spans:
            if channel is None or span.channel == channel:
                totals[span.fate] += span.end - span.start
        return totals

    def to_dict(self) -> dict[str, Any]:
        """Return seconds by fate, every span that was not transcribed, and `channels` if any."""
        others = [span.to_dict() for span in self._spans if span.fate != "transcribed"]
        fields = {**_rounded(self.seconds()), "spans": others}
        if self.channels:
            fields["channels"] = {name: _rounded(self.seconds(name)) for name in self.channels}
        return fields


def _rounded(seconds: dict[str, float]) -> dict[str, Any]:
    return {fate: round(total, 2) for fate, total in seconds.items()}
