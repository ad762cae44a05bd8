"""The path interface and its registry."""

from __future__ import annotations

import abc

from torch import Tensor

from genkit.registry import Registry
from genkit.types import Coefficients, Generator, Point


class Path(abc.ABC):
    """Where a pair (x0, x1) is at time t, and how fast it moves.

    A Gaussian-form path is given by its coefficients alone:
    x_t = alpha x1 + sigma x0, u_t = alpha' x1 + sigma' x0, with alpha, sigma from (0, 1) at t=0 to (1, 0) at t=1.
    A path with noise of its own (a bridge) overrides `__call__`.
    """

    @abc.abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha, sigma and their time derivatives, each of the shape of t."""

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: Generator = None) -> Point:
        """x0, x1 (B, ...), t (B,) or scalar."""
        if t.ndim:
            t = t.reshape(-1, *[1] * (x1.ndim - 1))
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t)
        return Point(alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0)


PATHS = Registry(Path, "path", "genkit.paths")
