"""Temperature and composition: powers, products, mixtures and quotients of densities."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles.base import TARGETS, Evaluation, Progress, Target
from genkit.types import Generator, per_row

if TYPE_CHECKING:
    from genkit.particles.sampler import FeynmanKac


@TARGETS.register("temperature")
class Temperature(Target):
    """pi_t(x) = p_t(x)^beta: the temperature 1 / beta.

    beta: above 1 for what is most probable, below 1 for more variety. Raises GenkitError for one that is not positive.
    """

    def __init__(self, inner: Target, beta: float = 1.0) -> None:
        if not 0 < beta < math.inf:
            raise GenkitError(
                f"beta must be a positive number, not {beta}: below 1 for more variety, above 1 for less "
                "(at 0 or below nothing is left to sample)"
            )
        self.parts, self.beta, self.exponent = (inner,), beta, beta * inner.exponent

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        value, gradient = self.parts[0](t, x, last)
        return self.beta * value, self.beta * gradient


@TARGETS.register("product")
class Product(Target):
    """pi_t(x) = prod_i p_i(x)^w_i, or with a prior p_0 divided out prod_i p_i(x)^w_i p_0(x)^(1 - sum_i w_i).

    With parts p(x | y_i) and the prior p(x), independent conditions give p(x | y_1, ..., y_n) by Bayes' rule; one part
    of weight w and the prior is what guidance of scale w aims at. A negative weight -w negates, "a and not b": weights
    1 and -w are p_a(x) / p_b(x)^w, and with a prior p_a(x) (p_0(x) / p_b(x))^w.

    Such a quotient is not always a density. At t=0 it is N(0, I / (1 - w)): without a prior w must be below 1 (an error
    says so). Later it must fall off in every direction: of Gaussians, precision_a + w (precision_0 - precision_b),
    where there is no prior precision_a - w precision_b, must be positive. Where it is not, particles run away, which
    only shows in samples far from all data, many resamplings and a large log_normalizer. So choose b wider than a, or
    w small.

    weights: w_i, all 1 where null. prior: p_0, a target such as the unconditional model.
    Liu et al., Compositional Visual Generation, https://arxiv.org/abs/2206.01714; Du et al., Reduce, Reuse, Recycle,
    https://arxiv.org/abs/2302.11552.
    """

    several = True

    def __init__(
        self, parts: Sequence[Target], weights: Sequence[float] | None = None, prior: Target | None = None
    ) -> None:
        weights = [1.0] * len(parts) if weights is None else list(weights)
        if not parts or len(weights) != len(parts) or not all(map(math.isfinite, weights)):
            raise GenkitError(f"product: one finite weight for each of {len(parts)} parts, not {weights}")
        self.parts, self.weights = tuple(parts), weights
        if prior is not None and sum(weights) != 1:  # else it has no part in the density: spare its calls
            self.parts, self.weights = (*parts, prior), [*weights, 1 - sum(weights)]
        self.exponent = sum(w * part.exponent for w, part in zip(self.weights, self.parts, strict=True))

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        pairs = zip(self.weights, self.parts, strict=True)
        found = [(w * value, w * gradient) for w, part in pairs for value, gradient in [part(t, x, last)]]
        values, gradients = zip(*found, strict=True)
        return torch.stack(values).sum(0), torch.stack(gradients).sum(0)


@TARGETS.register("mixture")
class Mixture(Target):
    """pi_t(x) = sum_i w_i p_i(x) / Z_i(t) / sum_i w_i, Z_i(t) the integral of p_i at time t.

    An energy is known up to a constant, another one at each time and for each class, so before sampling each part is
    sampled alone, with the same particles and steps, for its log Z_i(t) (interpolated between the times of that run).
    An error of log Z_i is an error of the log-weight of part i. What follows needs no Z: particles of the parts mix.

    weights: w_i, positive; equal where null. normalized: the parts are densities, Z_i = 1, and nothing is estimated.
    Raises GenkitError for parts that are unlike at t=0 (powers of models that do not have the same sum).
    """

    several = True

    def __init__(
        self, parts: Sequence[Target], weights: Sequence[float] | None = None, normalized: bool = False
    ) -> None:
        weights = [1.0] * len(parts) if weights is None else list(weights)
        if not parts or len(weights) != len(parts) or not all(0 < w < math.inf for w in weights):
            raise GenkitError(f"mixture: one positive weight for each of {len(parts)} parts, not {weights}")
        exponents = [part.exponent for part in parts]
        if not all(math.isclose(exponents[0], exponent) for exponent in exponents):
            raise GenkitError(
                f"mixture: the parts have powers of models that sum to {', '.join(f'{c:g}' for c in exponents)}, so "
                "that at t=0 they are Gaussians of unlike widths: give all the same sum, by dividing the prior out "
                "of products or by the same beta"
            )
        self.parts, self.exponent = tuple(parts), exponents[0]
        self.log_weights = [math.log(w / sum(weights)) for w in weights]
        self.normalized = normalized
        self.normalizers: list[tuple[list[float], list[float]]] = []  # of each part: times, log Z

    def setup(
        self, sampler: FeynmanKac, *, generator: Generator = None, progress: Progress | None = None
    ) -> None:
        if self.normalized:
            return super().setup(sampler, generator=generator, progress=progress)
        # which sets the parts up
        runs = [sampler.sample(part, generator=generator, progress=progress) for part in self.parts]
        self.normalizers = [(run.times, run.log_normalizers) for run in runs]

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        found = [part(t, x, last) for part in self.parts]
        logs = torch.stack(
            [value + log for (value, _), log in zip(found, self.log_shares(float(t)), strict=True)]
        )
        gradients = torch.stack([gradient for _, gradient in found])
        shares = logs.softmax(0)
        shares = torch.stack([per_row(share, x) for share in shares])
        return logs.logsumexp(0), (shares * gradients).sum(0)

    def log_shares(self, t: float) -> list[float]:
        """log w_i - log Z_i(t)."""
        if self.normalized:
            return self.log_weights
        if not self.normalizers:
            raise GenkitError(
                "mixture: call setup(sampler) first, which estimates the normalizers of the parts"
            )
        pairs = zip(self.log_weights, self.normalizers, strict=True)
        return [log - interpolate(t, times, values) for log, (times, values) in pairs]


def interpolate(t: float, times: list[float], values: list[float]) -> float:
    """`values` at increasing `times`, linearly between them and constant outside."""
    i = min(max(bisect.bisect_right(times, t), 1), len(times) - 1)
    share = min(max((t - times[i - 1]) / (times[i] - times[i - 1]), 0.0), 1.0)
    return values[i - 1] + share * (values[i] - values[i - 1])
