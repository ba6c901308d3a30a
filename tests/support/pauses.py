"""A speech detector for tests, with speech at known places."""

import numpy as np


class PausesEverySoOften:
    """Finds speech everywhere, except in a pause of a quarter of a second every four seconds."""

    heard = 0

    def detector(self):
        return PausesEverySoOften()

    def judge(self, chunks):
        self.heard += len(chunks)
        numbers = np.arange(self.heard - len(chunks), self.heard)
        return lambda: (numbers % 125 >= 8).astype(np.float32)
