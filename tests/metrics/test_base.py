"""What holds for every metric of samples: zero or small for equal data, order-free, additive over updates."""

import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS

DIGITS, PYDOC, MOONS = (DATASETS.build(name) for name in ("digits", "pydoc", "moons"))
DISTANCES = [
    name
    for name in METRICS.names()
    if METRICS.get(name).reads == "samples"
    and not METRICS.get(name).higher_is_better
    and any(METRICS.get(name).applies(data.spec) for data in (DIGITS, PYDOC, MOONS))
]


def data_of(name):
    return next(data for data in (DIGITS, PYDOC, MOONS) if METRICS.get(name).applies(data.spec))


def rows(name, part, n):
    return data_of(name).split(part).take(torch.arange(n))[0]


def junk(name, n):
    spec, generator = data_of(name).spec, torch.Generator().manual_seed(0)
    if spec.levels is None:
        return 9 * torch.rand(n, *spec.shape, generator=generator)
    return torch.randint(spec.levels, (n, *spec.shape), generator=generator)


NUMBERS = {"sliced_wasserstein", "energy_distance", "nearest"}
APPLY = {
    "digits": NUMBERS | {"frechet", "accuracy", "precision", "recall"},
    "moons": NUMBERS | {"wasserstein", "class_wasserstein", "path_energy"},
    "shapes": {"cloud_neighbours", "cloud_matching", "cloud_coverage"},
    "pydoc": {"ngrams", "sample_entropy", "generative_perplexity"},
}


@pytest.mark.parametrize("data", APPLY)
def test_a_metric_is_built_where_it_applies_and_only_there(data):
    spec = DATASETS.build(data).spec
    apply = {name for name in METRICS.names() if METRICS.get(name).applies(spec)}
    assert apply == APPLY[data] | {"bits_per_dim", "trajectories"}
    for name in METRICS.names():
        if name in apply:
            METRICS.build(name, spec)
        else:
            with pytest.raises(GenkitError, match=spec.name):
                METRICS.build(name, spec)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_two_sample_metric_is_a_distance(name):
    real, same, noise = rows(name, "test", 200), rows(name, "train", 200), junk(name, 200)

    def distance(x, y):
        metric = METRICS.build(name, data_of(name).spec)
        metric.update(y, real=True)
        metric.update(x, real=False)
        return metric.compute().double()

    equal, near, far = distance(real, real), distance(same, real), distance(noise, real)
    assert equal < near < far / (5 if data_of(name) is DIGITS else 2)
    torch.testing.assert_close(distance(real, noise), far, rtol=1e-4, atol=0)
    torch.testing.assert_close(distance(noise.flip(0), real), far, rtol=1e-4, atol=0)
    metric = METRICS.build(name, data_of(name).spec)
    for block in noise.split(70):
        metric.update(block, real=False)
    for block in real.split(90):
        metric.update(block, real=True)
    torch.testing.assert_close(metric.compute().double(), far, rtol=1e-4, atol=0)
    metric.reset()
    metric.update(real, real=True)
    metric.update(same, real=False)
    torch.testing.assert_close(metric.compute().double(), near, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", DISTANCES)
def test_one_row_or_another_shape_is_refused(name):
    metric = METRICS.build(name, data_of(name).spec)
    metric.update(rows(name, "test", 5), real=True)
    metric.update(rows(name, "test", 1), real=False)
    with pytest.raises(GenkitError, match="at least two samples, not 1"):
        metric.compute()
    if data_of(name) is DIGITS:
        with pytest.raises(GenkitError, match=r"\(1, 8, 8\).*not \(3, 8, 8\)"):
            metric.update(torch.zeros(2, 3, 8, 8, dtype=torch.int64), real=False)
