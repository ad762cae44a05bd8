"""Optimal transport that may leave mass behind."""

from __future__ import annotations

from torch import Tensor

from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Plan, Scope, check_positive, draw_columns
from genkit.couplings.entropic import entropic_plan, log_rows, spread
from genkit.types import Generator


@COUPLINGS.register("unbalanced_ot")
class UnbalancedOT(BatchCoupling):
    """Entropic transport with soft marginals: rows that are far from all noise count less.

    x0 is drawn from row i of the plan P with the least
    <C, P> + epsilon s KL(P | uniform) + relaxation s (KL(P 1 | 1/n) + KL(P' 1 | 1/n)),  C_ij = |x1_i - x0_j|^2,
    with standard deviation s, and has the weight n sum_j P_ij. Neither marginal of the weighted pairs is kept;
    it goes to `sinkhorn` as relaxation grows. Cost O(k n^2 + n^2 d) time for k iterations, O(n^2) memory.
    Sejourne et al., https://arxiv.org/abs/1910.12958; for flows Eyring et al., https://arxiv.org/abs/2311.15100.

    relaxation: of the marginals, epsilon: of the entropy, both in units of s.
    tolerance, iterations: until the potentials move by less than tolerance (relative); by how much they still do is
        logged as `plan_error`.
    scope: as in `ot`.
    Raises GenkitError for a plan that does not converge, and costs that do not fit in memory.
    """

    keeps_source = False

    def __init__(
        self,
        relaxation: float = 1.0,
        epsilon: float = 0.1,
        tolerance: float = 1e-3,
        iterations: int = 2000,
        scope: Scope = "rank",
    ) -> None:
        super().__init__(scope)
        check_positive(
            "unbalanced_ot",
            relaxation=relaxation,
            epsilon=epsilon,
            tolerance=tolerance,
            iterations=iterations,
        )
        self.relaxation, self.epsilon = relaxation, epsilon
        self.tolerance, self.iterations = tolerance, iterations

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        cost = self.distances(x1, x0)
        unit = spread(cost)
        plan, error = entropic_plan(
            cost,
            self.epsilon * unit,
            tolerance=self.tolerance,
            iterations=self.iterations,
            relaxation=self.relaxation * unit,
            name=self.name,
        )
        return Plan(draw_columns(plan, generator), log_rows(plan), {"plan_error": error})
