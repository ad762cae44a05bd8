"""Batches prepared ahead of their step are those that the step would have prepared, bit for bit."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from genkit.errors import GenkitError
from genkit.objectives import Objective
from genkit.training import TrainerOptions, TrainingOptions, fit
from genkit.training.ahead import Ahead
from tests.objectives.models import LABELLED, build, model_options, split


def train(folder: Path, coupling: Any, **options: Any) -> tuple[Objective, list[str]]:
    """Six steps with dropout, an average, and labels that are dropped; and the threads that prepared them."""
    model = build("flow_matching", LABELLED, scale=None, coupling=coupling, model=model_options(dropout=0.1))
    prepare, threads = model.prepare, []

    def watched(*args: Any, **given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return prepare(*args, **given)

    model.prepare = watched  # type: ignore[method-assign]
    given = {"steps": 6, "batch_size": 16, "warmup": 2, "checkpoint_every": 2, "log_every": 1, **options}
    fit(
        model.train(),
        split(LABELLED),
        TrainingOptions(**given),
        folder,
        trainer=TrainerOptions("cpu"),
        tensorboard=False,
        seed=1,
    )
    return model, threads


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a GPU trains; the CPU alone prepares in the step."""
    module = sys.modules["genkit.training.fit"]  # not the function of that name
    monkeypatch.setattr(module, "Ahead", lambda *given, beside: Ahead(*given, beside=True))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("coupling", ["ot", {"name": "sinkhorn", "epsilon": 0.5}])
@pytest.mark.filterwarnings("ignore:the coupling")
def test_ahead_is_bit_for_bit_in_the_step(
    coupling: Any,
    options: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    other, threads = train(tmp_path / "step", coupling, **options)
    assert set(threads) == {"MainThread"}
    request.getfixturevalue("beside")
    one, threads = train(tmp_path / "ahead", coupling, **options)
    assert set(threads) == {"ahead_0"}
    for (key, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert (tmp_path / "ahead/metrics.csv").read_text() == (tmp_path / "step/metrics.csv").read_text()


@pytest.mark.usefixtures("beside")
def test_an_error_in_the_thread_is_that_of_the_run_and_leaves_no_thread(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="sinkhorn: the plan did not converge in 1 iterations"):
        train(tmp_path, {"name": "sinkhorn", "iterations": 1}, steps=3)
    assert not [
        t for t in threading.enumerate() if t.name.startswith("ahead") and not t.daemon and t.is_alive()
    ]
