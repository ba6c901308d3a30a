"""Reads Whisper's tokens from the model folder: text, special tokens and timestamps."""

import logging
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.runtime.languages import LANGUAGES, language_code
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.text.byte_decoder import TokenText
from whisper_npu.runtime.text.multilingual import is_multilingual
from whisper_npu.runtime.text.tokenizer_files import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubTokenizer

logger = logging.getLogger("whisper_npu")

TIMESTAMP_STEP = 0.02  # seconds between two timestamp tokens: one encoder frame
N_TIMESTAMPS = 1501  # from 0.00 to 30.00 s
_MOST_NAMES = 5  # of tokens in a message

# Symbols of annotations rather than speech, listed like openai/whisper's `non_speech_tokens`.
_ANNOTATION_SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *[
        "<<",
        ">>",
        "<<<",
        ">>>",
        "--",
        "---",
        "-(",
        "-[",
        "('",
        '("',
        "((",
        "))",
        "(((",
        ")))",
        "[[",
        "]]",
        "{{",
        "}}",
        "♪♪",
        "♪♪♪",
    ],
)
_MUSIC_SYMBOLS = tuple("♩♪♫♬♭♮♯")  # suppressed by their first token: they share prefix bytes


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that steer the decoder.

    `timestamp_begin` is `<|0.00|>`; each following id is one step of 20 ms later.
    """

    eot: int
    sot: int
    transcribe: int
    translate: int
    start_of_lm: int
    sot_prev: int
    no_speech: int
    no_timestamps: int
    timestamp_begin: int
    languages: dict[str, int]  # language code -> token


class Tokenizer:
    """Encodes and decodes the text of one model."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer; see `read_tokenizer` for the file.

        Raises:
            ModelError: the file is not a tokenizer, or lacks one of Whisper's special tokens.
        """
        self._text = TokenText(path)
        self._path = path
        self.special = self._read_special_tokens()

    @cached_property
    def _encoder(self) -> "HubTokenizer":
        from tokenizers import Tokenizer as HubTokenizer  # noqa: PLC0415 - slow, rarely needed

        try:
            return HubTokenizer.from_buffer(read_tokenizer(self._path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"cannot read {self._path}: {error}; export the model again") from None

    def _read_special_tokens(self) -> SpecialTokens:
        def token(*names: str) -> int:
            for name in names:
                found = self._text.id_of(name)
                if found is not None:
                    return found
            raise ModelError(f"{self._path} has no token {names[0]}; is this a Whisper tokenizer?")

        no_timestamps = token("<|notimestamps|>")
        found = {code: self._text.id_of(f"<|{code}|>") for code in LANGUAGES}
        return SpecialTokens(
            eot=token("<|endoftext|>"),
            sot=token("<|startoftranscript|>"),
            transcribe=token("<|transcribe|>"),
            translate=token("<|translate|>"),
            start_of_lm=token("<|startoflm|>"),
            sot_prev=token("<|startofprev|>"),
            no_speech=token("<|nospeech|>", "<|nocaptions|>"),
            no_timestamps=no_timestamps,
            timestamp_begin=no_timestamps + 1,
            languages={code: found_id for code, found_id in found.items() if found_id is not None},
        )

    @property
    def n_vocab(self) -> int:
        """Number of tokens, with timestamps if the file names them."""
        return self._text.n_vocab

    def name_of(self, token: int) -> str | None:
        """Return the name of a token, None if the files do not name it."""
        return self._text.name_of(token)

    def encode(self, text: str) -> list[int]:
        """Encode `text` without any special token."""
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int] | tuple[int, ...]) -> str:
        """Decode `tokens`; special tokens and timestamps give no text."""
        eot = self.special.eot
        return self._text.text(token for token in tokens if token < eot)

    @cached_property
    def annotation_tokens(self) -> tuple[int, ...]:
        """Tokens of speaker tags and non-speech annotations; no spoken text needs them."""
        found = {*self.encode(" -")[:1], *self.encode(" '")[:1]}
        for symbol in (*_ANNOTATION_SYMBOLS, *_MUSIC_SYMBOLS):
            for ids in (self.encode(symbol), self.encode(" " + symbol)):
                if len(ids) == 1 or (ids and symbol in _MUSIC_SYMBOLS):
                    found.add(ids[0])
        return tuple(sorted(found))

    def split_to_words(self, tokens: list[int], language: str) -> tuple[list[str], list[list[int]]]:
        """Group text tokens into words.

        Languages written without spaces are split at every whole character, the others at
        spaces and punctuation (openai/whisper, `Tokenizer.split_to_word_tokens`).

        Returns:
            the words, and the tokens of each.
        """
        characters, groups = self._split_at_whole_characters(tokens)
        if language in {"zh", "ja", "th", "lo", "my", "yue"}:
            return characters, groups
        words: list[str] = []
        word_tokens: list[list[int]] = []
        for text, group in zip(characters, groups, strict=True):
            special = group[0] >= self.special.eot
            starts_word = special or text.startswith(" ") or text.strip() in string.punctuation
            if starts_word or not words:
                words.append(text)
                word_tokens.append(list(group))
            else:
                words[-1] += text
                word_tokens[-1].extend(group)
        return words, word_tokens

    def _split_at_whole_characters(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Return the shortest runs of tokens that decode to whole characters."""
        replacement = "\ufffd"
        whole = self._text.text(tokens)
        texts: list[str] = []
        groups: list[list[int]] = []
        pending: list[int] = []
        offset = 0
        for token in tokens:
            pending.append(token)
            text = self._text.text(pending)
            at = text.find(replacement)
            # If the full text has the same replacement character, it is part of the text.
            if at < 0 or whole[offset + at : offset + at + 1] == replacement:
                texts.append(text)
                groups.append(pending)
                offset += len(text)
                pending = []
        if pending:  # an incomplete character at the end; its replacement is already in the text
            if groups:
                groups[-1].extend(pending)
            else:
                texts.append(self._text.text(pending))
                groups.append(pending)
        return texts, groups


