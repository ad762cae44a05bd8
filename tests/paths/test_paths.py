"""Paths beyond the laws of them all (see tests/testing): exact ends, automatic differentiation, closed forms."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import GenkitError
from genkit.paths import PATHS
from genkit.randomness import keyed_generator
from tests.oracles import GaussianFlow

NAMES = PATHS.names()
FORMS = [name for name in NAMES if not PATHS.get(name).noisy]  # given by their coefficients
# (alpha at 0, sigma at 1) where they are not 0; the path's docstring says so.
ENDS = {"variance_preserving": (0.00658, 0.001)}
INSIDE = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.mark.parametrize("name", FORMS)
def test_ends(name: str) -> None:
    alpha, sigma, _, _ = PATHS.build(name).coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    alpha_0, sigma_1 = ENDS.get(name, (0.0, 0.0))
    assert alpha.tolist() == pytest.approx([alpha_0, 1], abs=1e-5)
    assert sigma.tolist() == pytest.approx([1, sigma_1], abs=3e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_u_is_the_derivative_of_x(name: str, shape: tuple[int, ...]) -> None:
    """By automatic differentiation, for a time of its own for each row."""
    path = PATHS.build(name)
    x0, x1 = torch.randn(2, 25, *shape, dtype=torch.float64)
    point, tangent = torch.func.jvp(lambda t: path(x0, x1, t)[:2], (INSIDE,), (torch.ones_like(INSIDE),))
    assert torch.allclose(point[1], tangent[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", FORMS)
def test_data_noise_and_score_of_a_gaussian(name: str) -> None:
    """Against the posterior means and the density in closed form."""
    flow, x = GaussianFlow.example(name), torch.randn(6, 2, dtype=torch.float64)
    field = flow.field()
    for t in INSIDE:
        alpha, sigma, _, _ = flow.path.coefficients(t)
        mean, cov = flow.at(t)
        whitened = torch.linalg.solve(cov, (x - mean).T).T
        assert torch.allclose(field.data(t, x), flow.mean + alpha * whitened @ flow.cov, atol=1e-7)
        assert torch.allclose(field.noise(t, x), sigma * whitened, atol=1e-7)
        z = x.clone().requires_grad_()
        log_prob = torch.distributions.MultivariateNormal(mean, cov).log_prob(z)
        (score,) = torch.autograd.grad(log_prob.sum(), z)
        assert torch.allclose(field.score(t, x), score, atol=1e-7)


@pytest.mark.parametrize("name", FORMS)
def test_the_exact_velocity_carries_the_marginals(name: str) -> None:
    """The continuity equation at the level of moments: d mean/dt = A mean + b, d cov/dt = A cov + cov A^T."""
    flow = GaussianFlow.example(name)
    for t in INSIDE[::6]:
        jacobian = torch.func.jacrev(lambda x, t=t: flow.velocity(t, x[None])[0])(torch.zeros(2).double())
        (mean, cov), (d_mean, d_cov) = torch.func.jvp(flow.at, (t,), (torch.ones_like(t),))
        assert torch.allclose(flow.velocity(t, mean[None])[0], d_mean, atol=1e-9)
        assert torch.allclose(jacobian @ cov + cov @ jacobian.T, d_cov, atol=1e-9)


def test_variance_preserving_keeps_the_variance_and_follows_beta() -> None:
    path = PATHS.build("variance_preserving", beta_min=0.2, beta_max=10.0)
    alpha, sigma, d_alpha, _ = path.coefficients(INSIDE)
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones_like(INSIDE))
    assert torch.allclose(2 * d_alpha / alpha, 0.2 + 9.8 * (1 - INSIDE))  # beta(s) at s = 1 - t


@pytest.mark.parametrize("options", [{"beta_min": 0.0}, {"beta_min": 3.0, "beta_max": 1.0}])
def test_betas_must_rise(options: dict[str, float]) -> None:
    with pytest.raises(GenkitError, match="beta_min"):
        PATHS.build("variance_preserving", **options)


@pytest.mark.parametrize("name", [name for name in NAMES if PATHS.get(name).noisy])
def test_a_path_with_noise_of_its_own_has_no_coefficients(name: str) -> None:
    with pytest.raises(GenkitError, match=f"the path '{name}' adds noise of its own"):
        PATHS.build(name).coefficients(INSIDE)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_the_bridge_is_a_gaussian_around_the_line_with_its_score(t: float) -> None:
    """Given both ends: mean, variance, and the score by automatic differentiation of that density."""
    x0, x1 = torch.tensor([[0.5, -1.0]]).double(), torch.tensor([[2.0, 3.0]]).double()
    n, time = 40_000, torch.tensor(t, dtype=torch.float64)
    point = PATHS.build("bridge", sigma=0.7)(
        x0.expand(n, 2), x1.expand(n, 2), time, generator=keyed_generator(0)
    )
    mean, std = (1 - t) * x0 + t * x1, 0.7 * (t * (1 - t)) ** 0.5
    assert torch.allclose(point.x_t.mean(0), mean[0], atol=5 * std / n**0.5)
    assert torch.allclose(point.x_t.std(0), torch.tensor(std).double(), rtol=0.02)
    z = point.x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad(torch.distributions.Normal(mean, std).log_prob(z).sum(), z)
    assert point.score is not None
    assert torch.allclose(point.score, score, atol=1e-9)


def test_the_bridge_of_a_gaussian_to_a_gaussian_is_carried_by_its_mean_velocity() -> None:
    """Independent N(0, 1) and N(m, s^2): x_t has variance (1-t)^2 + t^2 s^2 + sigma^2 t (1-t), whose derivative is
    twice the covariance of x_t and u_t."""
    generator, n, sigma, s = keyed_generator(0), 400_000, 0.6, 0.5
    x0, x1 = (torch.randn(n, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x1 = 2 + s * x1
    for t in (0.2, 0.5, 0.9):
        point = PATHS.build("bridge", sigma=sigma)(x0, x1, torch.tensor(t).double(), generator=generator)
        slope = -2 * (1 - t) + 2 * t * s**2 + sigma**2 * (1 - 2 * t)
        covariance = torch.cov(torch.cat((point.x_t, point.u_t), 1).T)[0, 1]
        assert float(2 * covariance) == pytest.approx(slope, abs=0.02)


def test_a_bridge_without_noise_is_the_line() -> None:
    x0, x1 = torch.randn(2, 25, 3, dtype=torch.float64)
    bridge, line = (
        PATHS.build(name)(x0, x1, INSIDE) for name in ({"name": "bridge", "sigma": 0.0}, "linear")
    )
    assert torch.equal(bridge.x_t, line.x_t)
    assert torch.equal(bridge.u_t, line.u_t)
    assert bridge.score is None
    with pytest.raises(GenkitError, match="sigma must not be negative, not -1"):
        PATHS.build("bridge", sigma=-1.0)
