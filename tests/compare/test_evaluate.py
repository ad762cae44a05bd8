"""The evaluation of one run: options are checked first, results are kept for just what they were made from."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from genkit.compare import evaluate as evaluation
from genkit.compare.evaluate import EvaluationOptions, check_given, evaluate, samplers
from genkit.compare.runner import evaluated
from genkit.data.base import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.metrics.base import TwoSample
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, Run, train
from genkit.registry import PLUGINS
from genkit.types import LogProb
from genkit.unmasking import UNMASKERS

DATA = {"name": "8gaussians", "n_train": 60, "n_test": 40}
SMALL = {
    "data": DATA,
    "model": {"width": 16, "depth": 2, "heads": 2},
    "training": {"steps": 2, "batch_size": 8, "log_every": 1},
}
QUICK = EvaluationOptions(samples=20, steps=[1, 2], likelihood_rows=10, likelihood="euler", batch_size=8)


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Run:
    """Flow matching on points, trained for two steps."""
    recipe = Recipe.resolve(SMALL | {"objective": "flow_matching"})
    return train(recipe, tmp_path_factory.mktemp("runs") / "flow")


@pytest.fixture(scope="module")
def inverted(tmp_path_factory) -> Run:
    """An autoregressive flow of points."""
    recipe = Recipe.resolve(SMALL | {"objective": {"name": "normalizing_flow", "spans": 2}})
    return train(recipe, tmp_path_factory.mktemp("runs") / "inverted")


def text_file(folder) -> str:
    """The path of a text of 3,000 characters: random words in paragraphs."""
    words = ("tea", "is", "hot", "and", "so", "the", "sea")
    chosen = torch.randint(7, (750,), generator=torch.Generator().manual_seed(0)).tolist()
    path = folder / "tea.txt"
    path.write_text("".join(words[i] + (" " if k % 10 else "\n\n") for k, i in enumerate(chosen, 1)))
    return str(path)


def text_recipe(folder, objective, **options) -> Recipe:
    data = {"name": "pydoc", "file": text_file(folder), "length": 12, "tokens": "characters"}
    return Recipe.resolve(SMALL | {"data": data, "objective": {"name": objective, **options}})


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Run:
    """An autoregressive model of text, trained for two steps."""
    folder = tmp_path_factory.mktemp("text")
    return train(text_recipe(folder, "autoregressive"), folder / "reader")


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Run:
    """A masked model of the same text."""
    folder = tmp_path_factory.mktemp("text")
    return train(text_recipe(folder, "masked_diffusion"), folder / "writer")


def of_text(**options) -> EvaluationOptions:
    return EvaluationOptions(samples=8, steps=[2, 3], likelihood_rows=4, **options)


@pytest.fixture
def metrics():
    """Metrics of a test are gone after it."""
    names = METRICS.names()
    yield METRICS
    for name in set(METRICS.names()) - set(names):
        PLUGINS.pop(METRICS._entries.pop(name).__module__, None)


# --- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": []}, "steps must be positive and distinct"),
        ({"steps": [1, 0]}, "steps must be positive and distinct"),
        ({"steps": [1, 2, 1]}, "steps must be positive and distinct"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"probes": 0}, "probes must be positive"),
        ({"solver": {"name": "dopri5", "rtol": -1.0}}, "evaluation: tolerances must be positive"),
        ({"solver": "heunn"}, "did you mean 'heun'"),
        ({"likelihood": {"name": "euler", "steps": 0}}, "evaluation: a solver takes at least 1 step"),
        ({"likelihood": "ancestral"}, "evaluation: likelihood needs a solver without noise of its own"),
        ({"divergence": "exat"}, "evaluation: .*did you mean 'exact'"),
        ({"likelihood_tolerance": 0.0}, "evaluation: the tolerance must be positive"),
        ({"guidance": "classifier"}, "did you mean 'classifier_free'"),
        ({"guidance": {"name": "classifier_free", "scal": 2}}, "did you mean 'scale'"),
        ({"unmasker": "confidense"}, "evaluation: .*did you mean 'confidence'"),
        ({"unmaskers": ["ancestral", "confidense"]}, "evaluation: .*did you mean 'confidence'"),
        ({"unmaskers": [{"name": "entropy", "bound": -1.0}]}, "evaluation: entropy: bound"),
        ({"unmaskers": [{"name": "confidence", "steps": 4}]}, "steps are those of the evaluation"),
        ({"unmaskers": ["margin", {"name": "entropy"}, "margin"]}, "unmaskers: margin is there twice"),
        ({"unmaskers": [{"name": "entropy", "bound": 1.0}] * 2}, "entropy bound 1.0 is there twice"),
    ],
)
def test_wrong_options_are_refused_when_made(options, words):
    with pytest.raises(GenkitError, match=words):
        EvaluationOptions(**options)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("flow", {"guidance": 3.0}, "guidance needs a conditional model .*this one is unconditional"),
        ("flow", {"control": ["0 AND 1"]}, "FlowMatching has no energy"),
        ("flow", {"unmasker": "confidence"}, "'flow_matching' takes no unmasker; its solver is one of"),
        ("flow", {"unmaskers": ["confidence"]}, "'flow_matching' takes no unmasker"),
        ("flow", {"inverter": "jacobi"}, "'flow_matching' takes no inverter"),
        ("flow", {"control_on": ["a"]}, "control_on names arms of a comparison"),
        ("writer", {"solver": "heun"}, "'masked_diffusion' takes no solver; its unmasker is one of"),
        ("writer", {"unmasker": "left_to_right", "steps": [4]}, "steps: .*without a number of them"),
        ("writer", {"guidance": 2.0}, "this one is unconditional"),
        ("writer", {"divergence": "exact"}, "divergence is of flows of pairs"),
        ("reader", {"unmasker": "ancestral"}, "sampled from left to right, not by 'ancestral'"),
        ("reader", {"unmaskers": ["left_to_right", "margin"]}, "not by 'margin'"),
        ("reader", {"steps": [4]}, "steps: .*'autoregressive' is sampled without a number of them"),
        ("inverted", {"steps": [4]}, "steps: .*'normalizing_flow' is sampled without a number of them"),
        ("inverted", {"control": [{"beta": 2.0}]}, "NormalizingFlow has no energy"),
    ],
)
def test_options_without_effect_on_the_one_run_are_refused(request, kind, given, words):
    run = request.getfixturevalue(kind)
    with pytest.raises(GenkitError, match=words):
        check_given(run, EvaluationOptions(**given), given)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("flow", {"solver": "heun", "steps": [4], "guidance": 1, "unmaskers": [], "divergence": "exact"}),
        ("flow", {"solver": None, "inverter": None}),
        ("writer", {"unmasker": "left_to_right", "unmaskers": ["margin"], "steps": [4]}),
        ("inverted", {"inverter": "jacobi", "likelihood_rows": 4}),
    ],
)
def test_options_with_effect_on_it_are_taken(request, kind, given):
    check_given(request.getfixturevalue(kind), EvaluationOptions(**given), given)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_likelihood_says_what_it_is_given(tmp_path, conditional):
    data = {"name": "8gaussians", "n_train": 200, "n_test": 100, "labels": True}
    objective = {"name": "normalizing_flow", "spans": 2, "conditional": conditional}
    run = train(Recipe.resolve(SMALL | {"data": data, "objective": objective}), tmp_path / "nf")
    options = replace(QUICK, samples=100)
    result, _ = evaluate(run, options, options.judge(run.dataset))
    assert result["bits_per_dim"]["given"] == ("y" if conditional else None)


def test_an_autoregressive_flow_takes_no_part_in_control(inverted):
    """It has a density of the data, but none along a path."""
    options = EvaluationOptions(samples=8, likelihood_rows=4, control=[{"beta": 2.0}])
    assert "control" not in evaluate(inverted, options, options.judge(inverted.dataset))[0]


def test_a_grid_of_another_number_of_steps_is_refused_when_made(tmp_path):
    file = tmp_path / "grid.json"
    file.write_text('{"times": [0, 0.3, 1]}')
    solver = {"name": "heun", "grid": {"name": "fitted", "file": str(file)}}
    EvaluationOptions(steps=[2], solver=solver)
    with pytest.raises(GenkitError, match="evaluation: .*has times for 2 steps, not 4"):
        EvaluationOptions(steps=[2, 4], solver=solver)


def test_more_samples_than_test_rows_are_refused_with_the_largest_number(flow):
    with pytest.raises(
        GenkitError, match="evaluation: the test part of '8gaussians' has one row, and samples"
    ):
        EvaluationOptions().judge(DATASETS.build("8gaussians", n_train=4, n_test=1))
    with pytest.raises(GenkitError, match="evaluation: samples must be from 2 to 40.*not 41"):
        evaluated(flow, EvaluationOptions(samples=41))
    assert EvaluationOptions().judge(flow.dataset).count == 40


# --- what is measured -----------------------------------------------------------------------------------


def test_all_figures_of_a_flow(flow):
    result, shown = evaluate(flow, QUICK, QUICK.judge(flow.dataset))
    assert [(point["steps"], point["nfe"]) for point in result["points"]] == [(1, 1), (2, 2)]
    assert result["points"][0].keys() >= {"sliced_wasserstein", "energy_distance", "nearest", "seconds"}
    assert result["bits_per_dim"]["kind"] == "estimate"
    assert result["curvature"] >= 0
    assert shown.keys() == {"steps_1", "steps_2", "trajectory"}
    torch.testing.assert_close(shown["trajectory"][0][:8], flow.objective.start(8, generator=_noise(0)))
    json.dumps(result)


def _noise(start: int) -> torch.Generator:
    return keyed_generator(0, "evaluate", start)


def test_equal_evaluations_of_two_numbers_of_steps_are_both_kept(flow):
    options = EvaluationOptions(samples=8, steps=[1, 2], solver="dopri5", likelihood="euler")
    _, shown = evaluate(flow, options, options.judge(flow.dataset))
    assert shown.keys() >= {"steps_1", "steps_2"}


def test_batches_of_likelihoods_have_noise_of_their_own(flow, monkeypatch):
    draws = []

    def log_prob(x, y, *, generator, **options):
        draws.append(torch.rand(3, generator=generator).tolist())
        return LogProb(torch.zeros(len(x)), "bound")

    monkeypatch.setattr(flow.objective, "log_prob", log_prob)
    assert [len(part.value) for part in evaluation.log_probs(flow, QUICK)] == [8, 2]
    assert draws[0] != draws[1]
    again = list(draws)
    draws.clear()
    list(evaluation.log_probs(flow, QUICK))
    assert draws == again


def test_a_model_without_likelihood_has_no_bits_per_dim(tmp_path):
    """Its source has no closed-form density; the rest is measured."""
    recipe = Recipe.resolve(SMALL | {"objective": {"name": "flow_matching", "source": "moons"}})
    run = train(recipe, tmp_path / "flow")
    result, _ = evaluate(run, QUICK, QUICK.judge(run.dataset))
    assert result["bits_per_dim"] is None
    assert result["transport_cost"] > 0


def test_the_cost_of_samples_is_the_mean_over_rows_of_all_batches(flow, monkeypatch):
    costs = iter([(10, 10.0), (20, 25.0), (40, 40.0)])
    monkeypatch.setattr(
        flow.objective, "sample", lambda n, y, **options: evaluation.Sample(torch.zeros(n, 2), *next(costs))
    )
    found = evaluation.sample_in_batches(flow, QUICK, None, None, count=20)  # 8, 8 and 4 rows
    assert (found.nfe, found.tokens) == (20, 22.0)


def test_generators_are_on_the_device_of_the_model(flow, monkeypatch):
    monkeypatch.setattr(type(flow.objective), "device", torch.device("meta"))
    asked = []
    monkeypatch.setattr(
        evaluation, "keyed_generator", lambda seed, *key, device="cpu": asked.append((key, str(device)))
    )
    monkeypatch.setattr(
        flow.objective, "sample", lambda n, y, **options: evaluation.Sample(torch.zeros(n, 2), 1, 1.0)
    )
    evaluation.sample_in_batches(flow, QUICK, None, None, count=20)
    assert asked == [(("evaluate", start), "meta") for start in (0, 8, 16)]


# --- text -----------------------------------------------------------------------------------------------


def test_text_has_bits_per_character_and_samples_to_read(writer):
    result, shown = evaluate(writer, of_text(), of_text().judge(writer.dataset))
    assert [(point["steps"], point["nfe"]) for point in result["points"]] == [(2, 2), (3, 3)]
    assert result["points"][0].keys() >= {"ngrams", "sample_entropy"}
    assert "generative_perplexity" not in result["points"][0]
    assert result["bits_per_dim"]["unit"] == "bits/char"
    assert result["bits_per_dim"]["kind"] == "estimate"
    assert result["texts"].keys() == shown.keys() == {"steps_2", "steps_3"}
    assert (
        result["texts"]["steps_3"] == writer.show(shown["steps_3"]).texts[: len(result["texts"]["steps_3"])]
    )
    assert "unmasking" not in result
    json.dumps(result)


def test_likelihoods_count_the_symbols_that_are_modelled(tmp_path):
    recipe = text_recipe(tmp_path, "masked_diffusion")
    recipe.config["data"]["pack"] = True
    run = train(recipe, tmp_path / "packed")
    (found,) = evaluation.log_probs(run, EvaluationOptions(likelihood_rows=20))
    assert found.count is not None
    assert set(found.count.tolist()) == {11, 12}  # without and with a boundary


def test_a_scorer_says_how_probable_samples_are(writer, reader):
    options = of_text(scorer=str(reader.folder))
    judge = options.judge(writer.dataset, options.scorer_of(writer))
    result, shown = evaluate(writer, options, judge)
    expected = torch.exp(-reader.log_prob(shown["steps_2"]).value.double().sum() / (8 * 12))
    assert result["points"][0]["generative_perplexity"] == pytest.approx(expected.item(), rel=1e-4)
    real, _ = judge._rows("test", 8)
    expected = torch.exp(-reader.log_prob(real).value.double().sum() / (8 * 12))
    assert judge.floors()["generative_perplexity"] == pytest.approx(expected.item(), rel=1e-4)
    assert result["floor"] == judge.floors()


def test_models_are_sampled_with_each_unmasker_that_they_take(writer, tmp_path):
    entries = ["ancestral", {"name": "confidence", "noise": 1.0}, "left_to_right"]
    entries += [{"name": "entropy", "bound": bound} for bound in (0.1, 100.0)]
    options = of_text(unmaskers=entries)
    result, _ = evaluate(writer, options, options.judge(writer.dataset))
    found = result["unmasking"]
    assert [*found] == ["ancestral", "confidence (noise 1.0)", "left_to_right", "entropy"]
    assert found["ancestral"] == result["points"]  # the main one is not measured twice
    assert [point["steps"] for point in found["confidence (noise 1.0)"]] == [2, 3]
    assert [(point["steps"], point["nfe"]) for point in found["left_to_right"]] == [(None, 12)]
    assert [point["setting"] for point in found["entropy"]] == ["bound 0.1", "bound 100.0"]
    assert found["entropy"][0]["nfe"] > found["entropy"][1]["nfe"] == 1
    json.dumps(result)

    uniform = text_recipe(tmp_path, "discrete_flow_matching", source="uniform")
    run = train(uniform, tmp_path / "uniform")
    assert [*evaluate(run, options, options.judge(run.dataset))[0]["unmasking"]] == ["ancestral"]


def test_a_run_is_sampled_with_its_own_unmasker_where_the_evaluation_names_none(writer, reader):
    recipe = copy.deepcopy(writer.recipe)
    recipe.config["sampling"]["unmasker"] = {"name": "confidence", "noise": 0.5}
    run = copy.copy(writer)
    run.recipe = recipe
    (steps, sampler), *_ = samplers(run, of_text(unmasker=None))
    assert (steps, UNMASKERS.name_of(sampler), sampler.noise, sampler.steps) == (2, "confidence", 0.5, 2)
    for model, options in ((run, {}), (writer, {"unmasker": None})):
        assert UNMASKERS.name_of(samplers(model, of_text(**options))[0][1]) == "ancestral"
    assert UNMASKERS.name_of(samplers(reader, of_text())[0][1]) == "left_to_right"


def test_flows_take_no_unmasker(flow):
    options = EvaluationOptions(samples=8, steps=[1], likelihood_rows=4, unmaskers=["ancestral"])
    assert "unmasking" not in evaluate(flow, options, options.judge(flow.dataset))[0]


def test_scorers_that_cannot_score(writer, reader, flow, tmp_path):
    def refused(scorer, run, words):
        with pytest.raises(GenkitError, match=words):
            evaluated(run, of_text(scorer=str(scorer.folder)))

    refused(writer, writer, "needs an exact likelihood, .*it has one of kind 'estimate'")
    refused(reader, flow, "nothing to do: '8gaussians' has no symbols")
    recipe = text_recipe(tmp_path, "autoregressive")
    recipe.config["data"]["tokens"] = "ascii"
    refused(train(recipe, tmp_path / "ascii"), writer, "with another vocabulary than 'text:tea.txt'")
    recipe = text_recipe(tmp_path, "autoregressive")
    recipe.config["data"]["length"] = 10
    refused(train(recipe, tmp_path / "short"), writer, "of another length than 'text:tea.txt'")
    with pytest.raises(GenkitError, match="no such run folder"):
        evaluated(writer, of_text(scorer=str(tmp_path / "none")))


# --- what is kept ---------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often a run was really evaluated."""
    times = []

    def once(*args, **kwargs):
        times.append(1)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr("genkit.compare.runner.evaluate", once)
    return times


