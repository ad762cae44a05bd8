"""Nothing is lost: a run stopped anywhere ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import csv
import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genkit.errors import GenkitError, Terminated
from genkit.objectives import OBJECTIVES, Objective
from genkit.objectives.flow_matching import FlowMatching
from genkit.training import TrainerOptions, TrainingOptions, callbacks, fit
from genkit.training.callbacks import AtomicCheckpointIO, CsvLog, StepCheckpoint, StopOnSignal
from genkit.training.fit import Fitted, Loader, slurm
from genkit.training.weights import read_checkpoint
from tests.objectives.models import IMAGES, build, data_of, model_of, model_options, split

CPU = TrainerOptions("cpu")


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """SIGHUP as it is without nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Killed(Exception):
    """Stands for whatever ends a process without a word."""


def train(
    folder: Path,
    *,
    name: str = "flow_matching",
    before: Callable[[int], None] | None = None,
    seed: int = 3,
    made_from: dict[str, str | None] | None = None,
    tensorboard: bool = False,
    **options: Any,
) -> tuple[Objective, Fitted, list[int]]:
    """Twelve steps with dropout, so that torch's own generator has a say; `before` is called at each batch."""
    objective = build(
        name, data_of(name)[0], scale=None, model=model_of(name, depth=2, dropout=0.1), **SPANS[name]
    ).train()
    loss, batches = objective.loss, []

    def watched(batch: Any, **given: Any) -> dict[str, torch.Tensor]:
        if before is not None:
            before(len(batches))
        batches.append(batch.index[0].item())
        return loss(batch, **given)

    objective.loss = watched  # type: ignore[method-assign]
    fitted = fit(
        objective,
        split(objective.spec),
        TrainingOptions(
            **{"steps": 12, "batch_size": 16, "warmup": 2, "checkpoint_every": 4, "log_every": 3, **options}
        ),
        folder,
        seed=seed,
        trainer=CPU,
        made_from=made_from,
        tensorboard=tensorboard,
    )
    return objective, fitted, batches


SPANS: dict[str, dict[str, Any]] = {name: {} for name in OBJECTIVES.names()} | {
    "normalizing_flow": {"spans": 2}
}


def kill_at(batch: int) -> Callable[[int], None]:
    def act(now: int) -> None:
        if now == batch:
            raise Killed

    return act


def interrupt_at(batch: int) -> Callable[[int], None]:
    return lambda now: signal.raise_signal(signal.SIGINT) if now == batch else None


def assert_equal(one: Objective, other: Objective) -> None:
    for (key, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stop", [kill_at(9), interrupt_at(6)], ids=["kill", "interrupt"])
@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_a_resumed_run_ends_as_if_never_stopped(
    name: str, stop: Callable[[int], None], tmp_path: Path
) -> None:
    """The averaged weights, the last ones, the optimizer, and the metrics."""
    whole, _, batches = train(tmp_path / "whole", name=name)
    try:
        _, fitted, _ = train(tmp_path / "parts", name=name, before=stop)
        assert fitted.stopped == signal.SIGINT
    except Killed:
        pass
    at = saved(tmp_path / "parts")["global_step"]
    resumed, fitted, then = train(tmp_path / "parts", name=name)
    assert (at, fitted.steps, fitted.stopped) in ((8, 12, None), (7, 12, None))
    assert then == batches[at:]
    assert_equal(whole, resumed)
    one, other = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(a, other[part][key]) for key, a in one[part].items()), part
    for a, b in zip(*(c["optimizer_states"][0]["state"].values() for c in (one, other)), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    kept = {row["step"]: row for row in rows(tmp_path / "parts")}
    assert len(kept) == len(rows(tmp_path / "parts"))
    for row in rows(tmp_path / "whole"):  # a stop adds the row of its own step
        assert kept[row["step"]] == row


def test_a_resume_is_exact_under_the_rule_for_the_batch_size(tmp_path: Path) -> None:
    """Also in the share of clipped steps, which counts all of them."""
    rule: dict[str, Any] = {"logical_batch": 64, "steps": 3, "warmup": 1, "log_every": 1}
    whole, fitted, _ = train(tmp_path / "whole", **rule)
    assert fitted.steps == 12
    with pytest.raises(Killed):
        train(tmp_path / "parts", before=kill_at(9), **rule)
    resumed, _, _ = train(tmp_path / "parts", **rule)
    assert_equal(whole, resumed)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert 0 < float(rows(tmp_path / "whole")[-1]["clipped"]) < 1


@pytest.mark.parametrize("batch", [5, 6, 16])
@pytest.mark.parametrize("stop", [kill_at, interrupt_at])
def test_accumulated_parts_are_never_split(stop: Callable, batch: int, tmp_path: Path) -> None:
    """Stopped after an even or an odd number of parts, twice, of which the second soon after a resume."""
    whole, _, _ = train(tmp_path / "whole", accumulate=2)
    for at in (batch, 1):
        try:
            train(tmp_path / "parts", accumulate=2, before=stop(at))
        except Killed:
            continue
    resumed, fitted, _ = train(tmp_path / "parts", accumulate=2)
    assert fitted.steps == 12
    assert_equal(whole, resumed)


def test_a_run_that_was_over_gives_the_averaged_weights_again(tmp_path: Path) -> None:
    """Stopped after the last step, before what comes after training."""
    whole, first, _ = train(tmp_path)
    again, fitted, batches = train(tmp_path)
    assert batches == []
    assert (fitted.steps, fitted.stopped) == (12, None)
    assert fitted.seconds == pytest.approx(first.seconds, rel=0.5)
    assert_equal(whole, again)
    last = saved(tmp_path)["current_model_state"]
    assert any(not torch.equal(value, last[f"objective.{key}"]) for key, value in again.state_dict().items())


def test_equal_seeds_give_equal_curves_and_others_do_not(tmp_path: Path) -> None:
    curves = []
    for seed, folder in ((3, "a"), (3, "b"), (4, "c")):
        torch.manual_seed(len(folder) + ord(folder))  # the past of the global generator does not count
        train(tmp_path / folder, seed=seed)
        curves.append(rows(tmp_path / folder))
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]
    assert [row["step"] for row in curves[0]] == ["2", "5", "8", "11"]


