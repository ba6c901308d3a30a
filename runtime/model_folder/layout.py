"""Finds a model's files in a folder, however its exporter laid them out.

| exporter                                      | graphs                                           |
| --------------------------------------------- | ------------------------------------------------ |
| this one, optimum                             | `encoder_model.onnx`, `decoder_model.onnx`, ...  |
| onnx-community, Xenova (transformers.js)      | the same in `onnx/`, in variants: `_fp16`, `_q4` |
| optimum with post-processing, transformers.js | one `decoder_model_merged.onnx`                  |
| optimum-intel                                 | `openvino_encoder_model.xml`, ... with `.bin`    |

Only names are read here. Configurations and tokenizer lie in the folder itself. The name of the
folder has no meaning.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.runtime.model_folder.external_data import data_file, external_files
from whisper_npu.spelling import did_you_mean, parse_precision

ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
DECODER_WITH_PAST = "decoder_with_past_model.onnx"
GRAPHS = (ENCODER, DECODER, DECODER_WITH_PAST)
ALIGNMENT = "decoder_alignment_model.onnx"  # for word times; OpenVINO can do without it
TOKENIZER = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # an older form of the tokenizer

PLAIN = "plain"
"""The variant without a suffix."""

_OPENVINO = "openvino"
_ENCODER = "encoder_model"
_Parts = dict[str, Path]  # the files of a variant in one place, by part
_PLACES = ("", "onnx", _OPENVINO)  # subfolders for graphs
_FILE = re.compile(
    r"(?:openvino_)?"
    r"(?P<part>encoder_model|decoder_model_merged|decoder_with_past_model|decoder_model)"
    r"(?:_(?P<suffix>\w+))?\.(?P<form>onnx|xml)"
)
# From the most exact to the least. OpenVINO cannot read bnb4. A suffix of another exporter is
# taken after fp16.
_ORDER = ("", "fp32", "fp16", "?", "int8", "quantized", "uint8", "q4f16", "q4", "int4", "bnb4")
_CHOICE = re.compile(r"encoder=(?P<encoder>\w+),decoder=(?P<decoder>\w+)")
_MOST_NAMES = 12  # of files in a message

_EXPORT = "make a folder with `whisper-npu export CHECKPOINT --output DIR`"
_CHECKPOINTS = {
    "model.safetensors": "a checkpoint",
    "model.safetensors.index.json": "a checkpoint",
    "pytorch_model.bin": "a checkpoint",
    "model.bin": "a CTranslate2 model",
}


@dataclass(frozen=True)
class Layout:
    """The files of a model.

    Attributes:
        encoder: the encoder's graph.
        decoder: the graph that decodes without a past; or a decoder that does all (see
            `with_past`).
        with_past: the graph that decodes with a past; None if `decoder` does it too: a merged
            ONNX graph, or an OpenVINO graph that keeps the states itself.
        alignment: the graph for word times; None if there is none.
        tokenizer: `tokenizer.json`, else `vocab.json`.
        variant: the variant, as `choose` takes it.
        variants: all variants of the encoder and the decoder in the folder, by part.
    """

    encoder: Path
    decoder: Path
    with_past: Path | None
    alignment: Path | None
    tokenizer: Path
    variant: str = PLAIN
    variants: tuple[tuple[str, ...], tuple[str, ...]] = ((PLAIN,), (PLAIN,))

    @property
    def is_openvino(self) -> bool:
        """Whether the graphs are OpenVINO's own files, not ONNX."""
        return self.encoder.suffix == ".xml"

    @property
    def graphs(self) -> tuple[Path, ...]:
        """The files of the encoder and the decoder."""
        found = (self.encoder, self.decoder, self.with_past)
        return tuple(path for path in found if path is not None)

    @property
    def graphs_in_order(self) -> tuple[Path, Path, Path]:
        """The files that hold encoder, decoder, and decoder with past."""
        return self.encoder, self.decoder, self.with_past or self.decoder

    @property
    def others(self) -> tuple[str, ...]:
        """The other variants that the folder has, of both parts or of one."""
        parts = zip(self.variants, _split(self.variant), strict=True)
        return tuple(dict.fromkeys(name for names, used in parts for name in names if name != used))

    @property
    def way_on(self) -> str:
        """Advice for a model that cannot be used in this form."""
        if not self.others:
            return f"{_EXPORT}, from the checkpoint"
        return f"choose another variant with --variant: {', '.join(self.others)}"


