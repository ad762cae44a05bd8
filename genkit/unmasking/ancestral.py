"""Ancestral unmasking and its correctors: positions by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import Schedule
from genkit.types import Generator
from genkit.unmasking.base import UNMASKERS, Blind, Denoiser, highest


@UNMASKERS.register("ancestral")
class Ancestral(Blind):
    """A noisy symbol is revealed with probability (alpha' - alpha) / (1 - alpha), each by itself.

    steps: null reveals one symbol a step, in random order. With a uniform source every free symbol counts as noisy,
    and is drawn again from the posterior p(x1 | x_t): the Euler step of discrete flow matching.

    Sahoo et al., https://arxiv.org/abs/2406.07524; Gat et al., https://arxiv.org/abs/2407.15595.
    """

    uniform = True

    def positions(self, noisy: Tensor, alpha: float, target: float, *, generator: Generator = None) -> Tensor:
        chance = torch.rand(noisy.shape, generator=generator, dtype=torch.float64, device=noisy.device)
        if self.steps is None:
            return highest(chance, noisy, torch.ones_like(noisy[:, 0], dtype=torch.long))
        return noisy & (chance < (target - alpha) / (1 - alpha))


class Forgetting(Ancestral):
    """Ancestral steps in which some revealed symbols return to noise, so that early mistakes can be mended.

    A subclass says with which probabilities (reveal, forget) in a step.
    """

    def rates(self, alpha: float, target: float) -> tuple[float, float]:
        raise NotImplementedError

    def __init__(
        self,
        steps: int = 32,
        schedule: Schedule | str = "linear",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(steps, schedule, temperature, top_p)

    def positions(self, noisy: Tensor, alpha: float, target: float, *, generator: Generator = None) -> Tensor:
        chance = torch.rand(noisy.shape, generator=generator, dtype=torch.float64, device=noisy.device)
        return noisy & (chance < self.rates(alpha, target)[0])

    def step(
        self,
        model: Denoiser,
        x: Tensor,
        free: Tensor,
        alpha: float,
        target: float,
        *,
        generator: Generator = None,
    ) -> Tensor:
        chance = torch.rand(free.shape, generator=generator, dtype=torch.float64, device=free.device)
        forgotten = free & (chance < self.rates(alpha, target)[1])
        if model.noise.mask is not None:
            forgotten &= ~model.noise.marks(x)
        x = super().step(model, x, free, alpha, target, generator=generator)
        return torch.where(forgotten, model.noise.draw(x, generator=generator), x)


@UNMASKERS.register("remasking")
class Remasking(Forgetting):
    """A revealed symbol is masked again with probability r = min(rate, (1 - alpha') / alpha).

    A masked one is revealed with (alpha' - (1 - r) alpha) / (1 - alpha), which keeps the share of masks. rate 0 is
    `ancestral`. Wang et al., Remasking Discrete Diffusion Models, https://arxiv.org/abs/2503.00307.
    """

    uniform = False

    def __init__(
        self,
        steps: int = 32,
        rate: float = 0.05,
        schedule: Schedule | str = "linear",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(steps, schedule, temperature, top_p)
        if not 0 <= rate <= 1:
            raise GenkitError(f"remasking: rate must be in [0, 1], not {rate}")
        self.rate = rate

    def rates(self, alpha: float, target: float) -> tuple[float, float]:
        again = min(self.rate, (1 - target) / alpha) if alpha > 0 else 0.0
        return (target - (1 - again) * alpha) / (1 - alpha), again


@UNMASKERS.register("corrector")
class Corrector(Forgetting):
    """Discrete flow matching with corrector steps: the velocity (1 + b) u_forward - b u_backward.

    In a step a noisy symbol is revealed with probability (1 + b) d / (1 - alpha), a revealed one returns to noise
    with b d / alpha, d = alpha' - alpha, both at most 1; the last step reveals everything. strength: b; 0 is
    `ancestral`. Gat et al., Discrete Flow Matching, https://arxiv.org/abs/2407.15595, section 3.2.
    """

    def __init__(
        self,
        steps: int = 32,
        strength: float = 1.0,
        schedule: Schedule | str = "linear",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(steps, schedule, temperature, top_p)
        if strength < 0:
            raise GenkitError(f"corrector: strength must not be negative, not {strength}")
        self.strength = strength

    def rates(self, alpha: float, target: float) -> tuple[float, float]:
        step = target - alpha
        forget = self.strength * step / alpha if alpha > 0 and target < 1 else 0.0
        return min(1.0, (1 + self.strength) * step / (1 - alpha)), min(1.0, forget)
