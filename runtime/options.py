"""The options of a transcription, with the defaults of openai/whisper."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio_choices import (
    MIX,
    TrackChoice,
    parse_track,
    require_channels,
)
from whisper_npu.runtime.languages import DETECT, language_code

PREPEND_PUNCTUATIONS = "\"'“¿([{-"
APPEND_PUNCTUATIONS = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
MODES = ("auto", "sequential", "batched")
TASKS = ("transcribe", "translate")
# Options that need a whole recording: live speech does without them.
NOT_LIVE = (
    "audio_track",
    "channels",
    "prefix",
    "mode",
    "batch_size",
    "word_timestamps",
    "prepend_punctuations",
    "append_punctuations",
    "hallucination_silence_threshold",
    "max_initial_timestamp",
    "unheard_speech_threshold",
)
_THRESHOLDS = (
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "hallucination_silence_threshold",
)
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class TranscribeOptions:
    """What is to be transcribed, and how.

    Attributes:
        language: language code (of ISO 639, with or without a region) or English name; None, or
            `auto`, which becomes None, detects it (multilingual models).
        languages: codes or English names of those it can be, to be detected among these only; None:
            any the model knows.
        task: `transcribe`, or `translate` into English.
        temperature: temperatures to try in turn while a window looks wrong.
        compression_ratio_threshold: a window whose text compresses better is a loop; None: never.
        logprob_threshold: a window less probable on average looks wrong; None: never.
        no_speech_threshold: a window more probably without speech, and improbable as text, is
            skipped; None: never.
        unheard_speech_threshold: seconds of speech without a word from which a text leaves out
            speech: its window is decoded with timestamps, and then in parts; None: never.
        condition_on_previous_text: give the decoder the text of the window before: every window
            in sequential mode, every other one in batched mode, for which half of the windows have
            to wait for the other half. Live speech is given the text before it, too. None: yes,
            but in batched mode only in f32 by name, and not with `multilingual`; other precisions,
            and `auto`, are for speed.
        initial_prompt: text the decoder is given before the first window (sequential mode) or
            before every window (batched mode).
        hotwords: names and terms the decoder is given before every window.
        prefix: what the transcript begins with; it is part of the result.
        multilingual: detect the language of every window, and end windows at short pauses, for
            recordings in several languages.
        word_timestamps: give every word its time; needs the folder's alignment graph.
        prepend_punctuations: marks that count as part of the word behind them.
        append_punctuations: marks that count as part of the word before them.
        hallucination_silence_threshold: seconds of silence around text that sits strangely in
            time at which it is taken for made up and left out; needs `word_timestamps`.
        without_timestamps: sample text only; a segment is then a whole window.
        max_initial_timestamp: seconds into a window at which its first segment begins at most.
        suppress_tokens: tokens never sampled, -1 meaning those of the model's list; None is that
            list alone.
        suppress_blank: never begin a transcript with a blank.
        beam_size: beams at temperature 0; None decodes greedily.
        best_of: samples per window at a temperature above 0.
        patience: how many times `beam_size` finished candidates beam search waits for.
        length_penalty: Google NMT's alpha; None divides by the length.
        sample_len: tokens sampled per window at most; None for what the context holds.
        mode: `sequential`: each window begins where the last one's timestamps end, and is given
            its text; `batched`: windows are cut at pauses and decoded together; `auto`: batched,
            but sequential for recordings of one window in f32 by name, where it gives PyTorch's
            tokens, or without timestamps, and for all without `vad` unless without timestamps.
        batch_size: windows decoded together, in each stream; up to a quarter more where only so
            few would be left.
        elastic: encode a window shorter than the encoder's with 4 s of silence behind it (3 s in
            tiny models) instead of filling it up, which is faster; what looks wrong then is decoded
            again as a whole window. None: unless the precision is f32 by name, which promises
            PyTorch's tokens.
        vad: pass over audio without speech, and end windows at long pauses. Without, all audio is
            decoded; the speech detector still tells whether a text leaves out speech.
        vad_threshold: probability from which a stretch is speech, above 0 and below 1.
        vad_min_silence: seconds without speech that end a window and are passed over; None: 3, and
            0.5 with `multilingual`.
        audio_track: of several audio tracks, a number from 1 or a language; None: the one marked as
            default, else the first, and a warning tells of the others; `all`: each on its own.
        channels: `mix`: the mean of all, or the loudest where they cancel each other; `left`,
            `right`: the first or second; `split`: each on its own. Segments of channels and tracks
            on their own are merged by time and name their `channel`.
    """

    language: str | None = None
    languages: Sequence[str] | None = None
    task: str = "transcribe"
    temperature: Sequence[float] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    unheard_speech_threshold: float | None = 1.0
    condition_on_previous_text: bool | None = None
    initial_prompt: str | None = None
    hotwords: str | None = None
    prefix: str | None = None
    multilingual: bool = False
    word_timestamps: bool = False
    prepend_punctuations: str = PREPEND_PUNCTUATIONS
    append_punctuations: str = APPEND_PUNCTUATIONS
    hallucination_silence_threshold: float | None = None
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    suppress_tokens: Sequence[int] | None = None
    suppress_blank: bool = True
    beam_size: int | None = None
    best_of: int = 5
    patience: float = 1.0
    length_penalty: float | None = None
    sample_len: int | None = None
    mode: str = "auto"
    batch_size: int = 8
    elastic: bool | None = None
    vad: bool = True
    vad_threshold: float = 0.5
    vad_min_silence: float | None = None
    audio_track: TrackChoice = None
    channels: str = MIX

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: a value is out of range.
        """
        self._settle_language()
        self._settle_audio()
        if self.task not in TASKS:
            raise UsageError(f"task is {self.task!r}; give {' or '.join(TASKS)}")
        if not self.temperature or any(not 0 <= t <= 2 for t in self.temperature):
            raise UsageError("temperature takes one or more numbers from 0 to 2")
        _check_texts(self)
        if self.mode not in MODES:
            raise UsageError(f"mode is {self.mode!r}; give {', '.join(MODES)}")
        for name in ("beam_size", "best_of", "sample_len", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")
        if not 0 < self.patience < inf:
            raise UsageError(f"patience is {self.patience}; give a number above 0")
        if self.beam_size is not None and round(self.beam_size * self.patience) < 1:
            raise UsageError(
                f"patience {self.patience} waits for none of {self.beam_size} beams; "
                f"give {1 / self.beam_size:.2g} or more"
            )
        for name in _THRESHOLDS:
            value = getattr(self, name)
            if value is not None and isnan(value):
                raise UsageError(f"{name} is no number; give one, or None to switch it off")
        if self.length_penalty is not None and not 0 <= self.length_penalty <= 1:
            raise UsageError(f"length_penalty is {self.length_penalty}; give a number from 0 to 1")
        limit = self.max_initial_timestamp
        if limit is not None and not 0 <= limit < inf:
            raise UsageError(f"max_initial_timestamp is {limit}; give seconds, 0 or more, or None")
        self._refuse_wrong_vad_options()
        self._refuse_contradictions()

    def _refuse_wrong_vad_options(self) -> None:
        unheard = self.unheard_speech_threshold
        if unheard is not None and not 0 < unheard < inf:
            raise UsageError(
                f"unheard_speech_threshold is {unheard}; give seconds above 0, or None for never"
            )
        if not 0 < self.vad_threshold < 1:
            raise UsageError(
                f"vad_threshold is {self.vad_threshold}; give a probability above 0 and below 1"
            )
        pause = self.vad_min_silence
        if pause is not None and not 0.1 <= pause < inf:
            raise UsageError(f"vad_min_silence is {pause}; give 0.1 seconds or more, or None")

    def _settle_language(self) -> None:
        if self.language is None:
            return
        if not self.language.strip():
            raise UsageError(f"language is empty; give one, or {DETECT} to detect it")
        if self.language.strip().lower() == DETECT:
            object.__setattr__(self, "language", None)
        else:
            language_code(self.language)

    def _settle_audio(self) -> None:
        require_channels(self.channels)
        if self.audio_track is not None:
            object.__setattr__(self, "audio_track", parse_track(str(self.audio_track)))

    def _refuse_contradictions(self) -> None:
        silence = self.hallucination_silence_threshold
        if silence is not None and not self.word_timestamps:
            raise UsageError("hallucination_silence_threshold judges words: set word_timestamps")
        if not self.vad and self.mode == "batched":
            raise UsageError("batched mode cuts windows at pauses: it cannot do without vad")
        if not self.vad and self.vad_min_silence is not None:
            raise UsageError("vad_min_silence is for silence passed over: it needs vad")
        if not self.vad and self.multilingual:
            raise UsageError("multilingual cuts windows at pauses: it cannot do without vad")
        if self.multilingual and self.language is not None:
            raise UsageError("multilingual detects languages: do not give one")
        if self.languages is not None:
            if self.language is not None:
                raise UsageError("languages are those to detect: give no language beside them")
            if isinstance(self.languages, str) or not self.languages:
                raise UsageError("languages takes a list of codes or English names")


def _check_texts(options: TranscribeOptions) -> None:
    """Refuse texts that cannot be encoded: bytes that are not UTF-8 come as lone surrogates."""
    for name in ("initial_prompt", "hotwords", "prefix"):
        try:
            (getattr(options, name) or "").encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name} is not valid UTF-8; write it anew in UTF-8") from None