def weight_files(graph: Path) -> tuple[Path, ...]:
    """Return the data files with a graph's weights, all of them in its folder.

    Raises:
        ModelError: a file is missing, no regular file, or outside the graph's folder.
    """
    if graph.suffix == ".xml":
        return (data_file(graph.parent, f"{graph.stem}.bin"),)
    return external_files(graph)


def find_layout(folder: Path, variant: str | None = None) -> Layout:
    """Find the files of the model in a folder.

    Args:
        folder: the folder, which exists.
        variant: the variant to take: `plain`, a suffix such as `fp16`, `openvino` for OpenVINO's
            own files, `openvino_` and a suffix, or `encoder=...,decoder=...`. None takes the most
            exact one of each part.

    Raises:
        ModelError: a graph or the tokenizer is missing, or the folder cannot be read; the message
            says what was found.
        UsageError: the folder has no such variant.
    """
    encoders, decoders = _find_graphs(folder)
    tokenizer = next((folder / n for n in (TOKENIZER, VOCABULARY) if (folder / n).is_file()), None)
    missing = []
    if not encoders:
        missing.append(f"an encoder ({ENCODER})")
    if not decoders:
        missing.append(f"a decoder ({DECODER} and {DECODER_WITH_PAST}, or one that does both)")
    if tokenizer is None:
        missing.append(f"a tokenizer ({TOKENIZER})")
    elif tokenizer.name == VOCABULARY and not (folder / MERGES).is_file():
        missing.append(f"the tokenizer's {MERGES}")
    if missing or tokenizer is None:
        raise ModelError(_refusal(folder, missing))
    encoder, decoder = _choose(folder, tuple(encoders), tuple(decoders), variant)
    first, with_past = decoders[decoder]
    alignment = first.with_name(ALIGNMENT)
    return Layout(
        encoder=encoders[encoder],
        decoder=first,
        with_past=with_past,
        alignment=alignment if decoder == PLAIN and alignment.is_file() else None,
        tokenizer=tokenizer,
        variant=encoder if encoder == decoder else f"encoder={encoder},decoder={decoder}",
        variants=(tuple(encoders), tuple(decoders)),
    )


def _find_graphs(folder: Path) -> tuple[dict[str, Path], dict[str, tuple[Path, Path | None]]]:
    """Return encoders, and decoders (without past or both, with past), by variant, best first."""
    found: dict[str, dict[Path, _Parts]] = {}  # by variant and place
    for path in _candidates(folder):
        match = _FILE.fullmatch(path.name)
        if match is not None and not _is_ambiguous(match["suffix"] or "", match["form"]):
            name = _variant_name(match["suffix"] or "", match["form"])
            places = found.setdefault(name, {})
            places.setdefault(path.parent, {}).setdefault(match["part"], path)
    encoders: dict[str, Path] = {}
    decoders: dict[str, tuple[Path, Path | None]] = {}
    for name in sorted(found, key=_rank):
        # Files of one place belong together; a place with both parts comes first.
        places_of_it = sorted(found[name].values(), key=lambda each: not _is_whole(each))
        encoder = next((each[_ENCODER] for each in places_of_it if _ENCODER in each), None)
        decoder = next(filter(None, map(_decoder, places_of_it)), None)
        if encoder is not None:
            encoders[name] = encoder
        if decoder is not None:
            decoders[name] = decoder
    return encoders, decoders


def _is_ambiguous(suffix: str, form: str) -> bool:
    """Whether an ONNX file's suffix is the name of a variant of other files."""
    return form == "onnx" and (suffix == PLAIN or suffix.startswith(_OPENVINO))


