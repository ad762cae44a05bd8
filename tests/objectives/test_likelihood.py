"""The likelihood of flows against closed forms: the exact field of a Gaussian or a mixture replaces the network."""

from __future__ import annotations

import json
import math
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.objectives.likelihood import Augmented, LikelihoodOptions
from genkit.paths import PATHS
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.solvers.adaptive import Adaptive
from genkit.types import DataSpec, Field, LogProb, StandardNormal
from tests.objectives.models import (
    IMAGES,
    LABELLED,
    SOLID,
    VECTORS,
    batch,
    build,
    flow,
    model_options,
    points,
)
from tests.oracles import GaussianFlow, MixtureFlow

ORACLES = [GaussianFlow.example(), MixtureFlow.example()]
GRADIENTS = ("direct", "recompute", "adjoint")
DETERMINISTIC = [name for name in SOLVERS.names() if "score" not in SOLVERS.get(name).needs]


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_likelihood_of_a_gaussian(path: str, dims: int) -> None:
    oracle = GaussianFlow.example(path, dims)
    x = points(dims=dims)
    found = flow(VECTORS if dims == 2 else SOLID, oracle, path=path).log_prob(x)
    assert found.kind == "estimate"
    assert found.stderr is None
    assert torch.allclose(found.value, oracle.log_prob(x), atol=1e-4)


def test_the_likelihood_of_a_mixture() -> None:
    oracle, x = MixtureFlow.example(), points()
    model = flow(oracle=oracle)
    errors = [
        float(
            (model.log_prob(x, sampler=SOLVERS.build("rk4", steps=n)).value - oracle.log_prob(x)).abs().max()
        )
        for n in (32, 128)
    ]
    assert errors[0] < 5e-3
    assert errors[1] < 1e-4


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_the_likelihood_by_a_prediction_of_another_kind(prediction: Any) -> None:
    """On a path on which it gives a velocity at both ends; elsewhere there is none."""
    path = "variance_preserving"
    exact = GaussianFlow.example(path).field()
    model = flow(oracle=GaussianFlow.example(path), path=path, prediction=prediction)
    model.predict = lambda t, x, y: getattr(exact, prediction)(t, x)  # type: ignore[method-assign]
    velocity = flow(oracle=GaussianFlow.example(path), path=path)
    for solver in ("rk4", "dpmpp"):
        found, expected = (
            each.log_prob(points(), sampler=solver, tolerance=None) for each in (model, velocity)
        )
        assert torch.allclose(found.value, expected.value, atol=1e-6)
    with pytest.raises(GenkitError, match="no velocity at t=1, .*train with prediction='velocity'"):
        flow(path="cosine", prediction="data").log_prob(points())


def test_the_likelihood_of_an_energy() -> None:
    """Where the potential is zero it is a Gaussian of the size of the data."""
    options = model_options(width=8, depth=1)
    energy = build("energy", SOLID, model=options, scale=None, parameterization="pooled")
    solver = SOLVERS.build("heun", steps=16)
    normal = torch.distributions.Normal(0.0, float(energy.scale))
    x = points(dims=3).float()
    assert torch.allclose(energy.log_prob(x, sampler=solver).value, normal.log_prob(x).sum(1), atol=1e-2)
    found = energy.sample(4, sampler=solver, return_log_prob=True)
    assert torch.allclose(found.log_prob.value, normal.log_prob(found.x).sum(1), atol=1e-2)


@pytest.mark.parametrize("oracle", ORACLES, ids=["gaussian", "mixture"])
def test_bits_per_dim_of_a_closed_form(oracle: GaussianFlow | MixtureFlow) -> None:
    model = flow(oracle=oracle)
    rows = model.sample(500, sampler=SOLVERS.build("rk4", steps=64), generator=keyed_generator(0)).x
    found = bits(VECTORS, model.log_prob(rows))
    exact = bits(VECTORS, LogProb(oracle.log_prob(rows), "exact"))
    assert float(found["value"]) == pytest.approx(float(exact["value"]), abs=1e-3)
    assert float(found["stderr"]) == pytest.approx(float(exact["stderr"]), abs=1e-3)


