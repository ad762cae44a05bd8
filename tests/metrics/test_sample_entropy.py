"""The entropy of symbols within samples: closed forms, SciPy, and what does not count."""

import math

import pytest
import torch
from scipy.stats import entropy

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.types import DataSpec


def measure(x, levels=6, fixed=()):
    spec = DataSpec("x", (x.shape[1],), levels=levels, ordered=False, tokenizer="ascii", fixed=fixed)
    metric = METRICS.build("sample_entropy", spec)
    for part in x.split(7):
        metric.update(part)
    return metric.compute().item()


def test_closed_forms():
    assert measure(torch.full((3, 12), 2)) == 0  # collapse
    assert measure(torch.arange(12).expand(3, -1) % 6) == pytest.approx(math.log(6))


def test_it_is_the_mean_over_samples_not_that_of_their_union():
    x = torch.arange(6)[:, None].expand(-1, 12)  # each collapsed, together uniform
    assert measure(x) == 0
    x = torch.randint(6, (20, 12), generator=torch.Generator().manual_seed(0))
    expected = sum(entropy(torch.bincount(row, minlength=6).numpy()) for row in x) / 20
    assert measure(x) == pytest.approx(expected)


def test_boundaries_do_not_count():
    x = torch.tensor([[0, 1, 0, 1, 5, 5, 5, 5]])
    assert measure(x, fixed=(5,)) == pytest.approx(math.log(2))
    assert measure(torch.full((1, 8), 5), fixed=(5,)) == 0


@pytest.mark.parametrize("spec", [DataSpec("grey", (4,), levels=17), DataSpec("line", (4,))])
def test_numbers_have_none(spec):
    with pytest.raises(GenkitError, match=f"needs symbols without an order, which '{spec.name}' has not"):
        METRICS.build("sample_entropy", spec)
