"""Batches of later steps, prepared while the current step trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch.utils.data import IterableDataset

from genkit.data.base import KeyedBatches
from genkit.types import Batch


class Prepared(NamedTuple):
    """A batch that went through an objective's `prepare`, and the generator with which its loss goes on."""

    batch: Batch
    generator: torch.Generator


class Ahead(IterableDataset[Prepared]):
    """The batches of steps start, ..., stop - 1, each taken and prepared by one thread beside the training.

    Lightning holds the batch of the next step while it trains the current one, so the thread works on the one
    after. What it makes is a function of the step alone, and the same, bit for bit, as if made in the step; a
    coupling may not draw from torch's own generator, which is the step's. An error shows where its batch is used.

    prepare: (batch, its number) -> Prepared. beside: whether there is such a thread. Where the CPU trains there should
    be none: its threads and those of the step would take the cores from each other.
    """

    def __init__(
        self, batches: KeyedBatches, prepare: Callable[[Batch, int], Prepared], beside: bool
    ) -> None:
        self.batches, self.prepare, self.beside = batches, prepare, beside

    def make(self, number: int) -> Prepared:
        return self.prepare(self.batches.batch(number), number)

    def __iter__(self) -> Iterator[Prepared]:
        numbers = range(self.batches.start, self.batches.stop)
        if not self.beside:
            yield from map(self.make, numbers)
            return
        waiting: deque[Future[Prepared]] = deque()
        # as many threads within an operation as the caller has: their number decides how sums round
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, "ahead", torch.set_num_threads, (threads,)) as worker:
            for number in numbers:
                waiting.append(worker.submit(self.make, number))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
