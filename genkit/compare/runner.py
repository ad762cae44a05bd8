"""A comparison: arms from one recipe, trained in turn, evaluated alike, never twice.

recipe with `arms` ── one Recipe an arm and seed ── train ── evaluate ── report.json, table.md, report.html
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from genkit.compare.evaluate import (
    SHOWN_POINTS,
    SHOWN_ROWS,
    SHOWN_TEXTS,
    EvaluationOptions,
    RunScorer,
    evaluate,
    samplers,
    showing,
)
from genkit.data.base import Dataset
from genkit.errors import GenkitError, choose, within
from genkit.files import (
    check_links,
    ending,
    free_name,
    temporary_of,
    write_atomically,
    write_json,
)
from genkit.guidance import build_guidance
from genkit.metrics import Judge, in_turn
from genkit.metrics.extractor import pinned, pinned_hash
from genkit.objectives import Objective
from genkit.particles.base import has_energy
from genkit.processes import HOLDER, locked, meet, rank
from genkit.randomness import keyed_generator
from genkit.recipe import (
    KEYS,
    SAMPLERS,
    Recipe,
    Run,
    check_guide,
    check_plugins,
    load,
    read_environment,
    read_yaml,
    seed_of,
    taken,
    train,
)
from genkit.registry import plugins_behind, resolve_options
from genkit.solvers import SOLVERS
from genkit.tensors import tensors_hash
from genkit.training.callbacks import read_rows
from genkit.training.machine import sources
from genkit.types import DataSpec

# What a comparison itself puts into its folder, beside those of its arms.
OWN_FILES = ("figures", "stale", "report.html", "report.json", "table.md", "data.safetensors")


class Listener(Protocol):
    """Told what is going on; the command line shows it as progress bars."""

    def training(self, arm: str, step: int, steps: int, loss: float) -> None: ...

    def message(self, arm: str, text: str) -> None: ...


@dataclass(frozen=True)
class Comparison:
    """The arms of a comparison by name, and how they are evaluated. `shared` is what all have in common."""

    name: str
    shared: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    evaluation: dict[str, Any]
    source: str

    @classmethod
    def load(
        cls, path: str | Path, overrides: Iterable[str] = (), *, plugins: Iterable[str] = ()
    ) -> Comparison:
        """Raises GenkitError for anything that is not a comparison whose arms can all be built."""
        config, source = read_yaml(path, overrides), str(path)
        check_plugins(config, plugins, source)
        config.pop("plugins", None)  # an arm's recipe names those that it uses
        arms, given = config.pop("arms", None), config.pop("evaluation", None) or {}
        if not isinstance(arms, dict) or not arms:
            raise GenkitError(f"{source}: a comparison needs `arms`, a mapping of names to recipes")
        for arm, changes in arms.items():
            if not isinstance(changes, dict):
                raise GenkitError(f"{source}: arms.{arm} must be a mapping of sections, not {changes!r}")
            if not free_name(arm) or arm in OWN_FILES or re.search(r"-seed\d+$", arm):
                raise GenkitError(f"{source}: '{arm}' cannot be the name of an arm: it becomes a folder")
        for key in config:
            if key not in KEYS:
                raise GenkitError(f"{source}: {choose(key, (*KEYS, 'arms', 'evaluation'), 'section')}")
        if not isinstance(given, Mapping):
            raise GenkitError(f"{source}: evaluation must be a mapping of options, not {given!r}")
        evaluation = resolve_options(EvaluationOptions, given, f"{source}: evaluation")
        name = str(config.get("name") or Path(path).stem)
        if not free_name(name):
            raise GenkitError(f"{source}: '{name}' cannot be a name: it becomes a folder")
        comparison = cls(name, config, arms, evaluation, source)
        comparison.options()
        comparison.check_names()
        comparison.ordered()
        return comparison

    def recipe(self, arm: str, seed: int) -> Recipe:
        """An arm's recipe: the shared sections with the arm's laid over them; its objective stands alone. Of the shared
        `sampling` it has what it can take."""
        config = copy.deepcopy(self.shared)
        source = f"{self.source}: arms.{arm}"
        if isinstance(config.get("sampling"), Mapping):
            with within(f"{source}: sampling"):
                config["sampling"] = taken(
                    config["sampling"], self.arms[arm].get("objective", config.get("objective"))
                )
        for section, value in self.arms[arm].items():
            if (
                isinstance(value, dict)
                and isinstance(config.get(section), dict)
                and section != "objective"
                and "name" not in value
            ):
                config[section] |= value
            else:
                config[section] = value
        config |= {"name": arm, "seed": seed_of(config, source) + seed}
        return Recipe.resolve(config, source)

    def ordered(self) -> list[str]:
        """The arms, teachers before their students. Raises GenkitError for a circle."""
        teachers = {arm: self.recipe(arm, 0).teacher for arm in self.arms}
        order: list[str] = []
        while waiting := [arm for arm in self.arms if arm not in order]:
            ready = [arm for arm in waiting if teachers[arm] not in waiting]
            if not ready:
                raise GenkitError(f"{self.source}: the arms {', '.join(waiting)} are each other's teachers")
            order += ready
        return order

    def check_names(self) -> None:
        """Raises GenkitError for a teacher or a scorer that is neither an arm nor a folder, and for unknown arms."""
        options = self.options()
        models = {f"arms.{arm}": self.recipe(arm, 0).teacher for arm in self.arms}
        for where, name in {**models, "evaluation: scorer": options.scorer}.items():
            if name is not None and name not in self.arms and not Path(name).is_dir():
                raise GenkitError(f"{self.source}: {where}: {choose(name, self.arms, 'arm or run folder')}")
        for key in ("unmaskers_on", "control_on"):
            for arm in getattr(options, key) or ():
                if arm not in self.arms:
                    raise GenkitError(f"{self.source}: evaluation: {key}: {choose(arm, self.arms, 'arm')}")

    def options(self) -> EvaluationOptions:
        """Raises GenkitError for values that cannot be."""
        with within(self.source):
            return EvaluationOptions(**self.evaluation)

    def dataset(self) -> Dataset:
        """The data of all arms. Raises GenkitError where they have not one data set in common."""
        first, *others = (self.recipe(arm, 0) for arm in self.arms)
        if any(other.config["data"] != first.config["data"] for other in others):
            raise GenkitError(f"{self.source}: all arms of a comparison train on the same data")
        return first.dataset()

    def check(self) -> dict[str, Run]:
        """Builds every arm without weights, and loads teachers and a scorer that are run folders, which it returns.

        What cannot be built, taught or evaluated is known before anything is trained.
        """
        dataset, options = self.dataset(), self.options()
        spec = dataset.spec
        options.judge(dataset)
        objectives = {arm: self._built(self.recipe(arm, 0), spec, options.on(arm)) for arm in self.arms}
        folders: dict[str, Run] = {}

        def named(name: str) -> Objective:
            """That of an arm, else of a run folder."""
            if name in objectives:
                return objectives[name]
            if name not in folders:
                folders[name] = load(name)
            return folders[name].objective

        for arm, objective in objectives.items():
            teacher = self.recipe(arm, 0).teacher
            model = None if teacher is None else named(teacher)
            with within(f"{self.source}: arms.{arm}"):
                objective.check_teacher(model)
        if options.scorer is not None:
            model = named(options.scorer)
            with within(self.source):
                options.check_scorer(model, spec)
        return folders

    def _built(self, recipe: Recipe, spec: DataSpec, options: EvaluationOptions) -> Objective:
        """An arm without weights, if it can be built, sampled and guided."""
        objective = recipe.check(spec)
        if not objective.generates:
            name = recipe.config["objective"]["name"]
            raise GenkitError(
                f"{recipe.source}: the objective '{name}' makes no samples to compare: train it by itself"
            )
        with within(recipe.source):
            # its own guidance is checked already
            guidance = build_guidance(1.0 if options.guidance is None else options.guidance)
            if objective.conditional or guidance.by_model:
                objective.check_guidance(guidance)
                check_guide(guidance, recipe.config, "evaluation")
            if objective.samplers is SOLVERS:
                objective.check_sampler(SOLVERS.build(options.of(recipe, objective).solver))
                if options.likelihood_rows and objective.likelihood is not None:
                    objective.check_sampler(SOLVERS.build(options.likelihood))
            for control in options.controls() if has_energy(objective) else ():
                control.check(objective)
        return objective


def compare(
    comparison: Comparison,
    out: Path,
    *,
    seeds: int = 1,
    listener: Listener | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Trains and evaluates (on `device`) what is not there yet, and returns the report's content.

    The caller holds `out` (`locked`) until the report is written: another comparison would move its arms.
    An arm whose recipe, data or teacher has changed is put aside under `out`/stale, never mistaken for the
    new one. Raises GenkitError for bad input, before any training.
    """
    if seeds < 1:
        raise GenkitError(f"--seeds must be at least 1, not {seeds}")
    if out.is_dir():
        check_links(out)
    folders = comparison.check()
    options, dataset = comparison.options(), comparison.dataset()
    runs: dict[tuple[str, int], Run] = {}
    teachers: dict[tuple[str, int], Run | None] = {}
    for seed, arm in itertools.product(range(seeds), comparison.ordered()):
        recipe = comparison.recipe(arm, seed)
        name = recipe.teacher
        teacher = None if name is None else folders.get(name) or runs[name, seed]
        teachers[arm, seed] = teacher
        runs[arm, seed] = train_arm(
            recipe, out / folder_name(arm, seed), teacher, listener, runs.values()
        ).to(device)

    scorer = None  # one for all seeds, so that they are judged alike
    if options.scorer is not None:
        scorer = RunScorer((folders.get(options.scorer) or runs[options.scorer, 0]).to(device), options)
    judge = options.judge(dataset, scorer)
    arms: dict[str, Any] = {arm: {"runs": []} for arm in comparison.arms}
    for (arm, seed), run in runs.items():
        figures = evaluated(run, options.on(arm), listener, judge=judge)
        figures.pop("floor", None)  # the same for all arms
        spent = cost(run, teachers[arm, seed])
        arms[arm] |= about_arm(run)
        arms[arm]["runs"].append({"seed": seed, **spent, "curve": curve(run), **figures})

    first = next((run for run in runs.values() if run.objective.source), next(iter(runs.values())))
    texts = save_data(first, out, options)
    return {
        "name": comparison.name,
        "data": {**about_data(dataset), "in_turn": classes_in_turn(judge), "texts": texts},
        "evaluation": {
            **dataclasses.asdict(options),
            **names_of_samplers(runs.values(), options),
            "guidance": guidance_of(runs.values(), options),
            "samples": judge.count,
            "extractor": pinned(dataset.spec),
            "extractor_hash": pinned_hash(dataset.spec),
        },
        "metrics": judge.about(),
        "floor": judge.floors(),
        "machine": {key: first.environment.get(key) for key in ("device", "threads", "torch")},
        "arms": arms,
    }


