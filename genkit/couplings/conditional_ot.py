"""Optimal transport that leaves each condition its source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.couplings.assignment import Method, assign
from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Plan, Scope
from genkit.couplings.ot import alike
from genkit.errors import GenkitError
from genkit.types import Generator

WITHIN = 1e8  # a weight at which classes are never mixed
RATIO = 0.2  # the paper's, for continuous conditions


@COUPLINGS.register("conditional_ot")
class ConditionalOT(BatchCoupling):
    """C2OT: optimal transport at the cost |x1_i - x0_j|^2 + w c(y_i, y_j), where noise j has the condition of row j.

    Plain minibatch transport gives each condition a source of its own, which a sampler does not know; here it is
    the same for all, exactly for classes, which are not mixed, and the more so the larger w for other conditions.
    c is 1 for unlike classes (whole numbers), the squared distance of real numbers, the cosine distance of
    vectors (n, k). Without conditions, or with w = 0, it is `ot`. Cost O(n^3 + n^2 (d + k)) time, O(n^2) memory.
    Cheng & Schwing, The Curse of Conditions, https://arxiv.org/abs/2503.10636.

    weight: w. Null: 1e8 for classes, and for other conditions what `ratio` asks for.
    ratio: choose w for each batch such that this share of the entries (i, j) is at most as costly as (i, i); null
        for 0.2. A larger one lets conditions mix more.
    solver, scope: as in `ot`.
    Raises GenkitError for a weight beside a ratio, conditions that are not finite, and where `ot` does.
    """

    skews_classes = False

    def __init__(
        self,
        weight: float | None = None,
        ratio: float | None = None,
        solver: Method = "auto",
        scope: Scope = "rank",
    ) -> None:
        super().__init__(scope)
        if weight is not None and ratio is not None:
            raise GenkitError(
                "conditional_ot: give a weight, or the ratio that a weight is chosen by, not both"
            )
        if weight is not None and not 0 <= weight < torch.inf:
            raise GenkitError(f"conditional_ot: weight must not be negative, not {weight}")
        if ratio is not None and not 0 < ratio <= 1:
            raise GenkitError(f"conditional_ot: ratio must be in (0, 1], not {ratio}")
        self.weight, self.ratio, self.solver = weight, ratio, solver

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        cost = self.distances(*alike(x1, x0), copies=6)
        if y is not None and y.is_floating_point() and not bool(y.isfinite().all()):
            raise GenkitError("conditional_ot: the data have conditions that are not finite; look at them")
        if y is not None and self.weight != 0:
            apart = unlike(y)
            weight = self.weight
            if weight is None and (self.ratio is not None or y.is_floating_point()):
                weight = weight_of_ratio(self.distances(x1, x0), apart, self.ratio or RATIO)
            cost += (WITHIN if weight is None else weight) * apart
        return Plan(assign(cost, self.solver))


def unlike(y: Tensor) -> Tensor:
    """c(y_i, y_j) (n, n) in float64: of classes (n,) whole numbers, of numbers (n,) or (n, 1), of vectors (n, k)."""
    if not y.is_floating_point():
        return (y[:, None] != y).flatten(2).any(2).double() if y.ndim > 1 else (y[:, None] != y).double()
    y = y.double().flatten(1) if y.ndim > 1 else y.double()[:, None]
    if y.shape[1] == 1:
        return (y - y.T).square()
    y = F.normalize(y, dim=1)
    return (1 - y @ y.T).clamp_min_(0)


def weight_of_ratio(cost: Tensor, apart: Tensor, ratio: float) -> float:
    """The w at which M_ij + w c_ij <= M_ii holds for a share `ratio` of all entries of M, c (n, n); at least 0.

    It holds up to w_ij = (M_ii - M_ij) / c_ij, so that w is a quantile of these; where c_ij = 0, for all w or none.
    """
    threshold = (cost.diagonal()[:, None] - cost) / apart
    threshold = torch.where((apart == 0) & (cost == cost.diagonal()[:, None]), torch.inf, threshold)
    count = min(threshold.numel(), max(1, round(ratio * threshold.numel())))
    weight = float(threshold.flatten().kthvalue(threshold.numel() + 1 - count).values)
    return min(max(weight, 0.0), WITHIN)
