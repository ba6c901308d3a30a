"""Certifies that an exported model folder computes the same as its PyTorch model.

First each graph is checked by itself, at real shapes: names, axes, shapes, values. Then the three
graphs decode together: greedy transcripts of recordings, and one decode that is forced to the text
limit, must choose PyTorch's token at every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from whisper_npu.errors import ParityError
from whisper_npu.export.checkpoint import Checkpoint
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.manifest import VERIFIED
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
    Graph,
    alignment_interface,
    cache_names,
    expected_interface,
)

BATCH = 2  # rows of the reference; a case uses the first ones
ALIGNED_TOKENS = 64  # PyTorch returns the attention of every head: 500 MB for the largest model
SEED = 0

Progress = Callable[[str], None]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A call of a decoder: number of rows, of tokens in the cache, and of tokens fed."""

    batch: int
    past: int
    new: int

    def __str__(self) -> str:
        return f"batch {self.batch}, past {self.past}, {self.new} new"


@dataclass(frozen=True)
class Reference:
    """The result of one PyTorch pass over `n_text_ctx` random tokens.

    Attention is causal, so a slice of the result is the reference for any shorter past.

    Shapes: ids `(BATCH, n_text_ctx)`, hidden `(BATCH, n_audio_ctx, n_audio_state)`, logits `(BATCH,
    n_text_ctx, n_vocab)`, each cache tensor `(BATCH, heads, length, head_dim)`.
    """

    ids: NDArray[np.int64]
    hidden: Float32
    logits: Float32
    self_attention: Arrays
    cross_attention: Arrays


@dataclass
class Decode:
    """A greedy decode in progress: its tokens and their states."""

    name: str
    window: Window
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

    Args:
        folder: The graphs and their weights.
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
    audio = parity_audio(audio_files, checkpoint.preprocessor_config, report)
    choice = GreedyChoice(checkpoint)
    differences = Differences()
    with torch.inference_mode():
        features = np.concatenate([audio.windows[row].features for row in range(BATCH)])
        reference = _reference(checkpoint, features)

        encoder = Graph(folder, ENCODER, expected_interface(ENCODER, dimensions))
        _check_encoder(encoder, features, reference, differences)
        decodes = [
            _start(encoder, window, choice, forced=forced)
            for window, forced in [(audio.windows[0], True), *((w, False) for w in audio.windows)]
        ]
        del encoder
        report("the encoder's values agree with PyTorch")

        decoder = Graph(folder, DECODER, expected_interface(DECODER, dimensions))
        _check_decoder(decoder, reference, dimensions, differences)
        for decode in decodes:
            _prefill(decoder, decode, choice)
        del decoder
        report("the decoder's values agree, without a past")

        with_past = Graph(
            folder, DECODER_WITH_PAST, expected_interface(DECODER_WITH_PAST, dimensions)
        )
        _check_decoder_with_past(with_past, reference, dimensions, differences)
        report(f"the decoder's values agree, with a past of 0 to {dimensions.n_text_ctx - 1}")
        compared = 0
        for decode in decodes:
            _continue(with_past, decode, choice, dimensions.n_text_ctx)
            equal = _compare_tokens(checkpoint, decode, choice)
            report(f"{decode.name}: all {equal} tokens are PyTorch's")
            compared += equal
        _check_alignment(folder, checkpoint, reference, differences)
        report("the alignment heads attend where PyTorch's do")
    return {
        "status": VERIFIED,
        "device": "CPU",
        "inference_precision": "f32",
        "tolerance": {"relative": RELATIVE_TOLERANCE, "smallest_scale": SMALLEST_SCALE},
        "max_abs_diff": differences.largest,
        "max_relative_diff": differences.largest_relative,
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


def _reference(checkpoint: Checkpoint, features: Float32) -> Reference:
    dimensions = checkpoint.dimensions
    random = np.random.default_rng(SEED)
    ids = random.integers(0, dimensions.n_vocab, (BATCH, dimensions.n_text_ctx), dtype=np.int64)
    model = checkpoint.model
    hidden = model.model.encoder(torch.from_numpy(features)).last_hidden_state
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        decoder_input_ids=torch.from_numpy(ids),
        use_cache=True,
    )

    def arrays(side: str, cache: DynamicCache) -> Arrays:
        pairs = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        tensors = [tensor.numpy() for tensor in pairs if tensor is not None]
        names = cache_names("present", side, dimensions.n_text_layer)
        return dict(zip(names, tensors, strict=True))

    cache = output.past_key_values
    return Reference(
        ids=ids,
        hidden=hidden.numpy(),
        logits=output.logits.numpy(),
        self_attention=arrays("decoder", cache.self_attention_cache),
        cross_attention=arrays("encoder", cache.cross_attention_cache),
    )


def _check_encoder(
    encoder: Graph, features: Float32, reference: Reference, differences: Differences
) -> None:
    for batch in range(1, BATCH + 1):
        outputs = encoder({"input_features": features[:batch]})
        expected: Arrays = {"last_hidden_state": reference.hidden[:batch]}
        differences.compare(encoder, f"batch {batch}", outputs, expected)


