"""Real-valued conditions from the data to samples and figures, on a model of a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genkit import load
from genkit.__main__ import main
from genkit.backbone import ModelOptions
from genkit.compare.evaluate import EvaluationOptions, evaluate
from genkit.data import TensorSplit
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.objectives import OBJECTIVES, Objective
from genkit.randomness import keyed_generator
from genkit.types import Batch, DataSpec

RECIPE = """
data: {name: moons, condition: x, n_train: 64, n_test: 40}
model: {width: 24, depth: 2, heads: 2}
objective: {name: flow_matching, coupling: {name: conditional_ot, ratio: 0.1}}
training: {steps: 8, batch_size: 32, lr: 1.0e-2, log_every: 4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("conditions")
    (place / "recipe.yaml").write_text(RECIPE)
    assert main(["train", str(place / "recipe.yaml"), "--out", str(place / "run")]) == 0
    return place / "run"


def build(name: str = "flow_matching", **options: object) -> Objective:
    torch.manual_seed(0)
    spec = DataSpec("given", (2,), condition=3)
    objective = OBJECTIVES.build({"name": name, **options}, spec, ModelOptions(width=24, depth=4, heads=2))
    with torch.no_grad():
        for p in objective.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.1)
    return objective


# sampling


def test_samples_are_of_the_test_rows_conditions_by_default(folder: Path) -> None:
    run = load(folder)
    _, y = run.dataset.test.take(torch.arange(45) % 40)
    assert torch.equal(run.sample(45, steps=2).x, run.sample(45, y, steps=2).x)
    assert not torch.equal(run.sample(45, -y, steps=2).x, run.sample(45, y, steps=2).x)


def test_one_condition_is_that_of_all_samples(folder: Path) -> None:
    run = load(folder)
    alike = [run.sample(5, y, steps=2).x for y in (0.5, [0.5], torch.full((5, 1), 0.5))]
    assert torch.equal(alike[0], alike[1])
    assert torch.equal(alike[0], alike[2])
    assert not torch.equal(alike[0], run.sample(5, 1, steps=2).x)


