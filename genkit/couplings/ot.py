"""Exact minibatch optimal transport."""

from __future__ import annotations

from torch import Tensor

from genkit.couplings.assignment import Method, assign
from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Plan, Scope
from genkit.types import Generator


@COUPLINGS.register("ot")
class OptimalTransport(BatchCoupling):
    """Exact optimal transport within the batch: the permutation p that minimizes sum_i |x1_i - x0_p(i)|^2.

    Every source sample is used once, so both marginals are kept. Cost O(n^3 + n^2 d) time, O(n^2) memory. With
    classes or conditions, the source that each of them sees is skewed: see `conditional_ot`.
    Tong et al., https://arxiv.org/abs/2302.00482; Pooladian et al., https://arxiv.org/abs/2304.14772.

    solver: `scipy` or `pot` (exact, on the CPU), `torch` (an auction, on the device of the data, with a mean cost
        within 1e-7 of the spread of costs), `auto` for the fastest exact one, see `genkit.couplings.assignment`.
    scope: of distributed runs: `rank` plans within each process's part of the batch, `global` over all of it. With
        training.accumulate, either plans within each accumulated part.
    Raises GenkitError for costs that do not fit in memory and data that are not finite.
    """

    def __init__(self, solver: Method = "auto", scope: Scope = "rank") -> None:
        super().__init__(scope)
        self.solver = solver

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        return Plan(assign(self.distances(*alike(x1, x0)), self.solver))


def alike(x1: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """x1 and x0, centred and brought to one scale: the best permutation stays the same, and is found faster.

    |a / s - b s|^2 = |a|^2 / s^2 + |b|^2 s^2 - 2 a.b, and only the last term depends on who goes with whom.
    """
    x1, x0 = x1 - x1.mean(0), x0 - x0.mean(0)
    ratio = x1.square().sum() / x0.square().sum()
    scale = ratio.pow(0.25) if ratio > 0 else ratio + 1
    return x1 / scale, x0 * scale
