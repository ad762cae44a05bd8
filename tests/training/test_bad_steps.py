"""Steps that go wrong: skipped, gone back from, or the end of the run; the same in all processes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.objectives import Objective
from genkit.training import GenerativeModule, TrainingOptions
from genkit.training.bad_steps import ENOUGH, BadSteps
from tests.training.test_resume import Killed, assert_equal, kill_at, rows, saved, train


def poisoned(monkeypatch: pytest.MonkeyPatch, factor: Callable[[int], float]) -> list[int]:
    """Losses of the flow times factor(number of the call); returns the first row of each batch."""
    from genkit.objectives.flow_matching import FlowMatching

    loss, seen = FlowMatching.loss, []

    def bad(self: Objective, batch: Any, **given: Any) -> dict[str, Tensor]:
        seen.append(int(batch.index[0]))
        return {"loss": loss(self, batch, **given)["loss"] * factor(len(seen) - 1)}

    monkeypatch.setattr(FlowMatching, "loss", bad)
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_leaves_everything_as_it_was(
    bad: float, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments and their count; one bad part makes the step bad."""
    states: list[tuple[list[Tensor], list[Tensor]]] = []
    step = torch.optim.AdamW.step

    def recorded(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        found = step(optimizer, closure)
        weights = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        held = [v.clone() for state in optimizer.state.values() for v in state.values()]
        states.append((weights, held))
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    poisoned(monkeypatch, lambda call: bad if call == 5 * accumulate + accumulate - 1 else 1.0)
    objective, fitted, _ = train(tmp_path, on_bad_step="skip", log_every=1, accumulate=accumulate)
    assert (fitted.steps, fitted.bad_steps) == (12, 1)
    for before, after in zip(states[4], states[5], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[5][0], states[6][0], strict=True))
    assert all(p.isfinite().all() for p in objective.parameters())
    assert [row["bad_steps"] for row in rows(tmp_path)] == ["0.0"] * 5 + ["1.0"] * 7


def test_a_step_whose_gradient_alone_is_not_finite_is_skipped(tmp_path: Path) -> None:
    """The root of zero; too many in a row end the run."""

    def rooted(self: Any, batch: Any, **given: Any) -> dict[str, Tensor]:
        return {"loss": (self.condition.null[0] * 0).sqrt() + 1}

    with pytest.MonkeyPatch.context() as patch:
        from genkit.objectives.flow_matching import FlowMatching

        patch.setattr(FlowMatching, "loss", rooted)
        with pytest.raises(GenkitError, match="the last 6 steps were bad.*no checkpoint was written yet"):
            train(tmp_path, on_bad_step="skip", bad_steps=5, checkpoint_every=100)


def test_going_back_takes_other_batches_and_is_exact_under_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is bad at one row, so that the same batch would be bad again."""
    seen = poisoned(monkeypatch, lambda call: 1.0)
    train(tmp_path / "good")
    wrong = seen[6]
    monkeypatch.undo()

    def factor(call: int) -> float:
        return math.nan if seen[call] == wrong else 1.0

    options: dict[str, Any] = {"on_bad_step": "rollback", "log_every": 1}
    seen = poisoned(monkeypatch, factor)
    whole, fitted, _ = train(tmp_path / "whole", **options)
    assert (fitted.steps, fitted.rollbacks) == (12, 1)
    assert len(seen) == 7 + 12 - 4  # back from the seventh to the fourth
    assert seen[7] != seen[4]
    assert [row["rollbacks"] for row in rows(tmp_path / "whole")] == ["0.0"] * 4 + ["1.0"] * 8
    path = tmp_path / "parts"
    for at in (6, 6, 3):  # before the bad one, and twice after it
        seen.clear()
        with pytest.raises(Killed):
            train(path, before=kill_at(at), **options)
    seen.clear()
    resumed, _, _ = train(path, **options)
    assert_equal(whole, resumed)
    assert saved(path)["callbacks"]["BadSteps"]["attempt"] == 1


def test_a_signal_in_a_bad_step_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends at its last checkpoint and does not go on from there."""

    def factor(call: int) -> float:
        if call == 6:
            signal.raise_signal(signal.SIGINT)
        return math.nan if call == 6 else 1.0

    seen = poisoned(monkeypatch, factor)
    _, fitted, _ = train(tmp_path, on_bad_step="rollback", log_every=1)
    assert (fitted.stopped, fitted.steps, len(seen)) == (signal.SIGINT, 4, 7)


