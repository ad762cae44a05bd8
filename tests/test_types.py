"""The shared nouns against closed forms, in float64.

The oracle: x0 ~ N(0, 1) and x1 ~ N(m, s^2) independent, so x_t is Gaussian with mean alpha m and variance
alpha^2 s^2 + sigma^2, and E[x1|x], E[x0|x], the velocity and the score are linear in x.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.types import (
    Batch,
    Coefficients,
    DataSpec,
    Field,
    LogProb,
    Pair,
    Point,
    Sample,
    Solution,
    Source,
    StandardNormal,
    Velocity,
    View,
    null_like,
)

MEAN, SCALE = 1.5, 0.7
TIMES = (0.0, 0.1, 0.37, 0.5, 0.9, 1.0)


def linear(t: Tensor) -> Coefficients:
    one = torch.ones_like(t)
    return Coefficients(t, 1 - t, one, -one)


def cosine(t: Tensor) -> Coefficients:
    angle = t * math.pi / 2
    sin, cos = angle.sin(), angle.cos()
    return Coefficients(sin, cos, cos * math.pi / 2, -sin * math.pi / 2)


class Oracle:
    """What is known of the Gaussian case at time t on a path."""

    def __init__(self, path) -> None:
        self.path = path

    def variance(self, t):
        alpha, sigma, *_ = self.path(t)
        return alpha**2 * SCALE**2 + sigma**2

    def data(self, t, x):
        alpha = self.path(t).alpha
        return MEAN + alpha * SCALE**2 / self.variance(t) * (x - alpha * MEAN)

    def noise(self, t, x):
        alpha, sigma, *_ = self.path(t)
        return sigma / self.variance(t) * (x - alpha * MEAN)

    def score(self, t, x):
        return -(x - self.path(t).alpha * MEAN) / self.variance(t)

    def velocity(self, t, x):
        *_, d_alpha, d_sigma = self.path(t)
        return d_alpha * self.data(t, x) + d_sigma * self.noise(t, x)

    def log_density(self, t, x):
        variance = self.variance(t)
        return -0.5 * (x - self.path(t).alpha * MEAN) ** 2 / variance - 0.5 * variance.log()


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-3, 4, 15, dtype=torch.float64).reshape(5, 3)


@pytest.fixture(params=[linear, cosine], ids=["linear", "cosine"])
def oracle(request) -> Oracle:
    return Oracle(request.param)


@pytest.fixture
def field(oracle) -> Field:
    return Field(oracle.velocity, oracle.path, no_score=None)


def time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


# --- conversions of a field ---------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES)
def test_data_and_noise_of_a_gaussian(oracle, field, x, t):
    t = time(t)
    torch.testing.assert_close(field.data(t, x), oracle.data(t, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field.noise(t, x), oracle.noise(t, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [t for t in TIMES if t < 1])
def test_score_is_the_gradient_of_the_log_density(oracle, field, x, t):
    t = time(t)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_density(t, x).sum(), x)
    torch.testing.assert_close(field.score(t, x), gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(oracle.score(t, x), gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_data_and_noise_make_up_state_and_velocity(oracle, x, t):
    """For any velocity at all, not only a Gaussian's: the conversion is two linear equations."""
    t = time(t)
    field = Field(lambda t, x: x.sin() * (1 + t), oracle.path)
    alpha, sigma, d_alpha, d_sigma = oracle.path(t)
    data, noise = field.data(t, x), field.noise(t, x)
    torch.testing.assert_close(alpha * data + sigma * noise, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(d_alpha * data + d_sigma * noise, field(t, x), rtol=1e-12, atol=1e-12)


def test_linear_path_by_hand(x):
    """x1 = x + (1 - t) v and x0 = x - t v."""
    t, v = time(0.3), x.cos()
    field = Field(lambda t, x: x.cos(), linear)
    torch.testing.assert_close(field.data(t, x), x + 0.7 * v, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(field.noise(t, x), x - 0.3 * v, rtol=1e-14, atol=1e-14)


def test_field_of_a_pair_gives_back_the_pair(oracle, x):
    x0, x1, t = x, x.flip(0).exp(), time(0.6)
    alpha, sigma, d_alpha, d_sigma = oracle.path(t)
    field = Field(lambda t, x: d_alpha * x1 + d_sigma * x0, oracle.path)
    x_t = alpha * x1 + sigma * x0
    torch.testing.assert_close(field.data(t, x_t), x1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field.noise(t, x_t), x0, rtol=1e-12, atol=1e-12)


def test_conversions_keep_gradients(field, x):
    x.requires_grad_()
    t = time(0.4)
    (field.data(t, x).sum() + field.noise(t, x).sum() + field.score(t, x).sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_field_keeps_dtype_and_shape(field, dtype):
    x, t = torch.ones(2, 3, 4, 4, dtype=dtype), torch.tensor(0.5, dtype=dtype)
    for convert in (field, field.data, field.noise, field.score):
        assert convert(t, x).dtype == dtype
        assert convert(t, x).shape == x.shape


def test_field_calls_its_velocity_once_for_each_question(x):
    """A network evaluation costs: the number a solver counts must be the number that ran."""
    calls = []
    field = Field(lambda t, x: calls.append(t) or x, linear, no_score=None)
    for convert in (field, field.data, field.noise, field.score):
        calls.clear()
        convert(time(0.5), x)
        assert len(calls) == 1


def test_what_a_field_gives():
    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return x

    assert Field(velocity).gives == {"velocity"}
    assert Field(velocity, no_score=None).gives == {"velocity"}
    assert Field(velocity, linear).gives == {"velocity", "data", "noise"}
    assert Field(velocity, linear, no_score=None).gives == {"velocity", "data", "noise", "score"}


def test_field_without_a_path_says_so(x):
    field = Field(lambda t, x: x, no_score=None)
    for convert in (field.data, field.noise, field.score):
        with pytest.raises(GenkitError, match="velocity only: it comes without a Gaussian-form path"):
            convert(time(0.5), x)


def test_field_without_a_score_says_why(x):
    field = Field(lambda t, x: x, linear, no_score="it was trained with optimal transport")
    with pytest.raises(GenkitError, match="has no score: it was trained with optimal transport"):
        field.score(time(0.5), x)
    field.data(time(0.5), x)  # data and noise stay valid for any coupling
    with pytest.raises(GenkitError, match="only the velocity of this field is known"):
        Field(lambda t, x: x, linear).score(time(0.5), x)


def test_any_function_of_t_and_x_is_a_velocity():
    assert isinstance(lambda t, x: x, Velocity)
    assert isinstance(Field(lambda t, x: x), Velocity)
    assert not isinstance(3, Velocity)


# --- the source ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 1), (4, 2), (4, 1, 8, 8)])
def test_standard_normal_log_prob(shape):
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1, validate_args=False).log_prob(x).flatten(1).sum(1)
    found = StandardNormal().log_prob(x)
    assert found.shape == (4,)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_standard_normal_density_integrates_to_one():
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    total = torch.trapezoid(StandardNormal().log_prob(grid[:, None]).exp(), grid)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-10, atol=0)


def test_standard_normal_samples():
    like = torch.empty(20_000, 3, dtype=torch.float64)
    x = StandardNormal().sample(like, generator=torch.Generator().manual_seed(0))
    assert (x.shape, x.dtype) == (like.shape, like.dtype)
    assert x.mean(0).abs().max() < 4 / math.sqrt(len(x))
    assert (x.T.cov() - torch.eye(3)).abs().max() < 6 / math.sqrt(len(x))


def test_standard_normal_draws_from_its_generator_only():
    source, like = StandardNormal(), torch.zeros(5, 2, requires_grad=True)
    state = torch.get_rng_state()
    first = source.sample(like, generator=torch.Generator().manual_seed(3))
    again = source.sample(like, generator=torch.Generator().manual_seed(3))
    other = source.sample(like, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.requires_grad
    assert torch.equal(like, torch.zeros(5, 2))


def test_standard_normal_says_it_is_gaussian():
    assert StandardNormal.gaussian
    assert not Source.gaussian


# --- plain records ------------------------------------------------------------------------------------


def test_data_spec():
    digits = DataSpec("digits", (1, 8, 8), levels=17, classes=10)
    assert (digits.dims, digits.image) == (64, True)
    moons = DataSpec("moons", (2,))
    assert (moons.dims, moons.image, moons.levels, moons.classes) == (2, False, None, None)
    assert digits == DataSpec("digits", (1, 8, 8), levels=17, classes=10)
    assert len({digits, moons, dataclasses.replace(digits)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.levels = 256


def test_data_have_classes_or_conditions():
    assert DataSpec("a", (2,), classes=3).conditional
    assert DataSpec("a", (2,), condition=3).conditional
    assert not DataSpec("a", (2,)).conditional
    with pytest.raises(GenkitError, match="'a': samples have classes or real-valued conditions, not both"):
        DataSpec("a", (2,), classes=3, condition=1)
    with pytest.raises(GenkitError, match="a condition has at least one value, not 0"):
        DataSpec("a", (2,), condition=0)


def test_the_null_of_classes_and_of_conditions():
    assert null_like(torch.tensor([0, 2])).tolist() == [-1, -1]
    assert null_like(torch.zeros(2, 3)).isnan().all()


@pytest.mark.parametrize("base", [View, Source])
def test_abstract_means_abstract(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


def test_records_hold_what_they_are_given():
    x = torch.zeros(3, 2)
    assert len(Batch(x)) == 3
    assert Batch(x).pair is None
    assert Pair(x, x).weight is None
    assert Point(x, x).score is None
    assert LogProb(x.sum(1), "exact").stderr is None
    assert Sample(x, nfe=4, tokens=64.0).log_prob is None


def test_solutions_share_no_trajectory():
    one, other = Solution(torch.zeros(1), 1), Solution(torch.zeros(1), 1)
    one.trajectory.append(torch.zeros(1))
    assert other.trajectory == []