def about_data(dataset: Dataset) -> dict[str, Any]:
    """What a report says of the data."""
    spec = dataset.spec
    return {
        "name": spec.name,
        "hash": dataset.hash,
        "shape": list(spec.shape),
        "levels": spec.levels,
        "classes": spec.classes,
        "condition": spec.condition,
        "class_names": list(spec.class_names),
        "text": spec.tokenizer.partition(":")[0],
        "characters": spec.characters,
        "rate": spec.rate,
        "tasks": list(dataset.tasks),
        "train": len(dataset.split("train")),
        "test": len(dataset.split("test")),
    }


def about_arm(run: Run) -> dict[str, Any]:
    """What a report says of an arm whose run this is, whatever its seed."""
    objective = run.recipe.config["objective"]
    return {
        "objective": objective["name"],
        "coupling": (objective.get("coupling") or {}).get("name"),
        "teacher": run.recipe.teacher,
        "conditional": run.objective.conditional,
    }


def names_of_samplers(runs: Iterable[Run], options: EvaluationOptions) -> dict[str, str | None]:
    """The solvers, unmaskers and inverters that some run is sampled with, by kind; None for none."""
    names: dict[str, dict[str, None]] = {kind: {} for kind in SAMPLERS}
    for run in runs:
        if (registry := run.objective.samplers) is not None:
            _, sampler = samplers(run, options)[0]
            names[registry.kind][registry.name_of(sampler)] = None
    return {kind: ", ".join(found) or None for kind, found in names.items()}


