"""Snapshots: the averaged weights of a step, kept whatever happens to the run; autoguidance by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import genkit
from genkit.__main__ import main
from genkit.compare.evaluate import EvaluationOptions
from genkit.compare.runner import Comparison, evaluated
from genkit.errors import GenkitError
from genkit.recipe import Recipe, Run, load, train
from genkit.training import TrainingOptions
from tests.training.test_resume import Killed, kill_at
from tests.training.test_resume import train as resumable

CONFIG: dict[str, Any] = {
    "data": {"name": "8gaussians", "n_train": 64, "n_test": 40, "labels": True},
    "model": {"width": 16, "depth": 1, "heads": 2},
    "objective": "flow_matching",
    "training": {
        **{"steps": 6, "batch_size": 8, "lr": 0.1, "warmup": 0, "ema": 0.5, "snapshots": [4, 2]},
        **{"checkpoint_every": 2, "checkpoint_best": "loss"},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(Recipe.resolve(CONFIG), tmp_path_factory.mktemp("runs") / "fm")


def snapshot(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "snapshots" / f"step_{step}.safetensors")


def test_a_snapshot_holds_the_averaged_weights_of_its_step(tmp_path: Path) -> None:
    """Those of a run that was stopped there, also where that is no step of a checkpoint."""
    resumable(tmp_path / "whole", snapshots=(3, 8))
    assert len(list((tmp_path / "whole" / "snapshots").iterdir())) == 2
    for step in (3, 8):
        with pytest.raises(Killed):
            resumable(tmp_path / f"to{step}", before=kill_at(step), checkpoint_every=step)
        path = tmp_path / f"to{step}" / "checkpoints" / "last.ckpt"
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == step
        kept = snapshot(tmp_path / "whole", step)
        assert {f"objective.{key}" for key in kept} == set(saved["state_dict"])
        for key, value in kept.items():
            assert torch.equal(value, saved["state_dict"][f"objective.{key}"]), key
            if step == 8 and value.is_floating_point() and value.numel() > 1:
                assert not torch.equal(value, saved["current_model_state"][f"objective.{key}"]), key


def test_a_snapshot_that_a_kill_left_out_is_made_on_resuming(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        resumable(tmp_path / "run", before=kill_at(9), snapshots=(8,))
    path = tmp_path / "run" / "snapshots" / "step_8.safetensors"
    before = path.read_bytes()
    path.unlink()
    resumable(tmp_path / "run", snapshots=(8,))
    assert path.read_bytes() == before


def test_a_snapshot_of_a_step_that_is_past_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        resumable(tmp_path / "run", before=kill_at(9))
    with pytest.raises(
        GenkitError, match="snapshots: .*run is at step 8, and kept none of 3: leave them out"
    ):
        resumable(tmp_path / "run", snapshots=(3, 10))
    config = {**CONFIG, "training": {**CONFIG["training"], "snapshots": [2, 3]}}
    with pytest.raises(GenkitError, match="is at step 6, and kept none of 3"):
        train(Recipe.resolve(config), run.folder)


def test_snapshots_change_no_weights_and_no_fingerprint(run: Run, tmp_path: Path) -> None:
    without = Recipe.resolve({**CONFIG, "training": {**CONFIG["training"], "snapshots": []}})
    plain = train(without, tmp_path / "plain")
    assert not (tmp_path / "plain" / "snapshots").exists()
    for key, value in plain.objective.state_dict().items():
        assert torch.equal(value, run.objective.state_dict()[key])
    assert plain.environment["fingerprint"] == run.environment["fingerprint"]


@pytest.mark.parametrize("steps", [(0,), (6,), (2, 2), (-1,)])
def test_snapshots_are_different_steps_before_the_last(steps: tuple[int, ...]) -> None:
    with pytest.raises(GenkitError, match="snapshots must be different steps from 1 to 5"):
        TrainingOptions(steps=6, snapshots=steps)


# --- a run with other weights than its final ones ---------------------------------------------------------


def averaged(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("objective."): value for key, value in state.items() if key[0] == "o"}


def test_a_run_is_loaded_with_the_weights_that_are_named(run: Run) -> None:
    expected = {
        "best": averaged(run.folder / "checkpoints" / "best.ckpt"),
        "last": run.objective.state_dict(),
        2: snapshot(run.folder, 2),
        "4": snapshot(run.folder, 4),
        "snapshots/step_4.safetensors": snapshot(run.folder, 4),
    }
    for checkpoint, weights in expected.items():
        found = load(run.folder, checkpoint=checkpoint)
        for key, value in found.objective.state_dict().items():
            assert torch.equal(value, weights[key]), (checkpoint, key)
        assert found.name == f"fm ({found.checkpoint})"
    assert run.checkpoint is None
    assert len({load(run.folder, checkpoint=checkpoint).hash for checkpoint in (None, 2, 4, "4")}) == 3
    best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] < 6  # else this tells nothing of it


def test_commands_take_the_weights_that_are_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npy"
    for checkpoint in ("best", "2"):
        argv = ["sample", str(run.folder), "-n", "4", "--steps", "2", "--out", str(out)]
        assert main([*argv, "--checkpoint", checkpoint]) == 0
        expected = load(run.folder, checkpoint=checkpoint).sample(4, steps=2).x
        assert np.array_equal(np.load(out), expected.numpy())
    assert "4 samples of fm (step_2)" in capsys.readouterr().out
    measure = ["evaluate", str(run.folder), "samples=20", "steps=[2]", "likelihood_rows=0"]
    assert main(measure) == 0
    before = (run.folder / "evaluation.json").read_bytes()
    assert main([*measure, "--checkpoint", "2"]) == 0
    assert (run.folder / "evaluation.json").read_bytes() == before
    kept = [json.loads((run.folder / f"evaluation{of}.json").read_text()) for of in ("", "_step_2")]
    assert kept[0]["result"]["points"] != kept[1]["result"]["points"]


def test_a_run_that_is_not_finished_is_sampled_at_its_last_checkpoint(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "fm")
    (folder / "model.safetensors").unlink()
    with pytest.raises(GenkitError, match="not finished; .* --checkpoint last takes it as it is"):
        load(folder)
    found, expected = load(folder, checkpoint="last").sample(4, steps=2), run.sample(4, steps=2)
    assert torch.equal(found.x, expected.x)


# --- autoguidance by them ---------------------------------------------------------------------------------


def test_autoguidance_is_by_the_snapshot_that_is_named(run: Run) -> None:
    x, t, y = torch.randn(4, 2), torch.tensor(0.3), torch.tensor([0, 1, 2, 3])
    for checkpoint, step in ((4, 4), (None, 2), ("snapshots/step_4.safetensors", 4)):
        weak = Recipe.resolve(CONFIG).objective(run.spec).eval()
        weak.load_state_dict(snapshot(run.folder, step))
        guidance = run.guidance({"name": "autoguidance", "scale": 3.0, "checkpoint": checkpoint})
        with torch.no_grad():
            found = run.objective.field(y, guidance)(t, x)  # type: ignore[attr-defined]
            v, v_g = (model.predict(t, x, y) for model in (run.objective, weak))  # type: ignore[attr-defined]
        assert torch.allclose(found, v + 2 * (v - v_g), atol=1e-5)
        assert (v - v_g).abs().max() > 1e-3
    assert run.guidance({"name": "autoguidance", "scale": 1.0, "checkpoint": 99}).guide is None  # off
    assert run.guidance(2.0).guide is None
    assert not any("guide" in name for name, _ in run.objective.named_modules())


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (3, r"fm: no checkpoint '3' \(one of: 2, 4, best, last\): training.snapshots"),
        ("bets", "no checkpoint 'bets'; did you mean 'best'"),
        ("snapshots/step_3.safetensors", r"no checkpoint 'snapshots/step_3.safetensors' .*one of: 2, 4"),
        ("checkpoints/last.ckpt", "no checkpoint 'checkpoints/last.ckpt'.*a file .safetensors"),
        ("../wide/model.safetensors", r"wide/model.safetensors does not fit .*recipe"),
        ("broken.safetensors", "broken.safetensors is corrupt"),
    ],
)
def test_checkpoints_that_are_not_there_or_do_not_fit(checkpoint: int | str, message: str, run: Run) -> None:
    (run.folder / "broken.safetensors").write_bytes(b"no weights")
    wide = {
        **CONFIG,
        "model": {"width": 24, "depth": 1, "heads": 2},
        "training": {"steps": 1, "batch_size": 8},
    }
    train(Recipe.resolve(wide), run.folder.parent / "wide")
    with pytest.raises(GenkitError, match=message):
        run.sample(2, guidance={"name": "autoguidance", "scale": 2.0, "checkpoint": checkpoint})
    with pytest.raises(GenkitError, match=message):
        load(run.folder, checkpoint=checkpoint)
    with pytest.raises(GenkitError, match="wide has no snapshots, which training.snapshots"):
        load(run.folder.parent / "wide").guidance({"name": "autoguidance", "scale": 2.0})


@pytest.mark.parametrize(
    ("training", "checkpoint", "message"),
    [
        ({"steps": 6}, None, "sampling: autoguidance needs a snapshot, and training.snapshots keeps none"),
        ({"steps": 6, "snapshots": [5, 2]}, 3, "the snapshot of step 3, and training.snapshots keeps 2, 5"),
    ],
)
def test_a_recipe_keeps_the_snapshot_that_it_samples_with(
    training: dict[str, Any], checkpoint: int | None, message: str
) -> None:
    sampling = {"guidance": {"name": "autoguidance", "scale": 2.0, "checkpoint": checkpoint}}
    with pytest.raises(GenkitError, match=message):
        Recipe.resolve({**CONFIG, "training": training, "sampling": sampling})


def test_evaluations_are_kept_for_the_guide_they_were_made_with(run: Run) -> None:
    """Also of a model without classes, which classifier-free guidance leaves alone."""
    options = EvaluationOptions(
        samples=20,
        steps=[2],
        likelihood_rows=2,
        likelihood="euler",
        guidance={"name": "autoguidance", "scale": 4.0},  # type: ignore[arg-type]
    )
    one = evaluated(run, options)
    kept = json.loads((run.folder / "evaluation.json").read_text())
    assert len(kept["options"]["guide"]) == 64
    assert one["points"][0]["tokens"] == 2 * 2 * run.objective.tokens.length
    path = run.folder / "snapshots" / "step_2.safetensors"
    first, second = path.read_bytes(), (run.folder / "snapshots" / "step_4.safetensors").read_bytes()
    path.write_bytes(second)
    other = evaluated(load(run.folder), options)
    path.write_bytes(first)
    assert other["points"][0]["sliced_wasserstein"] != one["points"][0]["sliced_wasserstein"]


def test_a_comparison_keeps_them_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    content = {
        **{key: value for key, value in CONFIG.items() if key != "objective"},
        "arms": {"fm": {"objective": "flow_matching"}},
        "evaluation": {"samples": 20, "guidance": {"name": "autoguidance", "checkpoint": 3}},
    }
    path.write_text(json.dumps(content))
    with pytest.raises(GenkitError, match=r"arms\.fm: evaluation: autoguidance needs the snapshot of step 3"):
        Comparison.load(path).check()
    content["evaluation"]["guidance"] = {"name": "rescaled", "scale": 2.0}
    content["arms"]["nf"] = {"objective": {"name": "normalizing_flow", "spans": 1}}
    path.write_text(json.dumps(content))
    with pytest.raises(GenkitError, match=r"arms\.nf: the guidance 'rescaled' is of field predictions"):
        Comparison.load(path).check()


def test_arms_that_are_sampled_otherwise_share_them(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    content = {
        **CONFIG,
        "arms": {name: {"sampling": {"solver": name}} for name in ("euler", "heun")},
        "evaluation": {
            **{"samples": 20, "steps": [2], "likelihood_rows": 0, "solver": None},
            "guidance": {"name": "autoguidance", "checkpoint": 2},
        },
    }
    path.write_text(json.dumps(content))
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 0
    kept = [tmp_path / "out" / arm / "snapshots" / "step_2.safetensors" for arm in ("euler", "heun")]
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_the_command_line_names_any_guidance(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npy"
    argv = ["sample", str(run.folder), "-n", "4", "--steps", "4", "--out", str(out), "--guidance"]
    for text, options in (
        ("2", {"guidance": 2.0}),
        (
            "{name: interval, scale: 3, start: 0.3}",
            {"guidance": {"name": "interval", "scale": 3.0, "start": 0.3}},
        ),
        (
            "{name: autoguidance, scale: 2, checkpoint: 4}",
            {"guidance": {"name": "autoguidance", "checkpoint": 4}},
        ),
        ("rescaled", {"guidance": "rescaled"}),
    ):
        assert main([*argv, text]) == 0, text
        expected = genkit.load(run.folder).sample(4, steps=4, **options).x  # type: ignore[arg-type]
        assert np.array_equal(np.load(out), expected.numpy())
    for text, words in (
        ("intervall", ["did you mean 'interval'"]),
        ("{name: interval, start: 0.8}", ["start 0.8", "stop 0.75"]),
        ("{name: interval, strt: 0.8}", ["did you mean 'start'"]),
        ("{name: autoguidance, checkpoint: 5}", ["no checkpoint '5'", "2, 4"]),
        ("inf", ["scale", "finite"]),
        ("true", ["a guidance is a name"]),
        ("{name", ["cannot be applied"]),
    ):
        capsys.readouterr()
        assert main([*argv, text]) == 2, text
        error = capsys.readouterr().err
        assert all(word in error for word in words), error
