"""The grid of a file, and what fits it; on models: tests/compare/test_samplers.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genkit.errors import GenkitError
from genkit.solvers import GRIDS, SOLVERS
from genkit.solvers.fitted import distance, fit, rising
from genkit.testing.oracles import GaussianFlow
from genkit.types import Field


def written(folder: Path, times: object) -> str:
    file = folder / "grid.json"
    file.write_text(json.dumps({"times": times}))
    return str(file)


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    grid = GRIDS.build("fitted", file=written(tmp_path, [0, 0.1, 0.5, 1]))
    assert grid.times(3).tolist() == [0, 0.1, 0.5, 1]
    u = torch.tensor([0, 1 / 6, 1 / 3, 0.5, 1], dtype=torch.float64)
    assert torch.allclose(grid.warp(u), torch.tensor([0, 0.05, 0.1, 0.3, 1], dtype=torch.float64))
    solver = SOLVERS.build("heun", steps=3, grid=grid)
    with pytest.raises(GenkitError, match="not 4"):
        solver.paced(4).times()
    assert solver.solve(GaussianFlow.example().field(), torch.randn(2, 2, dtype=torch.float64)).nfe == 6
    with pytest.raises(GenkitError, match="has times for 3 steps, not 16: take steps 3, or fit"):
        SOLVERS.build("heun", grid=grid)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0], "no step"),
        ([], "no step"),
        (0.5, "no step"),
        ([0, 0.5, 0.5, 1], "must rise from 0 to 1"),
        ([0, 0.6, 0.5, 1], "must rise from 0 to 1"),
        ([0.1, 1], "must rise from 0 to 1"),
        ([0, 0.9], "must rise from 0 to 1"),
        ([0, float("nan"), 1], "must rise from 0 to 1"),
        (["a"], "holds no `times`"),
        (None, "holds no `times`"),
    ],
)
def test_a_file_that_holds_no_grid(tmp_path: Path, times: object, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        GRIDS.build("fitted", file=written(tmp_path, times))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    written(tmp_path, [0, 1])
    with pytest.raises(GenkitError, match=r"did you mean '.*grid.json'"):
        GRIDS.build("fitted", file=str(tmp_path / "grids.json"))
    for content in ("{", "[1, 2]", '{"time": [0, 1]}'):
        (tmp_path / "grid.json").write_text(content)
        with pytest.raises(GenkitError, match="holds no `times`"):
            GRIDS.build("fitted", file=str(tmp_path / "grid.json"))


def test_the_fit_finds_the_best_step() -> None:
    """Euler with 2 steps on dx/dt = (1 + a t) x: its one free time is found by trying all."""
    x = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)
    field = Field(lambda t, z: (0.2 + 6 * t) * z)
    solver, reference = SOLVERS.build("euler", steps=2), SOLVERS.build("rk4", steps=100)
    found = fit(solver, field, x, 3 * x, reference=reference)
    exact = reference.solve(field, x).x

    def error(t: float) -> float:
        nodes = torch.tensor([0, t, 1], dtype=torch.float64)
        return float(distance(solver.solve(field, x, times=nodes).x, exact).mean())

    best = min((error(t), t) for t in torch.linspace(0.001, 0.999, 999).tolist())
    assert float(found.times[1]) == pytest.approx(best[1], abs=0.01)
    assert found.fitted[0] == pytest.approx(best[0], rel=1e-3)
    assert found.fitted[1] == pytest.approx(3 * best[0], rel=1e-3)
    assert found.fitted[1] <= found.others[found.best][1]


def test_times_rise_whatever_theta_is() -> None:
    times = rising(torch.tensor([3.0, -20.0, 0.0], dtype=torch.float64))
    assert times[[0, -1]].tolist() == [0, 1]
    assert bool((times.diff() > 0).all())


def test_ends_that_are_not_finite_cannot_be_fitted() -> None:
    field, x, solver = Field(lambda t, z: z / 0), torch.ones(2, 1), SOLVERS.build("euler", steps=2)
    with pytest.raises(GenkitError, match="does not end in finite values"):
        fit(solver, field, x, x, reference=SOLVERS.build("rk4"))
