"""Flow matching against closed forms: the exact field of a Gaussian or a mixture replaces the network."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genkit.couplings import COUPLINGS
from genkit.data.base import TensorSplit
from genkit.data.densities import DensitySource
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.paths import PATHS
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.types import Batch, DataSpec, Field, Pair
from tests.objectives.models import (
    IMAGES,
    LABELLED,
    SOLID,
    VECTORS,
    build,
    flow,
    model_options,
    points,
    split,
)
from tests.oracles import GaussianFlow, MixtureFlow


def test_samples_of_a_gaussian_have_its_moments() -> None:
    oracle = GaussianFlow.example()
    x = flow(oracle=oracle).sample(40_000, generator=keyed_generator(0)).x
    assert torch.allclose(x.mean(0), oracle.mean, atol=0.03)
    assert torch.allclose(x.T.cov(), oracle.cov, atol=0.04)


def test_samples_of_a_mixture_have_its_distribution() -> None:
    oracle = MixtureFlow.example()
    x = flow(oracle=oracle).sample(4000, generator=keyed_generator(0)).x
    part = torch.multinomial(oracle.weights, 4000, replacement=True, generator=keyed_generator(1))
    noise = torch.randn(4000, 2, generator=keyed_generator(2))
    exact = oracle.means[part] + oracle.scales[part, None] * noise
    for direction in torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]):
        assert stats.ks_2samp((x @ direction).numpy(), (exact @ direction).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("path", PATHS.names())
def test_the_loss_is_that_of_the_pairs_and_times(path: str) -> None:
    """A field of zeros costs the mean square of u_t; the weights of pairs count."""
    model = flow(LABELLED, path=path, scale=None)
    x0, x1 = torch.randn(2, 64, 3, generator=keyed_generator(0))
    weight = torch.rand(64, generator=keyed_generator(1))
    rows = Batch(x1, pair=Pair(x0, x1, torch.zeros(64).long(), weight=weight))
    loss = float(model.loss(rows, generator=keyed_generator(2))["loss"].detach())
    generator = keyed_generator(2)
    t = model.times(x1, generator=generator)
    u = model.path(x0, x1, t, generator=generator).u_t
    assert loss == pytest.approx(float((u.square().mean(1) * weight).sum() / weight.sum()), rel=1e-5)


def test_the_exact_field_has_the_least_loss() -> None:
    """Of the fields around it, on a Gaussian: the minimum of the loss is E[u_t | x_t]."""
    oracle = GaussianFlow.example()
    model = flow(oracle=oracle)
    n = 20_000
    x1 = oracle.mean + torch.randn(n, 2, generator=keyed_generator(0)) @ torch.linalg.cholesky(oracle.cov).T

    def loss(scale: float, shift: float) -> float:
        model.predict = lambda t, x, y: (
            scale
            * torch.func.vmap(  # type: ignore[method-assign]
                lambda s, z: oracle.velocity(s, z[None])[0]
            )(t, x)
            + shift
        )
        rows = model.prepare(Batch(x1), generator=keyed_generator(1))
        return float(model.loss(rows, generator=keyed_generator(2))["loss"])

    least = loss(1.0, 0.0)
    for scale, shift in ((0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)):
        assert loss(scale, shift) > least


def test_labels_are_dropped_in_the_loss() -> None:
    model, seen = flow(LABELLED, label_dropout=0.25), []

    def velocity(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return torch.zeros_like(x)

    model.predict = velocity  # type: ignore[method-assign]
    rows = model.prepare(Batch(torch.randn(8000, 3), torch.arange(8000) % 3), generator=keyed_generator(0))
    model.loss(rows, generator=keyed_generator(0))
    assert float((seen[0] == -1).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_another_source() -> None:
    """Sampling starts there, so do pairs; the likelihood is against its density."""
    model = flow(source="8gaussians", scale=None)
    start = DensitySource("8gaussians")  # type: ignore[arg-type]
    sample = model.sample(500, generator=keyed_generator(0))
    assert torch.allclose(
        sample.x, start.sample(torch.empty(500, 2), generator=keyed_generator(0)), atol=1e-5
    )
    rows = model.prepare(Batch(torch.randn(500, 2)), generator=keyed_generator(1))
    assert float(rows.pair.x0.norm(dim=1).mean()) == pytest.approx(5, abs=0.2)
    found = model.log_prob(sample.x[:8], sampler=SOLVERS.build("euler", steps=1)).value
    assert torch.allclose(found, start.log_prob(sample.x[:8]), atol=1e-4)
    with pytest.raises(GenkitError, match="digits"):
        flow(source="digits")
    with pytest.raises(GenkitError, match=r"starts points \(B, 2\)"):
        flow(SOLID, source="8gaussians").sample(2)


def test_the_source_is_that_of_the_coupling() -> None:
    for coupling in ("independent", "ot"):
        model = flow(source="8gaussians", coupling=coupling)
        assert model.coupling.source is model.source


@pytest.mark.parametrize("name", COUPLINGS.names())
def test_a_field_has_a_score_where_the_coupling_is_independent(name: str) -> None:
    """The message names what stands in the way."""
    torch.manual_seed(0)
    from genkit.objectives import OBJECTIVES

    model = OBJECTIVES.build({"name": "flow_matching", "coupling": name}, VECTORS, model_options())
    field = model.field()
    if COUPLINGS.get(name).independent:
        assert "score" in field.gives
    else:
        assert field.gives == {"velocity", "data", "noise"}
        with pytest.raises(GenkitError, match=f"no score: .*'{name}', not 'independent'"):
            field.score(torch.tensor(0.5), points().float())
    with pytest.raises(GenkitError, match="its source is not a Gaussian"):
        flow(source="8gaussians").field().score(torch.tensor(0.5), points().float())


def test_a_bridge_gives_velocity_only() -> None:
    """Also with independent pairs: x_t holds noise beside x0 and x1."""
    field = flow(path="bridge").field()
    assert field.gives == {"velocity"}
    with pytest.raises(GenkitError, match="no score: its path 'bridge' has noise of its own"):
        field.score(torch.tensor(0.5), points().float())


def test_options_reach_the_parts() -> None:
    model = flow(
        path={"name": "variance_preserving", "beta_max": 10.0}, times={"name": "logit_normal", "mean": -1.0}
    )
    assert model.path.beta_max == 10
    assert model.times.mean == -1


def test_sampling_from_given_noise() -> None:
    model, start = flow(), points().float()
    sample = model.sample(6, start=start, sampler=SOLVERS.build("euler", steps=1))
    expected = start + model.predict(torch.tensor(0.0), start).detach()
    assert torch.allclose(sample.x, expected, atol=1e-5)
    assert sample.nfe == 1


def test_bfloat16_keeps_velocities_in_float32() -> None:
    model = flow(IMAGES)
    x = torch.randn(3, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.predict(torch.tensor(0.5), x)
    full = model.predict(torch.tensor(0.5), x)
    assert half.dtype == torch.float32
    assert torch.allclose(half, full, atol=0.3)
    assert not torch.equal(half, full)


@pytest.mark.slow
def test_a_short_training_reaches_the_moments_of_a_gaussian() -> None:
    """No oracle: the network itself, 250 steps."""
    oracle = GaussianFlow.example(dtype=torch.float32)
    model = build("flow_matching", VECTORS, scale=None, model=model_options(depth=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    for step in range(250):
        generator = keyed_generator(0, step)
        x1 = oracle.mean + torch.randn(128, 2, generator=generator) @ torch.linalg.cholesky(oracle.cov).T
        loss = model.loss(model.prepare(Batch(x1), generator=generator), generator=generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    x = model.sample(4000, sampler=SOLVERS.build("heun", steps=8), generator=keyed_generator(1)).x
    assert torch.allclose(x.mean(0), oracle.mean, atol=0.12)
    assert torch.allclose(x.T.cov(), oracle.cov, atol=0.15)
    held = (
        oracle.mean + torch.randn(200, 2, generator=keyed_generator(2)) @ torch.linalg.cholesky(oracle.cov).T
    )
    found = model.log_prob(held, sampler=SOLVERS.build("heun", steps=8)).value
    assert float((found - oracle.log_prob(held)).mean().abs()) < 0.15


def test_the_split_of_the_tests_is_what_it_says() -> None:
    """Guards the helper: levels in range, classes in turn."""
    part = split(IMAGES)
    assert part.x.max() == 4
    assert part.y.bincount().tolist() == [22, 21, 21]


@pytest.mark.parametrize(("coupling", "conditional"), [("ot", True), ("ot", False), ("conditional_ot", True)])
def test_a_conditional_model_of_pairs_across_classes_says_so_once(coupling: str, conditional: bool) -> None:
    rows = TensorSplit(torch.randn(8, 2), torch.arange(8) % 2)
    model = build(
        "flow_matching", DataSpec("toy", (2,), classes=2), coupling=coupling, conditional=conditional
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.setup(rows)
        model.prepare(Batch(*rows.take(torch.arange(8))))
    said = [str(w.message) for w in caught]
    assert len(said) == (coupling == "ot" and conditional)
    assert all("the coupling 'ot' pairs without regard to conditions" in text for text in said)
    assert all("take 'conditional_ot'" in text for text in said)


class Reads(TorchDispatchMode):
    """Counts values that the host takes out of tensors of the model's dtype; times are float64, on the CPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.float32
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["heun", "unipc", "stochastic_heun", "tada"])
def test_a_guided_solve_takes_no_value_to_the_host(name: str) -> None:
    model = flow(IMAGES)
    x, y = torch.randn(4, *IMAGES.shape), torch.zeros(4, dtype=torch.long)
    field = model.field(y, GUIDANCES.build("classifier_free", scale=2.0))
    with torch.no_grad(), Reads() as reads:
        SOLVERS.build(name, steps=3).solve(field, x)
        assert reads.count == 0
        float(x.sum())
        assert reads.count == 1


