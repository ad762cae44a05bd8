"""What all metrics share: the registry, and how they are built and fed (by `genkit.metrics.judge`).

A metric is built from the data's spec, METRICS.build("frechet", spec) or with options in a mapping, and reads
data as the data set stores it (integer levels or real values). `reads` says how it is fed:

    samples    | update(x, real=True) for reference rows, update(x, real=False) for samples; a number
    labels     | update(x, y): samples with the classes that were asked for; a number
    parts      | update(x, part) with part "train" (first, all rows), "test" or "sample"; a mapping of "test"
               | and "sample", as far as there are rows of them
    log_prob   | update(log_prob): a LogProb of test rows; a mapping
    trajectory | update(states, times): what a solver passed through, in encoded units; a mapping

All work in float64, and all states reduce over processes.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import DataSpec


class DataMetric(Metric):
    """A metric of data. Its constructor takes the spec first, then its options.

    words: its name in a report; its name in the registry, where it says nothing.
    priority: the distance that judges a comparison is the one with the highest.
    higher_is_better: None for a figure that has no better end.
    """

    reads: ClassVar[Literal["samples", "labels", "parts", "log_prob", "trajectory"]]
    words: ClassVar[str] = ""
    priority: ClassVar[int] = 0
    full_state_update = False
    is_differentiable = False

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        """Whether data of this spec can be measured; building the metric for others raises GenkitError."""
        return True


class TwoSample(DataMetric):
    """A distance between reference rows and samples that needs all of both: write `distance`.

    update(x, real): x (B, *shape). Raises GenkitError for rows of another shape, and in `compute` for a side
    with fewer than two rows.
    """

    reads = "samples"
    higher_is_better = False

    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, spec: DataSpec) -> None:
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
