"""Flow matching: regress the velocity of a path between coupled source and data samples, or its end x1 or x0.

    (x0, x1) ~ coupling,  t ~ times,  x_t, u_t = path(x0, x1, t)
    loss = E | f(t, x_t, y) - target |^2,   target: u_t for the velocity, x1 for the data, x0 for the noise

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
from genkit.errors import GenkitError
from genkit.objectives.base import OBJECTIVES, weighted_mean
from genkit.objectives.flow import Flow
from genkit.paths import PATHS, Path, Times
from genkit.types import Batch, DataSpec, Generator, Pair, Rows, StandardNormal


@OBJECTIVES.register("flow_matching")
class FlowMatching(Flow):
    """Flow matching over any coupling and path.

    coupling: which source sample goes with which data row. path: where a pair is at time t. times: how t is drawn.
    prediction: what the network gives; on a Gaussian-form path each gives the others (see `Field`). `data` gives no
        velocity at t=1, so it is sampled with solvers of data prediction, such as dpmpp, and has no likelihood;
        `noise` needs a path that is not all noise at t=0, such as variance_preserving.
    source: a 2-D density as the distribution at t=0; null for the standard normal.
    conditional: whether the network is told the class or condition; label_dropout: how often it is not, in training,
        so that it can be guided.
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
        prediction: Literal["velocity", "data", "noise"] = "velocity",
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
        self.prediction = prediction
        if prediction != "velocity":
            self.default_sampler = "dpmpp"
            name = PATHS.name_of(self.path)
            if self.path.noisy:
                raise GenkitError(
                    f"prediction '{prediction}' gives no velocity on the path '{name}', which has noise of its own: "
                    "take prediction='velocity'"
                )
            if why := self.field().undefined(torch.zeros((), dtype=torch.float64, device="cpu")):
                raise GenkitError(
                    f"{why} on the path '{name}': take path=variance_preserving, or prediction velocity or data"
                )

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        self.coupling.check_teacher(teacher)
        generated = self.coupling.rows is Rows.GENERATED and teacher is not None
        if generated and self.conditional and not teacher.conditional:
            raise GenkitError(
                f"the coupling '{COUPLINGS.name_of(self.coupling)}' makes its rows by a teacher, which is "
                "unconditional: set conditional=false here too, or train the teacher with classes or conditions"
            )

    def setup(self, data: Split, teacher: Any = None) -> None:
        super().setup(data, teacher)
        self.coupling.setup(Encoded(data, self.view), self.source, teacher)
        if self.conditional and self.coupling.skews_classes:
            better = "a conditional teacher" if self.coupling.needs_teacher else "'conditional_ot'"
            warnings.warn(
                f"the coupling '{COUPLINGS.name_of(self.coupling)}' pairs without regard to conditions, so each of "
                f"them is trained from a source of its own and sampled from another: take {better}, or "
                "conditional=false",
                stacklevel=2,
            )

    @torch.no_grad()
    def prepare(self, batch: Batch, *, generator: Generator = None) -> Batch:
        x1 = self.view.encode(batch.x, generator=generator)
        # With its classes even where this model takes none: a teacher may. `drop_label` leaves them out.
        batch.pair = self.coupling(x1, batch.y, index=batch.index, generator=generator)
        return batch

    def noised(self, pair: Pair, *, generator: Generator = None) -> tuple[Tensor, Tensor, Tensor]:
        """t (B,), x_t (B, ...) and what is to be predicted there (B, ...)."""
        t = self.times(pair.x1, generator=generator)
        point = self.path(pair.x0, pair.x1, t, generator=generator)
        return t, point.x_t, {"velocity": point.u_t, "data": pair.x1, "noise": pair.x0}[self.prediction]

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        pair = batch.paired
        t, x_t, target = self.noised(pair, generator=generator)
        predicted = self.predict(t, x_t, self.drop_label(pair.y, generator=generator))
        return {**pair.logs, "loss": weighted_mean((predicted - target).square(), pair.weight)}

    @property
    def passes(self) -> float:
        return self.call + self.coupling.passes

    @property
    def setup_rows(self) -> int:
        return self.coupling.setup_rows

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
