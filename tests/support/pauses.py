"""A speech detector for tests: where it hears speech is known beforehand."""

import numpy as np


class PausesEverySoOften:
    """Hears speech, and a pause of a quarter of a second in every four."""

    heard = 0

    def detector(self):
        return PausesEverySoOften()

    def judge(self, chunks):
        self.heard += len(chunks)
        numbers = np.arange(self.heard - len(chunks), self.heard)
        return lambda: (numbers % 125 >= 8).astype(np.float32)
