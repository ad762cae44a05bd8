"""Normalizers of energies, and with them log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles.base import Model, Target
from genkit.particles.sampler import FeynmanKac
from genkit.types import Generator, LogProb


def log_normalizer(
    target: Target,
    sampler: FeynmanKac | None = None,
    *,
    runs: int = 8,
    generator: Generator = None,
) -> tuple[float, float]:
    """log of the integral of pi at the end of the run over x_t, and its standard error.

    From independent runs, whose estimates Z_r are unbiased: log mean Z_r, and the spread of Z_r / mean Z_r. An error
    above about 0.3 says that a few runs dominate, and then it is itself too small: take more particles or steps.

    sampler: default 256 particles and 64 steps. `FeynmanKac(kernel="none", move="hmc", threshold=0)` is annealed
    importance sampling.
    """
    if runs < 2:
        raise GenkitError(f"a standard error takes at least 2 runs, not {runs}")
    sampler = FeynmanKac() if sampler is None else sampler
    found = [sampler.sample(target, generator=generator).log_normalizer for _ in range(runs)]
    logs = torch.tensor(found, dtype=torch.float64)
    value = float(logs.logsumexp(0)) - math.log(runs)
    return value, float((logs - value).exp().std() / runs**0.5)


def log_prob(
    objective: Any,
    x: Tensor,
    label: int | None = None,
    *,
    sampler: FeynmanKac | None = None,
    runs: int = 8,
    generator: Generator = None,
) -> LogProb:
    """Log-probability (B,) in nats of data x (B, ...) of one class by an energy: -E at its `end`, less log Z.

    The standard error is that of log Z, one for all rows. What the noise left there blurs is not in it.

    objective: an energy. label: the class; null for all. sampler, runs: as for `log_normalizer`; by default 128 steps
    of the diffusion kernel, which in many dimensions is far better than annealed importance sampling. Raises
    GenkitError for a sampler that ends elsewhere.
    """
    if sampler is None:
        sampler = FeynmanKac(steps=128)
    if sampler.end not in (None, objective.end):
        raise GenkitError(
            f"the energy stands for the data at t = {objective.end:.3g}: leave out the sampler's end"
        )
    log_z, error = log_normalizer(Model(objective, label), sampler, runs=runs, generator=generator)
    y = None if objective.classes is None else torch.full((len(x),), -1 if label is None else label)
    with torch.no_grad():
        value = objective.log_prob(x, y, by="energy", generator=generator).value.double() - log_z
    return LogProb(value, "estimate", torch.full_like(value, error))
