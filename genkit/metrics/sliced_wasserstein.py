"""Sliced Wasserstein distance."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, TwoSample
from genkit.randomness import keyed_generator
from genkit.types import DataSpec


@METRICS.register("sliced_wasserstein")
class SlicedWasserstein(TwoSample):
    """Sliced 2-Wasserstein distance, in the data's units.

    SW_2 = sqrt(E_theta W_2^2(theta . X, theta . Y)), theta uniform on the sphere: `projections` of them, a
    function of `seed`, so that figures of one data set are comparable. Each W_2 in one dimension is
    exact, for any counts: the integral of the squared difference of the quantile functions.

    Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters (https://doi.org/10.1007/s10851-014-0506-3).
    Raises GenkitError for fewer than one projection, and what TwoSample raises.
    """

    words = "sliced Wasserstein distance"
    priority = 1

    def __init__(self, spec: DataSpec, projections: int = 512, seed: int = 0) -> None:
        super().__init__(spec)
        if projections < 1:
            raise GenkitError(f"projections must be at least 1, not {projections}")
        self.projections, self.seed = projections, seed

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        generator = keyed_generator(self.seed, "projections")
        theta = torch.randn(self.projections, x.shape[1], generator=generator, dtype=torch.float64)
        theta = torch.nn.functional.normalize(theta, dim=1).to(x.device)
        squares = [wasserstein_1d(x @ part.T, y @ part.T) for part in theta.split(64)]
        return torch.cat(squares).mean().sqrt()


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    """W_2^2 between the columns of x (N, K) and y (M, K), as empirical measures on the line: (K,).

    Quantile functions are constant between the levels i / N and j / M. Counted in units of 1 / (N M), the
    levels are whole numbers, so no rounding decides which value belongs to a level.
    """
    n, m = len(x), len(y)
    count = torch.arange(1, max(n, m) + 1, device=x.device)
    ends = torch.cat([count[:n] * m, count[:m] * n]).unique()
    lengths = ends.diff(prepend=ends.new_zeros(1)).to(x.dtype) / (n * m)
    gap = x.sort(0).values[(ends - 1) // m] - y.sort(0).values[(ends - 1) // n]
    return lengths @ gap.square()
