"""Resampling: equal particles from weighted ones."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import sample_like
from genkit.registry import Registry
from genkit.types import Generator


class Resampler(abc.ABC):
    """Draws n of N particles, the i-th n w_i times on average. w: the weights, divided by their sum.

    Douc et al., Comparison of Resampling Schemes for Particle Filtering, https://arxiv.org/abs/cs/0507025.
    """

    def __call__(self, log_w: Tensor, n: int, *, generator: Generator = None) -> Tensor:
        """log-weights (N,) in float64 -> the rows (n,) that were drawn. Raises GenkitError where no weight is left."""
        w = (log_w - log_w.max()).exp()
        w = w / w.sum()
        if n < 1 or not bool(w.isfinite().all()):
            raise GenkitError(f"{n} particles of {len(w)} cannot be drawn: at least one, from finite weights")
        return self.draw(w, n, generator=generator)

    @abc.abstractmethod
    def draw(self, w: Tensor, n: int, *, generator: Generator = None) -> Tensor:
        """Weights (N,) of sum 1 -> rows (n,)."""


RESAMPLERS = Registry(Resampler, "resampler", "genkit.particles")


@RESAMPLERS.register("multinomial")
class Multinomial(Resampler):
    """n independent draws: the most variance."""

    def draw(self, w: Tensor, n: int, *, generator: Generator = None) -> Tensor:
        return quantiles(w, sample_like(torch.rand, w, generator, (n,)))


@RESAMPLERS.register("stratified")
class Stratified(Resampler):
    """One draw from each of n equal shares of the weight."""

    def draw(self, w: Tensor, n: int, *, generator: Generator = None) -> Tensor:
        return quantiles(
            w, (torch.arange(n, device=w.device) + sample_like(torch.rand, w, generator, (n,))) / n
        )


@RESAMPLERS.register("systematic")
class Systematic(Resampler):
    """One draw for all, at equal distances in the weight: a particle comes floor(n w) or ceil(n w) times."""

    def draw(self, w: Tensor, n: int, *, generator: Generator = None) -> Tensor:
        return quantiles(
            w, (torch.arange(n, device=w.device) + sample_like(torch.rand, w, generator, (1,))) / n
        )


@RESAMPLERS.register("residual")
class Residual(Resampler):
    """Each particle floor(n w) times, and the rest by independent draws from what is left of the weights."""

    def draw(self, w: Tensor, n: int, *, generator: Generator = None) -> Tensor:
        counts = (n * w + 1e-9).floor()  # n / n is 1, also where it rounds below
        # As many draws as can be needed, of which the first are kept: the number is known to the device alone.
        rest = quantiles((n * w - counts).clamp(min=0), sample_like(torch.rand, w, generator, (n,)))
        places = torch.arange(n, device=w.device)
        certain = torch.searchsorted(counts.cumsum(0), places.to(w), right=True).clamp(max=len(w) - 1)
        return torch.where(places < counts.sum(), certain, rest)


def quantiles(w: Tensor, u: Tensor) -> Tensor:
    """The rows (n,) at the shares u (n,) in [0, 1) of the weights (N,); never one of weight 0."""
    total = w.cumsum(0)
    last = torch.searchsorted(total, total[-1:])  # the last row that weighs anything
    return torch.searchsorted(total, u * total[-1], right=True).minimum(last)
