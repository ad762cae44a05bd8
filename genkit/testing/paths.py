"""The laws of paths in float64, of the schedules of discrete diffusion, and of the distributions of training times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths import PATHS, SCHEDULES, TIMES, Path, Schedule, Times
from genkit.randomness import keyed_generator
from genkit.testing.laws import Finding, Laws, at_most, both, difference
from genkit.types import Field, Point

INSIDE = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
STEP = 1e-5  # of central differences


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    return (function(t + STEP) - function(t - STEP)) / (2 * STEP)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of 1 + the size of what is expected."""
    if found.shape != expected.shape:
        return torch.inf
    return difference(found / (1 + expected.abs()), expected / (1 + expected.abs()))


@dataclass
class Case:
    """A path, and 25 pairs of noise and data."""

    cls: type[Path]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.path = self.cls(**self.options)
        draws = torch.randn(2, 25, 3, generator=keyed_generator(0, "law path"), dtype=torch.float64)
        self.x0, self.x1 = draws

    def at(self, t: Tensor, key: int = 0) -> Point:
        """The point at t, with the same noise of its own for all t."""
        return self.path(self.x0, self.x1, t, generator=keyed_generator(key))


LAWS = Laws(PATHS, Case)


@LAWS.law
def it_goes_from_noise_to_data(case: Case) -> Finding:
    """x_t is x0 at t=0 and x1 at t=1 (within 5 %: some diffusions do not quite arrive). With other ends, what is
    sampled is not what was trained."""
    starts, ends = (case.at(torch.full((25,), t).double()).x_t for t in (0.0, 1.0))
    return both(
        at_most(relative(starts, case.x0), 0.05, "distance to x0 at t=0:"),
        at_most(relative(ends, case.x1), 0.05, "distance to x1 at t=1:"),
    )


@LAWS.law
def the_velocity_is_the_derivative(case: Case) -> Finding:
    """u_t = d x_t / dt, against central differences: the model is trained on u_t, and its ODE follows x_t only if they
    belong together. Differentiate again, the signs too."""
    slope = derivative(lambda t: case.at(t).x_t, INSIDE)
    return at_most(relative(case.at(INSIDE).u_t, slope), 1e-5, "relative error of u_t:")


@LAWS.law
def derivatives_of_the_coefficients_are_right(case: Case) -> Finding | None:
    """The last two of `coefficients` are the derivatives of alpha and sigma: data, noise and score are made of them."""
    if case.cls.noisy:
        return None
    alpha, sigma, d_alpha, d_sigma = case.path.coefficients(INSIDE)
    if {c.shape for c in (alpha, sigma, d_alpha, d_sigma)} != {INSIDE.shape}:
        return Finding(False, f"shapes {[tuple(c.shape) for c in (alpha, sigma, d_alpha, d_sigma)]}")
    return both(
        at_most(
            relative(d_alpha, derivative(lambda t: case.path.coefficients(t).alpha, INSIDE)),
            1e-5,
            "of alpha:",
        ),
        at_most(
            relative(d_sigma, derivative(lambda t: case.path.coefficients(t).sigma, INSIDE)),
            1e-5,
            "of sigma:",
        ),
    )


@LAWS.law
def alpha_rises_and_sigma_falls(case: Case) -> Finding | None:
    """Later is nearer to the data: solvers and time grids count on it."""
    if case.cls.noisy:
        return None
    alpha, sigma, _, _ = case.path.coefficients(INSIDE)
    least, most = float(alpha.diff().min()), float(sigma.diff().max())
    return Finding(least > 0 and most < 0, f"least step of alpha {least:.2g}, of sigma {most:.2g}")


@LAWS.law
def points_are_those_of_the_coefficients(case: Case) -> Finding | None:
    """x_t = alpha x1 + sigma x0 and u_t with their derivatives, so that a `Field` gets data and noise back. A path with
    noise of its own says so by `noisy`, and its `coefficients` raise GenkitError."""
    if case.cls.noisy:
        try:
            case.path.coefficients(INSIDE)
        except GenkitError:
            return Finding(True, "coefficients are refused")
        return Finding(False, "a noisy path gives coefficients")
    worst = 0.0
    for t in INSIDE[::6]:
        point = case.at(t)
        field = Field(lambda t, x, u=point.u_t: u, case.path.coefficients, None)
        worst = max(
            worst,
            difference(field.data(t, point.x_t), case.x1),
            difference(field.noise(t, point.x_t), case.x0),
        )
    return at_most(worst, 1e-7, "error of data and noise")


@LAWS.law
def each_row_may_have_its_time(case: Case) -> Finding:
    """t is (B,) or a scalar for all rows, x of any shape; a time affects its own row only."""
    t = torch.tensor(0.3, dtype=torch.float64)
    each_t = torch.cat((torch.tensor([0.8]).double(), t.expand(24)))
    one, each, other = case.at(t), case.at(t.expand(25)), case.at(each_t)
    pictures = torch.randn(2, 25, 1, 2, 2, dtype=torch.float64)
    shape = case.path(pictures[0], pictures[1], INSIDE, generator=keyed_generator(0)).u_t.shape
    return both(
        at_most(
            difference(one.x_t, each.x_t) + difference(one.u_t, each.u_t), 0, "scalar and rows differ by"
        ),
        at_most(difference(each.x_t[1:], other.x_t[1:]), 0, "other rows moved by"),
        at_most(difference(case.at(each_t[0]).x_t[0], other.x_t[0]), 0, "the row of another time is off by"),
        Finding(shape == (25, 1, 2, 2), f"pictures give {tuple(shape)}"),
    )


