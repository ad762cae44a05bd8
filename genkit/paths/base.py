"""The interfaces of paths and of the schedules of discrete diffusion, and their registries."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from genkit.registry import Registry
from genkit.types import Coefficients, Generator, Point, per_row


class Path(abc.ABC):
    """Where a pair (x0, x1) is at time t, and how fast it moves.

    A Gaussian-form path is given by its coefficients alone:
    x_t = alpha x1 + sigma x0, u_t = alpha' x1 + sigma' x0, with alpha, sigma from (0, 1) at t=0 to (1, 0) at t=1.
    A path with noise of its own (a bridge) overrides `__call__`, and says so by `noisy`: its velocity gives neither
    data nor noise, and its `coefficients` raise GenkitError.
    """

    noisy: ClassVar[bool] = False

    @abc.abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their time derivatives, each of the shape of t."""

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: Generator = None) -> Point:
        """x0, x1 (B, ...), t (B,) or scalar."""
        alpha, sigma, d_alpha, d_sigma = self.coefficients(per_row(t, x1) if t.ndim else t)
        return Point(alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0)


PATHS = Registry(Path, "path", "genkit.paths")


class Schedule(abc.ABC):
    """alpha(t): the probability that a symbol is still itself at time t, rising from t=0 (noise) to t=1 (data).

    A registered schedule is one class with `alpha` and its derivative; the constructor's arguments are its options.
    """

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """t (...) in [0, 1] -> (...) in [0, 1], increasing."""

    @abc.abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """The derivative of alpha at t (...)."""

    @property
    def ends(self) -> tuple[float, float]:
        """alpha(0) and alpha(1). A schedule that does not reach 0 and 1 has boundary terms in its bound."""
        first, last = self.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")).tolist()
        return round(first, 12), round(last, 12)


SCHEDULES = Registry(Schedule, "schedule", "genkit.paths")
