"""Schedules of discrete diffusion: the share of symbols that are still themselves, by time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import SCHEDULES, Schedule


@SCHEDULES.register("linear")
class Linear(Schedule):
    """alpha = t. Sahoo et al., Simple and Effective Masked Diffusion Language Models, https://arxiv.org/abs/2406.07524."""

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """alpha = 1 - cos(pi t / 2): few symbols first, many at the end. MaskGIT, https://arxiv.org/abs/2202.04200."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (math.pi / 2 * t).cos()

    def d_alpha(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (math.pi / 2 * t).sin()


@SCHEDULES.register("polynomial")
class Polynomial(Schedule):
    """alpha = 1 - (1 - t)^exponent. Shi et al., Simplified and Generalized Masked Diffusion, https://arxiv.org/abs/2406.04329."""

    def __init__(self, exponent: float = 2.0) -> None:
        if not 0 < exponent < math.inf:
            raise GenkitError(f"polynomial: exponent must be positive, not {exponent}")
        self.exponent = exponent

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - t) ** self.exponent

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.exponent * (1 - t) ** (self.exponent - 1)


@SCHEDULES.register("log_linear")
class LogLinear(Schedule):
    """alpha = floor + (1 - floor) t, the log-linear noise of SEDD with its floor: it does not reach 0.

    Lou et al., Discrete Diffusion Modeling by Estimating the Ratios, https://arxiv.org/abs/2310.16834.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        if not 0 <= floor < 1:
            raise GenkitError(f"log_linear: floor must be in [0, 1), not {floor}")
        self.floor = floor

    def alpha(self, t: Tensor) -> Tensor:
        return self.floor + (1 - self.floor) * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.floor)


@SCHEDULES.register("geometric")
class Geometric(Schedule):
    """alpha = exp(-s(t)), s(t) = largest^(1 - t) smallest^t: it reaches neither 0 nor 1.

    Lou et al., https://arxiv.org/abs/2310.16834.
    """

    def __init__(self, smallest: float = 1e-4, largest: float = 20.0) -> None:
        if not 0 < smallest < largest < math.inf:
            raise GenkitError(f"geometric: 0 < smallest < largest is needed, not {smallest} and {largest}")
        self.smallest, self.largest = smallest, largest

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._noise(t)).exp()

    def d_alpha(self, t: Tensor) -> Tensor:
        noise = self._noise(t)
        return (-noise).exp() * noise * math.log(self.largest / self.smallest)

    def _noise(self, t: Tensor) -> Tensor:
        return self.largest ** (1 - t) * self.smallest**t