def test_going_back_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is nothing but the start to go back to, whose weights are restored."""
    seen = poisoned(monkeypatch, lambda call: math.nan)
    with pytest.raises(GenkitError, match="not finite at step 0, after going back 2 times; the last good"):
        train(tmp_path, on_bad_step="rollback", bad_steps=2, log_every=1)
    assert len(seen) == 3
    assert len(set(seen)) > 1
    assert saved(tmp_path)["global_step"] == 0


def test_a_spike_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, lambda call: 1e3 if call == 25 else 1.0)
    with pytest.raises(GenkitError, match="the loss was not finite, or a spike, at step 25"):
        train(tmp_path, steps=40, spike=50.0)


class Stub:
    """A trainer of two processes of which the other has `theirs`."""

    def __init__(self, theirs: float) -> None:
        self.world_size, self.global_step = 2, 0
        self.strategy = SimpleNamespace(reduce=lambda ours, reduce_op: (ours + theirs) / 2)


@pytest.mark.parametrize(("theirs", "expected"), [(1.0, 0), (math.nan, 1), (100.0, 1)])
def test_what_is_bad_in_one_process_is_bad_in_all(theirs: float, expected: int) -> None:
    bad = BadSteps(TrainingOptions(spike=3.0))
    module: Any = GenerativeModule.__new__(GenerativeModule)
    torch.nn.Module.__init__(module)
    for step in range(ENOUGH):
        module.parts = [{"loss": torch.tensor(1 + 0.1 * (step % 3))}]
        bad.on_before_optimizer_step(Stub(1.0), module, None)  # type: ignore[arg-type]
    assert int(bad.total) == 0
    module.parts = [{"loss": torch.tensor(1.0)}]
    bad.on_before_optimizer_step(Stub(theirs), module, None)  # type: ignore[arg-type]
    assert int(bad.total) == expected


@pytest.mark.parametrize(
    ("options", "asked"),
    [({}, 0), ({"on_bad_step": "skip"}, 1), ({"on_bad_step": "rollback", "spike": 9.0}, 1)],
)
def test_processes_ask_each_other_in_a_step_only_where_it_acts_on_the_answer(
    options: dict[str, Any], asked: int
) -> None:
    """Else when they look: then what one has seen counts for all."""
    bad, calls = BadSteps(TrainingOptions(**options)), []
    module: Any = GenerativeModule.__new__(GenerativeModule)
    torch.nn.Module.__init__(module)
    module.parts, module.log = [{"loss": torch.tensor(1.0)}], lambda *_: None

    def reduce(ours: torch.Tensor, reduce_op: str) -> torch.Tensor:
        calls.append(reduce_op)
        return ours if reduce_op == "mean" else ours.clamp(min=-4)  # the other's first bad step is 4

    trainer: Any = SimpleNamespace(
        world_size=2, global_step=7, strategy=SimpleNamespace(reduce=reduce, root_device="cpu")
    )
    bad.on_before_optimizer_step(trainer, module, SimpleNamespace())
    assert calls == ["mean"] * asked
    if not asked:
        with pytest.raises(GenkitError, match="not finite at step 4"):
            bad.look(SimpleNamespace(trainer=trainer), "")  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_spike_is_measured_by_the_spread_about_the_median(sign: float) -> None:
    """Of the good losses; the scale and sign of the loss do not matter, and nothing is one before there are enough."""
    bad = BadSteps(TrainingOptions(spike=4.0))
    module: Any = GenerativeModule.__new__(GenerativeModule)
    torch.nn.Module.__init__(module)
    trainer: Any = SimpleNamespace(world_size=1, global_step=0)

    def total(loss: float) -> int:
        module.parts = [{"loss": torch.tensor(loss)}]
        bad.on_before_optimizer_step(trainer, module, None)
        return int(bad.total)

    middle = 10 * sign
    assert total(middle + 50) == 0
    for step in range(60):
        assert total(middle + (step % 5) - 2) == 0  # median: the middle; deviations 0, 1, 1, 2, 2: 1
    assert total(middle + 3.9) == 0
    assert total(middle + 4.1) == 1
    assert total(middle - 50) == 1
    assert total(middle + 4.1) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_step": "skipp"}, "did you mean 'skip'"),
        ({"spike": 0.0}, "spike must be positive or null"),
        ({"bad_steps": 0}, "bad_steps must be positive"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        TrainingOptions(**options)
