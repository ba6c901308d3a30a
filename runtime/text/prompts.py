"""Builds the decoder's prompt for each window: hotwords, the user's prompt, the text before."""

from collections.abc import Sequence

from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.text.tokenizer import Tokenizer

# Text sampled at a higher temperature is a bad context for the next window (openai/whisper).
CONTEXT_TEMPERATURE = 0.5


class Prompts:
    """Builds prompts that fit the decoder's context.

    The reference reserves half of the context, less one token, for the prompt, and cuts a longer
    prompt from the left (openai/whisper, `DecodingTask._get_initial_tokens`). The text before never
    displaces hotwords, because the user asked for them.
    """

    def __init__(self, tokenizer: Tokenizer, options: TranscribeOptions, n_text_ctx: int) -> None:
        """Encode the user's texts; `warnings` names the texts that had to be cut."""
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
        """Tokens that fit after hotwords and initial prompt without displacing any of them."""
        return max(0, self._room - len(self._hotwords) - len(self.initial))

    def before(self, context: Sequence[int]) -> tuple[int, ...]:
        """Return the prompt for a window whose preceding text is `context`."""
        room = self._room - len(self._hotwords)
        return (*self._hotwords, *(context[-room:] if room else ()))

    def take_prefix(self) -> tuple[int, ...]:
        """Return the tokens that the first window's text begins with; nothing the second time."""
        taken, self._prefix = self._prefix, ()
        return taken
