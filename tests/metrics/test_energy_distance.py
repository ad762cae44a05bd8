"""Energy distance against a direct sum, a closed form, and its own unbiasedness."""

import itertools
import math

import pytest
import torch

from genkit.metrics import METRICS, energy_distance
from genkit.types import DataSpec


def measure(x, y):
    metric = METRICS.build("energy_distance", DataSpec("x", tuple(x.shape[1:])))
    metric.update(y, real=True)
    metric.update(x, real=False)
    return metric.compute().item()


def direct(x, y):
    def mean(pairs):
        distances = [math.dist(a, b) for a, b in pairs]
        return sum(distances) / len(distances)

    x, y = x.tolist(), y.tolist()
    within = [mean(itertools.permutations(side, 2)) for side in (x, y)]
    return 2 * mean(itertools.product(x, y)) - sum(within)


def test_points_by_hand():
    """{0, 1} and {0, 3}: 2 * (0 + 3 + 1 + 2) / 4 - 1 - 3."""
    assert measure(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])) == pytest.approx(-1)


@pytest.mark.parametrize("block", [2048, 4])
def test_a_direct_sum_in_any_blocks(monkeypatch, block):
    monkeypatch.setattr(energy_distance, "BLOCK", block)
    x, y = torch.randn(9, 3).double(), 2 * torch.randn(14, 3).double() + 1
    assert measure(x, y) == pytest.approx(direct(x, y), rel=1e-9)


def test_gaussians_in_closed_form():
    """For N(0, 1) and N(m, 1): E|X - Y| = 2 phi(m / sqrt 2) sqrt 2 + m (2 Phi(m / sqrt 2) - 1)."""
    m, n = 1.5, 4000
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, 1, generator=generator).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    z = torch.tensor(m / math.sqrt(2))
    across = 2 * math.sqrt(2) * normal.log_prob(z).exp() + m * (2 * normal.cdf(z) - 1)
    assert measure(x, y + m) == pytest.approx((2 * across - 4 / math.sqrt(math.pi)).item(), abs=0.05)


def test_equal_distributions_give_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    figures = torch.tensor([measure(*torch.randn(2, 8, 2, generator=generator)) for _ in range(300)])
    assert figures.mean().abs() < 4 * figures.std() / 300**0.5
    assert (figures < 0).any()
