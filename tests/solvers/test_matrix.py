"""All solvers on all paths and predictions, on flows in closed form."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths import PATHS, Path
from genkit.solvers import GRIDS, SOLVERS, Solver
from genkit.solvers.adaptive import Adaptive
from genkit.solvers.base import time_of
from genkit.solvers.stochastic import Forward
from genkit.types import Coefficients, Field
from tests.oracles import GaussianFlow

GAUSSIAN_PATHS = [name for name in PATHS.names() if not PATHS.get(name).noisy]
RANDOM = [name for name in SOLVERS.names() if issubclass(SOLVERS.get(name), Forward)]
FIXED = [
    name for name in SOLVERS.names() if name not in RANDOM and not issubclass(SOLVERS.get(name), Adaptive)
]
EXPONENTIAL = ["ddim", "dpmpp", "exponential", "unipc"]
KINDS = ("velocity", "data", "noise", "score")
ZERO, ONE = torch.tensor([0.0, 1.0], dtype=torch.float64)


def noise(n: int = 64, dims: int = 2, key: int = 0) -> Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def predicted(flow: GaussianFlow, kind: Any) -> Field:
    """The field of the flow, given by what is predicted."""
    known = flow.field()
    if kind == "velocity":
        return known
    exact = {"data": known.data, "noise": known.noise, "score": known.score}[kind]
    return Field(exact, flow.path.coefficients, None, kind)


# --- deterministic methods ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "path", "kind"), [*product(FIXED, GAUSSIAN_PATHS, KINDS)])
def test_every_prediction_leads_to_the_same_end(name: str, path: str, kind: str) -> None:
    """Between 0.05 and 0.95 all of them give all; the ends are those of the velocity, and near the exact ones."""
    flow, x = GaussianFlow.example(path), noise()
    times = torch.linspace(0.05, 0.95, 129, dtype=torch.float64)
    solver = SOLVERS.build(name)
    found = solver.solve(predicted(flow, kind), x, times=times).x
    same = solver.solve(flow.field(), x, times=times).x
    torch.testing.assert_close(found, same, rtol=1e-9, atol=1e-9)
    bound = 0.1 if solver.order == 1 else 0.01
    assert float((found - flow.transport(x, times[0], times[-1])).abs().max()) < bound


@pytest.mark.parametrize(("name", "path"), [*product(FIXED, GAUSSIAN_PATHS)])
def test_the_way_from_noise_to_data_ends_in_the_data(name: str, path: str) -> None:
    """From 0 to 1, the singular ends of logarithms included: more steps err less, and the moments come out."""
    flow, x = GaussianFlow.example(path), noise(20_000)
    ends = [SOLVERS.build(name, steps=steps).solve(flow.field(), x).x for steps in (24, 192)]
    errors = [float((end - flow.transport(x, ZERO, ONE)).abs().max()) for end in ends]
    assert errors[1] < errors[0] / 3
    start_mean, start_cov = flow.at(ZERO)  # of a path that is not quite noise at t=0
    slack = 0.05 + float(start_mean.abs().max()) + float((start_cov - torch.eye(2)).abs().max())
    assert float((ends[1].mean(0) - flow.mean).abs().max()) < slack
    assert float((torch.cov(ends[1].T) - flow.cov).abs().max()) < slack


@pytest.mark.parametrize(("name", "order"), [*product(["dpmpp", "exponential", "unipc"], [1, 2, 3])])
def test_more_predictions_err_less(name: str, order: int) -> None:
    flow, x = GaussianFlow.example(), noise()
    times = torch.linspace(0.1, 0.9, 65, dtype=torch.float64)
    exact = flow.transport(x, times[0], times[-1])
    error = float(
        (SOLVERS.build(name, order=order).solve(flow.field(), x, times=times).x - exact).abs().max()
    )
    assert error < {1: 6e-2, 2: 1.5e-3, 3: 6e-4}[order]


class Warped(Path):
    """The linear path in another time, t (1 + t) / 2."""

    def coefficients(self, t: Tensor) -> Coefficients:
        alpha, sigma, d_alpha, d_sigma = PATHS.build("linear").coefficients(t * (1 + t) / 2)
        return Coefficients(alpha, sigma, (0.5 + t) * d_alpha, (0.5 + t) * d_sigma)


@pytest.mark.parametrize("name", FIXED)
def test_the_time_of_a_path_does_not_matter_in_the_end(name: str) -> None:
    linear = GaussianFlow.example()
    warped = GaussianFlow(linear.mean, linear.cov, Warped())
    x, distances = noise(), []
    for steps in (16, 256):
        ends = [SOLVERS.build(name, steps=steps).solve(flow.field(), x).x for flow in (linear, warped)]
        distances.append(float((ends[0] - ends[1]).abs().max()))
    assert distances[1] < max(distances[0] / 6, 1e-8)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_exponential_methods_do_not_depend_on_the_time_at_all(name: str) -> None:
    """At the same noise the same steps: they see alpha and sigma only."""
    linear = GaussianFlow.example()
    warped = GaussianFlow(linear.mean, linear.cov, Warped())
    times, solver = torch.linspace(0, 1, 9, dtype=torch.float64), SOLVERS.build(name)
    one = solver.solve(linear.field(), noise(), times=times).x
    other = solver.solve(warped.field(), noise(), times=(2 * times + 0.25).sqrt() - 0.5).x
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_exponential_methods_go_back(name: str) -> None:
    flow, x = GaussianFlow.example("cosine"), noise()
    solver = SOLVERS.build(name)
    back = torch.linspace(1, 0, 257, dtype=torch.float64)
    found = solver.solve(flow.field(), flow.transport(x, ZERO, ONE), times=back).x
    assert float((found - x).abs().max()) < (0.2 if solver.order == 1 else 0.02)


def test_some_methods_are_others() -> None:
    """DDIM is Euler's method on the linear path, and what the others are with nothing of their own."""
    x, flow = noise(), GaussianFlow.example()

    def end(name: str, path: str = "linear", **options: Any) -> Tensor:
        return SOLVERS.build(name, steps=6, **options).solve(GaussianFlow.example(path).field(), x).x

    torch.testing.assert_close(end("ddim"), end("euler"), rtol=1e-12, atol=1e-12)
    for path in GAUSSIAN_PATHS:
        ddim = end("ddim", path)
        for same in ("dpmpp", "exponential"):
            torch.testing.assert_close(end(same, path, order=1), ddim, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(end("ancestral", path, eta=0.0), ddim, rtol=1e-9, atol=1e-9)
        tada = end("tada", path, variables=1, order=1)
        torch.testing.assert_close(tada, ddim, rtol=1e-6, atol=1e-6)
        assert torch.equal(end("euler_maruyama", path, scale=0.0), end("euler", path))
        assert torch.equal(end("stochastic_heun", path, churn=0.0), end("heun", path))
    assert flow.path.coefficients(ZERO).alpha == 0


def test_two_bumps_are_reached_from_both_sides() -> None:
    """In one dimension the flow keeps quantiles: x(1) = F_1^-1(F_0(x(0))), whatever the data."""
    means, spread = torch.tensor([-1.5, 1.0], dtype=torch.float64), 0.3
    path, x = PATHS.build("linear"), noise(200, 1)

    def data(t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma, _, _ = path.coefficients(t)
        variance = (alpha * spread) ** 2 + sigma**2
        shares = (-((x - alpha * means) ** 2) / (2 * variance)).softmax(1)
        best = means + alpha * spread**2 / variance * (x - alpha * means)
        return (shares * best).sum(1, keepdim=True)

    def distribution(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf((z - means) / (spread * math.sqrt(2)))).mean(1, keepdim=True)

    below, above = torch.full_like(x, -6.0), torch.full_like(x, 6.0)
    wanted = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    for _ in range(60):
        middle = (below + above) / 2
        low = distribution(middle) < wanted
        below, above = torch.where(low, middle, below), torch.where(low, above, middle)
    field = Field(data, path.coefficients, None, "data")
    for name in EXPONENTIAL:
        end = SOLVERS.build(name, steps=400).solve(field, x).x
        assert float((end - below).abs().max()) < 0.05, name


# --- methods with noise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler_maruyama", {"scale": 0.3}),
        ("euler_maruyama", {"scale": 2.0, "power": 0.0}),
        ("euler_maruyama", {"power": 2.0}),
        ("ancestral", {}),
        ("ancestral", {"eta": 0.5}),
        ("stochastic_heun", {"churn": 80.0}),
        ("stochastic_heun", {"churn": 20.0, "low": 0.1, "high": 3.0}),
        ("tada", {"variables": 2, "order": 1}),
        ("tada", {"variables": 2, "kappa": 1.5}),
        ("tada", {"variables": 3, "kappa": 0.7, "order": 3}),
    ],
)
@pytest.mark.parametrize("path", GAUSSIAN_PATHS)
def test_methods_with_noise_have_the_moments_of_the_data(
    path: str, name: str, options: dict[str, Any]
) -> None:
    """20,000 samples: chance is 0.02 or less, and what is left of 200 steps is of that size."""
    flow = GaussianFlow.example(path)
    generator = torch.Generator().manual_seed(1)
    found = (
        SOLVERS.build(name, steps=200, **options).solve(flow.field(), noise(20_000), generator=generator).x
    )
    slack = 0.05 + float(flow.at(ZERO)[0].abs().max())
    assert float((found.mean(0) - flow.mean).abs().max()) < slack
    assert float((torch.cov(found.T) - flow.cov).abs().max()) < slack


