"""Explicit Runge-Kutta methods: each is its Butcher tableau and an order.

    k_i = f(t + c_i h, x + h sum_{j<i} a_ij k_j),   x_next = x + h sum_i b_i k_i

Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, https://doi.org/10.1007/978-3-540-78862-1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from genkit.solvers.base import SOLVERS, Grid, OneStep, State
from genkit.types import Generator, Velocity


class RungeKutta(OneStep):
    """An explicit method given by `a` (rows of the strictly lower triangle) and `b`; c is the sum of a's rows."""

    a: ClassVar[tuple[tuple[float, ...], ...]]
    b: ClassVar[tuple[float, ...]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if [len(row) for row in cls.a] != list(range(len(cls.b))):
            raise TypeError(f"{cls.__name__}: a must be strictly lower triangular, with a row for each of b")
        if abs(sum(cls.b) - 1) > 1e-12:
            raise TypeError(f"{cls.__name__}: b must sum to 1")

    def advance(self, field: Velocity, t: Tensor, dt: Tensor, x: Tensor) -> Tensor:
        return self.from_slope(field, t, dt, x, field(t, x))

    @classmethod
    def from_slope(cls, field: Velocity, t: Tensor, dt: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        """A step whose first slope, f(t, x), is known."""
        slopes = [slope]
        for row in cls.a[1:]:
            stage = x
            for weight, k in zip(row, slopes, strict=True):
                if weight:
                    stage = stage + (weight * dt) * k
            slopes.append(field(t + sum(row) * dt, stage))
        for weight, k in zip(cls.b, slopes, strict=True):
            if weight:
                x = x + (weight * dt) * k
        return x


@SOLVERS.register("euler")
class Euler(RungeKutta):
    """Euler's method: order 1, one evaluation a step."""

    order = 1
    a = ((),)
    b = (1.0,)


@SOLVERS.register("midpoint")
class Midpoint(RungeKutta):
    """Midpoint method: order 2, two evaluations a step."""

    order = 2
    a = ((), (1 / 2,))
    b = (0.0, 1.0)


@SOLVERS.register("heun")
class Heun(RungeKutta):
    """Heun's method (explicit trapezoidal rule): order 2, two evaluations a step.

    last: "euler" for a step of Euler's method where t=1 is reached, with one evaluation: the field is not looked at
        there, where a model knows it least. Karras et al., EDM, https://arxiv.org/abs/2206.00364, algorithm 1.
    """

    order = 2
    a = ((), (1.0,))
    b = (1 / 2, 1 / 2)

    def __init__(
        self, steps: int = 16, grid: Grid | str = "uniform", last: Literal["heun", "euler"] = "heun"
    ) -> None:
        super().__init__(steps, grid)
        self.last = last

    def step(
        self, field: Velocity, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        if self.last == "euler" and t_next == 1:
            return State(state.x + (t_next - t) * field(t, state.x))
        return super().step(field, t, t_next, state, generator=generator)


@SOLVERS.register("ralston")
class Ralston(RungeKutta):
    """Ralston's method: the one of order 2 and two evaluations a step with the least bound on its truncation error.

    Ralston 1962, https://doi.org/10.1090/S0025-5718-1962-0150954-0.
    """

    order = 2
    a = ((), (2 / 3,))
    b = (1 / 4, 3 / 4)


@SOLVERS.register("rk4")
class RK4(RungeKutta):
    """The classical Runge-Kutta method: order 4, four evaluations a step."""

    order = 4
    a = ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