def test_bits_per_dim_of_a_quantized_gaussian() -> None:
    """With cells that are narrow beside the Gaussian, the bound over dequantized levels is their log-probability."""
    spec = DataSpec("quantized", (1,), levels=256)
    mean, scale = 0.1, 0.25
    oracle = GaussianFlow(
        torch.tensor([mean]).double(), torch.tensor([[scale**2]]).double(), PATHS.build("linear")
    )
    edges = 2 * torch.arange(257).double() / 256 - 1
    p = torch.distributions.Normal(mean, scale).cdf(edges).diff()
    rows = torch.multinomial(p, 2000, replacement=True, generator=keyed_generator(0))[:, None]
    found = bits(spec, flow(spec, oracle).log_prob(rows, generator=keyed_generator(1)))
    exact = bits(spec, LogProb(p.log()[rows[:, 0]], "exact"))
    assert float(found["value"]) == pytest.approx(float(exact["value"]), abs=1e-3)


def test_the_standard_error_of_bits_per_dim_is_that_of_rows_and_probes() -> None:
    """Over groups of rows, with a probe each: the means spread as they say."""
    oracle = GaussianFlow.example()
    model = flow(oracle=oracle)
    rows = model.sample(2000, generator=keyed_generator(0)).x
    found = model.log_prob(
        rows,
        sampler=SOLVERS.build("rk4", steps=8),
        divergence="hutchinson",
        probes=1,
        generator=keyed_generator(1),
    )
    groups = [bits(VECTORS, LogProb(part, "estimate")) for part in found.value.split(20)]
    means, errors = (torch.stack([group[key] for group in groups]) for key in ("value", "stderr"))
    assert float(means.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.2)
    of_rows = bits(VECTORS, LogProb(oracle.log_prob(rows), "exact"))["stderr"]
    assert float(bits(VECTORS, found)["stderr"]) > 1.05 * float(of_rows)


def bits(spec: DataSpec, found: LogProb) -> dict[str, Any]:
    metric: Any = METRICS.build("bits_per_dim", spec)
    metric.update(found)
    return metric.compute()


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_the_likelihood_by_every_solver(solver: str) -> None:
    oracle, x = GaussianFlow.example(), points()
    adaptive = issubclass(SOLVERS.get(solver), Adaptive)
    sampler = SOLVERS.build(solver, steps=1 if adaptive else 800 if SOLVERS.get(solver).order == 1 else 80)
    assert torch.allclose(
        flow(oracle=oracle).log_prob(x, sampler=sampler, tolerance=None).value, oracle.log_prob(x), atol=5e-2
    )


@pytest.mark.parametrize("solver", sorted({*SOLVERS.names()} - {*DETERMINISTIC}))
def test_methods_with_noise_have_no_likelihood(solver: str) -> None:
    model = flow(oracle=GaussianFlow.example())
    for ask in (
        lambda: model.log_prob(points(), sampler=solver),
        lambda: model.sample(2, sampler=solver, return_log_prob=True),
    ):
        with pytest.raises(GenkitError, match="without noise of the method's own.*can be used: .*dpmpp.*rk4"):
            ask()


def test_a_path_with_noise_leaves_methods_of_velocity_alone() -> None:
    with pytest.raises(GenkitError, match="dpmpp needs data, noise, which this field cannot give"):
        flow(path="bridge").log_prob(points().float(), sampler="dpmpp")


def test_noised_data_have_no_likelihood() -> None:
    model = flow(noise="gaussian", sigma=0.1)
    for ask in (lambda: model.log_prob(points()), lambda: model.sample(2, return_log_prob=True)):
        with pytest.raises(GenkitError, match="trained on noised"):
            ask()


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize("oracle", ORACLES, ids=["gaussian", "mixture"])
def test_samples_come_with_their_log_probability(oracle: GaussianFlow | MixtureFlow, solver: str) -> None:
    """The one that they have when they are taken back, at the order of the method."""
    adaptive = issubclass(SOLVERS.get(solver), Adaptive)

    def error(**options: Any) -> float:
        model, sampler = flow(oracle=oracle), SOLVERS.build(solver, **options)
        sample = model.sample(
            5, sampler=sampler, return_log_prob=True, tolerance=None, generator=keyed_generator(0)
        )
        if not adaptive:
            assert torch.equal(sample.x, model.sample(5, sampler=sampler, generator=keyed_generator(0)).x)
        return float((sample.log_prob.value - oracle.log_prob(sample.x)).abs().max())

    if adaptive:
        assert error(rtol=1e-5, atol=1e-6) < 5e-3
    else:
        few, many = error(steps=20), error(steps=80)
        assert many < max(few / 4 ** (0.75 * SOLVERS.get(solver).order), 1e-7)


