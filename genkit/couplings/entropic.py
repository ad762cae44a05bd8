"""Entropic transport plans, in the log domain."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from genkit.couplings.batch import BatchCoupling, Plan, Scope, draw_columns
from genkit.errors import GenkitError
from genkit.types import Generator

COOLING = 0.7  # epsilon falls by it from iteration to iteration, from the spread of costs to its value


class Entropic(BatchCoupling):
    """x0 drawn from row i of the plan with the least <C, P> + epsilon KL(P | uniform); a subclass says which epsilon.

    Each pair's logs hold `column_error` = sum_j |sum_i P_ij - 1/n|.
    """

    def __init__(self, tolerance: float, iterations: int, scope: Scope) -> None:
        super().__init__(scope)
        self.tolerance, self.iterations = tolerance, iterations

    @abc.abstractmethod
    def entropy(self, cost: Tensor) -> float:
        """epsilon, in the units of the costs C (n, n)."""

    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        cost = self.distances(x1, x0)
        plan, error = entropic_plan(
            cost, self.entropy(cost), tolerance=self.tolerance, iterations=self.iterations, name=self.name
        )
        return Plan(draw_columns(plan, generator), logs={"column_error": error})


def entropic_plan(
    cost: Tensor,
    epsilon: float,
    *,
    tolerance: float,
    iterations: int,
    relaxation: float = math.inf,
    name: str = "sinkhorn",
) -> tuple[Tensor, Tensor]:
    """log P (n, m) of the plan P >= 0 of least cost, and the error that is left, a scalar.

    cost: <C, P> + epsilon KL(P | a b') + relaxation (KL(P 1 | a) + KL(P' 1 | b)) with a, b uniform;
    relaxation = inf fixes the marginals. Sinkhorn's iteration with potentials f, g:
    f = -r epsilon log sum_j b_j exp((g_j - C_ij) / epsilon), g likewise, r = relaxation / (relaxation + epsilon),
    while epsilon falls to its value. Each takes O(n m). The error is how far g still moves,
    sum_j b_j |exp((g_j - g'_j) / epsilon) - 1|, which for fixed marginals is that of the columns, the rows being
    exact. Cuturi, https://arxiv.org/abs/1306.0895; Sejourne et al., https://arxiv.org/abs/1910.12958.

    Raises GenkitError when the error is not below `tolerance` after `iterations`.
    """
    n, m = cost.shape
    f, g, error = cost.new_zeros(n, 1), cost.new_zeros(m), cost.new_tensor(math.inf)
    now = max(epsilon, float(cost.std()))
    for _ in range(iterations):
        now = max(epsilon, COOLING * now)
        keep = -now / (1 + now / relaxation)
        f = keep * (((g - cost) / now).logsumexp(1, keepdim=True) - math.log(m))
        moved = keep * (((f - cost) / now).logsumexp(0) - math.log(n))
        if now == epsilon:
            error = ((g - moved) / epsilon).expm1().abs().mean()
            if float(error) < tolerance:
                return (f + g - cost) / epsilon - math.log(n * m), error
        g = moved
    raise GenkitError(
        f"{name}: the plan did not converge in {iterations} iterations (error {float(error):.2g}, tolerance "
        f"{tolerance:g}): a larger epsilon converges faster; or set iterations or tolerance, or take 'ot'"
    )


def spread(cost: Tensor) -> float:
    """The standard deviation of costs, the unit of epsilon; 1 where all are equal."""
    return float(cost.std()) or 1.0


def log_rows(log_plan: Tensor) -> Tensor:
    """n times the mass of each row (n,)."""
    return torch.exp(log_plan.logsumexp(1) + math.log(len(log_plan)))
