"""Solvers and grids side by side, and grids that are fitted to a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.__main__ import main
from genkit.compare.numbers import number
from genkit.compare.samplers import (
    BenchmarkOptions,
    Trial,
    benchmark,
    costs,
    draw_solvers,
    fit_grid,
    markdown,
    write,
)
from genkit.errors import GenkitError
from genkit.metrics import Judge
from genkit.objectives import OBJECTIVES
from genkit.processes import locked
from genkit.recipe import Recipe, Run, train
from genkit.solvers import SOLVERS
from genkit.solvers.adaptive import Adaptive
from genkit.testing.oracles import GaussianFlow

SMALL = {
    "data": {"name": "8gaussians", "n_train": 60, "n_test": 40},
    "model": {"width": 16, "depth": 2, "heads": 2},
    "training": {"steps": 2, "batch_size": 8, "log_every": 1},
}
FIXED = [name for name in SOLVERS.names() if not issubclass(SOLVERS.get(name), Adaptive)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Two steps of flow matching with independent and with coupled pairs, and of a normalizing flow."""
    folder = tmp_path_factory.mktemp("runs")
    objectives = {
        "independent": "flow_matching",
        "coupled": {"name": "flow_matching", "coupling": "ot"},
        "data": {"name": "flow_matching", "prediction": "data"},
        "nf": {"name": "normalizing_flow", "spans": 2},
    }
    return {
        name: train(Recipe.resolve(SMALL | {"objective": objective}), folder / name)
        for name, objective in objectives.items()
    }


