"""Bits per dimension, with the kind of likelihood they come from."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric
from genkit.types import DataSpec, Kind, LogProb

KINDS: tuple[Kind, ...] = get_args(Kind)


@METRICS.register("bits_per_dim")
class BitsPerDim(DataMetric):
    """Negative log-likelihood of test data in bits per dimension: -log p(x) / (dims ln 2), with its kind.

    update(log_prob): LogProb with value (B,) nats of the data. compute() gives

        value         the mean over rows, in bits/dim
        stderr        its standard error over rows, std / sqrt(N); nan for one row
        monte_carlo   the part of it that more Monte Carlo draws would remove, sqrt(sum stderr^2) / N
        kind          "exact", "bound" or "estimate"

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
        # count, sum, sum of squares, sum of squared Monte Carlo errors; squares are safe in float64
        self.add_state("moments", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("kinds", torch.zeros(len(KINDS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_prob: LogProb) -> None:
        value = log_prob.value
        if value.dim() != 1:
            raise GenkitError(f"a log-probability has one value a row, (B,), not {tuple(value.shape)}")
        bits = -value.double() / (self.spec.dims * math.log(2))
        error = torch.zeros_like(bits) if log_prob.stderr is None else log_prob.stderr.double()
        error = error / (self.spec.dims * math.log(2))
        sums = [torch.ones_like(bits), bits, bits.square(), error.square()]
        self.moments += torch.stack(sums).sum(1)
        self.kinds[KINDS.index(log_prob.kind)] += len(bits)
        self._kind()

    def compute(self) -> dict[str, Tensor | str]:
        kind = self._kind()
        n, total, squares, errors = self.moments
        mean = total / n
        variance = (squares - n * mean.square()).clamp(min=0) / (n - 1)
        return {
            "value": mean,
            "stderr": (variance / n).sqrt(),
            "monte_carlo": errors.sqrt() / n,
            "kind": kind,
        }

    def _kind(self) -> Kind:
        found = [kind for kind, count in zip(KINDS, self.kinds.tolist(), strict=True) if count]
        if len(found) != 1:
            raise GenkitError(
                f"bits/dim of kinds {', '.join(found)} mixed" if found else "no rows for bits/dim"
            )
        return found[0]
