"""The options of a transcription, with the defaults of openai/whisper."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import inf, isnan
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio_choices import (
    MIX,
    ChannelChoice,
    TrackChoice,
    parse_track,
    require_channels,
)
from whisper_npu.runtime.languages import DETECT, language_code
from whisper_npu.spelling import did_you_mean, require_choice

PREPEND_PUNCTUATIONS = "\"'“¿([{-"
APPEND_PUNCTUATIONS = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001
Mode = Literal["auto", "sequential", "batched"]
MODES: tuple[str, ...] = get_args(Mode)
Task = Literal["transcribe", "translate"]
TASKS: tuple[str, ...] = get_args(Task)
MODEL_LIST = -1  # in `suppress_tokens`: stands for the model's own list
# These options need a whole recording: live speech does without them.
NOT_LIVE = (
    "audio_track",
    "channels",
    "part",
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
_COUNTS = ("beam_size", "best_of", "sample_len", "batch_size")
_NUMBERS = (
    *_THRESHOLDS,
    "unheard_speech_threshold",
    "max_initial_timestamp",
    "patience",
    "length_penalty",
    "vad_threshold",
    "vad_min_silence",
)
_FLAGS = ("multilingual", "word_timestamps", "without_timestamps", "suppress_blank", "vad")
_FLAGS_OR_NONE = ("condition_on_previous_text", "elastic")
_MARKS = ("prepend_punctuations", "append_punctuations")
_TEXTS = ("language", "hotwords", *_MARKS)
_NEVER_NONE = ("best_of", "batch_size", "patience", "vad_threshold", *_MARKS, *_FLAGS)
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

# Options of openai/whisper and faster-whisper that have another name or place here.
_ELSEWHERE = {
    "carry_initial_prompt": "write hotwords=, which precede every window",
    "chunk_length": "a window is as long as the model's",
    "clip_timestamps": "transcribe a part of load_audio(path)",
    "compute_type": "write load_model(precision=)",
    "fp16": "write load_model(precision=)",
    "language_detection_segments": "name the likely languages by languages=",
    "language_detection_threshold": "name the likely languages by languages=",
    "log_prob_threshold": "write logprob_threshold=",
    "log_progress": "read seconds_done of the stream",
    "max_new_tokens": "write sample_len=",
    "no_repeat_ngram_size": "a text that repeats itself is decoded again",
    "prompt": "write initial_prompt=",
    "prompt_reset_on_temperature": "text sampled above 0.5 is never a prompt",
    "repetition_penalty": "a text that repeats itself is decoded again",
    "vad_filter": "write vad=",
    "vad_parameters": "write vad_threshold= and vad_min_silence=",
    "verbose": "print the segments of the stream",
}


class TranscribeKwargs(TypedDict, total=False):
    """The options of `TranscribeOptions` by name, in every accepted form; all are optional."""

    language: str | None
    languages: Sequence[str] | None
    task: Task
    temperature: float | Sequence[float]
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    unheard_speech_threshold: float | None
    condition_on_previous_text: bool | None
    initial_prompt: str | Sequence[int] | None
    hotwords: str | None
    prefix: str | Sequence[int] | None
    multilingual: bool
    word_timestamps: bool
    prepend_punctuations: str
    append_punctuations: str
    hallucination_silence_threshold: float | None
    without_timestamps: bool
    max_initial_timestamp: float | None
    suppress_tokens: str | Sequence[int] | None
    suppress_blank: bool
    beam_size: int | None
    best_of: int
    patience: float
    length_penalty: float | None
    sample_len: int | None
    mode: Mode
    batch_size: int
    elastic: bool | None
    vad: bool
    vad_threshold: float
    vad_min_silence: float | None
    audio_track: TrackChoice
    channels: ChannelChoice
    part: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions:
    """The options of a transcription.

    Accepts every form of `TranscribeKwargs` and keeps one form: several temperatures, tokens and
    languages become tuples.

    Attributes:
        language: language code (of ISO 639, with or without a region) or English name; None, or
            `auto`, which becomes None, detects it (multilingual models).
        languages: codes or English names of the possible languages; only these are detected; None:
            all that the model knows.
        task: `transcribe`, or `translate` into English.
        temperature: a temperature, or several to try in turn while a window looks wrong.
        compression_ratio_threshold: a window whose text compresses better is a loop; None: never.
        logprob_threshold: a window less probable on average looks wrong; None: never.
        no_speech_threshold: a window more probably without speech, and improbable as text, is
            skipped; None: never.
        unheard_speech_threshold: seconds of speech without a word that mark a text as incomplete:
            its window is decoded with timestamps, and then in parts; None: never.
        condition_on_previous_text: give the decoder the text of the window before. In sequential
            mode every window gets it. In batched mode every other window gets it, and half of the
            windows must wait for the other half. Live speech gets the text before it, too. None:
            yes, except in batched mode: there only with an explicit `f32`, and not with
            `multilingual`, because other precisions, and `auto`, are for speed.
        initial_prompt: text, or its token ids, that the decoder gets before the first window
            (sequential mode) or before every window (batched mode).
        hotwords: names and terms that the decoder gets before every window.
        prefix: text, or its token ids, that the transcript begins with; part of the result.
        multilingual: detect the language of every window, and end windows at short pauses, for
            recordings in several languages.
        word_timestamps: give every word its time; needs the folder's alignment graph.
        prepend_punctuations: marks that count as part of the word after them.
        append_punctuations: marks that count as part of the word before them.
        hallucination_silence_threshold: seconds of silence around text with unusual word times
            that mark it as hallucinated, so that it is left out; needs `word_timestamps`.
        without_timestamps: sample text only; a segment is then a whole window.
        max_initial_timestamp: latest start of a window's first segment, in seconds.
        suppress_tokens: ids of tokens never sampled, as a list or as text with commas; -1 stands
            for the model's own list; None: only that list. An empty list suppresses nothing.
        suppress_blank: never begin a transcript with a blank.
        beam_size: beams at temperature 0; None decodes greedily.
        best_of: samples per window at a temperature above 0.
        patience: beam search waits for `patience` times `beam_size` finished candidates.
        length_penalty: Google NMT's alpha; None divides by the length.
        sample_len: most tokens sampled per window; None: as many as the context holds.
        mode: `sequential`: each window begins where the last window's timestamps end, and gets its
            text; `batched`: windows are cut at pauses and decoded together; `auto`: batched, with
            two exceptions. Recordings of one window are sequential with an explicit `f32`, which
            promises PyTorch's tokens, and without timestamps. Without `vad` all recordings are
            sequential, unless without timestamps.
        batch_size: windows decoded together, in each stream; a batch may take up to a quarter more,
            so that no small batch follows.
        elastic: pad a window shorter than the encoder's with 4 s of silence (3 s in tiny models)
            instead of filling it up, which is faster. A window that then looks wrong is decoded
            again as a whole window. None: yes, except with an explicit `f32`, which promises
            PyTorch's tokens.
        vad: skip audio without speech. Windows end at long pauses, or leave them out. Without it,
            all audio is decoded; the speech detector still finds texts that leave out speech.
        vad_threshold: probability from which a stretch is speech, above 0 and below 1.
        vad_min_silence: seconds without speech that are skipped; None: 3, and 0.5 with
            `multilingual`, with which no window goes on after them.
        audio_track: a number from 1 or a language, to choose among several audio tracks; None: the
            default track, else the first, and a warning names the others; `all`: each separately.
        channels: `mix`: the mean of all, or the loudest where they cancel each other; `left`,
            `right`: the first or second; `split`: each separately. Segments of separate channels
            and tracks are merged by time and name their `channel`.
        part: start and end in seconds: only the windows whose speech begins in between are decoded;
            what comes before is read, and no text depends on it. The parts of a recording, in
            order, have the segments of the whole, numbered anew. A part needs a language, and
            windows that are not given the text before them (an explicit `f32` gives it).
    """

    language: str | None = None
    languages: tuple[str, ...] | None = None
    task: Task = "transcribe"
    temperature: Sequence[float] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    unheard_speech_threshold: float | None = 1.0
    condition_on_previous_text: bool | None = None
    initial_prompt: str | tuple[int, ...] | None = None
    hotwords: str | None = None
    prefix: str | tuple[int, ...] | None = None
    multilingual: bool = False
    word_timestamps: bool = False
    prepend_punctuations: str = PREPEND_PUNCTUATIONS
    append_punctuations: str = APPEND_PUNCTUATIONS
    hallucination_silence_threshold: float | None = None
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    suppress_tokens: tuple[int, ...] | None = None
    suppress_blank: bool = True
    beam_size: int | None = None
    best_of: int = 5
    patience: float = 1.0
    length_penalty: float | None = None
    sample_len: int | None = None
    mode: Mode = "auto"
    batch_size: int = 8
    elastic: bool | None = None
    vad: bool = True
    vad_threshold: float = 0.5
    vad_min_silence: float | None = None
    audio_track: TrackChoice = None
    channels: ChannelChoice = MIX
    part: tuple[float, float] | None = None

    if TYPE_CHECKING:  # more forms are accepted than kept

        def __init__(self, **options: Unpack[TranscribeKwargs]) -> None:
            """See the attributes."""

    def __post_init__(self) -> None:
        """Convert values to one form; refuse values that cannot work.

        Raises:
            UsageError: a value is of a wrong type or out of range.
        """
        self._check_types()
        self._settle_lists()
        self._settle_language()
        self._settle_audio()
        require_choice("task", self.task, TASKS)
        _check_texts(self)
        require_choice("mode", self.mode, MODES)
        for name in _COUNTS:
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
        if self.part is not None:
            self._settle_part(self.part)

    def digest(self) -> str:
        """Return a digest of the options that a text can depend on.

        It leaves `batch_size` out: a text is the same in every batch.
        """
        values = {name: value for name, value in vars(self).items() if name != "batch_size"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def _check_types(self) -> None:
        for names, kind, described in (
            (_COUNTS, Integral, "a whole number"),
            (_NUMBERS, Real, "a number"),
            (_TEXTS, str, "text"),
            ((*_FLAGS, *_FLAGS_OR_NONE), bool, "True or False"),  # "no" would count as true
        ):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) and (value is not None or name in _NEVER_NONE):
                    raise UsageError(f"{name} is {value!r}; give {described}")

    def _settle_lists(self) -> None:
        """Convert a single number, text with commas, and any list to a tuple."""
        given: Any = self.temperature
        temperatures = _tuple((given,) if isinstance(given, Real) else given, Real)
        if not temperatures or any(not 0 <= each <= 2 for each in temperatures):
            raise UsageError("temperature takes one or more numbers from 0 to 2")
        self._keep("temperature", tuple(map(float, temperatures)))
        for name in ("initial_prompt", "prefix"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, str):
                tokens = _tuple(given, Integral)
                if tokens is None:
                    raise UsageError(f"{name} is {given!r}; give text or a list of token ids")
                self._keep(name, tuple(map(int, tokens)))
        if self.suppress_tokens is not None:
            tokens = _tuple(_split(self.suppress_tokens), Integral)
            if tokens is None:
                raise UsageError(
                    f"suppress_tokens is {self.suppress_tokens!r}; give token ids, as a list or as "
                    "text with commas"
                )
            is_default = set(tokens) == {MODEL_LIST}
            self._keep("suppress_tokens", None if is_default else tuple(map(int, tokens)))
        if self.languages is not None:
            languages = _tuple(self.languages, str)
            if not languages:
                raise UsageError("languages takes a list of codes or English names")
            self._keep("languages", languages)

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

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
            self._keep("language", None)
        else:
            language_code(self.language)

    def _settle_part(self, given: object) -> None:
        part = _tuple(given, Real)
        if part is None or len(part) != 2 or not 0 <= part[0] < part[1]:
            raise UsageError(f"part is {given!r}; give its start and end in seconds")
        self._keep("part", (float(part[0]), float(part[1])))
        for name, hinders in (
            ("sequential mode", self.mode == "sequential" or not self.vad),
            ("condition_on_previous_text", self.condition_on_previous_text),
            ("prefix", self.prefix is not None),
            ("multilingual", self.multilingual),
        ):
            if hinders:
                raise UsageError(f"a part is decoded without what comes before: not with {name}")

    def _settle_audio(self) -> None:
        require_channels(self.channels)
        if self.audio_track is not None:
            self._keep("audio_track", parse_track(str(self.audio_track)))

    def _refuse_contradictions(self) -> None:
        silence = self.hallucination_silence_threshold
        if silence is not None and not self.word_timestamps:
            raise UsageError("hallucination_silence_threshold judges words: set word_timestamps")
        if not self.vad and self.mode == "batched":
            raise UsageError("batched mode cuts windows at pauses: it needs vad")
        if not self.vad and self.vad_min_silence is not None:
            raise UsageError("vad_min_silence is for skipped silence: it needs vad")
        if not self.vad and self.multilingual:
            raise UsageError("multilingual cuts windows at pauses: it needs vad")
        if self.multilingual and self.language is not None:
            raise UsageError("multilingual detects languages: give no language")
        if self.languages is not None and self.language is not None:
            raise UsageError("languages limits detection: give no language with it")


def unknown_option(name: str) -> UsageError:
    """Return the error for an unknown option; it names the option to use instead, if known.

    Args:
        name: of the option.
    """
    known = [each.name for each in fields(TranscribeOptions)]
    if name in _ELSEWHERE:
        return UsageError(f"unknown option {name}: {_ELSEWHERE[name]}; see docs/coming-from.md")
    hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
    return UsageError(f"unknown option {name}{hint}")


def _check_texts(options: TranscribeOptions) -> None:
    """Refuse texts that cannot be encoded: bytes that are not UTF-8 become lone surrogates."""
    for name in ("initial_prompt", "hotwords", "prefix"):
        value = getattr(options, name)
        try:
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name} is not valid UTF-8; write it anew in UTF-8") from None


def _split(value: object) -> object:
    """Return the whole numbers in a text with commas; return other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        return value


def _tuple(value: Any, kind: type) -> tuple[Any, ...] | None:
    """Return the values of a list or another iterable; None if not all of them are of `kind`."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return None
    values = tuple(value)
    return values if all(isinstance(each, kind) for each in values) else None
