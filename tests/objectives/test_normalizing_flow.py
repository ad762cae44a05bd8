"""The autoregressive flow: inverse, log-determinant, densities that integrate to one, guided sampling."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.backbone import ModelOptions
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES, Guidance
from genkit.objectives import OBJECTIVES
from genkit.objectives.normalizing_flow import NormalizingFlow, span_layers
from genkit.randomness import keyed_generator
from genkit.types import Batch, DataSpec, StandardNormal
from tests.objectives.models import COLOUR, IMAGES, LABELLED, SPECS, VECTORS, build, model_options, randomize

EACH_DATA = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
EACH_SPANS = pytest.mark.parametrize("spans", [1, 2, 4, [1, 1, 2], [3, 1]], ids=str)


def flow(spec: DataSpec, dtype: torch.dtype = torch.float64, **options: Any) -> NormalizingFlow:
    if dtype == torch.float64:
        torch.set_default_dtype(dtype)
    objective = build("normalizing_flow", spec, **options).to(dtype)
    assert isinstance(objective, NormalizingFlow)
    return objective


def encoded(spec: DataSpec, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(n, *spec.shape, generator=keyed_generator(0), dtype=dtype)
    return x, torch.arange(n) % spec.classes if spec.classes else None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@EACH_SPANS
@EACH_DATA
def test_decoding_undoes_encoding(
    spec: DataSpec, spans: int | list[int], dtype: torch.dtype, tolerance: float
) -> None:
    model, (x, y) = flow(spec, dtype, spans=spans), encoded(spec, dtype=dtype)
    with torch.no_grad():
        z, log_det = model(x, y)
        back, log_det_back, *_ = model.decode(z, y)
        there, _ = model(model.decode(x, y)[0], y)
    assert (z - x).abs().max() > 0.1  # the map is far from the identity
    assert (back - x).abs().max() < tolerance
    assert (there - x).abs().max() < tolerance
    assert torch.allclose(log_det_back, log_det, atol=10 * tolerance * model.spec.dims)


@EACH_SPANS
@EACH_DATA
def test_the_log_determinant_is_that_of_the_jacobian(spec: DataSpec, spans: int | list[int]) -> None:
    model, (x, y) = flow(spec, spans=spans), encoded(spec, 2)
    found = model(x, y)[1]
    for i in range(2):
        label = None if y is None else y[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, c=label: model(v, c)[0], x[i : i + 1])
        sign, log_det = torch.linalg.slogdet(jacobian.reshape(spec.dims, spec.dims))
        assert sign == 1
        assert float(found[i].detach()) == pytest.approx(float(log_det), abs=1e-9)


@pytest.mark.parametrize("spec", [COLOUR, LABELLED], ids=lambda spec: spec.name)
def test_one_span_is_autoregressive_in_its_tokens(spec: DataSpec) -> None:
    """dz/dx is block lower triangular, and within a token's block diagonal."""
    model, (x, y) = flow(spec, spans=1), encoded(spec, 1)
    tokens = model.tokens
    jacobian = torch.autograd.functional.jacobian(
        lambda u: tokens.split(model(tokens.join(u), y)[0]), tokens.split(x)
    )[0, :, :, 0]
    for i, j in itertools.product(range(tokens.length), repeat=2):
        block = jacobian[i, :, j]
        if i < j:
            assert (block == 0).all()
        elif i == j:
            assert torch.equal(block, block.diagonal().diag())
            assert (block.diagonal() > 0).all()
        else:
            assert block.abs().max() > 1e-9


def test_the_second_span_reads_the_other_way() -> None:
    """With two spans every token depends on every other."""
    model, (x, _) = flow(DataSpec("four", (4,)), spans=2), encoded(DataSpec("four", (4,)), 1)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v)[0], x)[0, :, 0]
    assert jacobian.abs().min() > 1e-9


def test_a_fresh_flow_is_the_identity() -> None:
    model = build("normalizing_flow", IMAGES, scale=None)
    x, y = encoded(IMAGES, dtype=torch.float32)
    z, log_det = model(x, y)
    assert torch.equal(z, x)
    assert (log_det == 0).all()


