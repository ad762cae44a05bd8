"""The likelihood of a flow: the state goes along with the change of its log-density.

    dx/dt = v(t, x),   dl/dt = -div v(t, x),   log p(x(1)) = log p0(x(0)) + l(1) - l(0)

    exact        div v = sum_i e_i . (dv/dx) e_i over the D unit vectors: D products, a few at a time
    hutchinson   div v ~ e . (dv/dx) e for random e with E[e e^T] = I, one product a probe. The probes stay the same
                 along a trajectory, so that what is integrated is smooth, and each gives an estimate without bias.

Gradients of the result, in the data and in the weights (theta below):

    direct       through the solver: all that the network keeps at every evaluation is kept
    recompute    the same gradients; only z = (x, l) of each evaluation is kept, and the network runs again
    adjoint      nothing is kept but the end of the trajectory, whatever the steps: from there the same solver goes back
                 along it, and solves for the gradients. They equal the others up to the solver's error.
                     a = dL/dz,   da/dt = -a . df/dz,   dL/dtheta = -int a . df/dtheta dt, from the end to the beginning

Chen et al., Neural Ordinary Differential Equations, https://arxiv.org/abs/1806.07366; Grathwohl et al., FFJORD,
https://arxiv.org/abs/1810.01367; probes of least variance: Hutchinson, https://doi.org/10.1080/03610919008812866.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genkit.backbone import twice_differentiable
from genkit.errors import GenkitError, choose
from genkit.randomness import sample_like
from genkit.solvers import SOLVERS, Solver
from genkit.solvers.adaptive import Adaptive
from genkit.types import Field, Generator, LogProb, Source

Divergence = Literal["auto", "exact", "hutchinson"]
Probe = Literal["rademacher", "gaussian"]
Gradient = Literal["direct", "recompute", "adjoint"]
EXACT_DIMS = 16  # up to here the exact divergence is the default
AT_ONCE = 8  # products with the Jacobian that are taken together
PART = 16  # one row in so many is integrated again, to see the error of the steps


@dataclass(frozen=True)
class LikelihoodOptions:
    """How a log-density is followed along a flow.

    divergence: `exact`, `hutchinson`, or `auto`: exact up to 16 dimensions.
    probes: of Hutchinson's estimate; two or more give its standard error. probe: Rademacher probes (signs) have the
        least variance, that of the off-diagonal part; Gaussian ones add that of the diagonal.
    gradient: how gradients are computed, where they are wanted.
    tolerance: in bits/dim: one row in 16 is integrated with half the steps too, and a warning says when the error of
        the steps, as the difference shows it, is above, and how many would do; null for none. It costs a 32nd of the
        whole, half of it for a single row. Adaptive solvers have tolerances of their own, and grids of one number of
        steps are not checked.
    """

    divergence: Divergence = "auto"
    probes: int = 2
    probe: Probe = "rademacher"
    gradient: Gradient = "direct"
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise GenkitError(f"the number of probes must be at least 1, not {self.probes}")
        for name, known in (("divergence", Divergence), ("probe", Probe), ("gradient", Gradient)):
            if getattr(self, name) not in get_args(known):
                raise choose(getattr(self, name), get_args(known), name)
        if self.tolerance is not None and not self.tolerance > 0:
            raise GenkitError(f"the tolerance must be positive, or null, not {self.tolerance}")

    def draw(self, x: Tensor, *, generator: Generator = None) -> Tensor | None:
        """Probes (B, P, D) for x (B, ...); None for the exact divergence."""
        dims = x[0].numel()
        if self.divergence == "exact" or (self.divergence == "auto" and dims <= EXACT_DIMS):
            return None
        shape = (len(x), self.probes, dims)
        if self.probe == "gaussian":
            return sample_like(torch.randn, x, generator, shape)
        return (sample_like(torch.rand, x, generator, shape) < 0.5).to(x) * 2 - 1


class Augmented(Field):
    """The field of z = (x, l), packed as (B, D + P): a column l for each probe, one for the exact divergence.

    On a path its data and noise are those that the formulas of `Field` give for z: of x they are the model's, and of l
    what lets a method that integrates them integrate dl/dt too. Where gradients are enabled, those of z and of the
    weights go through it, by second derivatives of the field.
    """

    def __init__(self, field: Field, shape: Sequence[int], probes: Tensor | None) -> None:
        super().__init__(
            self.slope,
            field.coefficients,
            "a log-density follows the flow of the velocity, without noise of the method's own",
        )
        self.of, self.shape, self.probes = field, tuple(shape), probes
        self.dims = math.prod(self.shape)

    def undefined(self, t: Tensor) -> str | None:
        return self.of.undefined(t)

    def slope(self, t: Tensor, z: Tensor) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad(), twice_differentiable() if keep else nullcontext():
            x = z[:, : self.dims]
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = self.of(t, x.unflatten(1, self.shape)).flatten(1)
            directions = self.directions(x)
            found = []
            for e in directions.split(AT_ONCE):
                (product,) = torch.autograd.grad(
                    v, x, e, retain_graph=True, create_graph=keep, is_grads_batched=True
                )
                found.append((product * e).sum(2))
            div = torch.cat(found).T
            if self.probes is None:
                div = div.sum(1, keepdim=True)
            slope = torch.cat((v, -div), dim=1)
        return slope if keep else slope.detach()

    def directions(self, x: Tensor) -> Tensor:
        """(P, B, D), or (D, B, D) for the exact divergence."""
        if self.probes is not None:
            return self.probes.transpose(0, 1)
        return torch.eye(self.dims, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)

    def pack(self, x: Tensor) -> Tensor:
        columns = 1 if self.probes is None else self.probes.shape[1]
        return torch.cat((x.flatten(1), x.new_zeros(len(x), columns)), dim=1)

    def unpack(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, : self.dims].unflatten(1, self.shape), z[:, self.dims :]


class Followed(NamedTuple):
    """The other end of a flow (B, ...), estimates (B, P) of log p(x(1)), and the evaluations it took."""

    x: Tensor
    log_density: Tensor
    nfe: int


def follow(
    field_of: Callable[[slice], Field],
    source: Source,
    x: Tensor,
    solver: Solver,
    *,
    back: bool,
    options: LikelihoodOptions,
    parameters: Iterable[Tensor] = (),
    generator: Generator = None,
) -> Followed:
    """From x (B, ...) at t=0 to data, or with `back` from data to the source.

    field_of: the field of some of the rows. parameters: what gradients are wanted of, besides x; none are kept where
    they are disabled, or wanted of nothing.

    Raises GenkitError for a solver with noise of its own, and for one that needs a path where the field has none.
    """
    probes = options.draw(x, generator=generator)
    weights = [part for part in parameters if part.requires_grad]

    def run(rows: slice, solver: Solver) -> Followed:
        field = Augmented(field_of(rows), x.shape[1:], None if probes is None else probes[rows])
        times, begin = solver.times(field), x[rows]
        z, nfe = integrate(
            solver, field, field.pack(begin), times.flip(0) if back else times, options.gradient, weights
        )
        end, change = field.unpack(z)
        at_source, sign = (end, -1) if back else (begin, 1)
        return Followed(end, source.log_prob(at_source)[:, None] + sign * change, nfe)

    with torch.set_grad_enabled(torch.is_grad_enabled() and (x.requires_grad or bool(weights))):
        found = run(slice(None), solver)
    if options.tolerance is not None and not isinstance(solver, Adaptive) and solver.grid.steps is None:
        rows = slice(-(-len(x) // PART))
        other = solver.paced(solver.steps // 2 or 2)
        with torch.no_grad():
            apart = (found.log_density[rows] - run(rows, other).log_density).mean(1).abs().mean()
        check_steps(float(apart) / x[0].numel() / math.log(2), solver, other, options.tolerance)
    return found


def check_steps(apart: float, solver: Solver, other: Solver, tolerance: float) -> None:
    """Warns where the steps of `solver` are too few: its bits/dim are `apart` from those with the steps of `other`.

    The error is taken to fall as 1 / steps, whatever the order: near data of dequantized levels, whose density has
    jumps, a method does not reach its order. How many steps would do is by the order.
    """
    error = apart / abs(1 - solver.steps / other.steps)
    if math.isfinite(error) and error > tolerance:
        enough = math.ceil(solver.steps * (error / tolerance) ** (1 / solver.order))
        warnings.warn(
            f"the likelihood is off by about {error:.2g} bits/dim, with {solver.steps} steps of "
            f"{SOLVERS.name_of(solver)}: for {tolerance:g} take {enough}, or a method of higher order",
            stacklevel=4,
        )


def integrate(
    solver: Solver,
    field: Augmented,
    z: Tensor,
    times: Tensor,
    gradient: Gradient,
    weights: Sequence[Tensor],
) -> tuple[Tensor, int]:
    """z at the last of the times, and the evaluations. Gradients flow to z and the weights where they are enabled."""
    if torch.is_grad_enabled() and gradient == "adjoint":
        with torch.no_grad():
            solution = solver.solve(field, z, times=times)
        return Adjoint.apply(solution.x, field, solver, times, z, *weights), solution.nfe
    if torch.is_grad_enabled() and gradient == "recompute":
        field.predict = lambda t, z: Recomputed.apply(field, t, z, *weights)
    solution = solver.solve(field, z, times=times)
    return solution.x, solution.nfe


def products(
    field: Augmented, t: Tensor, z: Tensor, weights: Sequence[Tensor], a: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """f(t, z), and a . df/dz and a . df/dtheta for each of the weights."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        slope = field.slope(t, z)
        found = torch.autograd.grad(slope, (z, *weights), a, allow_unused=True, materialize_grads=True)
    return slope.detach(), list(found)


