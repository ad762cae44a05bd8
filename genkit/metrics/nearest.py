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
BLOCK = 2048  # rows of a block of distances: bounds memory at BLOCK^2 numbers


@METRICS.register("nearest")
class Nearest(DataMetric):
    """Euclidean distance to the nearest training row, of samples beside test rows: memorization.

    update(x, part): x (B, *shape), part "train", "test" or "sample". compute() gives

        sample  mean over samples of min_j |x - train_j|, in the data's units
        test    the same of test rows: what a fresh real row has
        ratio   sample / test: far below 1 for a model that repeats its training data

    Meehan et al. 2020, A non-parametric test to detect data-copying (https://arxiv.org/abs/2004.05675).
    Raises GenkitError for an unknown part, rows of another shape, and a part without rows.
    """

    reads = "parts"

    train_rows: list[Tensor]
    test_rows: list[Tensor]
    sample_rows: list[Tensor]

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        for part in ("train", "test", "sample"):
            self.add_state(f"{part}_rows", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, part: Part) -> None:
        if part not in ("train", "test", "sample"):
            raise choose(part, ("train", "test", "sample"), "part")
        getattr(self, f"{part}_rows").append(flat(x, self.spec))

    def compute(self) -> dict[str, Tensor]:
        train, test, sample = (self._rows(part) for part in ("train", "test", "sample"))
        of_sample, of_test = (nearest(rows, train).mean() for rows in (sample, test))
        return {"sample": of_sample, "test": of_test, "ratio": of_sample / of_test}

    def _rows(self, part: str) -> Tensor:
        rows = getattr(self, f"{part}_rows")
        if len(rows) == 0:
            raise GenkitError(f"the distance to the nearest training row needs {part} rows")
        return dim_zero_cat(rows).double()


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """min_j |x_i - others_j| for each row: x (N, D), others (M, D) -> (N,)."""
    return torch.cat(
        [
            torch.stack([torch.cdist(rows, block).amin(1) for block in others.split(BLOCK)]).amin(0)
            for rows in x.split(BLOCK)
        ]
    )