@LAWS.law
def all_is_finite_in_float32(case: Case) -> Finding:
    """Points keep the dtype of the data and are finite up to both ends, where divisions by zero hide."""
    t = torch.tensor([0.0, 1e-7, 0.5, 1 - 6e-8, 1.0])
    point = case.path(torch.randn(5, 2), torch.randn(5, 2), t, generator=keyed_generator(0))
    made = [x for x in point if x is not None]
    finite = all(bool(x.isfinite().all()) for x in made)
    return Finding(
        finite and all(x.dtype == torch.float32 for x in made), f"{made[0].dtype}, finite: {finite}"
    )


@LAWS.law
def the_generator_decides(case: Case) -> Finding:
    """Generators of one seed give the same points, whatever torch's own seed is; only a path that says it is `noisy`
    has others for another seed."""
    points = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        points.append(case.at(INSIDE).x_t)
    differs = difference(points[0], case.at(INSIDE, key=1).x_t) > 0
    return both(
        at_most(difference(*points), 0, "two calls of one seed differ by"),
        Finding(
            case.cls.noisy or not differs, f"noisy = {case.cls.noisy}, another seed changes points: {differs}"
        ),
    )


@LAWS.law
def the_score_is_that_of_its_noise(case: Case) -> Finding | None:
    """Where points come with a score, it is that of x_t given both ends: it has mean zero, and its covariance with x_t
    is minus the identity (Stein). Samplers with noise use it."""
    t, n = torch.tensor(0.4, dtype=torch.float64), 20_000
    ends = case.x0[:1].expand(n, 3), case.x1[:1].expand(n, 3)
    point = case.path(*ends, t, generator=keyed_generator(0))
    if point.score is None:
        return None
    score, away = point.score, point.x_t - point.x_t.mean(0)
    return both(
        at_most(float((score.mean(0) / score.std(0)).abs().max()), 0.05, "mean, in units of its spread,"),
        at_most(difference(score.T @ away / n, -torch.eye(3).double()), 0.05, "error of the covariance"),
    )


# schedules


@dataclass
class ScheduleCase:
    cls: type[Schedule]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.schedule = self.cls(**self.options)


SCHEDULE_LAWS = Laws(SCHEDULES, ScheduleCase)


@SCHEDULE_LAWS.law
def alpha_is_a_probability_that_rises(case: ScheduleCase) -> Finding:
    """alpha is in [0, 1] and rises: the share of symbols that are still themselves, from noise to data."""
    alpha = case.schedule.alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    low, high, least = float(alpha.min()), float(alpha.max()), float(alpha.diff().min())
    return Finding(
        low >= 0 and high <= 1 and least > 0, f"from {low:.3g} to {high:.3g}, least step {least:.2g}"
    )


@SCHEDULE_LAWS.law
def d_alpha_is_the_derivative(case: ScheduleCase) -> Finding:
    """d_alpha against central differences: it weighs the loss, and a wrong one gives a wrong bound."""
    slope = derivative(case.schedule.alpha, INSIDE)
    return at_most(relative(case.schedule.d_alpha(INSIDE), slope), 1e-5, "relative error of d_alpha:")


@SCHEDULE_LAWS.law
def shapes_are_kept(case: ScheduleCase) -> Finding:
    """alpha and d_alpha have the shape and dtype of t."""
    t = torch.rand(3, 4)
    found = [case.schedule.alpha(t), case.schedule.d_alpha(t)]
    return Finding(
        all(x.shape == t.shape and x.dtype == t.dtype for x in found), f"{[tuple(x.shape) for x in found]}"
    )


# training times


@dataclass
class TimesCase:
    cls: type[Times]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.times = self.cls(**self.options)


TIMES_LAWS = Laws(TIMES, TimesCase)


@TIMES_LAWS.law
def times_lie_between_0_and_1(case: TimesCase) -> Finding:
    """One time for each row, from 0 to 1, with the dtype of the batch."""
    like = torch.zeros(10_000, 2)
    t = case.times(like, generator=keyed_generator(0))
    right = t.shape == (10_000,) and t.dtype == like.dtype and float(t.min()) >= 0 and float(t.max()) <= 1
    return Finding(right, f"{tuple(t.shape)} {t.dtype}, from {float(t.min()):.3g} to {float(t.max()):.3g}")


@TIMES_LAWS.law
def the_generator_decides_the_times(case: TimesCase) -> Finding:
    """Generators of one seed give the same times, whatever torch's own seed is, and others give others."""
    found = []
    for seed, key in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(seed)
        found.append(case.times(torch.zeros(50, 2), generator=keyed_generator(key)))
    return both(
        at_most(difference(found[0], found[1]), 0, "two draws of one seed differ by"),
        Finding(not torch.equal(found[1], found[2]), "another seed gives others"),
    )
