"""The divergence of n-grams against SciPy, at its ends, and within documents."""

from collections import Counter

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.types import DataSpec


def spec(length=12, levels=5, fixed=()):
    return DataSpec("x", (length,), levels=levels, ordered=False, tokenizer="ascii", fixed=fixed)


def measure(x, y, order=4, **options):
    built = METRICS.build({"name": "ngrams", "order": order}, spec(x.shape[1], **options))
    built.update(y, real=True)
    built.update(x, real=False)
    return built.compute().item()


def symbols(n, levels=5, key=0, length=12):
    return torch.randint(levels, (n, length), generator=torch.Generator().manual_seed(key))


def by_hand(x, y, order):
    def counted(rows):
        rows = rows.tolist()
        return Counter(tuple(row[i : i + order]) for row in rows for i in range(len(row) - order + 1))

    p, q = counted(x), counted(y)
    both = sorted(p | q)
    return jensenshannon([p[gram] for gram in both], [q[gram] for gram in both], base=2) ** 2


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_scipy_agrees(order):
    x, y = symbols(30), symbols(50, key=1).clamp(max=3)
    assert measure(x, y, order) == pytest.approx(by_hand(x, y, order), rel=1e-9)


def test_equal_rows_have_none_and_disjoint_ones_a_bit():
    x = symbols(20)
    assert measure(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    assert measure(x % 2, x % 2 + 2) == pytest.approx(1)


def test_longer_ngrams_differ_no_less():
    x, y = symbols(40), symbols(40, key=1)
    found = [measure(x, y, order) for order in (1, 2, 3, 4)]
    assert found == sorted(found)


def test_a_large_vocabulary_does_not_overflow():
    x, y = symbols(30, levels=10**6), symbols(30, levels=10**6, key=1)
    x[:, ::2], y[:, ::2] = 999_999, 999_998
    assert measure(x, y, levels=10**6) == pytest.approx(by_hand(x, y, 4), rel=1e-9)


def test_ngrams_with_a_boundary_do_not_count():
    """Packed rows have boundaries, samples have none and need none."""
    x, y = torch.zeros(5, 9, dtype=torch.long), torch.zeros(5, 9, dtype=torch.long)
    y[:, 4] = 4
    assert measure(x, y, fixed=(4,)) == 0
    assert measure(x, y) > 0.3


def test_rows_shorter_than_the_order_are_whole_ngrams():
    x, y = symbols(20, levels=2, length=2), symbols(20, levels=2, length=2, key=1)
    assert measure(x, y, levels=2) == pytest.approx(by_hand(x, y, 2), rel=1e-9)


def test_wrong_orders_and_numbers_are_refused():
    with pytest.raises(GenkitError, match="at least 1, not 0"):
        METRICS.build({"name": "ngrams", "order": 0}, spec())
    with pytest.raises(GenkitError, match="needs text, which 'grey' has not"):
        METRICS.build("ngrams", DataSpec("grey", (4,), levels=17))
