"""Inverters of a normalizing flow (their laws: tests/testing): each gives what token by token gives, at its cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.inversion import INVERTERS
from genkit.inversion.auto import Auto
from genkit.inversion.jacobi import GaussSeidelJacobi
from genkit.objectives import OBJECTIVES
from genkit.objectives.normalizing_flow import NormalizingFlow
from genkit.randomness import keyed_generator
from genkit.testing.inversion import Triangular
from genkit.types import DataSpec, StandardNormal
from tests.objectives.models import build, model_options

IMAGES = DataSpec("images", (1, 12, 12), levels=5, classes=3)  # 36 tokens
TIGHT: dict[torch.dtype, float] = {torch.float32: 1e-12, torch.float64: 1e-22}
OTHERS: list[dict[str, Any]] = [
    {"name": "jacobi"},
    {"name": "gauss_seidel_jacobi", "block": 5},
    {"name": "gauss_seidel_jacobi", "block": 16},
    {"name": "gauss_seidel_jacobi", "block": 1},
    {"name": "gauss_seidel_jacobi", "block": None},
    {"name": "auto"},
]
EACH = pytest.mark.parametrize("inverter", OTHERS, ids=lambda spec: "-".join(map(str, spec.values())))
GUIDED = pytest.mark.parametrize("scale", [None, 2.0], ids=["plain", "guided"])
N = 3


def flow(dtype: torch.dtype = torch.float64, scale: float = 0.4, **options: Any) -> NormalizingFlow:
    """Spans that iterations solve in fewer passes than tokens, but not in a few."""
    if dtype == torch.float64:
        torch.set_default_dtype(dtype)
    options = {"model": model_options(depth=4), "spans": [1, 3], **options}
    objective = build("normalizing_flow", IMAGES, scale=scale, **options).to(dtype)
    assert isinstance(objective, NormalizingFlow)
    return objective


def code(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(N, *IMAGES.shape, generator=keyed_generator(0), dtype=dtype), torch.arange(N)


def guidance(scale: float | None) -> Any:
    return scale and GUIDANCES.build("classifier_free", scale=scale, annealed=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@GUIDED
@EACH
def test_all_inverters_agree(inverter: dict[str, Any], scale: float | None, dtype: torch.dtype) -> None:
    """Also the log-determinant, that of the guided map where there is guidance."""
    model, (z, y) = flow(dtype), code(dtype)
    expected = model.decode(z, y, guidance=guidance(scale))
    tight = INVERTERS.build(inverter, tolerance=TIGHT[dtype])
    found = model.decode(z, y, guidance=guidance(scale), inverter=tight)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert (expected.x - z).abs().max() > 0.5  # the map is far from the identity
    assert (found.x - expected.x).abs().max() < tolerance
    assert (found.log_det - expected.log_det).abs().max() < tolerance * 10
    if scale is None:
        with torch.no_grad():
            back, log_det = model(found.x, y)
        assert (back - z).abs().max() < tolerance * 10
        assert (found.log_det - log_det).abs().max() < tolerance * 10


@pytest.mark.parametrize("name", ["corrected", "interval", "autoguidance"])
@pytest.mark.parametrize("inverter", OTHERS[:2], ids=lambda spec: spec["name"])
def test_all_inverters_agree_on_all_that_is_guided(inverter: dict[str, Any], name: str) -> None:
    model, (z, y) = flow(), code()
    built = GUIDANCES.build(name, scale=6.0)
    built.guide = flow(scale=0.2)
    expected = model.decode(z, y, guidance=built)
    found = model.decode(z, y, guidance=built, inverter=INVERTERS.build(inverter, tolerance=1e-22))
    assert (expected.x - model.decode(z, y).x).abs().max() > 0.02
    assert (found.x - expected.x).abs().max() < 1e-9
    assert (found.log_det - expected.log_det).abs().max() < 1e-8
    assert expected.tokens == 2 * 36


@EACH
def test_samples_are_those_of_the_reference_also_after_denoising(inverter: dict[str, Any]) -> None:
    model = flow(torch.float32, spans=4, noise="gaussian", sigma=0.1)
    y, draw = torch.arange(N), {"guidance": guidance(1.5)}
    expected = model.sample(N, y, generator=keyed_generator(1), **draw)
    tight = INVERTERS.build(inverter, tolerance=TIGHT[torch.float32])
    found = model.sample(N, y, sampler=tight, generator=keyed_generator(1), **draw)
    assert torch.equal(found.x, expected.x)


@GUIDED
@EACH
def test_calls_and_tokens_are_those_of_the_network(inverter: dict[str, Any], scale: float | None) -> None:
    model, y = flow(torch.float32), torch.arange(N)
    calls: list[tuple[int, float]] = []
    model.backbone.register_forward_hook(
        lambda module, inputs, options, out: calls.append(
            (1, out.shape[0] * out.shape[1] * (options["layers"].stop - options["layers"].start) / N / 4)
        ),
        with_kwargs=True,
    )
    sample = model.sample(N, y, sampler=INVERTERS.build(inverter), guidance=guidance(scale))
    assert sample.nfe == len(calls)
    assert sample.tokens == pytest.approx(sum(tokens for _, tokens in calls))


def test_jacobi_takes_fewer_calls_and_more_tokens() -> None:
    model, y = flow(torch.float32, scale=0.2), torch.arange(N)
    one, other = (model.sample(N, y, sampler=name) for name in ("sequential", "jacobi"))
    assert (one.nfe, one.tokens) == (2 * 36, 36)
    assert other.nfe < 36
    assert other.tokens > 2 * 36


def test_as_many_passes_as_tokens_are_exact() -> None:
    model, (z, y) = flow(), code()
    reference = model.decode(z, y)
    found = model.decode(z, y, inverter=INVERTERS.build("jacobi", tolerance=0.0))
    assert [part.calls for part in found.spans] == [36, 36]
    assert all(part.exact for part in found.spans)
    assert found.tokens == 36 * 37 / 2  # each pass leaves out one token more
    assert torch.allclose(found.x, reference.x, atol=1e-12)
    assert torch.allclose(found.log_det, reference.log_det, atol=1e-10)


def test_a_smaller_tolerance_is_a_smaller_error() -> None:
    model, (z, y) = flow(), code()
    reference, errors, calls = model.decode(z, y).x, [], []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-10):
        found = model.decode(z, y, inverter=INVERTERS.build("jacobi", tolerance=tolerance))
        errors.append(float((found.x - reference).norm() / reference.norm()))
        calls.append(sum(part.calls for part in found.spans))
        assert errors[-1] < 10 * tolerance**0.5
    assert errors == sorted(errors, reverse=True)
    assert calls == sorted(calls)


def test_the_worst_sample_decides() -> None:
    """A sample that is far from its solution is not hidden by many that are near theirs."""
    span = Triangular(strength=0.3)
    z = torch.randn(64, span.length, 2, generator=keyed_generator(3)).double()
    z[1:] *= 1e-3
    z[0] *= 10
    inverter = GaussSeidelJacobi(None, 1e-8)
    alone = inverter.invert(Triangular(strength=0.3), z[:1])
    together = inverter.invert(span, z)
    assert together.calls >= alone.calls
    assert (together.x[:1] - alone.x).norm() < 1e-4 * alone.x.norm()


def test_without_a_tolerance_nothing_is_tested() -> None:
    """A fixed number of passes, however far from the solution they end."""
    model, (z, y) = flow(), code()
    for cap in (1, 3):
        found = model.decode(z, y, inverter=INVERTERS.build("jacobi", tolerance=0.0, cap=cap))
        assert [part.calls for part in found.spans] == [cap, cap]
        assert not any(part.exact for part in found.spans)


@pytest.mark.parametrize("name", ["jacobi", "gauss_seidel_jacobi"])
def test_a_tolerance_that_is_not_reached(name: str) -> None:
    model, (z, y) = flow(), code()
    message = (
        r"after 2 passes over (36|32) tokens, .* of the worst sample is [\d.e+-]+, above the tolerance 1e-10; "
        r"raise cap \((36|32) is always enough\), or use the inverter sequential"
    )
    with pytest.raises(GenkitError, match=message):
        model.decode(z, y, inverter=INVERTERS.build(name, tolerance=1e-10, cap=2))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-12])
def test_log_probabilities_are_those_of_the_very_samples(tolerance: float) -> None:
    """Also where x is not quite the inverse of its noise."""
    model, y = flow(), torch.arange(N)
    jacobi = INVERTERS.build("jacobi", tolerance=tolerance)
    sample = model.sample(N, y, sampler=jacobi, return_log_prob=True, generator=keyed_generator(0))
    z = StandardNormal().sample(torch.empty(N, *IMAGES.shape), generator=keyed_generator(0))
    found = model.decode(z, y, inverter=jacobi)
    with torch.no_grad():
        expected = model.log_density(found.x, y)
    assert not all(part.exact for part in found.spans)
    assert torch.equal(sample.log_prob.value, expected)
    assert sample.nfe == sum(part.calls for part in found.spans) + 2
    assert sample.tokens == pytest.approx(found.tokens + 36)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "jacobi", "tolerance": -1e-3}, "tolerance must be a number from 0 up, not -0.001"),
        ({"name": "jacobi", "tolerance": float("nan")}, "tolerance must be a number"),
        ({"name": "jacobi", "tolerance": float("inf")}, "tolerance must be a number"),
        ({"name": "jacobi", "cap": 0}, "cap must be at least 1, not 0"),
        ({"name": "gauss_seidel_jacobi", "block": 0}, "block must be at least 1, not 0"),
        ({"name": "jacobi", "block": 4}, "no option 'block'"),
        ({"name": "sequential", "tolerance": 1e-3}, "no option 'tolerance'"),
        ({"name": "auto", "tolerance": -1.0}, "tolerance must be a number"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        INVERTERS.build(options)


def test_a_flow_on_low_precision_is_inverted_in_the_type_of_its_noise() -> None:
    model, (z, y) = flow(torch.float32), code(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.decode(z, y, inverter=INVERTERS.build("jacobi", tolerance=1e-6))
        reference = model.decode(z, y)
    assert found.x.dtype == torch.float32
    assert torch.allclose(found.x, reference.x, atol=0.1)


def test_the_default_of_the_objective_is_exact() -> None:
    assert OBJECTIVES.get("normalizing_flow").default_sampler == "sequential"


@pytest.mark.parametrize(
    ("batch", "device", "name", "block"),
    [
        (1, "cpu", "gauss_seidel_jacobi", 256),
        (4, "cpu", "gauss_seidel_jacobi", 64),
        (5, "cpu", "sequential", None),
        (64, "cpu", "sequential", None),
        (1, "cuda", "gauss_seidel_jacobi", 64),
        (64, "cuda", "gauss_seidel_jacobi", 64),
    ],
)
def test_auto_chooses_by_batch_and_device(batch: int, device: str, name: str, block: int | None) -> None:
    chosen = Auto(tolerance=1e-5).choose(batch, device)
    assert INVERTERS.name_of(chosen) == name
    assert block is None or (chosen.block, chosen.tolerance) == (block, 1e-5)
