"""Distance to the nearest training row: memorization."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

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
        if part == "train":
            self.train_rows.append(rows)
            return
        if len(self.train_rows) == 0:
            raise GenkitError("the distance to the nearest training row needs the training rows first")
        distances = nearest(rows.double(), dim_zero_cat(self.train_rows).double())
        self.sums[MEASURED.index(part)] += torch.stack([torch.ones_like(distances), distances]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        found = {
            part: total / count for part, (count, total) in zip(MEASURED, self.sums, strict=True) if count > 0
        }
        if not found:
            raise GenkitError("the distance to the nearest training row needs test rows or samples")
        return found | ({"ratio": found["sample"] / found["test"]} if len(found) == 2 else {})


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """min_j |x_i - others_j| for each row: x (N, D), others (M, D) -> (N,)."""
    return torch.cat(
        [
            torch.stack([torch.cdist(rows, block).amin(1) for block in others.split(BLOCK)]).amin(0)
            for rows in x.split(BLOCK)
        ]
    )
