"""Nearest training rows against scikit-learn."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from genkit.errors import GenkitError
from genkit.metrics import METRICS, nearest
from genkit.types import DataSpec

SPEC = DataSpec("x", (1, 2, 3), levels=17)


def rows(n, seed):
    return torch.randint(17, (n, 1, 2, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [2048, 7])
def test_distances_are_those_of_scikit_learn(monkeypatch, block):
    monkeypatch.setattr(nearest, "BLOCK", block)
    parts = {"train": rows(50, 0), "test": rows(20, 1), "sample": rows(30, 2)}
    metric = METRICS.build("nearest", SPEC)
    for part, x in parts.items():
        for some in x.split(13):
            metric.update(some, part)
    found = metric.compute()
    trees = NearestNeighbors(n_neighbors=1).fit(parts["train"].flatten(1).numpy())
    for part in ("test", "sample"):
        distance, _ = trees.kneighbors(parts[part].flatten(1).numpy())
        assert found[part].item() == pytest.approx(distance.mean())
    assert found["ratio"].item() == pytest.approx((found["sample"] / found["test"]).item())


def test_a_copier_is_found_out():
    metric = METRICS.build("nearest", SPEC)
    metric.update(rows(50, 0), "train")
    metric.update(rows(20, 1), "test")
    metric.update(rows(50, 0)[10:20], "sample")
    assert metric.compute()["ratio"] < 1e-6


def test_bad_parts_are_refused():
    metric = METRICS.build("nearest", SPEC)
    with pytest.raises(GenkitError, match="did you mean 'sample'"):
        metric.update(rows(5, 0), "samples")
    metric.update(rows(5, 0), "train")
    with pytest.raises(GenkitError, match="needs test rows or samples"):
        metric.compute()
    with pytest.raises(GenkitError, match="the training rows first"):
        METRICS.build("nearest", SPEC).update(rows(5, 0), "test")