@pytest.fixture
def gaussian(runs, monkeypatch) -> Run:
    """The run with the velocity of a Gaussian flow, which is known, in the place of its own."""
    flow = GaussianFlow.example(dtype=torch.float32)

    def predict(self: Any, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        return flow.velocity(t, x)

    monkeypatch.setattr(OBJECTIVES.get("flow_matching"), "predict", predict)
    return runs["independent"]


def points(report: dict[str, Any], solver: str, grid: str = "uniform") -> dict[int, dict[str, Any]]:
    (curve,) = [c for c in report["curves"] if c["solver"] == solver and c["grid"] in (grid, None)]
    return {point.get("budget", i): point for i, point in enumerate(curve["points"])}


def test_all_solvers_within_their_budgets(gaussian, tmp_path):
    budgets = [1, 2, 4, 8, 31]
    options = BenchmarkOptions(samples=40, grids=["uniform"], evaluations=budgets, draws=1)
    report = benchmark(gaussian, options)
    assert [curve["solver"] for curve in report["curves"]] == SOLVERS.names()
    assert not [c for c in report["curves"] if c["refused"]]
    for curve in report["curves"]:
        for point in curve["points"]:
            assert point["nfe"] <= point.get("budget", 10**4)
            assert point["metric"] > 0
            assert point["seconds"] > 0
            assert ("error" in point) == (curve["group"] != "noise of their own")
    heun, euler, rk4 = (points(report, name) for name in ("heun", "euler", "rk4"))
    assert (heun[8]["steps"], heun[8]["nfe"], heun[31]["steps"]) == (4, 8, 15)
    assert 1 not in heun
    assert min(rk4) == 4
    for name in ("euler", "ddim"):  # the same method on the linear path
        assert points(report, name)[8]["error"] == pytest.approx(euler[8]["error"], rel=1e-4)
    assert heun[31]["error"] < euler[31]["error"] / 20
    assert report["reference"]["error"] < 1e-5
    table = write(report, tmp_path).read_text()
    assert "| heun | uniform | – |" in table
    assert "Best at 8: " in table
    assert "Steps by tolerance" in table
    assert (tmp_path / "figures/solvers.png").stat().st_size > 10_000
    assert not (tmp_path / "figures/grids.png").exists()
    assert json.loads((tmp_path / "samplers.json").read_text())["curves"] == report["curves"]


def test_several_draws_are_shown_with_their_range(runs, tmp_path):
    options = {"samples": 20, "solvers": ["euler", "ancestral"], "grids": ["uniform"], "evaluations": [2]}
    report, one_draw = (
        benchmark(runs["independent"], BenchmarkOptions(**options, draws=draws)) for draws in (3, 1)
    )
    for name in ("euler", "ancestral"):
        point = points(report, name)[2]
        (alone,) = points(one_draw, name)[2]["metrics"]
        assert point["metrics"][0] == alone
        low, middle, high = sorted(point["metrics"])
        assert low < point["metric"] == middle < high
        cells = next(line for line in markdown(report).splitlines() if line.startswith(f"| {name} | uniform"))
        assert cells == f"| {name} | uniform | {number(middle)} ({number(low)} to {number(high)}) |"
    assert "medians of 3 draws from seed 0 on" in write(report, tmp_path).read_text()


def test_errors_are_distances_to_the_exact_flow(gaussian):
    """Of the way that the flow takes in closed form."""
    options = BenchmarkOptions(samples=30, solvers=["midpoint"], grids=["cosine"], evaluations=[6], draws=1)
    (point,) = benchmark(gaussian, options)["curves"][0]["points"]
    trial = Trial(gaussian, Judge(gaussian.dataset, 30), gaussian.guidance(1.0), 512, 0)
    flow, zero, one = GaussianFlow.example(dtype=torch.float32), torch.tensor(0.0), torch.tensor(1.0)
    x = trial.noise[0]
    end = SOLVERS.build("midpoint", steps=3, grid="cosine").solve(flow.velocity, x).x
    exact = (end - flow.transport(x, zero, one)).square().mean(1).sqrt().mean()
    assert point["error"] == pytest.approx(float(exact), rel=1e-3)


def test_what_cannot_be_used_is_listed_with_its_reason(runs, tmp_path):
    options = BenchmarkOptions(
        samples=20,
        solvers=["euler", "tada", {"name": "dopri5", "max_evaluations": 3}],
        grids=["uniform"],
        evaluations=[2],
        tolerances=[1e-3],
        reference={"name": "heun", "steps": 4},
        draws=1,
    )
    report = benchmark(runs["coupled"], options)
    table = write(report, tmp_path).read_text()
    assert "- tada on uniform: tada needs noise, score" not in table
    assert (
        "- tada on uniform: tada needs score, which this field cannot give (it was trained with the coupling"
        in table
    )
    assert "- dopri5 (max_evaluations 3): dopri5 has used 3 evaluations" in table
    assert "euler on uniform" in table
    assert draw_solvers({**report, "curves": []}) is None


def test_a_model_of_data_has_another_reference(runs):
    options = BenchmarkOptions(
        samples=20, solvers=["heun", "dpmpp"], grids=["uniform"], evaluations=[4], draws=1
    )
    report = benchmark(runs["data"], options)
    assert report["reference"]["solver"] == "exponential, 256 steps"
    assert points(report, "dpmpp")[4]["error"] > 0
    assert "gives no velocity at t=1" in points(report, "heun")[4]["failed"]


def test_samples_do_not_depend_on_what_else_is_measured(runs):
    """The same noise for all, also for methods that draw."""
    both = BenchmarkOptions(
        samples=20, solvers=["tada", "euler"], grids=["cosine", "uniform"], evaluations=[3], draws=1
    )
    alone = BenchmarkOptions(samples=20, solvers=["tada"], grids=["uniform"], evaluations=[3], draws=1)
    found = [
        points(benchmark(runs["independent"], options), "tada")[3]["metric"] for options in (both, alone)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("budget", [1, 5, 16])
def test_costs_are_those_of_the_solver(name, budget):
    found = costs(SOLVERS.build(name), budget)
    flow, x = GaussianFlow.example(), torch.randn(2, 2, dtype=torch.float64)
    for steps, nfe in enumerate(found, 1):
        assert SOLVERS.build(name, steps=steps).solve(flow.field(), x).nfe == nfe <= budget
    assert SOLVERS.build(name, steps=len(found) + 1).solve(flow.field(), x).nfe > budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": []}, "evaluations must be positive and distinct"),
        ({"evaluations": [0]}, "evaluations must be positive"),
        ({"tolerances": [0.0]}, "tolerances must be positive"),
        ({"draws": 0}, "draws must be positive"),
        ({"solvers": ["huen"]}, "did you mean 'heun'"),
        ({"solvers": [{"name": "heun", "steps": 3}]}, "leave them out"),
        ({"solvers": [{"name": "heun", "order": 3}]}, "no option 'order'"),
        ({"grids": ["edn"]}, "did you mean 'edm'"),
        ({"grids": ["fitted"]}, "the option 'file' is missing"),
        ({"reference": "rk5"}, "did you mean 'rk4'"),
    ],
)
def test_wrong_options_show_at_once(options, message):
    with pytest.raises(GenkitError, match=message):
        BenchmarkOptions(**options)


