"""Adams-Bashforth methods: one evaluation a step, by a polynomial through the last slopes.

    x_next = x + int_t^t_next P(s) ds,   P the polynomial with P(t_j) = f(t_j, x_j) at the last `order` times

The first order - 1 steps, which have too few slopes behind them, are Runge-Kutta's of one order less, so that the order
holds from the start.

Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, III.1, https://doi.org/10.1007/978-3-540-78862-1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from genkit.solvers.base import SOLVERS, Solver, State
from genkit.solvers.runge_kutta import Euler, Heun, RungeKutta
from genkit.types import Generator, Velocity


class Kutta3(RungeKutta):
    """Kutta's method of order 3, with which the method of order 4 starts."""

    order = 3
    a = ((), (1 / 2,), (-1.0, 2.0))
    b = (1 / 6, 2 / 3, 1 / 6)


class AdamsBashforth(Solver):
    """The methods of all orders, for steps of any sizes. The memory holds (t_j, f_j), the last first."""

    start: ClassVar[type[RungeKutta]]

    def step(
        self, field: Velocity, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        dt = t_next - t
        slope = field(t, state.x)
        known = [(t, slope), *(state.memory or ())][: self.order]
        if len(known) < self.order:
            return State(self.start.from_slope(field, t, dt, state.x, slope), known)
        weights = integral_weights([float(s - t) for s, _ in known], powers(float(dt), self.order))
        x = state.x
        for weight, (_, f) in zip(weights, known, strict=True):
            x = x + weight * f
        return State(x, known)


def powers(h: float, count: int) -> list[float]:
    """int_0^h s^k ds for k < count."""
    return [h ** (k + 1) / (k + 1) for k in range(count)]


def integral_weights(offsets: list[float], moments: list[float]) -> list[float]:
    """w with sum_j w_j P(offset_j) = the integral of P, for all polynomials of lower degree than there are offsets;
    moments: the integrals of 1, s, s^2, ..."""
    count = len(offsets)
    rows = torch.tensor([[d**k for d in offsets] for k in range(count)], dtype=torch.float64)
    right = torch.tensor(moments[:count], dtype=torch.float64)
    return torch.linalg.solve(rows, right).tolist()


@SOLVERS.register("adams_bashforth2")
class AdamsBashforth2(AdamsBashforth):
    """Adams-Bashforth of order 2: one evaluation a step; the first step is Euler's."""

    order, start = 2, Euler


@SOLVERS.register("adams_bashforth3")
class AdamsBashforth3(AdamsBashforth):
    """Adams-Bashforth of order 3: one evaluation a step; the first two are Heun's, with one more each."""

    order, start = 3, Heun


@SOLVERS.register("adams_bashforth4")
class AdamsBashforth4(AdamsBashforth):
    """Adams-Bashforth of order 4: one evaluation a step; the first three are Kutta's, with two more each."""

    order, start = 4, Kutta3
