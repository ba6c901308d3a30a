"""Which language is spoken, window by window.

Of a second of speech the model only guesses the language: it took one short phrase in five for
another one, with a probability of up to 0.94 (docs/accuracy.md). Longer speech is rarely mistaken,
and what was spoken before is mostly spoken still. So a window has to be likelier in another
language to be taken for it: much likelier in one that has not been heard yet, and all the more so
if it is short.
"""

import logging
from dataclasses import dataclass, field

from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.languages import LANGUAGES

logger = logging.getLogger("whisper_npu")

TELLING = 2.0  # seconds of audio that are seldom mistaken
_CERTAIN = 0.8  # probability that is seldom mistaken, of so much audio
_DOUBTFUL = 0.6  # probability below which the user is told
_ENOUGH = 10.0  # seconds that are believed whatever the probability: some languages are much alike
# How many times as probable as the language before another one must be to follow it.
_AGAIN = 4  # one that was certain before
_NEW = 20
_NEW_IN_SHORT = 1000


@dataclass
class SpokenLanguage:
    """The language of a recording as it goes on.

    Attributes:
        code: of what was spoken last; None until a window was heard.
        may_change: whether every window may be in another language.
        is_guess: whether the code is not certain.
        main: code of the recording's language; of several, that of the first speech.
        probabilities: of the main language and all others, likeliest first; empty if it was given.
    """

    code: str | None
    may_change: bool
    is_guess: bool
    main: str | None
    probabilities: dict[str, float] = field(default_factory=dict)
    _certain: frozenset[str] = frozenset()  # languages heard for certain

    @classmethod
    def of(cls, given: str | None, *, may_change: bool) -> "SpokenLanguage":
        """Nothing has been heard yet; `given` is the language if it is known."""
        return cls(given, may_change, given is None, given)

    @property
    def is_open(self) -> bool:
        """Whether the next window has to be asked."""
        return self.may_change or self.is_guess

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one line each."""
        if not self.is_guess or self.may_change or self.main is None:
            return ()
        probability = self.probabilities[self.main]
        if probability >= _DOUBTFUL:
            return ()
        return (
            f"taken to be in {LANGUAGES[self.main]}, with a probability of {probability:.2f} only; "
            "give the language if it is another",
        )

    def hear(self, n_frames: int, probabilities: dict[str, float]) -> None:
        """Take up what a window says.

        Args:
            n_frames: frames of audio in it.
            probabilities: of all languages, likeliest first.
        """
        is_short = n_frames < TELLING * FRAMES_PER_SECOND

        def weight(code: str) -> float:
            if self.code in (None, code):
                return probabilities[code]
            new = _NEW_IN_SHORT if is_short else _NEW
            return probabilities[code] / (_AGAIN if code in self._certain else new)

        self.code = max(probabilities, key=weight)
        is_certain = tells(n_frames, probabilities)
        if is_certain:
            self._certain |= {self.code}
        if self.main is None or not self.may_change:
            if self.main != self.code:
                logger.info("language: %s", LANGUAGES[self.code])
            self.main, self.probabilities = self.code, probabilities
        self.is_guess = not is_certain and (self.may_change or self.is_guess)


def tells(n_frames: int, probabilities: dict[str, float]) -> bool:
    """Whether a window's language can be told from the window alone."""
    seconds = n_frames / FRAMES_PER_SECOND
    probability = next(iter(probabilities.values()))
    return seconds >= _ENOUGH or (seconds >= TELLING and probability >= _CERTAIN)
