"""The tracks and channels a user can choose of a recording. Imports no slow modules."""

from typing import Final, Literal, get_args

from whisper_npu.errors import UsageError
from whisper_npu.runtime.languages import find_language
from whisper_npu.spelling import require_choice

ALL_TRACKS = "all"
TrackChoice = int | str | None  # a number from 1, a language, `all`, or None for the default track

ChannelChoice = Literal["mix", "left", "right", "split"]
CHANNEL_CHOICES: tuple[str, ...] = get_args(ChannelChoice)
MIX: Final = "mix"
LEFT: Final = "left"
RIGHT: Final = "right"
SPLIT: Final = "split"


def parse_track(text: str) -> TrackChoice:
    """Parse the value of `--audio-track`, for `audio.tracks.choose_track`.

    Raises:
        UsageError: it is neither a number from 1, nor `all`, nor a language.
    """
    wanted = text.strip().lower()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if wanted == ALL_TRACKS or find_language(wanted) is not None:
        return wanted
    raise UsageError(
        f"audio_track is {text!r}; give a track's number from 1, its language, or {ALL_TRACKS}"
    )


def require_channels(choice: str) -> str:
    """Return `choice` if it is one of `CHANNEL_CHOICES`.

    Raises:
        UsageError: it is something else.
    """
    require_choice("channels", choice, CHANNEL_CHOICES)
    return choice