def _check_decoder(
    decoder: Graph, reference: Reference, dimensions: Dimensions, differences: Differences
) -> None:
    for case in (Case(1, 0, 1), Case(2, 0, 4), Case(1, 0, dimensions.n_text_ctx)):
        outputs = decoder(
            {
                "input_ids": reference.ids[: case.batch, : case.new],
                "encoder_hidden_states": reference.hidden[: case.batch],
            }
        )
        expected = _expected(reference, case)
        expected |= {n: a[: case.batch] for n, a in reference.cross_attention.items()}
        differences.compare(decoder, str(case), outputs, expected)


def _check_decoder_with_past(
    decoder: Graph, reference: Reference, dimensions: Dimensions, differences: Differences
) -> None:
    last = dimensions.n_text_ctx - 1
    cases = [Case(1, 0, 1), Case(2, 0, 4), Case(1, 1, 1), Case(2, 7, 1), Case(1, 7, 4)]
    for case in (*cases, Case(2, last // 2, 1), Case(1, last, 1), Case(2, last, 1)):
        end = case.past + case.new
        past = {n: a[: case.batch, :, : case.past] for n, a in reference.self_attention.items()}
        past |= {n: a[: case.batch] for n, a in reference.cross_attention.items()}
        ids = reference.ids[: case.batch, case.past : end]
        outputs = decoder({"input_ids": ids, **_as_past(past)})
        differences.compare(decoder, str(case), outputs, _expected(reference, case))


def _check_alignment(
    folder: Path, checkpoint: Checkpoint, reference: Reference, differences: Differences
) -> None:
    """Compare the alignment graph with PyTorch's own attentions and probabilities.

    All values are between 0 and 1 and most are tiny, so the tolerance is a share of the largest
    one.
    """
    settings = checkpoint.alignment_settings()
    heads, eot = settings.heads, settings.eot
    graph = Graph(folder, ALIGNMENT, alignment_interface(checkpoint.dimensions, len(heads)))
    length = min(ALIGNED_TOKENS, checkpoint.dimensions.n_text_ctx)
    ids = reference.ids[:, :length] % eot  # text tokens only
    hidden: Any = torch.from_numpy(reference.hidden)
    output = checkpoint.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        decoder_input_ids=torch.from_numpy(ids),
        use_cache=False,
        output_attentions=True,
    )
    attentions = np.stack(
        [output.cross_attentions[layer][:, head].numpy() for layer, head in heads], axis=1
    )
    of_text = output.logits[:, :-1, :eot].softmax(dim=-1).numpy()
    probabilities = np.take_along_axis(of_text, ids[:, 1:, None], axis=2)[..., 0]
    for case in (Case(1, 0, 2), Case(2, 0, length)):
        outputs = graph(
            {
                "input_ids": ids[: case.batch, : case.new],
                "encoder_hidden_states": reference.hidden[: case.batch],
            }
        )
        expected: Arrays = {
            "token_probabilities": probabilities[: case.batch, : case.new - 1],
            "cross_attentions": attentions[: case.batch, :, : case.new],
        }
        differences.compare(graph, str(case), outputs, expected, smallest_scale=0.0)


def _expected(reference: Reference, case: Case) -> Arrays:
    end = case.past + case.new
    return {
        "logits": reference.logits[: case.batch, case.past : end],
        **{n: a[: case.batch, :, :end] for n, a in reference.self_attention.items()},
    }


def _as_past(present: Arrays) -> Arrays:
    return {
        name.replace("present", "past_key_values"): np.ascontiguousarray(array)
        for name, array in present.items()
    }


def _start(encoder: Graph, window: Window, choice: GreedyChoice, *, forced: bool) -> Decode:
    hidden = encoder({"input_features": window.features})["last_hidden_state"]
    name = f"{window.name}, forced to the limit" if forced else window.name
    return Decode(name, window, forced, list(choice.prompt), hidden, {})


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


def _compare_tokens(checkpoint: Checkpoint, decode: Decode, choice: GreedyChoice) -> int:
    """Compare a decode with PyTorch's choice after each prefix; return the number of prefixes."""
    hidden = checkpoint.model.model.encoder(torch.from_numpy(decode.window.features))
    output = checkpoint.model(
        encoder_outputs=hidden,
        decoder_input_ids=torch.tensor([decode.tokens[:-1]]),
        use_cache=False,
    )
    first = len(choice.prompt)
    logits = output.logits[0, first - 1 :].numpy()
    for step, (row, got) in enumerate(zip(logits, decode.tokens[first:], strict=True)):
        expected = choice(row, start=step == 0, forced=decode.forced)
        if got != expected:
            raise ParityError(
                f"{decode.name}: token {step} is {got}, PyTorch chooses {expected} (its logits are"
                f" {row[got]:.6g} and {row[expected]:.6g}) after {decode.tokens[: first + step]}"
            )
    return len(logits)
