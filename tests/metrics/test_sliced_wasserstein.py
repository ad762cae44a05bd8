"""Sliced Wasserstein against shifts known in closed form and against POT in one dimension."""

import ot
import pytest
import torch

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.metrics.sliced_wasserstein import wasserstein_1d
from genkit.types import DataSpec


def measure(x, y, **options):
    metric = METRICS.build({"name": "sliced_wasserstein", **options}, DataSpec("x", tuple(x.shape[1:])))
    metric.update(y, real=True)
    metric.update(x, real=False)
    return metric.compute()


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (6, 4), (30, 12), (2, 31), (64, 63)])
def test_one_dimension_is_exact_for_any_counts(n, m):
    x, y = torch.randn(n, 3).double(), torch.randn(m, 3).double() + 1
    expected = [ot.wasserstein_1d(x[:, k].numpy(), y[:, k].numpy(), p=2) for k in range(3)]
    assert wasserstein_1d(x, y).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dims", [1, 3])
def test_a_shift(dims):
    """SW_2 of a shift by c is |c| sqrt(E (theta . c / |c|)^2) = |c| / sqrt(D), for any data."""
    x = torch.randn(40, dims, dtype=torch.float64)
    shift = torch.full((dims,), 2.0, dtype=torch.float64)
    expected = shift.norm().item() / dims**0.5
    assert measure(x, x + shift, projections=4000).item() == pytest.approx(expected, rel=0.02)
    assert measure(x, x).item() == 0


def test_a_scale_in_one_dimension():
    """W_2 between X and s X is |s - 1| sqrt(E X^2)."""
    x = torch.randn(100, 1, dtype=torch.float64)
    assert measure(x, 3 * x).item() == pytest.approx(2 * x.square().mean().sqrt().item())


def test_projections_are_keyed():
    x, y = torch.randn(20, 5), torch.randn(30, 5)
    assert measure(x, y) == measure(x, y)
    assert measure(x, y, seed=1) != measure(x, y)
    with pytest.raises(GenkitError, match="projections must be at least 1"):
        measure(x, y, projections=0)
