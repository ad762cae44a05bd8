"""The closed forms of time grids, beyond the laws of them all (see tests/testing)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths import PATHS
from genkit.solvers import GRIDS, SOLVERS
from genkit.testing.oracles import GaussianFlow

U = torch.linspace(0, 1, 9, dtype=torch.float64)


def times(name: str, steps: int = 8, path: str | None = None, **options: Any) -> Tensor:
    return GRIDS.build(name, **options).times(steps, PATHS.build(path).coefficients if path else None)


def test_the_shapes_of_grids() -> None:
    assert torch.equal(times("uniform"), U)
    assert torch.allclose(times("power", exponent=3.0), 1 - (1 - U) ** 3)
    assert torch.allclose(times("quadratic"), U * (2 - U))
    assert torch.allclose(times("cosine"), (math.pi / 2 * U).sin() ** 2)


@pytest.mark.parametrize("strength", [0.1, 4.0, 30.0])
def test_u_shaped_times_are_quantiles(strength: float) -> None:
    t = times("u_shaped", strength=strength)
    share = (
        (strength * (t - 0.5)).sinh() / math.sinh(strength / 2) + 1
    ) / 2  # the integral of the density to t
    assert torch.allclose(share, U, atol=1e-12)
    assert torch.allclose(t, 1 - t.flip(0), atol=1e-12)
    assert torch.allclose(times("u_shaped", strength=1e-4), U, atol=1e-8)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (1.0, 2.0)])
def test_logit_normal_times_are_quantiles(mean: float, std: float) -> None:
    t = times("logit_normal", mean=mean, std=std)
    normal = torch.distributions.Normal(mean, std)
    assert torch.allclose(normal.cdf(t.logit())[1:-1], U[1:-1], atol=1e-12)


def test_shifted_times_know_the_mean_of_more_values_as_well() -> None:
    """sigma / alpha over the root of the number of values is the error of their mean: equal at equal u."""
    assert torch.equal(times("shifted", shift=1.0), U)
    assert torch.equal(times("shifted", m=3072, n=3072), U)
    t = times("shifted", m=4096, n=256)
    error = (1 - t) / t / math.sqrt(4096)
    assert torch.allclose(error[1:], ((1 - U) / U / math.sqrt(256))[1:])
    assert torch.equal(t, times("shifted", shift=4.0))
    assert torch.equal(times("shifted"), times("shifted", shift=3.0))


@pytest.mark.parametrize("path", [None, "linear", "cosine", "variance_preserving"])
@pytest.mark.parametrize("steps", [2, 3, 18])
def test_edm_levels_are_those_of_karras(path: str | None, steps: int) -> None:
    """sigma_i = (sigma_max^(1/7) + i / (N - 1) (sigma_min^(1/7) - sigma_max^(1/7)))^7, in sigma / alpha of the path."""
    t = times("edm", steps, path)
    alpha, sigma, _, _ = PATHS.build(path or "linear").coefficients(t)
    formula = [
        (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)
    ]
    assert torch.allclose((sigma / alpha)[1:-1], torch.tensor(formula[1:], dtype=torch.float64), rtol=1e-9)
    assert t[[0, -1]].tolist() == [0.0, 1.0]


def test_edm_is_used_on_the_path_of_the_field() -> None:
    flow = GaussianFlow.example("cosine")
    solver = SOLVERS.build("euler", steps=5, grid="edm")
    assert torch.equal(solver.times(flow.field()), times("edm", 5, "cosine"))
    assert torch.equal(solver.times(flow.velocity), times("edm", 5))
    with pytest.raises(GenkitError, match="this path has not all noise levels.*raise `low`"):
        times("edm", 8, "variance_preserving", low=1e-5)


@pytest.mark.parametrize("name", GRIDS.without_options())
def test_warps_are_monotone_and_keep_the_ends(name: str) -> None:
    """Particles take shares of the way one by one."""
    grid = GRIDS.build(name)
    u = torch.linspace(0, 1, 501, dtype=torch.float64)
    found = grid.warp(u)
    assert found[[0, -1]].tolist() == [0.0, 1.0]
    assert bool((found.diff() > 0).all())
    assert torch.equal(torch.cat([grid.warp(share[None]) for share in u[::50]]), found[::50])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("power", {"exponent": 0.0}, "exponent must be positive"),
        ("u_shaped", {"strength": 0.0}, "strength must be above 0"),
        ("logit_normal", {"std": 0.0}, "std must be above 0"),
        ("logit_normal", {"mean": 9.0}, "mean from -8 to 8"),
        ("shifted", {"shift": 0.0}, "shift must be positive"),
        ("shifted", {"shift": 2.0, "m": 4, "n": 1}, "either shift, or m and n"),
        ("shifted", {"m": 4}, "either shift, or m and n"),
        ("shifted", {"m": 4, "n": 0}, "must be positive, not 4 and 0"),
        ("edm", {"rho": 0.0}, "rho must be at least 1"),
        ("edm", {"low": 3.0, "high": 2.0}, "0 < low < high"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        GRIDS.build(name, **options)


def test_grids_without_options_differ() -> None:
    """A benchmark and a fit go over all of them."""
    found = [times(name).tolist() for name in GRIDS.without_options()]
    assert len({tuple(one) for one in found}) == len(found) > 5
