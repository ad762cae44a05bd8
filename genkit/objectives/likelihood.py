"""The likelihood of a flow: the state goes along with the change of its log-density.

    dx/dt = f(t, x),   dl/dt = -div f(t, x),   log p(x1) = log p0(x0) + l(1) - l(0)

Chen et al., Neural Ordinary Differential Equations, https://arxiv.org/abs/1806.07366; Grathwohl et al., FFJORD,
https://arxiv.org/abs/1810.01367.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from genkit.backbone import twice_differentiable
from genkit.errors import GenkitError
from genkit.types import Generator, LogProb

Divergence = Literal["auto", "exact", "hutchinson"]
EXACT_DIMS = 16  # up to here the exact divergence is the default


def estimate(values: Tensor) -> LogProb:
    """The mean of estimates (B, probes), with its standard error where there are several."""
    stderr = values.std(1) / values.shape[1] ** 0.5 if values.shape[1] > 1 else None
    return LogProb(values.mean(1), "estimate", stderr)


def with_divergence(
    field: Callable[[Tensor, Tensor], Tensor],
    like: Tensor,
    *,
    divergence: Divergence = "auto",
    probes: int = 2,
    generator: Generator = None,
    differentiable: bool = False,
) -> tuple[
    Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]
]:
    """The field of (x, l) with dl/dt = -div f, packed as (B, D + P), and how to pack and unpack.

    Hutchinson: div f ~ e . (df/dx) e with Rademacher probes e, fixed along the trajectory, one column of l each.
    differentiable: keep the graph, for gradients of l (second derivatives of the field).
    """
    if probes < 1:
        raise GenkitError(f"the number of probes must be at least 1, not {probes}")
    shape, dims = like.shape, like[0].numel()
    if divergence == "auto":
        divergence = "exact" if dims <= EXACT_DIMS else "hutchinson"
    if divergence == "exact":
        directions = torch.eye(dims, dtype=like.dtype, device=like.device)[:, None].expand(-1, shape[0], -1)
    else:
        signs = torch.rand(probes, shape[0], dims, dtype=like.dtype, device=like.device, generator=generator)
        directions = (signs < 0.5).to(like.dtype) * 2 - 1

    def augmented(t: Tensor, packed: Tensor) -> Tensor:
        with torch.enable_grad(), twice_differentiable() if differentiable else nullcontext():
            x = packed[:, :dims]
            x = x if x.requires_grad else x.requires_grad_()
            v = field(t, x.reshape(shape)).flatten(1)
            products = [
                (torch.autograd.grad(v, x, e, retain_graph=True, create_graph=differentiable)[0] * e).sum(1)
                for e in directions
            ]
        div = torch.stack(products, dim=1)
        if divergence == "exact":
            div = div.sum(1, keepdim=True)
        out = torch.cat((v, -div), dim=1)
        return out if differentiable else out.detach()

    columns = 1 if divergence == "exact" else probes

    def pack(x: Tensor) -> Tensor:
        return torch.cat((x.flatten(1), x.new_zeros(len(x), columns)), dim=1)

    def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
        return packed[:, :dims].reshape(shape), packed[:, dims:]

    return augmented, pack, unpack
