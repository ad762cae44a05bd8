"""Positions from left to right: one symbol a step, or block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import streams
from genkit.types import Generator
from genkit.unmasking.base import (
    UNMASKERS,
    Alpha,
    Denoiser,
    Noise,
    Predict,
    Stepwise,
    Unmasked,
    Unmasker,
    highest,
)


@UNMASKERS.register("left_to_right")
class LeftToRight(Stepwise):
    """One symbol a step, from the first to the last: how autoregressive models are sampled."""

    def step(self, model: Denoiser, x: Tensor, free: Tensor, alpha: float, target: float) -> Tensor:
        noisy = free & model.noise.marks(x)
        rows = noisy.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return x
        place = -torch.arange(x.shape[1], dtype=torch.float64, device=x.device).expand(len(rows), -1)
        first = highest(place, noisy[rows], torch.ones_like(rows))
        return model.put(x, rows, first, model.logits(alpha, x, rows))


@UNMASKERS.register("blockwise")
class Blockwise(Unmasker):
    """Semi-autoregressive: blocks of positions from left to right, each unmasked by another method.

    steps: of all blocks together (null: one symbol a step), at least one each, of which those of a block that is given
    are not taken; what `within` says of temperature and top_p counts. block: positions of a block. within: the method
    inside a block.
    Arriola et al., Block Diffusion, https://arxiv.org/abs/2503.09573; Nie et al., LLaDA, https://arxiv.org/abs/2502.09992.
    """

    def __init__(
        self, steps: int | None = 32, block: int = 16, within: Unmasker | str = "confidence"
    ) -> None:
        self.within = UNMASKERS.build(within)
        super().__init__(self.within.temperature, self.within.top_p)
        if block < 1 or (steps is not None and steps < 1):
            raise GenkitError(f"blockwise: block and steps must be at least 1, not {block} and {steps}")
        self.within.paced(steps)
        self.steps, self.block = steps, block

    def paced(self, steps: int | None) -> Unmasker:
        return Blockwise(steps, self.block, self.within)

    def sample(
        self, predict: Predict, x: Tensor, free: Tensor, noise: Noise, *, generator: Generator = None
    ) -> Unmasked:
        self.check(noise)
        place = torch.arange(x.shape[1], device=x.device) // self.block
        blocks = [free & (place == k) for k in place.unique().tolist()]
        count = len(blocks)
        own = [None] * count if generator is None else streams(generator, count)
        nfe, passes = 0, 0.0
        before = torch.zeros(len(x), device=x.device)  # of each row, the share that is revealed
        for k, part in enumerate(blocks):
            if not bool(part.any()):
                continue
            share = part.sum(1) / free.sum(1).clamp(min=1)
            steps = self.steps and max(1, (k + 1) * self.steps // count - k * self.steps // count)
            within = self.within.paced(steps)

            def of_all(
                alpha: Alpha, x: Tensor, rows: Tensor, before: Tensor = before, share: Tensor = share
            ) -> Tensor:
                return predict(before[rows] + alpha * share[rows], x, rows)

            done = within.sample(of_all, x, part, noise, generator=own[k])
            x, nfe, passes, before = done.x, nfe + done.nfe, passes + done.passes, before + share
        return Unmasked(x, nfe, passes)