def test_churn_is_shared_among_the_steps_that_are_taken() -> None:
    """Not among those of the solver's own, where times are given."""
    flow, x = GaussianFlow.example(), noise()
    solver = SOLVERS.build("stochastic_heun", steps=8, churn=2.0)
    other = SOLVERS.build("stochastic_heun", steps=32, churn=2.0)

    def end(solver: Solver, **times: Tensor) -> Tensor:
        return solver.solve(flow.field(), x, generator=torch.Generator().manual_seed(0), **times).x

    assert torch.equal(end(other, times=solver.times()), end(solver))
    assert not torch.equal(end(other), end(solver))


@pytest.mark.parametrize("variables", [1, 2, 3])
@pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
def test_tada_sees_the_data_in_noise_of_one_size(variables: int, kappa: float) -> None:
    """y = r . (Phi x_0 + mu x1) is x1 plus noise of variance s^2, by Monte Carlo over the exact dynamics."""
    solver: Any = SOLVERS.build("tada", variables=variables, kappa=kappa)
    n, factorial = variables, math.factorial
    start = noise(200_000, n)
    start[:, -1] *= kappa
    for t in (0.05, 0.4, 0.9):
        r, s = solver.mixture(t)
        mu = [factorial(n) / factorial(n - j) * t ** (n - j) for j in range(n)]
        phi = [
            [(t ** (k - j) / factorial(k - j) if k >= j else 0.0) - mu[j] / factorial(k) for k in range(n)]
            for j in range(n)
        ]
        assert sum(a * b for a, b in zip(r, mu, strict=True)) == pytest.approx(1, abs=1e-9)
        seen = start @ torch.tensor(phi, dtype=torch.float64).T @ torch.tensor(r, dtype=torch.float64)
        assert float(seen.std()) == pytest.approx(s, rel=0.01)


