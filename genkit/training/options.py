"""Options of the `training` and `trainer` sections of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from genkit.errors import GenkitError


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained for how long, and how the optimizer goes.

    steps: optimizer steps. batch_size: samples of an optimizer step, over all devices and accumulated parts.
    lr, betas, weight_decay: of AdamW; weight decay acts on matrices only.
    warmup: steps over which the learning rate rises linearly to lr; then it falls as a cosine to
        final_lr * lr at the last step.
    clip: largest norm of the gradient; null for none.
    ema: decay of the averaged weights d, warmed up as min(d, (1 + n) / (10 + n)) at update n; 0 for none.
    precision: float32, or bf16 autocast around the network.
    accumulate: parts in which a batch is computed.
    checkpoint_every, log_every: steps.
    """

    steps: int = 2000
    batch_size: int = 128
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    warmup: int = 100
    final_lr: float = 0.01
    clip: float | None = 1.0
    ema: float = 0.999
    precision: Literal["float32", "bf16"] = "float32"
    accumulate: int = 1
    checkpoint_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "accumulate", "checkpoint_every", "log_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise GenkitError(f"training: {name} must be positive, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "final_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GenkitError(f"training: {name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise GenkitError(f"training: ema must be in [0, 1), not {self.ema}")
        if self.clip is not None and not self.clip > 0:
            raise GenkitError(f"training: clip must be positive or null, not {self.clip}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise GenkitError(f"training: betas must be two numbers in [0, 1), not {self.betas}")
        if self.precision not in ("float32", "bf16"):
            raise GenkitError(f"training: precision must be 'float32' or 'bf16', not {self.precision!r}")
        if self.batch_size % self.accumulate:
            raise GenkitError(
                f"training: batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )


@dataclass(frozen=True)
class TrainerOptions:
    """Where training runs, in Lightning's words.

    The global batch and its rows are the same for any number of devices; each device draws noise of its own,
    and couples within its part of the batch.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1
