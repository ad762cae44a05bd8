"""The Lightning module: any objective, its optimizer and schedule, and randomness keyed by the step."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from genkit.errors import GenkitError
from genkit.objectives import Objective
from genkit.randomness import RankGenerator, keyed_generator
from genkit.training.ahead import Prepared
from genkit.training.options import Draws, TrainingOptions
from genkit.types import Batch


class GenerativeModule(L.LightningModule):
    """Trains an objective. All draws of a step come from (seed, "train", step, part, rank), also torch's own."""

    def __init__(
        self, objective: Objective, options: TrainingOptions, *, seed: int = 0, draws: Draws = "rank"
    ) -> None:
        super().__init__()
        self.objective, self.options, self.seed, self.draws = objective, options, seed, draws
        self.first_bad = torch.tensor(-1)  # no buffer: each process keeps its own

    def on_fit_start(self) -> None:
        self.first_bad = self.first_bad.to(self.device)

    def prepare(self, batch: Batch, number: int) -> Prepared:
        """What the step of the number-th batch trains on. It may run in another thread, ahead of the step."""
        step, part = divmod(number, self.options.accumulate)
        key, rank, world = (self.seed, "train", step, part), self.global_rank, self.trainer.world_size
        if self.draws == "global" and world > 1:
            generator: torch.Generator = RankGenerator.keyed(*key, rank=rank, world=world, device=self.device)
        else:
            generator = keyed_generator(*key, rank, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread has a device of its own, and autocast too
        with self.trainer.precision_plugin.forward_context():
            return Prepared(self.objective.prepare(batch, generator=generator), generator)

    def training_step(self, prepared: Prepared, batch_index: int) -> Tensor:
        batch, generator = prepared
        torch.manual_seed(generator.initial_seed())  # dropout
        logs = self.objective.loss(batch, generator=generator)
        loss = logs["loss"]
        newly_bad = (self.first_bad < 0) & ~torch.isfinite(loss.detach())
        self.first_bad = torch.where(newly_bad, self.global_step, self.first_bad)
        together = self.trainer.world_size > 1
        self.log_dict({name: value.detach() for name, value in logs.items()}, sync_dist=together)
        return loss

    @property
    def bad_step(self) -> int:
        """The step at which a loss was not finite, of any process; -1 for none."""
        if self.trainer.world_size > 1:
            return int(self.trainer.strategy.reduce(self.first_bad.float(), reduce_op="max"))
        return int(self.first_bad)

    def check_finite(self, last_good: str) -> None:
        """Raises GenkitError when a loss or a weight is not finite; names the step and the checkpoint `last_good`."""
        step = self.bad_step
        weights = torch.stack(torch._foreach_norm([p.detach() for p in self.objective.parameters()]))
        if step < 0 and bool(torch.isfinite(weights).all()):
            return
        where = (
            f"the loss was not finite at step {step}" if step >= 0 else f"weights at step {self.global_step}"
        )
        raise GenkitError(
            f"training diverged: {where}{'' if step >= 0 else ' are not finite'}; {last_good}. "
            "A lower training.lr or training.clip, or a longer training.warmup, is the usual cure"
        )

    def configure_optimizers(self) -> Any:
        physical = self.options.physical
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": physical.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # fused: one kernel for all tensors, on CPU too
        optimizer = torch.optim.AdamW(
            groups, lr=physical.lr, betas=physical.betas, eps=physical.eps, fused=self.device.type != "mps"
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Under autocast Lightning does not clip for a fused optimizer, since that would undo the scaling of
        the loss by itself; in bfloat16 nothing is scaled."""
        if gradient_clip_val and isinstance(self.trainer.precision_plugin, MixedPrecision):
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_factor(self, step: int) -> float:
        """Linear warm-up, then a cosine down to final_lr; both over samples, as steps of the logical batch."""
        options, kappa = self.options, self.options.physical.kappa
        if step * kappa < options.warmup:
            return min(1.0, (step + 1) * kappa / options.warmup)
        progress = min(1.0, (step * kappa - options.warmup) / max(1, options.steps - options.warmup))
        return options.final_lr + (1 - options.final_lr) * (1 + math.cos(math.pi * progress)) / 2
