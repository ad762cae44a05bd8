"""Weights that processes share, each with its part of every tensor (fully sharded data parallel, FSDP2).

Parameters, gradients, moments and averages are split along their first axis; a layer of the backbone is gathered when
it runs, and again for its backward pass (Zhao et al., PyTorch FSDP, https://arxiv.org/abs/2304.11277). Checkpoints hold
whole tensors, so that a run goes on with any number of processes, sharded or not.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import init_device_mesh
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from genkit.objectives import Objective


class FullySharded(ModelParallelStrategy):
    """Lightning's, with whole tensors in checkpoints."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Before the first step, torch makes the moments by a step that changes nothing, and counts it."""
        fresh = not optimizer.state
        state = super().optimizer_state(optimizer)
        if not fresh:
            return state
        for moments in optimizer.state.values():
            moments["step"].zero_()
        return super().optimizer_state(optimizer)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Whoever wrote it: the moments are those of the weights at the same places of the optimizer's groups.
        Lightning takes the numbers that stand for them for places in the model, which other strategies do not mean."""
        saved: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, saved["state_dict"], options=options)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, saved["optimizer_states"], strict=True):
            groups = state["param_groups"]
            held = [names[p] for group in optimizer.param_groups for p in group["params"]]
            kept = [number for group in groups for number in group["params"]]
            name_of = dict(zip(kept, held, strict=True))
            moments = {name_of[number]: value for number, value in state["state"].items()}
            named = [group | {"params": [name_of[number] for number in group["params"]]} for group in groups]
            by_name: Any = {"state": moments, "param_groups": named}
            set_optimizer_state_dict(self.model, optimizer, by_name, options=options)
        return saved


def shard(objective: Objective, device: torch.device, world: int) -> None:
    """Leaves this process its part of the weights, on its device: layer by layer, so that it never holds all."""
    mesh = init_device_mesh(device.type, (world,))
    for layer in objective.backbone.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "loss")


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which processes may hold parts, in each of them; all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
