"""Reads special tokens, languages and suppressed tokens from a Whisper tokenizer."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from whisper_npu.errors import CheckpointError
from whisper_npu.export.checkpoint_files import MEND
from whisper_npu.runtime.text.byte_decoder import parse_tokenizer
from whisper_npu.runtime.text.multilingual import is_multilingual

# Symbols of openai/whisper's Tokenizer.non_speech_tokens, which annotate sound and are not spoken:
# single characters, then groups, one per word.
SYMBOLS = [
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *["<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))"],
    *["[[", "]]", "{{", "}}", "♪♪", "♪♪♪"],
]
MUSIC = list("♩♪♫♬♭♮♯")  # their UTF-8 begins with the same bytes: the first token is suppressed
LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # the name in large-v3, and in all earlier models
ENGLISH_VOCABULARY = 51864
MULTILINGUAL_VOCABULARY = 51865
CANTONESE_VOCABULARY = 51866  # large-v3 and models made from it


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens; English-only models have no `languages` and `tasks`."""

    eot: int
    sot: int
    no_timestamps: int
    languages: dict[str, int]
    tasks: dict[str, int]
    controls: tuple[int, ...]

    @property
    def is_multilingual(self) -> bool:
        """Whether the prompt takes a language and a task."""
        return bool(self.languages)


def read_special_tokens(
    tokenizer_json: bytes, n_vocab: int, stated: object = None
) -> SpecialTokens:
    """Read the special tokens of a tokenizer.json.

    Args:
        tokenizer_json: The file's content.
        n_vocab: Rows of the model's embedding; fine-tunes may have more rows than tokens.
        stated: `is_multilingual` of the model's generation configuration; see `is_multilingual`.

    Raises:
        CheckpointError: A token that Whisper needs is missing or outside the vocabulary.
    """
    ids = _added_tokens(tokenizer_json)
    required = ("<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|translate|>")
    missing = [
        name for name in (*required, "<|startofprev|>", "<|notimestamps|>") if name not in ids
    ]
    if missing:
        raise CheckpointError(f"tokenizer.json is not a Whisper tokenizer: it lacks {missing[0]}")
    if max(ids.values()) >= n_vocab:
        raise CheckpointError(
            f"tokenizer.json does not belong to the weights: it has the token {max(ids.values())},"
            f" the embedding {n_vocab} rows"
        )
    sot = ids["<|startoftranscript|>"]
    languages = {
        name: ids[name]
        for name in sorted(ids, key=lambda name: ids[name])
        if LANGUAGE.fullmatch(name) and sot < ids[name] < ids["<|translate|>"]
    }
    multilingual = is_multilingual(ids["<|endoftext|>"], len(languages), stated)
    controls = ("<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>")
    return SpecialTokens(
        eot=ids["<|endoftext|>"],
        sot=sot,
        no_timestamps=ids["<|notimestamps|>"],
        languages=languages if multilingual else {},
        tasks={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")}
        if multilingual
        else {},
        controls=tuple(
            sorted(ids[name] for name in (*controls, "<|startofprev|>", *NO_SPEECH) if name in ids)
        ),
    )


def suppressed_tokens(tokenizer_json: bytes, special: SpecialTokens) -> list[int]:
    """The tokens that openai/whisper suppresses at every step (`suppress_tokens="-1"`)."""
    encode = _encoder(tokenizer_json)
    # A hyphen or quote is allowed inside a word, not at its start.
    found = {encode(" -")[0], encode(" '")[0], *special.controls}
    for symbol in (*SYMBOLS, *MUSIC):
        for tokens in (encode(symbol), encode(f" {symbol}")):
            if len(tokens) == 1 or symbol in MUSIC:
                found.add(tokens[0])
    return sorted(found)


def begin_suppressed_tokens(tokenizer_json: bytes, special: SpecialTokens) -> list[int]:
    """The tokens suppressed at the first step: a blank, and the end of the text."""
    return [*_encoder(tokenizer_json)(" "), special.eot]


def with_cantonese(tokenizer_json: bytes) -> bytes:
    """Large-v3's tokenizer from the older multilingual one: `<|yue|>` after the last language.

    The ids of all special tokens after it rise by one.
    """
    content: dict[str, Any] = json.loads(tokenizer_json)
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    first_moved = ids["<|translate|>"]

    def moved(token_id: int) -> int:
        return token_id + 1 if token_id >= first_moved else token_id

    language = next(token for token in content["added_tokens"] if token["content"] == "<|en|>")
    for token in content["added_tokens"]:
        token["id"] = moved(token["id"])
    content["added_tokens"].append({**language, "content": "<|yue|>", "id": first_moved})
    content["added_tokens"].sort(key=lambda token: token["id"])
    for token in (content["post_processor"] or {}).get("special_tokens", {}).values():
        token["ids"] = [moved(token_id) for token_id in token["ids"]]
    return json.dumps(content, ensure_ascii=False).encode()


def _added_tokens(tokenizer_json: bytes) -> dict[str, int]:
    content = parse_tokenizer(tokenizer_json, "tokenizer.json", error=CheckpointError, advice=MEND)
    return {token.content: token.id for token in content.added_tokens}


def _encoder(tokenizer_json: bytes) -> Callable[[str], list[int]]:
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"tokenizer.json is damaged: {reason}; {MEND}") from None

    def encode(text: str) -> list[int]:
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
        if not ids:
            raise CheckpointError(f"tokenizer.json has no tokens for {text!r}; {MEND}")
        return ids

    return encode
