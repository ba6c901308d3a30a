"""Certifies that an exported model folder computes the same as its PyTorch model.

First each graph is checked by itself, at real shapes: names, axes, shapes, values. Then the three
graphs decode together: greedy transcripts of recordings, and one decode that is forced to the text
limit, must choose PyTorch's token at every step.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whisper_npu.errors import ParityError
from whisper_npu.export.checkpoint import Checkpoint
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.parity_audio import Window, parity_audio
from whisper_npu.export.parity_graph import (
    ALIGNMENT,
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    RELATIVE_TOLERANCE,
    SMALLEST_SCALE,
    Arrays,
    Differences,
    Expected,
    Graph,
    alignment_interface,
    cache_names,
    expected_interface,
    run_in_parts,
)
from whisper_npu.export.parity_reference import (
    BATCH,
    Reference,
    compute_reference,
    expected_logits,
)
from whisper_npu.runtime.model_folder.config import VERIFIED

# Parameters; base has 74 million. Larger models are compared sparingly: their weights are loaded
# again instead of kept, and their decoders are compiled again for each number of rows.
LARGE = 128_000_000

Progress = Callable[[str], None]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A call of a decoder: number of rows, of tokens in the cache, and of tokens fed."""

    batch: int
    past: int
    new: int

    @property
    def products(self) -> int:
        """The rows of its matrix products."""
        return self.batch * self.new

    def __str__(self) -> str:
        return f"batch {self.batch}, past {self.past}, {self.new} new"


@dataclass
class Decode:
    """A greedy decode in progress: its window, its tokens and their states."""

    name: str
    window: int
    forced: bool
    tokens: list[int]
    hidden: Float32
    cache: Arrays


