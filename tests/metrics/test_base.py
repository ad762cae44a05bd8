"""What holds for every metric of samples: zero or small for equal data, order-free, additive over updates."""

import pytest
import torch
from torchmetrics import Metric

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS

DIGITS = DATASETS.build("digits")
TWO_SAMPLE = [name for name in METRICS.names() if METRICS.get(name).reads == "samples"]


def rows(part, n):
    return DIGITS.split(part).take(torch.arange(n))[0]


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_is_built_from_a_spec_and_refuses_to_measure_nothing(name):
    metric = METRICS.build(name, DIGITS.spec)
    assert isinstance(metric, Metric)
    assert metric._defaults.keys() == metric._reductions.keys()
    assert all(reduction is not None for reduction in metric._reductions.values())
    with pytest.raises(GenkitError), pytest.warns(UserWarning, match="before the ``update`` method"):
        metric.compute()


def test_the_metrics_that_are_promised_are_there():
    assert set(TWO_SAMPLE) >= {"frechet", "sliced_wasserstein", "energy_distance"}


@pytest.mark.parametrize("name", METRICS.names())
@pytest.mark.parametrize("data", ["digits", "moons"])
def test_a_metric_is_built_where_it_applies_and_only_there(name, data):
    spec = DATASETS.build(data).spec
    assert METRICS.get(name).applies(spec) == (data == "digits" or name not in ("frechet", "accuracy"))
    if METRICS.get(name).applies(spec):
        METRICS.build(name, spec)
    else:
        with pytest.raises(GenkitError, match="feature extractor"):
            METRICS.build(name, spec)


@pytest.mark.parametrize("name", TWO_SAMPLE)
def test_a_two_sample_metric_is_a_distance(name):
    real, same, noise = rows("test", 200), rows("train", 200), torch.randint(17, (200, 1, 8, 8))

    def distance(x, y):
        metric = METRICS.build(name, DIGITS.spec)
        metric.update(y, real=True)
        metric.update(x, real=False)
        return metric.compute().double()

    equal, near, far = distance(real, real), distance(same, real), distance(noise, real)
    assert equal < near < far / 5
    torch.testing.assert_close(distance(real, noise), far, rtol=1e-4, atol=0)
    torch.testing.assert_close(distance(noise.flip(0), real), far, rtol=1e-4, atol=0)
    metric = METRICS.build(name, DIGITS.spec)
    for block in noise.split(70):
        metric.update(block, real=False)
    for block in real.split(90):
        metric.update(block, real=True)
    torch.testing.assert_close(metric.compute().double(), far, rtol=1e-4, atol=0)
    metric.reset()
    metric.update(real, real=True)
    metric.update(same, real=False)
    torch.testing.assert_close(metric.compute().double(), near, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", TWO_SAMPLE)
def test_processes_together_measure_what_one_would(name):
    """`merge_state` reduces states as a distributed run does."""
    real, samples = rows("test", 90), torch.randint(17, (60, 1, 8, 8))
    whole, first, second = (METRICS.build(name, DIGITS.spec) for _ in range(3))
    for metric, part in ((whole, slice(None)), (first, slice(0, 25)), (second, slice(25, None))):
        metric.update(real[part], real=True)
        metric.update(samples[part], real=False)
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", TWO_SAMPLE)
def test_one_row_or_another_shape_is_refused(name):
    metric = METRICS.build(name, DIGITS.spec)
    metric.update(rows("test", 5), real=True)
    metric.update(rows("test", 1), real=False)
    with pytest.raises(GenkitError, match="at least two samples, not 1"):
        metric.compute()
    with pytest.raises(GenkitError, match=r"\(1, 8, 8\).*not \(3, 8, 8\)"):
        metric.update(torch.zeros(2, 3, 8, 8, dtype=torch.int64), real=False)
