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


class SpeechAt:
    """Finds speech in the given stretches, in seconds from the start, and nowhere else."""

    def __init__(self, *stretches):
        self.stretches = stretches
        self.heard = 0

    def detector(self):
        return SpeechAt(*self.stretches)

    def judge(self, chunks):
        self.heard += len(chunks)
        at = np.arange(self.heard - len(chunks), self.heard) / 31.25
        speech = [(at >= start) & (at < end) for start, end in self.stretches]
        return lambda: np.any([np.zeros(len(at), bool), *speech], axis=0).astype(np.float32)
