"""The scripts among the examples run as they are; the plug-ins: tests/test_plugins.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from genkit.__main__ import main

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["model.width=16", "model.depth=2", "training.steps=2", "training.batch_size=16", "training.ema=0.5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("runs") / "moons")
    assert main(["train", str(EXAMPLES / "moons.yaml"), *TINY, "--out", out]) == 0
    return out


def example(monkeypatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_trajectories(run, tmp_path, monkeypatch):
    solvers = ["--solvers", "euler", "exponential", "tada", "--steps", "3"]
    few = ["-n", "12", "--frames", "4", "--out", str(tmp_path / "ways")]
    example(monkeypatch, "trajectories.py", run, *solvers, *few)
    assert Image.open(tmp_path / "ways.png").size[0] > 600
    assert getattr(Image.open(tmp_path / "ways.gif"), "n_frames", 1) == 4


def test_trajectories_of_a_solver_that_is_none(run, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="did you mean 'heun'"):
        example(monkeypatch, "trajectories.py", run, "--solvers", "huen", "--out", str(tmp_path / "ways"))
    assert not list(tmp_path.iterdir())
