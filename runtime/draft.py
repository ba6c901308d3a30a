"""Text drafted from a small part of the vocabulary, and made certain from the whole one.

More than half of what a step of a small decoder reads for a single row is the vocabulary's table.
Most tokens can be told from a few thousand frequent ones. So a few tokens are drafted from those,
one step after another, and then the whole table is read once for all of them. Where the whole
vocabulary says otherwise, decoding goes back to that place. What is handed out are the logits that
single steps would have given.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.decoding.logit_filters import LogitFilter
from whisper_npu.runtime.engines.protocol import Drafter, Float32Array, Int64Array

# As many rows as the table can be multiplied by in the time it takes to read it.
_MOST = 8
# A token less likely than this, by the small part, is not gone on from before the whole vocabulary
# has been asked.
_SURE = 0.5


class Draft:
    """The logits of a single row, computed ahead of those who ask for them."""

    def __init__(
        self, drafter: Drafter, rules: Sequence[LogitFilter], eot: int, n_tokens: int
    ) -> None:
        """Begin to draft.

        Args:
            drafter: the row's session.
            rules: what forbids tokens.
            eot: end of text.
            n_tokens: how many tokens the row has when it is asked about for the last time.
        """
        self._drafter = drafter
        self._rules = rules
        self._eot = eot
        self._n_tokens = n_tokens
        self.left = (0,)  # the rows still decoded, as of `decoding._Rows`
        self._ahead: deque[tuple[int, Float32Array]] = deque()  # tokens, and logits after them

    def step(self, tokens: Int64Array, finished: npt.NDArray[np.bool_]) -> Float32Array:
        """Logits `(1, n_vocab)` after the last of the sampled tokens `(1, n)`."""
        if self._ahead and self._ahead[0][0] != tokens[0, -1]:
            self._drafter.rewind(self._drafter.length - len(self._ahead))
            self._ahead.clear()
        if not self._ahead:
            self._go_on(tokens)
        return self._ahead.popleft()[1][None]

    def _go_on(self, tokens: Int64Array) -> None:
        """Draft what follows `tokens`, and ask the whole vocabulary."""
        begin = tokens.shape[1] - 1
        while True:
            scores = self._drafter.draft(tokens[:, -1:])
            if tokens.shape[1] in (begin + _MOST, self._n_tokens):
                break
            for rule in self._rules:
                rule.apply(scores, tokens)
            token = int(scores.argmax())
            if token == self._eot or np.exp(scores[0, token]) < _SURE:
                break
            tokens = np.append(tokens, [[token]], axis=1)
        drafted = tokens[0, begin:].tolist()
        self._ahead.extend(zip(drafted, self._drafter.settle(), strict=True))
