"""Every distribution of times: range, shape, determinism; and the quantiles of those that are known."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from genkit.errors import GenkitError
from genkit.paths import TIMES
from genkit.randomness import keyed_generator

NAMES = TIMES.names()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_one_time_in_the_unit_interval_for_each_row(name: str, dtype: torch.dtype) -> None:
    t = TIMES.build(name)(torch.empty(50_000, 2, dtype=dtype), generator=keyed_generator(0))
    assert t.shape == (50_000,)
    assert t.dtype == dtype
    assert t.min() >= 0
    assert t.max() <= 1
    assert t.unique().numel() > 40_000


def test_uniform_is_uniform() -> None:
    t = TIMES.build("uniform")(torch.empty(20_000), generator=keyed_generator(0)).double()
    assert stats.kstest(t.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 0.5), (1.0, 2.0)])
def test_logit_normal_has_the_quantiles_of_its_formula(mean: float, std: float) -> None:
    t = TIMES.build("logit_normal", mean=mean, std=std)(
        torch.empty(20_000, dtype=torch.float64), generator=keyed_generator(0)
    )
    assert stats.kstest(torch.logit(t).numpy(), "norm", args=(mean, std)).pvalue > 0.01


def test_logit_normal_needs_a_spread() -> None:
    with pytest.raises(GenkitError, match="std must be positive"):
        TIMES.build("logit_normal", std=0.0)
