"""Pairs that a trained flow makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling, EncodedData
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import Generator, Pair, Rows, Source


@COUPLINGS.register("reflow")
class Reflow(Coupling):
    """Each noise sample with what a trained flow makes of it: x1 = x0 + int_0^1 v(t, x(t), y) dt.

    A student trained on such pairs takes straighter paths than its teacher, at no higher cost of transport, and
    learns the teacher's samples, not the data. The batch gives its size and, to a conditional teacher, y. Cost:
    one pass of the teacher for each evaluation of its solver (`passes`), at each step of training.
    Liu et al., Rectified Flow, https://arxiv.org/abs/2209.03003.

    teacher: a run folder, or the name of an arm of the same comparison; a flow of pairs.
    solver: that the teacher samples with.
    Raises GenkitError for a teacher that is no flow of pairs or starts from another source, and for a solver
    that does not exist.
    """

    rows = Rows.GENERATED
    lowers_cost = True
    needs_teacher = True

    def __init__(self, teacher: str | None = None, solver: str | Mapping[str, Any] = "heun") -> None:
        self.solver = solver

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        if getattr(getattr(teacher, "samplers", None), "kind", None) != "solver":
            raise GenkitError(
                "reflow: the teacher must be a flow of pairs, such as flow_matching; "
                f"{type(teacher).__name__} is none"
            )
        teacher.samplers.check(self.solver, "reflow: solver")

    def setup(self, data: EncodedData | None, source: Source, teacher: Any = None) -> None:
        super().setup(data, source, teacher)
        if same_source(teacher.source) != same_source(source):
            raise GenkitError("reflow: the teacher starts from another source: set the same `source` in both")
        generator = keyed_generator(0, "reflow", device=teacher.device)
        nfe = teacher.sample(16, sampler=self.solver, generator=generator).nfe
        self.passes, self.setup_rows = float(nfe), 16 * nfe

    @torch.no_grad()
    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        if self.teacher.device != x1.device:
            self.teacher.to(x1.device)
        classes = y if self.teacher.conditional else None
        with torch.autocast(x1.device.type, enabled=False):
            states, _ = self.teacher.trajectory(len(x1), classes, sampler=self.solver, generator=generator)
        return Pair(states[0].to(x1), states[-1].to(x1), classes, index)


def same_source(source: Source) -> tuple[type, type | None]:
    """What makes two sources the same."""
    return type(source), type(getattr(source, "density", None))
