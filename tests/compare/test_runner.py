"""A comparison is refused before any training where an arm, a teacher or the evaluation cannot work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import genkit.recipe as recipes
from genkit.__main__ import main
from genkit.compare import runner
from genkit.compare.evaluate import EvaluationOptions
from genkit.compare.figures import tensors
from genkit.compare.report import write_report
from genkit.compare.runner import Comparison, compare, evaluated, train_arm
from genkit.errors import GenkitError, Terminated
from genkit.files import temporary_of
from genkit.processes import locked
from genkit.recipe import Recipe, load, train
from tests.compare.test_evaluate import DATA, SMALL, text_file

EVALUATION = {"samples": 20, "steps": [1], "likelihood_rows": 4, "likelihood": "euler"}
NF = {"name": "normalizing_flow", "spans": 2}
DISTILLED = {"name": "flow_matching", "coupling": {"name": "distilled", "teacher": "nf"}}


@pytest.fixture
def comparison(tmp_path):
    """Makes a comparison of arms given as objectives; sections may be replaced."""

    def make(arms: dict, **sections) -> Comparison:
        path = tmp_path / "c.yaml"
        config = SMALL | {"evaluation": EVALUATION} | sections
        path.write_text(yaml.safe_dump(config | {"arms": {k: {"objective": v} for k, v in arms.items()}}))
        return Comparison.load(path)

    return make


@pytest.fixture
def untrained(monkeypatch):
    """Training anything is an error."""
    monkeypatch.setattr(runner, "train", lambda *args, **kwargs: pytest.fail("it was trained"))


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"samples": 41}, "from 2 to 40.*not 41"),
        ({"solver": {"name": "dopri5", "atol": 0.0}}, "tolerances"),
        ({"steps": [2, 2]}, "distinct"),
        ({"guidance": "nothing"}, "classifier_free"),
    ],
)
def test_wrong_evaluation(comparison, untrained, tmp_path, evaluation, words):
    with pytest.raises(GenkitError, match=words):
        compare(comparison({"fm": "flow_matching"}, evaluation=EVALUATION | evaluation), tmp_path / "out")


@pytest.mark.parametrize("seed", ["abc", None, 1.5, -1])
def test_a_seed_that_is_none(comparison, seed):
    with pytest.raises(GenkitError, match=r"arms\.fm: seed must be a whole number from 0 up, not"):
        comparison({"fm": "flow_matching"}, seed=seed)


def test_an_arm_that_makes_no_samples(comparison, untrained, tmp_path):
    made = comparison(
        {"codec": {"name": "autoencoder", "frames": 8}},
        data={"name": "tones", "n_train": 40, "n_test": 40, "length": 64},
        evaluation={"samples": 20},
    )
    with pytest.raises(
        GenkitError, match=r"arms\.codec: the objective 'autoencoder' makes no samples to compare"
    ):
        compare(made, tmp_path / "out")


def test_guidance_of_an_arm_without_label_dropout(comparison, untrained, tmp_path):
    made = comparison(
        {"fm": {"name": "flow_matching", "label_dropout": 0.0}},
        data=DATA | {"labels": True},
        evaluation=EVALUATION | {"guidance": 2.0},
    )
    with pytest.raises(GenkitError, match=r"arms\.fm.*guidance needs.*label_dropout 0"):
        compare(made, tmp_path / "out")


def test_shared_sampling_is_of_the_arms_that_take_it(comparison, untrained):
    """One that an arm itself has must fit it."""
    shared = {"solver": "heun", "inverter": "jacobi", "guidance": 2.0}
    arms = {"nf": NF, "fm": "flow_matching", "un": {"name": "flow_matching", "conditional": False}}
    made = comparison(arms, sampling=shared)
    held = {arm: made.recipe(arm, 0).config["sampling"] for arm in made.arms}
    assert [held[arm]["solver"] is None for arm in arms] == [True, False, False]
    assert [held[arm]["inverter"] is None for arm in arms] == [False, True, True]
    assert [held[arm]["guidance"] for arm in arms] == [2.0, 2.0, 1.0]
    made.arms["nf"]["sampling"] = {"solver": "heun"}
    with pytest.raises(GenkitError, match="arms.nf: sampling: .*takes no solver"):
        made.recipe("nf", 0)


@pytest.mark.parametrize(("asked", "others"), [(None, True), (1.0, False)])
def test_an_arm_is_sampled_with_its_own_guidance_where_the_evaluation_has_none(
    comparison, tmp_path, asked, others
):
    made = comparison(
        {"plain": "flow_matching", "guided": "flow_matching"},
        data=DATA | {"labels": True},
        evaluation=EVALUATION | {"samples": 40, "guidance": asked},
    )
    made.arms["guided"]["sampling"] = {"guidance": 4.0}
    report = compare(made, tmp_path / "out")
    (plain,), (guided,) = (report["arms"][arm]["runs"] for arm in ("plain", "guided"))
    key = next(key for key in plain["points"][0] if "wasserstein" in key)
    assert (plain["points"][0][key] != guided["points"][0][key]) == others
    assert report["evaluation"]["guidance"] == ("4.0, 1.0" if others else 1.0)
    kept = json.loads((tmp_path / "out/guided/evaluation.json").read_text())
    assert kept["options"]["guidance"] == (4.0 if others else 1.0)


def test_a_student_without_a_teacher(comparison, untrained, tmp_path):
    made = comparison({"student": {"name": "flow_matching", "coupling": "distilled"}})
    with pytest.raises(GenkitError, match=r"arms\.student.*needs a teacher"):
        compare(made, tmp_path / "out")


def test_an_arm_that_cannot_teach(comparison, untrained, tmp_path):
    made = comparison({"nf": "flow_matching", "student": DISTILLED})
    with pytest.raises(GenkitError, match=r"arms\.student: distilled: .*FlowMatching"):
        compare(made, tmp_path / "out")


def test_a_run_folder_that_cannot_teach_these_data(comparison, untrained, tmp_path):
    folder = tmp_path / "teacher"
    train(Recipe.resolve(SMALL | {"objective": NF, "data": DATA | {"labels": True}}), folder)
    student = {"name": "flow_matching", "coupling": {"name": "distilled", "teacher": str(folder)}}
    with pytest.raises(GenkitError, match=r"arms\.student: the teacher .* of classes 8; these have None"):
        compare(comparison({"student": student}), tmp_path / "out")
    assert comparison({"student": student}, data=DATA | {"labels": True}).check().keys() == {str(folder)}
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(GenkitError, match="corrupt"):
        compare(comparison({"student": student}), tmp_path / "out")


@pytest.fixture
def of_text(comparison, tmp_path):
    """A comparison on a text."""
    data = {"name": "pydoc", "file": text_file(tmp_path), "length": 12, "tokens": "characters"}
    evaluation = {"samples": 8, "steps": [2], "likelihood_rows": 4}

    def make(arms: dict, **options) -> Comparison:
        return comparison(arms, data=data, evaluation=evaluation | options)

    return make


def test_a_scorer_that_is_not_there(of_text, comparison):
    with pytest.raises(
        GenkitError, match="evaluation: scorer: no arm or run folder 'ar'; did you mean 'arm'"
    ):
        of_text({"arm": "autoregressive"}, scorer="ar")


def test_a_scorer_that_cannot_score(of_text, comparison, untrained, tmp_path):
    with pytest.raises(GenkitError, match="evaluation: the scorer 'md' needs an exact likelihood"):
        compare(of_text({"ar": "autoregressive", "md": "masked_diffusion"}, scorer="md"), tmp_path / "out")
    made = comparison({"nf": NF}, evaluation=EVALUATION | {"scorer": "nf"})
    with pytest.raises(GenkitError, match="'8gaussians' has no symbols"):
        compare(made, tmp_path / "out")


def test_the_scorer_of_a_comparison_may_be_its_last_arm(of_text, tmp_path):
    """One of them for all seeds; its floor is that of real text."""
    made = of_text(
        {"md": "masked_diffusion", "reader": "autoregressive"}, scorer="reader", unmaskers=["margin"]
    )
    report = compare(made, tmp_path / "out", seeds=2)
    scorer = load(tmp_path / "out/reader")
    for name in ("md", "reader-seed1"):
        arm, seed = name.partition("-seed")[::2]
        point = report["arms"][arm]["runs"][int(seed or 0)]["points"][0]
        held = tensors(tmp_path / "out" / name / "samples.safetensors")
        x = torch.from_numpy(held["samples" if arm == "reader" else "steps_2"])
        expected = (-scorer.log_prob(x).value.double().sum() / (8 * 12)).exp()
        assert point["generative_perplexity"] == pytest.approx(expected.item(), rel=1e-4)
    assert report["floor"].keys() == {entry["name"] for entry in report["metrics"]}
    assert report["evaluation"]["unmasker"] == "ancestral, left_to_right"
    assert report["evaluation"]["solver"] is None
    assert (report["data"]["text"], len(report["data"]["texts"])) == ("characters", 6)
    assert report["arms"]["md"]["runs"][0]["unmasking"].keys() == {"margin"}
    assert "margin" in (write_report(report, tmp_path / "out")).read_text()


def test_unmaskers_are_compared_on_the_arms_that_are_named(of_text, tmp_path):
    arms = {"a": "masked_diffusion", "b": {"name": "discrete_flow_matching", "source": "mask"}}
    with pytest.raises(GenkitError, match="evaluation: unmaskers_on: no arm 'c'"):
        of_text(arms, unmaskers=["margin"], unmaskers_on=["a", "c"])
    for names in (["margin"], ["margin", "confidence"]):
        report = compare(of_text(arms, unmaskers=names, unmaskers_on=["b"]), tmp_path / "out")
        assert "unmasking" not in report["arms"]["a"]["runs"][0]
        assert [*report["arms"]["b"]["runs"][0]["unmasking"]] == names
    keys = {json.loads((tmp_path / f"out/{arm}/evaluation.json").read_text())["key"] for arm in arms}
    compare(of_text(arms, unmaskers=["blockwise"], unmaskers_on=["b"]), tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/a/evaluation.json").read_text())["key"] in keys
    )  # is not measured again
    assert json.loads((tmp_path / "out/b/evaluation.json").read_text())["key"] not in keys


def test_texts_are_shown_from_all_of_the_test_part(of_text, tmp_path):
    made = of_text({"md": "masked_diffusion"})
    shown = compare(made, tmp_path / "out")["data"]["texts"]
    data = made.dataset()
    rows = data.show(data.split("test").take(torch.arange(len(data.split("test"))))[0]).texts
    assert shown == rows[:: len(rows) // 6][:6]
    assert len(rows) > 12  # or they would be the first ones


def test_arms_on_other_data(comparison, untrained, tmp_path):
    made = comparison({"a": "flow_matching", "b": "flow_matching"})
    made.arms["b"]["data"] = DATA | {"seed": 1}
    with pytest.raises(GenkitError, match="the same data"):
        compare(made, tmp_path / "out")


def test_a_report_says_what_its_metrics_are(comparison, tmp_path):
    """Also: an arm from a source without a density has no bits/dim, and the others do."""
    made = comparison({"nf": NF, "fm": {"name": "flow_matching", "source": "moons"}, "student": DISTILLED})
    report = compare(made, tmp_path / "out")
    assert report["metrics"][0] == {
        "name": "sliced_wasserstein",
        "words": "sliced Wasserstein distance",
        "lower": True,
    }
    assert {entry["name"] for entry in report["metrics"]} == report["floor"].keys()
    runs = {arm: content["runs"][0] for arm, content in report["arms"].items()}
    assert runs["nf"]["bits_per_dim"]["kind"] == "exact"
    assert runs["fm"]["bits_per_dim"] is None
    assert runs["student"]["train"]["teacher_tokens"] == runs["nf"]["train"]["tokens"]
    assert runs["student"]["train"]["setup_tokens"] > 0  # the scale of the codes
    assert runs["nf"]["train"]["setup_tokens"] == 0
    assert report["evaluation"]["samples"] == 20


def test_what_is_put_aside_is_never_written_over(comparison, tmp_path):
    for steps in (1, 2, 1, 2):
        training = SMALL["training"] | {"steps": steps}
        compare(comparison({"fm": "flow_matching"}, training=training), tmp_path / "out")
    assert len(list((tmp_path / "out/stale").iterdir())) == 3


def test_a_run_that_is_being_trained_is_not_put_aside(comparison, tmp_path):
    def steps(count):
        training = SMALL["training"] | {"steps": count}
        return compare(comparison({"fm": "flow_matching"}, training=training), tmp_path / "out")

    steps(1)
    with locked(tmp_path / "out/fm"), pytest.raises(GenkitError, match="is being written by process"):
        steps(2)
    assert load(tmp_path / "out/fm").environment["steps"] == 1
    steps(2)
    (aside,) = (tmp_path / "out/stale").iterdir()
    assert load(aside).environment["steps"] == 1
    assert not (aside / ".holder.json").exists()


def test_a_signal_in_the_last_step_of_an_arm_ends_the_comparison(comparison, tmp_path):
    """The arm is finished, and the next not begun."""

    class Stops:
        def training(self, arm, step, steps, loss):
            if step == steps:
                signal.raise_signal(signal.SIGTERM)

        def message(self, arm, text): ...

    made = comparison({"one": "flow_matching", "two": "flow_matching"})
    with pytest.raises(Terminated):
        compare(made, tmp_path / "out", listener=Stops())
    assert load(tmp_path / "out/one").environment["finished"]
    assert not (tmp_path / "out/two").exists()


def test_a_folder_is_for_one_comparison_at_a_time(comparison, untrained, tmp_path, monkeypatch, capsys):
    """Another one in it moves nothing; and it is held until the report is written, which reads from it."""
    comparison({"fm": "flow_matching"})
    out = tmp_path / "out"
    argv = ["compare", str(tmp_path / "c.yaml"), "--out", str(out)]
    left = temporary_of(out / "fm")  # of a copy that was killed
    left.mkdir(parents=True)
    with locked(out):
        assert not left.exists()
        assert main(argv) == 2
    assert f"{out} is being written by process {os.getpid()}" in capsys.readouterr().err

    def write(report, folder):
        with pytest.raises(GenkitError, match="is being written"), locked(folder):
            pass
        raise GenkitError("it was held")

    monkeypatch.setattr(runner, "compare", lambda *args, **kwargs: {})
    monkeypatch.setattr("genkit.compare.report.write_report", write)
    assert main(argv) == 2
    assert "it was held" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("arm", ["figures", "stale", "report.json", "fm-seed1", "../x", ".x"])
def test_an_arm_takes_no_other_folder(comparison, arm):
    with pytest.raises(GenkitError, match="cannot be the name of an arm"):
        comparison({arm: "flow_matching"})


def test_a_comparison_stays_in_its_folder(comparison):
    with pytest.raises(GenkitError, match=r"'\.\./x' cannot be a name"):
        comparison({"fm": "flow_matching"}, name="../x")


def test_names_of_nested_options_are_found():
    options = {"solver": {"name": "euler", "grid": {"name": "mine"}}, "guidance": 1.0}
    assert runner.names_in(options) == {"euler", "mine"}
    options = {"unmaskers": ["margin", {"name": "blockwise", "within": {"name": "mine"}}], "steps": [1, 2]}
    assert runner.names_in(options) == {"margin", "blockwise", "mine"}


def test_arms_that_are_sampled_otherwise_are_trained_once(tmp_path, monkeypatch):
    """Each is sampled with its own solver, and again after that has changed in the recipe."""
    fits = []
    monkeypatch.setattr(recipes, "fit", lambda *a, fit=recipes.fit, **k: fits.append(1) or fit(*a, **k))
    path, out = tmp_path / "c.yaml", tmp_path / "out"

    def of(**solvers):
        arms = {name: {"sampling": {"solver": solver}} for name, solver in solvers.items()}
        shared = SMALL | {"objective": "flow_matching", "arms": arms}
        path.write_text(yaml.safe_dump(shared | {"evaluation": EVALUATION | {"solver": None}}))
        report = compare(Comparison.load(path), out)
        return {name: arm["runs"][0]["points"][0]["nfe"] for name, arm in report["arms"].items()}, report

    nfe, report = of(one="euler", four="rk4", own=None)
    assert nfe == {"one": 1, "four": 4, "own": 2}  # heun is the objective's
    assert set(report["evaluation"]["solver"].split(", ")) == {"euler", "rk4", "heun"}
    assert load(out / "four").hash == load(out / "one").hash
    assert load(out / "four").recipe.config["sampling"]["solver"]["name"] == "rk4"
    assert of(one="midpoint", four="rk4", own=None)[0] == {"one": 2, "four": 4, "own": 2}
    assert len(fits) == 1


def test_flows_are_evaluated_with_the_inverter_of_their_recipes(tmp_path):
    """It is part of what a kept evaluation was made from; that of the evaluation comes first."""
    jacobi = {"name": "jacobi", "tolerance": 0, "cap": 1}

    def run(sampling, evaluation=()):
        recipe = Recipe.resolve(SMALL | {"objective": NF, "sampling": sampling})
        found = train_arm(recipe, tmp_path / "nf", None, None)
        result = evaluated(found, EvaluationOptions(**EVALUATION, **dict(evaluation)))
        return result["points"][0]["nfe"]

    tokens, spans = 2, 2
    assert run({}) == tokens * spans
    assert run({"inverter": jacobi}) == spans
    assert run({}, {"inverter": jacobi}) == spans
    assert run({"inverter": jacobi}, {"inverter": "sequential"}) == tokens * spans


def test_a_solver_that_an_arm_cannot_use(comparison, untrained, tmp_path):
    made = comparison(
        {"fm": {"name": "flow_matching", "prediction": "data"}}, evaluation=EVALUATION | {"solver": "heun"}
    )
    with pytest.raises(GenkitError, match=r"arms\.fm.*no velocity at t=1.*dpmpp"):
        compare(made, tmp_path / "out")


@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on_in_the_arm_under_way(tmp_path: Path) -> None:
    """A real process; the finished arm is left as it is, the broken one goes on from its checkpoint."""
    path, out = tmp_path / "two.yaml", tmp_path / "out"
    path.write_text(
        "data: moons\n"
        "model: {width: 8, depth: 1, heads: 1, patch: 1}\n"
        "training: {steps: 150, batch_size: 16, checkpoint_every: 1, log_every: 1}\n"
        "trainer: {accelerator: cpu}\n"
        "evaluation: {samples: 16, steps: [1], likelihood_rows: 4}\n"
        "arms: {one: {objective: flow_matching, training: {steps: 3}}, two: {objective: flow_matching}}\n"
    )
    last = out / "two" / "checkpoints" / "last.ckpt"
    call = [sys.executable, "-m", "genkit", "compare", str(path), "--out", str(out)]
    with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not last.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr
    finished = {file: file.stat().st_mtime_ns for file in (out / "one").rglob("*") if file.is_file()}
    assert out / "one" / "model.safetensors" in finished
    assert not (out / "two" / "model.safetensors").exists()
    told: list[tuple[str, int]] = []

    class Told:
        def training(self, arm: str, step: int, steps: int, loss: float) -> None:
            told.append((arm, step))

        def message(self, arm: str, text: str) -> None: ...

    step = torch.load(last, weights_only=True)["global_step"]
    report = compare(Comparison.load(path), out, listener=Told())
    assert told[0] == ("two", step + 1)
    assert {arm for arm, _ in told} == {"two"}
    for name in ("model.safetensors", "metrics.csv", "checkpoints/last.ckpt"):
        assert (out / "one" / name).stat().st_mtime_ns == finished[out / "one" / name]
    assert [arm["runs"][0]["steps"] for arm in report["arms"].values()] == [3, 150]
