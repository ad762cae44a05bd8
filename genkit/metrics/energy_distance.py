"""Energy distance."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.metrics.base import METRICS, TwoSample

BLOCK = 2048  # rows of a block of distances: bounds memory at BLOCK^2 numbers


@METRICS.register("energy_distance")
class EnergyDistance(TwoSample):
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased, in the data's units.

    Expectations within one side leave out the pairs of a row with itself (a U-statistic), so equal
    distributions give 0 on average and a single figure may be negative. Zero in expectation only for equal
    distributions.

    Szekely and Rizzo 2013, Energy statistics (https://doi.org/10.1016/j.jspi.2013.03.018).
    Raises what TwoSample raises.
    """

    words = "energy distance"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        n, m = len(x), len(y)
        across = _sum_of_distances(x, y) / (n * m)
        return 2 * across - _sum_of_distances(x, x) / (n * (n - 1)) - _sum_of_distances(y, y) / (m * (m - 1))


def _sum_of_distances(x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for rows in x.split(BLOCK):
        for others in y.split(BLOCK):
            total += torch.cdist(rows, others).sum()
    return total
