"""Models of which all is known, in closed form or as a table: what solvers, couplings, unmaskers are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit.paths import PATHS, Path
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.types import DataSpec, Field, Generator, Source, StandardNormal


@dataclass
class GaussianFlow:
    """Data N(mean, cov), standard normal noise, independent, on a Gaussian-form path.

    x_t ~ N(alpha mean, C_t) with C_t = alpha^2 cov + sigma^2 I, and all C_t commute, so that
    x(t) = alpha mean + C_t^(1/2) C_s^(-1/2) (x(s) - alpha_s mean).
    """

    mean: Tensor
    cov: Tensor
    path: Path

    @classmethod
    def example(cls, path: str = "linear", dims: int = 2, dtype: torch.dtype = torch.float64) -> GaussianFlow:
        root = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 1.2]], dtype=dtype)[:dims, :dims]
        mean = torch.tensor([0.7, -1.1, 0.4], dtype=dtype)[:dims]
        return cls(mean, root @ root.T, PATHS.build(path))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x_t."""
        alpha, sigma, _, _ = self.path.coefficients(t.to(self.mean.dtype))
        return alpha * self.mean, alpha**2 * self.cov + sigma**2 * torch.eye(
            len(self.mean), dtype=self.mean.dtype
        )

    def velocity(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = self.path.coefficients(t.to(x.dtype))
        mean, cov = self.at(t)
        rate = alpha * d_alpha * self.cov + sigma * d_sigma * torch.eye(len(mean), dtype=mean.dtype)
        return d_alpha * self.mean + (x - mean) @ torch.linalg.solve(cov, rate)

    def field(self) -> Field:
        return Field(self.velocity, self.path.coefficients, None)

    def transport(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Where the flow takes x(s) at time t."""
        (mean_s, cov_s), (mean_t, cov_t) = self.at(s), self.at(t)
        return mean_t + (x - mean_s) @ power(cov_s, -0.5) @ power(cov_t, 0.5)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(self.mean, self.cov).log_prob(x)


def power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


@dataclass
class Joint:
    """Sequences of N symbols 0..V-1 with probabilities p (V, ..., V): all that a perfect discrete model knows."""

    p: Tensor

    @classmethod
    def example(cls, length: int = 4, vocabulary: int = 3, spread: float = 1.5) -> Joint:
        logits = spread * torch.randn(vocabulary**length, generator=keyed_generator(0)).double()
        return cls(logits.softmax(0).reshape(length * [vocabulary]))

    @property
    def length(self) -> int:
        return self.p.ndim

    @property
    def vocabulary(self) -> int:
        return len(self.p)

    @property
    def mask(self) -> int:
        return self.vocabulary

    @cached_property
    def states(self) -> Tensor:
        """All sequences (S, N), in the order of `p.flatten()`."""
        return torch.cartesian_prod(*self.length * [torch.arange(self.vocabulary)]).reshape(-1, self.length)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.p[tuple(x.T)].log()

    def counts(self, x: Tensor) -> Tensor:
        """How often each sequence is among x (B, N): (S,)."""
        return torch.bincount(self._place(x, self.vocabulary), minlength=len(self.states))

    def distance(self, x: Tensor) -> float:
        """Total variation between the frequencies of x (B, N) and p."""
        return 0.5 * float((self.counts(x) / len(x) - self.p.flatten()).abs().sum())

    def marginals(self) -> Joint:
        """The joint of independent symbols with the same marginals: what one step draws."""
        hot = F.one_hot(self.states, self.vocabulary).double()
        each = torch.einsum("s,snv->nv", self.p.flatten(), hot)
        product = torch.stack([each[i, self.states[:, i]] for i in range(self.length)]).prod(0)
        return Joint(product.reshape(self.p.shape))

    def predict(self, alpha: float | Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of p(x_i | revealed symbols), x with masks: a `Predict` for unmaskers."""
        return self.conditionals[self._place(x, self.vocabulary + 1)]

    @cached_property
    def conditionals(self) -> Tensor:
        """log p(x_i | revealed symbols) (M, N, V) of all M sequences of symbols and masks."""
        masked = torch.cartesian_prod(*self.length * [torch.arange(self.vocabulary + 1)])
        masked = masked.reshape(-1, self.length)[:, None]
        return self._posterior(((masked == self.mask) | (masked == self.states)).double().prod(2))

    def denoise(self, alpha: float | Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of p(x1_i | x_t), x_t with uniform noise: a `Predict` for unmaskers."""
        same = (self.states[:, None] == self.states).double()
        likelihoods = float(alpha) * same + (1 - float(alpha)) / self.vocabulary  # q(x_t_i | x1_i), by symbol
        return self._posterior(likelihoods.prod(2))[self._place(x, self.vocabulary)]

    def _posterior(self, likelihood: Tensor) -> Tensor:
        hot = F.one_hot(self.states, self.vocabulary).double().flatten(1)
        found = (likelihood * self.p.flatten()) @ hot
        found = found.reshape(len(likelihood), self.length, self.vocabulary)
        return (found / found.sum(2, keepdim=True)).log()

    def _place(self, x: Tensor, base: int) -> Tensor:
        return (x * base ** torch.arange(self.length - 1, -1, -1)).sum(1)


class AffineFlow(nn.Module):
    """A teacher in closed form: an invertible flow f(x, y) = (2 + y / 2) x + y, and a flow of pairs to 2 x0 + y."""

    samplers = SOLVERS
    classes, conditional = 3, True
    device = torch.device("cpu")

    def __init__(self, shape: Sequence[int] = (2,), source: Source | None = None) -> None:
        super().__init__()
        self.spec = DataSpec("affine", tuple(shape), classes=self.classes)
        self.view, self.source = SimpleNamespace(sigma=0.0), source or StandardNormal()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        shift = self._along(x, y)
        return (self.slope + shift / 2) * x + shift

    def velocity(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Of the straight lines from x0 to 2 x0 + y."""
        shift = self._along(x, y)
        return (x + shift) / (1 + t)

    def trajectory(
        self, n: int, y: Tensor | None = None, *, sampler: Any, generator: Generator = None
    ) -> tuple[list[Tensor], Tensor]:
        x0 = self.source.sample(torch.empty(n, *self.spec.shape), generator=generator)
        return [x0, 2 * x0 + self._along(x0, y)], torch.tensor([0.0, 1.0])

    def sample(self, n: int, y: Tensor | None = None, *, sampler: Any, generator: Generator = None) -> Any:
        states, _ = self.trajectory(n, y, sampler=sampler, generator=generator)
        nfe = SOLVERS.build(sampler).solve(lambda t, x: torch.zeros_like(x), states[0]).nfe
        return SimpleNamespace(x=states[-1], nfe=nfe)

    @staticmethod
    def _along(x: Tensor, y: Tensor | None) -> Tensor:
        """The classes, for arithmetic with x (B, ...)."""
        return torch.zeros(()) if y is None else y.to(x).reshape(-1, *[1] * (x.ndim - 1))
