"""The laws of resampling: counts that are right on average, their spread, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles import RESAMPLERS
from genkit.particles.resamplers import quantiles
from genkit.randomness import keyed_generator

EACH = pytest.mark.parametrize("name", RESAMPLERS.names())
LOG_W = torch.tensor([0.13, 0.24, 0.0, 0.021, 0.317, 0.292, 0.0], dtype=torch.float64).log()


def counts(name: str, n: int, trials: int = 4000, log_w: Tensor = LOG_W) -> Tensor:
    """How often each of the particles is drawn (trials, N)."""
    generator, resampler = keyed_generator(0, name), RESAMPLERS.build(name)
    draws = [resampler(log_w, n, generator=generator) for _ in range(trials)]
    return torch.stack([torch.bincount(rows, minlength=len(log_w)) for rows in draws]).double()


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest deviation of mean counts from what is expected, in standard errors."""
    error = found.std(0) / len(found) ** 0.5
    return float(((found.mean(0) - expected).abs() / error.clamp(min=1e-3)).max())


@EACH
@pytest.mark.parametrize("n", [3, 7, 20])
def test_counts_are_right_on_average(name: str, n: int) -> None:
    found = counts(name, n)
    assert (found.sum(1) == n).all()
    assert (found[:, [2, 6]] == 0).all()  # what weighs nothing is never drawn, also the last
    assert worst(found, n * LOG_W.exp()) < 4.5
    other = LOG_W.exp() + 0.02 * torch.tensor([1, -1, 0, 0, 0, 0, 0])
    assert worst(found, n * other) > 4.5  # so the line above can fail


def test_how_far_counts_are_from_what_is_expected() -> None:
    expected = 20 * LOG_W.exp()
    away = {name: counts(name, 20) - expected for name in RESAMPLERS.names()}
    assert away["systematic"].abs().max() < 1
    assert away["stratified"].abs().max() < 2
    assert away["residual"].min() > -1
    spread = {name: float(each.square().sum(1).mean()) for name, each in away.items()}
    assert spread["systematic"] <= spread["stratified"] < spread["residual"] < spread["multinomial"]
    exact = float((expected * (1 - LOG_W.exp())).sum())  # of a multinomial distribution
    assert spread["multinomial"] == pytest.approx(exact, rel=0.05)


@EACH
def test_equal_weights_and_one_that_has_all(name: str) -> None:
    one = torch.full((9,), -math.inf, dtype=torch.float64)
    one[4] = -700.0
    assert RESAMPLERS.build(name)(one, 5, generator=keyed_generator(0)).tolist() == 5 * [4]
    if name != "multinomial":
        rows = RESAMPLERS.build(name)(torch.zeros(8, dtype=torch.float64), 8, generator=keyed_generator(0))
        assert sorted(rows.tolist()) == list(range(8))


def test_rounding_does_not_reach_what_weighs_nothing() -> None:
    u = torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64)
    assert quantiles(LOG_W.exp(), u).tolist() == [0, 5, 5]
    assert quantiles(LOG_W.exp().flip(0), u).tolist() == [1, 6, 6]


@EACH
def test_draws_are_the_generators(name: str) -> None:
    def rows(key: int) -> list[list[int]]:
        generator, resampler = keyed_generator(key), RESAMPLERS.build(name)
        return [resampler(LOG_W, 7, generator=generator).tolist() for _ in range(5)]

    assert rows(1) == rows(1) != rows(2)


@EACH
def test_what_cannot_be_drawn(name: str) -> None:
    for log_w, n in ((torch.full((3,), -math.inf), 2), (torch.tensor([0.0, math.nan]), 2), (LOG_W, 0)):
        with pytest.raises(GenkitError, match="cannot be drawn"):
            RESAMPLERS.build(name)(log_w, n)
