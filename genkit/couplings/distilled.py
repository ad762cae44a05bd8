"""The coupling of a trained, invertible flow."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling, EncodedData
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import Generator, Pair, Source, StandardNormal

ROWS = 4096  # at most so many rows are encoded to measure the scale of the codes


@COUPLINGS.register("distilled")
class Distilled(Coupling):
    """Each data row with the noise that a trained normalizing flow maps to it: x0 = f(x1 + noise eps, y) / s.

    A student trained on it takes straighter paths than one of independent pairs. s is one scalar for the
    whole data set, with s^2 = E[f(.)^2], so that x0 has the source's second moment.
    The teacher sees the true class. Cost: one pass of the teacher.
    "NFM", https://arxiv.org/abs/2603.09014.

    teacher: a run folder, or the name of an arm of the same comparison.
    noise: standard deviation of eps; null for the teacher's own augmentation (a teacher of dequantized data
        needs none: the data are dequantized already).
    endpoint: the student is led to the clean data (`clean`) or to what the teacher saw (`noised`).
    rescale: divide by s.
    spread: share r of fresh noise in the code, x0 = sqrt(1 - r^2) f(.) / s + r n with n ~ N(0, I): it brings
        the marginal of x0 nearer to the source where the teacher misses it, and makes the pairs looser; at 0
        the paper's coupling, at 1 the independent one. Our addition.
    """

    keeps_source = False
    needs_teacher = True
    passes = 1.0

    def __init__(
        self,
        teacher: str | None = None,
        noise: float | None = None,
        endpoint: Literal["clean", "noised"] = "clean",
        rescale: bool = True,
        spread: float = 0.0,
    ) -> None:
        if noise is not None and noise < 0:
            raise GenkitError(f"distilled: noise must not be negative, not {noise}")
        if not 0 <= spread <= 1:
            raise GenkitError(f"distilled: spread must be from 0 to 1, not {spread}")
        self.teacher_name, self.noise, self.endpoint, self.rescale = teacher, noise, endpoint, rescale
        self.spread = spread
        self.sigma, self.scale = noise or 0.0, 1.0

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        if not hasattr(teacher, "encode"):
            raise GenkitError(
                "distilled: the teacher must give data a code, as a normalizing flow does; "
                f"{type(teacher).__name__} does not"
            )

    def setup(self, data: EncodedData | None, source: Source, teacher: Any = None) -> None:
        super().setup(data, source, teacher)
        if self.noise is None:
            self.sigma = float(teacher.view.sigma)
        self.scale = 1.0
        if self.rescale and data is not None:
            generator = keyed_generator(0, "distilled")
            rows = torch.arange(min(len(data), ROWS))
            parts = (data.take(part, generator=generator) for part in rows.split(256))
            codes = torch.cat([self._code(x1, y, generator)[0] for x1, y in parts])
            self.scale = float(codes.square().mean().sqrt())

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        code, noised = self._code(x1, y, generator)
        x0 = code / self.scale
        if self.spread:
            x0 = (1 - self.spread**2) ** 0.5 * x0 + self.spread * self.source.sample(x0, generator=generator)
        return Pair(x0, noised if self.endpoint == "noised" else x1, y, index)

    @torch.no_grad()
    def _code(self, x1: Tensor, y: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor]:
        noised = x1
        if self.sigma:
            noised = x1 + self.sigma * StandardNormal().sample(x1, generator=generator)
        if next(self.teacher.parameters()).device != x1.device:
            self.teacher.to(x1.device)
        with torch.autocast(x1.device.type, enabled=False):
            return self.teacher.encode(noised, y), noised
