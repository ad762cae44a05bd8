"""Flow matching: regress the velocity of the path between coupled source and data samples.

    (x0, x1) ~ coupling,  t ~ times,  x_t, u_t = path(x0, x1, t)
    loss = E | v(t, x_t, y) - u_t |^2

Lipman et al., https://arxiv.org/abs/2210.02747; Liu et al., https://arxiv.org/abs/2209.03003; Albergo &
Vanden-Eijnden, https://arxiv.org/abs/2209.15571.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from genkit.backbone import ModelOptions
from genkit.couplings import COUPLINGS, Coupling
from genkit.data.base import DATASETS, Dataset, Encoded, Split
from genkit.data.densities import DensitySource
from genkit.objectives.base import OBJECTIVES, weighted_mean
from genkit.objectives.flow import Flow
from genkit.paths import PATHS, Path, Times
from genkit.types import Batch, DataSpec, Generator, StandardNormal


@OBJECTIVES.register("flow_matching")
class FlowMatching(Flow):
    """Flow matching over any coupling and path; velocity prediction.

    source: a 2-D density as the distribution at t=0; null for the standard normal.
    noise, sigma: how data are read (see `Continuous`).
    """

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        coupling: Coupling | str = "independent",
        path: Path | str = "linear",
        times: Times | str = "uniform",
        source: Dataset | str | None = None,
        conditional: bool = True,
        label_dropout: float = 0.1,
        noise: Literal["uniform", "gaussian", "none"] | None = None,
        sigma: float = 0.0,
    ) -> None:
        super().__init__(
            spec,
            model,
            path=path,
            times=times,
            conditional=conditional,
            label_dropout=label_dropout,
            noise=noise,
            sigma=sigma,
        )
        self.coupling: Coupling = COUPLINGS.build(coupling)
        self.source = StandardNormal() if source is None else DensitySource(DATASETS.build(source))
        self.coupling.source = self.source

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        self.coupling.check_teacher(teacher)

    def setup(self, data: Split, teacher: Any = None) -> None:
        super().setup(data, teacher)
        if self.conditional and self.coupling.skews_classes:
            warnings.warn(
                f"the coupling '{COUPLINGS.name_of(self.coupling)}' pairs without regard to classes, so each class "
                "is trained from a source of its own and sampled from another: take 'conditional_ot', or "
                "conditional=false",
                stacklevel=2,
            )
        self.coupling.setup(Encoded(data, self.view), self.source, teacher)

    @torch.no_grad()
    def prepare(self, batch: Batch, *, generator: Generator = None) -> Batch:
        x1 = self.view.encode(batch.x, generator=generator)
        # With its classes even where this model takes none: a teacher may. `drop_label` leaves them out.
        batch.pair = self.coupling(x1, batch.y, index=batch.index, generator=generator)
        return batch

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        pair = batch.paired
        t = self.times(pair.x1, generator=generator)
        point = self.path(pair.x0, pair.x1, t, generator=generator)
        v = self.velocity(t, point.x_t, self.drop_label(pair.y, generator=generator))
        return {"loss": weighted_mean((v - point.u_t).square(), pair.weight)}

    @property
    def passes(self) -> float:
        return self.call + self.coupling.passes

    def velocity(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """v(t, x, y): t scalar or (B,), x (B, ...), y (B,) with -1 for the null class."""
        return self.network(t, x, y)

    @property
    def no_score(self) -> str | None:
        if not self.source.gaussian:
            return "its source is not a Gaussian"
        if self.path.noisy:
            return f"its path '{PATHS.name_of(self.path)}' has noise of its own"
        if not self.coupling.independent:
            name = COUPLINGS.name_of(self.coupling)
            return f"it was trained with the coupling '{name}', not 'independent'"
        return None
