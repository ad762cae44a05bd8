"""Log-probabilities of energies with the constant, against a closed form."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.errors import GenkitError
from genkit.particles import FeynmanKac, log_prob
from genkit.randomness import keyed_generator
from tests.objectives.models import IMAGES, VECTORS, build, split


@pytest.mark.parametrize(
    "options", [{}, {"kernel": "diffusion", "move": None, "steps": 32}], ids=["annealed", "diffusion"]
)
def test_the_constant_of_an_energy_in_closed_form(options: dict) -> None:
    """Untrained, it is the energy of N(0, d^2 I), up to the noise that is left at the end."""
    energy = build("energy", VECTORS, parameterization="pooled", scale=None)
    x, _ = split(VECTORS).take(torch.arange(5))
    sampler = FeynmanKac(
        **{
            "particles": 64,
            "steps": 24,
            "kernel": "none",
            "move": "hmc",
            "threshold": 0.0,
            **options,
        }
    )
    found = log_prob(energy, x, sampler=sampler, runs=3, generator=keyed_generator(0))
    d2 = float(energy.scale) ** 2
    exact = -x.double().square().sum(1) / (2 * d2) - math.log(2 * math.pi * d2)
    assert found.kind == "estimate"
    assert 0 < float(found.stderr[0]) < 0.1
    torch.testing.assert_close(found.value, exact, rtol=0, atol=0.01 + 5 * float(found.stderr[0]))


def test_levels_and_classes() -> None:
    """A constant that is added to the energy of a class changes nothing."""
    energy = build("energy", IMAGES)
    x, _ = split(IMAGES).take(torch.arange(3))
    few = FeynmanKac(particles=32, steps=8)
    one = log_prob(energy, x, 1, sampler=few, runs=2, generator=keyed_generator(0)).value
    plain = energy.log_density
    energy.log_density = lambda t, x, y=None: (plain(t, x, y)[0] + 7, plain(t, x, y)[1])
    two = log_prob(energy, x, 1, sampler=few, runs=2, generator=keyed_generator(0)).value
    torch.testing.assert_close(one, two, rtol=0, atol=1e-3)


def test_a_sampler_that_ends_elsewhere() -> None:
    with pytest.raises(GenkitError, match="leave out the sampler's end"):
        log_prob(build("energy", VECTORS), torch.zeros(1, 2), sampler=FeynmanKac(end=0.5))
