"""Whatever stands in a recipe or on a command line, genkit does it or says what is wrong, and leaves no half of a run.

Recipes, overrides and command lines are made by Hypothesis, the same ones in every run, and go through `main`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.__main__ import COMMANDS, REGISTRIES, main, parser
from genkit.compare.evaluate import EvaluationOptions
from genkit.compare.runner import Comparison
from genkit.errors import GenkitError
from genkit.recipe import Recipe, load, read_environment
from genkit.registry import Registry, resolve_options

POINTS = {"name": "8gaussians", "n_train": 16, "n_test": 8, "labels": True}
TEXT = {"name": "pydoc", "length": 16}
RECIPES: list[dict[str, Any]] = [
    {"data": POINTS, "objective": {"name": "flow_matching", "coupling": "ot"}},
    {"data": POINTS, "objective": {"name": "normalizing_flow", "spans": 1}},
    {"data": POINTS, "objective": {"name": "energy"}},
    {"data": TEXT, "objective": {"name": "masked_diffusion"}},
    {"data": TEXT, "objective": {"name": "autoregressive"}},
]
SMALL = {
    "model": {"width": 8, "depth": 1, "heads": 1},
    "training": {"steps": 1, "batch_size": 4, "log_every": 1, "checkpoint_every": 1},
}
# Each run must be a short one: numbers of turns stay small, and processes one. A batch is small, or fits no memory.
TURNS = (
    "depth",
    "accumulate",
    "iterations",
    "copies",
    "spans",
    "steps",
    "length",
    "probes",
    "samples",
)
FIXED = ("trainer", "paper", "expected")
ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 3, 0.5, -0.5, 1e30, math.nan, math.inf),
    *("", "x", "null", "é\u2028", "\0", "${seed}", "${nowhere}", "${oc.env:HOME}", "a" * 300, "../x", "/"),
    *([], {}, [1], [0.1, 2], ["x"], [[1]], {"name": "x"}, {"name": 3}, {"a": {"b": 1}}),
]
HUGE = [2**40, 2**62, 2**64, -(2**63)]
# Odd values that are of the right kind.
ALIKE: dict[type, list[Any]] = {
    bool: [True, False],
    int: [-1, 0, 1, 2, 3, 4, 5, 7, 12],
    float: [-1.0, 0.0, 1e-30, 1e-6, 0.5, 0.999, 1.0, 1.5, 2.0, 1e4, 1e30, math.nan, math.inf, -math.inf],
    list: [[], [0], [1], [1, 1], [2, 1], [-1], [0.0, 0.0], [0.5, 0.9], [1, 2, 3], [math.nan, 0.5]],
    type(None): [None, 0, 1, 2, 0.5, 1.0, -1, [1], [1, 1], True, math.nan],
}
NAMES = st.deferred(
    lambda: st.sampled_from(sorted({n for r in [*Registry.by_base.values()] for n in r.names()}))
)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own, without pictures, which take most of a report's time."""
    monkeypatch.setattr("genkit.compare.report.save_figures", lambda report, out: {})
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A trained run of each recipe."""
    folder, found = tmp_path_factory.mktemp("runs"), []
    for i, recipe in enumerate(RECIPES):
        (folder / f"{i}.yaml").write_text(yaml.safe_dump({**recipe, **SMALL}))
        assert run(["train", str(folder / f"{i}.yaml"), "--out", str(folder / str(i))]) == 0
        found.append(str(folder / str(i)))
    return found


def run(argv: list[str], *allowed: int) -> int:
    """The status of a command line: 0, 2 with one message that is no traceback, or one that is allowed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    assert status in (0, 2, *allowed)
    assert "Traceback" not in err.getvalue()
    if status == 2:
        assert err.getvalue().count("error:") >= 1
        assert "\n  File" not in err.getvalue()
    return status


def whole(folder: Path, status: int) -> None:
    """A run folder is absent, resumable or finished."""
    if not folder.exists():
        assert status == 2
        return
    try:
        environment = read_environment(folder)
        Recipe.load(folder / "recipe.yaml")
    except GenkitError as error:
        raise AssertionError("a half-written run") from error
    assert environment.get("finished") is (status == 0)
    if status == 0:
        load(folder)