def guidance_of(runs: Iterable[Run], options: EvaluationOptions) -> Any:
    """The guidance that the runs are sampled with; where they have several, these in words."""
    found: list[Any] = []
    for run in runs:
        if (guidance := options.of(run.recipe, run.objective).guidance) not in found:
            found.append(guidance)
    return found[0] if len(found) == 1 else ", ".join(map(str, found))


def folder_name(arm: str, seed: int) -> str:
    return arm if seed == 0 else f"{arm}-seed{seed}"


def train_arm(
    recipe: Recipe,
    folder: Path,
    teacher: Run | None,
    listener: Listener | None,
    others: Iterable[Run] = (),
) -> Run:
    """The trained arm: from the folder if it holds just this one, or from that of another arm that differs in how it is
    sampled alone, else trained; another run in its folder is put aside. Of several processes the first arranges the
    folders, and the others wait."""
    fingerprint = recipe.fingerprint(recipe.dataset().hash, teacher.hash if teacher else None)
    training = recipe.config["training"]  # what is kept beside the weights too
    alike = (run for run in others if run.recipe.config["training"] == training)
    twin = next((run for run in alike if run.environment.get("fingerprint") == fingerprint), None)
    if rank() == 0:
        done = arrange(recipe, folder, fingerprint, twin)
        if listener and done:
            listener.message(folder.name, done)
    meet()
    report = partial(listener.training, folder.name) if listener else None
    return train(recipe, folder, teacher=teacher, report=report)


