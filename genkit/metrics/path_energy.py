"""What the paths of a flow cost beside the cheapest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric, flat
from genkit.metrics.wasserstein import is_of_points, optimal_cost
from genkit.types import DataSpec


@METRICS.register("path_energy")
class PathEnergy(DataMetric):
    """Energy of the paths that a solver followed, and its excess over the optimal cost between their ends.

        path_energy             PE = E int |v_t|^2 dt
        normalized_path_energy  (PE - W) / W,   W = W_2^2(x_0, x_1)

    0 for the dynamic optimal transport between the two ends. Tong et al. 2023 (https://arxiv.org/abs/2302.00482,
    section 5) take W between source and data; here it is between the samples at both ends, so that it is exact for
    them and never above PE: what a flow makes of the data is for `wasserstein` to say.

    update(states, times): as of `trajectories`; the integral too is that of piecewise constant velocities.
    rows: W is of the first so many. Raises GenkitError for fewer than two states, for times that do not increase, and
    where nothing was measured.
    """

    reads = "trajectory"
    needs = "points of at most three real numbers"
    higher_is_better = False

    sums: Tensor
    first: list[Tensor]
    last: list[Tensor]

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return is_of_points(spec)

    def __init__(self, spec: DataSpec, rows: int = 2000) -> None:
        self.require(spec)
        super().__init__()
        if rows < 2:
            raise GenkitError(f"rows must be at least 2, not {rows}")
        self.spec, self.rows = spec, rows
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")  # energy, rows
        self.add_state("first", [], dist_reduce_fx="cat")
        self.add_state("last", [], dist_reduce_fx="cat")

    def update(self, states: Sequence[Tensor], times: Tensor) -> None:
        if len(states) < 2 or len(times) != len(states):
            raise GenkitError(
                f"{len(states)} states and {len(times)} times: at least two, and as many, are needed"
            )
        rows = torch.stack([flat(state, self.spec).double() for state in states])  # (n + 1, B, D)
        steps = times.to(rows).diff()
        if not bool((steps > 0).all()):
            raise GenkitError(f"times must increase, not {times.tolist()}")
        energy = (rows.diff(dim=0).square().sum(-1).T @ (steps.sum() / steps)).sum()
        self.sums += torch.stack([energy, energy.new_tensor(rows.shape[1])])
        self.first.append(rows[0])
        self.last.append(rows[-1])

    def compute(self) -> dict[str, Tensor]:
        total, count = self.sums
        if count == 0:
            raise GenkitError("no trajectory to measure")
        first, last = dim_zero_cat(self.first), dim_zero_cat(self.last)
        cost = optimal_cost(first[: self.rows], last[: self.rows])
        energy = total / count
        return {"path_energy": energy, "normalized_path_energy": energy / cost - 1}