def verify_parity(
    folder: Path,
    checkpoint: Checkpoint,
    audio_files: Sequence[Path] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a model folder with its PyTorch model.

    The graphs run one after another on OpenVINO's CPU in float32, so that a large model is never
    compiled three times at once. Tokens are compared with one uncached PyTorch pass over each
    finished sequence: if PyTorch's argmax after every prefix is the next token, PyTorch's own
    greedy decode is that sequence.

    The weights of a large model are released while the graphs run (`Checkpoint.release`).

    Args:
        folder: The graphs and their weights. PyTorch's results are kept beside it meanwhile.
        checkpoint: The model that was exported.
        audio_files: Recordings to transcribe; the built-in recording is added to fewer than three.
        progress: Called with one line per step.

    Returns:
        The certificate, for the manifest.

    Raises:
        ParityError: The graphs differ from PyTorch; the message has the graph, the place and both
            values.
        AudioError: A recording cannot be read.
    """
    report = progress or (lambda _line: None)
    dimensions = checkpoint.dimensions
    is_large = checkpoint.parameter_count > LARGE
    audio = parity_audio(audio_files, checkpoint.preprocessor_config, report)
    choice = GreedyChoice(checkpoint)
    differences = Differences()
    with (
        torch.inference_mode(),
        tempfile.TemporaryDirectory(prefix=".reference-", dir=folder.parent) as work,
    ):
        reference = compute_reference(checkpoint, audio.windows, Path(work), report)
        if is_large:
            checkpoint.release()

        hidden = _check_encoder(folder, dimensions, audio.windows, reference, differences)
        report("the encoder's values agree with PyTorch")
        decodes = [
            _start(audio.windows, index, hidden, choice, forced=forced)
            for index, forced in [(0, True), *((i, False) for i in range(len(hidden)))]
        ]

        decoder = Graph(folder, DECODER, expected_interface(DECODER, dimensions), sparing=is_large)
        _check_decoder(decoder, reference, dimensions, differences)
        for decode in decodes:
            _prefill(decoder, decode, choice)
        del decoder
        report("the decoder's values agree, without a past")

        interface = expected_interface(DECODER_WITH_PAST, dimensions)
        with_past = Graph(folder, DECODER_WITH_PAST, interface, sparing=is_large)
        _check_decoder_with_past(with_past, reference, dimensions, differences)
        report(f"the decoder's values agree, with a past of 0 to {dimensions.n_text_ctx - 1}")
        for decode in decodes:
            _continue(with_past, decode, choice, dimensions.n_text_ctx)
            report(f"{decode.name}: decoded {len(decode.tokens) - len(choice.prompt)} tokens")
        del with_past
        _check_alignment(folder, checkpoint, reference, differences, sparing=is_large)
        report("the alignment heads attend where PyTorch's do")

        compared = 0
        for decode in decodes:
            equal = _compare_tokens(checkpoint, reference, decode, choice)
            report(f"{decode.name}: all {equal} tokens are PyTorch's")
            compared += equal
    return {
        "status": VERIFIED,
        "device": "CPU",
        "inference_precision": "f32",
        "tolerance": {"relative": RELATIVE_TOLERANCE, "smallest_scale": SMALLEST_SCALE},
        "max_abs_diff": differences.largest,
        "max_relative_diff": differences.largest_relative,
        "cases": differences.cases,
        "recordings": [window.name for window in audio.windows],
        "synthetic_audio": audio.synthetic,
        "forced_decode_length": len(decodes[0].tokens),
        "tokens_compared": compared,
        "tokens_equal": compared,
    }


class GreedyChoice:
    """The prompt and the suppression rules of a checkpoint, used for both sides."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.generation_config
        self.eot = int(config["eos_token_id"])
        self.prompt = [int(config["decoder_start_token_id"])]
        if config["is_multilingual"]:
            languages = config["lang_to_id"]
            self.prompt.append(int(languages.get("<|en|>", next(iter(languages.values())))))
            self.prompt.append(int(config["task_to_id"]["transcribe"]))
        self.prompt.append(int(config["no_timestamps_token_id"]))
        self._always = _valid_ids(config.get("suppress_tokens"))
        self._at_start = _valid_ids(config.get("begin_suppress_tokens"))

    def __call__(self, logits: Float32, *, start: bool, forced: bool) -> int:
        """The most likely token that may follow.

        Args:
            logits: `(n_vocab,)`.
            start: Whether it is the first token after the prompt.
            forced: Whether the text must not end.
        """
        allowed = logits.copy()
        allowed[self._always] = -np.inf
        if start:
            allowed[self._at_start] = -np.inf
        if forced:
            allowed[self.eot] = -np.inf
        return int(np.argmax(allowed))


def _valid_ids(ids: list[int] | None) -> list[int]:
    return [token for token in ids or [] if token >= 0]


def _check_encoder(
    folder: Path,
    dimensions: Dimensions,
    windows: Sequence[Window],
    reference: Reference,
    differences: Differences,
) -> list[Float32]:
    """Compare the encoder's output of every window: one alone, two together, the others alone.

    Returns:
        The graph's own output for each window, `(1, n_audio_ctx, n_audio_state)`.
    """
    batches = [[0], [1, 2], *([index] for index in range(3, len(windows)))]
    inputs = [
        {"input_features": np.concatenate([windows[index].features for index in batch])}
        for batch in batches
    ]
    interface = expected_interface(ENCODER, dimensions)
    outputs = run_in_parts(folder, ENCODER, interface, inputs)
    hidden: list[Float32] = []
    for batch, output in zip(batches, outputs, strict=True):
        expected: Expected = [("last_hidden_state", reference.hidden(batch))]
        differences.compare(ENCODER, f"batch {len(batch)}", output, expected)
        hidden += np.split(output["last_hidden_state"], len(batch))
    return hidden


def _check_decoder(
    decoder: Graph, reference: Reference, dimensions: Dimensions, differences: Differences
) -> None:
    cases = [Case(1, 0, 1), Case(2, 0, 4), Case(1, 0, dimensions.n_text_ctx)]
    cross = cache_names("present", "encoder", dimensions.n_text_layer)
    for case in _by_products(decoder, cases):
        outputs = decoder(
            {
                "input_ids": reference.ids[: case.batch, : case.new],
                "encoder_hidden_states": reference.hidden(range(case.batch)),
            },
            keep=False,
        )
        differences.compare(DECODER, str(case), outputs, _expected(reference, dimensions, case))
        of_audio = ((name, reference.arrays[name][: case.batch]) for name in cross)
        differences.compare(DECODER, str(case), outputs, of_audio)
        del outputs, of_audio


def _check_decoder_with_past(
    decoder: Graph, reference: Reference, dimensions: Dimensions, differences: Differences
) -> None:
    last = dimensions.n_text_ctx - 1
    cases = [Case(1, 0, 1), Case(2, 0, 4), Case(1, 1, 1), Case(2, 7, 1), Case(1, 7, 4)]
    cases += [Case(2, last // 2, 1), Case(1, last, 1), Case(2, last, 1)]
    for case in _by_products(decoder, cases):
        past: Arrays = {
            name: np.array(reference.arrays[name][: case.batch, :, :length])
            for side, length in (("decoder", case.past), ("encoder", None))
            for name in cache_names("present", side, dimensions.n_text_layer)
        }
        ids = reference.ids[: case.batch, case.past : case.past + case.new]
        outputs = decoder({"input_ids": ids, **_as_past(past)}, keep=False)
        expected = _expected(reference, dimensions, case)
        differences.compare(DECODER_WITH_PAST, str(case), outputs, expected)
        del past, outputs, expected  # 0.3 GB for small.en, before the next case's are made


def _by_products(decoder: Graph, cases: Sequence[Case]) -> Iterator[Case]:
    """The cases, those of most rows first; before each other number of rows, `Graph.forget`.

    The cases of one row come last: the decodes that follow have one row.
    """

    def rows(case: Case) -> int:
        return case.products

    for _, of_one_kind in groupby(sorted(cases, key=rows, reverse=True), key=rows):
        decoder.forget()
        yield from of_one_kind


def _check_alignment(
    folder: Path,
    checkpoint: Checkpoint,
    reference: Reference,
    differences: Differences,
    *,
    sparing: bool,
) -> None:
    """Compare the alignment graph with PyTorch's own attentions and probabilities.

    All values are between 0 and 1 and most are tiny, so the tolerance is a share of the largest
    one.
    """
    heads = checkpoint.alignment_settings().heads
    interface = alignment_interface(checkpoint.dimensions, len(heads))
    graph = Graph(folder, ALIGNMENT, interface, sparing=sparing)
    ids = reference.aligned_ids
    for case in _by_products(graph, (Case(1, 0, 2), Case(BATCH, 0, ids.shape[1]))):
        outputs = graph(
            {
                "input_ids": ids[: case.batch, : case.new],
                "encoder_hidden_states": reference.hidden(range(case.batch)),
            },
            keep=False,
        )
        arrays = reference.arrays
        expected: Expected = [
            ("token_probabilities", arrays["token_probabilities"][: case.batch, : case.new - 1]),
            ("cross_attentions", arrays["cross_attentions"][: case.batch, :, : case.new]),
        ]
        differences.compare(ALIGNMENT, str(case), outputs, expected, smallest_scale=0.0)


def _expected(reference: Reference, dimensions: Dimensions, case: Case) -> Expected:
    """The logits and the joined caches of a case, mapped one after another."""
    end = case.past + case.new
    yield "logits", reference.arrays["logits"][: case.batch, case.past : end]
    for name in cache_names("present", "decoder", dimensions.n_text_layer):
        yield name, reference.arrays[name][: case.batch, :, :end]


def _as_past(present: Arrays) -> Arrays:
    return {
        name.replace("present", "past_key_values"): np.ascontiguousarray(array)
        for name, array in present.items()
    }


def _start(
    windows: Sequence[Window],
    index: int,
    hidden: Sequence[Float32],
    choice: GreedyChoice,
    *,
    forced: bool,
) -> Decode:
    name = windows[index].name
    if forced:
        name = f"{name}, forced to the limit"
    return Decode(name, index, forced, list(choice.prompt), hidden[index], {})


def _prefill(decoder: Graph, decode: Decode, choice: GreedyChoice) -> None:
    ids = np.array([decode.tokens], np.int64)
    outputs = decoder({"input_ids": ids, "encoder_hidden_states": decode.hidden})
    decode.tokens.append(choice(outputs.pop("logits")[0, -1], start=True, forced=decode.forced))
    decode.cache = _as_past(outputs)


def _continue(decoder: Graph, decode: Decode, choice: GreedyChoice, n_text_ctx: int) -> None:
    """Decode step by step to the end of the text, or until the cache holds `n_text_ctx` tokens."""
    while decode.tokens[-1] != choice.eot and len(decode.tokens) <= n_text_ctx:
        ids = np.array([[decode.tokens[-1]]], np.int64)
        outputs = decoder({"input_ids": ids, **decode.cache})
        logits = outputs.pop("logits")[0, -1]
        decode.tokens.append(choice(logits, start=False, forced=decode.forced))
        decode.cache |= _as_past(outputs)


def _compare_tokens(
    checkpoint: Checkpoint, reference: Reference, decode: Decode, choice: GreedyChoice
) -> int:
    """Compare a decode with PyTorch's choice after each prefix; return the number of prefixes."""
    hidden = reference.hidden([decode.window])
    first = len(choice.prompt)
    logits = expected_logits(checkpoint, hidden, np.array([decode.tokens[:-1]]))[0, first - 1 :]
    for step, (row, got) in enumerate(zip(logits, decode.tokens[first:], strict=True)):
        expected = choice(row, start=step == 0, forced=decode.forced)
        if got != expected:
            raise ParityError(
                f"{decode.name}: token {step} is {got}, PyTorch chooses {expected} (its logits are"
                f" {row[got]:.6g} and {row[expected]:.6g}) after {decode.tokens[: first + step]}"
            )
    return len(logits)
