"""What happens beside the training step: averaged weights, checkpoints, the metrics file, Ctrl-C, progress."""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn.utils import get_total_norm

from genkit.errors import GenkitError, choose, stopped_by
from genkit.files import ending, link_atomically, write_atomically
from genkit.processes import rank
from genkit.tensors import write_tensors
from genkit.training.bad_steps import BadSteps, largest
from genkit.training.fsdp import whole
from genkit.training.module import GenerativeModule
from genkit.training.options import TrainingOptions
from genkit.training.weights import check_optimizer, goes_on, last_good, read_checkpoint, snapshot, weights_of

Report = Callable[[int, int, float], None]  # step, steps, loss


class EMA(Callback):
    """Averages of the weights w, which a checkpoint has as its `state_dict`, beside the weights themselves.

        average <- d average + (1 - d) w,  d = min(decay, ((1 + kappa n) / (10 + kappa n))^kappa) at update n,

    and w itself at n = 0: the warm-up of batches of which kappa make one of these. Where processes share the weights,
    each averages its part. (Lightning's weight averaging copies the module, which a sharded one does not allow.)
    """

    def __init__(self, decay: float, kappa: float = 1.0) -> None:
        self.decay, self.kappa = decay, kappa
        self.averages: list[Tensor] = []  # as the module's parameters

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.averages = self.averages or copied(pl_module)
        # read where the weights were read, perhaps on another device
        weights = pl_module.parameters()
        self.averages = [a.to(w.device) for a, w in zip(self.averages, weights, strict=True)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if ends_step(pl_module, *batch):
            self.update(list(pl_module.parameters()), trainer.global_step - 1)

    @torch.no_grad()
    def update(self, weights: list[Tensor], n: int) -> None:
        seen = self.kappa * n
        keep = min(self.decay, ((1 + seen) / (10 + seen)) ** self.kappa) if n else 0.0
        torch._foreach_lerp_(self.averages, weights, 1 - keep)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        weights = checkpoint["current_model_state"] = checkpoint["state_dict"]
        averages = checkpoint["state_dict"] = dict(weights)
        for (name, _), average in zip(pl_module.named_parameters(), self.averages, strict=True):
            average = whole(average)  # one at a time, and with all processes
            if trainer.is_global_zero:
                averages[name] = average.cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        self.averages = copied(pl_module)  # the weights of `state_dict`, which it has just taken
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(pl_module, checkpoint["current_model_state"], options=options)


def copied(module: LightningModule) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


class Clipping(Callback):
    """Logs `clipped`: the share of all steps so far whose gradient's norm was above `clip`."""

    def __init__(self, clip: float) -> None:
        self.clip = clip
        self.count: Tensor | int = 0  # on the device: nothing waits for it

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.count = self.count + (whole(get_total_norm(grads)) > self.clip)
        pl_module.log("clipped", self.count / (trainer.global_step + 1))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file, syncs, and renames: the last good checkpoint survives a crash or a full disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


def ends_step(module: LightningModule, outputs: Any, batch: Any, batch_index: int) -> bool:
    """Whether a batch is the last part of its optimizer step."""
    assert isinstance(module, GenerativeModule)
    return (batch_index + 1) % module.options.accumulate == 0


class StepCheckpoint(Checkpoint):
    """`checkpoints/last.ckpt` when it is due, at the end and at a stop: always whole steps, finite weights.

    A signal (Ctrl-C) lets the step under way finish. Also keeps the seconds of training, over resumes, and beside it
    `best.ckpt`, that of the lowest mean of a logged value over `checkpoint_every` steps, at which end, or at the last
    step, it is judged: not at other checkpoints. All processes go by one clock.
    The weights of snapshots are those of checkpoints of their steps.
    """

    clock = staticmethod(time.monotonic)  # in seconds

    def __init__(self, path: Path, options: TrainingOptions, bad: BadSteps) -> None:
        self.path, self.best, self.options, self.bad = path, path.with_name("best.ckpt"), options, bad
        self.saved_step: int | None = None
        self.seconds, self._since, self._saved = 0.0, 0.0, 0.0
        self.sum: Tensor | float = 0.0  # of the logged values that are not judged yet, on the device
        self.count = 0
        self.mean: float | None = None  # of a checkpoint that is judged by it
        self.lowest: float | None = None  # of the best checkpoint, once it was read

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            check_optimizer(optimizer, self.path)
        self._since, self._saved = time.perf_counter(), self.clock()
        if self.options.on_bad_step == "rollback" and not self.path.exists():
            self.save(trainer)
        self.keep(trainer.global_step, trainer.is_global_zero)  # a kill may have come between

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if not ends_step(pl_module, *batch) or trainer.global_step == self.saved_step or self.bad.roll_back:
            return
        if self.options.checkpoint_best is not None:
            found = trainer.callback_metrics
            if self.options.checkpoint_best not in found:
                raise GenkitError(
                    f"training: checkpoint_best: {choose(self.options.checkpoint_best, found, 'logged value')}"
                )
            self.sum, self.count = self.sum + found[self.options.checkpoint_best], self.count + 1
        if not self.due(trainer):
            return
        assert isinstance(pl_module, GenerativeModule)
        self.bad.look(pl_module, last_good(self.path), weights=True)
        if not self.bad.roll_back:
            self.save(trainer)
            self.keep(trainer.global_step, trainer.is_global_zero)

    def due(self, trainer: Trainer) -> bool:
        step, minutes = trainer.global_step, self.options.checkpoint_minutes
        if step % self.options.checkpoint_every == 0 or step == trainer.max_steps or trainer.should_stop:
            return True
        if step in self.options.snapshots:
            return True
        return minutes is not None and largest(trainer, self.clock() - self._saved) >= 60 * minutes

    def save(self, trainer: Trainer) -> None:
        judged = (
            trainer.global_step % self.options.checkpoint_every == 0
            or trainer.global_step == trainer.max_steps
        )
        self.mean = float(self.sum / self.count) if judged and self.count else None
        if judged:
            self.sum, self.count = 0.0, 0
        try:
            trainer.save_checkpoint(self.path)
        except GenkitError as error:
            raise GenkitError(f"{error}; {goes_on(self.path)}") from error
        self.saved_step, self._saved = trainer.global_step, self.clock()

    def keep(self, step: int, writes: bool) -> None:
        """What is kept of the last checkpoint, that of `step`, for good. Only the process that writes does it."""
        if not writes:
            return
        if self.mean is not None and self.options.checkpoint_best is not None:
            if self.lowest is None:
                self.lowest = self.mean_of_best()
            if self.mean < self.lowest:
                link_atomically(self.path, self.best)
                self.lowest = self.mean
        if step in self.options.snapshots:
            path = snapshot(self.path.parent.parent, step)
            write_tensors(path, weights_of(read_checkpoint(self.path)), {"step": step})

    def mean_of_best(self) -> float:
        """The mean before the best checkpoint; infinite where there is none."""
        try:
            return float(read_checkpoint(self.best)["callbacks"]["StepCheckpoint"]["mean"])
        except (GenkitError, KeyError, TypeError):
            return math.inf

    def state_dict(self) -> dict[str, Any]:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        return {"seconds": self.seconds, "mean": self.mean, "sum": float(self.sum), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.mean = state_dict["seconds"], state_dict.get("mean")
        self.sum, self.count = state_dict.get("sum", 0.0), state_dict.get("count", 0)


class Watch(Callback):
    """Every `every` steps: looks for bad steps, and tells `report(step, steps, loss)`."""

    def __init__(self, checkpoint: StepCheckpoint, report: Report | None, every: int) -> None:
        self.checkpoint, self.report, self.every = checkpoint, report, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        step = trainer.global_step
        if (step % self.every and step != trainer.max_steps) or not ends_step(pl_module, *batch):
            return
        assert isinstance(pl_module, GenerativeModule)
        self.checkpoint.bad.look(pl_module, last_good(self.checkpoint.path))
        if self.report is not None:
            self.report(step, trainer.max_steps, float(trainer.callback_metrics["loss"]))


class StopOnSignal(Callback):
    """Around Lightning's fit: the first Ctrl-C, SIGTERM, SIGUSR1 (a scheduler's warning) or SIGHUP (a terminal that is
    closed) ends training after the step under way, with a checkpoint; a further one ends it at once, as
    KeyboardInterrupt or Terminated. Then they mean again what they meant. Under nohup SIGHUP stays ignored.

    Signals within `apart` seconds of the first are that one: schedulers and launchers send theirs more than once.
    `received` is the first signal, None for none, and the same in all processes.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    apart = 3.0
    clock = staticmethod(time.monotonic)  # in seconds

    def __init__(self, path: Path) -> None:
        self.path = path  # of the last checkpoint
        self.received: int | None = None
        self._told: float | None = None  # when; here, not in another process
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._previous = self._listen()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, SystemExit) and self.received is not None:
            raise stopped_by(self.received, goes_on(self.path))

    def _listen(self) -> dict[int, Any]:
        """Returns what listened before."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [number for number in self.signals if not (nohup and number == signal.SIGHUP)]
        return {number: signal.signal(number, self._stop) for number in heard}

    def _stop(self, signum: int, frame: Any) -> None:
        if self._told is None:
            self._told, self.received = self.clock(), self.received or signum
        elif self.clock() - self._told > self.apart:
            raise SystemExit  # of KeyboardInterrupt Lightning makes status 1, and leaves Ctrl-C without effect

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()  # in the place of Lightning's handler, which would end it without a checkpoint

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if not ends_step(pl_module, *batch):
            return
        # of any process: one that stopped alone would leave the others waiting. One that comes meanwhile is of the next
        if agreed := int(largest(trainer, self.received or 0)):
            self.received, trainer.should_stop = agreed, True


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv: a killed run may have left a part of its last one.

    Raises GenkitError for a file that is none.
    """
    try:
        with ending(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise GenkitError(f"{path} cannot be read: {error}; remove it") from None
    return [row for row in rows if (row.get("step") or "").isdecimal() and None not in (*row, *row.values())]


class CsvLog(Callback):
    """`metrics.csv`: a row for each logged step. Rows of steps that a resumed run takes again are dropped.

    No logger of Lightning's, which write after a step's checkpoint: a kill between the two would lose a row.
    """

    def __init__(self, path: Path, *, every: int = 1, start: int = 0) -> None:
        self.path, self.every, self.fields = path, every, ["step", "loss"]
        kept: list[dict[str, str]] = []
        if path.exists():
            kept = [row for row in read_rows(path) if int(row["step"]) < start]
            self.fields = list(kept[0]) if kept else self.fields
        if rank() == 0:
            self._write(kept, "w")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items() if name != "epoch"}}
        new = [name for name in row if name not in self.fields]
        if new:
            earlier: list[Any] = read_rows(self.path)
            self.fields += new
            self._write([*earlier, row], "w")
        else:
            self._write([row], "a")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        step = trainer.global_step
        if ends_step(pl_module, *batch) and (step % self.every == 0 or trainer.should_stop):
            self.log_metrics(trainer.logged_metrics, step - 1)

    def _write(self, rows: list[Any], mode: str) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.fields, restval="")
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)
        if mode == "w":  # as a whole: a kill here must not lose the rows of hours
            write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))
            return
        try:
            with self.path.open("a", newline="") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise GenkitError(f"cannot write {self.path}: {error.strerror or error}") from error
