"""Chooses the audio track of a recording to transcribe, and warns about the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from whisper_npu.runtime.audio.source import Decoder, RefusedError
from whisper_npu.runtime.audio_choices import ALL_TRACKS, TrackChoice
from whisper_npu.runtime.languages import LANGUAGES, find_language


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """An audio track of a file.

    Attributes:
        number: Its place among the audio tracks, from 1.
        language: Its language according to the file; None if the file names none.
        title: Its title; None if it has none.
        is_default: Whether the file marks it as the track to play.
        is_extra: Whether it accompanies another track: a commentary or an audio description.
        is_readable: Whether there is a decoder for it.
    """

    number: int
    language: str | None = None
    title: str | None = None
    is_default: bool = False
    is_extra: bool = False
    is_readable: bool = True

    @property
    def language_code(self) -> str | None:
        """Whisper's code of the track's language; None if the file names no language of Whisper."""
        return None if self.language is None else find_language(self.language)

    def __str__(self) -> str:
        """Return the name in messages: `2 (German, "Director's commentary")`."""
        code = self.language_code
        language = self.language if code is None else LANGUAGES[code].capitalize()
        title = None if self.title is None else f'"{self.title}"'
        marks = ", ".join(mark for mark in (language, title) if mark)
        return f"{self.number} ({marks})" if marks else f"{self.number}"


class TrackDecoder(Decoder, Protocol):
    """A decoder of one audio track of a file.

    Attributes:
        n_channels: The announced number of channels; a chunk may have another number.
        tracks: All audio tracks of the file.
        track: The decoded track.
    """

    n_channels: int
    tracks: tuple[AudioTrack, ...]
    track: AudioTrack


def choose_track(tracks: Sequence[AudioTrack], wanted: TrackChoice) -> AudioTrack:
    """Choose the track to transcribe.

    Among several fitting tracks, the track marked as default comes first, then the lowest number;
    a commentary is taken only if there is no other track.

    Args:
        tracks: All tracks of the recording, at least one.
        wanted: A number or a language; None fits every track.

    Raises:
        RefusedError: There is no such track, or no decoder for it; the text lists all tracks.
    """
    if isinstance(wanted, int):
        fitting = [track for track in tracks if track.number == wanted]
        missing = f"no audio track {wanted}"
    elif wanted is not None:
        code = find_language(wanted)
        fitting = [track for track in tracks if track.language_code == code]
        missing = f"no audio track is marked as {LANGUAGES.get(code or '', wanted).capitalize()}"
    else:
        fitting, missing = list(tracks), ""
    if not fitting:
        raise RefusedError(f"{missing}; it has {list_tracks(tracks)}")
    readable = [track for track in fitting if track.is_readable]
    if not readable:
        which = "its audio" if len(tracks) == 1 else f"audio track {list_tracks(fitting)}"
        raise RefusedError(f"{which} is of a kind that FFmpeg does not know; convert it to WAV")
    return max(readable, key=lambda track: (not track.is_extra, track.is_default, -track.number))


def unheard_warnings(
    tracks: Sequence[AudioTrack], chosen: Sequence[AudioTrack], wanted: TrackChoice
) -> list[str]:
    """Return one line on tracks that are left out without the user's decision, if there are any."""
    if isinstance(wanted, int):
        return []
    others = [track for track in tracks if track not in chosen]
    if wanted == ALL_TRACKS:
        unread = f"there is no decoder for audio track {list_tracks(others)}: left out"
        return [unread] if others else []
    if wanted is not None:
        others = [track for track in others if track.language_code == chosen[0].language_code]
    if not others:
        return []
    return [
        f"of {len(tracks)} audio tracks only {list_tracks(chosen)} is transcribed, not"
        f" {list_tracks(others)}: choose by --audio-track (a number, a language or {ALL_TRACKS})"
    ]


def list_tracks(tracks: Sequence[AudioTrack]) -> str:
    """Return all tracks in one line."""
    return ", ".join(map(str, tracks))