@pytest.mark.parametrize("oracle", ORACLES, ids=["gaussian", "mixture"])
def test_the_log_probability_of_a_sample_is_that_of_going_back(oracle: GaussianFlow | MixtureFlow) -> None:
    model, solver = flow(oracle=oracle), SOLVERS.build("rk4", steps=64)
    sample = model.sample(5, sampler=solver, return_log_prob=True, generator=keyed_generator(0))
    assert torch.allclose(sample.log_prob.value, model.log_prob(sample.x, sampler=solver).value, atol=1e-5)


def test_samples_of_levels_come_with_the_log_density_of_what_is_decoded() -> None:
    """A field of zeros leaves noise as it is."""
    model = flow(IMAGES, scale=None)
    x0 = model.start(3, generator=keyed_generator(0))
    found = model.sample(3, torch.arange(3), start=x0, return_log_prob=True)
    assert torch.equal(found.x, model.view.decode(x0))
    assert torch.allclose(found.log_prob.value, StandardNormal().log_prob(x0), atol=1e-4)


def test_the_log_probability_of_levels_counts_their_volume() -> None:
    """A field of zeros leaves noise as it is: log P(l) >= log N(x; 0, I) + dims log(2 / levels)."""
    model = flow(IMAGES, scale=None)
    rows = batch(IMAGES)
    found = model.log_prob(
        rows.x, rows.y, sampler=SOLVERS.build("euler", steps=1), generator=keyed_generator(0)
    )
    x = model.view.encode(rows.x, generator=keyed_generator(0))
    assert torch.allclose(found.value, StandardNormal().log_prob(x) + 16 * math.log(2 / 5), atol=1e-4)


@pytest.mark.parametrize(("dims", "columns"), [(16, 1), (17, 2)])
def test_the_divergence_is_exact_in_low_dimension_only(dims: int, columns: int) -> None:
    probes = LikelihoodOptions().draw(torch.zeros(3, dims))
    field = Augmented(Field(lambda t, x: x), (dims,), probes)
    assert field.pack(torch.zeros(3, dims)).shape == (3, dims + columns)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_divergence_of_a_field(divergence: Any) -> None:
    """f = sin(A x) has div f = sum_i A_ii cos(A x)_i; a diagonal A makes each probe of signs exact."""
    matrix = torch.diag(torch.linspace(-2, 1, 20).double())
    if divergence == "exact":
        matrix = matrix + torch.ones(20, 20).double() / 5
    x = points(dims=20).reshape(-1, 4, 5)
    probes = LikelihoodOptions(divergence, probes=10).draw(x, generator=keyed_generator(0))
    field = Augmented(Field(lambda t, x: (x.flatten(1) @ matrix.T).sin().view_as(x)), (4, 5), probes)
    v, change = field.unpack(field(torch.tensor(0.0), field.pack(x)))
    assert torch.allclose(v, (x.flatten(1) @ matrix.T).sin().view_as(x))
    expected = -(matrix.diagonal() * (x.flatten(1) @ matrix.T).cos()).sum(1)
    assert torch.allclose(change, expected[:, None].expand_as(change))


@pytest.mark.parametrize(("probe", "variance"), [("rademacher", 2 * 0.5), ("gaussian", 2 * (0.5 + 5.0))])
def test_the_variance_of_a_probe(probe: Any, variance: float) -> None:
    """Of e.Ae: twice the squares of the symmetric part of A, for signs without its diagonal."""
    matrix = torch.tensor([[1.0, 0.8], [0.2, -2.0]]).double()
    x = torch.zeros(20_000, 2).double()
    probes = LikelihoodOptions("hutchinson", 2, probe).draw(x, generator=keyed_generator(0))
    field = Augmented(Field(lambda t, x: x @ matrix.T), (2,), probes)
    found = -field(torch.tensor(0.0), field.pack(x))[:, 2:].detach()
    assert float(found.mean()) == pytest.approx(-1.0, abs=0.1)
    assert float(found.var()) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased_within_its_standard_error(probe: Any) -> None:
    """Standard errors of few probes hold on average; the mean of many estimates is the exact value."""
    oracle, x = GaussianFlow.example(), points(400)
    model, rk4 = flow(oracle=oracle), SOLVERS.build("rk4", steps=12)
    exact = model.log_prob(x, sampler=rk4, divergence="exact").value
    options = {"sampler": rk4, "divergence": "hutchinson", "probe": probe}
    found = model.log_prob(x, probes=16, generator=keyed_generator(0), **options)
    assert found.stderr.shape == (400,)
    assert found.stderr.min() > 0
    error = found.value - exact
    assert abs(float(error.mean())) < 4 * float(error.std()) / 400**0.5
    assert float(found.stderr.square().mean() / error.square().mean()) == pytest.approx(1, rel=0.2)
    more = model.log_prob(x, probes=64, generator=keyed_generator(0), **options)
    assert float(more.stderr.square().mean() / found.stderr.square().mean()) == pytest.approx(0.25, rel=0.2)


