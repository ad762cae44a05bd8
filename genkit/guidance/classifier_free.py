"""Classifier-free guidance."""

from __future__ import annotations

import math

from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance.base import GUIDANCES, Guidance


class Linear(Guidance):
    """v_c + excess(t) (v_c - v_u), where excess is scale - 1 or less; scale 1 is off.

    The same for velocity, data and noise of one path, since each is affine in the others.
    """

    def __init__(self, scale: float) -> None:
        if not math.isfinite(scale):
            raise GenkitError(f"{GUIDANCES.name_of(self)}: scale must be a finite number, not {scale}")
        self.scale = scale
        self.active = scale != 1

    def excess(self, t: Tensor) -> Tensor | float:
        return self.scale - 1

    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
        return conditional + self.excess(t) * (conditional - unconditional)


@GUIDANCES.register("classifier_free")
class ClassifierFree(Linear):
    """v = v_c + (scale - 1) (v_c - v_u); scale 1 is off. Ho & Salimans, https://arxiv.org/abs/2207.12598.

    annealed: for autoregressive flows, the excess scale - 1 grows linearly from 0 at the first token to its
        full value at the last (Zhai et al., TarFlow, https://arxiv.org/abs/2412.06329); for flows of pairs
        it grows with t.
    """

    def __init__(self, scale: float = 1.0, annealed: bool = False) -> None:
        super().__init__(scale)
        self.annealed = annealed

    def excess(self, t: Tensor) -> Tensor | float:
        return (self.scale - 1) * (t if self.annealed else 1)