def test_rows_that_are_taken_again_are_logged_once(tmp_path: Path) -> None:
    """Killed after step 10 with the checkpoint of step 8: rows of 8 and later come from the second run."""
    with pytest.raises(Killed):
        train(tmp_path, before=kill_at(11))
    assert [row["step"] for row in rows(tmp_path)] == ["2", "5", "8"]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("10,4.5\n11")  # a row that was cut short
    train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["2", "5", "8", "11"]


def test_a_kill_right_after_a_checkpoint_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", log_every=1)
    save = StepCheckpoint.save

    def killed(self: StepCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StepCheckpoint, "save", killed)
        with pytest.raises(Killed):
            train(tmp_path / "parts", log_every=1)
    train(tmp_path / "parts", log_every=1)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_the_seconds_of_all_parts_are_counted(tmp_path: Path) -> None:
    _, fitted, _ = train(tmp_path, before=interrupt_at(5))
    seconds = fitted.seconds
    assert seconds > 0
    assert saved(tmp_path)["callbacks"]["StepCheckpoint"]["seconds"] == seconds
    assert train(tmp_path)[1].seconds > seconds


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(
        GenkitError, match="last.ckpt cannot be read as a checkpoint .*remove it to train from"
    ):
        train(tmp_path)
    assert file.read_bytes() == b"not a checkpoint"


