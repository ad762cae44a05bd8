"""Guidance of autoregressive flows by the product of their Gaussian steps."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance.base import GUIDANCES, Affine
from genkit.guidance.classifier_free import ClassifierFree


@GUIDANCES.register("corrected")
class Corrected(ClassifierFree):
    """Each step of an autoregressive flow is the Gaussian p_c^scale / p_u^(scale - 1), and not linear in a and mu.

        w = scale - 1,  s = min(sigma_c / sigma_u, 1)^2,  d = 1 + w (1 - s),  sigma = exp(a)
        sigma = sigma_c / sqrt(d),  mu = (scale mu_c - w s mu_u) / d

    The minimum keeps d positive where the product would be no density. It acts in each span that is told the class
    (with `told: last` in the deep one alone, as there). Of fields (through their scores) and of logits the product is
    linear, and this is `classifier_free`.
    annealed: as there. Gu et al., STARFlow, https://arxiv.org/abs/2506.06276.
    """

    def __init__(self, scale: float = 2.0, annealed: bool = False) -> None:
        super().__init__(scale, annealed)
        if scale < 0:
            raise GenkitError(f"corrected: scale must not be negative, not {scale}")

    def combine_affine(self, conditional: Affine, unconditional: Affine, done: Tensor) -> Affine:
        (a_c, mu_c), (a_u, mu_u) = conditional, unconditional
        w = self.excess(done)
        s = torch.exp(2 * (a_c - a_u).clamp(max=0))
        d = 1 + w * (1 - s)
        return a_c - d.log() / 2, ((1 + w) * mu_c - w * s * mu_u) / d
