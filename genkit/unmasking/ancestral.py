"""Ancestral unmasking and its correctors: positions by chance."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import Schedule
from genkit.types import Generator
from genkit.unmasking.base import UNMASKERS, Blind, Denoiser, Noise, Unmasker, highest, uniform


@UNMASKERS.register("ancestral")
class Ancestral(Blind):
    """A noisy symbol is revealed with probability (alpha' - alpha) / (1 - alpha), each by itself.

    steps: null reveals one mask a step, in random order. With a uniform source every free symbol counts as noisy,
    and is drawn again from the posterior p(x1 | x_t): the Euler step of discrete flow matching.

    Sahoo et al., https://arxiv.org/abs/2406.07524; Gat et al., https://arxiv.org/abs/2407.15595.
    """

    uniform = True

    def check(self, noise: Noise) -> None:
        super().check(noise)
        if noise.mask is None and self.steps is None:
            raise GenkitError(
                "one symbol a step (steps: null) is for masks, and this model's noise is uniform symbols: "
                "give a number of steps"
            )

    def positions(self, noisy: Tensor, alpha: float, target: float, *, generator: Generator = None) -> Tensor:
        chance = uniform(noisy, generator=generator)
        if self.steps is None:
            return highest(chance, noisy, torch.ones_like(noisy[:, 0], dtype=torch.long))
        return noisy & (chance < (target - alpha) / (1 - alpha))


class Forgetting(Ancestral):
    """Ancestral steps in which some revealed symbols return to noise, so that early mistakes can be mended.

    With the probability f that a revealed one is forgotten in a step, which a subclass gives, a noisy one is revealed
    with (alpha' - (1 - f) alpha) / (1 - alpha): the share of revealed symbols is alpha's, as without forgetting.
    """

    @abc.abstractmethod
    def forget(self, alpha: float, target: float) -> float:
        """The probability f of a step from alpha > 0 to target; at most (1 - target) / alpha of it counts."""

    def forgotten(self, alpha: float, target: float) -> float:
        return min(self.forget(alpha, target), (1 - target) / alpha) if alpha > 0 else 0.0

    def __init__(
        self,
        steps: int = 32,
        schedule: Schedule | str = "linear",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(steps, schedule, temperature, top_p)

    def paced(self, steps: int | None) -> Unmasker:
        if steps is None:
            raise GenkitError(
                f"{type(self).__name__} needs a number of steps: one symbol a step forgets none"
            )
        return super().paced(steps)

    def positions(self, noisy: Tensor, alpha: float, target: float, *, generator: Generator = None) -> Tensor:
        chance = uniform(noisy, generator=generator)
        kept = 1 - self.forgotten(alpha, target)
        return noisy & (chance < (target - kept * alpha) / (1 - alpha))

    def step(self, model: Denoiser, x: Tensor, free: Tensor, alpha: float, target: float) -> Tensor:
        rate = self.forgotten(alpha, target)
        after = super().step(model, x, free, alpha, target)
        if rate == 0:
            return after
        chance = uniform(free, generator=model.generator)
        forgotten = free & (chance < rate)
        if model.noise.mask is not None:
            forgotten &= ~model.noise.marks(x)
        return torch.where(forgotten, model.noise.draw(x, generator=model.generator), after)


@UNMASKERS.register("remasking")
class Remasking(Forgetting):
    """A revealed symbol is masked again with probability r = min(rate, (1 - alpha') / alpha).

    rate: of a step, so that more steps forget more often; 0 is `ancestral`.
    Wang et al., Remasking Discrete Diffusion Models, https://arxiv.org/abs/2503.00307.
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

    def forget(self, alpha: float, target: float) -> float:
        return self.rate


@UNMASKERS.register("corrector")
class Corrector(Forgetting):
    """Discrete flow matching with corrector steps: the velocity (1 + b) u_forward - b u_backward.

    In a step a revealed symbol returns to noise with probability b d / alpha, d = alpha' - alpha, and a noisy one is
    revealed with (1 + b) d / (1 - alpha). strength: b; 0 is `ancestral`.
    Gat et al., Discrete Flow Matching, https://arxiv.org/abs/2407.15595, section 3.2.
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
        if not 0 <= strength < math.inf:
            raise GenkitError(f"corrector: strength must not be negative, not {strength}")
        self.strength = strength

    def forget(self, alpha: float, target: float) -> float:
        return min(1.0, self.strength * (target - alpha) / alpha)
