"""The laws of solvers, on flows in closed form in float64, and of the time grids they walk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genkit.randomness import keyed_generator
from genkit.solvers import GRIDS, SOLVERS, Grid, Solver
from genkit.solvers.adaptive import Adaptive
from genkit.testing.laws import Finding, Laws, at_least, at_most, both, difference, equal
from genkit.testing.oracles import GaussianFlow
from genkit.types import Field, Solution, Velocity

KNOWN = frozenset({"velocity", "data", "noise", "score"})
ROUNDING = 1e-11  # errors below it say nothing about an order


def begin() -> Tensor:
    """Where solutions of `curved` start: new each time, for a method may write to it."""
    return torch.linspace(0.4, 1.5, 5, dtype=torch.float64)[:, None]


def curved(t: Tensor, x: Tensor) -> Tensor:
    """dx/dt = cos(3 t) x^2: neither linear nor autonomous."""
    return (3 * t).cos() * x.square()


def solution(x0: Tensor, t: Tensor | float = 1.0) -> Tensor:
    """Of `curved`, at t from x0 at 0."""
    return 1 / (1 / x0 - math.sin(3 * float(t)) / 3)


@dataclass
class Case:
    """A solver class with its options; `build` lays others over them."""

    cls: type[Solver]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.build()

    def build(self, steps: int = 8, tolerance: float = 1e-3) -> Solver:
        """With so many steps; of an adaptive method the tolerance counts."""
        given = {"rtol": tolerance, "atol": tolerance} if self.adaptive else {"steps": steps}
        return self.cls(**self.options | given)

    @property
    def adaptive(self) -> bool:
        return issubclass(self.cls, Adaptive)

    @property
    def plain(self) -> bool:
        """Whether any f(t, x) will do."""
        return self.cls.needs <= {"velocity"}

    @cached_property
    def flow(self) -> GaussianFlow:
        return GaussianFlow.example("cosine")

    @property
    def start(self) -> Tensor:
        return torch.randn(32, 2, generator=keyed_generator(0, "law solver"), dtype=torch.float64)

    def solve(self, solver: Solver | None = None, key: int = 0, field: Field | None = None) -> Solution:
        solver = solver or self.build()
        return solver.solve(field or self.flow.field(), self.start, generator=keyed_generator(key))

    @cached_property
    def random(self) -> bool:
        """Whether the generator has a say."""
        return not torch.equal(self.solve(key=0).x, self.solve(key=1).x)


LAWS = Laws(SOLVERS, Case)


@LAWS.law
def it_declares_its_order_and_needs(case: Case) -> Finding:
    """`order` is a whole number, the p of a global error that falls as h^p; `needs` is a frozenset of "velocity",
    "data", "noise" and "score", which a field is asked for before the first step."""
    order, needs = getattr(case.cls, "order", None), case.cls.needs
    right = isinstance(order, int) and order >= 1 and isinstance(needs, frozenset) and needs <= KNOWN
    return Finding(right, f"order {order}, needs {', '.join(sorted(map(str, needs)))}")


@LAWS.law
def the_error_falls_with_the_declared_order(case: Case) -> Finding | None:
    """Twice the steps make the error 2^order times smaller, measured on flows whose solution is known, at all times of
    the way: `order` is what users choose a method by. Look at the times and weights of its stages, or declare the
    order that it has."""
    if case.adaptive or case.random:
        return None
    flow = case.flow
    findings = [order_on(case, flow.field(), case.start, flow.transport)]
    if case.plain:
        findings.append(order_on(case, curved, begin(), lambda x, _, t: solution(x, t)))
    return both(*findings)


def order_on(
    case: Case, field: Velocity, x: Tensor, exact: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Finding:
    steps, errors = [], []
    for n in (16, 32, 64, 128, 256):
        solver = case.build(steps=n)
        times = solver.times()
        if not case.plain:  # away from the ends, where log(alpha / sigma) is infinite
            times = 0.1 + 0.8 * times
        states = solver.solve(field, x, times=times, keep=True).trajectory
        expected = torch.stack([exact(x, times[0], t) for t in times])
        steps.append(n)
        errors.append(difference(torch.stack(states), expected))
    told = [(n, error) for n, error in zip(steps, errors, strict=True) if error > ROUNDING][-3:]
    if len(told) < 2 and errors[-1] <= ROUNDING:
        return Finding(True, f"exact up to rounding ({errors[-1]:.1g})")
    found = slope(*zip(*told, strict=True))
    return at_least(found, case.cls.order - 0.2, "measured order")


def slope(steps: tuple[int, ...], errors: tuple[float, ...]) -> float:
    """How log error falls with log steps, by least squares; 0 for errors that are not finite."""
    n, e = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return -float(((n - n.mean()) * (e - e.mean())).sum() / (n - n.mean()).square().sum())


@LAWS.law
def an_adaptive_method_reaches_its_tolerance(case: Case) -> Finding | None:
    """A tighter tolerance costs more evaluations and errs less, about as much as it says."""
    if not case.adaptive:
        return None
    loose, tight = (case.build(tolerance=tolerance).solve(curved, begin()) for tolerance in (1e-3, 1e-6))
    errors = [difference(found.x, solution(begin())) for found in (loose, tight)]
    return both(
        at_most(errors[1], min(1.5e-4, errors[0]), "error at tolerance 1e-6:"),
        at_least(tight.nfe, loose.nfe + 1, "evaluations:"),
    )


@LAWS.law
def samples_of_a_gaussian_have_its_moments(case: Case) -> Finding | None:
    """A method with noise of its own, given the exact score, ends in the data's mean and covariance, up to an error of
    its steps (here 200)."""
    if not case.random:
        return None
    x = torch.randn(4000, 2, generator=keyed_generator(0, "law many"), dtype=torch.float64)
    found = case.build(steps=200).solve(case.flow.field(), x, generator=keyed_generator(1)).x
    return both(
        at_most(difference(found.mean(0), case.flow.mean), 0.08, "error of the mean:"),
        at_most(difference(torch.cov(found.T), case.flow.cov), 0.1, "error of the covariance:"),
    )


@LAWS.law
def nothing_is_kept_between_calls(case: Case) -> Finding:
    """A second solve gives what the first gave, also after one of other data, and with one inside its field: what a
    method carries from step to step lives in `State`, made by `init`."""
    solver = case.build()
    first = case.solve(solver)

    def nesting(t: Tensor, x: Tensor) -> Tensor:
        if float(t) < 0.3:
            solver.solve(other, x[:1].clone(), generator=keyed_generator(5))
        return case.flow.velocity(t, x)

    other = Field(lambda t, x: -x, case.flow.path.coefficients, None)
    solver.solve(other, case.start[:3], generator=keyed_generator(5))
    again = case.solve(solver)
    nested = case.solve(solver, field=Field(nesting, case.flow.path.coefficients, None))
    return both(
        at_most(difference(first.x, again.x), 0, "second solve differs by"),
        at_most(difference(first.x, nested.x), 0, "solve around another differs by"),
    )


@LAWS.law
def the_generator_decides(case: Case) -> Finding:
    """Generators of one seed give the same end, whatever torch's own seed is: hand `generator` to what draws."""
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(case.solve().x)
    return at_most(difference(*ends), 0, "two solves of one seed differ by")


