"""The Feynman-Kac sampler: weighted particles from noise to data, the one loop for all targets.

With z = x / alpha and s = sigma / alpha every Gaussian path is z_s = x1 + s x0. A step from s to s' < s, for a target
pi of exponent c, takes a particle from z to z' by a reverse kernel M and weighs it by a forward kernel q:

    M(z' | z) = N(z + D/c grad log pi(z), V I),   q(z | z') = N(z', D/c I),   D = s^2 - s'^2
    log w += log pi'(z') - log pi(z) + log q(z | z') - log M(z' | z)

which is exact for steps of any length, and for any M: the mean of w is the ratio of the normalizers, so the
estimate of the normalizer has no bias, and averages over the particles converge to those of the target. How well M
fits only sets how many particles are left, and this depends on V above all. With data of variance v,
V = D/c (s'^2 + v) / (s^2 + v) is right. Ancestral sampling has v = 0: narrower than the truth, with heavy weights.
By Stein's identity E |grad log pi|^2 is the mean curvature of -log pi, for a Gaussian c / (s^2 + v) in each
dimension, which gives v from gradients that are known already.

Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers, https://doi.org/10.1111/j.1467-9868.2006.00553.x;
Thornton et al., Composition and Control with Distilled Energy Diffusion Models and Sequential Monte Carlo,
https://arxiv.org/abs/2502.12786; Neal, Annealed Importance Sampling, https://arxiv.org/abs/physics/9803008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles.base import Cloud, Progress, Target, denoised
from genkit.particles.moves import MOVES, Move, half_square
from genkit.particles.resamplers import RESAMPLERS, Resampler
from genkit.randomness import sample_like
from genkit.solvers.base import GRIDS, Grid
from genkit.types import Generator

LOG_2PI = math.log(2 * math.pi)
FINEST = 8  # adaptive steps are at most so many times finer or coarser than the fixed ones


@dataclass
class Particles:
    """x (N, ...), encoded, with log-weights log_w (N,) that sum to one: together they stand for the target.

    log_normalizer: of the integral of pi at the end over x_t, which is estimated without bias (its exponential is).
    times, log_normalizers, ess: at the start and after each step; ess before particles are resampled.
    acceptance: of the moves, None without. evaluations: of models, a particle, setting up included.
    A particle whose weight is 0 may have any x, one that the model gave no number for included; `draw` takes none.
    """

    x: Tensor
    log_w: Tensor
    log_normalizer: float
    times: list[float]
    log_normalizers: list[float]
    ess: list[float]
    resamplings: int
    acceptance: float | None
    evaluations: int

    def draw(
        self, n: int, resampler: Resampler | str = "systematic", *, generator: Generator = None
    ) -> Tensor:
        """n samples without weights (n, ...), in random order; copies of one particle where n w is above 1."""
        rows = RESAMPLERS.build(resampler)(self.log_w, n, generator=generator)
        device = rows.device if generator is None else generator.device
        return self.x[rows[torch.randperm(n, generator=generator, device=device).to(rows.device)]]


class Moment(NamedTuple):
    """A time of the run, with the coefficients of the path."""

    t: float
    alpha: float
    sigma: float
    last: bool

    @property
    def s(self) -> float:
        return self.sigma / self.alpha


class FeynmanKac:
    """Samples a target with weighted particles.

    particles: N. steps: over `grid`, from the time `start` to `end`. resampler: applied when the effective number of
    particles, 1 / sum w^2, falls below `threshold` of N (0: never).
    move: of particles after each step, none where null.
    adaptive: null for the fixed times; else the share in (0, 1) of particles that a step should leave effective, each
        step being lengthened or shortened by what the last one left. No step is tried twice. As times then depend on
        the particles, the normalizer has a bias, of order 1 / N.
    start: where pi is still near N(0, I / c); what differs is weighed.
    end: there x is denoised, to (x + sigma^2 / c grad log pi) / alpha. null for the time at which the model stands for
        the data (see `Energy.end`).
    kernel: `diffusion` as above; `none` leaves x where it is, log w += log pi'(x) - log pi(x), and leaves it to `move`
        to follow: with threshold=0 annealed importance sampling. It needs many more steps.
    spread: v, the variance of data in encoded units; null estimates it for V at each step, which leaves weights exact
        and normalizers unbiased. Moves fitted to the particles that they move would not: their width takes 0 there.
    """

    def __init__(
        self,
        particles: int = 256,
        steps: int = 64,
        resampler: Resampler | str = "systematic",
        threshold: float = 0.5,
        move: Move | str | None = None,
        adaptive: float | None = None,
        grid: Grid | str = "uniform",
        start: float = 0.01,
        end: float | None = None,
        kernel: Literal["diffusion", "none"] = "diffusion",
        spread: float | None = None,
    ) -> None:
        if particles < 2 or steps < 1:
            raise GenkitError(f"at least 2 particles and 1 step, not {particles} and {steps}")
        if not 0 <= threshold <= 1:
            raise GenkitError(f"threshold must be a share of the particles in [0, 1], not {threshold}")
        if adaptive is not None and not 0 < adaptive < 1:
            raise GenkitError(f"adaptive must be null or a share of the particles in (0, 1), not {adaptive}")
        if not 0 < start < (0.5 if end is None else end) < 1:
            raise GenkitError(
                f"times must be 0 < start < end < 1, not {start} and {end}: at 0 and 1 weights are infinite"
            )
        if kernel not in ("diffusion", "none"):
            raise GenkitError(f"kernel must be 'diffusion' or 'none', not '{kernel}'")
        if kernel == "none" and move is None:
            raise GenkitError("kernel 'none' leaves particles where they are: give it a move (mala or hmc)")
        if spread is not None and not 0 <= spread < math.inf:
            raise GenkitError(f"spread must not be negative, not {spread}")
        self.particles, self.steps, self.threshold, self.adaptive = particles, steps, threshold, adaptive
        self.resampler, self.grid = RESAMPLERS.build(resampler), GRIDS.build(grid)
        self.move = None if move is None else MOVES.build(move)
        self.start, self.end, self.kernel, self.spread = start, end, kernel, spread

    @torch.no_grad()
    def sample(
        self, target: Target, *, generator: Generator = None, progress: Progress | None = None
    ) -> Particles:
        """Raises GenkitError for a target that is no density, and when no particle has any weight left."""
        target.check()
        calls = target.evaluations
        target.setup(self, generator=generator, progress=progress)
        now = self.moment(target, 0.0)
        cloud, log_w = self.begin(target, now, generator)
        log_z, (log_mean, ess, _) = 0.0, self.judge(log_w, log_w, now)
        times, log_normalizers, history = [now.t], [log_mean], [ess]
        accepted: list[Tensor] = []
        resamplings, done, u, du = 0, 0, 0.0, 1 / self.steps
        while u < 1:
            u = u + du if u + du < 1 - 1e-9 else 1.0
            then = self.moment(target, u)
            step = self.diffuse if self.kernel == "diffusion" else self.stay
            cloud, change = step(target, cloud, log_w, now, then, generator)
            before, log_w, now = log_w, without_nan(log_w + change), then
            log_mean, ess, kept = self.judge(before, log_w, now)
            log_normalizers.append(log_z + log_mean)
            times.append(now.t)
            history.append(ess)
            if ess < self.threshold * self.particles:
                cloud = cloud[self.resampler(log_w, self.particles, generator=generator)]
                log_w, log_z, resamplings = torch.zeros_like(log_w), log_z + log_mean, resamplings + 1
            if self.move is not None:
                width = ((now.sigma**2 + now.alpha**2 * (self.spread or 0.0)) / target.exponent) ** 0.5
                cloud, share = self.move(at(target, now), cloud, width, generator=generator)
                accepted.append(share)
            if self.adaptive is not None:
                du = self.adapted(du, kept, self.adaptive)
            done += 1
            if progress is not None:
                progress(done, done + math.ceil((1 - u) / du - 1e-9), ess, resamplings)
        return Particles(
            denoised(cloud.x, cloud.gradient, now.alpha, now.sigma, target).to(target.model.dtype),
            log_w.log_softmax(0),
            log_normalizers[-1],
            times,
            log_normalizers,
            history,
            resamplings,
            float(torch.stack(accepted).mean()) if accepted else None,
            target.evaluations - calls,
        )

    def moment(self, target: Target, u: float) -> Moment:
        """The time at the share u of the way."""
        share = float(self.grid.warp(torch.tensor([u], dtype=torch.float64)))
        t = self.start + ((self.end or target.model.end) - self.start) * share
        alpha, sigma, _, _ = target.model.path.coefficients(torch.tensor(t, dtype=torch.float64))
        return Moment(t, float(alpha), float(sigma), u == 1)

    def begin(self, target: Target, now: Moment, generator: Generator) -> tuple[Cloud, Tensor]:
        """Particles from N(0, (alpha^2 + sigma^2) / c I), as if data had variance 1, and their log-weights."""
        model = target.model
        variance = (now.alpha**2 + now.sigma**2) / target.exponent
        empty = torch.empty(self.particles, *model.shape, dtype=torch.float64, device=model.device)
        noise = sample_like(torch.randn, empty, generator)
        x = variance**0.5 * noise
        cloud = Cloud(x, *at(target, now)(x))
        log_start = -half_square(noise) - noise[0].numel() / 2 * (LOG_2PI + math.log(variance))
        return cloud, without_nan(cloud.value - log_start)

    def diffuse(
        self, target: Target, cloud: Cloud, log_w: Tensor, now: Moment, then: Moment, generator: Generator
    ) -> tuple[Cloud, Tensor]:
        """Particles drawn from M, and the change (N,) of their log-weights."""
        dims, c = cloud.x[0].numel(), target.exponent
        forward = (now.s**2 - then.s**2) / c
        if self.spread is None:
            spread = (c / (now.alpha**2 * curvature(cloud, log_w)) - now.s**2).clamp(min=0)
        else:
            spread = torch.full_like(log_w[0], self.spread)
        reverse = forward * (then.s**2 + spread) / (now.s**2 + spread)
        z, noise = cloud.x / now.alpha, sample_like(torch.randn, cloud.x, generator)
        moved = z + forward * now.alpha * cloud.gradient + reverse.sqrt() * noise
        x = then.alpha * moved
        there = Cloud(x, *at(target, then)(x))
        kernels = half_square(noise) - half_square(z - moved) / forward + dims / 2 * (reverse / forward).log()
        return there, there.value - cloud.value + dims * math.log(then.alpha / now.alpha) + kernels

    def stay(
        self, target: Target, cloud: Cloud, log_w: Tensor, now: Moment, then: Moment, generator: Generator
    ) -> tuple[Cloud, Tensor]:
        """Particles where they were, weighed by the target of the next time."""
        there = Cloud(cloud.x, *at(target, then)(cloud.x))
        return there, there.value - cloud.value

    def judge(self, before: Tensor, after: Tensor, now: Moment) -> tuple[float, float, float]:
        """The log of the mean weight, the effective number of particles, and the share that the step left effective.

        The share is (sum W w)^2 / sum W w^2, W the weights before the step and w their change (conditional ESS: Zhou,
        Johansen & Aston, https://arxiv.org/abs/1303.3123). The one place where the loop waits for the device.
        """
        total = after.logsumexp(0)
        kept = 2 * total - (2 * after - before).nan_to_num(-math.inf, neginf=-math.inf).logsumexp(0)
        logs = torch.stack((total, 2 * total - (2 * after).logsumexp(0), kept - before.logsumexp(0)))
        log_total, log_ess, log_kept = logs.tolist()
        if not log_total > -math.inf:
            raise GenkitError(
                f"all {self.particles} particles have lost their weight at t = {now.t:.3g}: lower beta, soften the "
                "constraint or the reward, take more particles or steps, or compose what the models have in common"
            )
        return log_total - math.log(self.particles), math.exp(log_ess), math.exp(min(log_kept, 0.0))

    def adapted(self, du: float, kept: float, wanted: float) -> float:
        """The next step, from the last one and the share that it left: -log of that grows as its square."""
        ratio = math.log(wanted) / math.log(min(max(kept, 1e-12), 1 - 1e-9))
        changed = du * min(max(ratio**0.5, 1 / 3), 2.0)
        return min(max(changed, 1 / (FINEST * self.steps)), FINEST / self.steps)


def at(target: Target, moment: Moment) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The target of one time; where its gradient is no number, it is 0."""
    t = torch.tensor(moment.t, dtype=torch.float64)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(t, x, moment.last)
        return torch.where(gradient.flatten(1).isfinite().all(1), value, -math.inf), gradient

    return evaluate


def curvature(cloud: Cloud, log_w: Tensor) -> Tensor:
    """E |grad log pi|^2 / dims: the mean curvature of -log pi over dimensions and particles (a scalar)."""
    w = log_w.softmax(0)
    squares = cloud.gradient.square().flatten(1).mean(1)
    return torch.where(w > 0, w * squares, 0.0).sum().clamp(min=1e-12)


def without_nan(log_w: Tensor) -> Tensor:
    """A particle whose weight is no number has none."""
    return torch.where(log_w.isfinite(), log_w, -math.inf)
