"""A time grid fitted to one model: few steps that end where many do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.files import read_bytes
from genkit.solvers.adaptive import Adaptive
from genkit.solvers.base import GRIDS, SOLVERS, Grid, Solver
from genkit.solvers.stochastic import Forward
from genkit.types import Field

SIZES = (0.4, 0.2, 0.1, 0.05)  # of differences of theta
LEAST_GAIN = 5e-3  # of an iteration that is worth another


@GRIDS.register("fitted")
class Fitted(Grid):
    """Times from a file that `genkit fit-grid` wrote, of one number of steps.

    file: JSON with `times`, from 0 to 1; beside them stands the solver that they were fitted for.
    Raises GenkitError for a file that is none, times that do not rise from 0 to 1, and another number of steps.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        try:
            given = json.loads(read_bytes(Path(file), "fitted: the file"))["times"]
            nodes = torch.tensor(given, dtype=torch.float64)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, GenkitError):
                raise
            raise GenkitError(f"fitted: {file} holds no `times`, as `genkit fit-grid` writes them") from None
        if nodes.ndim != 1 or len(nodes) < 2:
            raise GenkitError(f"fitted: {file} has no step: at least the times 0 and 1 are needed")
        if nodes[0] != 0 or nodes[-1] != 1 or not bool((nodes.diff() > 0).all()):
            raise GenkitError(f"fitted: times must rise from 0 to 1, which those of {file} do not: {given}")
        self.nodes, self.steps = nodes, len(nodes) - 1

    def warp(self, u: Tensor) -> Tensor:
        """Linear between the times."""
        place = (u * len(self.nodes[1:])).clamp(max=len(self.nodes) - 2)
        i = place.floor().long()
        return self.nodes[i] + (u * len(self.nodes[1:]) - i) * self.nodes.diff()[i]

    def times(self, steps: int, coefficients: Any = None) -> Tensor:
        if steps != self.steps:
            raise GenkitError(
                f"fitted: {self.file} has times for {self.steps} steps, not {steps}: take steps {self.steps}, or fit a "
                "grid for that number with `genkit fit-grid`"
            )
        return self.nodes.clone()


@dataclass
class Fit:
    """Fitted times, and the distance of ends to the reference's (see `distance`), for the noise they were fitted to and
    for noise held out; `others`: those of the registered grids."""

    times: Tensor
    fitted: tuple[float, float]
    others: dict[str, tuple[float, float]]

    @property
    def best(self) -> str:
        """The registered grid with the least error on noise held out."""
        return min(self.others, key=lambda name: self.others[name][1])


def distance(x: Tensor, y: Tensor) -> Tensor:
    """(B, ...) -> (B,): the root mean square difference of the values of each row."""
    return (x.double() - y.double()).flatten(1).square().mean(1).sqrt()


def fit(solver: Solver, field: Field, noise: Tensor, held_out: Tensor, *, reference: Solver) -> Fit:
    """Times t for which `solver` ends near to where `reference` does, from the same noise (B, ...):

        min_theta mean_B |x(t(theta)) - x_reference|,   t_i = sum_{j < i} softmax(theta)_j

    The norm is not squared, for few rows that end at another mode would decide. By Levenberg and Marquardt's method on
    reweighted squares, with differences for derivatives, so that any method can be fitted; from the registered grid
    with the least error. `held_out` has no say.

    Raises GenkitError for a solver with noise of its own, an adaptive one, one step, and ends that are not finite.
    """
    name = SOLVERS.name_of(solver)
    if isinstance(solver, (Forward, Adaptive)):
        what = "chooses its own steps" if isinstance(solver, Adaptive) else "has noise of its own"
        raise GenkitError(f"a grid cannot be fitted for {name}, which {what}: take euler, heun, dpmpp, ...")
    if solver.steps < 2:
        raise GenkitError("a grid of 1 step is from 0 to 1: there is nothing to fit, take 2 steps or more")

    def residuals(times: Tensor, x: Tensor, end: Tensor) -> Tensor:
        return (solver.solve(field, x, times=times).x.double() - end).flatten(1).cpu()

    end, end_held_out = (reference.solve(field, x).x.double() for x in (noise, held_out))

    def errors(times: Tensor) -> tuple[float, float]:
        both = residuals(times, noise, end), residuals(times, held_out, end_held_out)
        first, second = (float(distance(found, torch.zeros_like(found)).mean()) for found in both)
        return first, second

    others = {
        grid: errors(GRIDS.build(grid).times(solver.steps, field.coefficients))
        for grid in GRIDS.without_options()
    }
    if not all(math.isfinite(one) for pair in others.values() for one in pair):
        raise GenkitError(f"{name} with {solver.steps} steps does not end in finite values: nothing to fit")
    first = min(others, key=lambda grid: others[grid][0])
    times = descend(
        lambda times: residuals(times, noise, end),
        GRIDS.build(first).times(solver.steps, field.coefficients),
    )
    return Fit(times, errors(times), others)


def descend(residuals: Callable[[Tensor], Tensor], times: Tensor) -> Tensor:
    """Times with smaller norms of the rows of `residuals`, a function of times that gives (B, D).

    Differences are wide at first: a network's velocity has ripples in time, which hide the way down from narrow ones.
    """
    theta, found = times.diff().log(), residuals(times)
    axes = torch.eye(len(theta), dtype=theta.dtype)
    for size in SIZES:
        gain = 1.0
        while gain > LEAST_GAIN:
            norms = found.norm(dim=1, keepdim=True)
            weights = (norms + 1e-3 * norms.mean()).rsqrt()
            columns = [
                residuals(rising(theta + size * axis)) - residuals(rising(theta - size * axis))
                for axis in axes
            ]
            jacobian = torch.stack([(weights * one).flatten() for one in columns], dim=1) / (2 * size)
            square, slope = jacobian.T @ jacobian, jacobian.T @ (weights * found).flatten()
            for damping, length in product((1e-2, 1.0, 1e2), (1.0, 0.3, 0.1, 0.03)):
                damped = square + (damping * square.diag() + 1e-9 * square.trace() + 1e-30).diag()
                step = torch.linalg.solve(damped, slope)
                step = (1 + damping) * length * step
                trial = theta - step / step.abs().max().div(length).clamp(min=1)
                there = residuals(rising(trial))
                gain = 1 - float(there.norm(dim=1).sum() / norms.sum())
                if gain > 0:
                    theta, found = trial, there
                    break
    return rising(theta)


def rising(theta: Tensor) -> Tensor:
    """(steps,) -> times (steps + 1,) from 0 to 1, the increments a softmax."""
    times = torch.cat((theta.new_zeros(1), theta.softmax(0).cumsum(0)))
    times[-1] = 1
    return times
