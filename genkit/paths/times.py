"""Distributions of the training time t."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import sample_like, shuffle_like
from genkit.registry import Registry
from genkit.types import Generator


class Times(abc.ABC):
    """Draws the times at which a flow is trained; also the weight that t gets in the loss."""

    @abc.abstractmethod
    def __call__(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        """One time in (0, 1) for each row of `like`: (B,), with its dtype and device."""


TIMES = Registry(Times, "time distribution", "genkit.paths")


@TIMES.register("uniform")
class UniformTimes(Times):
    """t ~ U(0, 1)."""

    def __call__(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        return sample_like(torch.rand, like, generator, (len(like),))


@TIMES.register("logit_normal")
class LogitNormalTimes(Times):
    """t = sigmoid(n), n ~ N(mean, std^2). Esser et al., https://arxiv.org/abs/2403.03206.

    A negative mean stresses the noise end (t=0 is noise).
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise GenkitError(f"logit_normal: std must be positive, not {std}")
        self.mean, self.std = mean, std

    def __call__(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        normal = sample_like(torch.randn, like, generator, (len(like),))
        return torch.sigmoid(self.mean + self.std * normal)


@TIMES.register("low_discrepancy")
class LowDiscrepancyTimes(Times):
    """t_i = (u + k_i / B) mod 1, u ~ U(0, 1), k a permutation of 0..B-1: uniform each, evenly spread together.

    Kingma et al., Variational Diffusion Models, https://arxiv.org/abs/2107.00630, appendix I.1.
    """

    def __call__(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        order, size = shuffle_like(like, generator)
        first = sample_like(torch.rand, like, generator, ())
        return (first + order.to(like.dtype) / size) % 1
