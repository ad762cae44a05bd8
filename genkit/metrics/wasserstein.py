"""Exact 2-Wasserstein distance of points: in all, class by class, and with their conditions."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, TwoSample
from genkit.types import DataSpec


class Assigned(TwoSample):
    """A distance by optimal assignment, of points: up to three real numbers a row.

    rows: the first so many of either side are taken, time O(rows^3). The distance of two samples of one distribution
    is not 0 but falls with rows, so compare at equal counts and beside the floor.
    """

    needs = "points of at most three real numbers"

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return is_of_points(spec)

    def __init__(self, spec: DataSpec, rows: int = 2000) -> None:
        super().__init__(spec)
        if rows < 2:
            raise GenkitError(f"rows must be at least 2, not {rows}")
        self.rows = rows


@METRICS.register("wasserstein")
class Wasserstein(Assigned):
    """Exact 2-Wasserstein distance, in the data's units: W_2 = min_pi sqrt(1/n sum_i |x_i - y_pi(i)|^2).

    Papers that report `ot.emd2` of squared distances give W_2^2. For unlike counts, the smaller is taken of both.
    Raises GenkitError for fewer than two rows, and what TwoSample raises.
    """

    words = "2-Wasserstein distance"

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return optimal_cost(x[: self.rows], y[: self.rows]).sqrt()


class Conditioned(Assigned):
    """Such a distance that knows what is given of each row: `distance` has it in `real_y` and `fake_y`."""

    by_class = True

    real_y: list[Tensor]
    fake_y: list[Tensor]

    def __init__(self, spec: DataSpec, rows: int = 2000) -> None:
        super().__init__(spec, rows)
        self.add_state("real_y", [], dist_reduce_fx="cat")
        self.add_state("fake_y", [], dist_reduce_fx="cat")

    def update(self, x: Tensor, real: bool, y: Tensor | None = None) -> None:
        super().update(x, real)
        (self.real_y if real else self.fake_y).append(self.given(x, y))

    def given(self, x: Tensor, y: Tensor | None) -> Tensor:
        """What is kept of y for the rows x (B, *shape)."""
        return torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else y


@METRICS.register("class_wasserstein")
class ClassWasserstein(Conditioned):
    """Exact 2-Wasserstein distance of points and their classes: sqrt(sum_y p(y) W_2^2(p(x | y), q(x | y))).

    That is W_2 of (x, y) where mass may not go from class to class; p(y) is that of the reference rows. A model whose
    classes are each wrong may still be right in all, which `wasserstein` does not see.

    update(x, real, y=None): y (B,) classes; all are of one class without.
    Raises GenkitError for a class that only the reference rows have, and what `wasserstein` raises.
    """

    words = "2-Wasserstein distance class by class"

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return is_of_points(spec) and spec.condition is None

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x[: self.rows], y[: self.rows]
        of_x, of_y = dim_zero_cat(self.fake_y)[: len(x)], dim_zero_cat(self.real_y)[: len(y)]
        total = x.new_zeros(())
        for label, count in zip(*of_y.unique(return_counts=True), strict=True):
            if not bool((of_x == label).any()):
                raise GenkitError(f"no samples of class {int(label)}, of which there are reference rows")
            total += count / len(y) * optimal_cost(x[of_x == label], y[of_y == label])
        return total.sqrt()


@METRICS.register("joint_wasserstein")
class JointWasserstein(Conditioned):
    """Exact 2-Wasserstein distance of points with their real-valued conditions: W_2 of (x, s y), in the data's units.

    s = sqrt(tr Cov(x) / tr Cov(y)), of the reference rows, makes conditions count as much as points. Points that are
    right in all but come under the wrong conditions are far, which `wasserstein` does not see.

    update(x, real, y): y (B, K). Raises GenkitError for rows without conditions, and what `wasserstein` raises.
    """

    words = "2-Wasserstein distance of points with their conditions"
    needs = f"{Assigned.needs} and real-valued conditions"

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return is_of_points(spec) and spec.condition is not None

    def given(self, x: Tensor, y: Tensor | None) -> Tensor:
        if y is None or y.shape != (len(x), self.spec.condition):
            raise GenkitError(
                f"'{self.spec.name}' has conditions of shape ({len(x)}, {self.spec.condition}): give y"
            )
        return y

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        of_x, of_y = dim_zero_cat(self.fake_y).to(x), dim_zero_cat(self.real_y).to(y)
        spread = of_y.var(0).sum()
        scale = torch.where(spread > 0, y.var(0).sum() / spread, 0.0).sqrt()
        joint, real = torch.cat((x, scale * of_x), 1), torch.cat((y, scale * of_y), 1)
        return optimal_cost(joint[: self.rows], real[: self.rows]).sqrt()


def is_of_points(spec: DataSpec) -> bool:
    return spec.ordered and spec.levels is None and spec.dims <= 3


def optimal_cost(x: Tensor, y: Tensor) -> Tensor:
    """min_pi 1/n sum_i |x_i - y_pi(i)|^2 of the first n rows of x (N, D) and y (M, D), n the smaller count."""
    n = min(len(x), len(y))
    cost = (x[:n, None] - y[None, :n]).square().sum(-1)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return cost[rows, columns].mean()
