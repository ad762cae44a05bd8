"""The energy's laws: its gradient is the field, without curl; closed forms; teachers; constants."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.data.base import TensorSplit
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.randomness import keyed_generator
from genkit.types import Field
from tests.objectives.models import COLOUR, IMAGES, LABELLED, VECTORS, batch, build, model_of, split
from tests.oracles import GaussianFlow

PARAMETERIZATIONS = ("inner_product", "squared_residual", "pooled")
PATHS = ("linear", "cosine", "variance_preserving")


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points(spec, n=5):
    x = torch.randn(n, *spec.shape, generator=keyed_generator(1))
    y = torch.arange(n) % spec.classes - 1 if spec.classes else None
    return x, y


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("spec", [IMAGES, VECTORS], ids=lambda spec: spec.name)
def test_velocity_is_the_gradient_of_the_energy(spec, parameterization, path):
    energy = build("energy", spec, parameterization=parameterization, path=path)
    x, y = points(spec)
    for t in (0.1, 0.5, 0.9):
        t = torch.tensor(t)
        x.requires_grad_()
        value, score = energy.log_density(t, x, y)
        (by_autograd,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(score, by_autograd)
        # and the score that solvers derive from the velocity is this one
        field = Field(lambda t, x: energy.predict(t, x, y), energy.path.coefficients, None)
        torch.testing.assert_close(field.score(t, x), score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_gradient_by_finite_differences(parameterization):
    energy = build("energy", VECTORS, parameterization=parameterization)
    x, _ = points(VECTORS)
    t = torch.tensor(0.7)
    with torch.no_grad():
        _, score = energy.log_density(t, x)
        for i in range(2):
            step = 1e-5 * torch.eye(2)[i]
            slope = (energy.log_density(t, x + step)[0] - energy.log_density(t, x - step)[0]) / 2e-5
            torch.testing.assert_close(score[:, i], slope, rtol=1e-6, atol=1e-6)


def jacobian(velocity, t, x):
    rows = [
        torch.autograd.functional.jacobian(lambda row: velocity(t, row[None])[0].flatten(), row) for row in x
    ]
    return torch.stack([j.reshape(j.shape[0], -1) for j in rows])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_field_has_no_curl_while_that_of_a_network_has(parameterization):
    x, _ = points(VECTORS)
    t = torch.tensor(0.6)
    for name, options, curls in (
        ("energy", {"parameterization": parameterization}, False),
        ("flow_matching", {}, True),
    ):
        model = build(name, VECTORS, **options)
        j = jacobian(model.predict, t, x)
        asymmetry = (j - j.mT).flatten(1).norm(dim=1) / j.flatten(1).norm(dim=1)
        assert (asymmetry > 1e-3).all() if curls else (asymmetry < 1e-10).all(), name


@pytest.mark.parametrize("path", PATHS)
def test_untrained_pooled_energy_is_the_gaussian_of_the_data(path):
    """phi = 0 in closed form: the field of N(0, d^2 I)."""
    energy = build("energy", VECTORS, parameterization="pooled", path=path, scale=None)
    gaussian = GaussianFlow(torch.zeros(2), energy.scale.square() * torch.eye(2), energy.path)
    x, _ = points(VECTORS)
    for t in (0.0, 0.3, 0.9):
        t = torch.tensor(t)
        torch.testing.assert_close(energy.predict(t, x), gaussian.velocity(t, x))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("parameterization", ["inner_product", "squared_residual"])
def test_exact_networks_where_the_parameterization_is_exact(parameterization, path, monkeypatch):
    """<x, n> / (2 sigma) is the energy of any centred Gaussian; |n|^2 / 2 that of a point (and of noise)."""
    variances = torch.tensor([2.0, 0.3] if parameterization == "inner_product" else [0.0, 0.0])
    energy = build("energy", VECTORS, parameterization=parameterization, path=path)
    gaussian = GaussianFlow(torch.zeros(2), torch.diag(variances), energy.path)
    monkeypatch.setattr(energy, "network", gaussian.velocity)
    x, _ = points(VECTORS)
    for t in (0.05, 0.5, 0.95):
        t = torch.tensor(t)
        mean, cov = gaussian.at(t)
        value, score = energy.log_density(t, x)
        torch.testing.assert_close(score, -(x - mean) @ torch.linalg.inv(cov))
        torch.testing.assert_close(value, -((x - mean) @ torch.linalg.inv(cov) * x).sum(1) / 2)


def test_finite_at_both_ends():
    for parameterization in PARAMETERIZATIONS:
        energy = build("energy", COLOUR, parameterization=parameterization)
        x, y = points(COLOUR)
        for t in (0.0, 1.0):
            assert energy.predict(torch.tensor(t), x, y).isfinite().all()


def trained_on(energy, spec):
    """The loss of a batch and its gradients."""
    energy.train().requires_grad_(True)
    prepared = energy.prepare(batch(spec), generator=keyed_generator(0))
    losses = energy.loss(prepared, generator=keyed_generator(0))
    losses["loss"].backward()
    return losses


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_gradients_reach_every_weight(parameterization):
    energy = build("energy", LABELLED, parameterization=parameterization)
    trained_on(energy, LABELLED)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in energy.parameters())


def test_the_exact_energy_has_the_least_loss():
    """Denoising score matching on Gaussian data: no multiple of the exact field does better."""
    energy = build("energy", VECTORS, parameterization="pooled", scale=None)
    rows = batch(VECTORS, 1024)
    rows.x = energy.scale * torch.randn(1024, 2, generator=keyed_generator(2))
    prepared = energy.prepare(rows, generator=keyed_generator(0))
    exact = energy.loss(prepared, generator=keyed_generator(0))["loss"]
    for factor in (0.8, 1.2):
        energy.scale.mul_(factor)
        assert energy.loss(prepared, generator=keyed_generator(0))["loss"] > exact
        energy.scale.div_(factor)


# --- teachers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_distillation_starts_from_the_teachers_network(parameterization):
    teacher = build("flow_matching", LABELLED)
    energy = distilling(teacher, parameterization=parameterization)
    theirs, ours = teacher.state_dict(), energy.state_dict()
    copied = {key for key in theirs if theirs[key].shape == ours.get(key, torch.empty(0)).shape}
    copied -= {key for key in copied if parameterization == "pooled" and key.startswith("head")}
    assert all(theirs[key].equal(ours[key]) for key in copied)
    assert any(key.startswith("backbone") for key in copied)
    assert ("head.proj.weight" in copied) == (parameterization != "pooled")


def distilling(teacher, spec=None, **options):
    """An untrained energy after the setup with its teacher."""
    spec = spec or teacher.spec
    model = options.pop("model", None) or model_of("energy")
    torch.manual_seed(1)
    energy = OBJECTIVES.build({"name": "energy", "teacher": "run", **options}, spec, model)
    energy.setup(split(spec), teacher)
    return energy


def test_distillation_fits_the_teachers_field():
    """The target is its velocity at noised data; beside it stands the loss of denoising score matching."""
    teacher = build("flow_matching", LABELLED).requires_grad_(False)
    energy = distilling(teacher)
    losses = trained_on(energy, LABELLED)
    direct = distilling(teacher)
    direct.distills = False
    assert losses["regression"].item() == pytest.approx(trained_on(direct, LABELLED)["loss"].item())
    assert losses["loss"] != losses["regression"]
    assert all(p.grad is None for p in teacher.parameters())


def test_a_conservative_teacher_is_met_exactly(monkeypatch):
    """A linear, symmetric field is its own conservative part: the energy starts at loss 0."""
    teacher = build("flow_matching", VECTORS)
    gaussian = GaussianFlow(torch.zeros(2), torch.diag(torch.tensor([2.0, 0.3])), teacher.path)
    energy = distilling(teacher)
    for model in (teacher, energy):
        monkeypatch.setattr(model, "network", lambda t, x, y=None: rowwise(gaussian, t, x))
    prepared = energy.prepare(batch(VECTORS), generator=keyed_generator(0))
    assert energy.loss(prepared, generator=keyed_generator(0))["loss"] < 1e-20


def rowwise(flow, t, x):
    return torch.cat([flow.velocity(time, row[None]) for time, row in zip(t.expand(len(x)), x, strict=True)])


@pytest.mark.parametrize(
    ("of_teacher", "options", "message"),
    [
        ({"coupling": "ot"}, {}, "no valid score: it was trained with the coupling 'ot'"),
        ({"path": "cosine"}, {}, "another path: set path"),
        ({"noise": "gaussian", "sigma": 0.1}, {}, "another view: set noise and sigma"),
        ({"conditional": False}, {}, "set conditional"),
        ({}, {"model": model_of("energy", width=32)}, "model.width 24, not 32"),
        ({}, {"spec": COLOUR}, r"data of shape \(1, 4, 4\)"),
    ],
)
def test_teachers_that_do_not_fit(of_teacher, options, message):
    teacher = build("flow_matching", IMAGES, **of_teacher)
    with pytest.raises(GenkitError, match=message):
        distilling(teacher, **options)


def test_a_teacher_from_another_source():
    teacher = build("flow_matching", VECTORS, source="8gaussians")
    with pytest.raises(GenkitError, match="its source is not a Gaussian"):
        distilling(teacher)


@pytest.mark.parametrize("teacher", [None, "normalizing_flow", "energy"])
def test_teachers_of_another_kind(teacher):
    with pytest.raises(
        GenkitError, match="must be a flow_matching run, and (none|NormalizingFlow|Energy) is given"
    ):
        distilling(teacher and build(teacher, VECTORS), spec=VECTORS)


# --- likelihood ---------------------------------------------------------------------------------------


def test_the_likelihood_of_the_flow_and_of_the_energy_agree_on_a_gaussian():
    """phi = 0: N(0, d^2), so the constant is known; by the energy x is seen with the noise that is left at its end."""
    energy = build("energy", VECTORS, parameterization="pooled", scale=None)
    x, _ = points(VECTORS)
    d = energy.scale
    exact = -x.square().sum(1) / (2 * d.square()) - (2 * math.pi * d.square()).log()
    by_flow = energy.log_prob(x, sampler={"name": "rk4", "steps": 32})
    torch.testing.assert_close(by_flow.value, exact, rtol=1e-5, atol=1e-5)
    by_energy = energy.log_prob(x, by="energy")
    assert (by_flow.kind, by_energy.kind) == ("estimate", "unnormalized")
    end = energy.end
    assert (1 - end) / end == pytest.approx(float(d) / 32, rel=0.03)
    log_z = (2 * math.pi * ((end * d).square() + (1 - end) ** 2)).log()
    torch.testing.assert_close(by_energy.value - log_z, exact, rtol=3e-3, atol=3e-3)


def test_the_energy_of_levels_counts_their_volume():
    energy = build("energy", IMAGES)
    x, y = split(IMAGES).take(torch.arange(4))
    of_levels = energy.log_prob(x, y, by="energy", generator=keyed_generator(0)).value
    encoded = energy.view.encode(x, generator=keyed_generator(0))
    assert energy.end == pytest.approx(1 / (1 + 2 / 5), abs=1e-3)
    value, _ = energy.log_density(torch.tensor(energy.end), energy.end * encoded, y)
    torch.testing.assert_close(of_levels, value + 16 * (math.log(energy.end) + math.log(2 / 5)))


def test_nothing_is_kept_without_gradients():
    energy = build("energy", IMAGES)
    x, y = points(IMAGES)
    with torch.no_grad():
        assert not energy.predict(torch.tensor(0.5), x, y).requires_grad
        value, score = energy.log_density(torch.tensor(0.5), x, y)
        assert not value.requires_grad
        assert not score.requires_grad


def test_the_size_of_the_data_is_of_rows_of_all_of_them():
    """Files of data come in the order of their classes, which differ in size."""
    x = torch.randn(5000, 2, generator=keyed_generator(0)) * (1 + 9 * (torch.arange(5000) >= 4000))[:, None]
    energy = build("energy", VECTORS)
    energy.setup(TensorSplit(x))
    assert float(energy.scale) == pytest.approx(float(x.square().mean().sqrt()), rel=0.05)
