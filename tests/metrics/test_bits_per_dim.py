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


@pytest.mark.parametrize(
    ("tokenizer", "unit"),
    [("", "bits/dim"), ("ascii", "bits/char"), ("subwords:{}", "bits/char"), ("bytes", "bits/byte")],
)
def test_the_unit_is_that_of_the_data(tokenizer, unit):
    metric = METRICS.build("bits_per_dim", DataSpec("x", (4,), levels=8, tokenizer=tokenizer))
    metric.update(LogProb(torch.full((2,), -4 * math.log(8)), "exact"))
    assert metric.compute()["unit"] == unit
    assert metric.compute()["value"].item() == pytest.approx(3)


def test_text_is_counted_in_characters_of_what_is_modelled():
    """Rows of 6 and of 2 modelled symbols, each of 2.5 characters: sums are divided, not the rows' quotients."""
    metric = METRICS.build(
        "bits_per_dim", DataSpec("x", (8,), levels=9, tokenizer="subwords:{}", characters=2.5)
    )
    count = torch.tensor([6, 2])
    metric.update(LogProb(-math.log(2) * torch.tensor([30.0, 20.0]), "exact", count=count))
    assert metric.compute()["value"].item() == pytest.approx(50 / (8 * 2.5))


def test_the_error_of_a_quotient_is_that_of_a_bootstrap():
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(10, 100, (400,), generator=generator)
    bits = count * (2 + torch.rand(400, generator=generator, dtype=torch.float64))
    metric = METRICS.build("bits_per_dim", DataSpec("x", (100,), levels=9, tokenizer="ascii"))
    metric.update(LogProb(-math.log(2) * bits, "exact", count=count))
    drawn = torch.randint(400, (4000, 400), generator=generator)
    quotients = bits[drawn].sum(1) / count[drawn].sum(1)
    assert metric.compute()["stderr"].item() == pytest.approx(quotients.std().item(), rel=0.08)
    of_means = (bits / count).std() / 20  # of a mean over rows, which is another figure
    assert metric.compute()["stderr"].item() != pytest.approx(of_means.item(), rel=0.08)


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
