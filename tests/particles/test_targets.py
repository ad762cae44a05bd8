"""Targets by themselves: gradients, exponents, costs, models as leaves, and what they refuse."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkit.backbone import ModelOptions
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.objectives.rewards import Reward
from genkit.particles import TARGETS, Density, FeynmanKac, Model, Target, differentiated
from genkit.particles.compositions import interpolate
from genkit.paths import PATHS
from genkit.randomness import keyed_generator
from genkit.types import DataSpec
from tests.particles.problems import HIGH, LOW, ONE, PROBLEMS, A, B, build, density, to_disc

T = torch.tensor(0.6, dtype=torch.float64)
EACH = pytest.mark.parametrize("name", PROBLEMS)


def points(n: int = 64) -> Tensor:
    return torch.randn(n, 2, generator=keyed_generator(1), dtype=torch.float64)


def ready(name: str) -> Target:
    target = PROBLEMS[name].make()
    target.setup(FeynmanKac(50, 8), generator=keyed_generator(0))
    return target


def test_every_target_is_a_problem_here() -> None:
    kinds = {TARGETS.name_of(problem.make()) for problem in PROBLEMS.values()}
    assert kinds == set(TARGETS.names())


@EACH
@pytest.mark.parametrize("last", [False, True])
def test_the_gradient_is_that_of_the_value(name: str, last: bool) -> None:
    """By finite differences, but for a reward, which gives none."""
    target, x, h = ready(name), points(256), 1e-5
    value, gradient = target(T, x, last)
    assert value.dtype == gradient.dtype == torch.float64
    assert value.shape == (256,)
    if name == "reward":
        assert torch.equal(gradient, density(A)(T, x)[1])
        return
    steps = h * torch.eye(2, dtype=torch.float64)
    slopes = torch.stack(
        [(target(T, x + e, last)[0] - target(T, x - e, last)[0]) / (2 * h) for e in steps], 1
    )
    alive = value.isfinite()
    assert alive.sum() >= 3
    torch.testing.assert_close(gradient[alive], slopes[alive], rtol=1e-4, atol=1e-4)


@EACH
def test_the_exponent_is_that_of_the_gaussian_at_the_start(name: str) -> None:
    """Near t=0 the gradient is -c x."""
    target, x = ready(name), points()
    _, gradient = target(torch.tensor(1e-5, dtype=torch.float64), x)
    torch.testing.assert_close(gradient, -target.exponent * x, rtol=1e-3, atol=1e-3)


@EACH
def test_evaluations_are_counted_where_models_are_shared(name: str) -> None:
    target = ready(name)
    before = target.evaluations
    target(T, points())
    assert target.evaluations - before == len(list(target.leaves()))


# --- compositions ------------------------------------------------------------------------------------------


def test_a_prior_is_spared_where_it_has_no_part() -> None:
    assert len(build("product", [A, B], weights=[0.25, 0.75], prior=ONE).parts) == 2
    assert build("product", [A, B], prior=ONE).exponent == 1
    assert build("product", [A, B]).exponent == 2
    assert build("product", [A, B], weights=[1.0, -0.25]).exponent == 0.75
    assert build("temperature", A, beta=3.0).exponent == 3
    mixed = TARGETS.build("mixture", [build("product", [A, B]), build("temperature", A, beta=2.0)])
    assert mixed.exponent == 2


def test_a_mixture_takes_the_constants_of_its_parts_away() -> None:
    """Parts with constants of the time, against densities: equal up to the error of the normalizers."""
    target = ready("mixture")
    target.setup(FeynmanKac(2000, 32), generator=keyed_generator(0))
    exact = TARGETS.build("mixture", [density(A), density(B)], weights=[0.6, 1.4], normalized=True)
    careless = TARGETS.build("mixture", list(target.parts), weights=[0.6, 1.4], normalized=True)
    for t in (0.2, 0.55, 0.98):
        t = torch.tensor(t, dtype=torch.float64)
        value, gradient = target(t, points())
        torch.testing.assert_close(value, exact(t, points())[0], atol=0.1, rtol=0)
        torch.testing.assert_close(gradient, exact(t, points())[1], atol=0.4, rtol=0)
        assert (careless(t, points())[0] - exact(t, points())[0]).abs().max() > 0.25


def test_mixtures_within_mixtures_and_products_are_set_up() -> None:
    inner = TARGETS.build("mixture", [density(A, lambda t: 4 + 0 * t), density(B)])
    target = TARGETS.build("product", [inner, density(ONE)])
    run = FeynmanKac(200, 10).sample(target, generator=keyed_generator(0))
    assert run.evaluations == 2 * 11 + 3 * 11
    with pytest.raises(GenkitError, match=r"call setup\(sampler\) first"):
        TARGETS.build("mixture", [density(A), density(B)])(T, points())


def test_interpolation() -> None:
    assert [interpolate(t, [0.0, 1.0, 3.0], [0.0, 2.0, 0.0]) for t in (-1, 0, 0.5, 1, 2.5, 9)] == [
        0,
        0,
        1,
        2,
        0.5,
        0,
    ]


# --- constraints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["box", "disc"])
def test_a_bounded_run_ends_within_the_region(name: str) -> None:
    x = FeynmanKac(200, 16).sample(PROBLEMS[name].make(), generator=keyed_generator(0)).draw(300)
    if name == "box":
        assert ((x >= torch.tensor(LOW)) & (x <= torch.tensor(HIGH))).all()
    else:
        assert (to_disc(x) == 0).all()


def test_a_distance_without_a_gradient_or_with_a_root_at_the_border() -> None:
    def steps(x: Tensor) -> Tensor:
        return (x[:, 0] > 0.5).double()

    def rooted(x: Tensor) -> Tensor:
        return (x - x.clamp(-0.5, 0.5)).norm(dim=1)

    for distance in (steps, rooted):
        value, gradient = build("bounded", A, distance=distance)(T, points())
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_a_reward_sees_data_and_knows_what_they_are() -> None:
    seen = []

    class Seen(Reward):
        def __call__(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.sum(1)

    spec = DataSpec("pairs", (2,), levels=4)
    leaf = Density(A.density, (2,), decode=lambda x: (100 * x).round().long(), spec=spec)
    target = TARGETS.build("reward", leaf, reward=Seen(), strength=0.1)
    assert target.reward.spec is spec
    value, _ = target(T, points(), last=True)
    denoised = (points() + 0.16 * A.density(T, points())[1]) / 0.6
    torch.testing.assert_close(seen[0], (100 * denoised).round().long())
    torch.testing.assert_close(value, A.density(T, points())[0] + 0.1 * seen[0].sum(1))


def test_the_denoised_sample_of_a_power_is_the_mean_of_its_posterior() -> None:
    """For N(m, C)^c: N(m, C / c) under noise of variance s^2 / c."""
    seen = []
    target = TARGETS.build(
        "reward", build("temperature", ONE, beta=3.0), reward=lambda x: seen.append(x) or x.sum(1)
    )
    target(T, points())
    s2, mean, cov = (0.4 / 0.6) ** 2, ONE.means[0], ONE.covs[0]
    gain = cov @ torch.linalg.inv(cov + s2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(seen[0], mean + (points() / 0.6 - mean) @ gain.T)


# --- models ------------------------------------------------------------------------------------------------


class Fake(nn.Module):
    """An objective with an energy: class k is N((k, 0), I), the null class N(0, I)."""

    def __init__(
        self, classes: int | None = 3, label_dropout: float = 0.1, names: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.classes, self.conditional = classes, classes is not None
        self.label_dropout = label_dropout
        self.spec = DataSpec("fakes", (2,), classes=classes, class_names=names)
        self.path, self.device = PATHS.build("linear"), torch.device("cpu")
        self.view = SimpleNamespace(decode=lambda x: 10 * x)
        self.asked: list[Any] = []

    def log_density(self, t: Tensor, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        self.asked.append((t, x, y))
        away = x.clone()
        if y is not None:
            away[:, 0] -= t * y.clamp(min=0)
        return -away.square().sum(1) / 2 / (t**2 + (1 - t) ** 2), -away / (t**2 + (1 - t) ** 2)


def test_a_model_is_asked_for_its_class_in_its_own_precision() -> None:
    fake = Fake()
    for label, number in ((2, 2), (None, -1)):
        model = Model(fake, label)
        value, gradient = model(T, points())
        t, x, y = fake.asked[-1]
        assert t.dtype == x.dtype == torch.float32
        assert value.dtype == gradient.dtype == torch.float64
        assert y.tolist() == 64 * [number]
    assert Model(Fake(classes=None)).calls == 0
    unconditional = Fake(classes=None)
    Model(unconditional)(T, points())
    assert unconditional.asked[-1][2] is None
    torch.testing.assert_close(model.decode(points()), 10 * points().float())
    run = FeynmanKac(500, 16).sample(Model(fake, 2), generator=keyed_generator(0))
    assert run.x.dtype == torch.float32
    torch.testing.assert_close(run.log_w.float().exp() @ run.x, torch.tensor([2.0, 0.0]), atol=0.15, rtol=0)


def test_a_trained_energy_runs_as_it_is() -> None:
    from genkit.backbone import ModelOptions

    spec = DataSpec("pictures", (1, 4, 4), levels=5, classes=3)
    energy = OBJECTIVES.build("energy", spec, ModelOptions(width=16, depth=1, heads=2))
    target = TARGETS.build("product", [Model(energy, 0), Model(energy, 2)], prior=Model(energy))
    run = FeynmanKac(20, 6, move="mala").sample(
        TARGETS.build("reward", target, reward="brightness"), generator=keyed_generator(0)
    )
    assert run.x.shape == (20, 1, 4, 4)
    assert run.evaluations == 3 * (1 + 2 * 6)
    decoded = target.decode(run.draw(8, generator=keyed_generator(1)))
    assert set(decoded.unique().tolist()) <= set(range(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Model(OBJECTIVES.build("normalizing_flow", DataSpec("x", (2,)), ModelOptions(width=12))),
            "NormalizingFlow has no energy",
        ),
        (
            lambda: Model(nn.Linear(2, 2)),
            "Linear has no energy.* distil one from it with the objective energy",
        ),
        (lambda: Model(Fake(), 3), "class 3 is out of range: 'fakes' has classes 0 to 2"),
        (lambda: Model(Fake(), -1), "class -1 is out of range"),
        (lambda: Model(Fake(None), 1), "is unconditional: it has no class 1"),
        (lambda: Model(Fake(label_dropout=0.0)), "label_dropout 0: it has no unconditional density"),
    ],
)
def test_models_that_cannot_be_asked(call: Any, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        call()


def test_autograd_gives_the_gradient_of_a_plain_function() -> None:
    value, gradient = differentiated(lambda t, x: A.density(t, x)[0])(T, points())
    torch.testing.assert_close(value, A.density(T, points())[0])
    torch.testing.assert_close(gradient, A.density(T, points())[1])
    assert not value.requires_grad


# --- what they refuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_is_positive(beta: float) -> None:
    with pytest.raises(
        GenkitError, match=r"beta must be a positive number, not .*: below 1 for more variety"
    ):
        build("temperature", A, beta=beta)


@pytest.mark.parametrize(
    ("name", "inner", "options", "message"),
    [
        ("product", [A, B], {"weights": [1.0]}, "one finite weight for each of 2 parts"),
        ("product", [A, B], {"weights": [1.0, math.nan]}, "one finite weight"),
        ("product", [], {}, "one finite weight for each of 0 parts"),
        ("mixture", [A, B], {"weights": [1.0, 0.0]}, "one positive weight for each of 2 parts"),
        ("bounded", A, {}, "either a box, by low and high, or a distance"),
        ("bounded", A, {"low": 0.0, "distance": to_disc}, "either a box"),
        ("bounded", A, {"low": 1.0, "high": 1.0}, "low must be below high"),
        ("bounded", A, {"low": [0.0, 0.0, 0.0]}, r"broadcast to a sample, of shape \(2,\)"),
        ("bounded", A, {"low": ["a", "b"]}, "numbers or lists"),
        ("bounded", A, {"low": 0.0, "softness": 0.0}, "softness must be a positive number"),
        ("reward", A, {"reward": "brightness"}, "give the density a spec"),
        ("reward", A, {"reward": "brightnes"}, "did you mean 'brightness'"),
        ("reward", A, {"reward": len, "strength": math.inf}, "strength must be a finite number"),
        ("temperatur", A, {}, "did you mean 'temperature'"),
    ],
)
def test_bad_options(name: str, inner: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build(name, inner, **options)


def test_a_mixture_of_unlike_powers() -> None:
    with pytest.raises(GenkitError, match=r"sum to 1, 2, so that at t=0 they are Gaussians of unlike widths"):
        TARGETS.build("mixture", [density(A), build("product", [A, B])])


def test_a_reward_of_the_wrong_shape() -> None:
    with pytest.raises(GenkitError, match=r"a number for each of 64 samples expected, not the shape \(\)"):
        build("reward", A, reward=lambda x: x.mean())(T, points())


def test_models_that_do_not_fit_together() -> None:
    other = Density(A.density, (2,), "cosine")
    with pytest.raises(GenkitError, match="models on different paths do not compose"):
        TARGETS.build("product", [density(A), other]).check()
    with pytest.raises(GenkitError, match=r"of shape \(2,\) and \(3,\) do not compose"):
        TARGETS.build("product", [density(A), Density(A.density, (3,))]).check()
