"""Trains an objective on a split, with everything that a run folder keeps."""

from __future__ import annotations

import copy
import errno
import itertools
import logging
import os
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from genkit.backbone import Transformer
from genkit.data.base import KeyedBatches, Split
from genkit.errors import GenkitError, choose, too_large
from genkit.memory import check_memory
from genkit.objectives import OBJECTIVES, Objective
from genkit.processes import lost, rank, world
from genkit.training.ahead import Ahead, Prepared
from genkit.training.bad_steps import BadSteps
from genkit.training.callbacks import (
    EMA,
    AtomicCheckpointIO,
    Clipping,
    CsvLog,
    Report,
    StepCheckpoint,
    StopOnSignal,
    Watch,
)
from genkit.training.fsdp import FullySharded
from genkit.training.machine import device_name
from genkit.training.module import GenerativeModule
from genkit.training.options import TrainerOptions, TrainingOptions
from genkit.training.weights import (
    REMOVE,
    check_snapshots,
    goes_on,
    read_checkpoint,
    readable,
    unreadable,
    weights_of,
)

# Why a file cannot be written to that was opened; other errors without a file's name are not of one.
UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@dataclass
class Fitted:
    """How training ended: steps taken, seconds over all resumes, those of the objective's setup (of the last resume),
    on what device, the signal that ended it, and how many steps were bad and how often it went back."""

    steps: int
    seconds: float
    setup_seconds: float
    device: str
    processes: int
    stopped: int | None
    bad_steps: int
    rollbacks: int


class Loader(L.LightningDataModule):
    """The batches of the steps that are left; small sets are moved to the device once, as a whole."""

    def __init__(self, split: Split, options: TrainingOptions, seed: int) -> None:
        super().__init__()
        self.split, self.options, self.seed = split, options, seed

    def train_dataloader(self) -> DataLoader[Prepared]:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, GenerativeModule)
        parts, device = self.options.accumulate, self.trainer.strategy.root_device
        check_batch(module.objective, self.options, device, self.trainer.world_size)
        batches = KeyedBatches(
            self.split.to(device),
            self.options.batch_size // parts,
            seed=self.seed,
            start=self.trainer.global_step * parts,
            stop=self.options.physical.steps * parts,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            attempt=module.attempt,
        )
        return DataLoader(Ahead(batches, module.prepare, beside=device.type != "cpu"), batch_size=None)


def fit(
    objective: Objective,
    split: Split,
    options: TrainingOptions,
    folder: Path,
    *,
    seed: int = 0,
    trainer: TrainerOptions | None = None,
    teacher: Any = None,
    made_from: Mapping[str, str | None] | None = None,
    report: Report | None = None,
    tensorboard: bool = True,
) -> Fitted:
    """Trains for the steps of options.physical, going on from `folder`/checkpoints/last.ckpt where there is one.

    made_from: what the checkpoint is kept with, and must have been made from: hashes of the teacher, the data, ...
    The objective is set up on the device that trains (on the CPU where devices share its weights), and ends on the CPU,
    with the averaged weights of the last checkpoint. Raises GenkitError for a loss that is not finite, a trainer that
    cannot be had, and a checkpoint that cannot be read, is of another model, or was made from something else.
    """
    trainer, identity = trainer or TrainerOptions(), dict(made_from or {})
    device = check_training(objective, options, trainer)
    for left in folder.glob("hpc_ckpt_*"):  # Lightning would go on from there
        raise GenkitError(
            f"{left} is a checkpoint of Lightning's requeueing, in the middle of a step: remove it"
        )
    if trainer.sharded:  # one device may not hold all of the weights
        device = torch.device("cpu")
    begun = time.perf_counter()
    split = split.to(device)
    if teacher is not None:
        teacher.to(device)
    objective.to(device).setup(split, teacher)
    setup_seconds = time.perf_counter() - begun
    last = folder / "checkpoints" / "last.ckpt"
    saved = resumed(last, options.physical.steps)
    # each further attempt goes back to the last checkpoint
    for attempt in itertools.count(of_bad_steps(saved, "attempt")):
        check_made_from(last, saved.get("made_from", identity), identity)
        start = int(saved.get("global_step", 0))
        check_snapshots(folder, options.snapshots, start)
        trained = copy.deepcopy(objective) if trainer.sharded else objective
        module = GenerativeModule(
            trained, options, seed=seed, draws=trainer.draws, attempt=attempt, made_from=identity
        )
        bad, stop = BadSteps(options, attempt), StopOnSignal(last)
        checkpoint = StepCheckpoint(last, options, bad)
        log = CsvLog(folder / "metrics.csv", every=options.log_every, start=start)
        callbacks = [checkpoint, bad, stop, log, Watch(checkpoint, report, options.log_every)]
        if options.ema:
            callbacks.append(EMA(options.physical.ema, options.physical.kappa))
        if options.clip and options.logical_batch:
            callbacks.append(Clipping(options.clip))
        logger = TensorBoardLogger(folder, "tensorboard", "", purge_step=start) if tensorboard else False
        lightning = build_trainer(trainer, options, folder, callbacks, logger)
        with explained(last, options, lightning.world_size), stop:
            if start < options.physical.steps:
                loader = Loader(split, options, seed)
                with economies(trained.backbone, options), told_once():
                    lightning.fit(module, loader, ckpt_path=str(last) if saved else None, weights_only=True)
            else:
                checkpoint.load_state_dict(saved["callbacks"]["StepCheckpoint"])
                checkpoint.keep(start, rank() == 0)  # a kill may have come between
            saved = read_checkpoint(last)
            if not bad.roll_back or stop.received is not None:
                objective.cpu().load_state_dict(weights_of(saved))
                break
    return Fitted(
        steps=int(saved["global_step"]),
        seconds=saved["callbacks"]["StepCheckpoint"]["seconds"],
        setup_seconds=setup_seconds,
        device=device_name(lightning.strategy.root_device),
        processes=lightning.world_size,
        stopped=stop.received,
        bad_steps=of_bad_steps(saved, "total"),
        rollbacks=of_bad_steps(saved, "attempt"),
    )