@LAWS.law
def evaluations_are_counted(case: Case) -> Finding:
    """`nfe` is how often the field was asked: comparisons are at equal cost. Ask the field that `step` is given."""
    calls = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        calls.append(float(t))
        return case.flow.velocity(t, x)

    field = Field(velocity, case.flow.path.coefficients, None)
    return both(
        equal(case.solve(field=field).nfe, len(calls), "nfe"), Finding(len(calls) > 0, "the field is asked")
    )


@LAWS.law
def the_field_is_asked_between_the_ends_only(case: Case) -> Finding | None:
    """No model is trained outside the times of a solve, nor with more than one time for all rows: t is a scalar of the
    dtype of x. Clamp the times of stages."""
    asked: list[Tensor] = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        asked.append(t)
        return case.flow.velocity(t, x)

    findings = []
    for times in ([0.0, 0.5, 1.0], [0.2, 0.7]):
        asked.clear()
        field = Field(velocity, case.flow.path.coefficients, None)
        case.build().solve(
            field, case.start, times=torch.tensor(times).double(), generator=keyed_generator(0)
        )
        low, high = min(map(float, asked)), max(map(float, asked))
        within = times[0] - 1e-12 <= low and high <= times[-1] + 1e-12
        scalar = all(t.ndim == 0 and t.dtype == torch.float64 for t in asked)
        findings.append(Finding(within and scalar, f"asked from {low:.3g} to {high:.3g} on {times}"))
    return both(*findings)


