"""Plans against those of POT (https://pythonot.github.io), solvers of torchdiffeq, energy distances of SciPy."""

from __future__ import annotations

import math

import numpy
import ot
import pytest
import scipy.stats
import torch
import torchdiffeq
from torch import Tensor

from genkit.couplings.assignment import assign
from genkit.couplings.entropic import entropic_plan
from genkit.metrics import METRICS
from genkit.solvers import SOLVERS
from genkit.types import DataSpec

POINTS = DataSpec("points", (2,))
EVEN = numpy.full(30, 1 / 30)


def costs(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64)
    return torch.cdist(x, y).square()


@pytest.mark.parametrize("solver", ["scipy", "torch"])
@pytest.mark.parametrize("seed", range(3))
def test_an_assignment_costs_what_the_plan_of_pot_does(solver: str, seed: int) -> None:
    cost = costs(seed)
    ours = cost[torch.arange(30), assign(cost, solver)].mean()
    assert float(ours) == pytest.approx(ot.emd2(EVEN, EVEN, cost.numpy()), rel=1e-6)
    assert float(ours) < 0.8 * float(cost.mean())


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 10.0])
def test_an_entropic_plan_is_that_of_pot(epsilon: float) -> None:
    cost = costs(0)
    log_plan, _ = entropic_plan(cost, epsilon, tolerance=1e-11, iterations=20_000)
    theirs = ot.sinkhorn(
        EVEN, EVEN, cost.numpy(), epsilon, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000
    )
    assert numpy.abs(log_plan.exp().numpy() - theirs).max() < 1e-8


@pytest.mark.parametrize("relaxation", [0.5, 5.0])
def test_an_unbalanced_plan_is_that_of_pot(relaxation: float) -> None:
    cost = costs(1)
    log_plan, _ = entropic_plan(cost, 1.0, relaxation=relaxation, tolerance=1e-12, iterations=20_000)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        EVEN, EVEN, cost.numpy(), 1.0, relaxation, reg_type="kl", stopThr=1e-13, numItermax=20_000
    )
    assert theirs.sum() < 0.95
    assert numpy.abs(log_plan.exp().numpy() - theirs).max() < 1e-8


def swirl(t: Tensor, x: Tensor) -> Tensor:
    """A field that depends on time, without a symmetry that would hide a wrong stage."""
    turned = torch.stack((-x[..., 1], x[..., 0]), -1)
    return (1 + t) * turned + torch.sin(3 * t + x) - 0.3 * x


@pytest.mark.parametrize(
    ("ours", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")]
)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_solver_of_fixed_steps_ends_where_torchdiffeq_does(ours: str, theirs: str, steps: int) -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    found = SOLVERS.build(ours, steps=steps).solve(lambda t, x: swirl(torch.as_tensor(t), x), x).x
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    expected = torchdiffeq.odeint(swirl, x, times, method=theirs)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found - x).abs().max() > 0.5


@pytest.mark.parametrize("name", ["rk4", "adams_bashforth4", "dopri5", "bosh3"])
def test_a_solver_of_high_order_converges_to_the_solution_of_torchdiffeq(name: str) -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    options = {"steps": 400} if name[0] in "ra" else {"rtol": 1e-8, "atol": 1e-8}
    found = SOLVERS.build(name, **options).solve(lambda t, x: swirl(torch.as_tensor(t), x), x).x
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = torchdiffeq.odeint(swirl, x, times, method="dopri8", rtol=1e-12, atol=1e-12)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def measured(name: str, x: Tensor, y: Tensor, spec: DataSpec = POINTS) -> float:
    metric = METRICS.build(name, spec)
    metric.update(x, real=False)
    metric.update(y, real=True)
    return float(metric.compute())


def test_distances_of_points_are_those_of_pot_and_scipy() -> None:
    x, y = torch.randn(40, 2, dtype=torch.float64), 0.5 + 1.5 * torch.randn(40, 2, dtype=torch.float64)
    exact = math.sqrt(ot.emd2([], [], ot.dist(x.numpy(), y.numpy())))
    assert measured("wasserstein", x, y) == pytest.approx(exact, rel=1e-6)
    sliced = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=20_000, seed=0)
    assert measured("sliced_wasserstein", x, y) == pytest.approx(sliced, rel=0.05)


def test_the_energy_distance_is_that_of_scipy() -> None:
    """SciPy's is of distributions on the line, a row beside itself included, and the square root."""
    x, y = torch.randn(40, 1, dtype=torch.float64), 0.5 + 1.5 * torch.randn(50, 1, dtype=torch.float64)
    spread = [float(torch.cdist(z, z).sum() / (len(z) ** 2 * (len(z) - 1))) for z in (x, y)]
    theirs = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert measured("energy_distance", x, y, DataSpec("line", (1,))) == pytest.approx(
        theirs - sum(spread), abs=1e-6
    )
