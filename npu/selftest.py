"""Checks on the target machine that a device decodes correctly.

Files are compared with the export's certificate, and tokens with a reference. The reference was
recorded on the machine of the export, or is computed here on the CPU in f32. The other checks
compare the device with itself: a recording must give the same tokens, whatever is decoded before it
or at the same time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.log_mel import HOP_LENGTH
from whisper_npu.runtime.model_folder.config import Manifest
from whisper_npu.runtime.model_folder.folder import MANIFEST, ModelFolder
from whisper_npu.runtime.model_folder.json_files import checked
from whisper_npu.runtime.model_folder.verification import is_verified, verify_folder
from whisper_npu.runtime.transcription.model import WhisperModel

REFERENCE = "selftest_reference.json"

Tokens = tuple[int, ...]
Recordings = Mapping[str, Float32Array]

_PROMPT = "A prompt of some length, with names such as Beckett, Godot and Krapp, that goes before."

# One greedy pass per window, without fallback, which would hide a difference.
_PLAIN: dict[str, Any] = {
    "temperature": (0.0,),
    "no_speech_threshold": None,
    "condition_on_previous_text": False,
    "vad": False,
    "mode": "sequential",
}


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: the subject of the check.
        passed: whether the check passed; None if it does not apply to this model.
        detail: the compared things, or the first difference.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Reference:
    """The tokens that recordings must give, and their source.

    Attributes:
        tokens: the tokens by recording.
        source: a description of the decoder that made them.
        graphs: digest of its graphs and weights; None if it was not recorded.
    """

    tokens: dict[str, Tokens]
    source: str
    graphs: str | None = None


def long_recording(recording: Float32Array, window: int) -> Float32Array:
    """A recording repeated until it is longer than a window of `window` samples."""
    return np.tile(recording, window // max(1, len(recording)) + 2)


def decode(model: WhisperModel, recording: Float32Array, **options: Any) -> Tokens:
    """The tokens of a recording, decoded greedily."""
    result = model.transcribe(recording, **{**_PLAIN, **_language(model), **options}).result()
    return tuple(token for segment in result.segments for token in segment.tokens)


def first_difference(expected: Sequence[Any], found: Sequence[Any]) -> str | None:
    """The first difference between two sequences, in words; None if they are equal."""
    for step, (want, got) in enumerate(zip(expected, found, strict=False)):
        if want != got:
            return f"differs at step {step}: {got!r} instead of {want!r}"
    if len(expected) != len(found):
        step = min(len(expected), len(found))
        return f"differs at step {step}: {len(found)} instead of {len(expected)} steps"
    return None


def make_reference(model: WhisperModel, recordings: Recordings) -> Reference:
    """The tokens that `model` decodes; the model should be on the CPU in f32."""
    source = f"{model.backend.device}, {model.backend.precision}"
    tokens = {name: decode(model, audio) for name, audio in recordings.items()}
    return Reference(tokens, source, model.folder.graphs_digest())


def write_reference(folder: Path, reference: Reference) -> Path:
    """Write a reference into a model folder, which takes it to the target machine."""
    path = folder / REFERENCE
    content = asdict(reference)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


def read_reference(folder: Path) -> Reference | None:
    """The reference recorded in a model folder; None if there is none.

    Raises:
        ModelError: the reference is damaged.
    """
    path = folder / REFERENCE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tokens = {name: tuple(map(int, row)) for name, row in content["tokens"].items()}
        return Reference(tokens, f"recorded: {content['source']}", content.get("graphs"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is damaged ({error}); make it again with `whisper-npu selftest --record`"
        ) from None


def run(model: WhisperModel, recordings: Recordings, reference: Reference) -> Iterator[Check]:
    """Check a model on its device, one check after another.

    Args:
        model: the model on the device to check.
        recordings: at least two, float32 samples at 16 kHz by name.
        reference: the tokens of each recording.

    Raises:
        UsageError: there are fewer than two recordings, or a recording without a reference.
    """
    missing = recordings.keys() - reference.tokens.keys()
    if len(recordings) < 2 or missing:
        raise UsageError(
            "the self test takes two recordings or more, each with reference tokens"
            + (f"; {', '.join(sorted(missing))} has none" if missing else "")
        )
    yield check_weights(model.folder, reference)
    names = list(recordings)
    first, second = names[0], names[1]
    alone: dict[str, Tokens] = {}
    for name in names:
        alone[name] = decode(model, recordings[name])
        yield _same(f"tokens of {name}", reference.tokens[name], alone[name], reference.source)

    def again(name: str, what: str) -> Check:
        return _same(what, alone[name], decode(model, recordings[name]), "as when first decoded")

    decode(model, recordings[second])
    yield again(first, "A, B, A")
    yield _language_switch(model, recordings[first], alone[first])
    window = 2 * model.backend.n_audio_ctx * HOP_LENGTH
    decode(model, long_recording(recordings[second], window))
    yield again(first, "long form, then a short recording")
    decode(model, recordings[first], initial_prompt=_PROMPT)
    yield again(first, "prompt, then no prompt")
    yield _context_limit(model)
    yield again(first, "full context, then a short text")
    yield _two_streams(
        model, [recordings[first], recordings[second]], [alone[first], alone[second]]
    )


def check_weights(folder: ModelFolder, reference: Reference) -> Check:
    """Compare a folder's files with the export's certificate and with the reference's weights.

    Without both, damaged weights are not found: tokens that are computed from damaged weights agree
    with these weights.

    Raises:
        ModelError: a file differs from its certificate.
    """
    name = "weights"
    n_certified = verify_folder(folder)
    if reference.graphs not in (None, folder.graphs_digest()):
        return Check(
            name,
            False,
            "not those that the reference was recorded with; copy the model folder again, or "
            "record anew with `whisper-npu selftest --record`",
        )
    if not n_certified:
        return Check(name, None, "no certificate in the folder; nothing says what they should be")
    parity = checked(folder.manifest, Manifest, folder.path / MANIFEST).parity
    certified = f"{n_certified} files as certified"
    if not is_verified(parity, folder.layout.variant):
        return Check(name, True, f"{certified}, without a comparison (PyTorch)")
    tokens = "all"
    if parity.tokens_compared is not None:
        tokens = f"{parity.tokens_equal} of {parity.tokens_compared}"
    return Check(name, True, f"{certified}: {tokens} tokens were PyTorch's")


def compare_transcript(model: WhisperModel, path: Path, expected: Tokens) -> Check:
    """Compare another runtime's transcript with the reference of the same recording.

    Args:
        model: the model with the tokenizer.
        path: openai/whisper's JSON (its tokens are compared if it has them), or plain text.
        expected: the tokens of the reference.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the transcript {path}: {error}") from None
    try:
        content = json.loads(text)
    except ValueError:
        content = {"text": text}
    segments = content.get("segments", []) if isinstance(content, dict) else []
    tokens = [token for segment in segments for token in segment.get("tokens", [])]
    timestamps = model.tokenizer.special.timestamp_begin
    if tokens:  # timestamps are left out: another runtime may place them elsewhere
        wanted = [token for token in expected if token < timestamps]
        found = [token for token in tokens if token < timestamps]
        return _same(f"transcript {path.name}", wanted, found, "tokens")
    words = model.tokenizer.decode(expected).split()
    return _same(f"transcript {path.name}", words, str(content.get("text", "")).split(), "words")


