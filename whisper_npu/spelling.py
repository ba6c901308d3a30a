"""Finds the known name that a mistyped one, or one in another spelling, means."""

from collections.abc import Iterable
from difflib import get_close_matches

from whisper_npu.errors import UsageError

LIKENESS = 0.6


def nearest(name: str, known: Iterable[str], likeness: float = LIKENESS) -> str | None:
    """Return the known name that is most similar to `name` in any case; None if none is.

    Args:
        name: what the user wrote.
        known: the names that exist.
        likeness: how similar a name has to be, from 0 to 1; see `difflib.get_close_matches`.
    """
    by_lower = {each.lower(): each for each in known}
    alike = get_close_matches(name.lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[alike[0]] if alike else None


def did_you_mean(name: str, known: Iterable[str], likeness: float = LIKENESS) -> str:
    """Return `; did you mean ...?` if a known name is similar to `name`; else an empty text."""
    meant = nearest(name, known, likeness)
    return f"; did you mean {meant}?" if meant else ""


def require_choice(option: str, value: object, known: Iterable[str]) -> None:
    """Refuse a value that is none of an option's choices.

    Raises:
        UsageError: it is none; the message lists all, and names the one that was probably meant.
    """
    known = tuple(known)
    if value not in known:
        raise UsageError(
            f"{option} is {value!r}; give {', '.join(known)}{did_you_mean(str(value), known)}"
        )


def parse_precision(text: str, known: Iterable[str]) -> str:
    """Return the known precision that a text means: `fp32`, `float32` and `f32` are the same.

    Args:
        text: what the user wrote; it is returned as it is if it means none.
        known: the names of the precisions, each in one spelling.
    """
    known = tuple(known)
    if text in known or not isinstance(text, str):
        return text
    return {_short(name): name for name in known}.get(_short(text), text)


def _short(precision: str) -> str:
    return precision.strip().lower().replace("float", "f").replace("fp", "f")
