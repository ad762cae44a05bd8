"""Transport along lines."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Plan, Scope, check_positive
from genkit.randomness import sample_like
from genkit.types import Generator


@COUPLINGS.register("sliced_ot")
class SlicedOT(BatchCoupling):
    """The best of some permutations, each of which sorts data and noise along a random line.

    Along a line, sorting is optimal transport. Both marginals are kept, as by `ot`, at a cost between that of
    `ot` and of independent pairs: near the first in few dimensions, near the second in many, where a line says
    little. Cost O(k n (d + log n)) time for k lines, O(n d) memory.
    Mahey et al., Fast Optimal Transport through Sliced Wasserstein Generalized Geodesics,
    https://arxiv.org/abs/2307.01770.

    projections: k. scope: as in `ot`.
    """

    def __init__(self, projections: int = 32, scope: Scope = "rank") -> None:
        super().__init__(scope)
        check_positive("sliced_ot", projections=projections)
        self.projections = projections

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        best = torch.arange(len(x1), device=x1.device)
        most = (x1 * x0).sum()  # minus the cost, but for what all permutations share; never below it
        shape = (self.projections, x1.shape[1])
        for line in sample_like(torch.randn, x1, generator, shape):
            order = torch.empty_like(best)
            order[(x1 @ line).argsort()] = (x0 @ line).argsort()
            gain = (x1 * x0[order]).sum()
            best = torch.where(gain > most, order, best)  # without waiting for the device
            most = torch.maximum(gain, most)
        return Plan(best)
