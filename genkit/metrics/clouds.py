"""Distances of sets of point clouds, by the Chamfer distance between clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, TwoSample
from genkit.types import DataSpec

BLOCK = 2**19  # distances of points that are held at once: few enough for the cache


class OfClouds(TwoSample):
    """A figure of two sets of clouds, by the Chamfer distance between clouds a and b (see `chamfer`).

    rows: the first so many clouds of either side are taken, time O(rows^2 points^2); compare at equal counts.
    """

    needs = "clouds of points"

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.ordered and spec.cloud

    def __init__(self, spec: DataSpec, rows: int = 100) -> None:
        super().__init__(spec)
        if rows < 2:
            raise GenkitError(f"rows must be at least 2, not {rows}")
        self.rows = rows

    def apart(self, x: Tensor, y: Tensor) -> Tensor:
        """The Chamfer distances (n, m) between the first rows of x and of y (N, points * D).

        float32 is twice as fast, and exact enough.
        """
        return chamfer(*(rows[: self.rows].unflatten(1, self.spec.shape).float() for rows in (x, y)))


@METRICS.register("cloud_neighbours")
class CloudNeighbours(OfClouds):
    """1-nearest-neighbour accuracy: how often a cloud's nearest other is of its own side, by Chamfer distance.

    Samples and real clouds together: 0.5 where the two cannot be told apart, 1 where they can.
    Yang et al. 2019, PointFlow (https://arxiv.org/abs/1906.12320, section 5.1), after Lopez-Paz & Oquab 2017.
    Below 0.5, samples lie nearer to real clouds than real ones do to each other, as those of too little variety may.
    Raises what TwoSample raises.
    """

    words = "accuracy of telling samples from data"
    priority = 2

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        n = min(len(x), len(y), self.rows)
        across = self.apart(x, y)[:n, :n]
        first, second = (self.apart(rows, rows)[:n, :n].fill_diagonal_(torch.inf) for rows in (x, y))
        apart = torch.cat((torch.cat((first, across), 1), torch.cat((across.T, second), 1)))
        side = torch.arange(2 * n, device=x.device) < n
        # Of equally near ones (copies) half are taken to be of the own side, so that their order decides nothing.
        near = apart == apart.amin(1, keepdim=True)
        own = (near & (side[:, None] == side)).sum(1) / near.sum(1)
        return own.double().mean()


@METRICS.register("cloud_matching")
class CloudMatching(OfClouds):
    """Minimum matching distance: the mean over real clouds of the Chamfer distance to the nearest sample.

    Achlioptas et al. 2018 (https://arxiv.org/abs/1707.02392, section 4). Raises what TwoSample raises.
    """

    words = "distance of data to the nearest sample"
    priority = 1

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return self.apart(x, y).amin(0).double().mean()


@METRICS.register("cloud_coverage")
class CloudCoverage(OfClouds):
    """Coverage: the share of real clouds that are the nearest of some sample, by Chamfer distance.

    Achlioptas et al. 2018 (https://arxiv.org/abs/1707.02392, section 4). Raises what TwoSample raises.
    """

    words = "share of the data that samples are nearest to"
    higher_is_better = True

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        apart = self.apart(x, y)
        return torch.tensor(len(apart.argmin(1).unique()) / apart.shape[1], dtype=torch.float64)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """mean_i min_j |a_i - b_j|^2 + mean_j min_i |a_i - b_j|^2 of each cloud of a (N, P, D) and b (M, Q, D): (N, M)."""

    def squared(x: Tensor) -> Tensor:
        return x.square().sum(-1, keepdim=True)

    left = torch.cat((a, squared(a), torch.ones_like(a[..., :1])), -1)
    right = torch.cat((-2 * b, torch.ones_like(b[..., :1]), squared(b)), -1)  # left . right = |a_i - b_j|^2
    step = max(1, BLOCK // (a.shape[1] * b.shape[1]))
    found = []
    for cloud in left:
        parts = []
        for others in right.split(step):
            squares = cloud @ others.mT  # (m, P, Q), those of equal points may round to less than 0
            near = [squares.amin(side).clamp(min=0).mean(1) for side in (2, 1)]
            parts.append(near[0] + near[1])
        found.append(torch.cat(parts))
    return torch.stack(found)
