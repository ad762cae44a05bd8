"""Guidance by a weaker checkpoint of the same run."""

from __future__ import annotations

from typing import ClassVar

from genkit.guidance.base import GUIDANCES
from genkit.guidance.classifier_free import Linear


@GUIDANCES.register("autoguidance")
class Autoguidance(Linear):
    """v = v_c + (scale - 1) (v_c - v_g): v_g is of the same model, less trained. Scale 1 is off.

    Both are given the same class or none: it needs no label dropout, and guides unconditional models too. Recipes keep
    such models by `training.snapshots`. Both networks together count as one call, of twice the tokens.
    checkpoint: the step of a snapshot, best or last, or a file .safetensors, seen from the run folder; null for the
        first snapshot.
    Karras et al., https://arxiv.org/abs/2406.02507, who also make the guide smaller.
    """

    by_model: ClassVar[bool] = True

    def __init__(self, scale: float = 2.0, checkpoint: int | str | None = None) -> None:
        super().__init__(scale)
        self.checkpoint = checkpoint
