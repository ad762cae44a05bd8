"""Entropic transport plans, in the log domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genkit.errors import GenkitError

COOLING = 0.7  # epsilon falls by it from iteration to iteration, from the spread of costs to its value


def entropic_plan(
    cost: Tensor,
    epsilon: float,
    *,
    tolerance: float,
    iterations: int,
    relaxation: float = math.inf,
    name: str = "sinkhorn",
) -> tuple[Tensor, float]:
    """log P (n, m) of the plan P >= 0 of least cost, and the error that is left.

    cost: <C, P> + epsilon KL(P | a b') + relaxation (KL(P 1 | a) + KL(P' 1 | b)) with a, b uniform;
    relaxation = inf fixes the marginals. Sinkhorn's iteration with potentials f, g:
    f = -r epsilon log sum_j b_j exp((g_j - C_ij) / epsilon), g likewise, r = relaxation / (relaxation + epsilon),
    while epsilon falls to its value. Each takes O(n m). The error is how far g still moves,
    sum_j b_j |exp((g_j - g'_j) / epsilon) - 1|, which for fixed marginals is that of the columns, the rows being
    exact. Cuturi, https://arxiv.org/abs/1306.0895; Sejourne et al., https://arxiv.org/abs/1910.12958.

    Raises GenkitError when the error is not below `tolerance` after `iterations`.
    """
    n, m = cost.shape
    f, g, error = cost.new_zeros(n, 1), cost.new_zeros(m), math.inf
    now = max(epsilon, float(cost.std()))
    for _ in range(iterations):
        now = max(epsilon, COOLING * now)
        keep = -now / (1 + now / relaxation)
        f = keep * (((g - cost) / now).logsumexp(1, keepdim=True) - math.log(m))
        moved = keep * (((f - cost) / now).logsumexp(0) - math.log(n))
        if now == epsilon:
            error = float(((g - moved) / epsilon).expm1().abs().mean())
            if error < tolerance:
                return (f + g - cost) / epsilon - math.log(n * m), error
        g = moved
    raise GenkitError(
        f"{name}: the plan did not converge in {iterations} iterations (error {error:.2g}, tolerance "
        f"{tolerance:g}): a larger epsilon converges faster; or set iterations or tolerance, or take 'ot'"
    )


def check_entropic(name: str, **positive: float) -> None:
    """Raises GenkitError for an option that is not positive and finite."""
    for option, value in positive.items():
        if not 0 < value < math.inf:
            raise GenkitError(f"{name}: {option} must be positive, not {value}")


def spread(cost: Tensor) -> float:
    """The standard deviation of costs, the unit of epsilon; 1 where all are equal."""
    return float(cost.std()) or 1.0


def log_rows(log_plan: Tensor) -> Tensor:
    """n times the mass of each row (n,)."""
    return torch.exp(log_plan.logsumexp(1) + math.log(len(log_plan)))
