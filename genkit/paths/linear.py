"""The straight line."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.paths.base import PATHS, Path
from genkit.types import Coefficients


@PATHS.register("linear")
class Linear(Path):
    """Straight line at constant speed: alpha = t, sigma = 1 - t.

    Lipman et al., Flow Matching, https://arxiv.org/abs/2210.02747; Liu et al., Rectified Flow,
    https://arxiv.org/abs/2209.03003.
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)
