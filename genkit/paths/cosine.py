"""The quarter circle."""

from __future__ import annotations

import math

from torch import Tensor

from genkit.paths.base import PATHS, Path
from genkit.types import Coefficients


@PATHS.register("cosine")
class Cosine(Path):
    """Quarter circle at constant angular speed: alpha = sin(pi t / 2), sigma = cos(pi t / 2).

    Keeps the variance where source and data have the same. Albergo & Vanden-Eijnden, Stochastic
    Interpolants, https://arxiv.org/abs/2209.15571.
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        angle = math.pi / 2 * t
        sin, cos = angle.sin(), angle.cos()
        return Coefficients(sin, cos, math.pi / 2 * cos, -math.pi / 2 * sin)
