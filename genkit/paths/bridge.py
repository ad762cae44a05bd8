"""The Brownian bridge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import PATHS, Path
from genkit.randomness import sample_like
from genkit.types import Coefficients, Generator, Point, per_row

FLOOR = 1e-4  # of t (1 - t) where it is divided by


@PATHS.register("bridge")
class Bridge(Path):
    """Straight line with the noise of a diffusion held at both ends.

        x_t = t x1 + (1 - t) x0 + sigma sqrt(t (1 - t)) e,   e ~ N(0, I)
        u_t = x1 - x0 + sigma (1 - 2 t) / (2 sqrt(t (1 - t))) e,   score = -e / (sigma sqrt(t (1 - t)))

    With the coupling `schrodinger_bridge` of the same sigma it is a Schrodinger bridge; sigma = 0 is `linear`,
    without a score. The score is that of x_t given x0 and x1. It and u_t are infinite at the ends: there t (1 - t)
    counts as at least 1e-4 in both (0.02 % of times). The velocity of the flow alone gives neither data nor
    noise, since x_t holds a third unknown.
    Tong et al., https://arxiv.org/abs/2302.00482 and https://arxiv.org/abs/2307.03672.

    sigma: of the reference diffusion sigma dW. Raises GenkitError for a negative one.
    """

    noisy = True

    def __init__(self, sigma: float = 0.5) -> None:
        if not 0 <= sigma < math.inf:
            raise GenkitError(f"bridge: sigma must not be negative, not {sigma}")
        self.sigma = sigma

    def coefficients(self, t: Tensor) -> Coefficients:
        raise GenkitError(
            "the path 'bridge' adds noise of its own, so that its velocity gives neither data nor noise nor score: "
            "take a path such as 'linear', or a solver that needs velocity only (euler, midpoint, heun, rk4)"
        )

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: Generator = None) -> Point:
        if t.ndim:
            t = per_row(t, x1)
        noise = sample_like(torch.randn, x1, generator)
        product = t * (1 - t)
        root = product.clamp_min(FLOOR).sqrt()
        x_t = t * x1 + (1 - t) * x0 + self.sigma * product.clamp_min(0).sqrt() * noise
        u_t = x1 - x0 + self.sigma * (1 - 2 * t) / (2 * root) * noise
        return Point(x_t, u_t, -noise / (self.sigma * root) if self.sigma else None)
