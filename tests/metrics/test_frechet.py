"""The Fréchet distance of Gaussians against its closed form through SciPy."""

import numpy
import pytest
import torch
from scipy.linalg import sqrtm

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS, Judge
from genkit.metrics.extractor import PINNED, load_extractor
from genkit.metrics.frechet import FrechetDistance
from genkit.types import DataSpec


class Identity(torch.nn.Module):
    """Features that are the data."""

    num_features, hash = 5, "none"

    def forward(self, x):
        return x.double()


def test_gaussians_in_closed_form():
    metric = FrechetDistance(DataSpec("x", (5,)), Identity())
    x = torch.randn(400, 5).double() @ torch.randn(5, 5).double()
    y = torch.randn(300, 5).double() @ torch.randn(5, 5).double() + 2
    metric.update(x, real=False)
    metric.update(y, real=True)
    mean = (x.mean(0) - y.mean(0)).square().sum().item()
    cx, cy = (numpy.cov(side.numpy().T) for side in (x, y))
    expected = mean + numpy.trace(cx + cy - 2 * sqrtm(cx @ cy).real)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-9)


def test_it_is_on_the_features_of_the_pinned_extractor():
    data = DATASETS.build("digits")
    extractor = load_extractor("digits")
    metric = METRICS.build("frechet", data.spec)
    assert metric.extractor_hash == PINNED["digits"].hash
    x, y = (data.split(part).take(torch.arange(300))[0] for part in ("train", "test"))
    metric.update(x, real=False)
    metric.update(y, real=True)
    plain = FrechetDistance(DataSpec("features", (48,)), Identity48())
    plain.update(extractor(x), real=False)
    plain.update(extractor(y), real=True)
    assert metric.compute().item() == pytest.approx(plain.compute().item(), rel=1e-3)


class Identity48(Identity):
    num_features = 48


def test_the_floor_of_digits_is_far_below_noise():
    data = DATASETS.build("digits")
    value = Judge(data).floors()["frechet"]
    metric = METRICS.build("frechet", data.spec)
    metric.update(data.test.take(torch.arange(360))[0], real=True)
    blurred = (
        data.train.take(torch.arange(360))[0].double().add(2 * torch.randn(360, 1, 8, 8)).round().clamp(0, 16)
    )
    metric.update(blurred.long(), real=False)
    assert 0 < value < metric.compute()


def test_data_without_an_extractor_say_what_to_use():
    with pytest.raises(GenkitError, match="one of: digits, fashion_mnist.*sliced_wasserstein"):
        METRICS.build("frechet", DataSpec("hub:x", (3, 8, 8), levels=256))
