"""Every path: its ends, that u_t is the derivative of x_t, and what a Field derives from it."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import GenkitError
from genkit.paths import PATHS
from genkit.types import Field
from tests.oracles import GaussianFlow

NAMES = PATHS.names()
# (alpha at 0, sigma at 1) where they are not 0; the path's docstring says so.
ENDS = {"variance_preserving": (0.00658, 0.001)}
INSIDE = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_ends(name: str) -> None:
    alpha, sigma, _, _ = PATHS.build(name).coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    alpha_0, sigma_1 = ENDS.get(name, (0.0, 0.0))
    assert alpha.tolist() == pytest.approx([alpha_0, 1], abs=1e-5)
    assert sigma.tolist() == pytest.approx([1, sigma_1], abs=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_rises_and_sigma_falls(name: str) -> None:
    alpha, sigma, d_alpha, d_sigma = PATHS.build(name).coefficients(INSIDE)
    assert (alpha.diff() > 0).all()
    assert (sigma.diff() < 0).all()
    assert (d_alpha > 0).all()
    assert (d_sigma < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_the_coefficients(name: str) -> None:
    path = PATHS.build(name)
    (alpha, sigma, d_alpha, d_sigma), tangent = torch.func.jvp(
        path.coefficients, (INSIDE,), (torch.ones_like(INSIDE),)
    )
    assert torch.allclose(d_alpha, tangent.alpha, rtol=1e-10, atol=1e-12)
    assert torch.allclose(d_sigma, tangent.sigma, rtol=1e-10, atol=1e-12)
    assert alpha.shape == sigma.shape == INSIDE.shape


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_u_is_the_derivative_of_x(name: str, shape: tuple[int, ...]) -> None:
    """By automatic differentiation, for a time of its own for each row."""
    path = PATHS.build(name)
    x0, x1 = torch.randn(2, 25, *shape, dtype=torch.float64)
    point, tangent = torch.func.jvp(lambda t: path(x0, x1, t)[:2], (INSIDE,), (torch.ones_like(INSIDE),))
    assert torch.allclose(point[1], tangent[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_common_time_may_be_a_scalar(name: str) -> None:
    path = PATHS.build(name)
    x0, x1 = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    for one, each in zip(path(x0, x1, t)[:2], path(x0, x1, t.expand(5))[:2], strict=True):
        assert torch.equal(one, each)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_finite_in_float32_up_to_the_ends(name: str) -> None:
    path = PATHS.build(name)
    t = torch.tensor([0.0, 1e-7, 0.5, 1 - 6e-8, 1.0])
    x0, x1 = torch.randn(2, 5, 2)
    point = path(x0, x1, t)
    assert point.x_t.dtype == torch.float32
    assert point.x_t.isfinite().all()
    assert point.u_t.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_field_inverts_the_path(name: str) -> None:
    """From x_t and u_t of one pair, data and noise are that pair."""
    path = PATHS.build(name)
    x0, x1 = torch.randn(2, 7, 3, dtype=torch.float64)
    for t in INSIDE:
        point = path(x0, x1, t)
        field = Field(lambda t, x, u=point.u_t: u, path.coefficients, None)
        assert torch.allclose(field.data(t, point.x_t), x1, atol=1e-8)
        assert torch.allclose(field.noise(t, point.x_t), x0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
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