@pytest.mark.parametrize("y", [None, 0, 2])
def test_the_density_of_a_line_integrates_to_one(y: int | None) -> None:
    spec = DataSpec("line", (1,), classes=3)
    model = flow(spec)
    x = torch.linspace(-40, 40, 20_001)[:, None]
    with torch.no_grad():
        density = model.log_density(x, None if y is None else torch.full((len(x),), y)).exp()
    assert float(torch.trapezoid(density, x[:, 0])) == pytest.approx(1, abs=1e-4)


def test_the_density_of_a_plane_integrates_to_one() -> None:
    model = flow(VECTORS, scale=0.5)
    side = torch.linspace(-12, 12, 161)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = torch.cat([model.log_density(part) for part in grid.split(10_000)]).exp().reshape(161, 161)
    assert float(torch.trapezoid(torch.trapezoid(density, side), side)) == pytest.approx(1, abs=1e-3)


def test_the_bound_is_below_the_exact_log_probability_of_levels() -> None:
    """Two pixels of three levels: P(l) is the integral of the density over the cell of l.

    Also, the cells' probabilities and what lies outside of them sum to one.
    """
    spec = DataSpec("tiny", (1, 1, 2), levels=3)
    model = flow(spec, model=ModelOptions(width=24, depth=2, heads=2, patch=1), spans=2)
    n = 60
    inside = (torch.arange(n) + 0.5) / n  # midpoint rule over a cell
    u = torch.cartesian_prod(inside, inside)
    bounds, exact = [], []
    for level in itertools.product(range(3), repeat=2):
        x = 2 * (torch.tensor(level, dtype=torch.float64) + u) / 3 - 1
        with torch.no_grad():
            log_density = model.log_density(x.reshape(-1, 1, 1, 2))
            exact.append(float(log_density.exp().mean().log()) + 2 * math.log(2 / 3))
            data = torch.tensor(level).reshape(1, 1, 1, 2).expand(4000, -1, -1, -1)
            drawn = model.log_prob(data, generator=keyed_generator(0))
        assert drawn.kind == "bound"
        bound, stderr = float(drawn.value.mean()), float(drawn.value.std()) / 4000**0.5
        assert bound == pytest.approx(float(log_density.mean()) + 2 * math.log(2 / 3), abs=5 * stderr + 1e-4)
        bounds.append(bound)
    assert all(b < e for b, e in zip(bounds, exact, strict=True))
    assert sum(map(math.exp, exact)) <= 1 + 1e-3


def test_real_valued_data_have_an_exact_density() -> None:
    model, (x, _) = flow(VECTORS), encoded(VECTORS)
    found = model.log_prob(x)
    assert found.kind == "exact"
    assert torch.equal(found.value, model.log_density(x))


@pytest.mark.parametrize("noise", ["gaussian", "none"])
def test_models_of_noised_levels_have_no_likelihood(noise: str) -> None:
    model = flow(IMAGES, noise=noise, sigma=0.1 if noise == "gaussian" else 0.0)
    with pytest.raises(GenkitError, match="no likelihood of the data: train with noise='uniform'"):
        model.log_prob(torch.zeros(2, 1, 4, 4).long())
    if noise == "gaussian":
        with pytest.raises(GenkitError, match="no log-probability"):
            model.sample(2, return_log_prob=True)


@pytest.mark.parametrize("spec", [VECTORS, LABELLED, IMAGES], ids=lambda spec: spec.name)
def test_samples_come_with_their_log_probability(spec: DataSpec) -> None:
    """The density of the point before it is rounded to a level."""
    model, y = flow(spec), torch.arange(3) % spec.classes if spec.classes else None
    sample = model.sample(3, y, return_log_prob=True, generator=keyed_generator(0))
    z = StandardNormal().sample(torch.empty(3, *spec.shape), generator=keyed_generator(0))
    with torch.no_grad():
        x = model.decode(z, y)[0]
        expected = model.log_density(x, y)
    assert torch.equal(sample.x, model.view.decode(x))
    assert torch.allclose(sample.log_prob.value, expected, atol=1e-9)
    assert sample.log_prob.kind == "exact"


