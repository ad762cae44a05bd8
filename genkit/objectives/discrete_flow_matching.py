"""Discrete flow matching: the mixture path between a source of symbols and the data.

    x_t: each symbol is x1's with probability alpha_t, else the source's (a mask, or a uniform symbol)
    p(x1 | x_t) by a network;  velocity u(z, x_t) = alpha' / (1 - alpha) (p(x1 = z | x_t) - [z = x_t])

The network gives the prediction p^ of a symbol from the others; what x_t itself says of x1 is known and multiplied in:
p(z | x_t) ~ p^(z) q(x_t | z). For masks that is carry-over, and bound and samplers are those of `masked_diffusion`.
For a uniform source over K symbols q(x | z) = alpha [x = z] + (1 - alpha) / K, and with m(x) = sum_z p^(z) q(x | z)

    -log p(x1) <= int 1 / (alpha K) sum over symbols and over z != x_t of  r^ - r + r log(r / r^)  d alpha
    r = q(z | x1) / q(x_t | x1),  r^ = m(z) / m(x_t)

the bound of the reversed noising process, which an exact model reaches. (That of the velocity above is a bound too,
but not tight: its process is not the Markov one. For uniform data it is (1 - 1/K) (1 + ln K), not ln K.)

Gat et al., Discrete Flow Matching, https://arxiv.org/abs/2407.15595; Shaul et al., Flow Matching with General
Discrete Paths, https://arxiv.org/abs/2412.03487; Schiff et al., Simple Guidance Mechanisms for Discrete Diffusion
Models, https://arxiv.org/abs/2412.10193 (the bound for uniform noise).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genkit.backbone import ModelOptions
from genkit.errors import GenkitError
from genkit.objectives.base import OBJECTIVES
from genkit.objectives.discrete import TINY, Diffused
from genkit.paths import Schedule, Times
from genkit.types import Batch, DataSpec, Generator
from genkit.unmasking import Noise


@OBJECTIVES.register("discrete_flow_matching")
class DiscreteFlowMatching(Diffused):
    """Discrete flow matching from masks or from uniform symbols.

    source: of what symbols come from. schedule: of alpha; with a uniform source it must reach 0 and 1.
    weighting: the loss is the `bound`, or the plain `cross_entropy` of the paper.
    time: whether the network is told alpha; null: where the source is uniform, since x_t does not show it.
    """

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        source: Literal["mask", "uniform"] = "mask",
        schedule: Schedule | str = "linear",
        weighting: Literal["bound", "cross_entropy"] = "bound",
        times: Times | str = "low_discrepancy",
        time: bool | None = None,
        conditional: bool = True,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(
            spec,
            model,
            schedule=schedule,
            times=times,
            time=source == "uniform" if time is None else time,
            conditional=conditional,
            label_dropout=label_dropout,
        )
        self.uniform, self.weighting = source == "uniform", weighting
        if self.uniform and self.schedule.ends != (0.0, 1.0):
            raise GenkitError(
                "discrete_flow_matching: a uniform source needs a schedule from 0 to 1, such as linear or cosine"
            )

    def noise(self) -> Noise:
        return Noise(self.alphabet, None if self.uniform else self.mask)

    def predict(self, alpha: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """Logits of p(x1 | x_t): those of the network, plus the log-likelihood of x_t given each value."""
        logits = self.logits(x, alpha, y)
        if not self.uniform:
            return logits
        odds = alpha / (1 - alpha).clamp(min=TINY) * len(self.alphabet)
        log_ratio = torch.log1p(odds)  # of q(x_t | x_t) to q(x_t | z), z another symbol
        gain = log_ratio.expand(len(x))[:, None, None].to(logits.dtype)
        own = x[..., None].clamp(max=self.vocabulary - 1)
        return logits.scatter_add(-1, own, gain.expand(*x.shape, 1))

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        x = batch.read
        y = self.drop_label(batch.y, generator=generator)
        t = self.draw_times(len(x), generator=generator)
        alpha = self.schedule.alpha(t)
        x_t, noisy = self.corrupt(x, alpha, generator=generator)
        x_t = self.drop_prompt(x, x_t, generator=generator)
        if self.weighting == "bound":
            nats = self.schedule.d_alpha(t) * self.cost(x, x_t, noisy, alpha, y)
        else:
            asked = ~self.given(x) if self.uniform else noisy
            nats = (self.surprise(x, x_t, alpha, y) * asked).sum(1)
        return {"loss": self.per_symbol(nats, x)}

    def cost(self, x: Tensor, x_t: Tensor, noisy: Tensor, alpha: Tensor, y: Tensor | None) -> Tensor:
        if not self.uniform:
            return super().cost(x, x_t, noisy, alpha, y)
        size, alpha = len(self.alphabet), alpha[:, None].clamp(TINY, 1 - TINY)
        other = (1 - alpha) / size  # q of a symbol that is not x1
        same, q1 = x_t == x, alpha + other
        q = torch.where(same, q1, other)
        m = alpha[..., None] * self.logits(x_t, alpha[:, 0], y).softmax(-1) + other[..., None]
        log_m = m.log().masked_fill(~self.modelled, 0.0)
        seen = x_t.clamp(max=self.vocabulary - 1)  # a mask stands for a hidden prompt, which is not counted
        log_right, log_own = (log_m.gather(-1, symbols[..., None])[..., 0] for symbols in (x, seen))
        log_q = torch.where(same, 0.0, q1 * q1.log()) + (size - 2 + same.to(q.dtype)) * other * other.log()
        cross = other * (log_m.sum(-1) - log_own) + torch.where(same, 0.0, alpha * log_right)
        gap = (-log_own).exp() - 1 / q + (log_q - cross + (1 - q) * (log_own - q.log())) / q
        return (gap / (alpha * size)).masked_fill(self.given(x), 0.0).sum(1)
