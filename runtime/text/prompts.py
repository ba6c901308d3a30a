"""What the decoder is given before each window: hotwords, the user's prompt, the text before."""

from collections.abc import Sequence

from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.text.tokenizer import Tokenizer

# Text sampled at a higher temperature is no good context for what follows (openai/whisper).
CONTEXT_TEMPERATURE = 0.5


class Prompts:
    """Builds prompts that fit the decoder's context.

    The reference keeps half of the context, less one, for the prompt, and cuts what is longer
    from the left (openai/whisper, `DecodingTask._get_initial_tokens`). Hotwords are never cut by
    the text before them, being what the user asked for.
    """

    def __init__(self, tokenizer: Tokenizer, options: TranscribeOptions, n_text_ctx: int) -> None:
        """Encode the user's texts; `warnings` says which of them had to be cut."""
        self._room = n_text_ctx // 2 - 1
        self.warnings: list[str] = []
        self._hotwords = self._encode(tokenizer, options.hotwords, "hotwords")
        self.initial = self._encode(tokenizer, options.initial_prompt, "initial prompt")
        self._prefix = self._encode(tokenizer, options.prefix, "prefix")

    def _encode(
        self, tokenizer: Tokenizer, given: str | Sequence[int] | None, what: str
    ) -> tuple[int, ...]:
        if isinstance(given, str):
            given = tokenizer.encode(" " + given.strip()) if given.strip() else ()
        tokens = given or ()
        if len(tokens) > self._room:
            self.warnings.append(
                f"the {what} has {len(tokens)} tokens; the last {self._room} are used"
            )
        return tuple(tokens[-self._room :])

    @property
    def room(self) -> int:
        """Tokens that fit behind hotwords and initial prompt without pushing any of them out."""
        return max(0, self._room - len(self._hotwords) - len(self.initial))

    def before(self, context: Sequence[int]) -> tuple[int, ...]:
        """The prompt before a window whose preceding text is `context`."""
        room = self._room - len(self._hotwords)
        return (*self._hotwords, *(context[-room:] if room else ()))

    def take_prefix(self) -> tuple[int, ...]:
        """What the first window's text goes on from; nothing the second time."""
        taken, self._prefix = self._prefix, ()
        return taken
