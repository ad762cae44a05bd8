"""What all metrics share: the registry, and how they are built and fed (by `genkit.metrics.judge`).

A metric is built from the data's spec, METRICS.build("frechet", spec) or with options in a mapping, and reads
data as the data set stores it (integer levels or real values). `reads` says how it is fed:

    samples    | update(x, real=True) for reference rows, update(x, real=False) for samples; a number
               | (with `by_class` also y)
    rows       | update(x): samples alone; a number
    labels     | update(x, y): samples with the classes that were asked for; a number
    answers    | update(x, rows, data): samples that answer the prompts of rows; a number
    scored     | update(log_prob): the LogProb of samples under another model, the judge's scorer; a number
    parts      | update(x, part) with part "train" (first, all rows), "test" or "sample"; a mapping of "test"
               | and "sample", as far as there are rows of them
    log_prob   | update(log_prob): a LogProb of test rows; a mapping
    trajectory | update(states, times): what a solver passed through, in encoded units; a mapping

All work in float64, and all states reduce over processes.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import DataSpec, LogProb


class DataMetric(Metric):
    """A metric of data. Its constructor takes the spec first, then its options.

    words: its name in a report; its name in the registry, where it says nothing.
    needs: what data it applies to, for errors.
    priority: the distance that judges a comparison is the one with the highest.
    higher_is_better: None for a figure that has no better end.
    by_class: of those that read samples, `update` takes their classes or conditions too; left out where there are none.
    """

    reads: ClassVar[
        Literal["samples", "rows", "labels", "answers", "scored", "parts", "log_prob", "trajectory"]
    ]
    words: ClassVar[str] = ""
    needs: ClassVar[str] = "values with an order, in places of their own"
    priority: ClassVar[int] = 0
    by_class: ClassVar[bool] = False
    full_state_update = False
    is_differentiable = False

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        """Whether data of this spec can be measured; building the metric for others raises GenkitError."""
        return True

    @classmethod
    def require(cls, spec: DataSpec) -> None:
        """Raises GenkitError where the metric does not apply."""
        if not cls.applies(spec):
            raise GenkitError(f"the metric '{cls.words}' needs {cls.needs}, which '{spec.name}' has not")


class Mean(DataMetric):
    """A sum over a count, both kept in float64: call `add` in `update`, and `mean` in `compute`."""

    sums: Tensor

    def __init__(self, spec: DataSpec) -> None:
        self.require(spec)
        super().__init__()
        self.spec = spec
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, total: Tensor | float, count: Tensor | float) -> None:
        self.sums += torch.stack([torch.as_tensor(value).to(self.sums) for value in (total, count)])

    def mean(self, nothing: str) -> Tensor:
        """Raises GenkitError, which says `nothing`, where there was nothing to count."""
        total, count = self.sums
        if count == 0:
            raise GenkitError(nothing)
        return total / count


class TwoSample(DataMetric):
    """A distance between reference rows and samples that needs all of both: write `distance`.

    It is one of numbers in their places, unless `applies` says otherwise: symbols without an order have no differences,
    and the points of a cloud no places.
    update(x, real): x (B, *shape). Raises GenkitError for data it does not apply to, rows of another shape, and in
    `compute` for a side with fewer than two rows.
    """

    reads = "samples"
    higher_is_better = False

    real: list[Tensor]
    fake: list[Tensor]

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.ordered and not spec.cloud

    def __init__(self, spec: DataSpec) -> None:
        self.require(spec)
        super().__init__()
        self.spec = spec
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, real: bool) -> None:
        (self.real if real else self.fake).append(flat(x, self.spec))

    def compute(self) -> Tensor:
        real, fake = gathered(self.real, "reference rows"), gathered(self.fake, "samples")
        return self.distance(fake, real)

    @abc.abstractmethod
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance between the rows x (N, D) and y (M, D), float64."""


METRICS: Registry[DataMetric] = Registry(DataMetric, "metric", "genkit.metrics", given=1)


def flat(x: Tensor, spec: DataSpec) -> Tensor:
    """x (B, *shape) -> (B, D), floats (float32 holds levels). Raises GenkitError for another shape."""
    if tuple(x.shape[1:]) != spec.shape:
        raise GenkitError(f"'{spec.name}' has rows of shape {spec.shape}, not {tuple(x.shape[1:])}")
    return x.flatten(1) if x.is_floating_point() else x.flatten(1).float()


def gathered(rows: list[Tensor], what: str) -> Tensor:
    """All rows of a state as one float64 tensor (N, D). Raises GenkitError for fewer than two."""
    count = sum(len(part) for part in rows)
    if count < 2:
        raise GenkitError(f"a metric of two samples needs at least two {what}, not {count}")
    return dim_zero_cat(rows).double()


def nats_and_counts(log_prob: LogProb, spec: DataSpec) -> tuple[Tensor, Tensor]:
    """-log p (B,) and the number (B,) of values or symbols that it is of, float64.

    Raises GenkitError for a value that is not (B,).
    """
    value, count = log_prob.value, log_prob.count
    if value.dim() != 1:
        raise GenkitError(f"a log-probability has one value a row, (B,), not {tuple(value.shape)}")
    nats = -value.double()
    return nats, torch.full_like(nats, spec.dims) if count is None else count.to(nats)
