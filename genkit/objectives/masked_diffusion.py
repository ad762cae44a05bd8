"""Masked diffusion: symbols are masked one by one, and the network fills them in.

    t ~ times,  x_t: each symbol of x1 kept with probability alpha_t, else masked
    loss = E alpha'_t / (1 - alpha_t) sum over masked i of -log p(x1_i | x_t)          (a bound of -log p(x1))
    sample: all masks, revealed by an unmasker

Masks get no probability (zero masking) and revealed symbols stay (carry-over), both by construction. The bound does
not depend on the schedule where that reaches 0 and 1, and the best network does not depend on time.

Sahoo et al., Simple and Effective Masked Diffusion Language Models, https://arxiv.org/abs/2406.07524; Shi et al.,
Simplified and Generalized Masked Diffusion for Discrete Data, https://arxiv.org/abs/2406.04329; Ou et al., Your
Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data,
https://arxiv.org/abs/2406.03736.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.backbone import ModelOptions
from genkit.errors import GenkitError
from genkit.objectives.base import OBJECTIVES
from genkit.objectives.discrete import Diffused
from genkit.paths import Schedule, Times
from genkit.types import Batch, DataSpec, Generator


@OBJECTIVES.register("masked_diffusion")
class MaskedDiffusion(Diffused):
    """Absorbing-state diffusion in continuous time (MDLM).

    schedule: of alpha, the share of unmasked symbols. times: how t is drawn; one that is not uniform weighs the loss.
    time: whether the network is told alpha; the best one does not need it.
    complementary: half of the batch's rows, each with a mask and with its complement (of weight alpha' / alpha): less
        variance at the same cost. It needs a schedule that reaches 0 and 1.
    """

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        schedule: Schedule | str = "linear",
        times: Times | str = "low_discrepancy",
        time: bool = False,
        complementary: bool = False,
        conditional: bool = True,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(
            spec,
            model,
            schedule=schedule,
            times=times,
            time=time,
            conditional=conditional,
            label_dropout=label_dropout,
        )
        if complementary and self.schedule.ends != (0.0, 1.0):
            raise GenkitError(
                f"masked_diffusion: complementary masks need a schedule from 0 to 1, such as linear or cosine; "
                f"this one goes from {self.schedule.ends[0]:.3g} to {self.schedule.ends[1]:.3g}"
            )
        self.complementary = complementary

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        x, y = batch.read, batch.y
        if self.complementary:
            half = (len(x) + 1) // 2
            x, y = x[:half], None if y is None else y[:half]
        y = self.drop_label(y, generator=generator)
        t = self.draw_times(len(x), generator=generator)
        alpha, rate = self.schedule.alpha(t), self.schedule.d_alpha(t)
        x_t, noisy = self.corrupt(x, alpha, generator=generator)
        if self.complementary:
            other = ~noisy & ~self.given(x)
            x_t = torch.cat((x_t, x.masked_fill(other, self.mask)))
            alpha, rate = torch.cat((alpha, 1 - alpha)), torch.cat((rate, rate))
            x, noisy = torch.cat((x, x)), torch.cat((noisy, other))
            y = None if y is None else torch.cat((y, y))
        x_t = self.drop_prompt(x, x_t, generator=generator)
        return {"loss": self.per_symbol(rate * self.cost(x, x_t, noisy, alpha, y), x)}
