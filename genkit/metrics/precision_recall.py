"""Quality and diversity apart: precision and recall on the features of a pinned extractor."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric, gathered
from genkit.metrics.extractor import BLOCK, Extractor, load_extractor, pinned
from genkit.types import DataSpec


class Manifolds(DataMetric):
    """The share of the rows of one side that lie on the other side's manifold: within the distance from some row of it
    to that row's k-th nearest neighbour there (k = 3), between features of the data set's pinned classifier.

    update(x, real): x (B, *shape) as stored; reference rows are real. Comparable at equal counts only.
    Kynkäänniemi et al. 2019 (https://arxiv.org/abs/1904.06991).
    Raises GenkitError where the data have no extractor, and in `compute` for a side with no more than k rows.
    """

    reads = "samples"
    higher_is_better = True

    real: list[Tensor]
    fake: list[Tensor]

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        """Whether the data have a pinned extractor."""
        return pinned(spec) is not None

    def __init__(self, spec: DataSpec, k: int = 3, extractor: Extractor | None = None) -> None:
        if k < 1:
            raise GenkitError(f"k must be at least 1, not {k}")
        extractor = load_extractor(pinned(spec) or spec.name) if extractor is None else extractor
        super().__init__()
        self.spec, self.k, self.extractor, self.extractor_hash = spec, k, extractor, extractor.hash
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, real: bool) -> None:
        side = self.real if real else self.fake
        side += [self.extractor(block) for block in x.split(BLOCK)]

    def compute(self) -> Tensor:
        real, fake = gathered(self.real, "reference rows"), gathered(self.fake, "samples")
        if min(len(real), len(fake)) <= self.k:
            raise GenkitError(f"{self.words} needs more than {self.k} rows and samples")
        return self.share(real, fake)

    @abc.abstractmethod
    def share(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of features (N, D) and (M, D)."""

    def on_manifold(self, x: Tensor, rows: Tensor) -> Tensor:
        """The share of x (N, D) on the manifold of rows (M, D)."""
        radius = torch.cat(
            [torch.cdist(part, rows).kthvalue(self.k + 1, dim=1).values for part in rows.split(BLOCK)]
        )
        within = [(torch.cdist(part, rows) <= radius).any(1) for part in x.split(BLOCK)]
        return torch.cat(within).double().mean()


@METRICS.register("precision")
class Precision(Manifolds):
    """Quality: the share of samples that lie on the manifold of real rows (see `Manifolds`)."""

    words = "precision"

    def share(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.on_manifold(fake, real)


@METRICS.register("recall")
class Recall(Manifolds):
    """Diversity: the share of real rows that lie on the manifold of samples (see `Manifolds`)."""

    words = "recall"

    def share(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.on_manifold(real, fake)