@LAWS.law
def back_and_forth_returns(case: Case) -> Finding | None:
    """With times that fall it goes from data to noise, where it came from: inversion and likelihoods do. Take the sign
    of t_next - t into account."""
    if not case.plain or case.random:
        return None
    solver = case.build(steps=400, tolerance=1e-5)
    there = solver.solve(curved, begin()).x
    back = solver.solve(curved, there, times=solver.times().flip(0)).x
    return at_most(difference(back, begin()), 1e-2 if case.cls.order == 1 else 1e-3, "distance to the start")


@LAWS.law
def shape_dtype_and_input_are_left_alone(case: Case) -> Finding:
    """x comes back with its shape and dtype, float32 or float64, and what was given is not written to."""
    findings = []
    for dtype in (torch.float32, torch.float64):
        flow = GaussianFlow.example(dims=3, dtype=dtype)
        x = torch.randn(6, 3, dtype=dtype)
        kept = x.clone()
        found = case.build().solve(flow.field(), x, generator=keyed_generator(0)).x
        right = found.dtype == dtype and found.shape == x.shape and torch.equal(x, kept)
        findings.append(
            Finding(right and bool(found.isfinite().all()), f"{tuple(found.shape)} {found.dtype}")
        )
    return both(*findings)


@LAWS.law
def the_trajectory_holds_the_state_at_each_time(case: Case) -> Finding:
    """keep=True gives the states at all times, from the start to the end; figures and `reflow` are made of them."""
    solver = case.build()
    found = solver.solve(case.flow.field(), case.start, keep=True, generator=keyed_generator(0))
    return both(
        equal(len(found.trajectory), len(solver.times()), "states:"),
        at_most(difference(found.trajectory[0], case.start), 0, "first and start differ by"),
        at_most(difference(found.trajectory[-1], found.x), 1e-12, "last and end differ by"),
    )


# grids

COUNTS = (1, 2, 7, 100, 1000)  # of steps


@dataclass
class GridCase:
    cls: type[Grid]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.grid = self.cls(**self.options)
        paths = [GaussianFlow.example(name).path.coefficients for name in ("cosine", "variance_preserving")]
        self.paths: list[Any] = [None, *paths]

    @property
    def counts(self) -> tuple[int, ...]:
        return COUNTS if self.grid.steps is None else (self.grid.steps,)

    @property
    def asked(self) -> list[int]:
        return [steps for _ in self.paths for steps in self.counts]

    def times(self) -> list[Tensor]:
        """For all numbers of steps on all paths."""
        return [self.grid.times(steps, path) for path in self.paths for steps in self.counts]


GRID_LAWS = Laws(GRIDS, GridCase)


@GRID_LAWS.law
def times_go_from_0_to_1(case: GridCase) -> Finding:
    """The first time is 0 and the last 1, exactly: a model is sampled from pure noise, to the data."""
    ends = [times[[0, -1]].tolist() for times in case.times()]
    return Finding(all(end == [0.0, 1.0] for end in ends), f"ends {ends[-1]}")


@GRID_LAWS.law
def times_rise(case: GridCase) -> Finding:
    """No two times are equal, and none goes back; there is one more than steps, in float64. This is so on every path
    that a grid may be asked for."""
    found = case.times()
    least = min(float(times.diff().min()) for times in found)
    counts, kinds = [len(times) - 1 for times in found], {times.dtype for times in found}
    return both(
        Finding(least > 0, f"shortest step {least:.3g}"),
        Finding(counts == case.asked and kinds == {torch.float64}, f"steps {counts}, {kinds}"),
    )


@GRID_LAWS.law
def times_are_a_function_of_the_options(case: GridCase) -> Finding:
    """Two grids of the same options are the same, and torch's own seed has no say."""
    grids = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        grids.append(case.cls(**case.options).times(case.counts[-1]))
    return at_most(difference(*grids), 0, "two grids differ by")
