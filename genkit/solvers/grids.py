"""Time grids: where between t=0 (noise) and t=1 (data) the steps are."""

from __future__ import annotations

import math

from torch import Tensor

from genkit.errors import GenkitError
from genkit.solvers.base import GRIDS, Grid


@GRIDS.register("uniform")
class Uniform(Grid):
    """Equal steps."""

    def warp(self, u: Tensor) -> Tensor:
        return u


@GRIDS.register("power")
class Power(Grid):
    """t = 1 - (1 - u)^exponent: above 1 the steps shrink towards the data (2 is the quadratic grid)."""

    def __init__(self, exponent: float = 2.0) -> None:
        if exponent <= 0:
            raise GenkitError(f"power: exponent must be positive, not {exponent}")
        self.exponent = exponent

    def warp(self, u: Tensor) -> Tensor:
        return 1 - (1 - u) ** self.exponent


@GRIDS.register("cosine")
class CosineGrid(Grid):
    """t = (1 - cos(pi u)) / 2: small steps at both ends."""

    def warp(self, u: Tensor) -> Tensor:
        return (1 - (math.pi * u).cos()) / 2
