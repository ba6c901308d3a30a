"""Options for model, device and decoding that the command-line programs share.

An option that openai/whisper has, too, has the same name here.
"""

import argparse
from dataclasses import fields
from typing import Any

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio_choices import CHANNEL_CHOICES
from whisper_npu.runtime.engines.choices import BACKENDS, KV_CACHES, PRECISIONS
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

_LEAST_STEP = 0.01  # smallest difference between two temperatures


def add_model_options(parser: argparse.ArgumentParser, *, kv_cache: bool = True) -> None:
    """Add the options that choose the model, and how and where it runs.

    Args:
        parser: the command line.
        kv_cache: False leaves `--kv-cache` out, for a program that measures every kind.
    """
    group = parser.add_argument_group("model and device")
    group.add_argument(
        "--model",
        default=cli.DEFAULT_MODEL,
        metavar="DIR",
        help="model folder, or the name of a model, which is exported on first use "
        "(default: %(default)s)",
    )
    add_variant(group)
    group.add_argument(
        "--device",
        type=cli.device,
        default="CPU",
        help="device that computes: CPU, GPU, NPU, NPU_EMULATED (an NPU's graphs on the CPU, for "
        "tests), or AUTO, which measures and takes the fastest. The program never changes to "
        "another device by itself (default: %(default)s)",
    )
    group.add_argument(
        "--backend",
        default="openvino",
        choices=BACKENDS,
        help="library that runs the graphs (default: %(default)s)",
    )
    if kv_cache:
        group.add_argument(
            "--kv-cache",
            default="auto",
            choices=KV_CACHES,
            help="where the key/value states of earlier tokens are kept: on the device (stateful), "
            "on the host (concat, static), or nowhere (off: slow, for comparison). auto takes the "
            "fastest kind (default: %(default)s)",
        )
    group.add_argument(
        "--precision",
        default="auto",
        type=cli.precision(*PRECISIONS),
        choices=PRECISIONS,
        help="number format of the computation. f32 gives PyTorch's tokens; choose it to compare. "
        "int8 computes with 8-bit matrices and leaves the rest in bf16 or f32. auto is int8 for "
        "the stateful cache on a processor that multiplies in 8 bits (VNNI), f16 on an NPU, and "
        "f32 elsewhere (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=0,
        help="number of processor threads; 0 is one per core. Give fewer to leave cores to other "
        "programs (default: %(default)s)",
    )


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `load_model` that `add_model_options` has put in a command.

    Every option is in it, so that no command accepts an option and ignores it.
    """
    names = ("device", "backend", "kv_cache", "precision", "threads", "variant")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def add_variant(parser: "argparse._ActionsContainer") -> None:
    """Add `--variant`."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="graphs to take from a folder with several, as transformers.js has them: plain (no "
        "suffix), fp16, int8, q4, ...; openvino for OpenVINO's own files; or "
        "encoder=NAME,decoder=NAME (default: the most exact)",
    )


_CONTEXT_LIVE = (
    "give the decoder the text before the audio it decodes; False keeps an error from leading to "
    "the next (default: True)"
)
_CONTEXT = (
    "give the decoder the text before a window: for every window in sequential mode, for every "
    "other window in batched mode. Batched mode then makes fewer errors, and takes a fifth longer "
    "for a single short recording (default: True in sequential mode; in batched mode only with "
    "--precision f32, and not with --multilingual)"
)


