"""The path of the variance-preserving diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import PATHS, Path
from genkit.types import Coefficients


@PATHS.register("variance_preserving")
class VariancePreserving(Path):
    """Diffusion with linear beta, with s = 1 - t: alpha = exp(-beta_min s / 2 - (beta_max - beta_min) s^2 / 4).

    sigma = sqrt(1 - alpha^2). alpha at t=0 is not 0 but exp(-(beta_min + beta_max) / 4), 0.0066 for the
    defaults, as in the paper. sigma' is infinite at t=1: from s = 1e-5 on, all four stay as they are there
    (so sigma at t=1 is not 0 but 0.001).
    Song et al., Score-Based Generative Modeling through SDEs, https://arxiv.org/abs/2011.13456.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise GenkitError(f"variance_preserving: 0 < beta_min <= beta_max, not {beta_min}, {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def coefficients(self, t: Tensor) -> Coefficients:
        s = (1 - t).clamp_min(1e-5)
        slope = self.beta_max - self.beta_min
        log_alpha = -self.beta_min * s / 2 - slope * s.square() / 4
        alpha = log_alpha.exp()
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        d_alpha = alpha * (self.beta_min + slope * s) / 2  # d/dt = -d/ds
        return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)
