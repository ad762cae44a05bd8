"""Time grids: where between t=0 (noise) and t=1 (data) the steps are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.solvers.base import GRIDS, Grid, time_of
from genkit.types import Coefficients


@GRIDS.register("uniform")
class Uniform(Grid):
    """Equal steps."""

    def warp(self, u: Tensor) -> Tensor:
        return u


@GRIDS.register("power")
class Power(Grid):
    """t = 1 - (1 - u)^exponent: above 1 the steps shrink towards the data, below 1 towards the noise."""

    def __init__(self, exponent: float) -> None:
        if not 0 < exponent < math.inf:
            raise GenkitError(f"power: exponent must be positive, not {exponent}")
        self.exponent = exponent

    def warp(self, u: Tensor) -> Tensor:
        return 1 - (1 - u) ** self.exponent


@GRIDS.register("quadratic")
class Quadratic(Power):
    """t = 1 - (1 - u)^2: steps shrink towards the data. Song et al., DDIM, https://arxiv.org/abs/2010.02502, D.3."""

    def __init__(self) -> None:
        super().__init__(2.0)


@GRIDS.register("cosine")
class CosineGrid(Grid):
    """t = (1 - cos(pi u)) / 2: small steps at both ends."""

    def warp(self, u: Tensor) -> Tensor:
        return (1 - (math.pi * u).cos()) / 2


@GRIDS.register("u_shaped")
class UShaped(Grid):
    """Quantiles of a density that rises to both ends, p(t) ~ cosh(strength (t - 1/2)).

        t = 1/2 + asinh((2 u - 1) sinh(strength / 2)) / strength

    After the training times of Lee et al., Improving the Training of Rectified Flows, https://arxiv.org/abs/2405.20320.
    """

    def __init__(self, strength: float = 4.0) -> None:
        if not 0 < strength <= 40:
            raise GenkitError(f"u_shaped: strength must be above 0 and at most 40, not {strength}")
        self.strength = strength

    def warp(self, u: Tensor) -> Tensor:
        half = math.sinh(self.strength / 2) * (2 * u - 1)
        return (0.5 + half.asinh() / self.strength).clamp(0, 1).where((u > 0) & (u < 1), u)


@GRIDS.register("logit_normal")
class LogitNormal(Grid):
    """Quantiles of the training times of that name: t = sigmoid(mean + std n), n the u-quantile of N(0, 1).

    Small steps in the middle; a negative mean moves them towards the noise. The first and the last step shrink more
    slowly than 1 / steps, and with them any error that is made there. Esser et al., https://arxiv.org/abs/2403.03206.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not 0 < std <= 8 or not abs(mean) <= 8:  # beyond, steps fall below the rounding of float64
            raise GenkitError(
                f"logit_normal: std must be above 0 and at most 8, mean from -8 to 8, not {std} and {mean}"
            )
        self.mean, self.std = mean, std

    def warp(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@GRIDS.register("shifted")
class Shifted(Grid):
    """t = u / (u + shift (1 - u)): above 1 the steps shrink towards the noise.

    shift: by default sqrt(m / n), so that at equal u the mean of m equal values is known in noise as well as that of n.
    m, n: the number of values of a sample, and of those for which equal steps are right; by default 9 n.
    Esser et al., Stable Diffusion 3, https://arxiv.org/abs/2403.03206, 5.3.2, whose t is 1 - t here.
    """

    def __init__(self, shift: float | None = None, m: int | None = None, n: int | None = None) -> None:
        if (m is None) != (n is None) or (shift is not None and m is not None):
            raise GenkitError("shifted: give either shift, or m and n")
        if m is not None and n is not None:
            if min(m, n) < 1:
                raise GenkitError(f"shifted: m and n must be positive, not {m} and {n}")
            shift = math.sqrt(m / n)
        self.shift = 3.0 if shift is None else shift
        if not 0 < self.shift < math.inf:
            raise GenkitError(f"shifted: shift must be positive, not {shift}")

    def warp(self, u: Tensor) -> Tensor:
        return u / (u + self.shift * (1 - u))


@GRIDS.register("edm")
class EDM(Grid):
    """Levels of noise r = sigma / alpha, equally spaced in r^(1 / rho), on whatever path.

        r_i = (high^(1 / rho) + i / (steps - 1) (low^(1 / rho) - high^(1 / rho)))^rho,  i < steps,  then 0

    `high` counts as pure noise: the first time is 0. It and `low` stay where they are however many steps there are, so
    that the first and the last step do not shrink. Karras et al., https://arxiv.org/abs/2206.00364, eq. 5.

    Raises GenkitError for a path that has no such levels.
    """

    def __init__(self, rho: float = 7.0, low: float = 0.002, high: float = 80.0) -> None:
        if not 1 <= rho < math.inf or not 0 < low < high < math.inf:
            raise GenkitError(f"edm: rho must be at least 1, and 0 < low < high, not {rho}, {low} and {high}")
        self.rho, self.low, self.high = rho, low, high

    def levels(self, u: Tensor) -> Tensor:
        """r at the share u (n,) of the way from `high` to `low`."""
        first, last = self.high ** (1 / self.rho), self.low ** (1 / self.rho)
        return (first + u * (last - first)) ** self.rho

    def warp(self, u: Tensor) -> Tensor:
        """On the linear path, where r = (1 - t) / t."""
        return (1 / (1 + self.levels(u))).where((u > 0) & (u < 1), u)

    def times(self, steps: int, coefficients: Callable[[Tensor], Coefficients] | None = None) -> Tensor:
        levels = self.levels(torch.linspace(0, 1, max(steps, 2), dtype=torch.float64))[1:steps]
        inner = 1 / (1 + levels) if coefficients is None else time_of(coefficients, levels)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        times = torch.cat((ends[:1], inner, ends[1:]))
        if not bool((times.diff() > 1e-12).all()):
            raise GenkitError(
                f"edm: this path has not all noise levels sigma / alpha from {self.high:g} down to {self.low:g}: "
                "lower `high`, or raise `low`"
            )
        return times