@pytest.mark.parametrize("name", RANDOM)
def test_noise_goes_to_data_only(name: str) -> None:
    with pytest.raises(GenkitError, match="times must rise"):
        SOLVERS.build(name).solve(GaussianFlow.example().field(), noise(), times=torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_score_the_error_says_why(name: str) -> None:
    flow = GaussianFlow.example()
    field = Field(flow.velocity, flow.path.coefficients, "it was trained with the coupling 'ot'")
    with pytest.raises(GenkitError, match=f"{name} needs.*score.*coupling 'ot'.*these can be used: .*heun"):
        SOLVERS.build(name).solve(field, noise())


# --- conversions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "at", "cure"),
    [
        ("data", 1, "euler, ddim, dpmpp"),
        ("noise", 0, "variance_preserving"),
        ("score", 0, "variance_preserving"),
    ],
)
def test_a_conversion_that_does_not_hold_says_so(kind: str, at: int, cure: str) -> None:
    """A velocity from a prediction of data does not exist at the data, nor one of noise at the noise."""
    field = predicted(GaussianFlow.example(), kind)
    with pytest.raises(GenkitError, match=f"{kind} gives no velocity at t={at}.*{cure}"):
        SOLVERS.build("heun").solve(field, noise())


def test_a_prediction_needs_a_path() -> None:
    with pytest.raises(GenkitError, match="on a path only"):
        Field(lambda t, x: x, kind="data")


@pytest.mark.parametrize("path", GAUSSIAN_PATHS)
def test_times_are_found_by_their_noise(path: str) -> None:
    coefficients = PATHS.build(path).coefficients
    t = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    alpha, sigma, _, _ = coefficients(t)
    torch.testing.assert_close(time_of(coefficients, sigma / alpha), t, rtol=1e-9, atol=1e-9)


def test_every_grid_serves_every_method() -> None:
    flow, x = GaussianFlow.example(), noise(8)
    for name, grid in product(FIXED + RANDOM, GRIDS.without_options()):
        solver: Solver = SOLVERS.build(name, steps=8, grid=grid)
        assert bool(
            solver.solve(flow.field(), x, generator=torch.Generator().manual_seed(0)).x.isfinite().all()
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpmpp", {"order": 4}, "dpmpp: order must be 1, 2 or 3"),
        ("tada", {"variables": 4}, "variables must be"),
        ("tada", {"kappa": 0.0}, "kappa must be positive"),
        ("ancestral", {"eta": 1.5}, "eta must be from 0 to 1"),
        ("euler_maruyama", {"scale": -1.0}, "must not be negative"),
        ("stochastic_heun", {"churn": -1.0}, "churn must not be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        SOLVERS.build(name, **options)
