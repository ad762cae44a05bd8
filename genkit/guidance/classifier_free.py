"""Classifier-free guidance."""

from __future__ import annotations

import math

from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance.base import GUIDANCES, Guidance


@GUIDANCES.register("classifier_free")
class ClassifierFree(Guidance):
    """v = v_c + (scale - 1) (v_c - v_u); scale 1 is off. Ho & Salimans, https://arxiv.org/abs/2207.12598.

    annealed: for autoregressive flows, the excess scale - 1 grows linearly from 0 at the first token to its
        full value at the last (Zhai et al., TarFlow, https://arxiv.org/abs/2412.06329); for flows of pairs
        it grows with t.
    """

    def __init__(self, scale: float = 1.0, annealed: bool = False) -> None:
        if not math.isfinite(scale):
            raise GenkitError(f"classifier_free: scale must be a finite number, not {scale}")
        self.scale, self.annealed = scale, annealed
        self.active = scale != 1

    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
        excess = (self.scale - 1) * (t if self.annealed else 1)
        return conditional + excess * (conditional - unconditional)
