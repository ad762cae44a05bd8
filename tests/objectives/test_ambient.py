"""Point by point: what a point's velocity depends on, samples of other sizes, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genkit.backbone import ModelOptions
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.objectives.ambient import Ambient, interpolated
from genkit.randomness import keyed_generator
from genkit.types import Batch, DataSpec
from tests.objectives.models import COLOUR, IMAGES, batch, build, split

CLOUDS = DataSpec("clouds", (12, 3), classes=3)
FIELD = DataSpec("field", (1, 8, 8))


def model(spec: DataSpec = CLOUDS, **options: object) -> Ambient:
    if spec.cloud:
        options = {"context": 4, **options}
    found = build("ambient", spec, **options)
    assert isinstance(found, Ambient)
    return found.double()


def velocity(objective: Ambient, x: Tensor) -> Tensor:
    return objective.network(torch.tensor(0.3, dtype=torch.float64), x)


def test_a_velocity_depends_on_the_context_alone() -> None:
    """Beside the same context, a point has the same velocity whatever other points are there, and however many."""
    objective, x = model(), torch.randn(2, 12, 3).double()
    v = velocity(objective, x)
    other = x.clone()
    other[:, 6:] = torch.randn(2, 6, 3)
    torch.testing.assert_close(velocity(objective, other)[:, :6], v[:, :6], rtol=0, atol=1e-12)
    larger = objective.resized(20)
    more = torch.cat((x, torch.randn(2, 8, 3)), dim=1)
    torch.testing.assert_close(velocity(larger, more)[:, :12], v, rtol=0, atol=1e-12)
    other = x.clone()
    other[:, 0] += 1
    assert (velocity(objective, other)[:, 4:] - v[:, 4:]).abs().amin(dim=(1, 2)).max() > 0
    assert not torch.allclose(velocity(objective, other)[:, 4:], v[:, 4:], atol=1e-3)


def test_clouds_are_equivariant() -> None:
    """In the order of the context's points, and in that of the others."""
    objective, x = model(), torch.randn(2, 12, 3).double()
    order = torch.cat((torch.tensor([2, 0, 3, 1]), 4 + torch.randperm(8)))
    moved = velocity(objective, x[:, order])
    torch.testing.assert_close(moved, velocity(objective, x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", [FIELD, COLOUR], ids=lambda spec: spec.name)
def test_the_same_function_at_shared_places(spec: DataSpec) -> None:
    """An image of three times the size has pixels whose centres are those of the trained one: equal values there have
    equal velocities, and the context is what it was."""
    objective = model(spec)
    size = spec.shape[1]
    larger = objective.resized(3 * size)
    small = torch.randn(2, *spec.shape).double()
    large = torch.randn(2, spec.shape[0], 3 * size, 3 * size).double()
    large[:, :, 1::3, 1::3] = small
    state = torch.cat((objective.trained.split(small), larger.shown.split(large)), dim=1)
    v, found = velocity(objective, small), velocity(larger, state)
    torch.testing.assert_close(objective.trained.join(found[:, : size * size]), v, rtol=0, atol=1e-12)
    shown = larger.shown.join(found[:, size * size :])
    torch.testing.assert_close(shown[:, :, 1::3, 1::3], v, rtol=0, atol=1e-12)
    assert not torch.allclose(shown[:, :, ::3, ::3], v, atol=1e-3)


def test_velocities_are_continuous_in_the_place() -> None:
    objective = model(FIELD)
    x = torch.randn(1, 1, 8, 8).double()
    cond = objective.condition(1, t=torch.tensor(0.3).double())
    tokens = objective.read(objective.trained.split(x), cond)
    places = torch.linspace(-1, 1, 401).double()[:, None].expand(-1, 2)
    v = objective.of_points(x.new_zeros(1, 401, 1), places, tokens, cond)[0, :, 0]
    assert v.diff().abs().max() < 0.1 * (v.max() - v.min())


def test_the_loss_of_some_points_is_that_of_all_on_average() -> None:
    whole, some = model(FIELD), model(FIELD, points=16)
    rows = split(FIELD).take(torch.arange(32))[0].double()
    pair = whole.coupling(rows, generator=keyed_generator(0))
    found = [whole.loss(Batch(rows, pair=pair), generator=keyed_generator(1))["loss"]]
    found += [some.loss(Batch(rows, pair=pair), generator=keyed_generator(1))["loss"]]
    assert found[0] != found[1]
    assert abs(found[0] - found[1]) < 0.15 * found[0]


@pytest.mark.parametrize("points", [None, 5])
def test_training_on_clouds_does_not_depend_on_their_order_on_average(points: int | None) -> None:
    """And all points of a cloud come to be its context."""
    objective = model(points=points)
    rows = batch(CLOUDS, 8).x.double().requires_grad_()
    pair = objective.coupling(rows, None, generator=keyed_generator(0))
    gradient = sum(
        torch.autograd.grad(
            objective.loss(Batch(rows, pair=pair), generator=keyed_generator(key))["loss"],
            rows,
            retain_graph=True,
        )[0].abs()
        for key in range(30)
    )
    assert isinstance(gradient, Tensor)
    assert gradient.sum(-1).min() > 0.05 * gradient.sum(-1).mean()


@pytest.mark.parametrize("size", [1, 4, 7, 12, 30])
def test_clouds_of_any_number_of_points(size: int) -> None:
    objective = model().float()
    generator = keyed_generator(0)
    sample = objective.resized(size).sample(3, torch.zeros(3).long(), generator=generator)
    assert sample.x.shape == (3, size, 3)
    assert sample.tokens == sample.nfe * 4
    whole = objective.sample(3, torch.zeros(3).long(), generator=keyed_generator(0)).x
    shared = min(size, 12)
    torch.testing.assert_close(sample.x[:, :shared], whole[:, :shared], rtol=1e-4, atol=1e-5)


def test_images_of_any_size_are_views_of_one() -> None:
    """At three times the size, each third pixel is one of the trained size; the noise between them has variance 1."""
    objective = model(replace(IMAGES, levels=None)).float()
    larger = objective.resized(12)
    whole = objective.sample(3, generator=keyed_generator(0)).x
    found = larger.sample(3, generator=keyed_generator(0)).x
    assert found.shape == (3, 1, 12, 12)
    torch.testing.assert_close(found[:, :, 1::3, 1::3], whole, rtol=1e-4, atol=1e-5)
    assert found.diff(dim=3).square().mean() < 0.5 * whole.diff(dim=3).square().mean()
    for size in ((12, 24), (3, 6), (2, 5)):
        weights = interpolated(torch.eye(32).double().reshape(32, 1, 4, 8), size)
        torch.testing.assert_close(weights.square().sum(0), torch.ones(1, *size).double())
    assert objective.resized(4) is objective
    levels = model(IMAGES).float().resized(6).sample(2, generator=keyed_generator(0)).x
    assert levels.shape == (2, 1, 6, 6)
    assert levels.dtype == torch.int64
    wide = model(DataSpec("wide", (1, 4, 8))).resized(6)
    assert wide.spec.shape == (1, 6, 12)


def test_a_weaker_model_guides_at_any_size() -> None:
    """The model itself as the guide changes nothing, at another size too."""
    objective = model().float()
    guidance = GUIDANCES.build({"name": "autoguidance", "scale": 2.0})
    guidance.guide = objective
    for one in (objective, objective.resized(20)):
        y = torch.zeros(3).long()
        plain, guided = (
            one.sample(3, y, guidance=g, generator=keyed_generator(0)).x for g in (None, guidance)
        )
        torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-5)


def test_resizing_leaves_the_model_as_it_is() -> None:
    objective = model(FIELD)
    state, places = objective.state_dict(), objective.places
    objective.resized(16)
    assert objective.places is places
    assert objective.spec.shape == (1, 8, 8)
    assert objective.state_dict().keys() == state.keys() == objective.resized(16).state_dict().keys()


def test_a_cloud_of_one_place_is_learned() -> None:
    """All points of all data at (1, -1, 0.5): the velocity (p - x_t) / (1 - t) is found, for any number of points."""
    torch.manual_seed(0)
    place = torch.tensor([1.0, -1.0, 0.5])
    spec = DataSpec("place", (8, 3))
    objective = Ambient(spec, ModelOptions(width=24, depth=1, heads=2), context=4, points=6)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step in range(80):
        generator = keyed_generator(step)
        rows = Batch(place.expand(16, 8, 3))
        loss = objective.loss(objective.prepare(rows, generator=generator), generator=generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for size in (3, 8, 40):
        found = objective.resized(size).sample(16, generator=keyed_generator(0)).x
        assert (found - place).abs().mean() < 0.15


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (CLOUDS, {"points": 13}, r"points must be from 1 to 12, as many as a sample of 'clouds' has, not 13"),
        (CLOUDS, {"points": 0}, "points must be from 1 to 12"),
        (CLOUDS, {"context": 13}, "context must be from 1 to 12"),
        (
            CLOUDS,
            {"coupling": "ot"},
            "the coupling 'ot' pairs by the places of values, and points of a cloud have no",
        ),
        (IMAGES, {"points": 17}, "points must be from 1 to 16"),
        (IMAGES, {"context": 4}, "context is of clouds of points, which 'images' does not hold"),
        (DataSpec("four", (1, 2, 3, 4)), {}, r"data 'four' of shape \(1, 2, 3, 4\)"),
    ],
    ids=str,
)
def test_what_cannot_be(spec: DataSpec, options: dict[str, object], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build("ambient", spec, **options)


def test_sizes_that_cannot_be() -> None:
    for objective, size, message in (
        (model(), 0, "size of a sample must be at least 1, not 0"),
        (model(DataSpec("wide", (1, 4, 6))), 3, "images of 4x6 cannot be 3 high: their width would be 4.5"),
        (model(DataSpec("vectors", (2,))), 3, "'vectors' holds no images and no clouds"),
        (
            build("flow_matching", IMAGES),
            8,
            r"of its data only, \(1, 4, 4\): those of the objective 'ambient'",
        ),
    ):
        with pytest.raises(GenkitError, match=message):
            objective.resized(size)


def test_likelihoods_are_of_images_of_the_trained_size() -> None:
    rows = batch(CLOUDS)
    with pytest.raises(GenkitError, match="clouds of points have no likelihood"):
        model().float().log_prob(rows.x)
    assert model().likelihood is None
    images = model(IMAGES).float()
    assert images.likelihood == "bound"
    with pytest.raises(GenkitError, match="another size than the data's have no likelihood"):
        images.resized(8).log_prob(batch(IMAGES).x)


def test_clouds_are_not_for_others() -> None:
    with pytest.raises(GenkitError, match="clouds of points .* are for the objective 'ambient'"):
        build("flow_matching", CLOUDS)
