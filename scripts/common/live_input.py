"""Reads live audio ahead in a thread."""

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread

import numpy as np

from whisper_npu.runtime.audio.source import Samples

_READ_AHEAD = 300  # blocks; a faster source than a microphone waits


class Arrivals:
    """Audio that a thread reads ahead, so that no recorder waits for a decoding.

    An iterator; each step gives all audio that arrived since the last step.
    """

    def __init__(self, blocks: Iterator[Samples]) -> None:
        """Begin to read."""
        self._blocks = blocks
        self._queue: SimpleQueue[Samples | Exception | None] = SimpleQueue()
        self._room = Semaphore(_READ_AHEAD)
        # Nothing ends a read from a pipe without a writer, so the program must not wait for the
        # thread.
        Thread(target=self._read, name="stream-input", daemon=True).start()

    def _read(self) -> None:
        try:
            for block in self._blocks:
                self._room.acquire()
                self._queue.put(block)
        except Exception as error:  # the other thread raises it
            self._queue.put(error)
        self._queue.put(None)

    def stop(self) -> None:
        """End after the audio that has been read; a signal handler may call this."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Samples]:
        """Successive samples, `(n,)`.

        Raises:
            AudioError: the input cannot be read.
        """
        item = self._queue.get()
        while item is not None:
            held = []
            while item is not None and not isinstance(item, Exception):
                self._room.release()
                held.append(item)
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
            if held:
                yield np.concatenate(held)
            if isinstance(item, Exception):
                raise item
            if item is not None:
                item = self._queue.get()
