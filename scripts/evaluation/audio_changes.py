"""Changes speech as real life does: level, telephone, noise, music, tempo.

Samples are float32 `(n,)`, mono, 16 kHz, full scale at 1.
"""

import av
import numpy as np
import numpy.typing as npt
import soxr

from whisper_npu.runtime.audio.stream import SAMPLE_RATE

Samples = npt.NDArray[np.float32]


def _rms(samples: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def at_level(speech: Samples, decibels: float) -> Samples:
    """Speech whose loudest sample is at `decibels` of full scale, below 0."""
    level: Samples = speech / np.abs(speech).max() * 10 ** (decibels / 20)
    return level


def as_16_bit(speech: Samples) -> Samples:
    """Speech rounded to 16 bits."""
    return (np.rint(speech * 32768) / 32768).astype(np.float32)


def telephone(speech: Samples) -> Samples:
    """Speech through a telephone: 8 kHz, 300 to 3400 Hz, mu-law (ITU-T G.711)."""
    narrow = soxr.resample(speech, SAMPLE_RATE, 8000)
    spectrum = np.fft.rfft(narrow)
    frequencies = np.fft.rfftfreq(len(narrow), 1 / 8000)
    spectrum[(frequencies < 300) | (frequencies > 3400)] = 0
    band = np.fft.irfft(spectrum, len(narrow))
    band /= max(1.0, np.abs(band).max())
    compressed = np.sign(band) * np.log1p(255 * np.abs(band)) / np.log(256)
    compressed = np.rint(compressed * 127) / 127
    expanded = np.sign(compressed) * (256 ** np.abs(compressed) - 1) / 255
    wide: Samples = soxr.resample(expanded.astype(np.float32), 8000, SAMPLE_RATE)
    return wide


def with_noise(speech: Samples, decibels: float, rng: np.random.Generator) -> Samples:
    """Speech in pink noise, `decibels` above the noise."""
    spectrum = np.fft.rfft(rng.standard_normal(len(speech)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, len(speech))
    noise *= _rms(speech) / _rms(noise) * 10 ** (-decibels / 20)
    return (0.5 * (speech + noise)).astype(np.float32)


def with_music(speech: Samples, decibels: float) -> Samples:
    """Speech over two plucked chords per second, which are `decibels` below the speech."""
    times = np.arange(len(speech)) / SAMPLE_RATE
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


def at_speed(speech: Samples, speed: float) -> Samples:
    """Speech at another tempo with the same pitch, by FFmpeg's `atempo`."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono")
    tempo = graph.add("atempo", str(speed))
    sink = graph.add("abuffersink")
    source.link_to(tempo)
    tempo.link_to(sink)
    graph.configure()
    changed = []
    for start in [*range(0, len(speech), SAMPLE_RATE), None]:
        if start is None:
            graph.push(None)
        else:
            block = np.ascontiguousarray(speech[None, start : start + SAMPLE_RATE], np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            graph.push(frame)
        while True:
            try:
                changed.append(graph.pull().to_ndarray()[0])
            except (av.error.BlockingIOError, av.error.EOFError):
                break
    return np.concatenate(changed)
