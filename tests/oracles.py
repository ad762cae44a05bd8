"""Distributions of which all is known: flows in closed form, and tables. What samplers and bounds are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.paths import PATHS, Path
from genkit.randomness import keyed_generator
from genkit.types import Field


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


@dataclass
class MixtureFlow:
    """Data sum_k w_k N(m_k, s_k^2 I) on the linear path: the velocities of the parts, by responsibility."""

    weights: Tensor
    means: Tensor
    scales: Tensor

    @classmethod
    def example(cls, dtype: torch.dtype = torch.float64) -> MixtureFlow:
        means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]], dtype=dtype)
        return cls(
            torch.tensor([0.5, 0.3, 0.2], dtype=dtype), means, torch.tensor([0.5, 0.4, 0.7], dtype=dtype)
        )

    def parts(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deviations (B, K, D), variances (K,) and joint log-densities (B, K) of x_t and its part."""
        variance = t**2 * self.scales**2 + (1 - t) ** 2
        deviation = x[:, None] - t * self.means
        log = -0.5 * (deviation.square().sum(-1) / variance) - variance.log() - math.log(2 * math.pi)
        return deviation, variance, log + self.weights.log()

    def velocity(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        deviation, variance, log = self.parts(t, x)
        rate = (t * self.scales**2 - (1 - t)) / variance
        return (log.softmax(1)[..., None] * (self.means + rate[:, None] * deviation)).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.parts(torch.ones((), dtype=x.dtype), x)[2].logsumexp(1)


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

    def predict(self, alpha: float, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of p(x_i | revealed symbols), x with masks: a `Predict` for unmaskers."""
        return self.conditionals[self._place(x, self.vocabulary + 1)]

    @cached_property
    def conditionals(self) -> Tensor:
        """log p(x_i | revealed symbols) (M, N, V) of all M sequences of symbols and masks."""
        masked = torch.cartesian_prod(*self.length * [torch.arange(self.vocabulary + 1)])
        masked = masked.reshape(-1, self.length)[:, None]
        return self._posterior(((masked == self.mask) | (masked == self.states)).double().prod(2))

    def likelihoods(self, alpha: float) -> Tensor:
        """q(x_t_i | x1_i) of all pairs of sequences, by symbol: (S of x_t, S of x1, N), noise uniform."""
        same = (self.states[:, None] == self.states).double()
        return alpha * same + (1 - alpha) / self.vocabulary

    def denoise(self, alpha: float, x: Tensor, rows: Tensor) -> Tensor:
        """Logits of p(x1_i | x_t), x_t with uniform noise: a `Predict` for unmaskers."""
        return self._posterior(self.likelihoods(alpha).prod(2))[self._place(x, self.vocabulary)]

    def from_others(self, alpha: float, x: Tensor) -> Tensor:
        """Logits of p(x1_i | x_t without its symbol i): what a network of uniform noise should give."""
        each = self.likelihoods(alpha)
        parts = []
        for i in range(self.length):
            others = torch.cat((each[..., :i], each[..., i + 1 :]), 2).prod(2)
            parts.append(self._posterior(others)[:, i])
        return torch.stack(parts, 1)[self._place(x, self.vocabulary)]

    def _posterior(self, likelihood: Tensor) -> Tensor:
        hot = F.one_hot(self.states, self.vocabulary).double().flatten(1)
        found = (likelihood * self.p.flatten()) @ hot
        found = found.reshape(len(likelihood), self.length, self.vocabulary)
        return (found / found.sum(2, keepdim=True)).log()

    def _place(self, x: Tensor, base: int) -> Tensor:
        return (x * base ** torch.arange(self.length - 1, -1, -1)).sum(1)


@dataclass
class GaussianMixture:
    """Data sum_k w_k N(m_k, C_k), log w_k (K,) of any sum: densities under noise, products and powers are closed."""

    log_weights: Tensor
    means: Tensor
    covs: Tensor

    @classmethod
    def of(cls, *parts: tuple[float, list[float], list[list[float]]]) -> GaussianMixture:
        """Parts as (weight, mean, covariance)."""
        weights, means, covs = (torch.tensor(each, dtype=torch.float64) for each in zip(*parts, strict=True))
        return cls(weights.log(), means, covs)

    def noised(self, alpha: Tensor, sigma: Tensor) -> GaussianMixture:
        """The distribution of alpha x1 + sigma x0."""
        noise = sigma**2 * torch.eye(self.means.shape[1], dtype=self.covs.dtype)
        return GaussianMixture(self.log_weights, alpha * self.means, alpha**2 * self.covs + noise)

    def density(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p_t (N,) on the linear path, and its gradient (N, D)."""
        return self.noised(t, 1 - t).log_prob(x)

    def log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p (N,) and its gradient (N, D)."""
        roots = torch.linalg.cholesky(self.covs)
        away = (x[:, None] - self.means).movedim(0, -1)  # (K, D, N)
        pulls = torch.cholesky_solve(away, roots)
        logs = self.log_weights[:, None] - (away * pulls).sum(1) / 2 + self.peaks(roots)[:, None]
        return logs.logsumexp(0), -(logs.softmax(0)[:, None] * pulls).sum(0).T

    def peaks(self, roots: Tensor) -> Tensor:
        """Log-densities (K,) at the means, from the Cholesky factors of the covariances."""
        spread = roots.diagonal(dim1=1, dim2=2).log().sum(1)
        return -spread - self.means.shape[1] / 2 * math.log(2 * math.pi)

    def __mul__(self, other: GaussianMixture) -> GaussianMixture:
        """The product of the densities: a part for each pair, with weights that no longer sum to one."""
        pairs = [(i, j) for i in range(len(self.means)) for j in range(len(other.means))]
        logs, means, covs = [], [], []
        for i, j in pairs:
            a, b = torch.linalg.inv(self.covs[i]), torch.linalg.inv(other.covs[j])
            cov = torch.linalg.inv(a + b)
            between = torch.distributions.MultivariateNormal(other.means[j], self.covs[i] + other.covs[j])
            logs.append(self.log_weights[i] + other.log_weights[j] + between.log_prob(self.means[i]))
            means.append(cov @ (a @ self.means[i] + b @ other.means[j]))
            covs.append(cov)
        return GaussianMixture(torch.stack(logs), torch.stack(means), torch.stack(covs))

    def __pow__(self, beta: float) -> GaussianMixture:
        """The power of a single Gaussian, of any sign for which it is a density."""
        assert len(self.means) == 1
        peak = self.log_weights + self.peaks(torch.linalg.cholesky(self.covs))
        covs = self.covs / beta
        power = GaussianMixture(self.log_weights, self.means, covs)
        return GaussianMixture(beta * peak - power.peaks(torch.linalg.cholesky(covs)), self.means, covs)

    @property
    def log_normalizer(self) -> float:
        return float(self.log_weights.logsumexp(0))

    @property
    def mean(self) -> Tensor:
        return self.log_weights.softmax(0) @ self.means

    @property
    def cov(self) -> Tensor:
        away = self.means - self.mean
        each = self.covs + away[:, :, None] * away[:, None, :]
        return (self.log_weights.softmax(0)[:, None, None] * each).sum(0)
