"""Guidance that is weaker where it would change much."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance.base import GUIDANCES, Predicted
from genkit.guidance.classifier_free import Linear
from genkit.types import per_row


@GUIDANCES.register("ratio_aware")
class RatioAware(Linear):
    """v = v_c + (scale - 1) exp(-decay rho) (v_c - v_u),  rho = |v_c - v_u| / |v_u| of each sample.

    So scale is the most that is reached, where both agree; decay 0 is classifier-free guidance. It acts on what the
    network predicts, velocities in the paper. Logits and the steps of autoregressive flows have no such norm.
    decay: alpha there; the authors' examples, of images from text, have 12 at a scale of 18 and 8 at one of 10.
    Zhu et al., RAAG, https://arxiv.org/abs/2508.03442; since its fourth version MAMBO-G, where the scale counts from 0.
    """

    of: ClassVar[frozenset[Predicted]] = frozenset(("field",))

    def __init__(self, scale: float = 2.0, decay: float = 1.0) -> None:
        super().__init__(scale)
        if not 0 <= decay < math.inf:
            raise GenkitError(f"ratio_aware: decay must be finite and not negative, not {decay}")
        self.decay = decay

    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
        change = conditional - unconditional
        size, had = (v.flatten(1).norm(dim=1) for v in (change, unconditional))
        rho = torch.where(size > 0, size / had, 0.0).clamp_max(torch.finfo(size.dtype).max)
        excess = (self.scale - 1) * torch.exp(-self.decay * rho)
        return conditional + per_row(excess, change) * change
