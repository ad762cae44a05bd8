"""Feeds every metric that applies to a data set, and holds the real data that samples are judged by."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from genkit.data.base import Dataset
from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric
from genkit.randomness import keyed_generator
from genkit.types import LogProb

BLOCK = 256  # conditions that are compared with all training rows at a time
ROWS = 4096  # training rows that are taken at a time, of all

Part = Literal["train", "test"]


class Scorer(Protocol):
    """A model that says how probable rows x (N, *shape) with classes or conditions y are, by batches, on the CPU."""

    @property
    def hash(self) -> str: ...

    def __call__(self, x: Tensor, y: Tensor | None) -> Iterable[LogProb]: ...


class Judge:
    """The metrics of one data set. Their reference rows are filled in once, however many models are judged.

        judge.prompts                      rows that samples are to answer, of data with prompts
        judge.reference                    the test rows that samples are compared with, and their y
        judge.conditions                   the y that samples are to have, those of these rows
        judge.samples(x, y)                {metric: number} of samples x (count, *shape) of the classes or conditions y
        judge.floors()                     the same of real data, one draw: a model may come to lie a little below
        judge.log_probs(parts)             {metric: {...}} of the log-probabilities of test rows
        judge.trajectories(states, times)  {name: number} of the paths of a flow

    count: rows on either side; seed: chooses those of the test part. scorer: for metrics of kind "scored", which are
    left out without one.
    Raises GenkitError for fewer than two rows, or more than either part has.
    """

    def __init__(
        self, dataset: Dataset, count: int | None = None, *, seed: int = 0, scorer: Scorer | None = None
    ) -> None:
        largest = min(len(dataset.train), len(dataset.test))
        count = largest if count is None else count
        for part, split in (("training", dataset.train), ("test", dataset.test)):
            if len(split) < 2:
                raise GenkitError(
                    f"the {part} part of '{dataset.spec.name}' has one row, and samples are compared with two at least"
                )
        if not 2 <= count <= largest:
            raise GenkitError(
                f"samples must be from 2 to {largest}, as many as '{dataset.spec.name}' has real rows beside them "
                f"(train {len(dataset.train)}, test {len(dataset.test)}), not {count}"
            )
        self.dataset, self.count, self.seed, self.scorer = dataset, count, seed, scorer
        self.names = [
            name
            for name in METRICS.names()
            if METRICS.get(name).applies(dataset.spec)
            and (scorer is not None or METRICS.get(name).reads != "scored")
            and (dataset.spec.conditional or not METRICS.get(name).by_class)
        ]

    @cached_property
    def prompts(self) -> Tensor | None:
        """Test rows (count, *shape) with -1 in the place of their answers; None for data without prompts."""
        spec = self.dataset.spec
        if spec.answer is None:
            return None
        rows, _ = self._rows("test", self.count)
        fixed = torch.isin(rows, torch.tensor(spec.fixed))
        return rows.masked_fill((rows == spec.answer).cumsum(1).bool() & ~fixed, -1)

    @cached_property
    def reference(self) -> tuple[Tensor, Tensor | None]:
        """The test rows (count, *shape) that samples are compared with, and their classes (count,), in turn as long as
        each has some, or their conditions (count, K); None for data without."""
        x, y = self._rows("test", self.count)
        if y is None or not self.dataset.spec.classes:
            return x, y
        order = in_turn(y)
        return x[order], y[order]

    @property
    def conditions(self) -> Tensor | None:
        """What samples are asked to be, row by row of `reference`."""
        return self.reference[1]

    def samples(self, x: Tensor, y: Tensor | None = None) -> dict[str, float]:
        found = {
            name: self._sampled(name, x, y)
            for name in self._reading("samples", "parts")
            if y is not None or not METRICS.get(name).by_class
        }
        found |= self._alone(x, y) | self._answered(x)
        if y is not None:
            found |= {name: self._labelled(name, x, y) for name in self._reading("labels")}
        return found

    def floors(self) -> dict[str, float]:
        """Training rows in the place of samples, of classes as they come, as long as those of the test rows are among
        them, or those that come nearest to conditions; test rows for metrics that compare with the training rows, or
        with nothing. They are taken once."""
        return dict(self._floors)

    @cached_property
    def _floors(self) -> dict[str, float]:
        train, of_train = self._rows("train", self.count)
        test, y = self._rows("test", self.count)
        if self.dataset.spec.condition and y is not None:
            train, of_train = self._nearest(y), y
        elif y is not None and of_train is not None and not bool(torch.isin(y, of_train).all()):
            train, of_train = self._of_classes(y)
        found = {name: self._sampled(name, train, of_train) for name in self._reading("samples")}
        found |= {name: float(self._filled[name].compute()["test"]) for name in self._reading("parts")}
        found |= self._alone(test, y) | self._answered(test)
        if y is not None:
            found |= {name: self._labelled(name, test, y) for name in self._reading("labels")}
        return found

    def log_probs(self, parts: Iterable[LogProb]) -> dict[str, dict[str, Any]]:
        metrics = {name: self._built(name) for name in self._reading("log_prob")}
        for part in parts:
            for metric in metrics.values():
                metric.update(part)
        return {name: numbers(metric.compute()) for name, metric in metrics.items()}

    def trajectories(self, states: Sequence[Tensor], times: Tensor) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in self._reading("trajectory"):
            metric = self._built(name)
            metric.update(states, times)
            found |= numbers(metric.compute())
        return found

    def about(self) -> list[dict[str, Any]]:
        """What a report says of the metrics of samples: name, words, and whether lower is better (or None).

        The one that judges a comparison comes first.
        """
        kinds = ("samples", "rows", "labels", "answers", "scored", "parts")
        classes = {name: METRICS.get(name) for name in self._reading(*kinds)}
        return [
            {
                "name": name,
                "words": cls.words or name.replace("_", " "),
                "lower": None if cls.higher_is_better is None else not cls.higher_is_better,
            }
            for name, cls in sorted(classes.items(), key=lambda item: (-item[1].priority, item[0]))
        ]

    @cached_property
    def _filled(self) -> dict[str, DataMetric]:
        """Metrics that know the real data."""
        found = {name: self._built(name) for name in self._reading("samples", "parts")}
        test, y = self._rows("test", self.count)
        for metric in found.values():
            if metric.reads == "samples":
                feed(metric, test, y, real=True)
            else:
                for x, _ in self._train():
                    metric.update(x, "train")
                metric.update(test, "test")
        return found

    def _sampled(self, name: str, x: Tensor, y: Tensor | None) -> float:
        metric = copied(self._filled[name])
        if metric.reads == "samples":
            feed(metric, x, y, real=False)
            return float(metric.compute())
        metric.update(x, "sample")
        return float(metric.compute()["sample"])

    def _alone(self, x: Tensor, y: Tensor | None) -> dict[str, float]:
        """Metrics that compare rows with nothing: of the rows, and of their probabilities to the scorer."""
        metrics = {name: self._built(name) for name in self._reading("rows", "scored")}
        scores = list(self.scorer(x, y)) if self.scorer is not None else []
        for metric in metrics.values():
            for part in [x] if metric.reads == "rows" else scores:
                metric.update(part)
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    def _answered(self, x: Tensor) -> dict[str, float]:
        """Metrics of rows x as answers to `prompts`."""
        metrics = {name: self._built(name) for name in self._reading("answers")}
        for metric in metrics.values():
            metric.update(x, self._rows("test", self.count)[0], self.dataset)
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    def _labelled(self, name: str, x: Tensor, y: Tensor) -> float:
        metric = self._built(name)
        metric.update(x, y)
        return float(metric.compute())

    def _built(self, name: str) -> DataMetric:
        """A metric of rows that each process has all of, so that none are to be added."""
        metric = METRICS.build(name, self.dataset.spec)
        metric.distributed_available_fn = alone
        return metric

    def _reading(self, *kinds: str) -> Iterator[str]:
        return (name for name in self.names if METRICS.get(name).reads in kinds)

    def _nearest(self, y: Tensor) -> Tensor:
        """For each of the conditions y (count, K) the training row whose condition is nearest."""
        of_train = self._of_train()
        nearest = torch.cat([torch.cdist(part, of_train).argmin(1) for part in y.split(BLOCK)])
        return self._take("train", self._order("train")[nearest])[0]

    def _of_classes(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """As many training rows of each class as there are in y (count,), as far as there are."""
        of_train = self._of_train()
        counts = zip(*y.unique(return_counts=True), strict=True)
        rows = torch.cat([(of_train == label).nonzero()[:count, 0] for label, count in counts])
        return self._take("train", self._order("train")[rows])

    def _of_train(self) -> Tensor:
        """The classes or conditions of all training rows, in their order, without reading the rows themselves."""
        y = self.dataset.split("train").y
        assert y is not None
        return y.cpu()[self._order("train")]

    def _train(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All training rows, so many at a time that they need little memory."""
        return (self._take("train", part) for part in self._order("train").split(ROWS))

    def _rows(self, part: Part, count: int) -> tuple[Tensor, Tensor | None]:
        """`count` rows of a part, a function of the seed."""
        return self._take(part, self._order(part)[:count])

    def _order(self, part: Part) -> Tensor:
        split = self.dataset.split(part)
        return torch.randperm(len(split), generator=keyed_generator(self.seed, "judge", part))

    def _take(self, part: Part, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of a part by number, on the CPU."""
        x, y = self.dataset.split(part).take(index)
        return x.cpu(), None if y is None else y.cpu()


def in_turn(y: Tensor) -> Tensor:
    """Row numbers such that the classes y (N,) come in turn, as long as each has rows."""
    order = y.argsort(stable=True)
    counts = torch.bincount(y)
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[order]]  # of a row within its class
    return order[(place * len(counts) + y[order]).argsort()]


def copied(metric: DataMetric) -> DataMetric:
    """A copy that holds the same rows: lists of them are added to, but no tensor in one is written to."""
    states = (getattr(metric, name) for name in metric._defaults)
    rows = [x for state in states if isinstance(state, list) for x in state]
    return copy.deepcopy(metric, {id(x): x for x in rows})


def alone() -> bool:
    """Whether there are other processes with rows of their own."""
    return False


def feed(metric: DataMetric, x: Tensor, y: Tensor | None, *, real: bool) -> None:
    """One side of a metric that reads samples, with their classes where it takes them."""
    if metric.by_class:
        metric.update(x, real, y)
    else:
        metric.update(x, real)


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of one element as numbers; the rest as it is."""
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in values.items()}