@pytest.mark.parametrize("spans", [1, 2, 4])
def test_sampling_takes_one_call_a_token_and_span(spans: int) -> None:
    model = flow(IMAGES, spans=spans)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    sample = model.sample(2)
    assert sample.nfe == len(calls) == 4 * spans
    assert sample.tokens == 4  # all spans together are one pass through the stack


def test_the_denoising_step_is_counted() -> None:
    model = flow(IMAGES, noise="gaussian", sigma=0.1)
    sample = model.sample(2)
    assert sample.nfe == 4 * 4 + 4
    assert sample.tokens == 8


def reference_decode(model: NormalizingFlow, z: Tensor, y: Tensor, guidance: Guidance) -> Tensor:
    """Guided inversion without a cache: both networks run over all tokens so far, one after the other."""
    x, length = model.tokens.split(z), model.tokens.length
    for k, span in reversed(list(enumerate(model.spans))):
        todo, pos = span.order(x), span.order(model.positions)
        done, null = torch.zeros_like(todo), torch.full_like(y, -1)
        for i in range(length):
            parts = []
            for label in (y if model.told == "all" or k == len(model.spans) - 1 else null, null):
                cond = model.condition(len(z), y=label, span=k)
                h = model.backbone(span.inputs(done), cond, pos=pos, causal=True, layers=span.layers)
                a, mu = span.affine(h, cond)
                parts.append((a[:, i], mu[:, i]))
            t = torch.tensor(i / (length - 1))
            a, mu = guidance.combine_affine(parts[0], parts[1], t)
            done[:, i] = todo[:, i] * a.exp() + mu
        x = span.order(done)
    return model.tokens.join(x)


GUIDED: list[dict[str, Any]] = [
    {"name": "classifier_free"},
    {"name": "classifier_free", "annealed": True},
    {"name": "corrected", "annealed": True},
    {"name": "interval", "start": 0.3, "stop": 0.8},
]


