"""An energy E(x, t, y), a scalar, whose gradient is the field: p_t(x | y) = exp(-E(x, t, y)) / Z_t(y).

    v(x) = a x + b grad phi(u),    u = x / sqrt(s),    s = alpha^2 d^2 + sigma^2  (the variance of x_t, d^2 = E[x1^2])
    E(x) = |x|^2 / (2 s) - (alpha d / sigma) phi(u),    score = -grad E
    loss = E | v(x_t) - target |^2,   target: u_t of the path (denoising score matching), or a teacher's velocity

The network only gives the potential phi: what is known in closed form, how E, score and velocity depend on the noise
level, is outside of it, and finite at t=0 and, for the velocity, at t=1. With phi = 0 it is the field of a Gaussian of
the data's size.

Thornton et al., Composition and Control with Distilled Energy Diffusion Models and Sequential Monte Carlo,
https://arxiv.org/abs/2502.12786; preconditioning after Karras et al., https://arxiv.org/abs/2206.00364; energies as
inner products and squared residuals: Salimans & Ho, Should EBMs Model the Energy or the Score?,
https://openreview.net/forum?id=9AS-TF2jRNb; Du et al., Reduce, Reuse, Recycle, https://arxiv.org/abs/2302.11552.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genkit.backbone import Head, ModelOptions, twice_differentiable
from genkit.data.base import Encoded, Split
from genkit.errors import GenkitError
from genkit.objectives.base import OBJECTIVES, Beside
from genkit.objectives.flow import Flow
from genkit.objectives.flow_matching import FlowMatching
from genkit.objectives.likelihood import Divergence, Gradient, Probe
from genkit.paths import Path, Times
from genkit.randomness import keyed_generator
from genkit.solvers import Solver
from genkit.types import Batch, DataSpec, Generator, LogProb, Pair, per_row

ROWS = 4096  # at most so many rows are read to measure the size of the data
LAST = 0.99  # at t=1 itself an energy is infinite
FINEST = 1 / 32  # noise beside the size of real-valued data, below which an energy is not to be trusted


class Scales(NamedTuple):
    """What is known of time t: the path, the variance s of x_t, and v = a x + b grad phi."""

    alpha: Tensor
    sigma: Tensor
    variance: Tensor
    a: Tensor
    b: Tensor


@OBJECTIVES.register("energy")
class Energy(Flow):
    """A scalar energy whose gradient is the field that is sampled.

    parameterization: the potential phi, from the network's outputs f, as many as x has values, or one a token:
        inner_product     phi = <u, f> / 2                                          E = <x, n> / (2 sigma)
        squared_residual  phi = (sigma^2 <u, f> + alpha sigma d (|u|^2 - |f|^2) / 2) / s   E = |n|^2 / 2
        pooled            phi = sum of the outputs, one a token
        where n = E[x0 | x_t] as the velocity a x + b f gives it. The network of the first two is that of
        `flow_matching`: its weights fit, and the field is then the symmetric part, nearly, of the teacher's.
    teacher: a trained `flow_matching` run, or an arm, with a Gaussian source and the coupling `independent`: the energy
        starts from its network and learns the conservative part of its field; null to learn from the data.
    noise, sigma: how data are read (see `Continuous`).
    """

    second_order = True
    call = 2.0  # once forward, and once back for the gradient
    scale: Tensor

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        parameterization: Literal["inner_product", "squared_residual", "pooled"] = "inner_product",
        teacher: str | None = None,
        path: Path | str = "linear",
        times: Times | str = "uniform",
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
        if parameterization == "pooled":  # without a bias: a constant of x has no gradient
            self.head = Head(model.width, 1, bias=False)
        self.parameterization, self.distills = parameterization, teacher is not None
        self.teacher: Beside[FlowMatching] | None = None
        self.register_buffer("scale", torch.ones(()))

    # --- teachers and data --------------------------------------------------------------------------------

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        if not self.distills:
            return
        if not isinstance(teacher, FlowMatching):
            given = "none is given" if teacher is None else f"{type(teacher).__name__} is given"
            raise GenkitError(
                f"energy: the teacher must be a flow_matching run, and {given}: set teacher=RUN_FOLDER"
            )
        if teacher.no_score is not None:
            raise GenkitError(
                f"energy: the field of the teacher has no valid score: {teacher.no_score}; "
                "train the teacher with the coupling 'independent' and a Gaussian source"
            )
        if teacher.prediction != "velocity":
            raise GenkitError(
                f"energy: the teacher predicts the {teacher.prediction}: train it with prediction=velocity"
            )
        for what in ("path", "view"):
            theirs, ours = getattr(teacher, what), getattr(self, what)
            if type(theirs) is not type(ours) or vars(theirs) != vars(ours):
                options = "path" if what == "path" else "noise and sigma"
                raise GenkitError(f"energy: the teacher has another {what}: set {options} as there")
        if teacher.conditional != self.conditional:
            raise GenkitError("energy: one of teacher and energy is conditional: set conditional as there")
        if self.conditional and self.label_dropout > 0 and teacher.label_dropout == 0:
            raise GenkitError(
                "energy: the teacher was trained with label_dropout 0, so its field without a class is untrained: set "
                "label_dropout=0 here too, or train the teacher with it"
            )
        for name, value in vars(teacher.model).items():
            if name != "dropout" and getattr(self.model, name) != value:
                raise GenkitError(
                    f"energy: it starts from the teacher's network, which has model.{name} {value}, "
                    f"not {getattr(self.model, name)}: set model as there"
                )

    def setup(self, data: Split, teacher: Any = None) -> None:
        super().setup(data, teacher)
        encoded = Encoded(data, self.view)
        x, _ = encoded.take(encoded.some(ROWS), generator=keyed_generator(0, "energy"))
        self.scale.copy_(x.square().mean().sqrt())
        if not self.distills:
            return
        self.teacher = Beside(teacher)
        for name in ("backbone", "stem", "condition", "head"):
            if name != "head" or self.parameterization != "pooled":
                getattr(self, name).load_state_dict(getattr(teacher, name).state_dict())

    @property
    def passes(self) -> float:
        return self.call + self.distills

    # --- the loss -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, batch: Batch, *, generator: Generator = None) -> Batch:
        x1 = self.view.encode(batch.x, generator=generator)
        batch.pair = Pair(self.source.sample(x1, generator=generator), x1, batch.y, batch.index)
        return batch

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        """Distilled, also `regression`: the loss of denoising score matching, which compares the two ways."""
        pair = batch.paired
        t = self.times(pair.x1, generator=generator)
        x_t, u_t, _ = self.path(pair.x0, pair.x1, t, generator=generator)
        y = self.drop_label(pair.y, generator=generator)
        v = self.predict(t, x_t, y)
        regression = (v - u_t).square().mean()
        if not self.distills:
            return {"loss": regression}
        if self.teacher is None:
            raise GenkitError("energy: the loss needs the teacher, which setup() is given")
        with torch.no_grad():
            target = self.teacher.on(x_t.device).predict(t, x_t, y)
        return {"loss": (v - target).square().mean(), "regression": regression}

    # --- the energy and its gradient ----------------------------------------------------------------------

    def scales(self, t: Tensor, x: Tensor) -> Scales:
        """At t, scalar or (B,), each broadcast to x (B, ...)."""
        t = per_row(t.to(x.dtype).expand(len(x)), x)
        alpha, sigma, d_alpha, d_sigma = self.path.coefficients(t)
        variance = (alpha * self.scale).square() + sigma.square()
        a = (alpha * d_alpha * self.scale.square() + sigma * d_sigma) / variance
        b = self.scale * (sigma * d_alpha - alpha * d_sigma) / variance.sqrt()
        return Scales(alpha, sigma, variance, a, b)

    def potential(self, t: Tensor, u: Tensor, y: Tensor | None = None) -> Tensor:
        """phi (B,) at u (B, ...), of unit variance."""
        alpha, sigma, variance, a, b = self.scales(t, u)
        x = u * variance.sqrt()
        if self.parameterization == "pooled":
            return self.outputs(t, x, y).sum((1, 2))
        f = (self.network(t, x, y) - a * x) / b
        if self.parameterization == "inner_product":
            return (u * f).flatten(1).sum(1) / 2
        inner = sigma.square() * u * f + alpha * sigma * self.scale / 2 * (u.square() - f.square())
        return (inner / variance).flatten(1).sum(1)

    def with_gradient(self, t: Tensor, u: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """phi (B,) and its gradient (B, ...) in u; with a graph of their own where gradients are enabled."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad(), twice_differentiable() if keep else nullcontext():
            u = u if u.requires_grad else u.detach().requires_grad_()
            phi = self.potential(t, u, y)
            (gradient,) = torch.autograd.grad(phi.sum(), u, create_graph=keep)
        return (phi, gradient) if keep else (phi.detach(), gradient)

    def predict(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """v = a x + b grad phi, which is the velocity of the path for the score -grad E."""
        _, _, variance, a, b = self.scales(t, x)
        return a * x + b * self.with_gradient(t, x / variance.sqrt(), y)[1]

    def log_density(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-E(x, t, y) (B,), log p_t(x | y) up to a constant of t and y, and the score -grad E (B, ...), for t < 1."""
        alpha, sigma, variance, _, _ = self.scales(t, x)
        phi, gradient = self.with_gradient(t, x / variance.sqrt(), y)
        weight = alpha * self.scale / sigma
        value = weight.flatten() * phi - (x.square() / variance).flatten(1).sum(1) / 2
        return value, weight / variance.sqrt() * gradient - x / variance

    @property
    def end(self) -> float:
        """The time at which the energy stands for the data: where the noise, sigma / alpha, is as wide as a level, or a
        32nd of the size of real-valued data; at most 0.99.

        Beyond it a trained energy is not to be trusted: an error of the velocity is one of the score alpha / sigma
        times as large, and of the energy the integral of that over x. The cost is that neighbouring levels mix.
        """
        grain = 2 / self.spec.levels if self.spec.levels else FINEST * float(self.scale)
        times = torch.linspace(0, LAST, 1000, dtype=torch.float64, device="cpu")
        alpha, sigma, _, _ = self.path.coefficients(times)
        fine = times[sigma <= grain * alpha]
        return float(fine[0]) if len(fine) else LAST

    # --- likelihood ---------------------------------------------------------------------------------------

    def log_prob(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        by: Literal["flow", "energy"] = "flow",
        sampler: Solver | str | None = None,
        divergence: Divergence = "auto",
        probes: int = 2,
        probe: Probe = "rademacher",
        gradient: Gradient = "direct",
        tolerance: float | None = 0.01,
        generator: Generator = None,
    ) -> LogProb:
        """Of the flow along the field (see `Flow.log_prob`) or, by="energy", -E at the time `end` without its
        constant, which sees data through the noise that is left there.

        `genkit.particles.log_prob` has the latter with its constant.
        """
        if by == "flow":
            return super().log_prob(
                x,
                y,
                sampler=sampler,
                divergence=divergence,
                probes=probes,
                probe=probe,
                gradient=gradient,
                tolerance=tolerance,
                generator=generator,
            )
        x1, y = self.encoded_for_likelihood(x, y, generator)
        t = torch.tensor(self.end, dtype=x1.dtype, device=x1.device)
        alpha = self.path.coefficients(t).alpha
        value, _ = self.log_density(t, alpha * x1, y)
        return LogProb(value + self.spec.dims * alpha.log() + self.view.log_volume, "unnormalized")
