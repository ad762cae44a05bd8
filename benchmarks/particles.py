"""Weighted particles against plain guidance and plain score addition, on Gaussian mixtures whose densities are known.

Two mixtures of two Gaussians in 2-D and a wide prior, exact at every time, so that whatever is wrong is the sampler's
doing. Truth by quadrature on a grid. Errors of the mean (its distance), the covariance (Frobenius norm), the weight of
one mode (z_0 > 0.1) and log Z, of 256 samples or particles: the average over seeds, its standard deviation in brackets,
and behind that the error of the seeds' average, in which chance is small and bias is what it was.

exact: as many exact samples, the floor. flow, diffusion: the scores of the parts summed (temperature: multiplied;
mixture: averaged), without weights, by the probability flow (DDIM) or the reverse diffusion, 500 steps.

python benchmarks/particles.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from _timing import arguments, publish
from torch import Tensor

from genkit.particles import MOVES, RESAMPLERS, TARGETS, Density, FeynmanKac, Particles, Target
from genkit.randomness import keyed_generator

N, SEEDS, START, END = 256, 20, 0.01, 0.99
MEASURES = ("mean", "covariance", "mode weight", "log Z")


class Mixture:
    """sum_k w_k N(m_k, C_k) under the noise of the linear path; `shift`, a constant of the time, as energies have."""

    def __init__(self, weights: list, means: list, covs: list, shift: Callable = lambda t: 0.0) -> None:
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self.means, self.covs = (torch.as_tensor(each, dtype=torch.float64) for each in (means, covs))
        self.shift = shift

    def __call__(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        roots = torch.linalg.cholesky(t**2 * self.covs + (1 - t) ** 2 * torch.eye(x.shape[1], dtype=x.dtype))
        away = (x[:, None] - t * self.means).movedim(0, -1)
        pulls = torch.cholesky_solve(away, roots)
        sizes = roots.diagonal(dim1=1, dim2=2).log().sum(1) + x.shape[1] / 2 * math.log(2 * math.pi)
        logs = (self.log_weights - sizes)[:, None] - (away * pulls).sum(1) / 2
        return logs.logsumexp(0) + self.shift(t), -(logs.softmax(0)[:, None] * pulls).sum(0).T

    @property
    def density(self) -> Density:
        return Density(self, (self.means.shape[1],))


A = Mixture(
    [0.6, 0.4], [[1.0, 0.5], [-0.8, -0.6]], [[[0.09, 0.03], [0.03, 0.05]], [[0.04, 0.0], [0.0, 0.16]]]
)
B = Mixture([0.5, 0.5], [[0.7, 0.9], [-0.9, -0.2]], [[[0.2, 0.0], [0.0, 0.2]], [[0.2, -0.05], [-0.05, 0.22]]])
PRIOR = Mixture([1.0], [[0.0, 0.0]], [[[1.5, 0.2], [0.2, 1.2]]])
SHIFTED = Mixture([0.6, 0.4], A.means, A.covs, lambda t: 3 * torch.cos(5 * t) + 2)


def many(dims: int) -> Mixture:
    """Four modes near subspaces: wide in an eighth of the directions, narrow in the others."""
    generator = keyed_generator(0)
    means = torch.randn(4, dims, generator=generator, dtype=torch.float64) / 2
    spread = torch.where(torch.arange(dims) < dims // 8, 0.25, 0.04).double()
    turns = [
        torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
        for _ in range(4)
    ]
    return Mixture(4 * [0.25], means, torch.stack([turn * spread @ turn.T for turn in turns]))


def build(name: str, parts: list[Mixture], prior: Mixture | None = None, **options) -> Target:
    inner = [part.density for part in parts] if name != "temperature" else parts[0].density
    return TARGETS.build(name, inner, **options, **({} if prior is None else {"prior": prior.density}))


# Name -> the target, and the powers of A, B and the prior in it (a mixture has none).
TARGETS_2D: dict[str, tuple[Callable[[], Target], tuple[float, float, float] | None]] = {
    "temperature, beta 0.5": (lambda: build("temperature", [A], beta=0.5), (0.5, 0, 0)),
    "temperature, beta 2": (lambda: build("temperature", [A], beta=2.0), (2, 0, 0)),
    "temperature, beta 4": (lambda: build("temperature", [A], beta=4.0), (4, 0, 0)),
    "product": (lambda: build("product", [A, B]), (1, 1, 0)),
    "product / prior": (lambda: build("product", [A, B], PRIOR), (1, 1, -1)),
    "guidance, scale 2": (lambda: build("product", [A], PRIOR, weights=[2.0]), (2, 0, -1)),
    "mixture": (lambda: build("mixture", [SHIFTED, B], weights=[0.3, 0.7]), None),
    "negation, w 0.2": (lambda: build("product", [A, B], weights=[1.0, -0.2]), (1, -0.2, 0)),
    "negation / prior, w 0.8": (lambda: build("product", [A, B], PRIOR, weights=[1.0, -0.8]), (1, -0.8, 0.8)),
}


class Averaged(Target):
    """Scores of the parts averaged by their weights: what plain addition makes of a mixture."""

    def __init__(self, weights: list[float], parts: list[Mixture]) -> None:
        self.weights, self.exponent = weights, 1.0
        self.parts = tuple(part.density for part in parts)

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> tuple[Tensor, Tensor]:
        found = [
            (w * value, w * score)
            for w, part in zip(self.weights, self.parts, strict=True)
            for value, score in [part(t, x)]
        ]
        return sum(value for value, _ in found), sum(score for _, score in found)


class Truth:
    """The target at the end on a fine grid of z = x / alpha."""

    def __init__(self, name: str) -> None:
        axis = torch.linspace(-7, 7, 1201, dtype=torch.float64)
        self.z = torch.cartesian_prod(axis, axis)
        t = torch.tensor(END, dtype=torch.float64)
        logs = [mixture(t, END * self.z)[0] for mixture in (A, B, PRIOR)]
        powers = TARGETS_2D[name][1]
        if powers is None:
            log = torch.logaddexp(math.log(0.3) + logs[0], math.log(0.7) + logs[1])
        else:
            log = sum(power * each for power, each in zip(powers, logs, strict=True))
        self.log_z = float(log.logsumexp(0)) + 2 * math.log(float(axis[1] - axis[0]) * END)
        self.w = log.softmax(0)

    def sample(self, seed: int) -> Tensor:
        return self.z[
            torch.multinomial(self.w, N, replacement=True, generator=keyed_generator(seed, "exact"))
        ]

    @property
    def exact(self) -> Tensor:
        return figures(self.z, self.w, self.log_z)


def figures(z: Tensor, w: Tensor | None = None, log_z: float = math.nan) -> Tensor:
    """Mean (2), covariance (4), the weight where z_0 > 0.1 and log Z, of z (N, 2) with weights w (N,): (8,)."""
    w = torch.full((len(z),), 1 / len(z), dtype=torch.float64) if w is None else w
    mean = w @ z
    cov = (z - mean).T @ (w[:, None] * (z - mean))
    last = torch.stack((w[z[:, 0] > 0.1].sum(), torch.tensor(log_z, dtype=torch.float64)))
    return torch.cat((mean, cov.flatten(), last))


def errors(away: Tensor) -> dict[str, Tensor]:
    """The sizes of the parts of deviations (..., 8) of `figures`."""
    parts = away.split([2, 4, 1, 1], dim=-1)
    return {name: part.norm(dim=-1) for name, part in zip(MEASURES, parts, strict=True)}


def plain(target: Target, seed: int, *, noise: bool, steps: int = 500) -> Tensor:
    """The reverse of the noise by the target's score alone, from N(0, I)."""
    generator = keyed_generator(seed, "plain")
    t = torch.linspace(START, END, steps + 1, dtype=torch.float64)
    s = (1 - t) / t
    z = s[0] * torch.randn(N, 2, generator=generator, dtype=torch.float64)
    for k in range(steps):
        denoised = z + s[k] ** 2 * t[k] * target(t[k], t[k] * z)[1]
        ratio = (s[k + 1] / s[k]) ** (2 if noise else 1)
        z = denoised + ratio * (z - denoised)
        if noise:
            spread = s[k + 1] * (1 - (s[k + 1] / s[k]) ** 2).sqrt()
            z = z + spread * torch.randn(z.shape, generator=generator, dtype=z.dtype)
    return z


