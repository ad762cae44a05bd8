"""Adaptive methods of torchdiffeq (https://github.com/rtqichen/torchdiffeq), one entry each.

Here `steps` intervals of the grid are each integrated to the tolerance, so 1 is enough.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from genkit.errors import GenkitError
from genkit.solvers.base import SOLVERS, Grid, OneStep
from genkit.types import Velocity


class Adaptive(OneStep):
    """Steps chosen so that the error estimate stays below atol + rtol |x|; evaluations vary with the field.

    max_evaluations: of one interval.
    Raises GenkitError where these do not suffice, no step is small enough, or the state is not finite.
    """

    method: ClassVar[str]

    def __init__(
        self,
        steps: int = 1,
        grid: Grid | str = "uniform",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_evaluations: int = 10_000,
    ) -> None:
        super().__init__(steps, grid)
        if not (0 < rtol < math.inf and 0 < atol < math.inf):
            raise GenkitError(f"tolerances must be positive, not rtol={rtol}, atol={atol}")
        if max_evaluations < 1:
            raise GenkitError(f"max_evaluations must be positive, not {max_evaluations}")
        self.rtol, self.atol, self.max_evaluations = rtol, atol, max_evaluations

    def advance(self, field: Velocity, t: Tensor, dt: Tensor, x: Tensor) -> Tensor:
        import torch
        from torchdiffeq import odeint

        times = torch.stack((t, t + dt)).to(x)
        low, high = times.min(), times.max()
        asked = 0

        def inside(s: Tensor, z: Tensor) -> Tensor:  # the guess of a first step may look beyond the interval
            nonlocal asked
            asked += 1
            if asked > self.max_evaluations:
                raise GenkitError(
                    f"{self.method} has used {self.max_evaluations} evaluations and is at t={float(s):.3g} of "
                    f"{float(times[1]):.3g}: these tolerances (rtol={self.rtol}, atol={self.atol}) are out of reach; "
                    "raise them or max_evaluations, or take a method of fixed steps, such as rk4"
                )
            return field(s.clamp(low, high), z)

        # step_t: end on t + dt. By default torchdiffeq steps past the end, where no model was trained, and
        # interpolates back.
        options = {"step_t": times[1:]}
        try:
            return odeint(
                inside, x, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options
            )[-1]
        except AssertionError as error:
            raise GenkitError(
                f"{self.method} cannot go on at these tolerances (rtol={self.rtol}, atol={self.atol}): "
                f"{error}; raise them, or take a method of fixed steps, such as rk4"
            ) from None


@SOLVERS.register("dopri5")
class Dopri5(Adaptive):
    """Dormand-Prince 5(4) with adaptive steps (torchdiffeq)."""

    order = 5
    method = "dopri5"


@SOLVERS.register("dopri8")
class Dopri8(Adaptive):
    """Dormand-Prince 8(7) with adaptive steps (torchdiffeq)."""

    order = 8
    method = "dopri8"


@SOLVERS.register("bosh3")
class Bosh3(Adaptive):
    """Bogacki-Shampine 3(2) with adaptive steps (torchdiffeq)."""

    order = 3
    method = "bosh3"


@SOLVERS.register("fehlberg2")
class Fehlberg2(Adaptive):
    """Runge-Kutta-Fehlberg 2(1) with adaptive steps (torchdiffeq)."""

    order = 2
    method = "fehlberg2"


@SOLVERS.register("adaptive_heun")
class AdaptiveHeun(Adaptive):
    """Heun 2(1) with adaptive steps (torchdiffeq)."""

    order = 2
    method = "adaptive_heun"
