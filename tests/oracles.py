"""Distributions whose flows are known in closed form: what solvers and likelihoods are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genkit.paths import PATHS, Path
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
