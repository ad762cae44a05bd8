"""Moves leave a density as it is, whatever their step, and know the density at the particles they return."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles import MOVES, Move
from genkit.particles.base import Cloud
from genkit.randomness import keyed_generator
from tests.oracles import GaussianMixture

EACH = pytest.mark.parametrize("name", MOVES.names())
MIXTURE = GaussianMixture.of(
    (0.7, [0.6, 0.3], [[0.5, 0.2], [0.2, 0.3]]), (0.3, [-0.8, -0.4], [[0.2, 0], [0, 0.6]])
)
UNIT = 0.5  # about the width of its parts


def exact(n: int, key: int = 0) -> Tensor:
    """Samples of the mixture (n, 2)."""
    generator = keyed_generator(key)
    part = torch.multinomial(MIXTURE.log_weights.exp(), n, replacement=True, generator=generator)
    noise = torch.randn(n, 2, 1, generator=generator, dtype=torch.float64)
    return MIXTURE.means[part] + (torch.linalg.cholesky(MIXTURE.covs)[part] @ noise)[..., 0]


def moved(move: Move, x: Tensor, density=MIXTURE.log_prob, key: int = 1) -> tuple[Cloud, float]:
    cloud, acceptance = move(density, Cloud(x, *density(x)), UNIT, generator=keyed_generator(key))
    return cloud, float(acceptance)


def worst(x: Tensor) -> float:
    """How far means, squares and products of x are from the truth, in standard errors."""
    away = x - MIXTURE.mean
    found = torch.stack(
        (away[:, 0], away[:, 1], *(away[:, i] * away[:, j] for i, j in ((0, 0), (0, 1), (1, 1)))), 1
    )
    expected = torch.cat((torch.zeros(2, dtype=x.dtype), MIXTURE.cov[[0, 0, 1], [0, 1, 1]]))
    return float(((found.mean(0) - expected).abs() / (found.std(0) / len(x) ** 0.5)).max())


@EACH
@pytest.mark.parametrize("step", [0.3, 1.2])
def test_the_density_is_left_as_it_is(name: str, step: float) -> None:
    cloud, acceptance = moved(MOVES.build(name, step=step, moves=20), exact(20_000))
    assert 0.2 < acceptance < 1
    assert worst(cloud.x) < 4.5


@EACH
def test_without_metropolis_it_would_not_be(name: str) -> None:
    class Careless(MOVES.get(name)):
        def propose(self, *args):
            there, log_ratio = super().propose(*args)
            return there, torch.zeros_like(log_ratio)

    cloud, acceptance = moved(Careless(step=1.2, moves=20), exact(20_000))
    assert acceptance == 1
    assert worst(cloud.x) > 6


@EACH
def test_a_wrong_gradient_costs_acceptance_only(name: str) -> None:
    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = MIXTURE.log_prob(x)
        return value, 0.3 * gradient + 0.2

    cloud, acceptance = moved(MOVES.build(name, step=0.6, moves=20), exact(20_000), density)
    assert acceptance < moved(MOVES.build(name, step=0.6, moves=20), exact(20_000))[1]
    assert worst(cloud.x) < 4.5


@EACH
def test_it_gets_there_from_elsewhere(name: str) -> None:
    start = torch.full((5000, 2), 3.0, dtype=torch.float64)
    assert worst(moved(MOVES.build(name, step=0.8, moves=60), start)[0].x) < 4.5


@EACH
def test_values_and_gradients_are_carried_and_nothing_is_evaluated_twice(name: str) -> None:
    calls = []

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x)
        return MIXTURE.log_prob(x)

    move = MOVES.build(name, moves=3)
    cloud, acceptance = moved(move, exact(500), density)
    assert 0 < acceptance < 1
    assert len(calls) == 1 + 3 * getattr(move, "leaps", 1)  # 1: of the start, here in this test
    value, gradient = MIXTURE.log_prob(cloud.x)
    torch.testing.assert_close(cloud.value, value)
    torch.testing.assert_close(cloud.gradient, gradient)


@EACH
def test_short_steps_are_accepted_and_impossible_ones_are_not(name: str) -> None:
    x = exact(1000)
    assert moved(MOVES.build(name, step=1e-3), x)[1] > 0.99

    def nowhere_else(there: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.where((there == x).all(1), 0.0, torch.tensor([math.nan, -math.inf]).repeat(500))
        return value, torch.zeros_like(there)

    cloud, acceptance = moved(MOVES.build(name), x, nowhere_else)
    assert acceptance == 0
    assert torch.equal(cloud.x, x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (name, {"step": step}, "positive step")
            for name in MOVES.names()
            for step in (0.0, math.nan, math.inf)
        ),
        *((name, {"moves": 0}, "at least 1 move") for name in MOVES.names()),
        ("hmc", {"leaps": 0}, "leaps must be at least 1"),
        ("mahla", {}, "did you mean 'mala'"),
    ],
)
def test_bad_options(name: str, options: dict, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        MOVES.build(name, **options)
