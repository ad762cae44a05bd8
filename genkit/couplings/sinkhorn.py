"""Entropic optimal transport within the batch."""

from __future__ import annotations

from torch import Tensor

from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import BatchCoupling, Scope, draw_columns
from genkit.couplings.entropic import check_entropic, entropic_plan, spread
from genkit.types import Generator


@COUPLINGS.register("sinkhorn")
class Sinkhorn(BatchCoupling):
    """Entropic transport: x0 is drawn from row i of the plan with the least <C, P> + epsilon s KL(P | uniform).

    C_ij = |x1_i - x0_j|^2, with standard deviation s. It goes from `ot` (epsilon to 0) to `independent` (epsilon
    to infinity). Data are kept exactly, and the source up to `column_error` = sum_j |sum_i P_ij - 1/n| of the last
    plan, which is below `tolerance`; source samples repeat within a batch.
    Cost O(k n^2 + n^2 d) time for k iterations, O(n^2) memory, on the device of the data.
    Cuturi, https://arxiv.org/abs/1306.0895; Pooladian et al., https://arxiv.org/abs/2304.14772.

    epsilon: of the entropy, in units of s. tolerance, iterations: see `column_error`.
    scope: as in `ot`.
    Raises GenkitError for a plan that does not converge, and costs that do not fit in memory.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        tolerance: float = 1e-3,
        iterations: int = 2000,
        scope: Scope = "rank",
    ) -> None:
        super().__init__(scope)
        check_entropic("sinkhorn", epsilon=epsilon, tolerance=tolerance, iterations=iterations)
        self.epsilon, self.tolerance, self.iterations = epsilon, tolerance, iterations
        self.column_error = 0.0

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> tuple[Tensor, None]:
        cost = self.distances(x1, x0)
        plan, self.column_error = entropic_plan(
            cost,
            self.epsilon * spread(cost),
            tolerance=self.tolerance,
            iterations=self.iterations,
            name=self.name,
        )
        return draw_columns(plan, generator), None
