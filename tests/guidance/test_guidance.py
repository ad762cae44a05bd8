"""Guidance beyond its laws (see tests/testing): formulas, closed forms, and what the second prediction costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES, Guidance, Guided, build_guidance
from genkit.objectives import Objective
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.solvers.adaptive import Adaptive
from genkit.testing.oracles import GaussianFlow
from genkit.types import Field
from tests.objectives.models import IMAGES, LABELLED, WORDS, build

T = torch.tensor(0.25)
Y = torch.tensor([0, 1, 2, 0, 1])
FIELDS = [name for name in GUIDANCES.names() if not GUIDANCES.get(name).by_model]


def predict(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
    """Depends on all that it is given, so that a swap shows."""
    y = torch.full((len(x),), -1) if y is None else y
    return t + x * (2.0 + y[:, None]) + y[:, None]


def model(name: str = "flow_matching", *, guide: bool = False, **options: Any) -> Objective:
    """A small model; the guide is one of other weights."""
    spec = WORDS if name == "masked_diffusion" else LABELLED
    return build(name, spec, scale=0.4 if guide else 1.0, **options)


def guidance(name: str, scale: float = 3.0, guide: Objective | None = None, **options: Any) -> Guidance:
    built = GUIDANCES.build(name, scale=scale, **options)
    if built.by_model:
        built.guide = guide
    return built


# --- one place for both predictions -----------------------------------------------------------------------


def test_the_unconditional_branch_of_inactive_guidance_is_not_paid_for() -> None:
    rows, x = [], torch.randn(5, 3)

    def counting(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        rows.append(len(x))
        return predict(t, x, y)

    for scale in (1.0, 2.0):
        found = Guided(counting, Y, GUIDANCES.build("classifier_free", scale=scale))
        found(T, x)
        assert found.rows == rows[-1]
    assert rows == [5, 10]


@pytest.mark.parametrize("name", FIELDS)
def test_no_guidance_without_classes_or_guidance(name: str) -> None:
    x = torch.randn(5, 3)
    assert torch.equal(Guided(predict, None, GUIDANCES.build(name, scale=3.0))(T, x), predict(T, x, None))
    assert torch.equal(Guided(predict, Y, None)(T, x), predict(T, x, Y))


def test_a_weaker_model_is_given_the_same_class_or_none() -> None:
    x, auto = torch.randn(5, 3), guidance("autoguidance", 3.0)
    for y in (Y, None):
        found = Guided(predict, y, auto, lambda t, x, y: predict(t, x, y) - x)
        assert torch.allclose(found(T, x), predict(T, x, y) + 2 * x, atol=1e-5)
        assert found.rows == 10
    with pytest.raises(GenkitError, match="autoguidance needs a weaker model: sample a run"):
        Guided(predict, Y, auto)


@pytest.mark.parametrize("cached", [False, True])
def test_outside_its_interval_there_is_one_prediction_or_none_is_taken(cached: bool) -> None:
    """`cached` networks must both read all; the result is the same."""
    x, interval = torch.randn(5, 3), guidance("interval", 3.0, start=0.3, stop=0.6)
    for t, inside in ((0.29, False), (0.3, True), (0.5, True), (0.6, True), (0.61, False)):
        found = Guided(predict, Y, interval, cached=cached)
        expected = Guided(predict, Y, guidance("classifier_free") if inside else None)
        for dtype in (torch.float32, torch.float64):  # a bound that rounds is still inside
            time = torch.tensor(t, dtype=dtype)
            assert torch.equal(found(time, x), expected(time, x))
        assert found.rows == (20 if cached or inside else 10)


@pytest.mark.parametrize("by_model", [False, True])
def test_rows_may_have_times_of_their_own(by_model: bool) -> None:
    """As they do where rows are revealed at their own pace; predictions are of other dimensions than x there."""

    def wide(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        return predict(t[:, None] if t.ndim else t, x, y)[..., None].expand(-1, -1, 4)

    def weaker(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        return wide(t, x, y) - x[..., None]

    x, times = torch.randn(5, 3), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    interval = guidance("interval", 3.0, start=0.3, stop=0.6)
    other = weaker if by_model else None
    found = Guided(wide, Y, interval, other)(times, x)
    for i, t in enumerate(times):
        alone = Guided(wide, Y[i : i + 1], interval, other)(t, x[i : i + 1])
        assert torch.allclose(found[i : i + 1], alone, atol=1e-6)


# --- formulas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0])
def test_classifier_free_formula(scale: float) -> None:
    x = torch.randn(5, 3)
    built = GUIDANCES.build("classifier_free", scale=scale)
    v_c, v_u = predict(T, x, Y), predict(T, x, torch.full_like(Y, -1))
    assert built.active
    assert torch.allclose(Guided(predict, Y, built)(T, x), v_c + (scale - 1) * (v_c - v_u), atol=1e-6)
    if scale == 0:
        assert torch.allclose(Guided(predict, Y, built)(T, x), v_u, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_annealed_guidance_grows_with_time(t: float) -> None:
    v_c, v_u = torch.randn(2, 4, 3)
    found = GUIDANCES.build("classifier_free", scale=3.0, annealed=True).combine(v_c, v_u, torch.tensor(t))
    assert torch.allclose(found, v_c + 2 * t * (v_c - v_u))


def test_a_rescaled_prediction_has_the_spread_of_the_conditional() -> None:
    v_c, v_u = torch.randn(2, 4, 1, 6, 6, dtype=torch.float64)
    plain = guidance("classifier_free").combine(v_c, v_u, T)
    whole, half, none = (guidance("rescaled", phi=phi).combine(v_c, v_u, T) for phi in (1.0, 0.5, 0.0))
    spread = [[float(row.std()) for row in v] for v in (v_c, whole, plain)]
    assert spread[1] == pytest.approx(spread[0], rel=1e-12)
    assert min(p / c for p, c in zip(spread[2], spread[0], strict=True)) > 1.5  # there was something to undo
    assert torch.equal(none, plain)
    assert torch.allclose(half, (whole + plain) / 2, atol=1e-12)
    flat = torch.ones(2, 3)
    assert torch.equal(guidance("rescaled").combine(flat, flat, T), flat)  # no spread at all


def test_ratio_aware_guidance_falls_with_the_change_of_each_sample() -> None:
    v_c, v_u = torch.randn(2, 4, 1, 6, 6, dtype=torch.float64)
    v_u[0] = 0
    found = guidance("ratio_aware", decay=0.7).combine(v_c, v_u, T)
    for c, u, row in zip(v_c, v_u, found, strict=True):
        rho = math.dist(c.flatten(), u.flatten()) / max(math.hypot(*u.flatten()), 1e-300)
        w = 1 + 2 * math.exp(-0.7 * rho)
        assert torch.allclose(row, u + w * (c - u), atol=1e-12)
    assert torch.equal(found[0], v_c[0])
    plain = guidance("classifier_free").combine(v_c, v_u, T)
    assert torch.equal(guidance("ratio_aware", decay=0.0).combine(v_c, v_u, T), plain)


# --- closed forms -----------------------------------------------------------------------------------------


def gaussians(path: str = "linear") -> tuple[GaussianFlow, GaussianFlow, GaussianFlow]:
    """With the class, without it, and what guidance of scale 3 aims at: of equal spread, its mean is moved."""
    with_class = GaussianFlow.example(path)
    mean = torch.tensor([0.2, 0.1], dtype=torch.float64)
    aim = with_class.mean + 2 * (with_class.mean - mean)
    return with_class, *(GaussianFlow(m, with_class.cov, with_class.path) for m in (mean, aim))  # type: ignore[return-value]


def of_both(one: GaussianFlow, other: GaussianFlow, kind: str = "velocity") -> Any:
    def ask(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        fields = (
            flow.field() if kind == "velocity" else getattr(flow.field(), kind) for flow in (one, other)
        )
        conditional, unconditional = (field(t, x) for field in fields)
        return torch.where((y >= 0)[:, None], conditional, unconditional)

    return ask


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_guided_flow_of_two_gaussians(path: str) -> None:
    """v_c - v_u is that of a shift of the mean, so the guided flow is that of a third Gaussian."""
    one, other, aim = gaussians(path)
    x = torch.randn(5, 2, dtype=torch.float64)
    start, stop = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for name in ("classifier_free", "corrected"):
        field = Guided(of_both(one, other), Y, guidance(name))
        found = SOLVERS.build("rk4", steps=64).solve(field, x).x
        assert torch.allclose(found, aim.transport(x, start, stop), atol=1e-6)
    whole = Guided(of_both(one, other), Y, guidance("interval", start=0.0, stop=1.0))
    plain = Guided(of_both(one, other), Y, guidance("classifier_free"))
    found, expected = (SOLVERS.build("heun", steps=8).solve(field, x).x for field in (whole, plain))
    assert torch.equal(found, expected)


def test_the_flow_guided_in_an_interval() -> None:
    """Three flows, one after the other."""
    one, other, aim = gaussians()
    x = torch.randn(5, 2, dtype=torch.float64)
    field = Guided(of_both(one, other), Y, guidance("interval", start=0.25, stop=0.75 - 1e-9))
    found = SOLVERS.build("midpoint", steps=512).solve(field, x).x
    times = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    for flow, s, t in zip((one, aim, one), times[:-1], times[1:], strict=True):
        x = flow.transport(x, s, t)
    assert torch.allclose(found, x, atol=1e-5)
    assert field.rows == 5 * (2 * 512 + 512)


@pytest.mark.parametrize("name", GUIDANCES.names())
def test_what_is_guided_is_the_prediction_whatever_its_kind(name: str) -> None:
    """Linear guidance of the data prediction is that of the velocity; where sizes count, it is not."""
    one, other, _ = gaussians()
    x, t, built = (
        torch.randn(5, 2, dtype=torch.float64),
        torch.tensor(0.4, dtype=torch.float64),
        guidance(name),
    )
    found = []
    for kind in ("velocity", "data", "noise"):
        ask = of_both(one, other, kind)
        weaker = of_both(other, other, kind) if built.by_model else None
        field = Field(Guided(ask, Y, built, weaker), one.path.coefficients, None, kind)  # type: ignore[arg-type]
        found.append(field(t, x))
    same = [torch.allclose(found[0], v, atol=1e-12) for v in found[1:]]
    assert same == [name not in ("rescaled", "ratio_aware")] * 2


def log_normal(x: Tensor, a: Tensor, mu: Tensor) -> Tensor:
    return -a - ((x - mu) * (-a).exp()).square() / 2


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_a_corrected_step_is_the_product_of_densities(scale: float) -> None:
    """log p = scale log p_c - (scale - 1) log p_u up to a constant of x, where sigma_c <= sigma_u."""
    a_c, mu_c, mu_u = torch.randn(3, 6, 2, dtype=torch.float64)
    a_u = a_c + torch.rand(6, 2, dtype=torch.float64)
    a, mu = guidance("corrected", scale).combine_affine((a_c, mu_c), (a_u, mu_u), T)
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None, None]
    product = scale * log_normal(x, a_c, mu_c) - (scale - 1) * log_normal(x, a_u, mu_u)
    off = log_normal(x, a, mu) - product
    assert torch.allclose(off, off[:1].expand_as(off), atol=1e-9)
    assert (a <= a_c).all() if scale > 1 else (a >= a_c).all()


def test_where_the_product_is_no_density_the_step_keeps_its_width() -> None:
    """sigma_c > sigma_u: taken as if both were sigma_c, so that the mean alone moves."""
    a_u, mu_c, mu_u = torch.randn(3, 6, 2, dtype=torch.float64)
    a_c = a_u + torch.rand(6, 2, dtype=torch.float64)
    a, mu = guidance("corrected", 4.0).combine_affine((a_c, mu_c), (a_u, mu_u), T)
    assert torch.equal(a, a_c)
    assert torch.allclose(mu, mu_c + 3 * (mu_c - mu_u), atol=1e-12)


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_every_guidance_works_with_every_solver(solver: str) -> None:
    objective, weak, y = model(), model(guide=True), torch.tensor([0, 1, 2, 0])

    adaptive = issubclass(SOLVERS.get(solver), Adaptive)
    options = {"steps": 1, "rtol": 0.1, "atol": 0.1} if adaptive else {"steps": 3}

    def sample(built: Guidance | None) -> Tensor:
        sampler = SOLVERS.build(solver, **options)
        return objective.sample(4, y, sampler=sampler, guidance=built, generator=keyed_generator(0)).x

    plain = sample(None)
    for name in GUIDANCES.names():
        assert torch.equal(sample(guidance(name, 1.0, weak)), plain), name
        found = sample(guidance(name, 3.0, weak))
        assert found.isfinite().all()
        assert not torch.allclose(found, plain, atol=1e-4), name


@pytest.mark.parametrize("name", ["flow_matching", "masked_diffusion", "energy"])
def test_doubled_steps_alone_are_counted(name: str) -> None:
    """Of eight steps those at 0.25, 0.375 and 0.5 are guided, of six those at a third and a half."""
    objective = model(name)
    rows: list[int] = []
    objective.backbone.register_forward_hook(lambda *call: rows.append(len(call[-1])))
    discrete = name == "masked_diffusion"
    sampler = {"name": "confidence", "steps": 6} if discrete else {"name": "euler", "steps": 8}
    sample = objective.sample(
        3, torch.tensor([0, 1, 2]), sampler=sampler, guidance=guidance("interval", start=0.25, stop=0.5)
    )
    assert rows == ([3, 3, 6, 6, 3, 3] if discrete else [3, 3, 6, 6, 6, 3, 3, 3])
    assert sample.nfe == len(rows)
    call = 2 if name == "energy" else 1
    assert sample.tokens == pytest.approx(sum(rows) / 3 * call * objective.tokens.length)


@pytest.mark.parametrize("name", ["flow_matching", "normalizing_flow", "autoregressive", "masked_diffusion"])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_model_guided_by_itself_is_not_guided(name: str, conditional: bool) -> None:
    """Whatever the scale; it costs twice the tokens, needs no dropped labels, and the guide is no part of the model."""
    spec = IMAGES if conditional else WORDS if name in ("autoregressive", "masked_diffusion") else LABELLED
    objective, same, weak = (
        build(name, spec, conditional=conditional, label_dropout=0.0, scale=scale) for scale in (1, 1, 0.2)
    )
    y = torch.tensor([0, 1, 2]) if conditional else None
    names = [key for key, _ in objective.named_parameters()]

    def sample(guide: Objective | None) -> Any:
        built = None if guide is None else guidance("autoguidance", 8.0, guide)
        return objective.sample(3, y, guidance=built, generator=keyed_generator(0))

    plain, self_guided, guided = sample(None), sample(same), sample(weak)
    assert torch.allclose(self_guided.x.double(), plain.x.double(), atol=1e-4)
    assert not torch.allclose(guided.x.double(), plain.x.double(), atol=1e-4)
    assert (guided.nfe, guided.tokens) == (plain.nfe, 2 * plain.tokens)
    assert [key for key, _ in objective.named_parameters()] == names
    with pytest.raises(GenkitError, match="needs a weaker model"):
        objective.sample(3, y, guidance=guidance("autoguidance", 8.0))


# --- what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDANCES.names())
def test_a_scale_is_finite(name: str) -> None:
    for scale in (math.inf, math.nan):
        with pytest.raises(GenkitError, match=f"{name}: scale must be a finite number, not {scale}"):
            GUIDANCES.build(name, scale=scale)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "interval", "start": 0.5, "stop": 0.5}, "0 <= start < stop <= 1 .* start 0.5 and stop 0.5"),
        ({"name": "interval", "start": 0.9}, "start 0.9 and stop 0.75"),
        ({"name": "interval", "start": -0.1}, "start -0.1"),
        ({"name": "interval", "stop": math.nan}, "stop nan"),
        ({"name": "rescaled", "phi": 1.5}, "phi must be from 0 to 1, not 1.5"),
        ({"name": "ratio_aware", "decay": -1.0}, "decay must be finite and not negative, not -1.0"),
        ({"name": "corrected", "scale": -0.5}, "scale must not be negative, not -0.5"),
        (True, "a guidance is a name or a mapping"),
    ],
)
def test_options_that_cannot_be(spec: Any, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build_guidance(spec)


@pytest.mark.parametrize("name", ["rescaled", "ratio_aware"])
@pytest.mark.parametrize("objective", ["normalizing_flow", "masked_diffusion"])
def test_sizes_are_of_fields_alone(name: str, objective: str) -> None:
    built, y = guidance(name), torch.tensor([0, 1])
    kind = "affine" if objective == "normalizing_flow" else "logits"
    with pytest.raises(
        GenkitError, match=f"'{name}' is of field .*are {kind}: use one of autoguidance, class"
    ):
        model(objective).sample(2, y, guidance=built)
