"""Notices a model that writes gibberish: one with damaged weights or a foreign tokenizer."""

from dataclasses import dataclass

from whisper_npu.errors import GibberishError
from whisper_npu.runtime.fallback import Outcome

_ENOUGH = 4  # windows with speech at the start of a recording, none of them with a text


@dataclass
class GibberishWatch:
    """Counts the windows of a recording whose every attempt was gibberish.

    Attributes:
        n_gibberish: windows of which every attempt was a loop or mere chance.
        n_texts: windows with a text.
    """

    n_gibberish: int = 0
    n_texts: int = 0

    def note(self, outcome: Outcome) -> None:
        """Take up what became of a window.

        Raises:
            GibberishError: the recording began with several windows of gibberish.
        """
        if outcome.is_silence or outcome.in_parts:
            return
        if not outcome.is_gibberish:
            self.n_texts += 1
            return
        self.n_gibberish += 1
        if self.n_gibberish >= _ENOUGH and not self.n_texts:
            raise GibberishError(
                f"the first {_ENOUGH} windows with speech gave nothing but loops and chance, at "
                "every temperature: if other recordings do so too, the model's weights are damaged "
                "or its tokenizer is another model's; `whisper-npu selftest` tells"
            )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one line each."""
        if not self.n_gibberish:
            return ()
        n_windows = self.n_gibberish + self.n_texts
        return (
            f"{self.n_gibberish} of {n_windows} windows gave nothing but loops and chance, at "
            "every temperature: do not believe their text",
        )