def _is_whole(parts: _Parts) -> bool:
    return _ENCODER in parts and _decoder(parts) is not None


def _decoder(parts: _Parts) -> tuple[Path, Path | None] | None:
    """Return the decoder without past or for both, and that with past; None if there is none."""
    first, with_past = parts.get("decoder_model"), parts.get("decoder_with_past_model")
    if first is not None and (with_past is not None or first.suffix == ".xml"):
        return first, with_past
    merged = parts.get("decoder_model_merged")
    return None if merged is None else (merged, None)


def _candidates(folder: Path) -> Iterator[Path]:
    try:
        for place in _PLACES:
            if (folder / place).is_dir():
                yield from sorted(path for path in (folder / place).iterdir() if path.is_file())
    except OSError as error:
        raise ModelError(
            f"cannot read {folder}: {error.strerror or error}; check the folder's permissions"
        ) from None


def _variant_name(suffix: str, form: str) -> str:
    if form == "onnx":
        return suffix or PLAIN
    return f"{_OPENVINO}_{suffix}" if suffix else _OPENVINO


def _rank(variant: str) -> tuple[int, bool, str]:
    """Return the key that sorts variants, the most exact first, ONNX before OpenVINO's files."""
    suffix = "" if variant in (PLAIN, _OPENVINO) else variant.removeprefix(f"{_OPENVINO}_")
    place = _ORDER.index(suffix if suffix in _ORDER else "?")
    return place, variant.startswith(_OPENVINO), variant


def _choose(
    folder: Path, encoders: tuple[str, ...], decoders: tuple[str, ...], wanted: str | None
) -> tuple[str, str]:
    """Return the variants of encoder and decoder.

    Raises:
        ModelError: the parts are of different forms.
        UsageError: the folder has no such variant, or not of both parts.
    """
    if wanted is None:
        pairs = [(e, d) for e in encoders for d in decoders if _are_alike(e, d)]
        if not pairs:
            raise ModelError(
                f"{folder} has an encoder as {', '.join(encoders)} and a decoder as "
                f"{', '.join(decoders)}: one is ONNX, the other OpenVINO's; {_EXPORT}"
            )
        return min(pairs, key=lambda pair: (max(map(_rank, pair)), *map(_rank, pair)))
    encoder, decoder = _split(wanted)
    encoder, decoder = parse_precision(encoder, encoders), parse_precision(decoder, decoders)
    if encoder in encoders and decoder in decoders and _are_alike(encoder, decoder):
        return encoder, decoder
    raise UsageError(
        f"{folder} has no variant {wanted}: its encoder is there as {', '.join(encoders)}, its "
        f"decoder as {', '.join(decoders)}; give one of them, or encoder=...,decoder=..."
        f"{did_you_mean(wanted, [name for name in encoders if name in decoders])}"
    )


def _split(variant: str) -> tuple[str, str]:
    match = _CHOICE.fullmatch(variant)
    return (variant, variant) if match is None else (match["encoder"], match["decoder"])


def _are_alike(encoder: str, decoder: str) -> bool:
    """Whether both are ONNX, or both OpenVINO's files."""
    return encoder.startswith(_OPENVINO) == decoder.startswith(_OPENVINO)


def _refusal(folder: Path, missing: Iterable[str]) -> str:
    names = sorted(
        f"{path.name}/" if path.is_dir() else path.relative_to(folder).as_posix()
        for path in (*folder.iterdir(), *_candidates(folder))
        if path.is_dir() or path.is_file()
    )
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    found = f"{', '.join(names[:_MOST_NAMES])}{more}" if names else "nothing"
    kind = next((kind for name, kind in _CHECKPOINTS.items() if name in names), None)
    remedy = _EXPORT
    if kind is not None:
        remedy = f"it is {kind}: `whisper-npu export {folder} --output DIR` makes a model folder"
    return f"model folder {folder} lacks {' and '.join(missing)}; found: {found}; {remedy}"
