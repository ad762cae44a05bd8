"""Chamfer distance against its definition, and what is made of it on clouds whose neighbours are known."""

import gc
import weakref

import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.metrics import clouds as module
from genkit.metrics.clouds import chamfer
from genkit.types import DataSpec


def compute(name, samples, real, **options):
    metric = METRICS.build({"name": name, **options}, DataSpec("clouds", tuple(real.shape[1:])))
    metric.update(real, real=True)
    metric.update(samples, real=False)
    return float(metric.compute())


def at(*places):
    """Clouds of five points about places on a line."""
    noise = 0.01 * torch.randn(len(places), 5, 3, generator=torch.Generator().manual_seed(0))
    return noise + torch.tensor(places)[:, None, None]


def test_chamfer_is_its_definition(monkeypatch):
    a, b = (torch.randn(n, p, 3) for n, p in ((4, 5), (3, 7)))
    squares = torch.cdist(a[:, None].double(), b[None].double()).square()
    expected = squares.amin(3).mean(2) + squares.amin(2).mean(2)
    torch.testing.assert_close(chamfer(a, b).double(), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "BLOCK", 70)  # two clouds at a time
    torch.testing.assert_close(chamfer(a, b).double(), expected, rtol=1e-4, atol=1e-5)


def test_nothing_outlives_a_figure(monkeypatch):
    held = []

    def watched(a, b):
        found = chamfer(a, b)
        held.extend(weakref.ref(x) for x in (a, b, found))
        return found

    monkeypatch.setattr(module, "chamfer", watched)
    for name in ("cloud_neighbours", "cloud_matching", "cloud_coverage"):
        compute(name, at(0.0, 1.0), at(0.0, 1.0))
    gc.collect()
    assert held
    assert all(x() is None for x in held)


def test_the_order_of_points_does_not_matter():
    x, real = torch.randn(9, 5, 3), torch.randn(9, 5, 3)
    for name in ("cloud_neighbours", "cloud_matching", "cloud_coverage"):
        assert compute(name, x, real) == pytest.approx(compute(name, x[:, torch.randperm(5)], real))


def test_figures_of_known_neighbours():
    real = at(0.0, 10.0, 20.0, 25.0)
    assert compute("cloud_neighbours", at(0.0, 10.0, 20.0, 25.0) + 0.5, real) == 0  # each beside a real one
    assert compute("cloud_neighbours", at(0.0, 1.0, 2.0, 3.0) + 100, real) == 1
    assert compute("cloud_neighbours", torch.cat((real[:2], real[:2])), real) == pytest.approx(
        4 / 8 * 0.5 + 2 / 8
    )
    one_place = at(0.0, 0.0, 0.0, 0.0)
    assert compute("cloud_coverage", real + 0.5, real) == 1
    assert compute("cloud_coverage", one_place, real) == 0.25
    assert compute("cloud_matching", one_place, real) == pytest.approx(6 * (100 + 400 + 625) / 4, rel=0.01)


def test_only_the_first_rows_are_taken():
    real, far = at(0.0, 10.0), at(100.0, 110.0)
    assert compute("cloud_matching", torch.cat((real, far)), torch.cat((real, far)), rows=2) < 1e-3
    with pytest.raises(GenkitError, match="rows must be at least 2"):
        compute("cloud_matching", real, real, rows=1)


def test_noise_and_lost_variety_are_seen():
    data = DATASETS.build({"name": "shapes", "points": 64, "n_train": 120, "n_test": 60})
    real, same = data.test.take(torch.arange(60))[0], data.train.take(torch.arange(60))[0]
    noisy = same + 0.5 * torch.randn(same.shape, generator=torch.Generator().manual_seed(0))
    assert 0.35 < compute("cloud_neighbours", same, real) < 0.65
    assert compute("cloud_neighbours", noisy, real) > 0.75
    assert compute("cloud_matching", noisy, real) > 1.3 * compute("cloud_matching", same, real)
    one = compute("cloud_coverage", same[:1].expand(60, -1, -1), real)
    assert one < 0.05 < compute("cloud_coverage", same, real)