@pytest.mark.parametrize("path", ["linear", "cosine", "variance_preserving"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
def test_every_prediction_samples_the_same(prediction: str, path: str) -> None:
    """The exact prediction of each kind, on a Gaussian: one ODE, so one endpoint."""
    if prediction == "noise" and path != "variance_preserving":
        with pytest.raises(GenkitError, match=rf"no velocity at t=0.*'{path}'.*path=variance_preserving"):
            flow(path=path, prediction=prediction)
        return
    oracle = GaussianFlow.example(path)
    model = flow(oracle=oracle, path=path, prediction=prediction)
    exact = Field(oracle.velocity, model.path.coefficients, None)
    kinds = {"velocity": exact, "data": exact.data, "noise": exact.noise}
    model.predict = lambda t, x, y: kinds[prediction](t, x)  # type: ignore[method-assign]
    x0 = points()
    solver = SOLVERS.build("dpmpp", steps=64)
    expected = solver.solve(exact, x0).x
    assert torch.allclose(model.sample(6, sampler=solver, start=x0).x, expected, atol=1e-9)
    assert model.sample(6).nfe > 0  # with the objective's own solver


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_the_target_of_each_prediction(prediction: str) -> None:
    model = flow(prediction=prediction, path="variance_preserving", scale=None)
    x0, x1 = torch.randn(2, 64, 2, generator=keyed_generator(0))
    loss = model.loss(Batch(x1, pair=Pair(x0, x1)), generator=keyed_generator(1))["loss"]
    expected = (x1 if prediction == "data" else x0).square().mean()  # the network starts at 0
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_prediction_of_data_gives_no_velocity_at_the_data() -> None:
    model = flow(prediction="data")
    assert model.likelihood is None
    with pytest.raises(GenkitError, match=r"no velocity at t=1.*prediction='velocity'"):
        model.log_prob(torch.randn(2, 2))
    with pytest.raises(GenkitError, match=r"no velocity at t=1.*prediction='velocity'"):
        model.sample(2, return_log_prob=True)
    with pytest.raises(GenkitError, match=r"end before it, or take .*dpmpp"):
        model.check_sampler(SOLVERS.build("heun"))
    with pytest.raises(GenkitError, match="path 'bridge', which has noise of its own"):
        flow(prediction="data", path="bridge")
    for name in ("euler", "dpmpp", "unipc", "ddim"):
        model.check_sampler(SOLVERS.build(name))
