"""Bits per dimension, or per character of text, with the kind of likelihood they come from."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric, nats_and_counts
from genkit.types import DataSpec, Kind, LogProb

KINDS: tuple[Kind, ...] = get_args(Kind)


def unit(spec: DataSpec) -> str:
    """What a likelihood of such data is counted in."""
    return "bits/dim" if not spec.text else "bits/byte" if spec.tokenizer == "bytes" else "bits/char"


@METRICS.register("bits_per_dim")
class BitsPerDim(DataMetric):
    """Negative log-likelihood of test data in bits per dimension, of text per character, with its kind.

    -sum log p(x) / (ln 2 sum m(x)), with m(x) the modelled values of a row, of text times the characters of a symbol.
    update(log_prob): LogProb with value (B,) nats of the data, and the count of what they are of. compute() gives

        value         the quotient of the sums over rows, in `unit`
        stderr        its standard error over rows, that of a ratio: with residuals r = bits - value m,
                      sqrt(sum r^2 / (N - 1) / N) / mean m; nan for one row
        monte_carlo   the part of it that more Monte Carlo draws would remove, sqrt(sum stderr^2) / sum m
        kind          "exact", "bound" or "estimate"
        unit          "bits/dim"; "bits/char" for text, "bits/byte" for text read as bytes

    Raises GenkitError when kinds are mixed (a bound and an exact figure have no common mean), for a value
    that is not (B,), and for nothing to average.
    """

    reads = "log_prob"
    words = "bits/dim"
    higher_is_better = False

    moments: Tensor
    kinds: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        # N, sums of m, bits, bits^2, bits m, m^2, and of squared Monte Carlo errors; squares are safe in float64
        self.add_state("moments", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("kinds", torch.zeros(len(KINDS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_prob: LogProb) -> None:
        nats, counts = nats_and_counts(log_prob, self.spec)
        bits, m = nats / math.log(2), counts * self.spec.characters
        error = torch.zeros_like(bits) if log_prob.stderr is None else log_prob.stderr.double() / math.log(2)
        sums = [torch.ones_like(m), m, bits, bits.square(), bits * m, m.square(), error.square()]
        self.moments += torch.stack(sums).sum(1)
        self.kinds[KINDS.index(log_prob.kind)] += len(bits)
        self._kind()

    def compute(self) -> dict[str, Tensor | str]:
        kind = self._kind()
        n, m, bits, bits_bits, bits_m, m_m, errors = self.moments
        value = bits / m
        residuals = (bits_bits - 2 * value * bits_m + value.square() * m_m).clamp(min=0)
        return {
            "value": value,
            "stderr": (residuals / (n - 1) * n).sqrt() / m,
            "monte_carlo": errors.sqrt() / m,
            "kind": kind,
            "unit": unit(self.spec),
        }

    def _kind(self) -> Kind:
        found = [kind for kind, count in zip(KINDS, self.kinds.tolist(), strict=True) if count]
        if len(found) != 1:
            raise GenkitError(
                f"bits/dim of kinds {', '.join(found)} mixed" if found else "no rows for bits/dim"
            )
        return found[0]