def check_batch(objective: Objective, options: TrainingOptions, device: torch.device, world: int) -> None:
    """Raises GenkitError for a batch that cannot fit: what enters each layer of the backbone, which is the least that
    is kept for the backward pass, is more than is free."""
    rows = options.batch_size // (options.accumulate * world)
    values = rows * objective.tokens.length * objective.model.width * objective.model.depth
    check_memory(
        f"training: batch_size {options.batch_size}: {rows} rows at a time, between layers alone,",
        values * (2 if options.precision == "bf16" else 4),
        device,
        "take fewer, or raise accumulate",
    )


def resumed(path: Path, steps: int) -> dict[str, Any]:
    """The checkpoint to go on from, empty where there is none. Raises GenkitError for one that cannot be read, or is of
    no training of so many steps."""
    if not path.exists():
        return {}
    with readable(path, REMOVE):
        saved = read_checkpoint(path)
        step, (schedule,), (_,) = (saved[key] for key in ("global_step", "lr_schedulers", "optimizer_states"))
        if not 0 <= step <= steps or schedule["last_epoch"] != step:
            raise ValueError(f"its step {step} is none of {steps}, or not that of its schedule")
        float(saved["callbacks"]["StepCheckpoint"]["seconds"])
        of_bad_steps(saved, "attempt")
        dict(saved.get("made_from", {}))
        return saved


@contextmanager
def economies(backbone: Transformer, options: TrainingOptions) -> Iterator[None]:
    """The backbone in less memory or time, as the options say, and again as it was."""
    backbone.recompute = options.activation_checkpointing
    if options.compile is not None:
        backbone.compile(backend=options.compile)
    try:
        yield
    finally:
        backbone.recompute = False
        backbone._compiled_call_impl = None


@contextmanager
def told_once() -> Iterator[None]:
    """What TensorBoard's writing thread cannot write is raised where it is given the next row, and not told else."""
    hook = threading.excepthook
    threading.excepthook = lambda failed: None if isinstance(failed.exc_value, OSError) else hook(failed)
    try:
        yield
    finally:
        threading.excepthook = hook


