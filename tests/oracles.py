"""Distributions of which all is known: flows in closed form, and tables. What samplers and bounds are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from genkit.randomness import keyed_generator
from genkit.testing.oracles import GaussianFlow, Joint, power

__all__ = ["GaussianFlow", "GaussianMixture", "Joint", "MixtureFlow", "power", "same_p"]


def same_p(a: Tensor, b: Tensor) -> float:
    """p-value that a and b (n, D) have one distribution: Kolmogorov-Smirnov along random lines, the least one times
    their number."""
    lines = torch.randn(a.shape[1], 5, generator=keyed_generator(0, "lines"), dtype=torch.float64)
    along = [(x.double() @ lines).T.numpy() for x in (a, b)]
    return min(1.0, 5 * min(float(stats.ks_2samp(*pair).pvalue) for pair in zip(*along, strict=True)))


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