# --- fitted grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "steps", "share"), [("euler", 4, 1.0), ("heun", 3, 0.8), ("unipc", 5, 0.8)]
)
def test_a_fitted_grid_is_better_than_all_others_on_noise_held_out(gaussian, solver, steps, share):
    found = fit_grid(gaussian, solver, steps, samples=40)
    errors = {name: error["held_out"] for name, error in found["errors"].items()}
    assert errors["fitted"] < share * min(error for name, error in errors.items() if name != "fitted")
    if solver == "heun":
        assert fit_grid(gaussian, solver, steps, samples=40) == found


def test_the_command_line_fits_and_uses_a_grid(runs, tmp_path, capsys):
    run, file, out = str(runs["independent"].folder), tmp_path / "grid.json", tmp_path / "out"
    fit = ["fit-grid", run, "--solver", "heun", "--samples", "16", "--out", str(file)]
    assert main([*fit, "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "on noise held out" in said
    chosen = said.partition("--solver '")[2].partition("'")[0]
    sample = ["sample", run, "-n", "4", "--out", str(tmp_path / "x.npy"), "--solver", chosen]
    assert main([*sample, "--steps", "3"]) == 0
    assert "6 network calls" in capsys.readouterr().out
    assert main([*sample, "--steps", "4"]) == 2
    assert "has times for 3 steps, not 4" in capsys.readouterr().err
    bench = ["benchmark", "samplers", run, "samples=8", "solvers=[heun]", "draws=1", "--out", str(out)]
    grids = f"grids=[uniform,{{name: fitted, file: {file}}}]"
    assert main([*bench, grids, "evaluations=[2,6,8]"]) == 0
    report = json.loads((out / "samplers.json").read_text())
    assert [len(curve["points"]) for curve in report["curves"]] == [3, 1]
    assert "file " in (out / "table.md").read_text()
    assert (out / "figures/grids.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solver", "tada", "--steps", "4"], "tada, which has noise of its own"),
        (["--solver", "dopri5", "--steps", "4"], "dopri5, which chooses its own steps"),
        (["--solver", "heun", "--steps", "1"], "nothing to fit"),
        (["--solver", "heun", "--steps", "0"], "at least 1 step"),
        (["--solver", "heun", "--steps", "4", "--samples", "1"], "samples must be from 2 to 40"),
    ],
)
def test_what_cannot_be_fitted(runs, tmp_path, capsys, options, message):
    file = tmp_path / "grid.json"
    assert main(["fit-grid", str(runs["independent"].folder), *options, "--out", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert not file.exists()


def test_only_flows_have_solvers(runs, tmp_path, capsys):
    run = str(runs["nf"].folder)
    assert main(["benchmark", "samplers", run, "--out", str(tmp_path)]) == 2
    assert (
        "solvers are for flows: a model of the objective 'normalizing_flow' has none"
        in capsys.readouterr().err
    )
    assert main(["fit-grid", run, "--solver", "heun", "--steps", "2", "--out", str(tmp_path / "g.json")]) == 2
    assert "takes no solver" in capsys.readouterr().err
    assert main(["benchmark", "samplers", run, "sample=3", "--out", str(tmp_path)]) == 2
    assert "did you mean 'samples'" in capsys.readouterr().err


def test_a_folder_is_for_one_benchmark_at_a_time(tmp_path, capsys):
    with locked(tmp_path / "out"):
        assert main(["benchmark", "samplers", "no-run", "--out", str(tmp_path / "out")]) == 2
    assert "is being written by process" in capsys.readouterr().err
