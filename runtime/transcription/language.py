"""Tracks the spoken language, window by window.

The model only guesses the language of a second of speech: it mistook the language of one short
phrase in five, with a probability of up to 0.94 (docs/accuracy.md). It rarely mistakes longer
speech, and speakers mostly keep their language. So a window changes the language only if another
language is likelier by a factor. The factor is larger for a new language, and largest for a new
language in a short window.
"""

import logging
from dataclasses import dataclass, field

from whisper_npu.runtime.languages import LANGUAGES

logger = logging.getLogger("whisper_npu")

TELLING = 1.2  # seconds of speech whose language is seldom mistaken...
_CERTAIN = 0.8  # ...at this probability
_ENOUGH = 10.0  # seconds of speech for which `_LIKELY` is enough: some languages are much alike
_LIKELY = 0.5
_SURE = 0.9  # probability from which speech under `_ENOUGH` is not tried in other languages
_DOUBTFUL = 0.6  # probability below which the user is warned
# Factor by which another language must be likelier than the language before.
_AGAIN = 4  # a language that was certain before, or any after `_ENOUGH` seconds of speech
_NEW = 20
_NEW_IN_SHORT = 1000


@dataclass
class SpokenLanguage:
    """The language of a recording, as known so far.

    Attributes:
        code: code of the language spoken last; None before the first detection.
        may_change: whether every window may be in another language.
        is_guess: whether the code is uncertain.
        main: code of the recording's language; with several, the language of the first speech.
        probabilities: of the main language and then all others, likeliest first, in the window
            that decided; empty if the language was given.
    """

    code: str | None
    may_change: bool
    is_guess: bool
    main: str | None
    probabilities: dict[str, float] = field(default_factory=dict)
    _certain: frozenset[str] = frozenset()  # languages that were certain in a window

    @classmethod
    def of(cls, given: str | None, *, may_change: bool) -> "SpokenLanguage":
        """Make the state before the first window; `given` is the language if it is known."""
        return cls(given, may_change, given is None, given)

    @property
    def is_open(self) -> bool:
        """Whether the language of the next window must be detected."""
        return self.may_change or self.is_guess

    @property
    def is_known(self) -> bool:
        """Whether the language before the next window is certain."""
        return self.code in self._certain

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user, one line each."""
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
        """Update the language by the detection in a window.

        Args:
            seconds: seconds of speech in the window.
            probabilities: of all languages, likeliest first.
        """
        likeliest = next(iter(probabilities))
        telling = tells(seconds, probabilities)
        if self.code is None or (telling and self.code not in self._certain):
            self.code = likeliest  # an earlier guess does not count
        else:
            weights = {code: self._weight(code, seconds, probabilities) for code in probabilities}
            self.code = max(weights, key=weights.__getitem__)
        code = self.code
        is_certain = telling and code == likeliest
        if is_certain:
            self._certain |= {code}
        # The recording's language is that of its first speech, or the likeliest of several guesses.
        surer = self.main is None or probabilities[code] > self.probabilities[self.main]
        if self.main is None or (not self.may_change and (is_certain or surer)):
            if self.main != code:
                logger.info("language: %s", LANGUAGES[code])
            self.main, self.probabilities = code, {code: probabilities[code]} | probabilities
        self.is_guess = not is_certain and (self.may_change or self.is_guess)

    def _weight(self, code: str, seconds: float, probabilities: dict[str, float]) -> float:
        """A language's probability, reduced if it differs from the language before."""
        if code == self.code:
            return probabilities[code]
        if code in self._certain or seconds >= _ENOUGH:
            return probabilities[code] / _AGAIN
        return probabilities[code] / (_NEW if seconds >= TELLING else _NEW_IN_SHORT)


def tells(seconds: float, probabilities: dict[str, float]) -> bool:
    """Whether the probabilities alone tell the language of `seconds` of speech."""
    probability = next(iter(probabilities.values()))
    return (seconds >= TELLING and probability >= _CERTAIN) or (
        seconds >= _ENOUGH and probability >= _LIKELY
    )


def is_sure(seconds: float, probabilities: dict[str, float]) -> bool:
    """Whether `seconds` of speech need not be decoded in other languages."""
    return next(iter(probabilities.values())) >= (_LIKELY if seconds >= _ENOUGH else _SURE)
