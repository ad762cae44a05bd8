"""The guidance interface, its registry, and the one place where both predictions are asked for."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import null_like, per_row

Affine = tuple[Tensor, Tensor]  # log-scale a, shift mu
Predictor = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # f(t, x, y) -> prediction
Predicted = Literal["field", "affine", "logits"]  # of flows of pairs, autoregressive flows, discrete models


class Guidance(abc.ABC):
    """Combines the conditional prediction with a weaker one: that without the class or, `by_model`, that of `guide`.

    active: False when the result is the conditional prediction, bit for bit.
    of: what it can combine. A field is what the network predicts: a velocity, the data or the noise.
    guide: the weaker model, an objective of the same kind; checkpoint: which one a run loads for it.
    """

    active: bool = True
    of: ClassVar[frozenset[Predicted]] = frozenset(("field", "affine", "logits"))
    by_model: ClassVar[bool] = False
    guide: Any = None
    checkpoint: int | str | None = None

    @abc.abstractmethod
    def combine(self, conditional: Tensor, unconditional: Tensor, t: Tensor) -> Tensor:
        """t is the time of a flow of pairs, the share of symbols revealed of a discrete model, the share of tokens done
        of an autoregressive one: scalar, or of a shape that broadcasts with the predictions."""

    def combine_affine(self, conditional: Affine, unconditional: Affine, done: Tensor) -> Affine:
        """For autoregressive flows x = z exp(a) + mu: log-scale a and shift mu of both networks -> those to take.

        done: the share of tokens done (scalar, or of a shape that broadcasts with a). By default both are combined
        as predictions are.
        """
        a, mu = (self.combine(c, u, done) for c, u in zip(conditional, unconditional, strict=True))
        return a, mu

    def acts(self, t: Tensor) -> bool:
        """Whether the weaker prediction matters at any of the times t, on the CPU; where not, `combine` gives the
        conditional."""
        return True


GUIDANCES = Registry(Guidance, "guidance", "genkit.guidance")


def build_guidance(spec: Guidance | str | Mapping[str, Any] | float) -> Guidance:
    """As `GUIDANCES.build`, and a number is the scale of `classifier_free`."""
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        spec = {"name": "classifier_free", "scale": float(spec)}
    return GUIDANCES.build(spec)


def in_effect(guidance: Guidance | None, y: Tensor | None) -> Guidance | None:
    """The guidance where it is active and has something to guide by: a condition, or a model."""
    if guidance is None or not guidance.active or (y is None and not guidance.by_model):
        return None
    return guidance


class Guided:
    """f(t, x) for classes or conditions `y`, guided; they and the null are one batch of twice the size. t is a scalar,
    or (B,) of each row.

    predict: of the model; weaker: of the guidance's own, where it has one.
    cached: both keep what they have read, so that neither may be left out where the guidance does not act.
    rows: how many rows went through a network so far.
    """

    def __init__(
        self,
        predict: Predictor,
        y: Tensor | None,
        guidance: Guidance | None,
        weaker: Predictor | None = None,
        *,
        cached: bool = False,
    ) -> None:
        self.predict, self.y, self.guidance, self.weaker = predict, y, in_effect(guidance, y), weaker
        self.cached, self.rows = cached, 0
        if self.guidance is not None and self.guidance.by_model and weaker is None:
            raise GenkitError(no_guide(self.guidance))
        self.both = None if y is None else torch.cat((y, null_like(y)))

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        guidance, self.rows = self.guidance, self.rows + len(x)
        skips = not self.cached and t.device.type == "cpu"  # elsewhere, asking would wait for the device
        if guidance is None or (skips and not guidance.acts(t)):
            return self.predict(t, x, self.y)
        self.rows += len(x)
        if self.weaker is not None:
            conditional, weak = self.predict(t, x, self.y), self.weaker(t, x, self.y)
        else:
            twice = t.repeat(2) if t.ndim else t
            conditional, weak = self.predict(twice, torch.cat((x, x)), self.both).chunk(2)
        return guidance.combine(conditional, weak, per_row(t, weak) if t.ndim else t)


def no_guide(guidance: Guidance) -> str:
    return f"{GUIDANCES.name_of(guidance)} needs a weaker model: sample a run, which loads it, or set guidance.guide"
