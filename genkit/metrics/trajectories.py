"""How straight and how long the paths of a flow are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric
from genkit.types import DataSpec


@METRICS.register("trajectories")
class Trajectories(DataMetric):
    """Curvature and transport cost of the paths that a solver followed.

    With d = x_1 - x_0, the displacement of a sample, and v_t the velocity along its path,

        curvature       E int |v_t - d|^2 dt / E |d|^2   (0 for straight paths at constant speed)
        transport_cost  E |d|^2

    update(states, times): states x_{t_0}, ..., x_{t_n}, each (B, *shape) in encoded units; times (n + 1,)
    increasing, by default equally spaced on [0, 1]; other spans are rescaled to unit length. Between states
    the velocity is constant, so the integral is a lower bound that rises to its limit as states are added:
    compare at equal n, and not at n = 1, where it is 0.

    The integral is the straightness of Liu et al. 2022 (https://arxiv.org/abs/2209.03003, section 2), and the
    quotient the excess of path energy over transport cost: with the optimal cost below, it is the normalized
    path energy of Tong et al. 2023 (https://arxiv.org/abs/2302.00482, section 5). The quotient of means is
    taken, not the mean of quotients, which samples that hardly move would rule.

    Raises GenkitError for fewer than two states, states of other shapes, or times that do not increase.
    """

    reads = "trajectory"
    higher_is_better = False

    sums: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")  # rows, bend, cost

    def update(self, states: Sequence[Tensor], times: Tensor | None = None) -> None:
        if len(states) < 2:
            raise GenkitError(f"a trajectory has at least two states, not {len(states)}")
        if any(state.shape != states[0].shape or state.shape[1:] != self.spec.shape for state in states):
            shapes = sorted({tuple(state.shape) for state in states})
            raise GenkitError(
                f"states must all be (B, *{self.spec.shape}), not {', '.join(map(str, shapes))}"
            )
        device = states[0].device
        if times is None:
            times = torch.linspace(0, 1, len(states), dtype=torch.float64, device=device)
        steps = times.to(device).double().diff()
        if len(times) != len(states) or not (steps > 0).all():
            raise GenkitError(f"{len(states)} states need as many increasing times, not {times.tolist()}")
        steps = steps / steps.sum()
        moves = torch.stack([state.double().flatten(1) for state in states]).diff(dim=0)  # (n, B, D)
        displacement = moves.sum(0)
        bend = (moves / steps[:, None, None] - displacement).square().sum(-1).T @ steps  # (B,)
        cost = displacement.square().sum(1)
        self.sums += torch.stack([torch.ones_like(cost), bend, cost]).sum(1)

    def compute(self) -> dict[str, Tensor]:
        rows, bend, cost = self.sums
        if rows == 0:
            raise GenkitError("no trajectory to measure")
        return {"curvature": bend / cost, "transport_cost": cost / rows}
