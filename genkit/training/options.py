"""Options of the `training` and `trainer` sections of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from genkit.errors import GenkitError, choose

Draws = Literal["rank", "global"]
BAD_STEP = ("stop", "skip", "rollback")


class Physical(NamedTuple):
    """What the optimizer steps that are really taken go by; see `TrainingOptions.physical`."""

    kappa: float
    steps: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    ema: float


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained for how long, and how the optimizer goes.

    steps: optimizer steps. batch_size: samples of an optimizer step, over all devices and accumulated parts.
    logical_batch: the batch that steps, warmup, lr, betas, eps, weight_decay and ema are meant for, where it is
        not batch_size; they are then turned into those of batch_size, for the same trajectory over the same
        samples (see `physical`). Null for no such change.
    lr, betas, eps, weight_decay: of AdamW; weight decay acts on matrices only.
    warmup: steps over which the learning rate rises linearly to lr; then it falls as a cosine to
        final_lr * lr at the last step.
    clip: largest norm of the gradient; null for none.
    ema: decay of the averaged weights d, warmed up as min(d, (1 + n) / (10 + n)) at update n; 0 for none.
    precision: float32, or bf16 autocast around the network.
    accumulate: parts in which a batch is computed; couplings that plan within a batch, such as `ot`, then plan within
        a part, which makes other pairs.
    activation_checkpointing: the backbone's layers are run again for the backward pass, in less memory.
    compile: a backend of torch.compile for the backbone, such as inductor; null for none.
    checkpoint_every, log_every: optimizer steps that are really taken.
    checkpoint_minutes: a checkpoint also after so much time; null for none.
    checkpoint_best: a logged value, such as loss: checkpoints/best.ckpt keeps the checkpoint whose mean of it, over
        the checkpoint_every steps before, was lowest; null for none.
    on_bad_step: what is done about a step whose loss is not finite, or a spike. `stop` ends the run; `skip` leaves the
        weights as they were (also where the gradient is not finite); `rollback` goes back to the last checkpoint and
        on with other batches and draws, so that all that makes checkpoints, a stop too, then has a say in the result.
    spike: a loss that is more than so many median absolute deviations above the median of the last 100 is one;
        null for none.
    bad_steps: after so many skipped steps in a row, or rollbacks, the run stops.
    snapshots: those after which the averaged weights are kept for good, as snapshots/step_N.safetensors: guides for
        `autoguidance`.
    """

    steps: int = 2000
    batch_size: int = 128
    logical_batch: int | None = None
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    warmup: int = 100
    final_lr: float = 0.01
    clip: float | None = 1.0
    ema: float = 0.999
    precision: Literal["float32", "bf16"] = "float32"
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: str | None = None
    checkpoint_every: int = 500
    log_every: int = 20
    checkpoint_minutes: float | None = None
    checkpoint_best: str | None = None
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    spike: float | None = None
    bad_steps: int = 10
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "lr",
            "eps",
            "accumulate",
            "checkpoint_every",
            "log_every",
            "bad_steps",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise GenkitError(f"training: {name} must be positive, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "final_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenkitError(f"training: {name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise GenkitError(f"training: ema must be in [0, 1), not {self.ema}")
        for name in ("clip", "spike", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise GenkitError(f"training: {name} must be positive or null, not {value}")
        if self.on_bad_step not in BAD_STEP:
            raise GenkitError(f"training: {choose(self.on_bad_step, BAD_STEP, 'on_bad_step')}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise GenkitError(f"training: betas must be two numbers in [0, 1), not {self.betas}")
        if self.precision not in ("float32", "bf16"):
            raise GenkitError(f"training: precision must be 'float32' or 'bf16', not {self.precision!r}")
        if self.batch_size % self.accumulate:
            raise GenkitError(
                f"training: batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.logical_batch is not None:
            self._check_physical(self.logical_batch)
        last, steps = self.physical.steps, tuple(self.snapshots)
        if len(set(steps)) < len(steps) or not all(0 < step < last for step in steps):
            raise GenkitError(
                f"training: snapshots must be different steps from 1 to {last - 1}, not {list(steps)}"
            )

    def _check_physical(self, logical_batch: int) -> None:
        if not 0 < logical_batch < math.inf:
            raise GenkitError(f"training: logical_batch must be positive or null, not {logical_batch}")
        physical = self.physical
        if not physical.steps:
            raise GenkitError(
                f"training: {self.steps} steps of logical_batch {logical_batch} are less than one of "
                f"batch_size {self.batch_size}"
            )
        for name, value in (("betas", max(physical.betas)), ("ema", physical.ema)):
            if value > 1 - 2**-24:  # 1 in float32
                raise GenkitError(
                    f"training: {name} to the power of batch_size / logical_batch = {physical.kappa:g} are 1: "
                    "a smaller logical_batch is needed"
                )

    @property
    def physical(self) -> Physical:
        """The options for a batch of B = batch_size that follow the trajectory of B_0 = logical_batch.

            kappa = B / B_0,  steps = steps_0 / kappa (rounded),  lr = lr_0 sqrt(kappa),  beta_i = beta_i0^kappa,
            eps = eps_0 / sqrt(kappa),  weight_decay = weight_decay_0 sqrt(kappa),  ema = ema_0^kappa

        Where noise outweighs the mean of a gradient, AdamW follows a stochastic differential equation in time
        kappa * step, and these leave it as it is (Malladi et al., https://arxiv.org/abs/2205.10287, who write
        1 - kappa (1 - beta) for beta^kappa; powers as in https://arxiv.org/abs/2602.21472). Weight decay is
        multiplied by lr, and so decays by a factor that goes with kappa. Averages forget by the sample
        (Busbridge et al., https://arxiv.org/abs/2307.13813), and all schedules count samples, as kappa * step.

        It holds while a step is small: up to a critical batch, beyond which the noise no longer outweighs the
        mean (it is smallest at the start of a run), and while 1 / (1 - beta_i0), the memory in steps of the
        logical batch, is many times kappa. Clipping breaks it where it acts, since the norm of a gradient's
        noise goes with 1 / sqrt(B): with logical_batch set, metrics.csv has the share of steps that were
        `clipped`.
        """
        kappa = 1.0 if self.logical_batch is None else self.batch_size / self.logical_batch
        root = math.sqrt(kappa)
        first, second = self.betas
        return Physical(
            kappa=kappa,
            steps=round(self.steps / kappa),
            lr=self.lr * root,
            betas=(first**kappa, second**kappa),
            eps=self.eps / root,
            weight_decay=self.weight_decay * root,
            ema=self.ema**kappa,
        )


@dataclass(frozen=True)
class TrainerOptions:
    """Where training runs, in Lightning's words.

    The global batch and its rows are the same for any number of devices.

    draws: `rank`, each device draws noise of its own; `global`, each draws for the whole batch and takes its part, so
        that a run does not depend on the number of devices, but for rounding (dropout excepted). Couplings see their
        part of the batch; with `scope: global`, all of it.
    strategy: `ddp`, each device has all weights (`ddp_find_unused_parameters_true` where a step uses a part of them);
        `fsdp`, each has a part of every tensor, for models that one GPU does not hold.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | str = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = "auto"
    num_nodes: int = 1
    draws: Draws = "rank"

    @property
    def sharded(self) -> bool:
        """Whether devices share the weights, each with its part."""
        return self.strategy == "fsdp"
