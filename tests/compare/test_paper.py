"""What a paper's recipe expects is found in the report and judged; what no report could answer is refused at once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from genkit.__main__ import main
from genkit.compare.numbers import Stat
from genkit.compare.paper import (
    Expected,
    Found,
    find,
    judged,
    load,
    look_up,
    of_claim,
    of_figure,
    print_verdicts,
)
from genkit.errors import GenkitError
from genkit.recipe import read_yaml

ROOT = Path(__file__).parents[2]
PAPERS = sorted(
    path.parent.name
    for path in (ROOT / "recipes/papers").glob("*/small.yaml")
    if "expected" in read_yaml(path)
)
RUN = {
    "points": [{"steps": 1, "nfe": 1, "wasserstein": 2.0}, {"steps": 4, "nfe": 8, "wasserstein": 0.5}],
    "bits_per_dim": {"value": 3.3, "stderr": 0.1, "kind": "bound"},
    "curvature": 0.25,
    "control": [{"recall": 0.7}],
}
FLOW = {"points": [{"steps": None, "nfe": 64, "wasserstein": 1.0}]}
RECIPE = {
    "name": "tiny",
    "data": {"name": "moons", "n_train": 300, "n_test": 100},
    "model": {"width": 16, "depth": 1, "heads": 1},
    "training": {"steps": 4, "batch_size": 16},
    "arms": {
        name: {"objective": {"name": "flow_matching", "coupling": name}} for name in ("independent", "ot")
    },
    "evaluation": {"samples": 50, "steps": [1, 2], "likelihood_rows": 2},
    "paper": {"title": "Of pairs", "link": "https://example.org"},
    "expected": {
        "wasserstein": {"arm": "ot", "steps": 1, "ours": 1.0, "tolerance": 100},
        "curvature": {"arm": "ot", "paper": -1.0, "tolerance": 0.0, "note": "it cannot"},
        "order": {"claim": "ot@1 < independent@2", "metric": "sliced_wasserstein", "ours": "undecided"},
    },
}


@pytest.fixture
def recipe(tmp_path):
    """Writes the small recipe with other entries expected, or other sections."""

    def write(expected=None, **sections) -> Path:
        path = tmp_path / "tiny.yaml"
        changed = RECIPE | sections | ({} if expected is None else {"expected": expected})
        path.write_text(
            yaml.safe_dump(
                {key: value for key, value in changed.items() if value is not None}, sort_keys=False
            )
        )
        return path

    return write


@pytest.mark.parametrize(
    ("metric", "steps", "nfe", "value"),
    [
        ("wasserstein", 4, None, 0.5),
        ("wasserstein", None, 8, 0.5),
        ("bits_per_dim", None, None, 3.3),
        ("bits_per_dim.stderr", None, None, 0.1),
        ("control.0.recall", None, None, 0.7),
        ("curvature", None, None, 0.25),
    ],
)
def test_figures_are_looked_up(metric, steps, nfe, value):
    assert look_up({"arms": {"a": {"runs": [RUN, RUN]}}}, "a", metric, steps, nfe) == Stat(value, 0.0, 2)


def test_a_model_with_its_own_number_of_calls_has_one_point():
    assert look_up({"arms": {"a": {"runs": [FLOW]}}}, "a", "wasserstein", 4, None).mean == 1.0


@pytest.mark.parametrize(
    ("metric", "words"),
    [("wasserstein", "at 1, 4 steps: give"), ("frechet", "no frechet"), ("bits_per_dim.kind", "no number")],
)
def test_what_the_report_has_not(metric, words):
    with pytest.raises(GenkitError, match=words):
        look_up({"arms": {"a": {"runs": [RUN]}}}, "a", metric, None, None)


@pytest.mark.parametrize(
    ("measured", "seeds", "verdict"),
    [
        (Stat(1.2, None, 1), 1, "holds"),
        (Stat(1.3, None, 1), 1, "does not hold"),
        (Stat(1.3, None, 1), 3, "undecided"),
        (Stat(1.3, 0.2, 3), 3, "undecided"),
        (Stat(1.3, 0.01, 3), 3, "does not hold"),
        (Stat(0.7, 0.01, 3), 3, "does not hold"),
    ],
)
def test_verdict_on_a_figure(measured, seeds, verdict):
    assert of_figure(Expected(ours=1.0, paper=9.0, tolerance=0.2, seeds=seeds), [measured]) == verdict


def test_without_a_tolerance_nothing_is_decided():
    assert of_figure(Expected(paper=1.0), [Stat(1.0, None, 1)]) == "undecided"


@pytest.mark.parametrize(
    ("values", "seeds", "verdict"),
    [
        ((1.0, 2.0, 3.0), 1, "holds"),
        ((1.0, 1.02, 3.0), 1, "undecided"),
        ((1.0, 3.0, 2.0), 1, "does not hold"),
        ((1.0, 3.0, 2.0), 2, "undecided"),
    ],
)
def test_verdict_on_an_order(values, seeds, verdict):
    entry = Expected(claim="a < b < c", seeds=seeds)
    assert of_claim(entry, [Stat(value, None, 1) for value in values]) == verdict


def test_an_order_may_be_of_one_arm_at_unlike_steps_and_downwards():
    assert Expected(claim="a > b@4", steps=1).sides() == [("b", 4), ("a", 1)]
    entries = {"fast": Expected(claim="nf > flow@4", metric="wasserstein", steps=1)}
    (found,) = judged(entries, {"arms": {"flow": {"runs": [RUN]}, "nf": {"runs": [FLOW]}}})
    assert found.verdict == "holds"
    assert [one.mean for one in found.measured] == [0.5, 1.0]


def test_the_table_names_what_was_expected_and_why_not():
    text = io.StringIO()
    found = Found(
        "few",
        Expected(paper=0.48, ours=0.5, tolerance=0.1, note="too few steps"),
        [Stat(2, None, 1)],
        "undecided",
    )
    report = {"paper": {"title": "T"}, "expected": [found.plain()]}
    print_verdicts(report, console=Console(file=text, width=100))
    for word in ("T", "few", "0.480", "0.500 ± 0.100", "2.00", "undecided", "too few steps"):
        assert word in text.getvalue()


def test_what_the_report_lacks_is_undecided_and_says_so():
    entries = {
        "away": Expected(metric="wasserstein", arm="ot", steps=1, ours=1.0, tolerance=9.0),
        "other": Expected(metric="wasserstein", arm="flow", steps=7, ours=1.0, tolerance=9.0),
    }
    away, other = judged(entries, {"arms": {"flow": {"runs": [RUN]}}})
    assert away.verdict == other.verdict == "undecided"
    assert "no arm 'ot'" in away.plain()["missing"]
    assert "measured at 1, 4 steps" in other.plain()["missing"]


@pytest.mark.parametrize("paper", PAPERS)
def test_shipped_papers_expect_what_can_be_found(paper):
    coded = paper == "trimodal"  # its codec is a run of its own
    comparison, entries = load(find(paper), ["data.codec=null", "data.mix=null"] if coded else [])
    assert comparison.arms
    for entry in entries.values():
        assert entry.protocol
        assert entry.machine
        assert (
            entry.ours in ("holds", "does not hold", "undecided") if entry.claim else entry.ours is not None
        )


def test_reproduce(recipe, tmp_path, capsys):
    """Status 0 whatever the verdicts, which the report's JSON holds too; again, nothing is trained."""
    out = tmp_path / "out"
    command = ["reproduce", str(recipe()), "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "Of pairs" in text
    assert "it cannot" in text
    report = json.loads((out / "report.json").read_text())
    figure, wrong, order = report["expected"]
    point = report["arms"]["ot"]["runs"][0]["points"][0]
    assert figure["verdict"] == "holds"
    assert figure["measured"][0]["mean"] == point["wasserstein"]
    assert wrong["verdict"] == "does not hold"
    assert len(order["measured"]) == 2
    assert report["paper"] == RECIPE["paper"]
    assert main(command) == 0
    assert "already trained" in capsys.readouterr().err


def test_compare_shows_the_verdicts_too(recipe, tmp_path, capsys):
    """On its page and in its JSON; what overrides took away is undecided, and a wrong entry shows before training."""
    out = tmp_path / "out"
    assert main(["compare", str(recipe()), "--out", str(out), "--device", "cpu", "evaluation.steps=[1]"]) == 0
    figure, wrong, order = json.loads((out / "report.json").read_text())["expected"]
    assert (figure["verdict"], wrong["verdict"], order["verdict"]) == ("holds", "does not hold", "undecided")
    page = (out / "report.html").read_text()
    for text in ("Of pairs", "it cannot", "ot@1 &lt; independent@2", "measured at 1 steps", "does not hold"):
        assert text in page
    assert (
        main(["compare", str(recipe({"it": {"ours": 1.0, "tolerence": 1}})), "--out", str(out / "new")]) == 2
    )
    assert "did you mean 'tolerance'" in capsys.readouterr().err
    assert not (out / "new").exists()


def test_a_recipe_without_arms_is_one_arm(recipe):
    path = recipe(
        {"bits_per_dim": {"ours": 2.0}},
        arms=None,
        evaluation=None,
        objective={"name": "normalizing_flow", "spans": 1},
    )
    comparison, entries = load(path)
    assert list(comparison.arms) == ["model"]
    assert comparison.recipe("model", 0).config["objective"]["name"] == "normalizing_flow"
    assert entries["bits_per_dim"].ours == 2.0


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (1.5, "expected.it must be a mapping"),
        ({"ours": 1.0, "tolerence": 1}, "did you mean 'tolerance'"),
        ({"metric": "wasserstein", "arm": "to", "ours": 1.0}, "no arm 'to'; did you mean 'ot'"),
        ({"metric": "wasserstein", "ours": 1.0}, "give the arm: independent, ot"),
        ({"metric": "waserstein", "arm": "ot", "ours": 1.0}, "did you mean 'wasserstein'"),
        ({"metric": "wasserstein", "arm": "ot", "steps": 7, "ours": 1.0}, "nothing is measured at 7 steps"),
        ({"metric": "wasserstein", "arm": "ot", "steps": 1}, "it expects nothing"),
        ({"metric": "wasserstein", "arm": "ot", "ours": "low"}, "ours must be a number"),
        (
            {"metric": "wasserstein", "arm": "ot", "ours": 1.0, "tolerance": -1},
            "tolerance must not be negative",
        ),
        ({"metric": "wasserstein", "claim": "ot"}, "an order is such as"),
        ({"metric": "wasserstein", "claim": "ot < independent > ot"}, "an order is such as"),
        ({"metric": "wasserstein", "claim": "ot < other"}, "no arm 'other'"),
        ({"metric": "wasserstein", "claim": "ot < independent", "arm": "ot"}, "leave `arm` out"),
    ],
)
def test_what_no_report_could_answer_is_refused_before_any_work(recipe, capsys, tmp_path, entry, words):
    out = tmp_path / "out"
    assert main(["reproduce", str(recipe({"it": entry})), "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_paper(recipe, capsys):
    for paper, words in (
        ("cmf", "no paper 'cmf'; did you mean 'cfm'"),
        (lambda: recipe(paper=None), "has a section `paper`"),
        (lambda: recipe([1.5]), "has a section `expected`"),
        ("nowhere.yaml", "no such recipe"),
    ):
        assert main(["reproduce", paper if isinstance(paper, str) else str(paper())]) == 2
        assert words in capsys.readouterr().err
