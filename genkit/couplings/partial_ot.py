"""Optimal transport of a part of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.couplings.assignment import Method, assign
from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Plan, Scope
from genkit.errors import GenkitError
from genkit.types import Generator


@COUPLINGS.register("partial_ot")
class PartialOT(BatchCoupling):
    """The k = mass n pairs with the least sum of |x1_i - x0_j|^2, each row and each noise in at most one.

    Rows that are left out have weight 0 (and the noise that is left over); so outliers do not bend the paths of
    the others, and neither marginal of the weighted pairs is kept. mass = 1 is `ot`. Solved as an assignment with
    n - k more rows and columns, which take what is left out; cost O((2n - k)^3 + n^2 d) time, O(n^2) memory.
    Figalli, https://doi.org/10.1007/s00205-008-0212-7; Chapel et al., https://arxiv.org/abs/2002.08276.

    mass: share of the batch that is paired.
    solver, scope: as in `ot`.
    Raises GenkitError for a mass outside (0, 1], and where `ot` does.
    """

    keeps_source = False

    def __init__(self, mass: float = 0.9, solver: Method = "auto", scope: Scope = "rank") -> None:
        super().__init__(scope)
        if not 0 < mass <= 1:
            raise GenkitError(f"partial_ot: mass must be in (0, 1], not {mass}")
        self.mass, self.solver = mass, solver

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        n = len(x1)
        size = 2 * n - max(1, round(self.mass * n))
        cost = self.distances(x1, x0, copies=4 * (size / n) ** 2)
        padded = cost.new_zeros(size, size)
        padded[:n, :n] = cost
        padded[n:, n:] = cost.max() + 1  # else two of the added ones would pair, and leave less out
        order = assign(padded, self.solver)
        paired = order[:n] < n
        return Plan(torch.where(paired, order[:n], -1).masked_scatter(~paired, order[n:]), paired.double())