def build_trainer(
    trainer: TrainerOptions,
    options: TrainingOptions,
    folder: Path,
    callbacks: list[L.Callback],
    logger: Any = False,
) -> L.Trainer:
    """Raises GenkitError for a trainer that cannot be had."""
    quiet()
    try:
        built = L.Trainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            strategy=FullySharded() if trainer.sharded else trainer.strategy,
            num_nodes=trainer.num_nodes,
            precision="bf16-mixed" if options.precision == "bf16" else "32-true",
            max_steps=options.physical.steps,
            max_epochs=-1,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.clip,
            log_every_n_steps=options.log_every,
            callbacks=callbacks,
            logger=logger,
            plugins=[AtomicCheckpointIO(), *slurm()],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise GenkitError(f"trainer: {error}") from error
    if world() not in (1, built.world_size):  # each would train for itself, in one folder
        raise GenkitError(
            f"trainer: {world()} processes were started, and devices x num_nodes is {built.world_size}: set "
            "trainer.strategy=ddp and trainer.devices to the number of processes of a machine"
        )
    if built.world_size > options.batch_size:  # it would wait for them first
        raise GenkitError(
            f"trainer: devices x num_nodes is {built.world_size}, and a batch has {options.batch_size} rows"
        )
    if (
        trainer.num_nodes > 1 and world() == 1 and "NODE_RANK" not in os.environ
    ):  # it would wait for the others
        raise GenkitError(
            f"trainer: num_nodes is {trainer.num_nodes}, and this process was started alone: start it on all of them "
            "with torchrun or srun, or by hand with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        )
    return built


def slurm() -> list[SLURMEnvironment]:
    """SLURM's processes, where Lightning would find them, without its requeueing at SIGUSR1, which saves in the middle
    of a step, and goes on from there unasked."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def check_training(objective: Objective, options: TrainingOptions, trainer: TrainerOptions) -> torch.device:
    """The device that trains. Raises GenkitError for a trainer that cannot be had, and for options that do not go
    together."""
    check_sharded(trainer)
    if options.compile is not None:
        backends = torch.compiler.list_backends(exclude_tags=())
        if options.compile not in backends:
            raise GenkitError(f"training: compile: {choose(options.compile, backends, 'backend')}")
    if objective.second_order and (trainer.sharded or options.compile is not None):
        what, cure = ("trainer: strategy fsdp", "ddp") if trainer.sharded else ("training: compile", "null")
        raise GenkitError(
            f"{what} is not for the objective '{OBJECTIVES.name_of(objective)}', which differentiates a gradient: "
            f"take {cure}"
        )
    return build_trainer(trainer, options, Path(), []).strategy.root_device


def check_sharded(trainer: TrainerOptions) -> None:
    """Raises GenkitError where processes are to share the weights without GPUs."""
    if trainer.sharded and (trainer.accelerator == "cpu" or not torch.cuda.is_available()):
        raise GenkitError("trainer: strategy fsdp needs GPUs: take ddp, or auto")


def of_bad_steps(saved: Mapping[str, Any], name: str) -> int:
    """A count of the callback BadSteps in a checkpoint, 0 in one that has none."""
    return int(saved.get("callbacks", {}).get("BadSteps", {}).get(name, 0))


def check_made_from(path: Path, held: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
    """Raises GenkitError, which names what is another, for a checkpoint that was made from something else."""
    for what in now:
        if held.get(what) != now[what]:
            raise GenkitError(
                f"{path} was trained with another {what}: go on with the same one, or choose another --out"
            )


@contextmanager
def explained(last: Path, options: TrainingOptions, processes: int) -> Iterator[None]:
    """Errors of torch's in training whose cause is known are raised as a GenkitError that says it."""
    try:
        yield
    except GenkitError:
        raise
    except Exception as error:
        if (cause := cause_of(error, last, options, processes)) is None:
            raise
        raise GenkitError(cause) from error


def cause_of(error: Exception, last: Path, options: TrainingOptions, processes: int) -> str | None:
    text = str(error)
    if isinstance(error, OSError) and error.filename is None and error.errno in UNWRITTEN:
        return f"cannot write in {last.parent.parent}: {error.strerror or error}"
    if "Error(s) in loading state_dict" in text:
        return f"{last} is a checkpoint of another model than the recipe's: {text}"
    if options.compile is not None and isinstance(
        error, (ImportError, torch._dynamo.exc.TorchDynamoException)
    ):
        return f"training: compile: the backend '{options.compile}' failed: {' '.join(text.splitlines()[:2])}"
    if processes > 1 and lost(error):
        return (
            f"another of the {processes} processes ended ({text.split('. ')[0]}); {goes_on(last)}, also with another "
            "number of devices"
        )
    if restoring(error) and not too_large(error):
        return f"{unreadable(last, error)}{REMOVE}"
    return None


def restoring(error: BaseException) -> bool:
    """Whether it was raised where Lightning takes up what a checkpoint holds, which is before any training."""
    places = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        place.co_filename == checkpoint_connector.__file__
        and place.co_name.startswith(("restore", "resume", "_restore"))
        for place in places
    )


def quiet() -> None:
    """Lightning's remarks about hardware and loaders do not help a reader of progress bars."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
