"""The solver interface: one loop for all methods.

    SOLVERS.build("rk4", steps=8).solve(field, x).x

A method writes `advance` (one-step methods) or `init`, `step` and `final` (methods with a memory). A solver
holds no state between calls: what it carries lives in `State`.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import Coefficients, Field, Generator, Solution, Velocity


class Grid(abc.ABC):
    """Where the steps are: a monotone map of [0, 1] onto itself, applied to equal steps.

    A registered grid is one class with `warp`; its constructor's arguments are its options.
    steps: the only number of steps that it has; None where it has any.
    """

    steps: int | None = None

    @abc.abstractmethod
    def warp(self, u: Tensor) -> Tensor:
        """(n,) in [0, 1], increasing -> (n,), increasing, 0 and 1 kept."""

    def times(self, steps: int, coefficients: Callable[[Tensor], Coefficients] | None = None) -> Tensor:
        """The steps + 1 times from 0 to 1, in float64.

        coefficients: those of the field's path, for grids that are defined by its noise; None is the linear path.
        """
        return self.warp(torch.linspace(0, 1, steps + 1, dtype=torch.float64))


GRIDS = Registry(Grid, "time grid", "genkit.solvers")


@dataclass
class State:
    """What a method carries from step to step: the point x (B, ...) and, for some, a memory."""

    x: Tensor
    memory: Any = None


class Solver(abc.ABC):
    """Integrates a field over a grid of times.

    order: p, where the global error falls as h^p. needs: what it asks of the field besides velocity
    ("data", "noise", "score"; see `Field`).
    """

    order: int
    needs: frozenset[str] = frozenset({"velocity"})

    def __init__(self, steps: int = 16, grid: Grid | str = "uniform") -> None:
        if steps < 1:
            raise GenkitError(f"a solver takes at least 1 step, not {steps}")
        self.steps = steps
        self.grid = GRIDS.build(grid)
        if self.grid.steps is not None:
            self.grid.times(steps)  # says so if it has another number

    def paced(self, steps: int) -> Solver:
        """This method with another number of steps, itself where that is its own."""
        if steps == self.steps:
            return self
        other = copy.copy(self)
        other.steps = steps
        return other

    def lacks(self, field: Velocity) -> str | None:
        """Why this field cannot be solved, for want of what the method needs; None where it can."""
        field = as_field(field)
        if not (missing := self.needs - field.gives):
            return None
        why = f" ({field.no_score})" if "score" in missing else ""
        return (
            f"{SOLVERS.name_of(self)} needs {', '.join(sorted(missing))}, which this field cannot give{why}"
        )

    def times(self, field: Velocity | None = None) -> Tensor:
        """The times at which the steps of this field begin and end: 0 first, 1 last."""
        return self.grid.times(self.steps, None if field is None else as_field(field).coefficients)

    def solve(
        self,
        field: Velocity,
        x: Tensor,
        *,
        times: Tensor | None = None,
        generator: Generator = None,
        keep: bool = False,
    ) -> Solution:
        """From x at times[0] to times[-1] (default: 0 to 1). `keep` returns the state at each time.

        Raises GenkitError for a field that cannot give what the method needs, and for times that are fewer
        than two or not strictly monotone.
        """
        field = as_field(field)
        if why := self.lacks(field):
            able = [name for name in SOLVERS.names() if SOLVERS.get(name).needs <= field.gives]
            raise GenkitError(f"{why}; these can be used: {', '.join(able)}")
        nodes = self.times(field) if times is None else times
        if nodes.ndim != 1 or len(nodes) < 2:
            raise GenkitError(f"a solver needs at least two times, not {nodes.tolist()}")
        steps = nodes.diff()
        if not (bool((steps > 0).all()) or bool((steps < 0).all())):
            raise GenkitError(f"times must be strictly monotone, not {nodes.tolist()}")
        nodes = nodes.to("cpu", torch.float64)  # what methods compute from times needs no wait for the device

        method = self.paced(len(nodes) - 1)  # of times that are given there may be another number
        counted = Counter(field)
        state = method.init(counted, x, generator=generator)
        trajectory = [x] if keep else []
        for t, t_next in zip(nodes[:-1], nodes[1:], strict=True):
            state = method.step(counted, t, t_next, state, generator=generator)
            if keep:
                trajectory.append(state.x)
        return Solution(method.final(counted, state), counted.calls, trajectory)

    def init(self, field: Velocity, x: Tensor, *, generator: Generator = None) -> State:
        return State(x)

    @abc.abstractmethod
    def step(
        self, field: Velocity, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        """From t to t_next."""

    def final(self, field: Velocity, state: State) -> Tensor:
        return state.x


def as_field(field: Velocity) -> Field:
    """A plain f(t, x) as a field of velocity, which is given times where x is."""
    return field if isinstance(field, Field) else Field(lambda t, x: field(t.to(x), x))


class OneStep(Solver):
    """A method without memory: Euler, Runge-Kutta."""

    @abc.abstractmethod
    def advance(self, field: Velocity, t: Tensor, dt: Tensor, x: Tensor) -> Tensor:
        """x at t -> x at t + dt."""

    def step(
        self, field: Velocity, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        return State(self.advance(field, t, t_next - t, state.x))


class Counter:
    """The field that methods are given, with its evaluations counted."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.calls = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        if why := self.field.undefined(t):
            able = [name for name in SOLVERS.names() if SOLVERS.get(name).needs == {"data", "noise"}]
            data = f"end before it, or take euler, {', '.join(able)}"
            noise = "start after it, or take a path with alpha(0) > 0, such as variance_preserving"
            raise GenkitError(f"{why}: {data if self.field.kind == 'data' else noise}")
        self.calls += 1
        return self.field(t, x)

    def endpoints(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.field.endpoints(t, x)

    def data(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.field.data(t, x)

    def noise(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.field.noise(t, x)

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.field.score(t, x)

    def coefficients(self, t: Tensor) -> Coefficients:
        """Of the field's path."""
        return self.field.at(t)


def time_of(coefficients: Callable[[Tensor], Coefficients], ratio: Tensor) -> Tensor:
    """The times in [0, 1] at which sigma / alpha, which falls, is `ratio` (...): float64, by bisection."""
    low, high = torch.zeros_like(ratio, dtype=torch.float64), torch.ones_like(ratio, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        alpha, sigma, _, _ = coefficients(middle)
        noisier = sigma > ratio * alpha
        low, high = torch.where(noisier, middle, low), torch.where(noisier, high, middle)
    return (low + high) / 2


SOLVERS = Registry(Solver, "solver", "genkit.solvers")
