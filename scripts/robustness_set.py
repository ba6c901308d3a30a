"""Makes the robustness set: recordings with the difficulties of real life from clean utterances.

Each part is one kind of difficulty. `docs/accuracy.md` lists the word error rates measured on it.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

RATE = 16000  # Hz
_GAP = 0.25  # seconds between utterances
_SEED = 20261128

EPILOG = f"""\
examples:
  python scripts/robustness_set.py references.tsv robustness/
  for part in robustness/*.tsv; do whisper-npu wer $part --model tiny.en --language en; done

The utterances' names begin with their speaker's and a hyphen, as LibriSpeech's do.

{cli.EXIT_CODES}"""


@dataclass(frozen=True)
class Utterance:
    """What one speaker says without a break.

    Attributes:
        speaker: who.
        samples: float32 `(n,)`, mono, 16 kHz.
        text: the words.
    """

    speaker: str
    samples: "Samples"
    text: str


@dataclass(frozen=True)
class Recording:
    """A recording of the set: samples float32 `(n,)` at 16 kHz, and the words in it."""

    name: str
    samples: "Samples"
    text: str


def read_utterances(references: Path) -> list[Utterance]:
    """The utterances of a manifest or LibriSpeech folder, in its order.

    Raises:
        UsageError: the manifest cannot be read, or there are not two speakers.
        AudioError: a recording cannot be read.
    """
    from whisper_npu.export.references import read_references  # noqa: PLC0415 - slow to import
    from whisper_npu.runtime.audio.stream import load_audio  # noqa: PLC0415 - slow to import

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
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    ordered = sorted(utterances, key=lambda each: each.speaker)
    by_speaker = [list(group) for _, group in groupby(ordered, key=lambda each: each.speaker)]
    halves = [group[: (len(group) + 1) // 2] for group in by_speaker]
    others = [group[(len(group) + 1) // 2 :] or group for group in by_speaker]
    rng = np.random.default_rng(_SEED)

    def changed(
        groups: Iterable[Sequence[Utterance]], change: "Callable[[Samples], Samples]"
    ) -> list[Recording]:
        return [_joined(group[0].speaker, group, change=change) for group in groups]

    return {
        "clean": changed(halves, lambda speech: speech),
        "two-levels": list(_two_levels(by_speaker)),
        "quiet": changed(halves, lambda speech: _as_16_bit(_at_level(speech, -50.0))),
        "offset": changed(others, lambda speech: 0.02 * speech / np.abs(speech).max() + 0.06),
        "telephone": changed(halves, _telephone),
        "noise-20": changed(others, lambda speech: _with_noise(speech, 20, rng)),
        "noise-10": changed(halves, lambda speech: _with_noise(speech, 10, rng)),
        "noise-5": changed(others, lambda speech: _with_noise(speech, 5, rng)),
        "turns": list(_turns(by_speaker)),
        "overlap": list(_overlapping(by_speaker)),
        "slow": changed(halves, lambda speech: _at_speed(speech, 0.8)),
        "fast": changed(others, lambda speech: _at_speed(speech, 1.25)),
        "music": changed(halves, lambda speech: _with_music(speech, 10)),
        "pauses": [
            _joined(group[0].speaker, group, gaps=rng.uniform(4, 16, len(group)))
            for group in others
        ],
    }


def _joined(
    name: str,
    utterances: Sequence[Utterance],
    *,
    gaps: "Sequence[float] | npt.NDArray[np.float64] | None" = None,
    gains: Sequence[float] = (),
    change: "Callable[[Samples], Samples] | None" = None,
) -> Recording:
    """Utterances one after the other, `gaps` seconds behind each; a negative gap is an overlap."""
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    starts, length = [], 0
    for number, each in enumerate(utterances):
        starts.append(length)
        gap = _GAP if gaps is None else float(gaps[number])
        length += len(each.samples) + round(gap * RATE)
    ends = [start + len(each.samples) for start, each in zip(starts, utterances, strict=True)]
    samples = np.zeros(max(*ends, length), np.float32)
    for number, (start, each) in enumerate(zip(starts, utterances, strict=True)):
        gain = 10 ** (gains[number] / 20) if gains else 1.0
        samples[start : start + len(each.samples)] += gain * each.samples
    if change is not None:
        samples = change(samples).astype(np.float32)
    return Recording(name, samples, " ".join(each.text for each in utterances))


def _two_levels(by_speaker: Sequence[Sequence[Utterance]]) -> Iterator[Recording]:
    """A quiet speaker and then a loud one, in one window: 15 to 29 s."""
    for number in range(max(map(len, by_speaker))):
        for place, group in enumerate(by_speaker):
            following = by_speaker[(place + 1 + number % (len(by_speaker) - 1)) % len(by_speaker)]
            pair = (group[number % len(group)], following[(3 * number + 1) % len(following)])
            seconds = sum(len(each.samples) for each in pair) / RATE + _GAP
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
    """Two speakers in turn, each beginning half a second before the other has ended."""
    for place, group in enumerate(by_speaker):
        others = [each for each in by_speaker if each is not group]
        other = others[(place + 1) % len(others)]
        turns = [group[-1], other[0], group[-2 % len(group)], other[1 % len(other)]]
        name = f"{group[0].speaker}-{other[0].speaker}"
        yield _joined(name, turns, gaps=(-0.5, -0.5, -0.5, 0.3))


def _rms(samples: "npt.NDArray[Any]") -> float:
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _at_level(speech: "Samples", decibels: float) -> "Samples":
    """Speech whose loudest sample is at so many dB of full scale, below 0."""
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    level: Samples = speech / np.abs(speech).max() * 10 ** (decibels / 20)
    return level


def _as_16_bit(speech: "Samples") -> "Samples":
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    return (np.rint(speech * 32768) / 32768).astype(np.float32)


def _telephone(speech: "Samples") -> "Samples":
    """8 kHz, 300 to 3400 Hz, mu-law (ITU-T G.711)."""
    import numpy as np  # noqa: PLC0415 - not needed to print --help
    import soxr  # noqa: PLC0415 - not needed to print --help

    narrow = soxr.resample(speech, RATE, 8000)
    spectrum = np.fft.rfft(narrow)
    frequencies = np.fft.rfftfreq(len(narrow), 1 / 8000)
    spectrum[(frequencies < 300) | (frequencies > 3400)] = 0
    band = np.fft.irfft(spectrum, len(narrow))
    band /= max(1.0, np.abs(band).max())
    compressed = np.sign(band) * np.log1p(255 * np.abs(band)) / np.log(256)
    compressed = np.rint(compressed * 127) / 127
    expanded = np.sign(compressed) * (256 ** np.abs(compressed) - 1) / 255
    wide: Samples = soxr.resample(expanded.astype(np.float32), 8000, RATE)
    return wide


def _with_noise(speech: "Samples", decibels: float, rng: "np.random.Generator") -> "Samples":
    """Speech in pink noise, so many dB above it."""
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    spectrum = np.fft.rfft(rng.standard_normal(len(speech)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, len(speech))
    noise *= _rms(speech) / _rms(noise) * 10 ** (-decibels / 20)
    return (0.5 * (speech + noise)).astype(np.float32)


def _with_music(speech: "Samples", decibels: float) -> "Samples":
    """Speech over plucked chords, two a second, so many dB below it."""
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    times = np.arange(len(speech)) / RATE
    music = np.zeros(len(speech))
    chords = ((220.0, 261.6, 329.6), (174.6, 220.0, 261.6), (196.0, 246.9, 293.7))
    beat = (times * 2).astype(int)
    since = times - beat / 2
    for number, chord in enumerate(chords):
        sounds = (beat // 4) % len(chords) == number
        for note in chord:
            for overtone in (1, 2, 3, 4):
                wave = np.sin(2 * np.pi * note * overtone * times) * np.exp(-3 * overtone * since)
                music += sounds * wave / overtone
    music *= _rms(speech) / _rms(music) * 10 ** (-decibels / 20)
    return (0.5 * (speech + music)).astype(np.float32)


def _at_speed(speech: "Samples", speed: float) -> "Samples":
    """The same at another tempo, the pitch kept, by FFmpeg's `atempo`."""
    import av  # noqa: PLC0415 - not needed to print --help
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=RATE, format="flt", layout="mono")
    tempo = graph.add("atempo", str(speed))
    sink = graph.add("abuffersink")
    source.link_to(tempo)
    tempo.link_to(sink)
    graph.configure()
    changed = []
    for start in [*range(0, len(speech), RATE), None]:
        if start is None:
            graph.push(None)
        else:
            block = np.ascontiguousarray(speech[None, start : start + RATE], np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            graph.push(frame)
        while True:
            try:
                changed.append(graph.pull().to_ndarray()[0])
            except (av.error.BlockingIOError, av.error.EOFError):
                break
    return np.concatenate(changed)


def write_set(made: dict[str, list[Recording]], out: Path) -> int:
    """Write every part as 16-bit FLAC with its manifest; returns the number of words."""
    import soundfile  # noqa: PLC0415 - not needed to print --help

    n_words = 0
    for part, recordings in made.items():
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for recording in recordings:
            name = f"{recording.name}.flac"
            soundfile.write(folder / name, recording.samples, RATE, "PCM_16")
            lines.append(f"{part}/{name}\t{recording.text}\n")
            n_words += len(recording.text.split())
        (out / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
        seconds = sum(len(recording.samples) for recording in recordings) / RATE
        words = sum(len(recording.text.split()) for recording in recordings)
        print(f"{part}: {len(recordings)} recordings, {words} words, {seconds / 60:.1f} min")
    return n_words


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "robustness_set",
        description="Make recordings with the difficulties of real life from clean utterances.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "references",
        type=Path,
        help="a TSV manifest (audio<TAB>reference) or a LibriSpeech folder",
    )
    parser.add_argument(
        "out", type=Path, help="folder for the recordings, a manifest for each part"
    )
    return parser


def make(arguments: argparse.Namespace) -> int:
    """Make the set the command line asks for; returns the exit code."""
    n_words = write_set(parts(read_utterances(arguments.references)), arguments.out)
    print(f"{n_words} words in {arguments.out}")
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(make, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
