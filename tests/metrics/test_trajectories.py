"""Curvature and transport cost of paths known in closed form."""

import math

import pytest
import torch

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.types import DataSpec

PLANE = DataSpec("plane", (2,))


def measure(states, times=None):
    metric = METRICS.build("trajectories", PLANE)
    metric.update(states, times)
    return {key: value.item() for key, value in metric.compute().items()}


def test_straight_paths_have_no_curvature_on_any_grid():
    x0, x1 = torch.randn(2, 10, 2, dtype=torch.float64)
    times = torch.tensor([0, 0.1, 0.5, 0.6, 1.0], dtype=torch.float64)
    found = measure([(1 - t) * x0 + t * x1 for t in times], times)
    assert found["curvature"] == pytest.approx(0, abs=1e-12)
    assert found["transport_cost"] == pytest.approx((x1 - x0).square().sum(1).mean().item())


def test_a_half_circle():
    """From (1, 0) to (-1, 0) at speed pi: int |v|^2 - |d|^2 = pi^2 - 4, over |d|^2 = 4."""
    angle = math.pi * torch.linspace(0, 1, 1001, dtype=torch.float64)
    states = [torch.stack([a.cos(), a.sin()])[None] for a in angle]
    found = measure(states)
    assert found["curvature"] == pytest.approx((math.pi**2 - 4) / 4, rel=1e-5)
    assert found["transport_cost"] == pytest.approx(4)


def test_uneven_speed_is_curvature_too():
    """x_t = t^2 d: int |2 t d - d|^2 dt = |d|^2 / 3."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    d = torch.randn(4, 2, dtype=torch.float64)
    assert measure([s**2 * d for s in t])["curvature"] == pytest.approx(1 / 3, rel=1e-5)


def test_the_span_and_the_split_into_batches_do_not_matter():
    states = list(torch.randn(5, 8, 2).double())
    times = torch.tensor([0.0, 0.2, 0.3, 0.7, 1.0], dtype=torch.float64)
    whole = measure(states, times)
    assert measure(states, 3 * times + 1) == pytest.approx(whole)
    assert measure(states)["curvature"] != pytest.approx(whole["curvature"], rel=1e-3)
    metric = METRICS.build("trajectories", PLANE)
    for part in (slice(0, 3), slice(3, 8)):
        metric.update([state[part] for state in states], times)
    assert {key: value.item() for key, value in metric.compute().items()} == pytest.approx(whole)


@pytest.mark.parametrize(
    ("states", "times", "message"),
    [
        ([torch.zeros(3, 2)], None, "at least two states, not 1"),
        ([torch.zeros(3, 2), torch.zeros(4, 2)], None, "states must all be"),
        ([torch.zeros(3, 3)] * 2, None, "states must all be"),
        ([torch.zeros(3, 2)] * 2, torch.tensor([0.0, 0.5, 1.0]), "2 states need as many increasing times"),
        ([torch.zeros(3, 2)] * 2, torch.tensor([1.0, 0.0]), "2 states need as many increasing times"),
    ],
)
def test_bad_trajectories_are_refused(states, times, message):
    with pytest.raises(GenkitError, match=message):
        METRICS.build("trajectories", PLANE).update(states, times)