@pytest.mark.parametrize("options", GUIDED, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("told", ["all", "last"])
@pytest.mark.parametrize("spec", [IMAGES, LABELLED], ids=lambda spec: spec.name)
def test_guided_inversion_is_the_formula_at_each_token(
    spec: DataSpec, told: str, options: dict[str, Any]
) -> None:
    model, (z, y) = flow(spec, scale=0.5, told=told), encoded(spec, 3)
    guidance = GUIDANCES.build(options, scale=2.0)
    with torch.no_grad():
        expected = reference_decode(model, z, y, guidance)
    assert torch.allclose(model.decode(z, y, guidance=guidance)[0], expected, atol=1e-9)
    assert not torch.allclose(model.decode(z, y)[0], expected, atol=1e-4)
    off = GUIDANCES.build(options, scale=1.0)
    assert torch.equal(model.decode(z, y, guidance=off)[0], model.decode(z, y)[0])


def test_one_span_that_is_told_y_is_all_that_depends_on_it() -> None:
    """It is next to the noise, and it alone is run twice for guidance."""
    model = flow(IMAGES, model=model_options(depth=4), spans=[1, 3], told="last", scale=0.5)
    (x, y), told = encoded(IMAGES), []
    model.backbone.register_forward_pre_hook(lambda _, arguments: told.append(arguments[1]))
    with torch.no_grad():
        z, log_det = model(x, y)
        model(x, (y + 1) % 3)
        assert torch.equal(told[0], told[2])
        assert not torch.equal(told[1], told[3])
        back, log_det_back, *_ = model.decode(z, y)
    assert torch.allclose(back, x, atol=1e-9)
    assert torch.allclose(log_det_back, log_det, atol=1e-7)
    told.clear()
    sample = model.sample(4, y, guidance=GUIDANCES.build("classifier_free", scale=2.0))
    assert [len(cond) for cond in told] == 4 * [8] + 4 * [4]
    assert (sample.nfe, sample.tokens) == (4 * 2, 4 * (1 / 4 + 2 * 3 / 4))


def test_denoising_is_tweedies_formula() -> None:
    """A flow whose head gives constants is a Gaussian: E[clean | x] = x + sigma^2 (mean - x) / var."""
    model = flow(LABELLED, noise="gaussian", sigma=0.3, scale=None, spans=1)
    a, mu = 0.4, -0.7
    with torch.no_grad():
        model.spans[0].head.proj.bias.copy_(torch.tensor([a, mu]))
    a = 4 * math.tanh(a / 4)
    x, y = encoded(LABELLED)
    expected = x + 0.3**2 * (mu - x) / math.exp(2 * a)
    assert torch.allclose(model.denoise(x, y), expected, atol=1e-12)
    with torch.no_grad():
        drawn = model.decode(torch.randn(20_000, 3), torch.zeros(20_000).long())[0]
    assert float(drawn.mean()) == pytest.approx(mu, abs=0.05)
    assert float(drawn.std()) == pytest.approx(math.exp(a), rel=0.02)


def test_denoising_is_the_gradient_of_the_log_density() -> None:
    model, (x, y) = flow(IMAGES, noise="gaussian", sigma=0.2), encoded(IMAGES, 2)
    step, moved = 1e-6, model.denoise(x, y)
    for i in range(16):
        e = torch.zeros(16).index_fill(0, torch.tensor(i), step).reshape(1, 1, 4, 4)
        with torch.no_grad():
            slope = (model.log_density(x + e, y) - model.log_density(x - e, y)) / (2 * step)
        assert torch.allclose((moved - x).flatten(1)[:, i], 0.2**2 * slope, atol=1e-5)


def test_log_scales_are_clipped_softly() -> None:
    model = flow(VECTORS, scale=None, spans=1, clip=2.0)
    with torch.no_grad():
        model.spans[0].head.proj.bias.fill_(100.0)
        _, log_det = model(torch.zeros(1, 2))
    assert float(log_det) == pytest.approx(-4)


def test_the_loss_is_nats_a_dimension() -> None:
    model = flow(IMAGES)
    rows = torch.zeros(3, 1, 4, 4).long()
    prepared = model.prepare(Batch(rows), generator=keyed_generator(0))
    loss = model.loss(prepared)["loss"]
    assert float(loss.detach()) == pytest.approx(
        float(-model.log_density(prepared.encoded).mean().detach() / 16)
    )


@pytest.mark.parametrize(
    ("spans", "depth", "expected"),
    [
        (1, 4, [(0, 4)]),
        (4, 4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (2, 6, [(0, 3), (3, 6)]),
        ([1, 1, 6], 8, [(0, 1), (1, 2), (2, 8)]),
    ],
)
def test_spans_make_up_the_stack(spans: int | list[int], depth: int, expected: list[tuple[int, int]]) -> None:
    assert [(s.start, s.stop) for s in span_layers(spans, depth)] == expected


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (3, "3 equal spans do not divide a stack of 4 layers"),
        (0, "0 equal spans"),
        (-1, "-1 equal spans"),
        ([2, 1], r"spans \[2, 1\] must be positive and sum to the depth, 4"),
        ([4, 0], "must be positive"),
        ([], "must be positive"),
    ],
)
def test_spans_that_do_not(spans: int | list[int], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build("normalizing_flow", IMAGES, spans=spans)


def test_other_options_that_cannot_be() -> None:
    with pytest.raises(GenkitError, match="clip must be positive"):
        build("normalizing_flow", IMAGES, clip=0.0)
    with pytest.raises(GenkitError, match="no inverter 'heun'"):
        build("normalizing_flow", IMAGES).sample(2, sampler="heun")


def test_bfloat16_changes_the_loss_little_and_gives_float32() -> None:
    objective = OBJECTIVES.build("normalizing_flow", IMAGES, ModelOptions(width=24, depth=4, heads=2))
    randomize(objective, 0.3)
    x, y = encoded(IMAGES, dtype=torch.float32)
    full = objective.log_density(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective.log_density(x, y)
    assert half.dtype == torch.float32
    assert torch.allclose(full, half, rtol=0.05, atol=1.0)
    assert not torch.equal(full, half)