class _ListLanguages(argparse.Action):
    """Prints one language per line and ends the program, as `--help` does."""

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
    """Add every option that `decoding_options` reads.

    Args:
        parser: the command line.
        live: leave out the options that need a whole recording.
    """
    what = parser.add_argument_group("what to transcribe")
    what.add_argument(
        "--language",
        help="language of the speech: a code (de, pt-BR, cmn) or an English name; auto detects it. "
        "Name it if you know it (default: auto)",
    )
    what.add_argument(
        "--list-languages",
        action=_ListLanguages,
        nargs=0,
        help="print the languages that --language takes, and end",
    )
    what.add_argument(
        "--languages",
        type=cli.names,
        metavar="A,B,...",
        help="languages that detection may choose from, as codes or English names. A short list "
        "makes detection surer, above all for short phrases (default: all languages of the model)",
    )
    what.add_argument(
        "--task",
        default="transcribe",
        choices=TASKS,
        help="transcribe writes the language that is spoken; translate writes English "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--multilingual",
        action="store_true",
        help="detect the language again at every pause, for recordings in several languages",
    )
    what.add_argument(
        "--initial-prompt",
        metavar="TEXT",
        help="text that the decoder takes for the text before the recording. It shows the decoder "
        "the spelling of names and the style; it is not part of the transcript (default: none)",
    )
    what.add_argument(
        "--hotwords",
        metavar="TEXT",
        help="names and terms that may occur. The decoder is given them before every window "
        "(default: none)",
    )
    what.add_argument(
        "--without-timestamps",
        action="store_true",
        help="decode text without timestamps; a segment is then a whole window",
    )
    what.add_argument(
        "--max-initial-timestamp",
        type=cli.optional(float),
        default=1.0,
        metavar="SECONDS",
        help="latest time in a window at which its first segment may begin; None: no limit "
        "(default: %(default)s)",
    )

    long = parser.add_argument_group("long recordings")
    cli.add_flag(
        long,
        "--vad",
        default=True,
        help="skip audio without speech, for which the model might invent text. False decodes all "
        "audio (default: %(default)s)",
    )
    long.add_argument(
        "--vad-threshold",
        type=float,
        default=TranscribeOptions.vad_threshold,
        metavar="PROBABILITY",
        help="probability of speech above which audio is decoded. A lower value finds quieter "
        "speech, and more noise (default: %(default)s)",
    )
    long.add_argument(
        "--vad-min-silence",
        type=cli.optional(float),
        metavar="SECONDS",
        help="shortest silence that is skipped (default: 3, and 0.5 with --multilingual)",
    )
    cli.add_flag(
        long,
        "--elastic",
        help="pad short windows to less than 30 s before they are encoded, which is faster. A "
        "window whose text looks wrong is encoded again as 30 s (default: True, but False with "
        "--precision f32, which promises PyTorch's tokens)",
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
        "--temperature",
        type=float,
        default=0.0,
        help="randomness of the choice of tokens; 0 always takes the likeliest token "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--temperature-increment-on-fallback",
        type=cli.optional(float),
        default=0.2,
        metavar="STEP",
        help="how far the temperature rises each time that a window's text looks wrong; None: "
        "never decode at a higher temperature (default: %(default)s)",
    )
    how.add_argument(
        "--compression-ratio-threshold",
        type=cli.optional(float),
        default=2.4,
        metavar="RATIO",
        help="zlib compression ratio above which a text looks wrong, because it repeats itself; "
        "None: no limit (default: %(default)s)",
    )
    how.add_argument(
        "--logprob-threshold",
        type=cli.optional(float),
        default=-1.0,
        metavar="LOGPROB",
        help="average log probability of the tokens below which a text looks wrong; None: no limit "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--no-speech-threshold",
        type=cli.optional(float),
        default=0.6,
        metavar="PROBABILITY",
        help="probability of silence above which a window is skipped, if its text is also below "
        "--logprob-threshold; None: skip none (default: %(default)s)",
    )
    how.add_argument(
        "--suppress-tokens",
        default="-1",
        metavar="IDS",
        help="ids of tokens that are never chosen, separated by commas; -1 stands for the model's "
        "own list (default: %(default)s)",
    )
    how.add_argument(
        "--beam-size",
        type=cli.optional(int),
        metavar="N",
        help="number of beams at temperature 0. More beams are slower (default: greedy decoding, "
        "without beams)",
    )
    how.add_argument(
        "--best-of",
        type=int,
        default=5,
        metavar="N",
        help="number of samples per window at a temperature above 0; the best one is kept "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="beam search ends after so many times --beam-size finished texts "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--length-penalty",
        type=cli.optional(float),
        metavar="ALPHA",
        help="alpha of Google NMT's length penalty, by which beams and samples are ranked "
        "(default: None, which divides by the length)",
    )


