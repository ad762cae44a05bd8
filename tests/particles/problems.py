"""Targets on Gaussian mixtures in 2-D with exact answers: means, covariances, mode weights, normalizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy import stats
from torch import Tensor

from genkit.particles import TARGETS, Density, FeynmanKac, Target
from genkit.randomness import keyed_generator
from tests.oracles import GaussianMixture

END = torch.tensor(0.99, dtype=torch.float64)
A = GaussianMixture.of(
    (0.6, [1.0, 0.5], [[0.09, 0.03], [0.03, 0.05]]), (0.4, [-0.8, -0.6], [[0.04, 0.0], [0.0, 0.16]])
)
B = GaussianMixture.of(
    (0.5, [0.7, 0.9], [[0.2, 0.0], [0.0, 0.2]]), (0.5, [-0.9, -0.2], [[0.2, -0.05], [-0.05, 0.22]])
)
WIDE = GaussianMixture.of((1.0, [0.0, 0.0], [[1.5, 0.2], [0.2, 1.2]]))
ONE = GaussianMixture.of((1.0, [0.5, -0.3], [[0.2, 0.08], [0.08, 0.1]]))


def density(mixture: GaussianMixture, shift: Callable[[Tensor], Tensor] | None = None) -> Density:
    """The mixture under noise; shift: a constant of the time to add, as energies have."""

    def function(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = mixture.density(t, x)
        return value + (0 if shift is None else shift(t)), gradient

    return Density(function, (2,))


def build(name: str, inner: GaussianMixture | list[GaussianMixture], **options: object) -> Target:
    """A target of TARGETS on mixtures; also `prior` may be one."""
    parts = [density(each) for each in inner] if isinstance(inner, list) else density(inner)
    if isinstance(options.get("prior"), GaussianMixture):
        options["prior"] = density(options["prior"])
    return TARGETS.build(name, parts, **options)


def log_end(mixture: GaussianMixture, z: Tensor) -> Tensor:
    """log p of x = alpha z at the end of the run."""
    return mixture.density(END, END * z)[0]


@dataclass
class Problem:
    """A target, and the log-density of x = alpha z that it should have at the end, at points z (N, 2)."""

    make: Callable[[], Target]
    log_density: Callable[[Tensor], Tensor]
    size: float = 5.0

    @cached_property
    def exact(self) -> Tensor:
        """log Z over x, then mean (2), covariance (3) and P(z_0 > 0.1) of z, by quadrature."""
        axis = torch.linspace(-self.size, self.size, 601, dtype=torch.float64)
        z = torch.cartesian_prod(axis, axis)
        log = self.log_density(z)
        area = 2 * math.log(float(axis[1] - axis[0]) * float(END))
        return torch.cat((log.logsumexp(0)[None] + area, summary(z, log.softmax(0))))

    def runs(self, count: int, sampler: FeynmanKac, *, key: int = 0) -> Tensor:
        """The same figures of `count` runs (count, 7)."""
        found = []
        for k in range(count):
            run = sampler.sample(self.make(), generator=keyed_generator(key, k))
            log_z = torch.tensor([run.log_normalizer], dtype=torch.float64)
            found.append(torch.cat((log_z, summary(run.x, run.log_w.exp()))))
        return torch.stack(found)

    def plain(self, count: int, n: int = 800, steps: int = 64) -> Tensor:
        """The same of the flow of the summed scores without weights, as guidance is sampled (its log Z is 0)."""
        found = []
        for k in range(count):
            x = plain(self.make(), n, steps, key=k)
            found.append(
                torch.cat((torch.zeros(1), summary(x, torch.full((n,), 1 / n, dtype=torch.float64))))
            )
        return torch.stack(found)


def summary(z: Tensor, w: Tensor) -> Tensor:
    """Mean (2), covariance (3) and the weight where z_0 > 0.1."""
    mean = w @ z
    away = z - mean
    cov = away.T @ (w[:, None] * away)
    return torch.cat((mean, cov[[0, 0, 1], [0, 1, 1]], (w @ (z[:, :1] > 0.1).to(w))))


def plain(target: Target, n: int, steps: int, *, key: int = 0) -> Tensor:
    """DDIM with the gradient of the target as the score, from N(0, I): z' = D + s'/s (z - D), D = z + s^2 score."""
    t = torch.linspace(0.01, 0.99, steps + 1, dtype=torch.float64)
    s = (1 - t) / t
    z = s[0] * torch.randn(n, 2, generator=keyed_generator(key, "plain"), dtype=torch.float64)
    target.setup(FeynmanKac(), generator=keyed_generator(key))
    for k in range(steps):
        denoised = z + s[k] ** 2 * t[k] * target(t[k], t[k] * z)[1]
        z = denoised + s[k + 1] / s[k] * (z - denoised)
    return z


def chances(found: Tensor, exact: Tensor) -> Tensor:
    """p-values of a t-test of each column of runs (R, K) against what is exact (K,)."""
    error = (found.std(0) / len(found) ** 0.5).clamp(min=1e-6)  # a share that is always 1 does not vary
    return 2 * torch.from_numpy(stats.t.sf(((found.mean(0) - exact).abs() / error).numpy(), len(found) - 1))


def inside(z: Tensor, low: list[float], high: list[float]) -> Tensor:
    return ((z >= torch.tensor(low)) & (z <= torch.tensor(high))).all(1)


def attraction(x: Tensor) -> Tensor:
    """A reward: near x_0 = -0.5."""
    return -2 * (x[:, 0] + 0.5).abs()


def to_disc(x: Tensor) -> Tensor:
    """The distance from a disc around (0.6, 0.3)."""
    return ((x - torch.tensor([0.6, 0.3])).norm(dim=1) - 0.5).clamp(min=0)


LOW, HIGH = [0.3, -9.0], [1.2, 0.6]
PROBLEMS = {
    "low temperature": Problem(lambda: build("temperature", A, beta=2.0), lambda z: 2 * log_end(A, z)),
    "lower temperature": Problem(lambda: build("temperature", A, beta=4.0), lambda z: 4 * log_end(A, z)),
    "high temperature": Problem(lambda: build("temperature", A, beta=0.5), lambda z: 0.5 * log_end(A, z)),
    "product": Problem(lambda: build("product", [A, B]), lambda z: log_end(A, z) + log_end(B, z)),
    "weighted product": Problem(
        lambda: build("product", [A, B], weights=[0.5, 1.5]),
        lambda z: 0.5 * log_end(A, z) + 1.5 * log_end(B, z),
    ),
    "product without the prior": Problem(
        lambda: build("product", [A, B], prior=WIDE),
        lambda z: log_end(A, z) + log_end(B, z) - log_end(WIDE, z),
    ),
    "guidance": Problem(
        lambda: build("product", [A], weights=[2.0], prior=WIDE),
        lambda z: 2 * log_end(A, z) - log_end(WIDE, z),
    ),
    "mixture": Problem(
        lambda: TARGETS.build(
            "mixture", [density(A, lambda t: 3 * torch.cos(5 * t) + 2), density(B)], weights=[0.6, 1.4]
        ),
        lambda z: torch.logaddexp(math.log(0.3) + log_end(A, z), math.log(0.7) + log_end(B, z)),
    ),
    "negation": Problem(
        lambda: build("product", [A, B], weights=[1.0, -0.2]), lambda z: log_end(A, z) - 0.2 * log_end(B, z)
    ),
    "negation without the prior": Problem(
        lambda: build("product", [A, B], weights=[1.0, -0.8], prior=WIDE),
        lambda z: log_end(A, z) - 0.8 * log_end(B, z) + 0.8 * log_end(WIDE, z),
    ),
    "box": Problem(
        lambda: build("bounded", A, low=LOW, high=HIGH),
        lambda z: log_end(A, z).masked_fill(~inside(z, LOW, HIGH), -math.inf),
        1.5,
    ),
    "disc": Problem(
        lambda: build("bounded", A, distance=to_disc),
        lambda z: log_end(A, z).masked_fill(to_disc(z) > 0, -math.inf),
        1.5,
    ),
    "reward": Problem(
        lambda: build("reward", A, reward=attraction, strength=1.5),
        lambda z: log_end(A, z) + 1.5 * attraction(z),
    ),
}