def _language(model: WhisperModel) -> dict[str, str]:
    return {"language": "en"} if model.is_multilingual else {}


def _same(name: str, expected: Sequence[Any], found: Sequence[Any], against: str) -> Check:
    difference = first_difference(expected, found)
    if difference is None:
        return Check(name, True, f"{len(expected)} equal ({against})")
    return Check(name, False, f"{difference} ({against})")


def _language_switch(model: WhisperModel, recording: Float32Array, expected: Tokens) -> Check:
    name = "another language, then English"
    if not model.is_multilingual:
        return Check(name, None, "an English-only model")
    other = next(code for code in model.tokenizer.special.languages if code != "en")
    decode(model, recording, language=other)
    return _same(name, expected, decode(model, recording), "as when first decoded")


def _context_limit(model: WhisperModel) -> Check:
    """Fill the decoder's context to the last position; one more token must be refused."""
    backend = model.backend
    name = f"{backend.n_text_ctx}-token limit"
    features = np.zeros((1, backend.n_mels, 2 * backend.n_audio_ctx), np.float32)
    session = backend.start(backend.encode(features))
    try:
        logits = session.step(np.full((1, 1), model.tokenizer.special.sot, np.int64))
        while session.length < backend.n_text_ctx:
            if not np.isfinite(logits).all():
                return Check(name, False, f"not a number at step {session.length}")
            logits = session.step(logits[:, -1].argmax(axis=-1)[:, None])
        try:
            session.step(np.zeros((1, 1), np.int64))
        except UsageError:
            return Check(name, True, "reached, and one more token is refused")
        return Check(name, False, f"a token at position {backend.n_text_ctx} was decoded")
    finally:
        session.close()


def _two_streams(
    model: WhisperModel, recordings: Sequence[Float32Array], alone: Sequence[Tokens]
) -> Check:
    with ThreadPoolExecutor(max_workers=len(recordings)) as threads:
        together = list(threads.map(partial(decode, model), recordings))
    for expected, found in zip(alone, together, strict=True):
        check = _same("two streams at once", expected, found, "as when decoded alone")
        if not check.passed:
            return check
    return check
