"""How objectives read data: levels as real numbers, or as symbols."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import sample_like
from genkit.types import DataSpec, Generator, Kind, View

Noise = Literal["uniform", "gaussian", "none"]


class Symbols(View):
    """Levels as symbols, one a value, which discrete objectives model as they are: encode and decode change nothing.

    likelihood: what the objective says of it, "exact" or "estimate" (of a bound).
    Raises GenkitError for real-valued data.
    """

    log_volume = 0.0

    def __init__(self, spec: DataSpec, likelihood: Kind) -> None:
        if spec.levels is None:
            raise GenkitError(
                f"'{spec.name}' is real-valued: a discrete objective needs levels or symbols; "
                "flow_matching and normalizing_flow take real values"
            )
        self.spec, self.likelihood = spec, likelihood

    def encode(self, data: Tensor, *, generator: Generator = None) -> Tensor:
        return data.long()

    def decode(self, x: Tensor) -> Tensor:
        return x


class Continuous(View):
    """Levels as real numbers in [-1, 1], or real-valued data as they are.

    Level l of V owns the cell of width 2/V around its centre c(l) = 2 (l + 1/2) / V - 1.

    noise   | encode(l)                        | likelihood
    uniform | 2 (l + U) / V - 1, U ~ U(0, 1)   | bound: log P(l) >= E log p(x) + dims ln(2 / V)
    gaussian| c(l) + sigma N(0, 1)             | None: a density of noised data says nothing of the levels
    none    | c(l)                             | None

    The bound is Jensen's inequality over the cell (Theis et al. 2016, https://arxiv.org/abs/1511.01844, 3.1).
    Real-valued data (`spec.levels` is None) take "none" (likelihood exact) or "gaussian" (None).
    `decode` is the cell that x lies in, outside values clamped; for real-valued data the identity.

    spec: of the data. noise: None stands for "uniform" with levels and "none" without.
    sigma: standard deviation of the Gaussian noise, in encoded units; only with "gaussian".
    Raises GenkitError for symbols without an order, noise that does not fit the data, or a sigma that does not
    fit the noise.
    """

    def __init__(self, spec: DataSpec, noise: Noise | None = None, sigma: float = 0.0) -> None:
        if not spec.ordered:
            raise GenkitError(
                f"the symbols of '{spec.name}' have no order, so they are no numbers: "
                "choose a discrete objective, such as masked_diffusion"
            )
        if noise is None:
            noise = "none" if spec.levels is None else "uniform"
        if noise not in ("uniform", "gaussian", "none"):
            raise GenkitError(f"noise must be 'uniform', 'gaussian' or 'none', not {noise!r}")
        if noise == "uniform" and spec.levels is None:
            raise GenkitError(f"'{spec.name}' is real-valued: uniform noise is for levels; use noise 'none'")
        if noise == "gaussian" and not (sigma > 0 and math.isfinite(sigma)):
            raise GenkitError(f"gaussian noise needs sigma > 0 (such as 0.1), not {sigma}")
        if noise != "gaussian" and sigma != 0:
            raise GenkitError(f"sigma {sigma} is for noise 'gaussian'; the noise here is '{noise}'")
        self.spec, self.noise, self.sigma = spec, noise, sigma
        self.likelihood: Kind | None = None
        if noise == "uniform":
            self.likelihood = "bound"
        elif noise == "none" and spec.levels is None:
            self.likelihood = "exact"
        self.log_volume = spec.dims * math.log(2 / spec.levels) if spec.levels else 0.0

    def encode(self, data: Tensor, *, generator: Generator = None) -> Tensor:
        """(B, *shape) levels, or real values -> (B, *shape) of torch's default dtype.

        Noise is drawn on the generator's device. decode(encode(l)) == l for "uniform" and "none".
        """
        levels = self.spec.levels
        x = data.to(torch.get_default_dtype())
        if levels is not None:
            offset: Tensor | float = 0.5
            if self.noise == "uniform":  # a rounding error inside the cell, to decode to the level always
                margin = levels * torch.finfo(x.dtype).eps
                offset = sample_like(torch.rand, x, generator).clamp(margin, 1 - margin)
            x = 2 * (x + offset) / levels - 1
        return x + self.sigma * sample_like(torch.randn, x, generator) if self.noise == "gaussian" else x

    def decode(self, x: Tensor) -> Tensor:
        """(B, *shape) -> levels 0..V-1 as int64, or x itself for real-valued data."""
        levels = self.spec.levels
        return x if levels is None else ((x + 1) / 2 * levels).floor().clamp(0, levels - 1).long()
