"""Which language is spoken, window by window.

Of a second of speech the model only guesses the language: it took one short phrase in five for
another one, with a probability of up to 0.94 (docs/accuracy.md). Longer speech is rarely mistaken,
and what was spoken before is mostly spoken still. So a window has to be likelier in another
language to be taken for it: much likelier in one that has not been heard yet, and all the more so
if it is short.
"""

import logging
from dataclasses import dataclass, field

from whisper_npu.runtime.languages import LANGUAGES

logger = logging.getLogger("whisper_npu")

TELLING = 1.2  # seconds of speech that are seldom mistaken
_CERTAIN = 0.8  # probability that is seldom mistaken, of so much speech
_ENOUGH = 10.0  # seconds of speech of which half of that is believed: some languages are much alike
_LIKELY = 0.5
_SURE = 0.9  # probability from which less speech need not be tried in other languages
_DOUBTFUL = 0.6  # probability below which the user is told
# How many times as probable as the language before another one must be to follow it.
_AGAIN = 4  # one that was certain before, or is heard for `_ENOUGH`
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
        probabilities: of the main language and then all others, likeliest first, in the window
            that decided; empty if it was given.
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
    def is_known(self) -> bool:
        """Whether the language before the next window is certain, which says more than a guess."""
        return self.code in self._certain

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

    def add_evidence(self, seconds: float, probabilities: dict[str, float]) -> None:
        """Take up what a window says.

        Args:
            seconds: of speech in it.
            probabilities: of all languages, likeliest first.
        """
        likeliest = next(iter(probabilities))
        telling = tells(seconds, probabilities)
        if self.code is None or (telling and self.code not in self._certain):
            self.code = likeliest  # what was guessed before binds nothing
        else:
            weights = {code: self._weight(code, seconds, probabilities) for code in probabilities}
            self.code = max(weights, key=weights.__getitem__)
        code = self.code
        is_certain = telling and code == likeliest
        if is_certain:
            self._certain |= {code}
        # The recording's language is that of its first speech or, of guesses, the surest.
        surer = self.main is None or probabilities[code] > self.probabilities[self.main]
        if self.main is None or (not self.may_change and (is_certain or surer)):
            if self.main != code:
                logger.info("language: %s", LANGUAGES[code])
            self.main, self.probabilities = code, {code: probabilities[code]} | probabilities
        self.is_guess = not is_certain and (self.may_change or self.is_guess)

    def _weight(self, code: str, seconds: float, probabilities: dict[str, float]) -> float:
        """A language's probability, less where it is not the one before."""
        if code == self.code:
            return probabilities[code]
        if code in self._certain or seconds >= _ENOUGH:
            return probabilities[code] / _AGAIN
        return probabilities[code] / (_NEW if seconds >= TELLING else _NEW_IN_SHORT)


def tells(seconds: float, probabilities: dict[str, float]) -> bool:
    """Whether the language of so many seconds of speech can be told from them alone."""
    probability = next(iter(probabilities.values()))
    return (seconds >= TELLING and probability >= _CERTAIN) or (
        seconds >= _ENOUGH and probability >= _LIKELY
    )


def is_sure(seconds: float, probabilities: dict[str, float]) -> bool:
    """Whether other languages need not be tried on so many seconds of speech."""
    return next(iter(probabilities.values())) >= (_LIKELY if seconds >= _ENOUGH else _SURE)
