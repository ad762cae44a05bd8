"""Laws of every objective: the shared backbone, gradients, determinism, shapes, and what they refuse."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from genkit.backbone import ModelOptions
from genkit.data.base import TensorSplit
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.objectives import OBJECTIVES
from genkit.objectives.base import weighted_mean
from genkit.randomness import keyed_generator
from genkit.types import DataSpec
from tests.objectives.models import (
    IMAGES,
    KIND_OF,
    LABELLED,
    LETTERS,
    NO_DRAWS,
    NO_SAMPLES,
    SOUND,
    VECTORS,
    WORDS,
    batch,
    build,
    data_of,
    discrete,
    labelled_of,
    log_prob,
    model_of,
    model_options,
    split,
)

NAMES = OBJECTIVES.names()
MODELS = [name for name in NAMES if name not in NO_SAMPLES]
DISCRETE = [name for name in NAMES if discrete(name)]
CONTINUOUS = [name for name in MODELS if not discrete(name)]
EACH = pytest.mark.parametrize("name", NAMES)
EACH_MODEL = pytest.mark.parametrize("name", MODELS)


def on_its_data(names: list[str]) -> pytest.MarkDecorator:
    pairs = [(name, spec) for name in names for spec in data_of(name)]
    return pytest.mark.parametrize(
        ("name", "spec"), pairs, ids=[f"{name}-{spec.name}" for name, spec in pairs]
    )


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(NAMES, 2)))
def test_the_backbone_is_shared(one: str, other: str) -> None:
    """Equal keys and shapes, strict loading, and equal weights from an equal seed."""
    a, b = (build(name, data_of(name)[0], scale=None) for name in (one, other))
    shapes = [{key: value.shape for key, value in o.backbone.state_dict().items()} for o in (a, b)]
    assert shapes[0] == shapes[1]
    for p, q in zip(a.backbone.parameters(), b.backbone.parameters(), strict=True):
        assert torch.equal(p, q)
    trained = build(one, data_of(one)[0]).backbone
    b.backbone.load_state_dict(trained.state_dict(), strict=True)
    assert all(map(torch.equal, b.backbone.state_dict().values(), trained.state_dict().values()))


@EACH
def test_the_backbone_is_that_of_any_data(name: str) -> None:
    keys = [build(name, spec, scale=None).backbone.state_dict().keys() for spec in data_of(name)]
    assert all(k == keys[0] for k in keys)


@on_its_data(NAMES)
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_gradients_reach_every_parameter(name: str, spec: DataSpec, mlp: str) -> None:
    objective = build(name, spec, model=model_of(name, mlp=mlp))
    generator = keyed_generator(0)
    prepared = objective.prepare(batch(spec, 32), generator=generator)
    objective.loss(prepared, generator=generator)["loss"].backward()
    for parameter_name, p in objective.named_parameters():
        assert p.grad is not None, parameter_name
        assert p.grad.isfinite().all(), parameter_name
        assert p.grad.abs().max() > 0, parameter_name


@on_its_data(NAMES)
def test_the_loss_is_finite_and_a_function_of_the_generator(name: str, spec: DataSpec) -> None:
    objective = build(name, spec)

    def loss(seed: int) -> float:
        generator = keyed_generator(seed)
        prepared = objective.prepare(batch(spec, 32), generator=generator)
        logs = objective.loss(prepared, generator=generator)
        assert logs["loss"].ndim == 0
        assert all(value.isfinite() for value in logs.values())
        return logs["loss"].item()

    torch.manual_seed(1)
    first = loss(5)
    torch.manual_seed(2)
    assert loss(5) == first
    if name not in NO_DRAWS or (spec.levels and not discrete(name)):  # dequantized
        assert loss(6) != first


@EACH
def test_the_loss_of_an_unprepared_batch(name: str) -> None:
    with pytest.raises(GenkitError, match="went through prepare"):
        build(name, data_of(name)[0]).loss(batch(data_of(name)[0]))


@on_its_data(MODELS)
def test_samples_look_like_the_data(name: str, spec: DataSpec) -> None:
    objective = build(name, spec)
    y = torch.arange(5) % spec.classes if spec.classes else None
    for classes in (y, None):
        sample = objective.sample(5, classes, generator=keyed_generator(0))
        assert sample.x.shape == (5, *spec.shape)
        assert sample.nfe > 0
        assert sample.tokens >= objective.tokens.length
        if spec.levels:
            assert sample.x.dtype == torch.int64
            assert sample.x.min() >= 0
            assert sample.x.max() < spec.levels
        else:
            assert sample.x.dtype == torch.float32
            assert sample.x.isfinite().all()
        assert torch.equal(sample.x, objective.sample(5, classes, generator=keyed_generator(0)).x)


@EACH_MODEL
def test_samples_follow_the_class_and_the_seed(name: str) -> None:
    objective = build(name, labelled_of(name))
    a, b = (objective.sample(32, torch.full((32,), y), generator=keyed_generator(0)).x for y in (0, 1))
    c = objective.sample(32, torch.zeros(32).long(), generator=keyed_generator(1)).x
    assert not torch.allclose(a, b, atol=1e-4)
    assert not torch.allclose(a, c, atol=1e-2)


@EACH_MODEL
def test_log_prob_has_a_row_a_sample_and_a_kind(name: str) -> None:
    objective = build(name, IMAGES)
    rows = batch(IMAGES)
    found = log_prob(objective, rows.x, rows.y)
    assert found.value.shape == (8,)
    assert found.value.isfinite().all()
    assert found.kind == KIND_OF.get(name, "estimate")
    assert torch.equal(found.value, log_prob(objective, rows.x, rows.y).value)
    drawn_anew = log_prob(objective, rows.x, rows.y, key=1).value  # the noise in the cell, or the masks
    assert torch.equal(found.value, drawn_anew) == (found.kind == "exact")
    assert not torch.allclose(found.value, log_prob(objective, rows.x, (rows.y + 1) % 3).value, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_classes_may_be_stored_as_any_whole_numbers(dtype: torch.dtype) -> None:
    model = build("flow_matching", LABELLED)
    model.setup(TensorSplit(torch.zeros(6, 3), (torch.arange(6) % 3).to(dtype)))


def test_a_split_of_ones_own_without_y_is_named() -> None:
    class Own(TensorSplit):
        def __init__(self) -> None:
            self.x = torch.zeros(6, 3)

    with pytest.raises(GenkitError, match="come without the y that its spec says"):
        build("flow_matching", LABELLED).setup(Own())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (1 + torch.arange(6) % 3, "class 3 is out of range: 'labelled' has classes 0 to 2"),
        (torch.arange(6) % 3 - 1, "class -1 is the null: 'labelled' has classes 0 to 2"),
        (None, "rows of 'labelled' come without the y that its spec says"),
    ],
)
def test_classes_of_the_data_are_those_of_their_spec(y: torch.Tensor | None, message: str) -> None:
    """Else a data set that counts from 1 trains, with its last class as the null."""
    objective = build("flow_matching", LABELLED)
    with pytest.raises(GenkitError, match=message):
        objective.setup(TensorSplit(torch.zeros(6, 3), y))
    build("flow_matching", LABELLED, conditional=False).setup(TensorSplit(torch.zeros(6, 3), y))


@EACH_MODEL
def test_an_unconditional_model_has_no_use_for_classes(name: str) -> None:
    objective = build(name, IMAGES, conditional=False)
    generator = keyed_generator(0)
    objective.loss(objective.prepare(batch(IMAGES), generator=generator), generator=generator)[
        "loss"
    ].backward()
    rows = batch(IMAGES)
    with_y, without = (log_prob(objective, rows.x, y).value for y in (rows.y, None))
    assert torch.equal(with_y, without)
    with pytest.raises(GenkitError, match="'images' is unconditional: it takes no class"):
        objective.sample(2, torch.tensor([0, 1]))


@EACH_MODEL
@pytest.mark.parametrize("wrong", [3, 7, -2])
def test_classes_that_do_not_exist(name: str, wrong: int) -> None:
    with pytest.raises(GenkitError, match=f"class {wrong} is out of range: 'images' has classes 0 to 2"):
        build(name, IMAGES).sample(2, torch.tensor([0, wrong]))


@EACH_MODEL
def test_other_requests_that_cannot_be_met(name: str) -> None:
    objective = build(name, IMAGES)
    guidance = GUIDANCES.build("classifier_free", scale=2.0)
    with pytest.raises(GenkitError, match="give y, the class of each sample"):
        objective.sample(2, guidance=guidance)
    with pytest.raises(GenkitError, match="at least 1, not 0"):
        objective.sample(0)
    with pytest.raises(GenkitError, match=r"shape \(3,\), not \(2,\)"):
        objective.sample(3, torch.tensor([0, 1]))
    with pytest.raises(GenkitError, match="guidance needs .* unconditional"):
        build(name, IMAGES, conditional=False).sample(2, guidance=guidance)
    with pytest.raises(GenkitError, match="guidance needs .* label_dropout 0"):
        build(name, IMAGES, label_dropout=0.0).sample(2, torch.tensor([0, 1]), guidance=guidance)
    with pytest.raises(GenkitError, match="no log-probability"):
        objective.sample(2, torch.tensor([0, 1]), guidance=guidance, return_log_prob=True)
    with pytest.raises(GenkitError, match=r"data of shape \(1, 4, 4\) expected, not \(1, 8, 8\)"):
        objective.log_prob(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_noised_data_have_no_likelihood(name: str) -> None:
    with pytest.raises(GenkitError, match="no likelihood of the data"):
        build(name, IMAGES, noise="gaussian", sigma=0.1).log_prob(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_symbols_without_an_order_are_no_numbers(name: str) -> None:
    for spec in (LETTERS, WORDS):
        with pytest.raises(GenkitError, match=f"symbols of '{spec.name}' have no order.* masked_diffusion"):
            build(name, spec)


@pytest.mark.parametrize("name", DISCRETE)
def test_real_values_are_no_symbols(name: str) -> None:
    for spec in (VECTORS, SOUND):
        with pytest.raises(GenkitError, match=f"'{spec.name}' is real-valued: a discrete objective needs"):
            build(name, spec)


@on_its_data(DISCRETE)
def test_symbols_are_read_as_they_are(name: str, spec: DataSpec) -> None:
    """Not dequantized: what is trained on are the data, in the order of the tokens, and back."""
    objective, rows = build(name, spec), batch(spec)
    encoded = objective.prepare(rows, generator=keyed_generator(0)).encoded
    assert encoded is not None
    assert encoded.dtype == torch.int64
    assert encoded.shape == (8, spec.dims)
    assert torch.equal(objective.values(encoded), rows.x)
    assert objective.view.log_volume == 0


@EACH_MODEL
@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_the_share_of_dropped_labels_is_a_share(name: str, share: float) -> None:
    with pytest.raises(GenkitError, match=r"label_dropout must be in \[0, 1\)"):
        build(name, IMAGES, label_dropout=share)


@EACH_MODEL
def test_that_share_of_labels_is_dropped(name: str) -> None:
    objective = build(name, IMAGES, label_dropout=0.3)
    y = torch.arange(20_000) % 3
    dropped = objective.drop_label(y, generator=keyed_generator(0))
    assert float((dropped == -1).float().mean()) == pytest.approx(0.3, abs=0.015)
    assert torch.equal(dropped[dropped >= 0], y[dropped >= 0])
    assert objective.drop_label(None) is None
    assert torch.equal(build(name, IMAGES, label_dropout=0.0).drop_label(y), y)


@EACH_MODEL
def test_patches_must_fit_the_image(name: str) -> None:
    with pytest.raises(GenkitError, match="patch 3 does not divide"):
        build(name, IMAGES, model=model_options(patch=3))


@EACH_MODEL
def test_guidance_of_scale_1_changes_nothing_and_of_2_something(name: str) -> None:
    objective, y = build(name, labelled_of(name)), torch.tensor([0, 1, 2, 0])

    def sample(scale: float | None) -> torch.Tensor:
        guidance = None if scale is None else GUIDANCES.build("classifier_free", scale=scale)
        return objective.sample(4, y, guidance=guidance, generator=keyed_generator(0)).x

    assert torch.equal(sample(None), sample(1.0))
    assert not torch.allclose(sample(None), sample(2.0), atol=1e-3)


@EACH_MODEL
def test_guidance_costs_twice_the_tokens(name: str) -> None:
    objective, y = build(name, IMAGES), torch.tensor([0, 1])
    plain, guided = (
        objective.sample(
            2,
            y,
            guidance=GUIDANCES.build("classifier_free", scale=scale),
            generator=keyed_generator(0),
        )
        for scale in (1.0, 2.0)
    )
    assert guided.nfe == plain.nfe
    assert guided.tokens == 2 * plain.tokens


@EACH_MODEL
def test_the_same_weights_give_the_same_model(name: str) -> None:
    """What is not in the state does not count; nothing is left out of it."""
    one = build(name, IMAGES)
    other = build(name, IMAGES, scale=None)
    other.load_state_dict(one.state_dict())
    rows = batch(IMAGES)
    assert torch.equal(log_prob(one, rows.x, rows.y).value, log_prob(other, rows.x, rows.y).value)


class Teacher(nn.Module):
    conditional = True

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.weight = spec, nn.Parameter(torch.ones(1000))
        self.view = type("View", (), {"sigma": 0.0})()

    def encode(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        self.seen = y
        return x * self.weight[0]


@EACH
def test_a_teacher_is_no_part_of_the_model(name: str) -> None:
    """Not of its parameters, its state, or its copies (an average of the weights is one)."""
    options, spec = {"coupling": "distilled"} if name == "flow_matching" else {}, data_of(name)[0]
    teacher = Teacher(spec)
    objective = build(name, spec, teacher=teacher, **options)
    size = sum(p.numel() for p in build(name, spec).parameters())
    assert sum(p.numel() for p in objective.parameters()) == size
    assert not any("teacher" in key or value.numel() == 1000 for key, value in objective.state_dict().items())
    copied = copy.deepcopy(objective)
    if name == "flow_matching":
        assert copied.coupling.teacher is teacher


def test_a_teacher_of_other_data_is_refused() -> None:
    objective = OBJECTIVES.build({"name": "flow_matching", "coupling": "distilled"}, IMAGES, model_options())
    with pytest.raises(GenkitError, match=r"trained on data of shape \(2,\); these have \(1, 4, 4\)"):
        objective.setup(split(IMAGES), Teacher(VECTORS))


@pytest.mark.parametrize("conditional", [True, False])
def test_the_teacher_sees_the_true_class(conditional: bool) -> None:
    """Whether or not the student does, as when the codes were scaled."""
    options = {"name": "flow_matching", "coupling": "distilled", "conditional": conditional}
    objective = OBJECTIVES.build(options, IMAGES, model_options())
    teacher, rows = Teacher(IMAGES), batch(IMAGES)
    objective.setup(split(IMAGES), teacher)
    assert teacher.seen is not None
    objective.prepare(rows, generator=keyed_generator(0))
    assert torch.equal(teacher.seen, rows.y)


def test_the_weighted_mean() -> None:
    values = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])
    assert weighted_mean(values, None) == 4
    assert weighted_mean(values, torch.tensor([1.0, 1.0])) == 4
    assert weighted_mean(values, torch.tensor([3.0, 1.0])) == 3
    assert weighted_mean(values, torch.tensor([0.0, 0.1])) == pytest.approx(6)


@EACH
def test_options_are_those_of_the_backbone(name: str) -> None:
    deep = build(name, data_of(name)[0], model=replace(model_of(name), depth=8))
    assert deep.backbone.depth == 8
    assert isinstance(deep.model, ModelOptions)
