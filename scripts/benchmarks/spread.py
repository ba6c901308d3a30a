"""Summarises a figure that was measured several times."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of `n` runs."""

    median: float
    lowest: float
    highest: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """The spread as values for JSON."""
        return {
            "median": self.median,
            "lowest": self.lowest,
            "highest": self.highest,
            "runs": self.n,
        }

    def text(self, form: str = ".1f") -> str:
        """`211.0 (208.3 to 212.9)`."""
        if self.n == 1:
            return format(self.median, form)
        return f"{self.median:{form}} ({self.lowest:{form}} to {self.highest:{form}})"


def spread(values: Iterable[float]) -> Spread:
    """The spread of one or more values."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found), len(found))


def ratios(values: Sequence[float], others: Sequence[float]) -> Spread:
    """The spread of `values` divided by `others`, pair by pair, for runs that alternated."""
    return spread(value / other for value, other in zip(values, others, strict=True))
