"""Flows of pairs: what all models of a field on a path share, whatever they predict and are trained by.

    sample: dx/dt = v(t, x, y) from x(0) ~ source to x(1)
    log p(x1) = log p0(x0) - int_0^1 div v(t, x(t)) dt

How the latter is computed is in `genkit.objectives.likelihood`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genkit.backbone import Condition, Head, ModelOptions, Stem
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.guidance import Guidance, Guided
from genkit.objectives.base import Objective, finite
from genkit.objectives.likelihood import Divergence, Gradient, LikelihoodOptions, Probe, estimate, follow
from genkit.paths import PATHS, TIMES, Path, Times
from genkit.solvers import SOLVERS, Solver
from genkit.types import DataSpec, Field, Generator, LogProb, Prediction, Sample, Source, StandardNormal


class Flow(Objective):
    """A field on a path from a source.

    prediction: what `predict` gives; `field` derives the velocity and the rest (see `Field`).
    call: how often a row goes through the backbone for a prediction.
    """

    samplers = SOLVERS
    default_sampler = "heun"
    source: Source = StandardNormal()
    prediction: Prediction = "velocity"
    call: ClassVar[float] = 1.0

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        path: Path | str,
        times: Times | str,
        conditional: bool,
        label_dropout: float,
        noise: Literal["uniform", "gaussian", "none"] | None,
        sigma: float,
    ) -> None:
        super().__init__(spec, model, conditional=conditional, label_dropout=label_dropout)
        self.view: Continuous = Continuous(spec, noise=noise, sigma=sigma)
        self.path: Path = PATHS.build(path)
        self.times: Times = TIMES.build(times)
        self.stem: nn.Module = Stem(self.tokens, model.width)
        self.condition = Condition(model.width, classes=self.classes, values=self.condition_dims, time=True)
        self.head = Head(model.width, self.tokens.dim)

    @property
    def no_score(self) -> str | None:
        """Why the velocity gives no score; None where it does (Gaussian source, independent pairs)."""
        return None

    def outputs(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the head gives (B, L, D): t scalar or (B,), x (B, ...), y classes or conditions, or the null."""
        cond = self.condition(len(x), t=t, y=y)
        h = self.stem(self.tokens.split(x))
        h = self.backbone(h, cond, pos=self.positions)
        return self.head(h, cond)

    def network(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The outputs in the shape of x (B, ...)."""
        return self.tokens.join(self.outputs(t, x, y))

    def predict(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the model predicts (B, ...): t scalar or (B,), x (B, ...), y classes or conditions, or the null."""
        return self.network(t, x, y)

    def field(self, y: Tensor | None = None, guidance: Guidance | None = None) -> Field:
        """The prediction for classes or conditions y as a field that solvers take, with what else is valid for it."""
        coefficients = None if self.path.noisy else self.path.coefficients
        guide = self.guide(guidance)
        predict = Guided(self.at, y, guidance, None if guide is None else guide.at)
        return Field(predict, coefficients, self.no_score, self.prediction)

    def at(self, t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """The prediction at a time as solvers have it, in float64 on the CPU."""
        return self.predict(t.to(x), x, y)

    def check_sampler(self, sampler: Solver) -> None:
        blank = replace(self.field(), predict=lambda t, x: torch.zeros_like(x))
        sampler.solve(blank, torch.zeros(1, 1, dtype=torch.float64), generator=torch.Generator())

    @property
    def no_likelihood(self) -> str | None:
        why = self.field().undefined(torch.ones((), dtype=torch.float64, device="cpu"))
        return super().no_likelihood or (
            why and f"{why}, so there is no likelihood: train with prediction='velocity'"
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: Solver | str | None = None,
        guidance: Guidance | None = None,
        return_log_prob: bool = False,
        generator: Generator = None,
        start: Tensor | None = None,
        divergence: Divergence = "auto",
        probes: int = 2,
        tolerance: float | None = 0.01,
    ) -> Sample:
        """`sampler`: a solver (default: heun with 16 steps). `start`: source samples to begin from.

        The log-probability comes along in one pass, by any solver without noise of its own; its options are as in
        `log_prob`.
        """
        solver = SOLVERS.build(self.default_sampler if sampler is None else sampler)
        y = self.labels(n, y, guidance, log_prob=return_log_prob)
        x0 = self.start(n, generator=generator) if start is None else start
        log_prob = None
        if return_log_prob:
            if self.no_likelihood:
                raise GenkitError(self.no_likelihood)
            options = LikelihoodOptions(divergence, probes, tolerance=tolerance)
            x, values, nfe = follow(
                self.fields(y),
                self.source,
                x0,
                solver,
                back=False,
                options=options,
                generator=generator,
            )
            log_prob, rows = estimate(values), nfe * n
        else:
            field = self.field(y, guidance)
            assert isinstance(field.predict, Guided)
            solution = solver.solve(field, x0, generator=generator)
            x, nfe, rows = solution.x, solution.nfe, field.predict.rows
        tokens = rows / n * self.call * self.tokens.length
        return Sample(self.decode(finite(x)), nfe, tokens, log_prob)

    @torch.no_grad()
    def trajectory(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: Solver | str,
        generator: Generator = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The states (B, ...) that the solver passes through, encoded, and their times."""
        solver = SOLVERS.build(sampler)
        x0 = self.start(n, generator=generator)
        field = self.field(self.labels(n, y))
        return solver.solve(field, x0, generator=generator, keep=True).trajectory, solver.times(field)

    def decode(self, x: Tensor) -> Tensor:
        """The states (n, ...) at t=1 as the data set stores its rows."""
        return self.view.decode(x)

    def start(self, n: int, *, generator: Generator = None) -> Tensor:
        """n samples of the source (n, ...)."""
        return self.source.sample(torch.empty(n, *self.spec.shape, device=self.device), generator=generator)

    def log_prob(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        sampler: Solver | str | None = None,
        divergence: Divergence = "auto",
        probes: int = 2,
        probe: Probe = "rademacher",
        gradient: Gradient = "direct",
        tolerance: float | None = 0.01,
        generator: Generator = None,
    ) -> LogProb:
        """Integrates from the data back to the source (default: rk4 with 32 steps); see `LikelihoodOptions`.

        Gradients flow to x and to the weights where they are enabled and required; else no graph is kept.
        """
        options = LikelihoodOptions(divergence, probes, probe, gradient, tolerance)
        if gradient != "direct" and self.training and self.model.dropout:
            raise GenkitError(
                f"gradient '{gradient}' runs the network again, which dropout lets differ: call eval()"
            )
        solver = SOLVERS.build({"name": "rk4", "steps": 32} if sampler is None else sampler)
        x1, y = self.encoded_for_likelihood(x, y, generator)
        found = follow(
            self.fields(y),
            self.source,
            x1,
            solver,
            back=True,
            options=options,
            parameters=self.parameters(),
            generator=generator,
        )
        return estimate(found.log_density + self.view.log_volume)

    def fields(self, y: Tensor | None) -> Callable[[slice], Field]:
        """The field of some of the rows whose classes are y."""
        return lambda rows: self.field(None if y is None else y[rows])