def sot_sequence(
    special: SpecialTokens, *, is_multilingual: bool, language: str, task: str
) -> tuple[int, ...]:
    """Return the first tokens of a transcript; English-only models take no language or task."""
    if not is_multilingual:
        return (special.sot,)
    task_token = special.translate if task == "translate" else special.transcribe
    return (special.sot, special.languages[language], task_token)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens as the model's configuration describes them, beside the tokenizer itself.

    Attributes:
        is_multilingual: whether the model knows language and task tokens.
        suppress: tokens never sampled.
        begin_suppress: tokens never sampled first.
    """

    is_multilingual: bool
    suppress: tuple[int, ...]
    begin_suppress: tuple[int, ...]


def read_vocabulary(
    folder: ModelFolder, tokenizer: Tokenizer, n_vocab: int | None = None
) -> Vocabulary:
    """Return the suppression lists of `generation_config.json`, else Whisper's own lists.

    Args:
        folder: the model.
        tokenizer: its tokenizer.
        n_vocab: the number of the decoder's tokens. Those after the last timestamp are suppressed:
            padding, or tokens that a fine-tune has added, which would be taken for timestamps.
    """
    special = tokenizer.special
    behind = range(special.timestamp_begin + N_TIMESTAMPS, n_vocab or 0)
    added = [name for token in behind if (name := tokenizer.name_of(token)) is not None]
    if added:
        logger.warning(
            "%s: the tokens that were added after the timestamps are never written: %s",
            folder.name,
            ", ".join(added[:_MOST_NAMES]),
        )
    generation = folder.generation_config
    suppress: Iterable[int] | None = generation.suppress_tokens
    if suppress is None:
        suppress = [
            *tokenizer.annotation_tokens,
            special.sot,
            special.sot_prev,
            special.transcribe,
            special.translate,
            special.start_of_lm,
            special.no_speech,
        ]
    begin_suppress: Iterable[int] | None = generation.begin_suppress_tokens
    if begin_suppress is None:
        begin_suppress = [*tokenizer.encode(" "), special.eot]
    return Vocabulary(
        is_multilingual=is_multilingual(
            special.eot, len(special.languages), generation.is_multilingual
        ),
        suppress=tuple(sorted({int(t) for t in suppress if t >= 0} | set(behind))),
        begin_suppress=tuple(int(t) for t in begin_suppress if t >= 0),
    )


def require_language(tokenizer: Tokenizer, vocabulary: Vocabulary, language: str) -> str:
    """Return the code of `language` (see `find_language`), if the model can transcribe it.

    Raises:
        UsageError: the language is unknown, or unknown to this model.
    """
    code = language_code(language)
    if not vocabulary.is_multilingual:
        if code != "en":
            raise UsageError(
                f"this model is English-only and cannot transcribe {LANGUAGES[code]}; "
                "use a multilingual model such as base"
            )
    elif code not in tokenizer.special.languages:
        instead = "; give zh, or use large-v3 or turbo" if code == "yue" else ""
        raise UsageError(
            f"this model has no language token for {LANGUAGES[code]} ({code}){instead}"
        )
    return code
