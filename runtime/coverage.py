"""Accounts for every second of a recording: transcribed, silent, skipped or dropped, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Fate = Literal["transcribed", "silent", "skipped", "dropped"]
FATES: tuple[str, ...] = get_args(Fate)
_NEGLIGIBLE = 1e-6  # seconds


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording and what became of it.

    Attributes:
        start: Seconds from the start of the recording.
        end: Seconds from the start of the recording.
        fate: `transcribed`: decoded, and the text is in the result; `silent`: no speech was heard
            in it, so nothing was decoded; `skipped`: decoded, but the model itself held it for
            silence; `dropped`: decoded, but the text was given up as an invention, or not decoded,
            because the transcription was stopped before.
        reason: Why, in a few words; empty for `transcribed`.
        channel: Where, if channels or tracks were transcribed each on its own; see `Segment`.
    """

    start: float
    end: float
    fate: Fate
    reason: str = ""
    channel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The span as our JSON has it; `channel` only where there is one."""
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
        """All spans, in order of time once finished."""
        return tuple(self._spans)

    def add(self, start: float, end: float, fate: Fate, reason: str = "") -> None:
        """Say what became of the time between `start` and `end` seconds, in any order of time."""
        if end - start > _NEGLIGIBLE:
            self._spans.append(Span(start, end, fate, reason))

    def cut(self, at: float) -> None:
        """Take back whatever was said of the time behind `at` seconds."""
        kept = [span for span in self._spans if span.start < at]
        self._spans = [replace(span, end=min(span.end, at)) for span in kept]

    def finish(self, duration: float) -> None:
        """Sort, join neighbours of one fate, and end with the recording."""
        joined: list[Span] = []
        for span in sorted(self._spans, key=lambda span: span.start):
            clipped = replace(span, end=min(span.end, duration))
            last = joined[-1] if joined else None
            if last is not None and (last.fate, last.reason) == (clipped.fate, clipped.reason):
                joined[-1] = replace(last, end=clipped.end)
            elif clipped.end - clipped.start > _NEGLIGIBLE:
                joined.append(clipped)
        if joined:  # frames are 10 ms long: what is left is less than one
            joined[-1] = replace(joined[-1], end=duration)
        self._spans = joined

    @classmethod
    def of_channels(cls, coverages: Mapping[str, "Coverage"]) -> "Coverage":
        """The finished coverages of channels or tracks, by name, as one."""
        spans = [
            replace(span, channel=channel)
            for channel, coverage in coverages.items()
            for span in coverage.spans
        ]
        return cls(sorted(spans, key=lambda span: span.start))

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels or tracks that are accounted for each on its own; empty where none are."""
        return tuple(dict.fromkeys(span.channel for span in self._spans if span.channel))

    def seconds(self, channel: str | None = None) -> dict[str, float]:
        """Seconds by fate; they add up to the duration, or to that of all channels.

        Args:
            channel: Count this one only.
        """
        totals = dict.fromkeys(FATES, 0.0)
        for span in self._spans:
            if channel is None or span.channel == channel:
                totals[span.fate] += span.end - span.start
        return totals

    def to_dict(self) -> dict[str, Any]:
        """Seconds by fate, and every span that was not transcribed; `channels` if there are any."""
        others = [span.to_dict() for span in self._spans if span.fate != "transcribed"]
        fields = {**_rounded(self.seconds()), "spans": others}
        if self.channels:
            fields["channels"] = {name: _rounded(self.seconds(name)) for name in self.channels}
        return fields


def _rounded(seconds: dict[str, float]) -> dict[str, Any]:
    return {fate: round(total, 2) for fate, total in seconds.items()}
