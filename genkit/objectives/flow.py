"""Flows of pairs: what all models of a field on a path share, whatever they predict and are trained by.

    sample: dx/dt = v(t, x, y) from x(0) ~ source to x(1)
    log p(x1) = log p0(x0) - int_0^1 div v(t, x(t)) dt

How the latter is computed is in `genkit.objectives.likelihood`.
"""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genkit.backbone import Condition, Head, ModelOptions, Stem
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.guidance import Guidance, guided
from genkit.objectives.base import Objective, finite
from genkit.objectives.likelihood import Divergence, estimate, with_divergence
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
        self.stem = Stem(self.tokens, model.width)
        self.condition = Condition(model.width, classes=self.classes, time=True)
        self.head = Head(model.width, self.tokens.dim)

    @property
    def no_score(self) -> str | None:
        """Why the velocity gives no score; None where it does (Gaussian source, independent pairs)."""
        return None

    def outputs(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the head gives (B, L, D): t scalar or (B,), x (B, ...), y (B,) with -1 for the null class."""
        cond = self.condition(len(x), t=t, y=y)
        h = self.stem(self.tokens.split(x))
        h = self.backbone(h, cond, pos=self.positions)
        return self.head(h, cond)

    def network(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The outputs in the shape of x (B, ...)."""
        return self.tokens.join(self.outputs(t, x, y))

    @abc.abstractmethod
    def predict(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the model predicts (B, ...): t scalar or (B,), x (B, ...), y (B,) with -1 for the null class."""

    def field(self, y: Tensor | None = None, guidance: Guidance | None = None) -> Field:
        """The prediction for classes y as a field that solvers take, with what else is valid for it."""
        coefficients = None if self.path.noisy else self.path.coefficients
        return Field(guided(self.predict, y, guidance), coefficients, self.no_score, self.prediction)

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
    ) -> Sample:
        """`sampler`: a solver (default: heun with 16 steps). `start`: source samples to begin from."""
        solver = SOLVERS.build(self.default_sampler if sampler is None else sampler)
        y = self.labels(n, y, guidance, log_prob=return_log_prob)
        x0 = self.start(n, generator=generator) if start is None else start
        field, log_prob = self.field(y, guidance), None
        if return_log_prob:
            if self.no_likelihood and self.prediction != "velocity":
                raise GenkitError(self.no_likelihood)
            augmented, pack, unpack = with_divergence(field, x0, generator=generator)
            solution = solver.solve(augmented, pack(x0), times=solver.times(field), generator=generator)
            x, change = unpack(solution.x)
            log_prob = estimate(self.source.log_prob(x0)[:, None] + change)
        else:
            solution = solver.solve(field, x0, generator=generator)
            x = solution.x
        branches = 2 if guidance is not None and guidance.active and y is not None else 1
        tokens = solution.nfe * branches * self.call * self.tokens.length
        return Sample(self.view.decode(finite(x)), solution.nfe, tokens, log_prob)

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
        generator: Generator = None,
    ) -> LogProb:
        """Integrates from the data back to the source (default: rk4 with 32 steps).

        divergence: `exact` takes one backward pass a dimension, `hutchinson` one a probe, with the standard
        error over the probes; `auto` is exact up to 16 dimensions. Gradients flow to x and to the weights
        where they are enabled and required; else no graph is kept.
        """
        solver = SOLVERS.build({"name": "rk4", "steps": 32} if sampler is None else sampler)
        x1, y = self.encoded_for_likelihood(x, y, generator)
        wanted = x1.requires_grad or any(p.requires_grad for p in self.parameters())
        field = self.field(y)
        augmented, pack, unpack = with_divergence(
            field,
            x1,
            divergence=divergence,
            probes=probes,
            generator=generator,
            differentiable=torch.is_grad_enabled() and wanted,
        )
        x0, change = unpack(solver.solve(augmented, pack(x1), times=solver.times(field).flip(0)).x)
        return estimate(self.source.log_prob(x0)[:, None] - change + self.view.log_volume)
