"""Precision and recall by hand, and what they say of known samples."""

import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.metrics.precision_recall import Precision, Recall
from genkit.types import DataSpec


class Identity(torch.nn.Module):
    hash = "none"

    def forward(self, x):
        return x.double()


def measure(real, fake, k=1):
    found = []
    for cls in (Precision, Recall):
        metric = cls(DataSpec("x", tuple(real.shape[1:])), k, Identity())
        metric.update(real, real=True)
        metric.update(fake, real=False)
        found.append(float(metric.compute()))
    return found


def test_points_by_hand():
    """Radii of {0, 1, 5}: 1, 1, 4; of {0.5, 20}: 19.5 each. 20 lies in no ball of the first; all of the first in one
    of the second."""
    real, fake = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.5], [20.0]])
    assert measure(real, fake) == [0.5, 1.0]
    assert measure(fake, real) == [1.0, 0.5]


def test_collapse_costs_recall_and_blur_costs_precision():
    data = DATASETS.build("digits")
    test, train = (data.split(part).take(torch.arange(300))[0] for part in ("test", "train"))
    noise = torch.randint(17, train.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, samples in {"real": train, "few": train[:10].repeat(30, 1, 1, 1), "noise": noise}.items():
        for metric_name in ("precision", "recall"):
            metric = METRICS.build(metric_name, data.spec)
            metric.update(test, real=True)
            metric.update(samples, real=False)
            found[name, metric_name] = float(metric.compute())
    assert found["real", "precision"] > 0.8
    assert found["real", "recall"] > 0.8
    assert found["few", "precision"] > 0.6
    assert found["few", "recall"] < 0.1
    assert found["noise", "precision"] < 0.3


def test_what_cannot_be_measured():
    with pytest.raises(GenkitError, match="k must be at least 1"):
        METRICS.build({"name": "recall", "k": 0}, DATASETS.build("digits").spec)
    with pytest.raises(GenkitError, match="no pinned|extractor"):
        METRICS.build("precision", DataSpec("x", (2,)))
    with pytest.raises(GenkitError, match="more than 3 rows"):
        measure(torch.zeros(3, 2), torch.zeros(9, 2), k=3)
