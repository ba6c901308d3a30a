"""Word times of real speech, against words timed by others."""

import json
import re
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import soundfile

from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.log_mel import HOP_LENGTH, log_mel_spectrogram
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.text.segments import split_at_timestamps
from whisper_npu.runtime.text.tokenizer import Tokenizer, read_vocabulary, sot_sequence
from whisper_npu.runtime.timestamps.alignment import attention_delay
from whisper_npu.runtime.timestamps.hallucinations import is_segment_anomaly
from whisper_npu.runtime.timestamps.words import add_word_timestamps
from whisper_npu.runtime.timing import StageTimes


class Model:
    """A model folder, used without the loop over windows."""

    def __init__(self, path: Path) -> None:
        folder = read_model_folder(path)
        self.backend = OpenVINOBackend(folder, precision="f32")
        self.tokenizer = Tokenizer(folder.tokenizer)
        self.attention_delay = attention_delay(folder.alignment_heads)
        self.vocabulary = read_vocabulary(folder, self.tokenizer)

    def transcribe(self, samples: Float32Array, language: str) -> list[Segment]:
        """The segments of one window, with words."""
        n_frames = len(samples) // HOP_LENGTH
        window_frames = 2 * self.backend.n_audio_ctx
        padded = np.pad(samples, (0, window_frames * HOP_LENGTH))
        features = log_mel_spectrogram(padded, self.backend.n_mels)[:, :window_frames]
        audio = self.backend.encode(features[None])
        vocabulary, tokenizer = self.vocabulary, self.tokenizer
        options = DecodingOptions(
            language=language,
            suppress_tokens=vocabulary.suppress,
            suppress_first=vocabulary.begin_suppress,
        )
        times = StageTimes()
        decoded = decode_windows(self.backend, tokenizer, vocabulary, audio, options, times)[0]
        special = tokenizer.special
        parts, _ = split_at_timestamps(decoded.tokens, special.timestamp_begin, n_frames)
        segments = [
            Segment(
                id=0,
                seek=0,
                start=part.start,
                end=part.end,
                text=tokenizer.decode(part.tokens),
                tokens=part.tokens,
                temperature=0.0,
                avg_logprob=decoded.avg_logprob,
                compression_ratio=decoded.compression_ratio,
                no_speech_prob=decoded.no_speech_prob,
            )
            for part in parts
        ]
        return add_word_timestamps(
            segments,
            audio,
            backend=self.backend,
            tokenizer=tokenizer,
            language=language,
            sot_sequence=sot_sequence(
                special,
                is_multilingual=vocabulary.is_multilingual,
                language=language,
                task="transcribe",
            ),
            n_frames=n_frames,
            in_recording=lambda start, end: (start, end),
            attention_delay=self.attention_delay,
        )


def _start_errors(model: Model, clip: dict, folder: Path) -> list[float]:
    """Seconds by which words begin off their time, of the words that were understood."""
    samples, rate = soundfile.read(folder / clip["audio"], dtype="float32")
    assert rate == 16000
    segments = model.transcribe(samples, clip["language"])
    words = [word for segment in segments for word in segment.words or ()]
    assert "".join(word.word for word in words) == "".join(s.text for s in segments)

    def plain(text: str) -> str:
        return re.sub(r"[^\w']", "", text.lower())

    found, expected = [plain(w.word) for w in words], [plain(w["word"]) for w in clip["words"]]
    blocks = SequenceMatcher(None, found, expected, autojunk=False).get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    assert len(pairs) >= 0.6 * len(expected)
    return [abs(words[i].start - clip["words"][j]["start"]) for i, j in pairs]


def _clips(folder: Path) -> list[dict]:
    clips: list[dict] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return clips


def test_tiny_en_times_words(tiny_en_folder: Path, shared_audio: Path) -> None:
    folder = shared_audio / "words"
    (clip,) = (clip for clip in _clips(folder) if clip["language"] == "en")
    errors = _start_errors(Model(tiny_en_folder), clip, folder)
    assert np.median(errors) <= 0.08
    assert np.percentile(errors, 90) <= 0.20


def test_base_times_words_in_three_languages(base_folder: Path, shared_audio: Path) -> None:
    folder = shared_audio / "words"
    model = Model(base_folder)
    errors = [error for clip in _clips(folder) for error in _start_errors(model, clip, folder)]
    assert np.median(errors) <= 0.05
    assert np.percentile(errors, 90) <= 0.15


def test_pauses_belong_to_no_word(tiny_en_folder: Path, beckett: Path) -> None:
    """Six short sentences with pauses between: the words are shorter than the recording."""
    samples, _ = soundfile.read(beckett, dtype="float32")
    segments = Model(tiny_en_folder).transcribe(samples, "en")
    words = [word for segment in segments for word in segment.words or ()]
    assert len(words) == 12
    assert all(0 <= word.start <= word.end <= len(samples) / 16000 for word in words)
    assert sum(word.end - word.start for word in words) < 0.7 * len(samples) / 16000
    assert not any(is_segment_anomaly(segment) for segment in segments)
