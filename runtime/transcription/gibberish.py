"""Notices a model that writes gibberish: one with damaged weights or a foreign tokenizer."""

from dataclasses import dataclass

from whisper_npu.errors import GibberishError
from whisper_npu.runtime.decoding.quality import Action
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.transcription.window_decoding import WindowResult

_ENOUGH = 100.0  # seconds of gibberish at the start of a recording that raise the error


@dataclass
class GibberishWatch:
    """Counts the windows of a recording whose every attempt was gibberish.

    Attributes:
        refuses: whether a recording that begins with gibberish is refused.
        n_gibberish: windows whose every attempt was a loop or random text.
        n_texts: windows with a text.
        seconds: seconds of audio in the windows of gibberish.
    """

    refuses: bool = True
    n_gibberish: int = 0
    n_texts: int = 0
    seconds: float = 0.0

    def note(self, result: WindowResult) -> None:
        """Count a decoded window.

        Raises:
            GibberishError: the recording began with `_ENOUGH` seconds of gibberish.
        """
        verdict = result.outcome.verdict
        if verdict.action in (Action.SILENCE, Action.SPLIT):
            return
        if not verdict.is_gibberish:
            self.n_texts += 1
            return
        self.n_gibberish += 1
        self.seconds += result.window.n_frames / FRAMES_PER_SECOND
        if self.refuses and self.seconds >= _ENOUGH and not self.n_texts:
            raise GibberishError(
                f"the first {self.seconds:.0f} s that were decoded gave nothing but repetitions, "
                "at every temperature: if other recordings do so too, the model's weights are "
                "damaged or its tokenizer is another model's; run `whisper-npu selftest`"
            )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user, one line each."""
        if not self.n_gibberish:
            return ()
        n_windows = self.n_gibberish + self.n_texts
        return (
            f"{self.n_gibberish} of {n_windows} windows gave nothing but repetitions, at "
            "every temperature: do not believe their text",
        )