def places(config: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of a recipe."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key not in FIXED:
            yield (*at, key)
            yield from places(value, (*at, key))


@st.composite
def changed(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    """A recipe with one to three of its values or keys changed."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        there = list(places(config))
        if not there:
            break
        *inner, key = draw(st.sampled_from(there))
        parent = config
        for step in inner:
            parent = parent[step]
        how = draw(st.sampled_from((*["alike"] * 6, "name", "name", "odd", "odd", "huge", "gone", "renamed")))
        if how == "gone":
            del parent[key]
        elif how == "renamed":
            names = (f"{key}s", key[:-1], key.upper(), "", "name", "a.b", "x y")
            parent[draw(st.sampled_from(names))] = parent.pop(key)
        elif how == "alike" and type(parent[key]) in ALIKE:
            value = draw(st.sampled_from(ALIKE[type(parent[key])]))
            parent[key] = min(value, 3) if key in (*TURNS, "batch_size") and isinstance(value, int) else value
        elif how in ("alike", "name") and "data" not in (*inner, key):
            parent[key] = draw(NAMES)
        elif how == "huge" and key not in TURNS and key != "data":
            parent[key] = draw(st.sampled_from(HUGE))
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return config


FULL: list[dict[str, Any]] = []


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A changed recipe, of those above with all of their options."""
    if not FULL:
        FULL.extend(Recipe.resolve({**recipe, **SMALL}).config for recipe in RECIPES)
    return draw(changed(draw(st.sampled_from(FULL))))


def short(config: dict[str, Any]) -> dict[str, Any]:
    """The same recipe with few steps, whatever else stands in it."""
    if config.get("training") in (None, {}):
        config["training"] = {}
    for part in (config, *config["arms"].values()) if isinstance(config.get("arms"), dict) else (config,):
        training = part.get("training") if isinstance(part, dict) else None
        if isinstance(training, dict) and training.get("steps", 2) in (2, 3):
            training["steps"] = 1
    return config


def write(config: Any, name: str = "r.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(config))
    return name


@pytest.mark.slow
@settings(max_examples=150)
@given(recipes())
def test_recipes(config: dict[str, Any]) -> None:
    shutil.rmtree("run", ignore_errors=True)
    status = run(["train", write(short(config)), "--out", "run"])
    whole(Path("run"), status)


def flat(value: Any) -> str:
    """A value as it stands behind the = of an override."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=math.inf)
        .removesuffix("\n")
        .removesuffix("\n...")
    )


TEXTS = st.text(st.sampled_from("abz019.=[]{}:,-_ \n\t\"'#&*!|>%@`$\\é\0"), max_size=12)
KEYS = st.sampled_from(
    [
        "training",
        "training.lr",
        "training.ema",
        "training.clip",
        "training.warmup",
        "model",
        "model.width",
        "model.heads",
        "model.dropout",
        "objective",
        "objective.coupling",
        "objective.coupling.name",
        "objective.path",
        "objective.noise",
        "data",
        "data.n_train",
        "data.name",
        "seed",
        "name",
        "plugins",
        "training.batch_size",
        "training.accumulate",
        "training.snapshots",
        "training.checkpoint_best",
        "sampling",
        "sampling.solver",
        "sampling.unmasker",
        "sampling.inverter",
        "sampling.guidance",
        "evaluation",
        "arms",
        "paper",
    ]
)
VALUES = st.one_of(
    TEXTS, NAMES, st.sampled_from([flat(value) for value in (*ODD, *ALIKE[int], *ALIKE[float], *ALIKE[list])])
)
OVERRIDES = st.one_of(st.builds("{}={}".format, st.one_of(KEYS, TEXTS), VALUES), TEXTS)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.sampled_from(range(len(RECIPES))), st.lists(OVERRIDES, min_size=1, max_size=3))
def test_overrides(which: int, overrides: list[str]) -> None:
    shutil.rmtree("run", ignore_errors=True)
    overrides = [text for text in overrides if not text.startswith("-")]
    recipe = write({**RECIPES[which], **SMALL})
    status = run(["train", recipe, "--out", "run", *overrides, "training.steps=1", "training.batch_size=4"])
    whole(Path("run"), status)


EVALUATION = {
    key: value
    if isinstance(value, (int, float, str, list, dict, type(None)))
    else []  # the default of a list
    for key, value in resolve_options(
        EvaluationOptions,
        {"samples": 8, "steps": [1], "batch_size": 8, "likelihood_rows": 2, "probes": 2, "solver": "euler"},
        "evaluation",
    ).items()
}


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_comparisons(data: st.DataObject) -> None:
    shutil.rmtree("out", ignore_errors=True)
    arms = {
        "nf": {"objective": {"name": "normalizing_flow", "spans": 1}},
        "fm": {"objective": {"name": "flow_matching", "coupling": {"name": "distilled", "teacher": "nf"}}},
    }
    config = {"data": POINTS, **SMALL, "evaluation": EVALUATION, "arms": arms}
    config = data.draw(changed(config))
    status = run(["compare", write(short(config)), "--out", "out"])
    assert Path("out/report.html").exists() == (status == 0)
    with contextlib.suppress(GenkitError):
        for arm in Comparison.load("r.yaml").arms:
            folder = Path("out", arm)
            whole(folder, 0 if read_environment(folder).get("finished") else 2)


def options(command: str) -> list[tuple[str, bool]]:
    """The flags of a command, and whether each takes a value."""
    (commands,) = (action.choices for action in parser()._actions if action.choices)
    actions = [action for action in commands[command]._actions if action.option_strings]
    left_out = ("--help", "--plugin", "--trust-plugins", "--device", "--out")
    return [(a.option_strings[-1], a.nargs != 0) for a in actions if a.option_strings[-1] not in left_out]


NUMBERS = st.sampled_from(
    ["-1", "0", "1", "2", "3", "5", "0.5", "-0.5", "1.5", "nan", "inf", "1e400", str(2**63)]
)
WORDS = ["3 AND 8", "1^", "(1", "1 AND NOT 2^0.5", "0.3*1 OR 0.7*2", "ascii", "[[3]]", "a" * 40, "x=y"]
WORDS += ["best", "last", "null", "~", "", " ", "-x", "{name: heun, steps: 2}"]
LITTLE = ("-n", "--particles", "--steps", "--seeds")  # of what takes time in proportion


@st.composite
def flags(draw: st.DrawFn, command: str) -> list[str]:
    argv = []
    for flag, valued in draw(st.lists(st.sampled_from(options(command)), max_size=3)):
        value = NUMBERS if flag in LITTLE else st.one_of(NUMBERS, NAMES, TEXTS, st.sampled_from(WORDS))
        flag = draw(st.sampled_from([flag] * 8 + [flag[:-1], f"{flag}s"]))  # now and then mistyped
        argv += [flag, draw(value)] if valued else [flag]
    return argv


@pytest.mark.slow
@settings(max_examples=200)
@given(which=st.sampled_from(range(len(RECIPES))), flags=flags("sample"))
def test_sampling(runs: list[str], which: int, flags: list[str]) -> None:
    before = sorted(os.listdir(runs[which]))
    few = [] if "-n" in flags else ["-n", "2"]
    few += [] if "--particles" in flags or which != 2 else ["--particles", "8"]
    run(["sample", runs[which], *few, *flags, "--out", "x.npy"])
    assert sorted(os.listdir(runs[which])) == before
    assert set(os.listdir()) <= {"x.npy"}


@pytest.mark.slow
@settings(max_examples=60)
@given(which=st.sampled_from(range(len(RECIPES))), data=st.data())
def test_evaluation(runs: list[str], which: int, data: st.DataObject) -> None:
    config = data.draw(changed(EVALUATION))
    which_weights = data.draw(st.sampled_from([[], ["--checkpoint", "last"], ["--checkpoint", "2"]]))
    run(["evaluate", runs[which], *which_weights, *(f"{key}={flat(value)}" for key, value in config.items())])


ANY = st.one_of(
    st.sampled_from(
        [*COMMANDS, *REGISTRIES, *["--out", "--plugin", "--help", "--version", "--seeds", "-n", "--", "-"]]
    ),
    st.sampled_from(
        ["nowhere", ".", "/", "/dev/null", "x.py", "r.yaml", "path", "grid", "coupling", "linear", "ot"]
    ),
    NAMES,
    TEXTS,
)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.sampled_from(sorted({*COMMANDS} - {"check"})), st.lists(ANY, max_size=4))
def test_command_lines(command: str, words: list[str]) -> None:
    if command == "reproduce":  # a paper's recipe would train for minutes
        words = [f"{word}?" for word in words]
    run([command, *words])


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.sampled_from(["path", "grid", "schedule", "times", "paths", "x"]), st.one_of(NAMES, TEXTS), OVERRIDES
)
def test_checks(kind: str, name: str, override: str) -> None:
    run(["check", kind, name, override], 1)
