"""Distance to the nearest training row: memorization."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from genkit.errors import GenkitError, choose
from genkit.metrics.base import METRICS, DataMetric, flat
from genkit.types import DataSpec

Part = Literal["train", "test", "sample"]
MEASURED: tuple[Part, ...] = ("test", "sample")
BLOCK = 2048  # rows of a block of distances: bounds memory at BLOCK^2 numbers


@METRICS.register("nearest")
class Nearest(DataMetric):
    """Euclidean distance to the nearest training row, of samples beside test rows: memorization.

    update(x, part): x (B, *shape), part "train", "test" or "sample"; all training rows come first. compute()

        sample  mean over samples of min_j |x - train_j|, in the data's units
        test    the same of test rows: what a fresh real row has
        ratio   sample / test: far below 1 for a model that repeats its training data

    of the parts that have rows. Each process is given all training rows.
    Meehan et al. 2020, A non-parametric test to detect data-copying (https://arxiv.org/abs/2004.05675).
    Raises GenkitError for an unknown part, rows of another shape, a part before the training rows, and
    nothing to measure.
    """

    reads = "parts"
    words = "distance to the nearest training sample"

    train_rows: list[Tensor]
    sums: Tensor

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.ordered and not spec.cloud

    def __init__(self, spec: DataSpec) -> None:
        self.require(spec)
        super().__init__()
        self.spec = spec
        self.add_state("train_rows", [], dist_reduce_fx="cat")
        # of test, sample: rows, and the sum of their distances
        self.add_state("sums", torch.zeros(2, 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, part: Part) -> None:
        if part not in ("train", *MEASURED):
            raise choose(part, ("train", *MEASURED), "part")
        rows = flat(x, self.spec)
        if part == "train":  # levels of a byte each are kept so
            small = self.spec.levels is not None and self.spec.levels <= 256
            self.train_rows.append(rows.byte() if small else rows)
            return
        if len(self.train_rows) == 0:
            raise GenkitError("the distance to the nearest training row needs the training rows first")
        distances = nearest(rows.double(), self.train_rows)
        self.sums[MEASURED.index(part)] += torch.stack([torch.ones_like(distances), distances]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        found = {
            part: total / count for part, (count, total) in zip(MEASURED, self.sums, strict=True) if count > 0
        }
        if not found:
            raise GenkitError("the distance to the nearest training row needs test rows or samples")
        return found | ({"ratio": found["sample"] / found["test"]} if len(found) == 2 else {})


def nearest(x: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """min_j |x_i - y_j| for each row, over the rows y_j of all parts: x (N, D), parts of (M, D) -> (N,)."""
    least = x.new_full((len(x),), math.inf)
    for block in (block.to(x) for part in parts for block in part.split(BLOCK)):
        least = least.minimum(torch.cat([torch.cdist(rows, block).amin(1) for rows in x.split(BLOCK)]))
    return least
