"""The options on model, device and decoding that the command-line programs share.

Names are openai/whisper's where it has the option.
"""

import argparse

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio_choices import CHANNEL_CHOICES
from whisper_npu.runtime.languages import LANGUAGES
from whisper_npu.runtime.options import (
    APPEND_PUNCTUATIONS,
    MODES,
    NOT_LIVE,
    PREPEND_PUNCTUATIONS,
    TASKS,
    TranscribeOptions,
)
from whisper_npu.scripts.common import cli

# Spelt out, so that `--help` loads no engine.
BACKENDS = ("openvino", "onnxruntime")
KV_CACHES = ("auto", "stateful", "concat", "static", "off")
_LEAST_STEP = 0.01  # between temperatures
PRECISIONS = ("auto", "f32", "bf16", "f16", "int8")


def add_model_options(parser: argparse.ArgumentParser, *, kv_cache: bool = True) -> None:
    """Add `--model`, `--device`, `--backend`, `--kv-cache`, `--precision` and `--threads`.

    Args:
        parser: the command line.
        kv_cache: with `--kv-cache`; a program that uses every kind does without.
    """
    group = parser.add_argument_group("model and device")
    group.add_argument(
        "--model",
        default=cli.DEFAULT_MODEL,
        metavar="DIR",
        help="model folder, or a built-in model exported on first use (default: %(default)s)",
    )
    group.add_argument(
        "--device",
        default="CPU",
        help="CPU, GPU, NPU, NPU_EMULATED, AUTO; never replaced by another (default: %(default)s)",
    )
    group.add_argument(
        "--backend",
        default="openvino",
        choices=BACKENDS,
        help="what runs the graphs (default: %(default)s)",
    )
    if kv_cache:
        group.add_argument(
            "--kv-cache",
            default="auto",
            choices=KV_CACHES,
            help="who keeps the decoder's past: the device (stateful), the host (concat, static), "
            "nobody (off: slow, for comparison); auto takes the fastest",
        )
    group.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="arithmetic; f32 reproduces PyTorch token by token; int8 has matrices in 8 bits and "
        "the rest in bf16 or f32; auto is int8 where the stateful cache runs on a processor that "
        "multiplies in 8 bits (VNNI), f16 on an NPU, else f32",
    )
    group.add_argument(
        "--threads", type=int, default=0, help="processor threads; 0 is one per core (default)"
    )


_CONTEXT_LIVE = "give what is heard the text before it (default: True)"
_CONTEXT = (
    "give a window the text before it: each in sequential mode, every other one in batched mode, "
    "which makes fewer errors and takes a fifth longer with a single short recording (default: "
    "True, but in batched mode only with --precision f32, and not with --multilingual)"
)


