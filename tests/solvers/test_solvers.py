"""Solvers beyond the laws of them all (see tests/testing): grids, tolerances, costs, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths import PATHS
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.solvers.adaptive import Adaptive
from genkit.solvers.runge_kutta import RungeKutta
from genkit.testing.solvers import curved, slope, solution
from genkit.types import Field
from tests.oracles import GaussianFlow

NAMES = SOLVERS.names()
ADAPTIVE = [name for name in NAMES if issubclass(SOLVERS.get(name), Adaptive)]
FIXED = [name for name in NAMES if name not in ADAPTIVE]
PLAIN = [name for name in NAMES if SOLVERS.get(name).needs <= {"velocity"}]
START = torch.linspace(0.4, 1.5, 5, dtype=torch.float64)[:, None]


SHRINKING = ["uniform", "quadratic", "cosine", "u_shaped", "shifted"]  # all steps as 1 / steps


@pytest.mark.parametrize("grid", SHRINKING)
@pytest.mark.parametrize("name", [name for name in FIXED if name in PLAIN])
def test_error_falls_with_the_declared_order(name: str, grid: str) -> None:
    steps, errors = (64, 128, 256, 512), []
    for n in steps:
        solver = SOLVERS.build(name, steps=n, grid=grid)
        states = solver.solve(curved, START, keep=True).trajectory  # all of it: at the end errors may cancel
        exact = [solution(START, t) for t in solver.times().tolist()]
        errors.append(float((torch.stack(states) - torch.stack(exact)).abs().max()))
    order = SOLVERS.get(name).order
    assert slope(steps, tuple(errors)) > order - 0.2
    if grid == "uniform":  # on others leading terms may cancel, so that the order looks higher
        assert slope(steps, tuple(errors)) < order + 0.15


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_methods_reach_their_tolerance(name: str) -> None:
    """Also: a tighter tolerance costs more and errs less, and SciPy agrees."""
    loose, tight = (SOLVERS.build(name, rtol=r, atol=r).solve(curved, START) for r in (1e-3, 1e-6))
    scipy = solve_ivp(
        lambda t, x: math.cos(3 * t) * x**2, (0, 1), START[:, 0].numpy(), rtol=1e-11, atol=1e-11
    )
    errors = [float((found.x - solution(START)).abs().max()) for found in (loose, tight)]
    assert errors[0] < 0.15  # the tolerance is that of a step, by an estimate
    assert errors[1] < 1.5e-4
    assert errors[1] < errors[0]
    assert tight.nfe > loose.nfe
    assert torch.allclose(tight.x[:, 0], torch.from_numpy(scipy.y[:, -1]), atol=1.5e-4, rtol=0)


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.0], [0.3, 0.7], [0.7, 0.3]])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("name", PLAIN)
def test_the_field_is_asked_only_between_the_ends(name: str, scale: float, times: list[float]) -> None:
    """No model is trained outside [0, 1]. A slow field tempts adaptive methods to long steps."""
    asked = []

    def field(t: Tensor, x: Tensor) -> Tensor:
        asked.append(float(t))
        return scale * curved(t, x)

    SOLVERS.build(name).solve(field, START, times=torch.tensor(times, dtype=torch.float64))
    assert min(times) <= min(asked)
    assert max(asked) <= max(times)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("times", [None, torch.tensor([1.0, 0.5])])
def test_evaluations_have_a_bound(name: str, times: Tensor | None) -> None:
    calls = []

    def rough(t: Tensor, x: Tensor) -> Tensor:
        calls.append(t)
        return (1e3 * t).sin() * x

    solver = SOLVERS.build(name, rtol=1e-9, atol=1e-9, max_evaluations=60)
    with pytest.raises(GenkitError, match=f"{name} has used 60 evaluations.*max_evaluations.*rk4"):
        solver.solve(rough, START, times=times)
    assert len(calls) == 60
    with pytest.raises(GenkitError, match="max_evaluations must be positive, not 0"):
        SOLVERS.build(name, max_evaluations=0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_field_without_a_solution_is_no_traceback(name: str) -> None:
    """dx/dt = x^2 from 2 leaves for infinity at t = 1/2: steps shrink until they vanish."""
    with pytest.raises(GenkitError, match=r"underflow.*raise them|has used \d+ evaluations"):
        SOLVERS.build(name, max_evaluations=1000).solve(lambda t, x: x.square(), 2 * torch.ones(1, 1))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_field_that_is_not_finite_is_no_traceback(name: str) -> None:
    with pytest.raises(GenkitError, match="cannot go on at these tolerances"):
        SOLVERS.build(name).solve(lambda t, x: x / 0, START)


@pytest.mark.parametrize("name", PLAIN)
def test_decreasing_times_solve_from_data_to_noise(name: str) -> None:
    options = {"rtol": 1e-6, "atol": 1e-6} if name in ADAPTIVE else {"steps": 1}
    times = torch.linspace(1, 0.25, 300 if name in FIXED else 2, dtype=torch.float64)
    x = SOLVERS.build(name, **options).solve(curved, solution(START), times=times).x
    assert torch.allclose(
        x, solution(START, 0.25), atol=1e-2 if SOLVERS.get(name).order == 1 else 1e-4, rtol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted(name: str) -> None:
    flow, calls = GaussianFlow.example(), []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        calls.append(float(t))
        return flow.velocity(t, x)

    field = Field(velocity, flow.path.coefficients, None)
    found = SOLVERS.build(name, steps=3).solve(field, torch.randn(4, 2, dtype=torch.float64))
    assert found.nfe == len(calls) > 0
    method = SOLVERS.get(name)
    if issubclass(method, RungeKutta):
        assert found.nfe == 3 * len(method.b)


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_pass_through_a_solve(name: str) -> None:
    x = START.clone().requires_grad_()
    options = {"rtol": 1e-6, "atol": 1e-6} if name in ADAPTIVE else {"steps": 200}
    (gradient,) = torch.autograd.grad(SOLVERS.build(name, **options).solve(curved, x).x.sum(), x)
    exact = (solution(START) / START).square()  # d/dx of 1 / (1/x - c)
    assert torch.allclose(gradient, exact, rtol=5e-2 if SOLVERS.get(name).order == 1 else 1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, -3])
def test_at_least_one_step(name: str, steps: int) -> None:
    with pytest.raises(GenkitError, match=f"at least 1 step, not {steps}"):
        SOLVERS.build(name, steps=steps)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_tolerances_are_positive(name: str) -> None:
    with pytest.raises(GenkitError, match="tolerances must be positive"):
        SOLVERS.build(name, rtol=0.0)


@pytest.mark.parametrize(
    "times", [[0.0, 0.5, 0.4, 1.0], [0.0, 0.0, 1.0], [1.0, 0.5, 0.5], [0.0, float("nan"), 1.0]]
)
def test_times_must_be_monotone(times: list[float]) -> None:
    with pytest.raises(GenkitError, match="strictly monotone"):
        SOLVERS.build("euler").solve(curved, START, times=torch.tensor(times))


@pytest.mark.parametrize("times", [[], [0.5]])
def test_one_time_is_no_interval(times: list[float]) -> None:
    with pytest.raises(GenkitError, match="at least two times"):
        SOLVERS.build("euler").solve(curved, START, times=torch.tensor(times))


def test_a_method_gets_what_it_needs_or_says_why_not() -> None:
    flow, x = GaussianFlow.example(), torch.randn(3, 2, dtype=torch.float64)
    solver = SOLVERS.build("ancestral", steps=4)
    assert solver.solve(flow.field(), x).nfe == 4
    with pytest.raises(GenkitError, match="ancestral needs.*score.*these can be used: .*euler.*heun"):
        solver.solve(flow.velocity, x)
    with pytest.raises(GenkitError, match="the coupling is ot"):
        solver.solve(Field(flow.velocity, flow.path.coefficients, "the coupling is ot"), x)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [(((), (0.5, 0.5)), (0.5, 0.5), "strictly lower"), (((), (0.5,)), (0.5, 0.6), "sum to 1")],
)
def test_a_wrong_tableau_is_refused_when_it_is_written(a: tuple, b: tuple, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        type("Wrong", (RungeKutta,), {"order": 2, "a": a, "b": b})


@pytest.mark.parametrize("grid", ["uniform", "edm"])
@pytest.mark.parametrize("name", FIXED)
def test_a_loop_of_fixed_steps_does_not_wait_for_the_device(name: str, grid: str) -> None:
    """Tensors of the device `meta` have no values: whoever asks for one, as item() and bool() do, gets an error."""
    linear = PATHS.build("linear").coefficients
    asked = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        asked.append(t.device.type)
        return t * x

    x = torch.empty(4, 2, device="meta")
    found = SOLVERS.build(name, steps=5, grid=grid).solve(Field(velocity, linear, None), x, keep=True)
    assert found.x.device == x.device
    assert len(found.trajectory) == 6
    assert set(asked) == {"cpu"}  # a field is given times as nodes have them
    with pytest.raises(RuntimeError, match="meta"):  # as it would be seen
        SOLVERS.build(name).solve(Field(lambda t, x: x * float(x.sum()), linear, None), x)


@pytest.mark.parametrize("solver", [{"name": "heun"}, {"name": "stochastic_heun", "churn": 0.0}])
def test_the_last_step_of_heun_may_be_eulers(solver: dict[str, Any]) -> None:
    """Where t=1 is reached, and nowhere else: one evaluation less, none of them there."""
    flow, x, seen = GaussianFlow.example(), torch.randn(5, 2, generator=keyed_generator(0)).double(), []

    def predict(t: Tensor, x: Tensor) -> Tensor:
        seen.append(float(t))
        return flow.velocity(t, x)

    field = Field(predict, flow.path.coefficients, None)
    built = SOLVERS.build(solver, steps=4, last="euler")
    found = built.solve(field, x)
    assert found.nfe == 7
    assert max(seen) == 0.75
    before = SOLVERS.build("heun").solve(field, x, times=torch.linspace(0, 0.75, 4)).x
    assert torch.allclose(found.x, before + 0.25 * flow.velocity(torch.tensor(0.75), before), atol=1e-12)
    half = SOLVERS.build("heun", last="euler").solve(field, x, times=torch.linspace(0, 0.5, 3))
    assert half.nfe == 4
