"""What all metrics share: the registry, how they are built and fed, and the floor of a metric.

A metric is built from the data's spec, METRICS.build("frechet", spec) or with options in a mapping, and reads
data as the data set stores it (integer levels or real values). `reads` says how it is fed:

    samples    | update(x, real=True) for reference rows, update(x, real=False) for samples; a number
    labels     | update(x, y): samples with the classes that were asked for; a number
    parts      | update(x, part) with part "train", "test" or "sample"; a mapping
    log_prob   | update(log_prob): a LogProb of test rows; a mapping
    trajectory | update(states, times): what a solver passed through, in encoded units; a mapping

All work in float64, and all states reduce over processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from genkit.data.base import Split
from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import DataSpec


class DataMetric(Metric):
    """A metric of data. Its constructor takes the spec first, then its options."""

    reads: ClassVar[Literal["samples", "labels", "parts", "log_prob", "trajectory"]]
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

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance between the rows x (N, D) and y (M, D), float64."""
        raise NotImplementedError


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


def floor(
    metric: Callable[[], DataMetric], train: Split, test: Split, *, count: int | None = None, seed: int = 0
) -> Tensor:
    """What a metric that reads "samples" gives for real data: train rows as samples, test rows as reference.

    A perfect model cannot be expected to go below it at this count. Both sides have `count` rows (by default
    as many as the smaller part has), chosen by `seed`.
    Raises GenkitError for a count that a part does not have, or a metric that reads something else.
    """
    largest = min(len(train), len(test))
    count = largest if count is None else count
    if not 2 <= count <= largest:
        raise GenkitError(f"a floor at {count} rows needs 2..{largest} of them in both parts")
    built = metric()
    if built.reads != "samples":
        raise GenkitError(f"{type(built).__name__} reads {built.reads}: only a metric of samples has a floor")
    generator = torch.Generator().manual_seed(seed)
    for part, real in ((train, False), (test, True)):
        x, _ = part.take(torch.randperm(len(part), generator=generator)[:count])
        built.update(x, real=real)
    return built.compute()
