"""Each solver against closed-form solutions: its order, its cost, its way back, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from genkit.errors import GenkitError
from genkit.solvers import GRIDS, SOLVERS, Solver, State
from genkit.solvers.adaptive import Adaptive
from genkit.solvers.runge_kutta import RungeKutta
from genkit.types import Field
from tests.oracles import GaussianFlow

NAMES = SOLVERS.names()
ADAPTIVE = [name for name in NAMES if issubclass(SOLVERS.get(name), Adaptive)]
FIXED = [name for name in NAMES if name not in ADAPTIVE]
PLAIN = [name for name in NAMES if SOLVERS.get(name).needs <= {"velocity"}]
START = torch.linspace(0.4, 1.5, 5, dtype=torch.float64)[:, None]


def curved(t: Tensor, x: Tensor) -> Tensor:
    """dx/dt = cos(3 t) x^2: neither linear nor autonomous."""
    return (3 * t).cos() * x.square()


def solution(x0: Tensor, t: float = 1.0) -> Tensor:
    return 1 / (1 / x0 - math.sin(3 * t) / 3)


def slope(steps: list[int], errors: list[float]) -> float:
    """The measured order: how log error falls with log steps, by least squares."""
    n, e = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return -float(((n - n.mean()) * (e - e.mean())).sum() / (n - n.mean()).square().sum())


@pytest.mark.parametrize("grid", GRIDS.names())
@pytest.mark.parametrize("name", [name for name in FIXED if name in PLAIN])
def test_error_falls_with_the_declared_order(name: str, grid: str) -> None:
    steps, errors = [32, 64, 128, 256], []
    for n in steps:
        solver = SOLVERS.build(name, steps=n, grid=grid)
        states = solver.solve(curved, START, keep=True).trajectory  # all of it: at the end errors may cancel
        exact = [solution(START, t) for t in solver.times().tolist()]
        errors.append(float((torch.stack(states) - torch.stack(exact)).abs().max()))
    order = SOLVERS.get(name).order
    assert slope(steps, errors) > order - 0.15
    if grid == "uniform":  # on others leading terms may cancel, so that the order looks higher
        assert slope(steps, errors) < order + 0.15


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("name", FIXED)
def test_order_on_the_flow_of_a_gaussian(name: str, path: str) -> None:
    """A field that also gives data, noise and score, for the methods that need them."""
    flow = GaussianFlow.example(path)
    x0 = torch.randn(32, 2, dtype=torch.float64)
    steps, errors = [64, 128, 256, 512], []
    for n in steps:
        solver = SOLVERS.build(name, steps=n)
        states = solver.solve(flow.field(), x0, keep=True).trajectory
        exact = [flow.transport(x0, torch.tensor(0.0), t) for t in solver.times()]
        errors.append(float((torch.stack(states) - torch.stack(exact)).abs().max()))
    assert (
        slope(steps, errors) > SOLVERS.get(name).order - 0.2
    )  # midpoint gains an order on the straight path


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
def test_a_field_that_is_not_finite_is_no_traceback(name: str) -> None:
    with pytest.raises(GenkitError, match="cannot go on at these tolerances"):
        SOLVERS.build(name).solve(lambda t, x: x / 0, START)


@pytest.mark.parametrize("name", PLAIN)
def test_back_and_forth_returns(name: str) -> None:
    options = {"rtol": 1e-6, "atol": 1e-6} if name in ADAPTIVE else {"steps": 400}
    solver = SOLVERS.build(name, **options)
    there = solver.solve(curved, START).x
    back = solver.solve(curved, there, times=solver.times().flip(0)).x
    assert float((there - START).abs().max()) > 0.05  # it went somewhere
    tolerance = 1e-2 if SOLVERS.get(name).order == 1 else 1e-4
    assert torch.allclose(back, START, atol=tolerance, rtol=0)


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


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_between_calls(name: str) -> None:
    """A second solve is as the first; a solve inside the field of another disturbs neither."""
    flow, x = GaussianFlow.example(), torch.randn(4, 2, dtype=torch.float64)
    options = {"rtol": 1e-2, "atol": 1e-2} if name in ADAPTIVE else {"steps": 4}
    solver = SOLVERS.build(name, **options)
    before = dict(vars(solver))
    alone = solver.solve(flow.field(), x, generator=torch.Generator().manual_seed(1))

    def nesting(t: Tensor, z: Tensor) -> Tensor:
        if float(t) < 0.3:
            solver.solve(Field(lambda s, w: -w, flow.path.coefficients, None), z[:1].clone())
        return flow.velocity(t, z)

    field = Field(nesting, flow.path.coefficients, None)
    nested = solver.solve(field, x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(alone.x, nested.x)
    assert alone.nfe == nested.nfe
    assert vars(solver) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_shape_and_input_are_left_alone(name: str, dtype: torch.dtype) -> None:
    flow = GaussianFlow.example(dims=3, dtype=dtype)
    x = torch.randn(6, 3, dtype=dtype)
    kept = x.clone()
    seen = set()

    def velocity(t: Tensor, z: Tensor) -> Tensor:
        seen.add((t.dtype, t.ndim, z.dtype))
        return flow.velocity(t, z)

    found = SOLVERS.build(name, steps=2).solve(Field(velocity, flow.path.coefficients, None), x)
    assert found.x.dtype == dtype
    assert found.x.shape == x.shape
    assert torch.equal(x, kept)
    assert seen == {(dtype, 0, dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_the_trajectory_holds_the_state_at_each_time(name: str) -> None:
    flow, x = GaussianFlow.example(), torch.randn(3, 2, dtype=torch.float64)
    solver = SOLVERS.build(name, steps=5)
    found = solver.solve(flow.field(), x, keep=True)
    assert len(found.trajectory) == 6
    assert torch.equal(found.trajectory[0], x)
    assert torch.equal(found.trajectory[-1], found.x)
    half = solver.solve(flow.field(), x, times=solver.times()[:3]).x
    assert torch.equal(found.trajectory[2], half)
    assert solver.solve(flow.field(), x).trajectory == []


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_pass_through_a_solve(name: str) -> None:
    x = START.clone().requires_grad_()
    options = {"rtol": 1e-6, "atol": 1e-6} if name in ADAPTIVE else {"steps": 200}
    (gradient,) = torch.autograd.grad(SOLVERS.build(name, **options).solve(curved, x).x.sum(), x)
    exact = (solution(START) / START).square()  # d/dx of 1 / (1/x - c)
    assert torch.allclose(gradient, exact, rtol=5e-2 if SOLVERS.get(name).order == 1 else 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_moments_of_a_gaussian(name: str) -> None:
    """The map is affine, so its moments are read off exactly from the images of 0 and the unit vectors."""
    flow = GaussianFlow.example()
    options = {"rtol": 1e-6, "atol": 1e-6} if name in ADAPTIVE else {"steps": 200}
    corners = torch.cat((torch.zeros(1, 2), torch.eye(2))).double()
    images = SOLVERS.build(name, **options).solve(flow.field(), corners).x
    mean, linear = images[0], (images[1:] - images[0]).T
    tolerance = 2e-2 if SOLVERS.get(name).order == 1 else 1e-4
    assert torch.allclose(mean, flow.mean, atol=tolerance)
    assert torch.allclose(linear @ linear.T, flow.cov, atol=tolerance)


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


class Ancestral(Solver):
    """A stand-in for a method that needs the score."""

    order = 1
    needs = frozenset({"velocity", "score"})

    def step(self, field, t, t_next, state, *, generator=None):
        return State(state.x + (t_next - t) * field.score(t, state.x))


def test_a_method_gets_what_it_needs_or_says_why_not() -> None:
    flow, x = GaussianFlow.example(), torch.randn(3, 2, dtype=torch.float64)
    solver = Ancestral(steps=4)
    assert solver.solve(flow.field(), x).nfe == 4
    with pytest.raises(GenkitError, match="needs score.*euler, midpoint, heun and rk4 need velocity only"):
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


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("name", GRIDS.names())
def test_grids_go_from_0_to_1(name: str, steps: int) -> None:
    times = GRIDS.build(name).times(steps)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert times[0] == 0
    assert times[-1] == 1
    assert (times.diff() > 0).all()


def test_the_shapes_of_grids() -> None:
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert torch.equal(GRIDS.build("uniform").times(4), u)
    assert torch.allclose(GRIDS.build("power", exponent=2.0).times(4), u * (2 - u))
    assert torch.allclose(GRIDS.build("cosine").times(4), (math.pi / 2 * u).sin() ** 2)
    with pytest.raises(GenkitError, match="exponent must be positive"):
        GRIDS.build("power", exponent=0.0)
