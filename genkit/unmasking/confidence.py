"""Positions by how sure the model is: the most probable first, the clearest margin, the lowest entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import Schedule
from genkit.unmasking.base import UNMASKERS, Denoiser, Looking, Stepwise


@UNMASKERS.register("confidence")
class Confidence(Looking):
    """The k positions whose best value is the most probable, k by the schedule.

    noise: Gumbel noise of this scale times 1 - alpha is added to the log-probability, against too greedy an order.
    Positions are chosen before values are drawn (MaskGIT ranks by the drawn value, which is biased also at one
    symbol a step). Chang et al., MaskGIT, https://arxiv.org/abs/2202.04200.
    """

    def __init__(
        self,
        steps: int | None = 32,
        noise: float = 0.0,
        schedule: Schedule | str = "linear",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(steps, schedule, temperature, top_p)
        if not 0 <= noise < math.inf:
            raise GenkitError(f"confidence: noise must not be negative, not {noise}")
        self.noise = noise

    def score(self, log_p: Tensor, alpha: float, chance: Tensor) -> Tensor:
        best = log_p.amax(-1)
        if self.noise == 0:
            return best
        return best - self.noise * (1 - alpha) * (-chance.clamp(min=1e-300).log()).log()


@UNMASKERS.register("margin")
class Margin(Looking):
    """The k positions with the largest difference between the two best probabilities.

    Kim et al., Train for the Worst, Plan for the Best, https://arxiv.org/abs/2502.06768.
    """

    def score(self, log_p: Tensor, alpha: float, chance: Tensor) -> Tensor:
        best = log_p.exp().topk(min(2, log_p.shape[-1]), dim=-1).values
        return best[..., 0] - best[..., -1] if best.shape[-1] > 1 else best[..., 0]


@UNMASKERS.register("entropy")
class EntropyBounded(Stepwise):
    """As many symbols a step as an error bound allows, the surest first; as many steps as that takes.

    In order of entropy H, the largest set with sum H - max H <= bound (nats), at least one symbol. The bound limits the
    mutual information that drawing them as if independent neglects.
    Ben-Hamu et al., Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking,
    https://arxiv.org/abs/2505.24857.
    """

    def __init__(self, bound: float = 0.5, temperature: float = 1.0, top_p: float = 1.0) -> None:
        super().__init__(temperature, top_p)
        if not 0 <= bound < math.inf:
            raise GenkitError(f"entropy: bound must not be negative, not {bound}")
        self.bound = bound

    def step(self, model: Denoiser, x: Tensor, free: Tensor, alpha: float, target: float) -> Tensor:
        noisy = free & model.noise.marks(x)
        rows = noisy.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return x
        revealed = 1 - noisy[rows].sum(1) / free[rows].sum(1)  # rows go at their own pace
        logits = model.logits(revealed, x, rows)
        log_p = logits.double().log_softmax(-1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)
        ordered, order = entropy.masked_fill(~noisy[rows], math.inf).sort(dim=1, stable=True)
        before = ordered.cumsum(1) - ordered  # sum H - max H of the first so many, since they are in order
        picked = torch.zeros_like(noisy[rows]).scatter(1, order, before <= self.bound) & noisy[rows]
        return model.put(x, rows, picked, logits)
