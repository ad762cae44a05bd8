"""Views: decode inverts encode, cells tile [-1, 1], symbols stay as they are, and the likelihood is right."""

import math
from typing import Any

import pytest
import torch

from genkit.data import Continuous
from genkit.data.views import Symbols
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import DataSpec

IMAGES = DataSpec("images", (1, 2, 2), levels=17)
REALS = DataSpec("reals", (2,))
LETTERS = DataSpec("letters", (6,), levels=27, ordered=False)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("noise", ["uniform", "none"])
def test_decode_inverts_encode(levels: int, noise: Any) -> None:
    view = Continuous(DataSpec("x", (8,), levels=levels), noise)
    data = torch.arange(levels).repeat_interleave(2**21 // levels)[:, None].expand(-1, 8)
    x = view.encode(data, generator=keyed_generator(0))
    assert x.dtype == torch.float32
    assert torch.equal(view.decode(x), data)
    assert x.abs().max() < 1


def test_uniform_noise_fills_the_cell() -> None:
    view = Continuous(IMAGES)
    x = view.encode(torch.full((50_000, 1, 2, 2), 3), generator=keyed_generator(0)).double()
    low, width = 2 * 3 / 17 - 1, 2 / 17
    place = (x.flatten() - low) / width  # U(0, 1)
    assert place.min() < 1e-3
    assert place.max() > 1 - 1e-3
    assert place.mean() == pytest.approx(0.5, abs=5e-3)
    assert place.var() == pytest.approx(1 / 12, abs=1e-3)


def test_gaussian_noise_is_about_the_centre() -> None:
    view = Continuous(IMAGES, "gaussian", 0.1)
    x = view.encode(torch.full((50_000, 1, 2, 2), 3), generator=keyed_generator(0))
    assert x.mean() == pytest.approx(2 * 3.5 / 17 - 1, abs=1e-3)
    assert x.std() == pytest.approx(0.1, abs=1e-3)


def test_the_bound_holds_and_is_tight_for_a_flat_density() -> None:
    """A density that is constant on each cell, p(x) = P(l) V/2 a dimension, makes the bound an equality."""
    view = Continuous(IMAGES)
    prob = torch.rand(17, dtype=torch.float64, generator=keyed_generator(0))
    prob /= prob.sum()
    data = torch.randint(17, (100, 1, 2, 2), generator=keyed_generator(1))
    x = view.encode(data, generator=keyed_generator(2))
    log_density = (prob[view.decode(x)] * 17 / 2).log().flatten(1).sum(1)
    exact = prob[data].log().flatten(1).sum(1)
    torch.testing.assert_close(log_density + view.log_volume, exact, rtol=0, atol=1e-12)
    assert view.log_volume == pytest.approx(4 * math.log(2 / 17))


@pytest.mark.parametrize(
    ("spec", "noise", "sigma", "likelihood"),
    [
        (IMAGES, None, 0.0, "bound"),
        (IMAGES, "uniform", 0.0, "bound"),
        (IMAGES, "gaussian", 0.1, None),
        (IMAGES, "none", 0.0, None),
        (REALS, None, 0.0, "exact"),
        (REALS, "none", 0.0, "exact"),
        (REALS, "gaussian", 0.1, None),
    ],
)
def test_likelihood_kinds(spec: DataSpec, noise: Any, sigma: float, likelihood: str | None) -> None:
    assert Continuous(spec, noise, sigma).likelihood == likelihood


def test_real_values_pass_through() -> None:
    view, x = Continuous(REALS), torch.randn(4, 2)
    assert torch.equal(view.encode(x), x)
    assert torch.equal(view.decode(x), x)
    assert view.log_volume == 0


def test_decode_clamps() -> None:
    x = torch.tensor([-9.0, -1.0, 1.0, 9.0]).reshape(1, 1, 2, 2)
    assert Continuous(IMAGES).decode(x).flatten().tolist() == [0, 0, 16, 16]


def test_the_generator_decides_the_noise() -> None:
    for view in (Continuous(IMAGES), Continuous(IMAGES, "gaussian", 0.2)):
        data = torch.zeros(3, 1, 2, 2, dtype=torch.int64)
        a, b, c = (view.encode(data, generator=keyed_generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("spec", "noise", "sigma", "message"),
    [
        (IMAGES, "gaussian", 0.0, "sigma > 0"),
        (IMAGES, "gaussian", -1.0, "sigma > 0"),
        (IMAGES, "gaussian", math.nan, "sigma > 0"),
        (IMAGES, "uniform", 0.1, "sigma 0.1 is for noise 'gaussian'"),
        (IMAGES, None, 0.1, "sigma 0.1 is for noise 'gaussian'"),
        (REALS, "uniform", 0.0, "real-valued"),
        (IMAGES, "laplace", 0.0, "'uniform', 'gaussian' or 'none'"),
    ],
)
def test_bad_noise_is_refused(spec: DataSpec, noise: Any, sigma: float, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        Continuous(spec, noise, sigma)


@pytest.mark.parametrize("noise", [None, "uniform", "none"])
def test_symbols_without_an_order_are_no_numbers(noise: Any) -> None:
    with pytest.raises(GenkitError, match="symbols of 'letters' have no order.*such as masked_diffusion"):
        Continuous(LETTERS, noise)


@pytest.mark.parametrize("spec", [IMAGES, LETTERS], ids=lambda spec: spec.name)
@pytest.mark.parametrize("likelihood", ["exact", "estimate"])
def test_symbols_stay_as_they_are(spec: DataSpec, likelihood: Any) -> None:
    assert spec.levels is not None
    view = Symbols(spec, likelihood)
    data = torch.randint(spec.levels, (5, *spec.shape), dtype=torch.uint8)
    x = view.encode(data, generator=keyed_generator(0))
    assert x.dtype == torch.int64
    assert torch.equal(x, data.long())
    assert torch.equal(view.decode(x), x)
    assert (view.log_volume, view.sigma, view.likelihood) == (0, 0, likelihood)


def test_real_values_are_no_symbols() -> None:
    with pytest.raises(
        GenkitError, match="'reals' is real-valued.*flow_matching and normalizing_flow take real"
    ):
        Symbols(REALS, "estimate")