def _add_recording_options(what: argparse._ArgumentGroup, long: argparse._ArgumentGroup) -> None:
    """Add the options of `NOT_LIVE`, which need a whole recording."""
    what.add_argument(
        "--audio-track",
        metavar="N|LANGUAGE|all",
        help="audio track of a file with several: a number from 1, a language, or all, which "
        "transcribes each track by itself (default: the track that the file marks as default)",
    )
    what.add_argument(
        "--channels",
        default=TranscribeOptions.channels,
        choices=CHANNEL_CHOICES,
        help="mix transcribes the mean of all channels; left and right transcribe one channel; "
        "split transcribes each channel by itself, for calls with one party per channel "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--prefix",
        metavar="TEXT",
        help="text that the transcript begins with; it is part of the transcript (default: none)",
    )
    cli.add_flag(
        what,
        "--word-timestamps",
        default=False,
        help="find the start and end of every word (default: %(default)s)",
    )
    what.add_argument(
        "--prepend-punctuations",
        default=PREPEND_PUNCTUATIONS,
        metavar="MARKS",
        help="punctuation marks that belong to the word after them, for --word-timestamps",
    )
    what.add_argument(
        "--append-punctuations",
        default=APPEND_PUNCTUATIONS,
        metavar="MARKS",
        help="punctuation marks that belong to the word before them, for --word-timestamps",
    )
    what.add_argument(
        "--hallucination-silence-threshold",
        type=cli.optional(float),
        metavar="SECONDS",
        help="leave out text whose words have improbable times and so much silence around them; "
        "needs --word-timestamps (default: None, off)",
    )
    what.add_argument(
        "--unheard-speech-threshold",
        type=cli.optional(float),
        default=TranscribeOptions.unheard_speech_threshold,
        metavar="SECONDS",
        help="seconds of speech without text after which a window is decoded again, with "
        "timestamps and then in parts; None: never (default: %(default)s)",
    )
    long.add_argument(
        "--mode",
        default="auto",
        choices=MODES,
        help="sequential decodes one window after the other, each with the text before it, as "
        "openai/whisper does; batched cuts windows at pauses and decodes many together, which is "
        "faster; auto is batched, but sequential for recordings up to 30 s with --precision f32 or "
        "without timestamps, and with --vad False (default: %(default)s)",
    )
    long.add_argument(
        "--batch-size",
        type=int,
        default=TranscribeOptions.batch_size,
        metavar="N",
        help="number of windows that each stream decodes together in batched mode. A batch may "
        "take up to a quarter more, so that no small batch follows. Smaller batches take less "
        "memory (default: %(default)s)",
    )


def decoding_options(arguments: argparse.Namespace) -> TranscribeOptions:
    """The decoding options of a command line.

    Raises:
        UsageError: a value is out of range, or two options contradict each other.
    """
    given = {
        each.name: getattr(arguments, each.name)
        for each in fields(TranscribeOptions)
        if hasattr(arguments, each.name)
    }
    given["temperature"] = _ladder(
        arguments.temperature, arguments.temperature_increment_on_fallback
    )
    return TranscribeOptions(**given)


def _ladder(start: float, step: float | None) -> tuple[float, ...]:
    """Temperatures from `start` to 1 in steps of `step`; `start` alone if `step` is None."""
    if step is None:
        return (start,)
    if not step >= _LEAST_STEP:  # refuses NaN, too
        raise UsageError(
            f"--temperature-increment-on-fallback takes {_LEAST_STEP} or more, or None"
        )
    if not 0 <= start <= 1:
        return (start,)
    rungs = int((1.0 - start) / step + 1e-6)
    return tuple(round(start + rung * step, 6) for rung in range(max(0, rungs) + 1))