def test_one_probe_has_no_standard_error() -> None:
    model = flow(oracle=GaussianFlow.example())
    assert model.log_prob(points(), divergence="hutchinson", probes=1).stderr is None
    with pytest.raises(GenkitError, match="probes must be at least 1, not 0"):
        model.log_prob(points(), probes=0)


def test_the_probes_follow_the_generator() -> None:
    model = flow(oracle=GaussianFlow.example())
    a, b, c = (
        model.log_prob(points(), divergence="hutchinson", generator=keyed_generator(k)).value
        for k in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "exakt"}, "did you mean 'exact'"),
        ({"probe": "normal"}, "rademacher"),
        ({"gradient": "adjiont"}, "did you mean 'adjoint'"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        flow().log_prob(points(), **options)


@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"),
    [
        ("euler", 8, 0.02),
        ("heun", 8, 5e-3),
        ("adams_bashforth3", 16, 1e-3),
        ("rk4", 4, 1e-3),
    ],
)
def test_too_few_steps_are_told(solver: str, steps: int, tolerance: float) -> None:
    """With those that the warning names the error is near the tolerance."""
    oracle, x = MixtureFlow.example(), points(64)
    model = flow(oracle=oracle)

    def error(steps: int, tolerance: float | None) -> float:
        found = model.log_prob(x, sampler=SOLVERS.build(solver, steps=steps), tolerance=tolerance)
        return float((found.value - oracle.log_prob(x)).abs().mean()) / 2 / math.log(2)

    with pytest.warns(UserWarning, match=rf"with {steps} steps of {solver}: for {tolerance:g} take") as found:
        assert error(steps, tolerance) > tolerance
    enough = int(str(found[0].message).split(" take ")[1].split(",")[0])
    assert tolerance / 40 < error(enough, None) < 2 * tolerance
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error(2 * enough, tolerance)
        error(steps, None)


def test_the_check_of_steps_is_of_rows_with_their_classes() -> None:
    model = flow(LABELLED)
    x, y = points(40, 3).float(), torch.arange(40) % 3
    with pytest.warns(UserWarning, match="with 1 steps of euler"):
        found = model.log_prob(x, y, sampler=SOLVERS.build("euler", steps=1))
    plain = model.log_prob(x, y, sampler=SOLVERS.build("euler", steps=1), tolerance=None)
    assert torch.equal(found.value, plain.value)


def test_a_grid_of_one_number_of_steps_is_not_checked(tmp_path: Path) -> None:
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({"times": [0, 0.2, 0.4, 0.6, 0.8, 1]}))
    grid = {"name": "fitted", "file": str(file)}
    found, plain = (
        flow().log_prob(points(4), sampler={"name": "rk4", "steps": 5, "grid": one})
        for one in (grid, "uniform")
    )
    assert torch.allclose(found.value, plain.value)


def test_the_log_probability_has_a_gradient_in_the_data() -> None:
    """The exact score of the oracle, through the solver."""
    oracle, x = GaussianFlow.example(), points().requires_grad_()
    (found,) = torch.autograd.grad(flow(oracle=oracle).log_prob(x).value.sum(), x)
    (exact,) = torch.autograd.grad(oracle.log_prob(x).sum(), x)
    assert torch.allclose(found, exact, atol=1e-3)


def tiny() -> Any:
    """A network, in float64, small enough for finite differences."""
    torch.set_default_dtype(torch.float64)
    return flow(model=model_options(width=8, depth=1)).double()


def smooth() -> Any:
    """A velocity of two layers in place of the network."""
    model = tiny()
    layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model.backbone = layers.double()
    model.predict = lambda t, x, y=None: model.backbone(torch.cat((x, t.expand(len(x), 1)), dim=1))
    return model


