"""Sampling with more variables than the model knows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import sample_like
from genkit.solvers.adams_bashforth import integral_weights
from genkit.solvers.base import SOLVERS, Grid, State
from genkit.solvers.stochastic import Forward
from genkit.types import Coefficients, Generator

FACTORIAL = [math.factorial(i) for i in range(8)]
TINY = 1e-9


@SOLVERS.register("tada")
class TADA(Forward):
    """Training-free augmented dynamics: N variables x^0 ... x^(N-1) for each value, of which the model sees a mixture.

    dx^k/dt = x^(k+1),  dx^(N-1)/dt = F = N! / (1 - t)^N (x1 - sum_k x^k (1 - t)^k / k!)

    from x^k ~ N(0, 1), the last N(0, kappa^2), at t=0 to x^0 = x1 at t=1. The best linear guess of x1 from them is
    y = r . x = x1 + s n, which a trained model denoises where sigma / alpha = s on its own path, whatever that is. x1
    is its answer, the linear part is solved exactly, and F is a polynomial through its last values; one evaluation a
    step. With A_jk = t^(k-j) / (k-j)!, c_k = 1 / k!, S = diag(1, ..., 1, kappa^2) and mu_j = N! / (N-j)! t^(N-j),

        b = A^-1 mu,  s = (1 - t)^N / sqrt(b S^-1 b),  r = A^-T (c + (1 - t)^N S^-1 b / (b S^-1 b))

    variables: N, 2 in the paper. With 1 the method is DDIM (order 1).
    kappa: standard deviation of the last variable at the start; it sets how much noise the others bring to what the
        model sees: more detail and diversity.
    order: values of F that are interpolated, 1, 2 or 3; the first step and the last are of order 1. In the paper 3 for
        EDM and EDM2, 2 for Stable Diffusion 3.
    Chen et al., TADA, https://arxiv.org/abs/2506.21757.
    """

    order = 1

    def __init__(
        self,
        steps: int = 16,
        grid: Grid | str = "uniform",
        variables: int = 2,
        kappa: float = 1.0,
        order: int = 2,
    ) -> None:
        super().__init__(steps, grid)
        if variables not in (1, 2, 3):
            raise GenkitError(f"tada: variables must be 1, 2 or 3, not {variables}")
        if order not in (1, 2, 3):
            raise GenkitError(f"tada: order must be 1, 2 or 3, not {order}")
        if kappa <= 0:
            raise GenkitError(f"tada: kappa must be positive, not {kappa}")
        self.variables, self.kappa, self.points = variables, kappa, order

    def mixture(self, t: float) -> tuple[list[float], float]:
        """r (N,) and s at t in (0, 1)."""
        n = self.variables
        inverse = [
            [(-t) ** (k - j) / FACTORIAL[k - j] if k >= j else 0.0 for k in range(n)] for j in range(n)
        ]
        mu = [FACTORIAL[n] / FACTORIAL[n - j] * t ** (n - j) for j in range(n)]
        b = [sum(inverse[j][k] * mu[k] for k in range(n)) for j in range(n)]
        scaled = [*b[:-1], b[-1] / self.kappa**2]
        size, left = sum(x * y for x, y in zip(b, scaled, strict=True)), (1 - t) ** n
        guess = [1 / FACTORIAL[k] + left * scaled[k] / size for k in range(n)]
        return [sum(inverse[k][j] * guess[k] for k in range(n)) for j in range(n)], left / math.sqrt(size)

    def own_time(self, at: Coefficients) -> float:
        """The t of the variables at which s is the sigma / alpha of `at`, by bisection; s falls from infinity to 0."""
        alpha, sigma = float(at.alpha), float(at.sigma)
        if sigma <= TINY * alpha:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            noisier = self.mixture(middle)[1] * alpha > sigma
            low, high = (middle, high) if noisier else (low, middle)
        return (low + high) / 2

    def begin(self, at: Coefficients, t: float, x: Tensor, generator: Generator) -> list[Tensor]:
        """The variables at the start: all but the last are drawn, and that one is such that the model sees x."""
        others = [sample_like(torch.randn, x, generator) for _ in range(self.variables - 1)]
        if float(at.alpha) <= TINY:
            return [*others, self.kappa * x]
        r, _ = self.mixture(t)
        last = (1 / float(at.alpha)) * x
        for weight, other in zip(r[:-1], others, strict=True):
            last = last - weight * other
        return [*others, last / r[-1]]

    def step(
        self, field: Any, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        self.check_rising(t, t_next)
        n, at, at_next = self.variables, field.coefficients(t), field.coefficients(t_next)
        now, then = self.own_time(at), self.own_time(at_next)
        if state.memory is None:
            variables, known = self.begin(at, now, state.x, generator), []
        else:
            variables, known = state.memory
        data = field.data(t, state.x)
        left = 1 - now
        force = data
        for k, x in enumerate(variables):
            force = force - (left**k / FACTORIAL[k]) * x
        known = [(now, FACTORIAL[n] / left**n * force), *known][: self.points]
        used, h = known[:1] if then == 1 else known, then - now
        offsets, moved = [time - now for time, _ in used], []
        for j in range(n):
            x = variables[j]
            for k in range(j + 1, n):
                x = x + (h ** (k - j) / FACTORIAL[k - j]) * variables[k]
            m = n - 1 - j  # int_0^h (h - u)^m / m! u^k du = k! h^(m + k + 1) / (m + k + 1)!
            integrals = [FACTORIAL[k] * h ** (m + k + 1) / FACTORIAL[m + k + 1] for k in range(len(used))]
            for weight, (_, value) in zip(integral_weights(offsets, integrals), used, strict=True):
                x = x + weight * value
            moved.append(x)
        return State(moved[0] if then == 1 else self.seen(moved, then, float(at_next.alpha)), (moved, known))

    def seen(self, variables: list[Tensor], t: float, alpha: float) -> Tensor:
        """What the model is given at t: the guess y, scaled as on its path."""
        weights, _ = self.mixture(t)
        first, *others = [(alpha * w) * x for w, x in zip(weights, variables, strict=True)]
        for x in others:
            first = first + x
        return first
