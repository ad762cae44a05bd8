"""Guidance that keeps the contrast of the conditional prediction."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance.base import GUIDANCES, Predicted
from genkit.guidance.classifier_free import Linear
from genkit.types import per_row


@GUIDANCES.register("rescaled")
class Rescaled(Linear):
    """g = v_c + (scale - 1) (v_c - v_u), then v = phi g std(v_c) / std(g) + (1 - phi) g.

    std is over all values of a sample. It acts on what the network predicts: of velocities and of data it is not the
    same. Logits and the steps of autoregressive flows have no size to keep. phi 0 is classifier-free guidance.
    Lin et al., https://arxiv.org/abs/2305.08891, section 3.4.
    """

    of: ClassVar[frozenset[Predicted]] = frozenset(("field",))

    def __init__(self, scale: float = 2.0, phi: float = 0.7) -> None:
        super().__init__(scale)
        if not 0 <= phi <= 1:
            raise GenkitError(f"rescaled: phi must be from 0 to 1, not {phi}")
        self.phi = phi

    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
        found = super().combine(conditional, unconditional, t)
        kept, had = (v.flatten(1).std(1, correction=0) for v in (conditional, found))
        factor = torch.where(had > 0, kept / had, 1.0)
        return found * per_row(1 + self.phi * (factor - 1), found)