def arrange(recipe: Recipe, folder: Path, fingerprint: str, twin: Run | None) -> str | None:
    """Leaves in the folder of an arm its own run, what there is of it, and says what was done.

    twin: a run with the same weights. Raises GenkitError where another run is there that a process still trains.
    """
    held, done = read_environment(folder), None
    if held and held.get("fingerprint") != fingerprint:
        stale = folder.parent / "stale"
        stale.mkdir(parents=True, exist_ok=True)
        names = (f"{folder.name}-{str(held.get('fingerprint'))[:8]}-{i}" for i in itertools.count(1))
        aside = next(stale / name for name in names if not (stale / name).exists())
        with locked(folder):
            (folder / HOLDER).unlink()  # nobody holds what is put aside
            folder.rename(aside)
        held, done = {}, f"was of another recipe: moved to {aside}"
    if twin and not held:
        copy_run(twin.folder, folder)
        held = read_environment(folder)
    if held.get("finished"):
        done = f"trained as {twin.name}" if twin else "already trained"
    return done


def copy_run(source: Path, folder: Path) -> None:
    """A finished run in another folder."""
    aside = temporary_of(folder)
    shutil.rmtree(aside, ignore_errors=True)  # of a process of the same number that was killed
    aside.mkdir(parents=True)
    for name in ("recipe.yaml", "environment.json", "metrics.csv", "model.safetensors"):
        shutil.copyfile(source / name, aside / name)
    for name in ("checkpoints", "snapshots"):
        if (source / name).is_dir():
            shutil.copytree(source / name, aside / name)
    aside.rename(folder)


def cost(run: Run, teacher: Run | None) -> dict[str, Any]:
    """What a run, its setup and its teacher took: parameters, steps, seconds, tokens."""
    environment, of_teacher = run.environment, teacher.environment if teacher else {}
    return {
        "folder": run.name,
        **{key: environment[key] for key in ("steps", "parameters", "backbone_parameters")},
        "train": {
            "seconds": environment["seconds"],
            "tokens": environment["tokens"],
            "setup_seconds": environment.get("setup_seconds", 0.0),
            "setup_tokens": environment.get("setup_tokens", 0),
            "teacher_seconds": of_teacher.get("seconds", 0.0) + of_teacher.get("setup_seconds", 0.0),
            "teacher_tokens": of_teacher.get("tokens", 0) + of_teacher.get("setup_tokens", 0),
        },
    }


