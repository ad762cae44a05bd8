"""Data sets, their parts, and the batches of an optimizer step as a function of (seed, step, rank).

    Dataset --split("train")--> Split --take(rows)--> (x, y) as stored
    KeyedBatches(split, ...): a Batch for each step
    Encoded(split, view): (x1, y) as an objective reads it

Stored values stay what they are: integer levels (kept as uint8 where they fit, int64 when taken) or float32.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from genkit.errors import GenkitError, choose
from genkit.randomness import keyed_generator
from genkit.registry import Registry
from genkit.types import Batch, DataSpec, Generator, View

SPLITS = ("train", "test")


class Split(abc.ABC):
    """The rows of one part of a data set. y: the classes (N,) or conditions (N, K) of all, set by a split that has
    some; else None."""

    y: Tensor | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows by number: index (B,) int64 -> x (B, *shape) int64 levels or float32, y (B,) int64, (B, K) float32 or
        None."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Split:
        """The same rows, taken on `device`."""

    @property
    @abc.abstractmethod
    def hash(self) -> str:
        """SHA-256 (hex) of the content: equal rows in equal order have equal hashes, in every process."""


class TensorSplit(Split):
    """Rows held as one tensor on a device: taking a batch is one indexing, without a copy through the host.

    x: (N, *shape), uint8 or int64 levels or float32. y: (N,) classes, (N, K) real-valued conditions, or None.
    Raises GenkitError when x and y differ in length, there is no row, or a condition is not finite.
    """

    def __init__(self, x: Tensor, y: Tensor | None = None) -> None:
        if len(x) == 0:
            raise GenkitError("a split needs at least one row")
        if y is not None and len(y) != len(x):
            raise GenkitError(f"a split has {len(x)} rows but {len(y)} labels")
        if y is not None and y.is_floating_point() and not bool(y.isfinite().all()):
            raise GenkitError("a split has conditions that are not finite (NaN would stand for none)")
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        index = index.to(self.x.device)
        x, y = self.x[index], None if self.y is None else self.y[index]
        return (whole(x), None if y is None else whole(y))

    def to(self, device: torch.device | str) -> TensorSplit:
        return TensorSplit(self.x.to(device), None if self.y is None else self.y.to(device))

    @cached_property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.x, self.y):
            if tensor is not None:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def whole(x: Tensor) -> Tensor:
    """Levels and classes as int64; real numbers as they are."""
    return x if x.is_floating_point() else x.long()


EVERY = 5  # one row of so many is held out, of data that come in one part


def held_out(n: int, *key: str) -> tuple[Tensor, Tensor]:
    """The numbers of the rows to train on and of those to test, of n: in a keyed order every fifth, from the first."""
    order = torch.randperm(n, generator=keyed_generator(0, *key))
    test = torch.arange(n) % EVERY == 0
    return order[~test], order[test]


def standardized(x: Tensor, train: Tensor) -> Tensor:
    """x (N, D), (N, P, D) or (N, C, H, W) with mean 0 and standard deviation 1 of each column, coordinate or channel
    over the rows numbered by `train`. Raises GenkitError for a column of one value."""
    dims = (0, 2, 3) if x.ndim == 4 else tuple(range(x.ndim - 1))
    std, mean = torch.std_mean(x[train], dims, correction=0, keepdim=True)
    if not bool((std > 0).all()):
        raise GenkitError(f"column {int((std.flatten() == 0).nonzero()[0])} has one value only: leave it out")
    return (x - mean) / std


class Encoded:
    """A split seen through a view: rows as an objective models them. Couplings get this in `setup`."""

    def __init__(self, split: Split, view: View) -> None:
        self.split, self.view = split, view

    def __len__(self) -> int:
        return len(self.split)

    @property
    def hash(self) -> str:
        """That of the split."""
        return self.split.hash

    def some(self, count: int) -> Tensor:
        """The numbers, in order, of so many rows of all, always the same; of all rows where there are no more. Files of
        data are often in the order of their classes, so that the first rows say little of the rest."""
        n = len(self)
        if n <= count:
            return torch.arange(n)
        return torch.randperm(n, generator=keyed_generator(0, "some"))[:count].sort().values

    def take(self, index: Tensor, generator: Generator = None) -> tuple[Tensor, Tensor | None]:
        """index (B,) -> x1 (B, *shape) encoded, y (B,), (B, K) or None."""
        x, y = self.split.take(index)
        return self.view.encode(x, generator=generator), y


@dataclass
class Shown:
    """Rows of data for a person.

    images: (N, C, H, W) of `levels` levels. texts: N of them. sounds: (N, T) in [-1, 1]. A row may have several
    forms; of data of several tasks it has the one of its answer, and each form has its rows in order.
    """

    images: Tensor | None = None
    levels: int = 256
    texts: list[str] | None = None
    sounds: Tensor | None = None


@dataclass(frozen=True)
class Codec:
    """What turns sounds into symbols and back: a trained model, which a recipe gives to data that name its run.

    encode: sounds (B, T) -> codes (B, frames) from 0 to size - 1. decode: the inverse, about.
    spec: of the sounds. hash: of what the codes are a function of.
    """

    spec: DataSpec
    size: int
    frames: int
    hash: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


class Dataset(abc.ABC):
    """A data set: what it holds (`spec`) and its two parts. A new one writes `spec` and `load`."""

    spec: DataSpec

    @abc.abstractmethod
    def load(self, name: Literal["train", "test"]) -> Split:
        """Reads or generates one part. Called once for each part."""

    def resized(self, size: int) -> Dataset:
        """The same data with images of another side, or clouds of another number of points.

        Raises GenkitError for data that are of one size only.
        """
        raise GenkitError(f"'{self.spec.name}' has samples of one size only: {self.spec.shape}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What rows ask, where there are several such things: the tasks that `given`, `words` and `pairs` know."""
        return ()

    @cached_property
    def train(self) -> Split:
        return self.load("train")

    @cached_property
    def test(self) -> Split:
        return self.load("test")

    def split(self, name: Literal["train", "test"]) -> Split:
        """One part, loaded once. Raises GenkitError for another name."""
        if name not in SPLITS:
            raise choose(name, SPLITS, "split")
        return self.train if name == "train" else self.test

    def show(self, x: Tensor) -> Shown:
        """Rows x (N, *shape), as stored or as sampled, as what a person can look at or listen to. Of real-valued images
        -1 is black and 1 is white; where channels are not one or three, the first is shown."""
        if not self.spec.image:
            return Shown()
        x = x if x.shape[1] in (1, 3) else x[:, :1]
        if self.spec.levels is None:
            return Shown(images=((x.clamp(-1, 1) + 1) * 127.5).round().long())
        return Shown(images=x, levels=self.spec.levels)

    def given(self, prompt: str, task: str | None = None) -> Tensor:
        """A prompt as a row (*shape) of levels with -1 where a model is to fill in.

        Raises GenkitError for data that take no prompts, and for a prompt that does not fit.
        """
        raise GenkitError(f"'{self.spec.name}' takes no prompt: its samples are chosen by class")

    def words(self, x: Tensor, task: str) -> list[str]:
        """The text of each row of a task among x (N, *shape), be it prompt or answer.

        Raises GenkitError for data without tasks.
        """
        raise GenkitError(f"'{self.spec.name}' has no tasks")

    def pairs(self, x: Tensor, task: str) -> tuple[Shown, list[str]]:
        """Of the rows of a task among x (N, *shape): what is shown or heard, and the `words` that go with it."""
        return Shown(), self.words(x, task)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of both parts and of what their numbers mean (shape, levels, classes, conditions, symbols)."""
        spec = self.spec
        content: tuple[object, ...] = (
            *(spec.shape, spec.levels, spec.classes),
            *(self.train.hash, self.test.hash),
        )
        if spec.tokenizer or spec.fixed:
            content += (spec.tokenizer, spec.fixed)
        if spec.condition is not None:
            content += (spec.condition,)
        return hashlib.sha256(repr(content).encode()).hexdigest()


DATASETS: Registry[Dataset] = Registry(Dataset, "data set", "genkit.data")


class KeyedBatches(IterableDataset[Batch]):
    """The batches of optimizer steps start, ..., stop - 1, each a function of (seed, step, rank) alone.

    The rows are an endless sequence of epochs, each a permutation of the split keyed by (seed, "data",
    epoch). Step s takes the `batch_size` rows from s * batch_size on (so a batch may span epochs, and may be
    larger than the split), and rank r of `world` its r-th part: joined over ranks, the batch does not depend
    on the number of processes. To resume, start at another step. An `attempt` above 0 is part of the key: other orders.

    For a loader: DataLoader(batches, batch_size=None), with any number of workers (each takes its turn).
    Raises GenkitError for a batch that is not positive or does not divide by `world`, or a rank outside it.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        stop: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        attempt: int = 0,
    ) -> None:
        if not 0 <= rank < world:
            raise GenkitError(f"rank {rank} is none of {world} processes, which count from 0")
        if batch_size < 1 or batch_size % world:
            nearest = max(1, round(batch_size / world)) * world
            raise GenkitError(
                f"the global batch of {batch_size} does not divide among {world} processes; try {nearest}"
            )
        if not 0 <= start <= stop:
            raise GenkitError(f"steps run from {start} to {stop}: start must be in 0..stop")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.start, self.stop, self.rank, self.world, self.attempt = start, stop, rank, world, attempt
        self._epoch = (-1, torch.empty(0))  # the last order, not to draw it again

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.start + first, self.stop, stride):
            yield self.batch(step)

    def batch(self, step: int) -> Batch:
        """The batch of one step, this rank's part: x and y on the split's device, index (B / world,)."""
        part = self.batch_size // self.world
        index = self.rows(step)[self.rank * part : (self.rank + 1) * part]
        x, y = self.split.take(index)
        return Batch(x, y, index.to(x.device))

    def rows(self, step: int) -> Tensor:
        """Row numbers (batch_size,) of the global batch of `step`."""
        n, first = len(self.split), step * self.batch_size
        last = first + self.batch_size
        epochs = range(first // n, (last - 1) // n + 1)
        return torch.cat([self.permutation(e)[max(first - e * n, 0) : last - e * n] for e in epochs])

    def permutation(self, epoch: int) -> Tensor:
        """The order (N,) of the rows in one epoch."""
        if self._epoch[0] != epoch:
            again = ("attempt", self.attempt) if self.attempt else ()
            generator = keyed_generator(self.seed, "data", epoch, *again)
            self._epoch = (epoch, torch.randperm(len(self.split), generator=generator))
        return self._epoch[1]
