"""Judges of samples and densities against scikit-learn's and torchmetrics'."""

from __future__ import annotations

import numpy
import pytest
import scipy.linalg
import torch
from sklearn.mixture import GaussianMixture
from sklearn.svm import SVC
from torchmetrics.image.fid import FrechetInceptionDistance

from genkit.data import DATASETS
from genkit.metrics import METRICS
from genkit.metrics.extractor import load_extractor


@pytest.fixture(scope="module")
def digits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    data = DATASETS.build("digits")
    return {name: data.split(name).take(torch.arange(len(data.split(name)))) for name in ("train", "test")}


@pytest.fixture(scope="module")
def judge(digits) -> SVC:
    """A classifier that shares nothing with the pinned one but the rows it learnt from."""
    x, y = digits["train"]
    return SVC(gamma=0.001, C=10).fit(x.flatten(1).numpy(), y.numpy())


def shares(judge: SVC, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The share of rows that scikit-learn's classifier, and ours, take for the class asked for."""
    metric = METRICS.build("accuracy", DATASETS.build("digits").spec)
    metric.update(x, y)
    return float((judge.predict(x.flatten(1).numpy()) == y.numpy()).mean()), float(metric.compute())


def test_real_digits_are_what_they_are_to_both_judges(digits, judge: SVC) -> None:
    assert min(shares(judge, *digits["test"])) > 0.97


def test_noise_is_of_the_class_asked_for_by_chance(digits, judge: SVC) -> None:
    _, y = digits["test"]
    noise = torch.randint(17, (len(y), 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert all(abs(share - 0.1) < 0.06 for share in shares(judge, noise, y))


def test_judges_agree_on_digits_that_are_half_noise(digits, judge: SVC) -> None:
    """Where classes are hard to see, samples are as good to one judge as to the other."""
    x, y = digits["test"]
    noise = torch.randint(17, x.shape, generator=torch.Generator().manual_seed(0))
    found = [shares(judge, ((1 - w) * x + w * noise).round().long(), y) for w in (0.0, 0.5, 0.8, 1.0)]
    theirs, ours = zip(*found, strict=True)
    assert sorted(theirs, reverse=True) == list(theirs)
    assert sorted(ours, reverse=True) == list(ours)


def test_the_frechet_distance_is_that_of_torchmetrics_and_of_scipy(digits) -> None:
    real, fake = digits["test"][0], digits["train"][0][:300].flip(-1)
    spec = DATASETS.build("digits").spec
    ours = METRICS.build("frechet", spec)
    theirs = FrechetInceptionDistance(feature=load_extractor("digits")).set_dtype(torch.float64)
    for x, is_real in ((real, True), (fake, False)):
        ours.update(x, real=is_real)
        theirs.update(x, real=is_real)
    features = [load_extractor("digits")(x).double().numpy() for x in (real, fake)]
    (m, c), (n, d) = ((z.mean(0), numpy.cov(z.T)) for z in features)
    root = scipy.linalg.sqrtm(c @ d)
    by_hand = float(((m - n) ** 2).sum() + numpy.trace(c + d - 2 * root.real))
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert float(ours.compute()) == pytest.approx(by_hand, rel=1e-3)


def test_the_density_of_the_eight_gaussians_is_that_of_a_mixture_of_scikit_learn() -> None:
    density = DATASETS.build({"name": "8gaussians", "n_train": 4000, "n_test": 500})
    angles = numpy.arange(8) * numpy.pi / 4
    mixture = GaussianMixture(8, covariance_type="spherical")
    mixture.weights_ = numpy.full(8, 1 / 8)
    mixture.means_ = density.radius * numpy.stack([numpy.cos(angles), numpy.sin(angles)], 1)
    mixture.covariances_ = numpy.full(8, density.variance)
    mixture.precisions_cholesky_ = 1 / numpy.sqrt(mixture.covariances_)
    x, _ = density.split("test").take(torch.arange(500))
    expected = torch.from_numpy(mixture.score_samples(x.double().numpy()))
    torch.testing.assert_close(density.log_prob(x.double()), expected, rtol=1e-8, atol=1e-8)
    fitted = GaussianMixture(8, random_state=0).fit(density.split("train").x.numpy())
    assert fitted.score(x.numpy()) == pytest.approx(float(expected.mean()), abs=0.05)
