"""Steps that go wrong: a loss that is not finite or far above the last ones, and what is done about it."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from genkit.errors import GenkitError
from genkit.training.fsdp import whole
from genkit.training.module import GenerativeModule
from genkit.training.options import TrainingOptions

WINDOW, ENOUGH = 100, 20  # good losses that a spike is measured by: the last so many, once there are enough


class BadSteps(Callback):
    """Tells bad steps, the same in all processes, without waiting for the device until `look` is called.

    A step is bad when its loss is not finite (to skip it, also its gradient's norm), or a spike, for the good losses l:

        loss > median(l) + spike * median|l - median(l)|

    which needs no scale and no sign of the loss. A step that is skipped leaves weights, moments and their count as they
    were: the fused AdamW is told so on the device. `attempt` counts how often the run went back to a checkpoint.
    """

    def __init__(self, options: TrainingOptions, attempt: int = 0) -> None:
        self.options, self.mode, self.attempt = options, options.on_bad_step, attempt
        self.roll_back = False  # asked for by `look`
        self.first = torch.tensor(torch.inf)  # of the bad steps
        self.total, self.in_a_row = torch.tensor(0), torch.tensor(0)
        self.good = torch.full((WINDOW,), torch.nan)
        self.count = torch.tensor(0)  # of good losses, where spikes are looked for

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("first", "total", "in_a_row", "good", "count"):
            setattr(self, name, getattr(self, name).to(pl_module.device))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, GenerativeModule)
        loss = pl_module.loss_of_step()
        if trainer.world_size > 1 and (self.mode == "skip" or self.options.spike is not None):
            # the mean, as of the gradients: all tell alike what is bad. Else `look` asks all what each has seen
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        bad = ~loss.isfinite()
        if self.options.spike is not None:
            median = middle(self.good, self.count)
            spread = middle((self.good - median).abs(), self.count)
            bad = bad | ((self.count >= ENOUGH) & (loss > median + self.options.spike * spread))
        if self.mode == "skip":
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            bad = bad | ~whole(get_total_norm(grads)).isfinite()
            optimizer.found_inf = bad.float()
        self.first = torch.where(bad, self.first.clamp(max=trainer.global_step), self.first)
        self.total, self.in_a_row = self.total + bad, (self.in_a_row + 1) * bad
        if self.options.spike is not None:
            place = torch.arange(WINDOW, device=bad.device) == self.count % WINDOW
            self.good = torch.where(place & ~bad, loss.to(self.good), self.good)
            self.count = self.count + ~bad
        if self.mode == "skip":
            pl_module.log("bad_steps", self.total.float())
        elif self.mode == "rollback":
            pl_module.log("rollbacks", float(self.attempt))

    def look(self, module: GenerativeModule, last_good: str, *, weights: bool = False) -> None:
        """Asks to go back, or raises GenkitError, when there were bad steps (also when `weights` are not finite).

        last_good: what the error says of the last checkpoint.
        """
        if self.mode == "skip":
            row = int(self.in_a_row)
            if row >= self.options.bad_steps:
                raise self.error(
                    f"the last {row} steps were bad (the loss or its gradient not finite, or a spike)",
                    last_good,
                )
            what = None
        else:
            what = self.wrong(-largest(module.trainer, -float(self.first)))
        if what is None and weights and not module.finite():
            what = f"weights at step {module.global_step} are not finite"
        if what is None:
            return
        if self.mode == "rollback" and self.attempt < self.options.bad_steps:
            self.roll_back = module.trainer.should_stop = True
            return
        again = f", after going back {self.attempt} times" if self.attempt else ""
        raise self.error(what + again, last_good)

    def wrong(self, step: float) -> str | None:
        if step == math.inf:
            return None
        spike = "" if self.options.spike is None else ", or a spike,"
        return f"the loss was not finite{spike} at step {step:.0f}"

    @staticmethod
    def error(what: str, last_good: str) -> GenkitError:
        return GenkitError(
            f"training diverged: {what}; {last_good}. "
            "A lower training.lr or training.clip, or a longer training.warmup, is the usual cure"
        )

    def state_dict(self) -> dict[str, Any]:
        held: dict[str, Tensor | int] = {
            "attempt": self.attempt,
            "total": self.total,
            "in_a_row": self.in_a_row,
        }
        return {**held, "good": self.good, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.in_a_row = state_dict["total"], state_dict["in_a_row"]
        self.good, self.count = state_dict["good"], state_dict["count"]


def middle(values: Tensor, count: Tensor) -> Tensor:
    """The median of the first `count` values in order, as NaN are the last. Nothing waits for it."""
    place = (count.clamp(1, len(values)) - 1) // 2
    return values.sort().values.gather(0, place[None])[0]


def largest(trainer: Trainer, value: float) -> float:
    """The largest of all processes' values, of which each must ask for it."""
    if trainer.world_size == 1:
        return value
    values = torch.tensor(float(value), device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(values, reduce_op="max"))
