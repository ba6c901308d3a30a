"""Makes the parts of the robustness set: joins and changes clean utterances."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from whisper_npu.errors import UsageError
from whisper_npu.export.references import read_references
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.scripts.evaluation.audio_changes import (
    Samples,
    as_16_bit,
    at_level,
    at_speed,
    telephone,
    with_music,
    with_noise,
)

_GAP = 0.25  # seconds between utterances
_SEED = 20261128


@dataclass(frozen=True)
class Utterance:
    """An utterance of one speaker.

    Attributes:
        speaker: the speaker's name.
        samples: float32 `(n,)`, mono, 16 kHz.
        text: the words.
    """

    speaker: str
    samples: Samples
    text: str


@dataclass(frozen=True)
class Recording:
    """A recording of the set: samples float32 `(n,)` at 16 kHz, and the words in it."""

    name: str
    samples: Samples
    text: str


def read_utterances(references: Path) -> list[Utterance]:
    """The utterances of a manifest or LibriSpeech folder, in its order.

    Raises:
        UsageError: the manifest cannot be read, or has fewer than two speakers.
        AudioError: a recording cannot be read.
    """
    utterances = [
        Utterance(Path(each.name).name.split("-")[0], load_audio(each.audio), each.text)
        for each in read_references(references)
    ]
    if len({each.speaker for each in utterances}) < 2:
        raise UsageError(
            f"{references}: two speakers or more are needed; the name of a recording begins with "
            "its speaker's and a hyphen"
        )
    return utterances


def parts(utterances: Sequence[Utterance]) -> dict[str, list[Recording]]:
    """The recordings of every part of the set, by the part's name."""
    ordered = sorted(utterances, key=lambda each: each.speaker)
    by_speaker = [list(group) for _, group in groupby(ordered, key=lambda each: each.speaker)]
    halves = [group[: (len(group) + 1) // 2] for group in by_speaker]
    others = [group[(len(group) + 1) // 2 :] or group for group in by_speaker]
    rng = np.random.default_rng(_SEED)

    def changed(
        groups: Iterable[Sequence[Utterance]], change: Callable[[Samples], Samples]
    ) -> list[Recording]:
        return [_joined(group[0].speaker, group, change=change) for group in groups]

    return {
        "clean": changed(halves, lambda speech: speech),
        "two-levels": list(_two_levels(by_speaker)),
        "quiet": changed(halves, lambda speech: as_16_bit(at_level(speech, -50.0))),
        "offset": changed(others, lambda speech: 0.02 * speech / np.abs(speech).max() + 0.06),
        "telephone": changed(halves, telephone),
        "noise-20": changed(others, lambda speech: with_noise(speech, 20, rng)),
        "noise-10": changed(halves, lambda speech: with_noise(speech, 10, rng)),
        "noise-5": changed(others, lambda speech: with_noise(speech, 5, rng)),
        "turns": list(_turns(by_speaker)),
        "overlap": list(_overlapping(by_speaker)),
        "slow": changed(halves, lambda speech: at_speed(speech, 0.8)),
        "fast": changed(others, lambda speech: at_speed(speech, 1.25)),
        "music": changed(halves, lambda speech: with_music(speech, 10)),
        "pauses": [
            _joined(group[0].speaker, group, gaps=rng.uniform(4, 16, len(group)))
            for group in others
        ],
    }


def _joined(
    name: str,
    utterances: Sequence[Utterance],
    *,
    gaps: Sequence[float] | npt.NDArray[np.float64] | None = None,
    gains: Sequence[float] = (),
    change: Callable[[Samples], Samples] | None = None,
) -> Recording:
    """Utterances one after the other, with `gaps` seconds after each; a negative gap overlaps."""
    starts, length = [], 0
    for number, each in enumerate(utterances):
        starts.append(length)
        gap = _GAP if gaps is None else float(gaps[number])
        length += len(each.samples) + round(gap * SAMPLE_RATE)
    ends = [start + len(each.samples) for start, each in zip(starts, utterances, strict=True)]
    samples = np.zeros(max(*ends, length), np.float32)
    for number, (start, each) in enumerate(zip(starts, utterances, strict=True)):
        gain = 10 ** (gains[number] / 20) if gains else 1.0
        samples[start : start + len(each.samples)] += gain * each.samples
    if change is not None:
        samples = change(samples).astype(np.float32)
    return Recording(name, samples, " ".join(each.text for each in utterances))


def _two_levels(by_speaker: Sequence[Sequence[Utterance]]) -> Iterator[Recording]:
    """A quiet speaker, then a loud speaker, in one window of 15 to 29 s."""
    for number in range(max(map(len, by_speaker))):
        for place, group in enumerate(by_speaker):
            following = by_speaker[(place + 1 + number % (len(by_speaker) - 1)) % len(by_speaker)]
            pair = (group[number % len(group)], following[(3 * number + 1) % len(following)])
            seconds = sum(len(each.samples) for each in pair) / SAMPLE_RATE + _GAP
            if 15 <= seconds <= 29:
                gain = (-12.0, -20.0)[number % 2]
                name = f"{pair[0].speaker}-{pair[1].speaker}-{number}"
                yield _joined(name, pair, gains=(gain, 0.0))


def _turns(by_speaker: Sequence[Sequence[Utterance]]) -> Iterator[Recording]:
    """Two speakers in turn, the second 8 dB quieter."""
    for place, group in enumerate(by_speaker):
        other = by_speaker[(place + 1) % len(by_speaker)]
        turns = [group[0], other[-1], group[1 % len(group)], other[-2 % len(other)]]
        name = f"{group[0].speaker}-{other[0].speaker}"
        yield _joined(name, turns, gaps=(0.3, 0.6, 0.3, 0.3), gains=(0.0, -8.0, 0.0, -8.0))


def _overlapping(by_speaker: Sequence[Sequence[Utterance]]) -> Iterator[Recording]:
    """Two speakers in turn; each begins half a second before the other ends."""
    for place, group in enumerate(by_speaker):
        others = [each for each in by_speaker if each is not group]
        other = others[(place + 1) % len(others)]
        turns = [group[-1], other[0], group[-2 % len(group)], other[1 % len(other)]]
        name = f"{group[0].speaker}-{other[0].speaker}"
        yield _joined(name, turns, gaps=(-0.5, -0.5, -0.5, 0.3))


def write_set(made: dict[str, list[Recording]], out: Path) -> int:
    """Write every part as 16-bit FLAC with its manifest; returns the number of words."""
    n_words = 0
    for part, recordings in made.items():
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for recording in recordings:
            name = f"{recording.name}.flac"
            soundfile.write(folder / name, recording.samples, SAMPLE_RATE, "PCM_16")
            lines.append(f"{part}/{name}\t{recording.text}\n")
            n_words += len(recording.text.split())
        (out / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
        seconds = sum(len(recording.samples) for recording in recordings) / SAMPLE_RATE
        words = sum(len(recording.text.split()) for recording in recordings)
        print(f"{part}: {len(recordings)} recordings, {words} words, {seconds / 60:.1f} min")
    return n_words
