"""Bits per dimension of known likelihoods, and no mean over unlike kinds."""

import math

import pytest
import torch
from scipy.stats import sem

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.types import DataSpec, LogProb

SPEC = DataSpec("x", (1, 2, 2), levels=256)


def test_uniform_levels_cost_eight_bits():
    metric = METRICS.build("bits_per_dim", SPEC)
    metric.update(LogProb(torch.full((5,), -4 * math.log(256)), "exact"))
    found = metric.compute()
    assert found["value"].item() == pytest.approx(8)
    assert found["stderr"].item() == pytest.approx(0, abs=1e-6)
    assert found["monte_carlo"] == 0
    assert found["kind"] == "exact"


def test_mean_and_errors_over_several_updates():
    value, error = -10 * torch.rand(50, dtype=torch.float64) - 1000, torch.rand(50, dtype=torch.float64)
    metric = METRICS.build("bits_per_dim", SPEC)
    for v, e in zip(value.split(20), error.split(20), strict=True):
        metric.update(LogProb(v, "estimate", e))
    found, unit = metric.compute(), 4 * math.log(2)
    assert found["value"].item() == pytest.approx(-value.mean().item() / unit)
    assert found["stderr"].item() == pytest.approx(sem(value.numpy()) / unit)
    assert found["monte_carlo"].item() == pytest.approx(error.square().sum().sqrt().item() / 50 / unit)
    assert found["kind"] == "estimate"


def test_kinds_do_not_mix():
    metric = METRICS.build("bits_per_dim", SPEC)
    metric.update(LogProb(torch.zeros(3), "bound"))
    with pytest.raises(GenkitError, match="exact, bound mixed"):
        metric.update(LogProb(torch.zeros(3), "exact"))


def test_processes_together_measure_what_one_would():
    value = -100 * torch.rand(30, dtype=torch.float64)
    whole, first, second, other = (METRICS.build("bits_per_dim", SPEC) for _ in range(4))
    whole.update(LogProb(value, "bound"))
    first.update(LogProb(value[:10], "bound"))
    second.update(LogProb(value[10:], "bound"))
    other.update(LogProb(value[10:], "exact"))
    first.merge_state(second)
    assert first.compute()["value"].item() == pytest.approx(whole.compute()["value"].item())
    assert first.compute()["stderr"].item() == pytest.approx(whole.compute()["stderr"].item())
    second.merge_state(other)
    with pytest.raises(GenkitError, match="exact, bound mixed"):
        second.compute()


def test_a_value_a_row():
    with pytest.raises(GenkitError, match=r"\(B,\), not \(3, 4\)"):
        METRICS.build("bits_per_dim", SPEC).update(LogProb(torch.zeros(3, 4), "exact"))