def row(target: str, method: str, exact: Tensor, found: list[Tensor], cost: list | None = None) -> dict:
    """found: the figures of each seed. cost: of each seed the evaluations, the least share of particles, and ms."""
    away = torch.stack(found) - exact
    each, pooled = errors(away), errors(away.mean(0))
    cells = {"target": target, "method": method}
    for name in MEASURES:
        known = not bool(each[name].isnan().any())
        cells[name] = f"{each[name].mean():.3f} ({each[name].std():.3f}) {pooled[name]:.3f}" if known else ""
    means = torch.tensor(cost or [[math.nan] * 3], dtype=torch.float64).mean(0).tolist()
    names = ("evaluations", "effective", "ms")
    return cells | {name: "" if math.isnan(mean) else mean for name, mean in zip(names, means, strict=True)}


def particles(name: str, method: str, **options) -> dict:
    """A row of the Feynman-Kac sampler on one of the targets."""
    found, cost = [], []
    for seed in range(SEEDS):
        run = timed(TARGETS_2D[name][0](), seed, cost, **options)
        found.append(figures(run.x, run.log_w.exp(), run.log_normalizer))
    return row(name, method, Truth(name).exact, found, cost)


def in_many_dimensions(dims: int, method: str, **options) -> dict:
    """The same of log Z (truly 0) alone, of a mixture in many dimensions."""
    mixture, found, cost = many(dims), [], []
    for seed in range(SEEDS):
        run = timed(mixture.density, seed, cost, **options)
        found.append(torch.tensor([*[math.nan] * 7, run.log_normalizer], dtype=torch.float64))
    return row(f"mixture, {dims} dimensions", method, torch.zeros(8), found, cost)