def test_an_evaluation_is_kept_for_the_same_options(flow, counted):
    first = evaluated(flow, QUICK)
    assert evaluated(flow, QUICK) == first
    assert len(counted) == 1
    evaluated(flow, EvaluationOptions(samples=20, steps=[1], likelihood_rows=10, likelihood="euler"))
    assert len(counted) == 2


def test_an_evaluation_is_kept_for_the_same_unmasker_of_the_run(writer, counted):
    run = copy.copy(writer)
    for number, unmasker in enumerate((None, "confidence", {"name": "confidence", "noise": 0.5})):
        run.recipe = copy.deepcopy(writer.recipe)
        run.recipe.config["sampling"]["unmasker"] = unmasker
        for _ in range(2):
            evaluated(run, of_text(unmasker=None))
        assert len(counted) == number + 1


def test_an_evaluation_is_kept_for_the_same_scorer(writer, reader, counted, tmp_path):
    """Its weights say which it is, not its name."""
    copied = tmp_path / "copied"
    shutil.copytree(reader.folder, copied)
    for folder in (reader.folder, reader.folder, copied):
        evaluated(writer, of_text(scorer=str(folder)))
    assert len(counted) == 1
    recipe = text_recipe(tmp_path, "autoregressive")
    recipe.config["seed"] = 1
    evaluated(writer, of_text(scorer=str(train(recipe, tmp_path / "other").folder)))
    assert len(counted) == 2
    evaluated(writer, of_text())
    assert len(counted) == 3