class Recomputed(torch.autograd.Function):
    """The slope, of which only t and z are kept."""

    @staticmethod
    def forward(ctx: Any, field: Augmented, t: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
        ctx.field = field
        ctx.save_for_backward(t, z, *weights)
        return field.slope(t, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Any, ...]:
        t, z, *weights = ctx.saved_tensors
        return None, None, *products(ctx.field, t, z, weights, a)[1]


class Adjoint(torch.autograd.Function):
    """The end of a solve from z, whose gradient is solved for back from there."""

    @staticmethod
    def forward(
        ctx: Any, end: Tensor, field: Augmented, solver: Solver, times: Tensor, z: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.field, ctx.solver, ctx.times = field, solver, times
        ctx.save_for_backward(end, *weights)
        return end.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Any, ...]:
        end, *weights = ctx.saved_tensors
        like = [end, end, *weights]
        sizes = [part.numel() for part in like]

        def joined(parts: Iterable[Tensor]) -> Tensor:
            return torch.cat([part.flatten() for part in parts])

        def slope(t: Tensor, state: Tensor) -> Tensor:
            z, a = (part.view_as(end) for part in state.split(sizes)[:2])
            f, found = products(ctx.field, t, z, weights, a)
            return joined((f, *(-part for part in found)))

        state = joined((end, a, *(torch.zeros_like(part) for part in weights)))
        field = Field(slope, ctx.field.coefficients)
        state = ctx.solver.solve(field, state, times=ctx.times.flip(0)).x
        _, *found = (part.view_as(one) for part, one in zip(state.split(sizes), like, strict=True))
        return None, None, None, None, *found


def estimate(values: Tensor) -> LogProb:
    """The mean of estimates (B, P), with its standard error where there are several."""
    stderr = values.std(1) / values.shape[1] ** 0.5 if values.shape[1] > 1 else None
    return LogProb(values.mean(1), "estimate", stderr)
