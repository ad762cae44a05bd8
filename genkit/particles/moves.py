"""Moves: Markov kernels that leave the target of one time as it is, and let its particles spread."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles.base import Cloud, Evaluation
from genkit.randomness import sample_like
from genkit.registry import Registry
from genkit.types import Generator, per_row


class Move(abc.ABC):
    """Proposals that are accepted or refused by Metropolis and Hastings, so that a step of any length is exact.

    step: length of a proposal, in units of the target's width sqrt((sigma_t^2 + alpha_t^2 v) / c), v the `spread` of
        the sampler (0 where null: the width of noise alone, which is safe).
    moves: proposals in a row. A gradient that is not the target's own (of a reward) costs acceptance, nothing else.
    """

    def __init__(self, step: float, moves: int) -> None:
        if not 0 < step < math.inf or moves < 1:
            raise GenkitError(f"a move takes a positive step and at least 1 move, not {step} and {moves}")
        self.step, self.moves = step, moves

    def __call__(
        self,
        target: Callable[[Tensor], Evaluation],
        cloud: Cloud,
        scale: float,
        *,
        generator: Generator = None,
    ) -> tuple[Cloud, Tensor]:
        """target: x -> log-density and gradient. scale: the unit of `step`. Returns the cloud and the acceptance."""
        accepted = cloud.value.new_zeros(())
        for _ in range(self.moves):
            proposal, log_ratio = self.propose(target, cloud, self.step * scale, generator)
            chance = sample_like(torch.rand, cloud.value, generator)
            chosen = chance.log() < log_ratio  # not where it is NaN
            rows = per_row(chosen, cloud.x)
            cloud = Cloud(
                torch.where(rows, proposal.x, cloud.x),
                torch.where(chosen, proposal.value, cloud.value),
                torch.where(rows, proposal.gradient, cloud.gradient),
            )
            accepted = accepted + chosen.double().mean()
        return cloud, accepted / self.moves

    @abc.abstractmethod
    def propose(
        self, target: Callable[[Tensor], Evaluation], cloud: Cloud, step: float, generator: Generator
    ) -> tuple[Cloud, Tensor]:
        """Where particles would go, and log pi(x') q(x|x') / (pi(x) q(x'|x)) (N,)."""


MOVES = Registry(Move, "move", "genkit.particles")


@MOVES.register("mala")
class Mala(Move):
    """Metropolis-adjusted Langevin: x' = x + h^2/2 grad log pi(x) + h n, one evaluation a move.

    Roberts & Tweedie 1996, Exponential convergence of Langevin distributions, https://doi.org/10.2307/3318418.
    """

    def __init__(self, step: float = 0.7, moves: int = 1) -> None:
        super().__init__(step, moves)

    def propose(
        self, target: Callable[[Tensor], Evaluation], cloud: Cloud, step: float, generator: Generator
    ) -> tuple[Cloud, Tensor]:
        noise = sample_like(torch.randn, cloud.x, generator)
        x = cloud.x + step**2 / 2 * cloud.gradient + step * noise
        there = Cloud(x, *target(x))
        back = (cloud.x - x) / step - step / 2 * there.gradient
        return there, there.value - cloud.value + half_square(noise) - half_square(back)


@MOVES.register("hmc")
class Hmc(Move):
    """Hamiltonian Monte Carlo: `leaps` leapfrog steps of length h from a Gaussian momentum, an evaluation each.

    Neal, MCMC using Hamiltonian dynamics, https://arxiv.org/abs/1206.1901.
    """

    def __init__(self, step: float = 0.5, moves: int = 1, leaps: int = 4) -> None:
        super().__init__(step, moves)
        if leaps < 1:
            raise GenkitError(f"hmc: leaps must be at least 1, not {leaps}")
        self.leaps = leaps

    def propose(
        self, target: Callable[[Tensor], Evaluation], cloud: Cloud, step: float, generator: Generator
    ) -> tuple[Cloud, Tensor]:
        start = sample_like(torch.randn, cloud.x, generator)
        there, momentum = cloud, start + step / 2 * cloud.gradient
        for leap in range(self.leaps):
            x = there.x + step * momentum
            there = Cloud(x, *target(x))
            momentum = momentum + (step if leap < self.leaps - 1 else step / 2) * there.gradient
        return there, there.value - cloud.value + half_square(start) - half_square(momentum)


def half_square(x: Tensor) -> Tensor:
    """|x|^2 / 2 of each row (N, ...) -> (N,)."""
    return x.square().flatten(1).sum(1) / 2
