"""Independent pairs with Gibbs weights."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Plan, Scope, check_positive
from genkit.couplings.entropic import spread
from genkit.types import Generator


@COUPLINGS.register("weighted")
class Weighted(BatchCoupling):
    """W-CFM: independent pairs, weighted by exp(-|x1 - x0|^2 / (epsilon s)) in the loss, with mean 1 over the batch.

    s is the standard deviation of these costs in the batch: in many dimensions a fixed unit would give all weight
    to few pairs. The weighted pairs follow the entropic plan but for tilted marginals, without a transport
    problem: cost O(n d). The source is therefore not kept, nor that of a class, and there is no score.
    Calvo-Ordonez et al., Weighted Conditional Flow Matching, https://arxiv.org/abs/2507.22270.

    epsilon: in units of s; it goes to `independent` as epsilon grows.
    scope: as in `ot`; over which rows s and the mean weight are taken.
    """

    keeps_source = False

    def __init__(self, epsilon: float = 1.0, scope: Scope = "rank") -> None:
        super().__init__(scope)
        check_positive("weighted", epsilon=epsilon)
        self.epsilon = epsilon

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        cost = (x1 - x0).square().sum(1)
        weight = len(cost) * torch.softmax(-cost / (self.epsilon * spread(cost)), 0)
        return Plan(torch.arange(len(cost), device=cost.device), weight)