def test_a_new_metric_and_a_changed_one_are_measured(flow, metrics, counted):
    evaluated(flow, QUICK)
    done = len(counted)

    @metrics.register("mine")
    class Mine(TwoSample):
        def distance(self, x, y):
            return x.mean()

    assert "mine" in evaluated(flow, QUICK)["points"][0]
    for content, times in (("a", 2), ("a", 2), ("b", 3)):
        PLUGINS[Mine.__module__] = content
        evaluated(flow, QUICK)
        assert len(counted) == done + times


def test_no_rows_no_likelihood(flow):
    assert evaluated(flow, replace(QUICK, likelihood_rows=0))["bits_per_dim"] is None
    with pytest.raises(GenkitError, match="likelihood_rows must not be negative, not -1"):
        replace(QUICK, likelihood_rows=-1)


@pytest.mark.parametrize("file", ["samples.safetensors", "evaluation.json"])
@pytest.mark.parametrize("damage", ["gone", "half", "other"])
def test_files_that_disagree_are_made_again(flow, counted, file, damage):
    evaluated(flow, QUICK)
    path = flow.folder / file
    content = path.read_bytes()
    if damage == "other":  # a kill between the two writes leaves one file of other options
        evaluated(flow, EvaluationOptions(samples=20, steps=[2], likelihood_rows=10, likelihood="euler"))
        other = path.read_bytes()
        evaluated(flow, QUICK)
        path.write_bytes(other)
    elif damage == "half":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    counted.clear()
    evaluated(flow, QUICK)
    assert len(counted) == 1
    with safe_open(flow.folder / "samples.safetensors", framework="pt") as held:
        assert held.metadata()["key"] == json.loads((flow.folder / "evaluation.json").read_text())["key"]
