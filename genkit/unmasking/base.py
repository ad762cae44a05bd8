"""The unmasking interface: one loop for all methods, and the two ways to choose positions.

    UNMASKERS.build("confidence", steps=8).sample(predict, x, free, noise).x

alpha is the share of symbols that are revealed, from 0 to 1. A method writes `positions` (`Blind`: they are drawn
before the network is asked) or `score` (`Looking`: the network's predictions choose them). Values are drawn in float64,
and a row in which nothing is to be revealed costs no network call. All chances of a step are drawn for all rows and
positions, needed or not: what a row becomes depends on no other row, nor on which process has it. With an exact model,
one symbol a step is exact; several at a time are drawn as if independent, which they are not: the bias of each
method is measured in benchmarks/README.md.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths.base import SCHEDULES, Schedule
from genkit.randomness import sample_like
from genkit.registry import Registry
from genkit.types import Generator

Alpha = float | Tensor  # of all rows, or (R,) of each
Predict = Callable[[Alpha, Tensor, Tensor], Tensor]  # alpha, x (R, N), their rows (R,) -> logits (R, N, V)


@dataclass
class Noise:
    """What a symbol is before it is revealed: `mask`, a symbol of its own, or where None any of `symbols` (K,)."""

    symbols: Tensor
    mask: int | None = None

    def draw(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        """Noise of the shape of `like`, int64."""
        if self.mask is not None:
            return torch.full_like(like, self.mask)
        index = sample_like(partial(torch.randint, len(self.symbols)), like, generator)
        return self.symbols[index]

    def marks(self, x: Tensor) -> Tensor:
        """Which symbols of x are still to be revealed: the masks; where noise is not marked, all."""
        return torch.ones_like(x, dtype=torch.bool) if self.mask is None else x == self.mask


@dataclass
class Unmasked:
    """x (B, N) revealed; nfe: network calls in sequence; passes: how often a row went through it, on average."""

    x: Tensor
    nfe: int
    passes: float


class Denoiser:
    """The network during one run: asked for the rows that matter, its values drawn, its calls counted.

    chance (B, N): of a step, by which its values are drawn.
    """

    chance: Tensor

    def __init__(
        self, predict: Predict, noise: Noise, temperature: float, top_p: float, generator: Generator
    ) -> None:
        self.predict, self.noise, self.generator = predict, noise, generator
        self.temperature, self.top_p = temperature, top_p
        self.calls, self.rows = 0, 0

    def begin(self, x: Tensor) -> None:
        """A step of rows x (B, N) begins."""
        self.chance = uniform(x, generator=self.generator)

    def logits(self, alpha: Alpha, x: Tensor, rows: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(rows)
        return self.predict(alpha, x[rows], rows)

    def put(self, x: Tensor, rows: Tensor, picked: Tensor, logits: Tensor) -> Tensor:
        """x with the positions `picked` (R, N) of `rows` drawn from logits (R, N, V)."""
        part = x[rows]
        part[picked] = draw(logits[picked], self.chance[rows][picked], self.temperature, self.top_p)
        return x.index_copy(0, rows, part)


class Unmasker(abc.ABC):
    """Reveals the free symbols of a batch: write `sample`, or as most do the steps of a `Stepwise`.

    temperature: of the drawn values; 0 takes the most probable. top_p: values are drawn from the smallest set of
        probability at least top_p (Holtzman et al., https://arxiv.org/abs/1904.09751).
    uniform: whether it also works where noise is not marked by a mask (a uniform source).
    """

    uniform: ClassVar[bool] = False

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0) -> None:
        if not 0 <= temperature < math.inf:
            raise GenkitError(f"temperature must not be negative, not {temperature}")
        if not 0 < top_p <= 1:
            raise GenkitError(f"top_p must be in (0, 1], not {top_p}")
        self.temperature, self.top_p = temperature, top_p

    @abc.abstractmethod
    def sample(
        self, predict: Predict, x: Tensor, free: Tensor, noise: Noise, *, generator: Generator = None
    ) -> Unmasked:
        """x (B, N) with noise at `free` (B, N) -> x with those revealed; the others are given and stay.

        Raises GenkitError for a method that needs masks where there are none.
        """

    def check(self, noise: Noise) -> None:
        """Raises GenkitError for noise that this method cannot take away."""
        if noise.mask is None and not self.uniform:
            able = [name for name in UNMASKERS.names() if UNMASKERS.get(name).uniform]
            raise GenkitError(
                f"{type(self).__name__} reveals masks, and this model's noise is uniform symbols: "
                f"use {' or '.join(able)}"
            )

    def paced(self, steps: int | None) -> Unmasker:
        """This method with another number of steps, where it has one; null for one symbol a step."""
        return self


class Stepwise(Unmasker):
    """The one loop: a step for each of `moments`."""

    @torch.no_grad()
    def sample(
        self, predict: Predict, x: Tensor, free: Tensor, noise: Noise, *, generator: Generator = None
    ) -> Unmasked:
        self.check(noise)
        model = Denoiser(predict, noise, self.temperature, self.top_p, generator)
        for alpha, target in self.moments(int(free.sum(1).max())):
            model.begin(x)
            x = self.step(model, x, free, alpha, target)
        return Unmasked(x, model.calls, model.rows / len(x))

    def moments(self, count: int) -> Iterator[tuple[float, float]]:
        """(alpha before, alpha after) of each step, for at most `count` free symbols a row: here one symbol a step."""
        return ((i / count, (i + 1) / count) for i in range(count))

    @abc.abstractmethod
    def step(self, model: Denoiser, x: Tensor, free: Tensor, alpha: float, target: float) -> Tensor:
        """x at alpha -> x at target."""


class Scheduled(Stepwise):
    """A method with a number of steps, equal in the time of a schedule.

    steps: null for one symbol a step. schedule: alpha at equal times; cosine reveals few symbols first.
    """

    def __init__(
        self,
        steps: int | None = 32,
        schedule: Schedule | str = "linear",
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(temperature, top_p)
        if steps is not None and steps < 1:
            raise GenkitError(f"an unmasker takes at least 1 step, not {steps}")
        self.steps, self.schedule = steps, SCHEDULES.build(schedule)

    def paced(self, steps: int | None) -> Unmasker:
        other = copy.copy(self)
        other.steps = steps
        return other

    def moments(self, count: int) -> Iterator[tuple[float, float]]:
        times = torch.linspace(0, 1, (self.steps or count) + 1, dtype=torch.float64)
        alphas = times if self.steps is None else self.schedule.alpha(times).clamp(max=1 - 1e-12)
        alphas[0], alphas[-1] = 0, 1  # whatever the schedule reaches, and not before: all is revealed
        return zip(alphas[:-1].tolist(), alphas[1:].tolist(), strict=True)


class Blind(Scheduled):
    """Positions are drawn before the network is asked: with one symbol a step an exact model is sampled exactly."""

    @abc.abstractmethod
    def positions(self, noisy: Tensor, alpha: float, target: float, *, generator: Generator = None) -> Tensor:
        """Which of the noisy positions (B, N) are revealed: (B, N). Drawn by `uniform`, of all of them."""

    def step(self, model: Denoiser, x: Tensor, free: Tensor, alpha: float, target: float) -> Tensor:
        noisy = free & model.noise.marks(x)
        picked = self.positions(noisy, alpha, target, generator=model.generator)
        rows = picked.any(1).nonzero()[:, 0]
        if len(rows) == 0:
            return x
        return model.put(x, rows, picked[rows], model.logits(alpha, x, rows))


class Looking(Scheduled):
    """The predictions say which positions are revealed, the schedule how many."""

    @abc.abstractmethod
    def score(self, log_p: Tensor, alpha: float, chance: Tensor) -> Tensor:
        """log-probabilities (R, N, V) -> (R, N); the positions of the highest scores are revealed.

        chance (R, N): draws from [0, 1), float64, for a method that also goes by lot.
        """

    def step(self, model: Denoiser, x: Tensor, free: Tensor, alpha: float, target: float) -> Tensor:
        noisy, chance = free & model.noise.marks(x), uniform(x, generator=model.generator)
        counts = due(noisy, free, target)
        rows = counts.nonzero()[:, 0]
        if len(rows) == 0:
            return x
        logits = model.logits(alpha, x, rows)
        score = self.score(logits.double().log_softmax(-1), alpha, chance[rows])
        return model.put(x, rows, highest(score, noisy[rows], counts[rows]), logits)


UNMASKERS = Registry(Unmasker, "unmasker", "genkit.unmasking")


def due(noisy: Tensor, free: Tensor, target: float) -> Tensor:
    """How many symbols of each row (B,) are revealed for a share `target` of its free ones to be."""
    left = ((1 - target) * free.sum(1) + 1e-9).floor()
    return (noisy.sum(1) - left).clamp(min=0).long()


def highest(score: Tensor, noisy: Tensor, counts: Tensor) -> Tensor:
    """The `counts` (R,) noisy positions of highest score (R, N), as (R, N) bool; at most those that are noisy."""
    order = score.masked_fill(~noisy, -math.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < counts[:, None]) & noisy


def uniform(like: Tensor, *, generator: Generator = None) -> Tensor:
    """Draws from [0, 1) of the shape of `like`, float64."""
    return sample_like(torch.rand, like.new_empty(0, dtype=torch.float64), generator, tuple(like.shape))


def draw(logits: Tensor, chance: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Categorical draws (...) from logits (..., V), each where its chance (...), uniform in [0, 1), falls.

    In float64, for in float32 rare symbols are drawn too seldom.
    Zheng et al., Masked Diffusion Models are Secretly Time-Agnostic, https://arxiv.org/abs/2409.02908.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.double() / temperature).softmax(-1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)  # the first is always kept
        p = torch.zeros_like(p).scatter(-1, index, ordered)
    below = p.cumsum(-1)
    return (below <= chance[..., None] * below[..., -1:]).sum(-1).clamp(max=p.shape[-1] - 1)
