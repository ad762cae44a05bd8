"""Entropic optimal transport within the batch."""

from __future__ import annotations

from torch import Tensor

from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import Scope, check_positive
from genkit.couplings.entropic import Entropic, spread


@COUPLINGS.register("sinkhorn")
class Sinkhorn(Entropic):
    """Entropic transport: x0 is drawn from row i of the plan with the least <C, P> + epsilon s KL(P | uniform).

    C_ij = |x1_i - x0_j|^2, with standard deviation s. It goes from `ot` (epsilon to 0) to `independent` (epsilon
    to infinity). Data are kept exactly, and the source up to `column_error` = sum_j |sum_i P_ij - 1/n|, which is
    below `tolerance` and logged with the loss; source samples repeat within a batch.
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
        super().__init__(tolerance, iterations, scope)
        check_positive("sinkhorn", epsilon=epsilon, tolerance=tolerance, iterations=iterations)
        self.epsilon = epsilon

    def entropy(self, cost: Tensor) -> float:
        return self.epsilon * spread(cost)
