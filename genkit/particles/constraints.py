"""Control: a region that samples must lie in, and a reward that they should have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.objectives.rewards import REWARDS, Reward
from genkit.particles.base import TARGETS, Evaluation, Target, denoised, differentiated
from genkit.types import per_row


@TARGETS.register("bounded")
class Bounded(Target):
    """pi_t(x) = p_t(x) exp(-d(x / alpha)^2 / (2 softness s^2 (1 + s^2))), at the end p_t(x) 1[d(D) = 0].

    D = (x + sigma^2 / c grad log p_t(x)) / alpha is the denoised sample, d the distance to the region C, s = sigma /
    alpha. Noise in x / alpha has variance s^2, so this is as soft as the noise. The factor 1 + s^2 (1 for the variance
    of data) lets it vanish at t=0, where without it a region that is bounded on all sides would be one more Gaussian.

    low, high: the sides of a box, numbers or lists that broadcast to a sample, in encoded units; null for none.
    distance: in place of a box, d(x1): (N, ...) -> (N,), 0 inside; where autograd knows its gradient, it leads there.
    Raises GenkitError for no region or two, and for sides that cross or do not fit a sample.
    """

    def __init__(
        self,
        inner: Target,
        low: float | list[Any] | None = None,
        high: float | list[Any] | None = None,
        distance: Callable[[Tensor], Tensor] | None = None,
        softness: float = 1.0,
    ) -> None:
        if not 0 < softness < math.inf:
            raise GenkitError(f"bounded: softness must be a positive number, not {softness}")
        if (low is None and high is None) == (distance is None):
            raise GenkitError("bounded: a region is either a box, by low and high, or a distance to it")
        if distance is not None and not callable(distance):
            raise GenkitError(f"bounded: distance is a Python function, not {distance!r}; give low and high")
        self.parts, self.exponent, self.softness = (inner,), inner.exponent, softness
        squared = box(inner, low, high) if distance is None else lambda x: distance(x).square()
        self.squared = differentiated(lambda t, x: squared(x))

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        value, gradient = self.parts[0](t, x, last)
        alpha, sigma, _, _ = self.model.path.coefficients(t)
        if last:
            away, _ = self.squared(t, denoised(x, gradient, alpha, sigma, self))
            return value.masked_fill(~(away <= 0), -math.inf), gradient
        away, uphill = self.squared(t, x / alpha)
        outside = ~(away <= 0)
        width = 2 * self.softness * (sigma / alpha) ** 2 * (1 + (sigma / alpha) ** 2)
        uphill = torch.where(per_row(outside, x), uphill, 0.0)  # inside, the root of a distance has no slope
        return value - away / width, gradient - uphill / (alpha * width)


def box(inner: Target, low: Any, high: Any) -> Callable[[Tensor], Tensor]:
    """The squared distance (N,) of x (N, ...) from the box between low and high."""
    model = inner.model
    try:
        sides = [
            torch.full(model.shape, end, dtype=torch.float64)
            if side is None
            else torch.as_tensor(side, dtype=torch.float64).expand(model.shape)
            for side, end in ((low, -math.inf), (high, math.inf))
        ]
    except (RuntimeError, TypeError, ValueError):
        raise GenkitError(
            f"bounded: low and high must be numbers or lists that broadcast to a sample, of shape {model.shape}"
        ) from None
    if not bool((sides[0] < sides[1]).all()):
        raise GenkitError("bounded: low must be below high everywhere, else nothing lies between them")
    below, above = (side.to(model.device) for side in sides)
    return lambda x: (x - x.clamp(below, above)).square().flatten(1).sum(1)


@TARGETS.register("reward")
class Rewarded(Target):
    """pi_t(x) = p_t(x) exp(strength a_t R(decode(D))).

    D = (x + sigma^2 / c grad log p_t(x)) / alpha is the denoised sample, a_t = alpha^2 / (alpha^2 + sigma^2) rises from
    0, and is 1 at the end. The reward sets weights only: it needs no gradient and gives none, so that it may be any
    function of data.

    reward: of the registry of rewards, or a function of samples as the data set stores them, (N, ...) -> (N,).
    Wu et al., Practical and Asymptotically Exact Conditional Sampling in Diffusion Models,
    https://arxiv.org/abs/2306.17775 (weights by the denoised sample).
    """

    def __init__(
        self, inner: Target, reward: Reward | str | Callable[[Tensor], Tensor], strength: float = 1.0
    ) -> None:
        if not math.isfinite(strength):
            raise GenkitError(f"reward: strength must be a finite number, not {strength}")
        self.parts, self.exponent, self.strength = (inner,), inner.exponent, strength
        named = isinstance(reward, (Reward, str, Mapping))
        self.reward = REWARDS.build(reward) if named else Reward.of(cast(Callable[[Tensor], Tensor], reward))
        if inner.model.spec is not None:
            self.reward.setup(inner.model.spec)
        elif named:
            raise GenkitError(
                "reward: what it is of must be known: give the density a spec, or a function as reward"
            )

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        value, gradient = self.parts[0](t, x, last)
        alpha, sigma, _, _ = self.model.path.coefficients(t)
        share = 1.0 if last else alpha**2 / (alpha**2 + sigma**2)
        reward = self.reward(self.decode(denoised(x, gradient, alpha, sigma, self))).to(value)
        if reward.shape != value.shape:
            raise GenkitError(
                f"reward: a number for each of {len(x)} samples expected, not the shape {tuple(reward.shape)}"
            )
        return value + self.strength * share * reward, gradient
