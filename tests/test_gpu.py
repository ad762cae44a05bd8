"""What runs on a GPU: the same figures as on the CPU, and all economies of training; skipped where there is none."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import genkit
from genkit.__main__ import main
from genkit.data.base import TensorSplit
from genkit.objectives import OBJECTIVES
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, train
from genkit.solvers import SOLVERS
from genkit.types import Batch
from tests.objectives.models import build, data_of, split

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE, ACCELERATOR = "cuda", "gpu"
RECIPE: dict[str, Any] = {
    "data": "digits",
    "model": {"width": 48, "depth": 2, "heads": 2, "patch": 2},
    "objective": {"name": "flow_matching", "coupling": "ot"},
    "training": {
        "steps": 30,
        "batch_size": 64,
        "log_every": 1,
        "ema": 0.9,
        "checkpoint_every": 10,
        "warmup": 5,
    },
    "trainer": {"accelerator": ACCELERATOR},
}


def run(folder: Path, *, training: dict[str, Any] | None = None, **trainer: Any) -> list[float]:
    """The losses of a run on the GPU, trained to its end."""
    sections = {"training": RECIPE["training"] | (training or {}), "trainer": RECIPE["trainer"] | trainer}
    found = train(Recipe.resolve(RECIPE | sections), folder)
    assert found.environment["finished"]
    assert "cpu" not in found.environment["device"]
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_an_objective_has_the_same_loss_and_gradient_on_both(name: str) -> None:
    """With draws that are made on the CPU for both."""
    found = []
    for device in ("cpu", DEVICE):
        model = build(name, data_of(name)[0]).to(device)
        rows: TensorSplit = split(model.spec).to(device)
        index = torch.arange(16, device=device)
        generator = keyed_generator(0)
        prepared = model.prepare(Batch(*rows.take(index), index), generator=generator)
        loss = model.loss(prepared, generator=generator)["loss"]
        loss.backward()
        grads = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach().cpu(), torch.cat(grads)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """What a strategy of several processes leaves is not there for the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", SOLVERS.without_options())
def test_a_solver_takes_the_same_steps_on_both(name: str) -> None:
    model = build("flow_matching", data_of("flow_matching")[0])
    solver = SOLVERS.build(name, steps=4)
    x = [
        model.to(device).sample(8, sampler=solver, generator=keyed_generator(0)).x.cpu().float()
        for device in ("cpu", DEVICE)
    ]
    assert (x[0] - x[1]).abs().mean() < 0.02 * x[0].std()  # decoded to levels


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"precision": "bf16"},
        {"activation_checkpointing": True, "accumulate": 2},
        {"compile": "inductor"},
        {"on_bad_step": "skip", "spike": 1000.0},
        {"on_bad_step": "rollback", "checkpoint_best": "loss"},
        {"logical_batch": 32, "snapshots": [5]},
    ],
    ids=lambda training: "-".join(training) or "plain",
)
def test_it_trains(training: dict[str, Any], tmp_path: Path) -> None:
    losses = run(tmp_path / "run", training=training)
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_strategy_of_several_devices_learns_on_one_what_none_does(strategy: str, tmp_path: Path) -> None:
    """Also its averages, and from a checkpoint of the other; kept whole, to be sampled on the CPU."""
    plain = run(tmp_path / "plain")
    found = run(tmp_path / strategy, strategy=strategy)
    assert found == pytest.approx(plain, rel=1e-3, abs=1e-3)
    one, other = (genkit.load(tmp_path / name) for name in ("plain", strategy))
    for a, b in zip(one.objective.parameters(), other.objective.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)

    def cut(step: int, *_: object) -> None:
        if step == 15:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(Recipe.resolve(RECIPE), tmp_path / "cut", report=cut)
    assert run(tmp_path / "cut", strategy=strategy) == pytest.approx(plain, rel=1e-3, abs=1e-3)


def test_the_command_line_trains_and_samples_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: digits\nobjective: {name: normalizing_flow, spans: 2}\nmodel: {width: 24, depth: 2, heads: 2}\n"
    )
    small = ["training.steps=4", "training.batch_size=32"]
    assert main(["train", str(recipe), *small, f"trainer.accelerator={ACCELERATOR}", "--out", str(out)]) == 0
    for inverter in ("sequential", "jacobi", "auto"):
        argv = ["sample", str(out), "-n", "4", "--device", DEVICE, "--out", str(tmp_path / "x.npy")]
        assert main([*argv, "--inverter", inverter]) == 0
    assert main(["evaluate", str(out), "--device", DEVICE, "samples=32", "likelihood_rows=8"]) == 0