def test_a_condition_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    assert main(["sample", str(folder), "-n", "3", "--condition", "-0.5", "--out", str(out)]) == 0
    from safetensors.torch import load_file

    (x,) = load_file(out).values()
    assert torch.allclose(x, load(folder).sample(3, -0.5).x)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "1"], "'moons' has real-valued conditions, not classes: give --condition"),
        (["--condition", "1", "2"], "must be real numbers of shape (4, 1), not (2,)"),
        (["--condition", "nan"], "conditions of 'moons' must be finite"),
        (["--condition", "inf"], "conditions of 'moons' must be finite"),
        (["--condition", "1", "--beta", "2"], "--condition is not for particles"),
    ],
)
def test_wrong_requests(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    assert main(["sample", str(folder), "-n", "4", *words, "--out", str(tmp_path / "a.npy")]) == 2
    assert message in capsys.readouterr().err


def test_data_without_conditions_take_none(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("condition: x", "labels: true"))
    run = tmp_path / "run"
    assert main(["train", str(file), "--out", str(run), "training.steps=1"]) == 0
    assert main(["sample", str(run), "--condition", "1"]) == 2
    assert "'moons' has no real-valued conditions, but classes: give --class" in capsys.readouterr().err


# figures


def test_a_model_is_judged_under_the_conditions_of_the_reference_rows(folder: Path) -> None:
    run, options = load(folder), EvaluationOptions(samples=30, steps=[2], likelihood_rows=4)
    judge = options.judge(run.dataset)
    seen: list[torch.Tensor] = []
    inner = run.objective.sample

    def sample(n: int, y: torch.Tensor | None = None, **given: object) -> object:
        assert y is not None
        seen.append(y)
        return inner(n, y, **given)

    run.objective.sample = sample  # type: ignore[method-assign, assignment]
    found, _ = evaluate(run, options, judge)
    assert torch.equal(seen[-1], judge.conditions)
    assert found["points"][0]["joint_wasserstein"] > found["floor"]["joint_wasserstein"] > 0
    assert "class_wasserstein" not in found["points"][0]


# objectives


@pytest.mark.parametrize("name", ["flow_matching", "energy", "normalizing_flow"])
def test_labels_are_dropped_row_by_row(name: str) -> None:
    objective = build(name, label_dropout=0.25)
    y = torch.randn(4000, 3)
    dropped = objective.drop_label(y, generator=keyed_generator(0))
    assert dropped is not None
    gone = dropped.isnan()
    assert torch.equal(gone.any(1), gone.all(1))
    assert float(gone.float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropped[~gone], y[~gone])
    assert build(name, conditional=False).drop_label(y) is None


@pytest.mark.parametrize("name", ["flow_matching", "energy", "normalizing_flow"])
def test_guidance_leads_away_from_the_null(name: str) -> None:
    """At scale 0 it is the model without a condition, and the scale matters between."""
    objective, y = build(name), torch.randn(6, 3)

    def sample(y: torch.Tensor | None, scale: float = 1.0) -> torch.Tensor:
        guidance = GUIDANCES.build("classifier_free", scale=scale)
        return objective.sample(6, y, guidance=guidance, generator=keyed_generator(0)).x

    assert torch.allclose(sample(y, 0.0), sample(None), atol=1e-4)
    assert not torch.allclose(sample(y, 2.0), sample(y), atol=1e-3)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(4, 2), r"must be real numbers of shape \(4, 3\), not \(4, 2\)"),
        (torch.zeros(4), r"must be real numbers of shape \(4, 3\), not \(4,\)"),
        (torch.zeros(4, 3).long(), r"not \(4, 3\) torch\.int64"),
        (torch.full((4, 3), torch.inf), "must be finite"),
    ],
)
def test_conditions_of_another_kind_are_refused(y: torch.Tensor, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build().sample(4, y)


def test_data_of_another_width_than_their_spec_are_refused() -> None:
    with pytest.raises(GenkitError, match=r"conditions of 'given' must be real numbers of shape \(4, 3\)"):
        build().setup(TensorSplit(torch.zeros(4, 2), torch.zeros(4, 1)))


def test_real_numbers_are_no_classes() -> None:
    objective = OBJECTIVES.build("flow_matching", DataSpec("some", (2,), classes=3), ModelOptions(width=24))
    with pytest.raises(GenkitError, match="'some' has classes, which are whole numbers, not torch.float32"):
        objective.sample(2, torch.zeros(2))


def test_a_teacher_of_other_conditions_is_refused() -> None:
    with pytest.raises(GenkitError, match="teacher was trained on data of condition 3; these have None"):
        OBJECTIVES.build("flow_matching", DataSpec("some", (2,)), ModelOptions(width=24)).check_teacher(
            build()
        )


def test_a_model_learns_what_a_condition_says() -> None:
    """x1 = (y_1, -y_1): after a short training samples have this mean, given the condition."""
    objective = build("normalizing_flow", noise="none", spans=2).train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    for step in range(150):
        y = torch.randn(64, 3, generator=keyed_generator(step))
        x = torch.stack((y[:, 0], -y[:, 0]), 1) + 0.3 * torch.randn(
            64, 2, generator=keyed_generator(step, "x")
        )
        batch = objective.prepare(Batch(x, y), generator=keyed_generator(step))
        optimizer.zero_grad()
        objective.loss(batch, generator=keyed_generator(step))["loss"].backward()
        optimizer.step()
    y = torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.0, 0.5]]).repeat_interleave(200, 0)
    x = objective.eval().sample(400, y, generator=keyed_generator(0)).x
    means = x.reshape(2, 200, 2).mean(1)
    assert torch.allclose(means, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), atol=0.4), means
