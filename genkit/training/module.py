"""The Lightning module: any objective, its optimizer and schedule, and randomness keyed by the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.nn.utils import get_total_norm

from genkit.errors import GenkitError
from genkit.objectives import Objective
from genkit.randomness import RankGenerator, keyed_generator
from genkit.training.ahead import Prepared
from genkit.training.fsdp import FullySharded, shard, whole
from genkit.training.options import Draws, TrainingOptions
from genkit.types import Batch


class GenerativeModule(L.LightningModule):
    """Trains an objective. All draws of a step come from (seed, "train", step, part, rank), also torch's own.

    attempt: above 0 for a run that went back to a checkpoint; it is then part of that key. made_from: kept in
    checkpoints.
    """

    def __init__(
        self,
        objective: Objective,
        options: TrainingOptions,
        *,
        seed: int = 0,
        draws: Draws = "rank",
        attempt: int = 0,
        made_from: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.options, self.seed, self.draws = objective, options, seed, draws
        self.attempt, self.made_from = attempt, dict(made_from or {})
        self.parts: list[dict[str, Tensor]] = []  # what the step under way logs of each

    def prepare(self, batch: Batch, number: int) -> Prepared:
        """What the step of the number-th batch trains on. It may run in another thread, ahead of the step."""
        step, part = divmod(number, self.options.accumulate)
        key: tuple[Any, ...] = (self.seed, "train", step, part)
        if self.attempt:
            key = (*key, "attempt", self.attempt)
        rank, world = self.global_rank, self.trainer.world_size
        if self.draws == "global" and world > 1:
            generator: torch.Generator = RankGenerator.keyed(*key, rank=rank, world=world, device=self.device)
        else:
            generator = keyed_generator(*key, rank, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread has a device of its own, and autocast too
        with self.trainer.precision_plugin.forward_context():
            return Prepared(self.objective.prepare(batch, generator=generator), generator)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FullySharded):
            shard(self.objective, self.trainer.strategy.root_device, self.trainer.world_size)

    def training_step(self, prepared: Prepared, batch_index: int) -> Tensor:
        batch, generator = prepared
        torch.manual_seed(keyed_generator(generator.initial_seed(), "torch").initial_seed())  # of dropout
        logs = self.objective.loss(batch, generator=generator)
        self.parts.append({name: value.detach() for name, value in logs.items()})
        if len(self.parts) == self.options.accumulate:
            self.log_dict(self.means(), sync_dist=self.trainer.world_size > 1)
        return logs["loss"]

    def means(self) -> dict[str, Tensor]:
        """Over the parts of the step under way, in this process."""
        return {name: torch.stack([part[name] for part in self.parts]).mean() for name in self.parts[0]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["made_from"] = self.made_from

    def loss_of_step(self) -> Tensor:
        """The mean of this process's losses, when all parts are there; the next step begins."""
        loss = self.means()["loss"]
        self.parts.clear()
        return loss

    def finite(self) -> bool:
        """Whether all weights are."""
        weights = [p.detach() for p in self.objective.parameters()]
        return bool(whole(get_total_norm(weights)).isfinite())

    def configure_optimizers(self) -> Any:
        physical = self.options.physical
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": physical.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self.device.type != "mps"  # one kernel for all tensors, on CPU too
        if self.options.on_bad_step == "skip" and not fused:
            raise GenkitError("training: on_bad_step 'skip' is not for mps; 'stop' and 'rollback' are")
        optimizer = torch.optim.AdamW(
            groups, lr=physical.lr, betas=physical.betas, eps=physical.eps, fused=fused
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