def gradients(model: Any, x: Tensor, **options: Any) -> list[Tensor]:
    value = model.log_prob(x, tolerance=None, generator=keyed_generator(0), **options).value
    weights = [p for p in model.backbone.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value.sum(), (x, *weights), materialize_grads=True))


@pytest.mark.parametrize("gradient", ["direct", "recompute"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_log_probability_has_gradients(divergence: str, gradient: str) -> None:
    """In the data and the weights, against finite differences, through the attention's double backward."""
    model = tiny()
    weights = [p for p in model.backbone.parameters() if p.ndim == 2]
    options = {"divergence": divergence, "gradient": gradient, "tolerance": None}
    heun = SOLVERS.build("heun", steps=2)

    def value(x: Tensor, *weights: Tensor) -> Tensor:  # gradcheck moves them where they are, in the model
        return model.log_prob(x, sampler=heun, generator=keyed_generator(0), **options).value

    assert len(weights) == 5
    assert torch.autograd.gradcheck(value, (points(2).requires_grad_(), *weights), fast_mode=True)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    ("gradient", "sampler", "of"),
    [
        ("recompute", {"name": "heun", "steps": 2}, tiny),
        ("recompute", {"name": "dpmpp", "steps": 4}, tiny),
        ("adjoint", {"name": "rk4", "steps": 48}, smooth),
        ("adjoint", {"name": "bosh3", "rtol": 1e-7, "atol": 1e-7}, smooth),
    ],
    ids=["recompute-heun", "recompute-dpmpp", "adjoint-rk4", "adjoint-bosh3"],
)
def test_gradients_are_those_through_the_solver(
    gradient: str, sampler: Any, of: Any, divergence: str
) -> None:
    model, x = of(), points(2).requires_grad_()
    direct = gradients(model, x, sampler=sampler, divergence=divergence)
    other = gradients(model, x, gradient=gradient, sampler=sampler, divergence=divergence)
    for a, b in zip(direct, other, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert max(float(a.abs().max()) for a in direct[1:]) > 0.1


def test_the_adjoint_converges_by_every_kind_of_solver() -> None:
    """To the gradient of the exact solution, which is the score."""
    oracle, x = GaussianFlow.example(), points().requires_grad_()
    (exact,) = torch.autograd.grad(oracle.log_prob(x).sum(), x)
    for solver in ("midpoint", "adams_bashforth3", "exponential", "bosh3"):
        sampler = SOLVERS.build(solver, **({} if solver == "bosh3" else {"steps": 60}))
        value = flow(oracle=oracle).log_prob(x, sampler=sampler, gradient="adjoint").value
        (found,) = torch.autograd.grad(value.sum(), x)
        assert torch.allclose(found, exact, atol=5e-2), solver


class Kept:
    """A tensor that a graph keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept(model: Any, x: Tensor, gradient: str, steps: int) -> int:
    """Bytes that the graph keeps, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        entry = Kept(tensor.detach())  # an output that held its own graph would hold itself
        alive.add(entry)
        return entry

    sampler = SOLVERS.build("euler", steps=steps)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda entry: entry.tensor):
        value = model.log_prob(x, sampler=sampler, gradient=gradient, tolerance=None).value
    storages = {entry.tensor.untyped_storage() for entry in alive}
    assert value.requires_grad
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}.values())


def test_what_is_kept_for_gradients() -> None:
    model, x = tiny(), points(4).requires_grad_()
    few, many = ({name: kept(model, x, name, steps) for name in GRADIENTS} for steps in (4, 8))
    assert many["direct"] > 1.8 * few["direct"]
    assert few["recompute"] < few["direct"] / 3
    assert many["adjoint"] == few["adjoint"] < few["recompute"]


def test_what_runs_again_takes_no_dropout() -> None:
    model = flow(model=model_options(dropout=0.1)).train()
    with pytest.raises(GenkitError, match=r"call eval\(\)"):
        model.log_prob(points(), gradient="adjoint")


def test_without_gradients_none_are_kept() -> None:
    model = flow().requires_grad_(False)
    assert not model.log_prob(
        points().float(), sampler=SOLVERS.build("euler", steps=1), tolerance=None
    ).value.requires_grad
    with torch.no_grad():
        found = flow().log_prob(points().float(), sampler=SOLVERS.build("euler", steps=1), tolerance=None)
    assert not found.value.requires_grad