def evaluated(
    run: Run,
    options: EvaluationOptions,
    listener: Listener | None = None,
    *,
    judge: Judge | None = None,
    unkept: Callable[[GenkitError], None] | None = None,
) -> dict[str, Any]:
    """`evaluate`, from the run folder where it was done before for the same weights, data, options and code.

    Its evaluation.json and samples.safetensors, of a checkpoint evaluation_best.json and the like, each hold the key of
    what they were made from. unkept: told why they could not be written, which else is raised.
    """
    judge = judge or options.judge(run.dataset, options.scorer_of(run))
    if rank() == 0 and run.environment.get("data_hash", run.dataset.hash) != run.dataset.hash:
        warnings.warn(
            f"the data of {run.folder / 'recipe.yaml'} have changed since {run.name} was trained: it is measured "
            "against what they are now",
            stacklevel=2,
        )
    options = options.of(run.recipe, run.objective)
    plain = json.loads(json.dumps(dataclasses.asdict(options), default=repr))
    plain["scorer"] = judge.scorer.hash if judge.scorer else None  # its hash says who it is
    if (guide := run.guidance(options.guidance).guide) is not None:
        plain["guide"] = tensors_hash(guide.state_dict())
    extractor = pinned_hash(run.spec)
    plugins = plugins_behind({*judge.names, *names_in(plain)})
    made_from = [run.hash, run.dataset.hash, plain, extractor, judge.names, plugins, sources()]
    for spec in (run.dataset.resized(size).spec for size in options.sizes):
        made_from.append(pinned_hash(spec))
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    of = "" if run.checkpoint is None else f"_{run.checkpoint}"
    path, samples = run.folder / f"evaluation{of}.json", run.folder / f"samples{of}.safetensors"
    kept = kept_evaluation(path, samples, key)
    if kept is not None:
        return kept
    result, shown = evaluate(
        run, options, judge, progress=lambda text: listener.message(run.name, text) if listener else None
    )
    if rank() == 0:
        kept = {"key": key, "options": plain, "extractor_hash": extractor, "result": result}
        try:
            write_atomically(samples, lambda file: file.write(save(shown, metadata={"key": key})))
            write_json(path, {**kept, "hash": result_hash(json.loads(json.dumps(result)))})
        except GenkitError as error:
            if unkept is None:
                raise
            unkept(error)
    return result


def kept_evaluation(path: Path, samples: Path, key: str) -> dict[str, Any] | None:
    """The result in `path`, if both files are whole and were made from what `key` stands for."""
    try:
        kept = json.loads(ending(path).read_text())
        with safe_open(ending(samples), framework="pt") as file:
            keys = {kept["key"], (file.metadata() or {}).get("key")}
        result = kept["result"]
        whole = kept["hash"] == result_hash(result) and all(figures(point) for point in result["points"])
        return result if keys == {key} and whole else None
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        return None


def figures(point: Mapping[str, Any]) -> bool:
    """Whether it is what `evaluate` measures at one number of steps: what is no label is no text."""
    return "nfe" in point and not any(
        isinstance(value, str) for name, value in point.items() if name not in ("steps", "setting")
    )


def result_hash(result: Any) -> str:
    """SHA-256 (hex) of the figures of an evaluation, by which a damaged one shows."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def names_in(options: Any) -> set[str]:
    """Every `name` of solvers, grids and the like in plain options, and what a list of them names."""
    if isinstance(options, list):
        return {
            name for entry in options for name in ({entry} if isinstance(entry, str) else names_in(entry))
        }
    if not isinstance(options, Mapping):
        return set()
    found = {name for value in options.values() for name in names_in(value)}
    return found | ({options["name"]} if "name" in options else set())


def curve(run: Run) -> list[list[float]]:
    """[step, loss] of metrics.csv; of distilled energies the loss of regression, which compares with the others'."""
    path = run.folder / "metrics.csv"
    rows = [(row["step"], row.get("regression") or row.get("loss")) for row in read_rows(path)]
    try:
        return [[int(step), float(loss)] for step, loss in rows if loss]
    except ValueError as error:
        raise GenkitError(f"{path} is corrupt: {error}; remove it") from None


def classes_in_turn(judge: Judge) -> bool:
    """Whether the class of sample i is i % classes, of all that are shown."""
    classes, y = judge.dataset.spec.classes, judge.conditions
    if classes is None or y is None:
        return False
    return torch.equal(y[:SHOWN_ROWS], torch.arange(len(y))[:SHOWN_ROWS] % classes)


def save_data(run: Run, out: Path, options: EvaluationOptions) -> list[str] | None:
    """Keeps test rows to show beside samples, by class in turn, and of 2-D data points of the source; returns texts."""
    split = run.dataset.split("test")
    x, y = split.take(torch.arange(min(SHOWN_POINTS, len(split))))
    if y is not None and run.spec.classes:
        x = x[in_turn(y)]
    elif run.spec.text and not run.dataset.tasks:
        x = x[:: max(1, len(x) // SHOWN_TEXTS)]  # of all of the text, not of its beginning
    content, texts = showing(run, x, "test")
    if run.objective.source is not None and run.spec.shape == (2,) and not run.spec.levels:
        content["source"] = run.objective.source.sample(x, generator=keyed_generator(options.seed, "source"))
    content = {name: value.contiguous() for name, value in content.items()}
    if rank() == 0:
        write_atomically(out / "data.safetensors", lambda file: file.write(save(content)))
    return texts.get("test")
