"""A comparison: arms from one recipe, trained in turn, evaluated alike, never twice.

recipe with `arms` ── one Recipe an arm and seed ── train ── evaluate ── report.json, table.md, report.html
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from genkit.compare.evaluate import EvaluationOptions, evaluate, extractor_hash, floors
from genkit.data.base import Dataset
from genkit.errors import GenkitError, choose
from genkit.recipe import (
    KEYS,
    Recipe,
    Run,
    check_plugins,
    load,
    read_environment,
    read_yaml,
    train,
    write_json,
)
from genkit.registry import resolve_options


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
        arms, given = config.pop("arms", None), config.pop("evaluation", None) or {}
        if not isinstance(arms, dict) or not arms:
            raise GenkitError(f"{source}: a comparison needs `arms`, a mapping of names to recipes")
        for arm, changes in arms.items():
            if not isinstance(changes, dict):
                raise GenkitError(f"{source}: arms.{arm} must be a mapping of sections, not {changes!r}")
            if not isinstance(arm, str) or Path(arm).name != arm or arm.startswith("."):
                raise GenkitError(f"{source}: '{arm}' cannot be the name of an arm: it becomes a folder")
        for key in config:
            if key not in KEYS:
                raise GenkitError(f"{source}: {choose(key, (*KEYS, 'arms', 'evaluation'), 'section')}")
        if not isinstance(given, Mapping):
            raise GenkitError(f"{source}: evaluation must be a mapping of options, not {given!r}")
        evaluation = resolve_options(EvaluationOptions, given, f"{source}: evaluation")
        EvaluationOptions(**evaluation)
        comparison = cls(str(config.get("name") or Path(path).stem), config, arms, evaluation, source)
        comparison.ordered()
        return comparison

    def recipe(self, arm: str, seed: int) -> Recipe:
        """An arm's recipe: the shared sections with the arm's laid over them; its objective stands alone."""
        config = copy.deepcopy(self.shared)
        for section, value in self.arms[arm].items():
            if isinstance(value, dict) and isinstance(config.get(section), dict) and section != "objective":
                config[section] |= value
            else:
                config[section] = value
        config |= {"name": arm, "seed": config.get("seed", 0) + seed}
        return Recipe.resolve(config, f"{self.source}: arms.{arm}")

    def ordered(self) -> list[str]:
        """The arms, teachers before their students. Raises GenkitError for a circle and an unknown teacher."""
        teachers = {arm: self.recipe(arm, 0).teacher for arm in self.arms}
        order: list[str] = []
        while waiting := [arm for arm in self.arms if arm not in order]:
            ready = [arm for arm in waiting if teachers[arm] not in waiting]
            if not ready:
                raise GenkitError(f"{self.source}: the arms {', '.join(waiting)} are each other's teachers")
            order += ready
        for arm, teacher in teachers.items():
            if teacher is not None and teacher not in self.arms and not Path(teacher).is_dir():
                raise GenkitError(
                    f"{self.source}: arms.{arm}: {choose(teacher, self.arms, 'arm or run folder')}"
                )
        return order

    def check(self) -> None:
        """Builds every arm without weights: what cannot be built is known before anything is trained."""
        datasets: dict[str, Dataset] = {}
        for arm in self.arms:
            recipe = self.recipe(arm, 0)
            key = json.dumps(recipe.config["data"], sort_keys=True)
            if key not in datasets:
                datasets[key] = recipe.dataset()
            recipe.check(datasets[key].spec)
        if len(datasets) != 1:
            raise GenkitError(f"{self.source}: all arms of a comparison train on the same data")


def compare(
    comparison: Comparison, out: Path, *, seeds: int = 1, listener: Listener | None = None
) -> dict[str, Any]:
    """Trains and evaluates what is not there yet, and returns the report's content.

    An arm whose recipe, data or teacher has changed is put aside under `out`/stale, never mistaken for the
    new one. Raises GenkitError for bad input, before any training.
    """
    if seeds < 1:
        raise GenkitError(f"--seeds must be at least 1, not {seeds}")
    comparison.check()
    options = EvaluationOptions(**comparison.evaluation)
    order = comparison.ordered()
    runs: dict[tuple[str, int], Run] = {}
    for seed in range(seeds):
        for arm in order:
            recipe = comparison.recipe(arm, seed)
            teacher = None
            if recipe.teacher is not None:
                teacher = (
                    runs[recipe.teacher, seed] if recipe.teacher in comparison.arms else load(recipe.teacher)
                )
            runs[arm, seed] = train_arm(recipe, out / folder_name(arm, seed), teacher, listener)

    dataset = runs[order[0], 0].dataset
    arms: dict[str, Any] = {}
    for arm in comparison.arms:
        recipe = comparison.recipe(arm, 0)
        objective = recipe.config["objective"]
        arms[arm] = {
            "objective": objective["name"],
            "coupling": (objective.get("coupling") or {}).get("name"),
            "teacher": recipe.teacher,
            "runs": [
                arm_result(
                    runs[arm, seed], seed, runs.get((recipe.teacher or "", seed)), options, dataset, listener
                )
                for seed in range(seeds)
            ],
        }
    spec = dataset.spec
    nfe = sorted({p["nfe"] for arm in arms.values() for r in arm["runs"] for p in r["points"] if p["steps"]})
    if not spec.image:
        save_data(runs[order[0], 0], out, options)
    return {
        "name": comparison.name,
        "data": {
            "name": spec.name,
            "hash": dataset.hash,
            "shape": list(spec.shape),
            "levels": spec.levels,
            "classes": spec.classes,
            "class_names": list(spec.class_names),
            "train": len(dataset.split("train")),
            "test": len(dataset.split("test")),
        },
        "evaluation": {
            **comparison.evaluation,
            "samples": options.count(dataset),
            "solver": solver_name(comparison.evaluation["solver"]),
            "nfe": nfe,
            "extractor": spec.name if extractor_hash(spec) else None,
            "extractor_hash": extractor_hash(spec),
        },
        "floor": floors(dataset, options),
        "machine": {k: runs[order[0], 0].environment.get(k) for k in ("device", "threads", "torch")},
        "arms": arms,
    }


def solver_name(solver: Any) -> str:
    return solver["name"] if isinstance(solver, Mapping) else str(solver)


def folder_name(arm: str, seed: int) -> str:
    return arm if seed == 0 else f"{arm}-seed{seed}"


def train_arm(recipe: Recipe, folder: Path, teacher: Run | None, listener: Listener | None) -> Run:
    """The trained arm: from the folder if it holds just this one, else trained; another one is put aside."""
    held = read_environment(folder)
    fingerprint = recipe.fingerprint(recipe.dataset().hash, teacher.hash if teacher else None)
    if held and held.get("fingerprint") != fingerprint:
        aside = folder.parent / "stale" / f"{folder.name}-{str(held.get('fingerprint'))[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        if aside.exists():
            aside = aside.with_name(f"{aside.name}-{sum(1 for _ in aside.parent.iterdir())}")
        folder.rename(aside)
        if listener:
            listener.message(folder.name, f"was of another recipe: moved to {aside}")
    report = None
    if listener:
        report = listener_report(listener, folder.name)
        if held.get("fingerprint") == fingerprint and held.get("finished"):
            listener.message(folder.name, "already trained")
    return train(recipe, folder, teacher=teacher, report=report)


def listener_report(listener: Listener, arm: str) -> Callable[[int, int, float], None]:
    return lambda step, steps, loss: listener.training(arm, step, steps, loss)


def arm_result(
    run: Run,
    seed: int,
    teacher: Run | None,
    options: EvaluationOptions,
    dataset: Dataset,
    listener: Listener | None,
) -> dict[str, Any]:
    """Evaluation and cost of one run; the evaluation is kept in evaluation.json and taken from there."""
    environment = run.environment
    of_teacher = teacher.environment if teacher else {}
    return {
        "seed": seed,
        "folder": run.name,
        **{key: environment[key] for key in ("steps", "parameters", "backbone_parameters")},
        "train": {
            "seconds": environment["seconds"],
            "tokens": environment["tokens"],
            "teacher_seconds": of_teacher.get("seconds", 0.0),
            "teacher_tokens": of_teacher.get("tokens", 0),
        },
        "curve": curve(run),
        **evaluated(run, options, listener),
    }


def evaluated(run: Run, options: EvaluationOptions, listener: Listener | None = None) -> dict[str, Any]:
    """`evaluate`, from the run folder where it was done for the same weights and options."""
    plain = json.loads(json.dumps(dataclasses.asdict(options), default=repr))
    extractor = extractor_hash(run.spec)
    key = hashlib.sha256(json.dumps([run.hash, plain, extractor], sort_keys=True).encode()).hexdigest()
    path = run.folder / "evaluation.json"
    if path.is_file() and (run.folder / "samples.safetensors").is_file():
        try:
            kept = json.loads(path.read_text())
        except ValueError:
            kept = {}
        if kept.get("key") == key:
            return kept["result"]
    result = evaluate(
        run, options, progress=lambda text: listener.message(run.name, text) if listener else None
    )
    write_json(path, {"key": key, "options": plain, "extractor_hash": extractor, "result": result})
    return result


def curve(run: Run) -> list[list[float]]:
    """[step, loss] of metrics.csv."""
    import csv

    with (run.folder / "metrics.csv").open(newline="") as file:
        return [[int(row["step"]), float(row["loss"])] for row in csv.DictReader(file) if row["loss"]]


def save_data(run: Run, out: Path, options: EvaluationOptions) -> None:
    """Points of the data and of the source, for the plots of 2-D comparisons."""
    from safetensors.torch import save

    from genkit.compare.evaluate import SHOWN_POINTS, rows
    from genkit.data.randomness import keyed_generator
    from genkit.training.callbacks import write_atomically

    test = rows(run.dataset, "test", SHOWN_POINTS)
    source = run.objective.source.sample(test, generator=keyed_generator(options.seed, "source"))
    content = save({"test": test.contiguous(), "source": torch.as_tensor(source).contiguous()})
    write_atomically(out / "data.safetensors", lambda file: file.write(content))
