"""The guidance interface, its registry, and the one place where both branches are evaluated."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from genkit.registry import Registry
from genkit.types import null_like

Affine = tuple[Tensor, Tensor]  # log-scale a, shift mu
Predictor = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # f(t, x, y) -> prediction


class Guidance(abc.ABC):
    """Combines predictions. `active` is False when the result is the conditional prediction, bit for bit."""

    active: bool = True

    @abc.abstractmethod
    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
        """t is the time (scalar) of a flow of pairs, the fraction of tokens done of an autoregressive flow."""

    def combine_affine(self, conditional: Affine, unconditional: Affine, done: Tensor) -> Affine:
        """For autoregressive flows x = z exp(a) + mu: log-scale a and shift mu of both networks -> those to take.

        done: the fraction of tokens done (scalar, or of a shape that broadcasts with a). By default both are combined
        as predictions are.
        """
        a, mu = (self.combine(c, u, done) for c, u in zip(conditional, unconditional, strict=True))
        return a, mu


GUIDANCES = Registry(Guidance, "guidance", "genkit.guidance")


def guided(
    predict: Predictor, y: Tensor | None, guidance: Guidance | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """f(t, x) for classes or conditions `y`; with guidance, they and the null are one batch of twice the size."""
    if guidance is None or not guidance.active or y is None:
        return lambda t, x: predict(t, x, y)
    both = torch.cat((y, null_like(y)))

    def field(t: Tensor, x: Tensor) -> Tensor:
        conditional, unconditional = predict(t, torch.cat((x, x)), both).chunk(2)
        return guidance.combine(conditional, unconditional, t)

    return field