def timed(target: Target, seed: int, cost: list, **options) -> Particles:
    start = time.perf_counter()
    run = FeynmanKac(particles=N, **options).sample(target, generator=keyed_generator(seed))
    cost.append([run.evaluations, min(run.ess) / N, 1000 * (time.perf_counter() - start)])
    return run


def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    torch.set_num_threads(1)
    rows = []
    for name, (make, _) in TARGETS_2D.items():
        truth = Truth(name)
        rows.append(row(name, "exact", truth.exact, [figures(truth.sample(seed)) for seed in range(SEEDS)]))
        unweighted = Averaged([0.3, 0.7], [A, B]) if name == "mixture" else make()
        for noise, method in ((False, "flow"), (True, "diffusion")):
            found = [figures(plain(unweighted, seed, noise=noise)) for seed in range(SEEDS)]
            rows.append(row(name, method, truth.exact, found))
        rows.append(particles(name, "particles"))
        rows.append(particles(name, "particles, hmc", move="hmc"))
    hard = "temperature, beta 4"
    for resampler in RESAMPLERS.names():
        rows.append(particles(hard, f"resampler {resampler}, each step", resampler=resampler, threshold=1.0))
    for move in MOVES.names():
        for moves in (1, 4):
            rows.append(particles(hard, f"{move}, {moves} a step", move={"name": move, "moves": moves}))
    imported = {"kernel": "none", "threshold": 0.0, "move": "hmc"}
    kinds: dict[str, dict] = {
        **{f"fixed, {steps} steps": {"steps": steps} for steps in (16, 32, 64, 128)},
        **{f"adaptive {share}": {"adaptive": share} for share in (0.9, 0.95, 0.98, 0.99)},
        "ancestral (spread 0)": {"spread": 0.0},
        "spread 0.1": {"spread": 0.1},
        "annealed importance sampling": imported,
        "annealed importance sampling, 256 steps": {**imported, "steps": 256},
    }
    for method, kind in kinds.items():
        rows.append(particles("product", method, **kind))
        rows.append(in_many_dimensions(64, method, **kind))
    publish("particles", f"Particles against guidance, {N} particles, {SEEDS} seeds", rows, options.json)


if __name__ == "__main__":
    main()
