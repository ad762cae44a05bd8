"""Energies through the command line: a comparison with control, compositions, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import genkit
from genkit.__main__ import main
from genkit.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
QUICK = [
    *("model.width=24", "model.depth=1", "model.heads=2"),
    *("training.steps=6", "training.batch_size=32", "arms.energy.training.steps=4"),
    *("evaluation.samples=20", "evaluation.steps=[2]", "evaluation.likelihood_rows=4"),
    "evaluation.control=[3 AND 8,{beta: 2,sampler: {steps: 6}}]",
]
FEW = ("--steps", "8", "--particles", "32", "-n", "9")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("energy") / "out"
    assert main(["compare", str(ROOT / "recipes/compare/energy.yaml"), *QUICK, "--out", str(out)]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *words: str) -> None:
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("genkit: error:") == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


def test_a_comparison_has_the_energy_and_its_particles(compared: Path) -> None:
    report = json.loads((compared / "report.json").read_text())
    (run,) = report["arms"]["energy"]["runs"]
    assert run["train"]["teacher_tokens"] > 0
    assert [entry["words"] for entry in run["control"]] == ["3 AND 8", "as trained, beta 2, steps 6"]
    for entry in run["control"]:
        assert entry["frechet"] > 0
        assert 0 < entry["least_ess"] <= entry["ess"] <= entry["particles"] + 1e-6
        assert [len(pair) for pair in entry["seen"]] == [2, 2, 2]
    assert run["control"][0]["nfe"] == 2 * 65  # two classes, at the start and at each of 64 steps
    assert "control" not in report["arms"]["fm-independent"]["runs"][0]
    shown = load_file(compared / "energy" / "samples.safetensors")
    assert shown["control_0"].shape == (20, 1, 8, 8)
    page = (compared / "report.html").read_text()
    assert "beta 2" in page
    assert 'id="control"' in page
    assert (compared / "figures" / "control.png").is_file()


@pytest.mark.parametrize(
    "options",
    [
        ["--compose", "3 AND 8", "--beta", "2"],
        ["--compose", "3 AND NOT 8^0.5", "--resampler", "residual"],
        ["--compose", "0.3*3 OR 0.7*8"],
        ["--compose", "3 AND 8", "--divide-prior", "--move", "mala"],
        ["--class", "3", "--beta", "0.5"],
        ["--compose", "any", "--control", "{name: reward, reward: brightness, strength: 5}"],
        ["--control", "{name: bounded, high: 0.5}", "--control", "{name: temperature, beta: 2}"],
    ],
    ids=lambda options: " ".join(options),
)
def test_every_kind_of_control(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    out = tmp_path / "grid.png"
    assert main(["sample", str(compared / "energy"), *options, *FEW, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "9 samples of energy, from 32 particles, of which" in printed.out
    assert "resamplings" in printed.out
    assert "step 8/8" in printed.err


def test_another_model_in_the_expression(compared: Path, tmp_path: Path) -> None:
    run = str(compared / "energy")
    options = ["--compose", "3 AND other:8", "--model", f"other={run}"]
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    assert main(["sample", run, *options, *FEW, "--out", str(one)]) == 0
    assert main(["sample", run, "--compose", "3 AND 8", *FEW, "--out", str(two)]) == 0
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compose", "3 AND"], ["expected a class", "character"]),
        (["--compose", "3 & 8"], ["'&'", "AND, OR, NOT"]),
        (["--compose", "3 AND 12"], ["class 12 is out of range", "0 to 9"]),
        (["--compose", "three"], ["at character 1", "no class 'three'"]),
        (["--beta", "2", "--divide-prior"], ["no effect without a composition"]),
        (["--compose", "3", "--control", "{name: product}"], ["write it as a composition"]),
        (["--compose", "3", "--control", "{name: bounded, distance: x}"], ["distance is a Python function"]),
        (["--compose", "3 AND NOT 8"], ["cannot be normalized"]),
        (["--compose", "3", "--beta", "0"], ["beta must be a positive number"]),
        (["--beta", "-1"], ["beta must be a positive number"]),
        (["--compose", "3", "--class", "4"], ["leave out the class 4"]),
        (["--compose", "3", "--particles", "8"], ["-n 64", "raise --particles"]),
        (["--compose", "3", "--guidance", "2"], ["--guidance is not for particles"]),
        (["--compose", "3", "--model", "other"], ["NAME=RUN"]),
        (["--compose", "3", "--resampler", "systemic"], ["did you mean 'systematic'"]),
        (["--compose", "3", "--control", "{name: bound}"], ["did you mean 'bounded'"]),
        (
            ["--compose", "3", "--control", "{name: bounded, low: 2, high: 3}"],
            ["all 64 particles have lost their weight"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_refused(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    out = tmp_path / "grid.png"
    few = [] if "--particles" in options else ["--particles", "64"]
    refused(
        capsys,
        ["sample", str(compared / "energy"), *options, *few, "--steps", "4", "--out", str(out)],
        *words,
    )
    assert not out.exists()


def test_a_flow_has_no_energy(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sample", str(compared / "fm-independent"), "--compose", "3", "--out", str(tmp_path / "x.png")]
    refused(capsys, argv, "FlowMatching has no energy", "objective energy")


def test_teachers_that_do_not_fit(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/compare/energy.yaml")
    argv = ["compare", recipe, *QUICK, "--out", str(tmp_path / "out")]
    refused(
        capsys,
        [*argv, "arms.fm-independent.objective={name: flow_matching, coupling: ot}"],
        "no valid score",
        "'ot'",
        "independent",
    )
    refused(capsys, [*argv, "arms.energy.model.width=32"], "model.width 24, not 32")
    other = tmp_path / "other.yaml"
    other.write_text(
        f"data: moons\nobjective: {{name: energy, teacher: {compared / 'fm-independent'}}}\n"
        "model: {width: 24, depth: 1, heads: 2}\ntraining: {steps: 2}\n"
    )
    refused(capsys, ["train", str(other), "--out", str(tmp_path / "run")], "data of shape (1, 8, 8)")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_controls_that_cannot_be_are_known_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "recipes/compare/energy.yaml")
    argv = ["compare", recipe, *QUICK[:-1], "--out", str(tmp_path / "out")]
    for wrong, words in (
        ("[3 AND 12]", "class 12 is out of range"),
        ("[{beta: -1}]", "beta must be a positive number"),
        ("[{beta: .inf}]", "beta must be a positive number"),
        ("[{controls: [{name: bounde}]}]", "did you mean 'bounded'"),
        ("[{beta: 2}, {beta: 2}]", "there twice"),
        ("[{divide_prior: true}]", "no effect without a composition"),
        ("[{betta: 1}]", "did you mean 'beta'"),
        ("[{sampler: {partices: 9}}]", "did you mean 'particles'"),
    ):
        refused(capsys, [*argv, f"evaluation.control={wrong}"], words)
    refused(capsys, [*argv, "evaluation.control_on=[energie]"], "control_on", "did you mean 'energy'")
    assert not (tmp_path / "out" / "energy").exists()


def test_samples_that_are_no_numbers_are_not_written(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(compared / "energy", broken)
    weights = broken / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        about = json.loads(file.metadata()["genkit"])
    state = load_file(weights)
    state["head.proj.weight"].fill_(float("nan"))
    about.pop("hash")
    save_file(state, weights, metadata={"genkit": json.dumps(about)})
    out = tmp_path / "x.png"
    argv = ["sample", str(broken), "--out", str(out)]
    refused(capsys, argv, "samples are not finite")
    refused(capsys, [*argv, "--compose", "3", "--steps", "2"], "all 256 particles have lost their weight")
    assert not out.exists()


def test_a_teacher_without_a_null_class(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["compare", str(ROOT / "recipes/compare/energy.yaml"), *QUICK, "--out", str(tmp_path / "out")]
    changed = "arms.fm-independent.objective={name: flow_matching, label_dropout: 0.0}"
    refused(capsys, [*argv, changed], "label_dropout 0", "train the teacher with it")


def test_the_log_probability_by_the_energy(compared: Path) -> None:
    run = genkit.load(compared / "energy")
    x, y = run.dataset.split("test").take(torch.arange(4))
    found = run.log_prob(x, y, by="energy")
    assert found.kind == "unnormalized"
    assert found.value.isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_every_solver_samples_an_energy(compared: Path, solver: str) -> None:
    run = genkit.load(compared / "energy")
    found = run.sample(3, solver=solver)
    assert found.x.shape == (3, 1, 8, 8)
    assert found.tokens == 2 * found.nfe * 16  # once forward, and once back