class _ListLanguages(argparse.Action):
    """Prints the languages, one a line, and ends the program, as `--help` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        print("\n".join(f"{code}\t{name}" for code, name in LANGUAGES.items()))
        parser.exit()


def add_decoding_options(parser: argparse.ArgumentParser, *, live: bool = False) -> None:
    """Add everything that `decoding_options` reads; live, without what needs a whole recording."""
    what = parser.add_argument_group("what to transcribe")
    what.add_argument(
        "--language",
        help="code (de, pt-BR, cmn) or English name; auto detects it (default: auto)",
    )
    what.add_argument(
        "--list-languages", action=_ListLanguages, nargs=0, help="print what --language takes"
    )
    what.add_argument(
        "--languages",
        type=cli.names,
        metavar="A,B,...",
        help="codes or English names of those it can be: makes detection surer, above all of short "
        "phrases (default: any the model knows)",
    )
    what.add_argument("--task", default="transcribe", choices=TASKS, help="translate: into English")
    what.add_argument(
        "--multilingual",
        action="store_true",
        help="detect the language again at every pause, for recordings in several languages",
    )
    what.add_argument(
        "--initial-prompt", metavar="TEXT", help="text before the recording, to set names and style"
    )
    what.add_argument(
        "--hotwords", metavar="TEXT", help="names and terms to expect, given to every window"
    )
    what.add_argument(
        "--without-timestamps", action="store_true", help="text only, one segment per window"
    )
    what.add_argument(
        "--max-initial-timestamp",
        type=cli.optional(float),
        default=1.0,
        metavar="SECONDS",
        help="how late in a window its first segment may begin (default: %(default)s)",
    )

    long = parser.add_argument_group("long recordings")
    cli.add_flag(
        long,
        "--vad",
        default=True,
        help="pass over audio without speech (default: %(default)s)",
    )
    long.add_argument(
        "--vad-threshold",
        type=float,
        default=TranscribeOptions.vad_threshold,
        metavar="PROBABILITY",
        help="a stretch that is more probably speech than this is decoded; less finds more, noise "
        "included (default: %(default)s)",
    )
    long.add_argument(
        "--vad-min-silence",
        type=cli.optional(float),
        metavar="SECONDS",
        help="silence that is passed over, and ends a window (default: 3, and 0.5 with "
        "--multilingual)",
    )
    cli.add_flag(
        long,
        "--elastic",
        help="encode short recordings as what they are, not as 30 s: faster; what looks wrong then "
        "is decoded again (default: True, but False with --precision f32, which promises "
        "PyTorch's tokens)",
    )
    cli.add_flag(
        long,
        "--condition-on-previous-text",
        help=_CONTEXT_LIVE if live else _CONTEXT,
    )

    if live:
        usual = TranscribeOptions()
        parser.set_defaults(**{name: getattr(usual, name) for name in NOT_LIVE})
    else:
        _add_recording_options(what, long)

    how = parser.add_argument_group("decoding")
    how.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    how.add_argument(
        "--temperature-increment-on-fallback",
        type=cli.optional(float),
        default=0.2,
        metavar="STEP",
        help="how far to raise it when a window looks wrong; None: not (default: %(default)s)",
    )
    how.add_argument(
        "--compression-ratio-threshold",
        type=cli.optional(float),
        default=2.4,
        metavar="RATIO",
        help="text that zlib compresses better than this is a loop (default: %(default)s)",
    )
    how.add_argument(
        "--logprob-threshold",
        type=cli.optional(float),
        default=-1.0,
        metavar="LOGPROB",
        help="text less probable on average looks wrong (default: %(default)s)",
    )
    how.add_argument(
        "--no-speech-threshold",
        type=cli.optional(float),
        default=0.6,
        metavar="PROBABILITY",
        help="more probably silence than this, and improbable as text: skipped "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--suppress-tokens",
        default="-1",
        metavar="IDS",
        help="token ids never sampled, separated by commas; -1 is the model's list (default)",
    )
    how.add_argument(
        "--beam-size", type=cli.optional(int), metavar="N", help="beam search (default: greedy)"
    )
    how.add_argument(
        "--best-of", type=int, default=5, metavar="N", help="samples when temperature is above 0"
    )
    how.add_argument(
        "--patience", type=float, default=1.0, help="of beam search (default: %(default)s)"
    )
    how.add_argument(
        "--length-penalty",
        type=cli.optional(float),
        metavar="ALPHA",
        help="Google NMT's, in ranking candidates (default: divide by length)",
    )


def _add_recording_options(what: argparse._ArgumentGroup, long: argparse._ArgumentGroup) -> None:
    """Add the options that need a whole recording: `NOT_LIVE`."""
    what.add_argument(
        "--audio-track",
        metavar="N|LANGUAGE|all",
        help="of several audio tracks, which: a number from 1, a language, or all, each on its own "
        "(default: the one marked as default)",
    )
    what.add_argument(
        "--channels",
        default=TranscribeOptions.channels,
        choices=CHANNEL_CHOICES,
        help="mix: the mean of all; split: each on its own, for calls with one party on each "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--prefix", metavar="TEXT", help="what the transcript begins with; part of the text"
    )
    cli.add_flag(
        what,
        "--word-timestamps",
        default=False,
        help="give every word its time (default: %(default)s)",
    )
    what.add_argument(
        "--prepend-punctuations",
        default=PREPEND_PUNCTUATIONS,
        metavar="MARKS",
        help="punctuation that counts as part of the word behind it",
    )
    what.add_argument(
        "--append-punctuations",
        default=APPEND_PUNCTUATIONS,
        metavar="MARKS",
        help="punctuation that counts as part of the word before it",
    )
    what.add_argument(
        "--hallucination-silence-threshold",
        type=cli.optional(float),
        metavar="SECONDS",
        help="leave out text that sits strangely in time with that much silence around it; "
        "needs --word-timestamps",
    )
    what.add_argument(
        "--unheard-speech-threshold",
        type=cli.optional(float),
        default=TranscribeOptions.unheard_speech_threshold,
        metavar="SECONDS",
        help="a window with so many seconds of speech without text is decoded again, with "
        "timestamps and then in parts (default: %(default)s)",
    )
    long.add_argument(
        "--mode",
        default="auto",
        choices=MODES,
        help="sequential: window after window, each with the text before it; batched: windows cut "
        "at pauses, decoded together; auto: batched, but sequential up to 30 s with --precision "
        "f32 or without timestamps, and with --vad False (default)",
    )
    long.add_argument(
        "--batch-size",
        type=int,
        default=TranscribeOptions.batch_size,
        metavar="N",
        help="windows decoded together in batched mode, in each stream; up to a quarter more where "
        "only so few would be left (default: %(default)s)",
    )


def decoding_options(arguments: argparse.Namespace) -> TranscribeOptions:
    """The options that the command line asks for.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """
    return TranscribeOptions(
        language=arguments.language,
        languages=arguments.languages,
        task=arguments.task,
        multilingual=arguments.multilingual,
        initial_prompt=arguments.initial_prompt,
        hotwords=arguments.hotwords,
        prefix=arguments.prefix,
        word_timestamps=arguments.word_timestamps,
        prepend_punctuations=arguments.prepend_punctuations,
        append_punctuations=arguments.append_punctuations,
        hallucination_silence_threshold=arguments.hallucination_silence_threshold,
        without_timestamps=arguments.without_timestamps,
        max_initial_timestamp=arguments.max_initial_timestamp,
        mode=arguments.mode,
        batch_size=arguments.batch_size,
        elastic=arguments.elastic,
        vad=arguments.vad,
        vad_threshold=arguments.vad_threshold,
        vad_min_silence=arguments.vad_min_silence,
        audio_track=arguments.audio_track,
        channels=arguments.channels,
        condition_on_previous_text=arguments.condition_on_previous_text,
        temperature=_ladder(arguments.temperature, arguments.temperature_increment_on_fallback),
        compression_ratio_threshold=arguments.compression_ratio_threshold,
        logprob_threshold=arguments.logprob_threshold,
        no_speech_threshold=arguments.no_speech_threshold,
        unheard_speech_threshold=arguments.unheard_speech_threshold,
        suppress_tokens=_token_ids(arguments.suppress_tokens),
        beam_size=arguments.beam_size,
        best_of=arguments.best_of,
        patience=arguments.patience,
        length_penalty=arguments.length_penalty,
    )


def _ladder(start: float, step: float | None) -> tuple[float, ...]:
    """Temperatures from `start` to 1 in steps."""
    if step is None:
        return (start,)
    if not step >= _LEAST_STEP:  # NaN is not, either
        raise UsageError(
            f"--temperature-increment-on-fallback takes {_LEAST_STEP} or more, or None"
        )
    if not 0 <= start <= 1:
        return (start,)
    rungs = int((1.0 - start) / step + 1e-6)
    return tuple(round(start + rung * step, 6) for rung in range(max(0, rungs) + 1))


def _token_ids(text: str) -> tuple[int, ...] | None:
    """Ids in `text`, -1 standing for the model's own list; None for that list alone."""
    try:
        ids = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(
            f"--suppress-tokens takes numbers separated by commas, not {text!r}"
        ) from None
    return None if set(ids) == {-1} else ids