def moments(checkpoint: dict[str, Any], change: Callable[[torch.Tensor], Any]) -> None:
    for state in checkpoint["optimizer_states"][0]["state"].values():
        state["exp_avg"] = change(state["exp_avg"])


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "moments of another shape": lambda c: moments(c, lambda m: torch.zeros(3)),
    "moments of one number": lambda c: moments(c, lambda m: torch.zeros(1).expand(m.shape)),
    "moments that are none": lambda c: moments(c, lambda m: "x"),
    "another learning rate": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"),
    "no groups": lambda c: c["optimizer_states"][0].update(param_groups=[]),
    "no optimizer": lambda c: c["optimizer_states"].clear(),
    "no callbacks": lambda c: c["callbacks"].clear(),
    "no seconds": lambda c: c["callbacks"]["StepCheckpoint"].update(seconds="x"),
    "no weights beside the average": lambda c: c.pop("current_model_state"),
    "no loops": lambda c: c["loops"].clear(),
    "no schedule": lambda c: c["lr_schedulers"].clear(),
    "another schedule": lambda c: c["lr_schedulers"][0].update(last_epoch="x"),
    "a list of weights": lambda c: c.update(state_dict=[1]),
    "no mapping": lambda c: c.update(made_from="x"),
    "no version": lambda c: c.pop("pytorch-lightning_version"),
    "a step that will not be": lambda c: c.update(global_step=10**9),
    "a step before the first": lambda c: c.update(global_step=-1),
    "a step in words": lambda c: c.update(global_step="4"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_checkpoint_of_other_content_is_named(what: str, halfway: Path, tmp_path: Path) -> None:
    """Before anything is computed from it: a fused step with such moments writes beyond them."""
    shutil.copytree(halfway, tmp_path / "run")
    changed = saved(halfway)
    HOSTILE[what](changed)
    torch.save(changed, tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(
        GenkitError, match="last.ckpt cannot be read as a checkpoint .*remove it to train from"
    ):
        train(tmp_path / "run")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halfway")
    with pytest.raises(Killed):
        train(folder, before=kill_at(6))
    return folder


def test_options_of_the_optimizer_are_those_of_the_recipe(halfway: Path, tmp_path: Path) -> None:
    shutil.copytree(halfway, tmp_path / "run")
    changed = saved(halfway)
    for group in changed["optimizer_states"][0]["param_groups"]:
        group |= {"amsgrad": True, "betas": (0.0, "x")}
    torch.save(changed, tmp_path / "run/checkpoints/last.ckpt")
    assert_equal(train(tmp_path / "run")[0], train(tmp_path / "whole")[0])


def test_a_checkpoint_that_could_unpack_to_more_is_refused(halfway: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.ckpt"
    with ZipFile(halfway / "checkpoints/last.ckpt") as parts, ZipFile(path, "w", ZIP_DEFLATED) as small:
        for name in parts.namelist():
            small.writestr(name, parts.read(name))
    with pytest.raises(GenkitError, match="its parts are compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("steps", [12, 20])
def test_a_checkpoint_of_another_model_is_named(steps: int, tmp_path: Path) -> None:
    train(tmp_path)
    other = build("flow_matching", IMAGES, scale=None, model=model_options(width=48, depth=2))
    options = TrainingOptions(steps=steps, batch_size=16)
    with pytest.raises(GenkitError, match="last.ckpt is a checkpoint of another model than the recipe's"):
        fit(other, split(IMAGES), options, tmp_path, trainer=CPU, tensorboard=False)
    assert saved(tmp_path)["global_step"] == 12


def test_after_a_stop_ctrl_c_means_again_what_it_meant(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(tmp_path, before=interrupt_at(2))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", StopOnSignal.signals)
@pytest.mark.parametrize("hook", ["setup", "train_dataloader"])
def test_a_signal_while_the_trainer_is_set_up_ends_the_run(
    hook: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after Lightning takes SIGTERM for itself; the run goes on as if it had never been stopped."""
    whole, _, _ = train(tmp_path / "whole")
    before = [signal.getsignal(each) for each in StopOnSignal.signals]
    act = getattr(Loader, hook)
    with monkeypatch.context() as patch:
        patch.setattr(Loader, hook, lambda *a, **k: (signal.raise_signal(number), act(*a, **k))[1])
        try:
            _, fitted, _ = train(tmp_path / "parts")
            assert fitted.stopped == number
        except Terminated:  # by Lightning, after that step
            assert number == signal.SIGTERM
    assert saved(tmp_path / "parts")["global_step"] == 1
    assert [signal.getsignal(each) for each in StopOnSignal.signals] == before
    resumed, _, _ = train(tmp_path / "parts")
    assert_equal(whole, resumed)


@pytest.mark.parametrize(
    ("first", "second", "ended"),
    [
        (signal.SIGINT, signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, signal.SIGTERM, Terminated),
        (signal.SIGTERM, signal.SIGINT, Terminated),
    ],
)
def test_a_second_signal_ends_the_step_under_way(
    first: int, second: int, ended: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that follows at once: a launcher's and a scheduler's are one. What is left is said as it is."""
    clock = 0.0
    monkeypatch.setattr(StopOnSignal, "clock", staticmethod(lambda: clock))

    def act(later: float) -> Callable[[int], None]:
        def before(batch: int) -> None:
            nonlocal clock
            if batch == 6:
                signal.raise_signal(first)
                clock += later
                signal.raise_signal(second)

        return before

    listening = [signal.getsignal(each) for each in StopOnSignal.signals]
    with pytest.raises(ended, match=r"the last good checkpoint is .*last.ckpt: the same command goes on"):
        train(tmp_path / "later", before=act(5))
    with pytest.raises(ended, match="no checkpoint was written yet: the same command begins again"):
        train(tmp_path / "early", before=act(5), checkpoint_every=100)
    _, fitted, _ = train(tmp_path / "at_once", before=act(1))
    assert [signal.getsignal(each) for each in StopOnSignal.signals] == listening
    assert saved(tmp_path / "later")["global_step"] == 4
    assert fitted.stopped == first
    assert fitted.steps == saved(tmp_path / "at_once")["global_step"] == 7


def test_a_signal_while_processes_agree_ends_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not told the others, and is not forgotten."""
    agreed = callbacks.largest
    now = iter(range(100))

    def late(*given: Any) -> float:
        found = agreed(*given)
        if next(now) == 2:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(callbacks, "largest", late)
    _, fitted, _ = train(tmp_path, checkpoint_every=100)
    assert fitted.stopped == signal.SIGTERM
    assert fitted.steps == saved(tmp_path)["global_step"] == 4


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, fitted, _ = train(tmp_path, before=lambda batch: signal.raise_signal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (fitted.stopped, fitted.steps) == (None, 12)


def test_lightning_requeues_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints are of the middle of a step, and would be gone on from before ours."""
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setattr("shutil.which", lambda _: "srun")
    (environment,) = slurm()
    assert not environment.auto_requeue
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    assert slurm() == []
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("")
    with pytest.raises(
        GenkitError, match=r"hpc_ckpt_1.ckpt is a checkpoint of Lightning's requeueing.*remove it"
    ):
        train(tmp_path)


def test_a_signal_that_follows_one_to_another_process_is_the_first_here() -> None:
    stop = StopOnSignal(Path("last.ckpt"))
    with stop:
        stop.received = signal.SIGTERM  # as agreed at the end of a step
        signal.raise_signal(signal.SIGINT)
    assert stop.received == signal.SIGTERM


# --- what a checkpoint holds, when one is written, and which are kept -----------------------------------


def test_a_checkpoint_holds_all_that_a_run_goes_on_with(tmp_path: Path) -> None:
    """Last and averaged weights, moments, the schedule, the step that keys all draws, and what they were made from."""
    objective, _, _ = train(tmp_path, made_from={"teacher": "ab", "data": "cd"}, steps=12)
    held = saved(tmp_path)
    assert held["global_step"] == held["lr_schedulers"][0]["last_epoch"] == 12
    names = {f"objective.{name}" for name in objective.state_dict()}
    assert set(held["state_dict"]) == set(held["current_model_state"]) == names
    moments = held["optimizer_states"][0]["state"]
    assert len(moments) == len(list(objective.parameters()))
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in moments.values())
    assert held["made_from"] == {"teacher": "ab", "data": "cd"}


@pytest.mark.parametrize("what", ["teacher", "data"])
def test_a_resume_with_another_teacher_or_data_is_an_error(what: str, tmp_path: Path) -> None:
    made_from = {"teacher": "ab", "data": "cd"}
    with pytest.raises(Killed):
        train(tmp_path, made_from=made_from, before=kill_at(6))
    with pytest.raises(GenkitError, match=f"last.ckpt was trained with another {what}: go on with"):
        train(tmp_path, made_from=made_from | {what: "xx"})
    _, fitted, _ = train(tmp_path, made_from=made_from)
    assert fitted.steps == 12


def steps_of_checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def watched(self: Any, checkpoint: dict[str, Any], *given: Any, **options: Any) -> None:
        found.append(checkpoint["global_step"])
        save(self, checkpoint, *given, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", watched)
    return found


def test_checkpoints_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that runs half a minute a look: once a step, once at the start and once a checkpoint."""
    now = iter(range(0, 10_000, 30))
    monkeypatch.setattr(StepCheckpoint, "clock", staticmethod(lambda: next(now)))
    found = steps_of_checkpoints(monkeypatch)
    train(tmp_path, checkpoint_minutes=2.0, checkpoint_every=100)
    assert found == [4, 8, 12]


def test_the_checkpoint_of_the_lowest_mean_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over the steps since the checkpoint before; a kill between the two files loses nothing."""
    losses = torch.tensor([3.0, 2.0, 1.0, 0.5, 1.5, 0.0, 9.0, 9.0, 0.6, 0.6, 7.0, 7.0])  # 2.5 .75 .75 9 .6 7
    calls = iter(range(100))
    loss = FlowMatching.loss

    def given(self: Objective, *args: Any, **options: Any) -> dict[str, torch.Tensor]:
        return {"loss": loss(self, *args, **options)["loss"] * 0 + losses[next(calls)]}

    monkeypatch.setattr(FlowMatching, "loss", given)
    options: dict[str, Any] = {"checkpoint_every": 2, "checkpoint_best": "loss", "log_every": 1}
    path = tmp_path / "checkpoints" / "best.ckpt"
    train(tmp_path, checkpoint_every=2, checkpoint_best="loss", log_every=1)
    best = torch.load(path, weights_only=True)
    assert best["global_step"] == 10
    assert best["callbacks"]["StepCheckpoint"]["mean"] == pytest.approx(0.6)
    assert saved(tmp_path)["global_step"] == 12
    shutil.copy(path, tmp_path / "checkpoints" / "last.ckpt")
    path.unlink()
    calls = iter(range(10, 100))
    train(tmp_path, checkpoint_every=2, checkpoint_best="loss", log_every=1)
    assert torch.load(path, weights_only=True)["global_step"] == 10

    # a checkpoint of a stop is judged by none, and what it has seen counts for the next: 0.0 alone was lowest
    calls = iter(range(100))
    train(tmp_path / "stopped", before=interrupt_at(4), **options)
    train(tmp_path / "stopped", **options)
    assert torch.load(tmp_path / "stopped/checkpoints/best.ckpt", weights_only=True)["global_step"] == 10

    # the last is the best, and a kill came between the two files
    losses, calls = losses.flip(0), iter(range(100))
    losses[-2:] = 0.1
    with monkeypatch.context() as patch:
        keep = StepCheckpoint.keep
        patch.setattr(
            StepCheckpoint, "keep", lambda self, step, writes: keep(self, step, writes and step < 12)
        )
        train(tmp_path / "killed", **options)
    path = tmp_path / "killed/checkpoints/best.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] < 12
    train(tmp_path / "killed", **options)
    assert torch.load(path, weights_only=True)["global_step"] == 12


def test_the_best_of_a_value_that_is_not_logged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="checkpoint_best: .*'los'.*did you mean 'loss'"):
        train(tmp_path, checkpoint_best="los")


# --- a full disk --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for three checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_the_run_stops_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    whole, _, _ = train(tmp_path / "whole")
    path = small_disk / "checkpoints" / "last.ckpt"

    def fill(now: int) -> None:
        if now == 6:
            with suppress(OSError), (small_disk / "other").open("wb") as file:
                while file.write(bytes(4096)):
                    file.flush()

    with pytest.raises(
        GenkitError,
        match="cannot write .*last.ckpt: No space left on device; the last good checkpoint is .*last.ckpt: the same",
    ):
        train(small_disk, before=fill)
    assert saved(small_disk)["global_step"] == 4
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    (small_disk / "other").unlink()
    resumed, _, batches = train(small_disk)
    assert len(batches) == 8
    assert_equal(whole, resumed)


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """Also after a stop and a resume."""
    train(tmp_path, tensorboard=True, log_every=1, before=interrupt_at(5))
    train(tmp_path, tensorboard=True, log_every=1)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = [(int(row["step"]), pytest.approx(float(row["loss"]))) for row in rows(tmp_path)]
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == expected


def test_what_tensorboard_cannot_write_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(GenkitError, match=f"cannot write in {tmp_path}: No space left on device"):
        train(tmp_path, tensorboard=True, log_every=1)
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_of_a_plug_in_is_no_failed_write(tmp_path: Path) -> None:
    def gone(*_: Any) -> None:
        raise ConnectionResetError("the server has gone")

    with pytest.raises(ConnectionResetError, match="^the server has gone$"):
        train(tmp_path, log_every=1, before=gone)


def test_a_log_of_a_run_that_was_removed_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    log = CsvLog(run / "metrics.csv")
    log.log_metrics({"loss": 1.0}, 0)
    shutil.rmtree(run)
    with pytest.raises(GenkitError, match=f"^cannot write {log.path}: No such file"):
        log.log_metrics({"loss": 1.0}, 1)
    assert not run.exists()
