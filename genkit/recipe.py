"""Recipes and runs: YAML in, a trained model in a folder out.

    recipe.yaml ── Recipe.load ── checked, defaults filled in ── train ── runs/NAME/ ── load ── Run

A run folder: recipe.yaml (resolved), model.safetensors (averaged weights), checkpoints/last.ckpt,
metrics.csv, environment.json, and snapshots/step_N.safetensors where training keeps some. Nothing in it can execute
code.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, distributed

from genkit.backbone import ModelOptions
from genkit.data.base import DATASETS, Codec, Dataset, Shown
from genkit.errors import GenkitError, a, choose, stopped_by, within
from genkit.files import free_name, write_json, write_text
from genkit.guidance import GUIDANCES, Guidance, build_guidance
from genkit.inversion import INVERTERS, Inverter
from genkit.objectives import OBJECTIVES, Objective
from genkit.objectives.base import SAME
from genkit.particles import Target
from genkit.particles.expression import build_target
from genkit.processes import locked, meet, parts, rank
from genkit.randomness import RankGenerator, keyed_generator
from genkit.registry import (
    how_to_load,
    load_installed,
    load_plugin,
    plugin_loaded,
    plugins_behind,
    resolve_options,
)
from genkit.solvers import SOLVERS, Solver
from genkit.tensors import read_tensors, tensors_hash, write_tensors
from genkit.training import TrainerOptions, TrainingOptions, check_training, fit
from genkit.training.callbacks import Report
from genkit.training.machine import made_with
from genkit.training.weights import check_snapshots, find_weights, goes_on, kept_weights, read_weights
from genkit.types import DataSpec, LogProb, Sample
from genkit.unmasking import UNMASKERS, Unmasker

Sampler = Solver | Unmasker | Inverter | str | Mapping[str, Any] | None


@dataclass(frozen=True)
class SamplingOptions:
    """How a run is sampled when nothing else is said: a solver (flows of pairs), an unmasker (discrete models) or an
    inverter (normalizing flows), and guidance (a scale, or more)."""

    solver: Solver | str | None = None
    unmasker: Unmasker | str | None = None
    inverter: Inverter | str | None = None
    guidance: Guidance | str | float = 1.0

    def __post_init__(self) -> None:  # a wrong value must show before training, not after
        if self.solver is not None:
            SOLVERS.build(self.solver)
        if self.unmasker is not None:
            UNMASKERS.build(self.unmasker)
        if self.inverter is not None:
            INVERTERS.build(self.inverter)
        build_guidance(self.guidance)


REFERENCE = re.compile(r"\$\{(\w[\w.\[\]-]*)\}")
SAMPLERS = ("solver", "unmasker", "inverter")  # in the section sampling: the kind that the objective takes
SECTIONS: dict[str, type] = {
    "model": ModelOptions,
    "training": TrainingOptions,
    "trainer": TrainerOptions,
    "sampling": SamplingOptions,
}
KEYS = ("name", "seed", "plugins", "data", "objective", "paper", "expected", *SECTIONS)
COSTS = ("steps", "seconds", "tokens", "parameters", "backbone_parameters")  # in environment.json, at the end
SHOWN = 3  # of the differences between two runs
# What does not change the trained weights, and so is not part of a run's fingerprint.
BESIDE = ("name", "plugins", "trainer", "sampling", "paper", "expected")


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file with `key=value` overrides as plain data. Raises GenkitError for what is not that."""
    path = Path(path)
    try:
        config = OmegaConf.load(path)
        check_plain(OmegaConf.to_container(config), str(path))
        plain = override(config, overrides, f"{path}: ")
    except GenkitError:
        raise
    except FileNotFoundError:
        raise GenkitError(f"no such recipe: {path}{_nearest_file(path)}") from None
    except OSError as error:
        raise GenkitError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except OmegaConfBaseException as error:
        raise GenkitError(f"{path}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the YAML reader's own errors, and bytes that are no text
        detail = " ".join(str(error).split())
        raise GenkitError(f"{path} is not a YAML recipe: {detail}") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise GenkitError(f"{path} is not a recipe: its top level must be named sections ({', '.join(KEYS)})")
    return plain


def override(config: Any, overrides: Iterable[str], where: str = "") -> Any:
    """`config` with `key=value` laid over it, as plain data; `${section.key}` stands for another value of it.

    A mapping with a `name` takes the place of what is there, other mappings are laid over it; to set an option of what
    is a name alone makes it a mapping. Raises GenkitError for what is not of that form, what is no plain data, and a
    value that is not there; where: before its message.
    """
    config = OmegaConf.create(config)
    check_plain(OmegaConf.to_container(config))
    check_references(OmegaConf.to_container(config), where)
    for text in overrides:
        key, equals, _ = text.partition("=")
        named = re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+)*", key)  # of other keys OmegaConf loses parts
        if not equals or not named:
            raise GenkitError(f"an override is key=value, such as training.steps=500, not '{text}'")
        try:
            given = OmegaConf.from_dotlist([text])
            check_plain(OmegaConf.to_container(given))
            parts = key.split(".")
            for place in (".".join(parts[:i]) for i in range(1, len(parts))):
                if isinstance(held := OmegaConf.select(config, place), str):
                    OmegaConf.update(config, place, {"name": held}, merge=False)
            for place in _named(OmegaConf.to_container(given)):
                if place.count(".") >= key.count("."):  # of the mapping that is given, not one around a name
                    OmegaConf.update(config, place, None, merge=False)
            config = OmegaConf.merge(config, given)
            check_references(OmegaConf.to_container(config))
        except Exception as error:  # OmegaConf's, and those of the YAML reader for the value
            detail = " ".join(str(error).split())
            raise GenkitError(f"the override '{text}' cannot be applied: {detail}") from None
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise GenkitError(f"{where}{str(error).splitlines()[0]}") from None


def _named(config: Any, place: str = "") -> Iterable[str]:
    """The places of mappings with a `name`, not those within others."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if isinstance(value, Mapping) and "name" in value:
                yield f"{place}{key}"
            else:
                yield from _named(value, f"{place}{key}.")


def check_references(config: Any, where: str = "") -> None:
    """Raises GenkitError for a `${}` that stands for something in which there are others: a small file could grow
    without end. where: before its message."""
    for key in set(REFERENCE.findall(repr(config))):
        found = config
        for part in re.findall(r"[^.\[\]]+", key):
            if isinstance(found, Mapping):
                found = {str(name): value for name, value in found.items()}.get(part)
            elif isinstance(found, list):
                found = found[int(part)] if part.isdecimal() and int(part) < len(found) else found
        if "${" in repr(found):
            raise GenkitError(f"{where}${{{key}}} stands for what has a ${{}} itself: give the value there")


def check_plain(value: Any, where: str = "") -> None:
    """Raises GenkitError unless `value` is numbers, texts, lists and mappings, and refers to nothing but itself.

    OmegaConf's resolvers, such as `${oc.env:HOME}`, take values from elsewhere, or run what some library registered.
    """
    place = f"{where}: " if where else ""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            check_plain(entry, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            check_plain(entry, f"{where}[{i}]")
    elif isinstance(value, str):
        if "\0" in value:
            raise GenkitError(f"{place}a null character")
        if "${" in REFERENCE.sub("", value):
            raise GenkitError(
                f"{place}{value!r} is no ${{section.key}}, and a recipe takes values from nowhere else"
            )
    elif not isinstance(value, (bool, int, float, type(None))):
        raise GenkitError(f"{place}{a(type(value).__name__)} is no number, text, list or mapping")


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    there = [p.name for p in folder.glob("*.y*ml")]
    return f" ({choose(path.name, there, 'file')})" if there else ""


@dataclass(frozen=True)
class Recipe:
    """One model and how it is trained: the resolved config, checked when made."""

    config: dict[str, Any]
    source: str = "recipe"

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        return cls.resolve(read_yaml(path, overrides), str(path))

    @classmethod
    def resolve(cls, config: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Checks every key, name and value, and fills in the defaults. Raises GenkitError."""
        for key in config:
            if key not in KEYS:
                raise GenkitError(f"{source}: {choose(key, KEYS, 'section')}")
        for key in ("data", "objective"):
            if key not in config:
                raise GenkitError(f"{source}: the section '{key}' is missing")
        seed, plugins = seed_of(config, source), plugins_of(config, source)
        name = str(config.get("name") or "")
        if name and not free_name(name):
            raise GenkitError(f"{source}: '{name}' cannot be a name: it becomes a folder")
        resolved: dict[str, Any] = {"name": name, "seed": seed, "plugins": plugins}
        resolved["data"] = DATASETS.resolve(config["data"], f"{source}: data")
        for key, options in SECTIONS.items():
            given = {} if config.get(key) is None else config[key]
            if not isinstance(given, Mapping):
                raise GenkitError(f"{source}: {key} must be a mapping of options, not {given!r}")
            resolved[key] = resolve_options(options, given, f"{source}: {key}")
            with within(source):
                options(**resolved[key])
        resolved["objective"] = OBJECTIVES.resolve(config["objective"], f"{source}: objective")
        sampling = resolved["sampling"]
        given = [kind for kind in SAMPLERS if sampling[kind] is not None]
        check_kinds(resolved["objective"]["name"], given, f"{source}: sampling: ")
        check_guide(build_guidance(sampling["guidance"]), resolved, f"{source}: sampling")
        resolved["plugins"] = sorted({*plugins, *plugins_behind(set(_find(resolved, "name")))})
        resolved |= {key: config[key] for key in ("paper", "expected") if key in config}
        return cls(resolved, source)

    def section(self, name: str) -> Any:
        """A section as its options class."""
        return SECTIONS[name](**self.config[name])

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def teacher(self) -> str | None:
        """The run folder or arm that an option `teacher` of the objective names."""
        found = list(_find(self.config["objective"], "teacher"))
        if len(found) > 1:
            raise GenkitError(f"{self.source}: more than one teacher is named: {', '.join(found)}")
        return found[0] if found else None

    def dataset(self) -> Dataset:
        """The data set; recipes of one process that name the same data share it, while its files are the same."""
        config = self.config["data"]
        files = [value for value in config.values() if isinstance(value, str) and os.path.isfile(value)]
        return _dataset(json.dumps(config, sort_keys=True), *(os.stat(file).st_mtime_ns for file in files))

    def objective(self, spec: DataSpec) -> Objective:
        """The untrained model; backbones of equal seed and size start from equal weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_generator(self.seed, "init").initial_seed())
            return OBJECTIVES.build(self.config["objective"], spec, self.section("model"))

    def check(self, spec: DataSpec) -> Objective:
        """The model without its weights, built so that options that do not fit the data, or each other, are known
        early."""
        with within(self.source):
            with torch.device("meta"):
                objective = self.objective(spec)
            sampling, registry = self.config["sampling"], objective.samplers
            if registry is not None and (chosen := sampling[registry.kind]) is not None:
                objective.check_sampler(registry.build(chosen))
            by_class = objective.conditional or not objective.by_prompt
            objective.check_guidance(build_guidance(sampling["guidance"]), by_class=by_class)
            return objective

    @property
    def of_weights(self) -> dict[str, Any]:
        """What of the recipe the weights are a function of, with the hashes of data, teacher and plug-ins."""
        config = {key: value for key, value in self.config.items() if key not in BESIDE}
        beside = ("checkpoint_", "log_", "snapshots")
        training = config["training"]
        config["training"] = {k: v for k, v in training.items() if not k.startswith(beside)}
        if training["on_bad_step"] == "rollback":  # to the last checkpoint
            makers = ("checkpoint_every", "checkpoint_minutes", "snapshots")
            config["training"] |= {key: training[key] for key in makers}
        config["objective"] = _without(config["objective"], "teacher")  # its hash says who it is
        config["data"] = _without(config["data"], "codec")  # so does that of the data
        return config

    def fingerprint(self, data_hash: str, teacher_hash: str | None = None) -> str:
        """SHA-256 (hex) of what the weights are a function of: recipe, data, teacher, plug-ins that are used."""
        config = self.of_weights
        plugins = plugins_behind(set(_find(config, "name")))
        text = json.dumps([config, data_hash, teacher_hash, plugins], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.config))


def seed_of(config: Mapping[str, Any], source: str) -> int:
    """The seed of a recipe, by default 0. Raises GenkitError for what is none."""
    seed = config.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise GenkitError(f"{source}: seed must be a whole number from 0 up, not {seed!r}")
    return seed


def plugins_of(config: Mapping[str, Any], source: str) -> list[str]:
    """The plug-ins that a recipe names. Raises GenkitError for what is no list of names."""
    plugins = config.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise GenkitError(f"{source}: plugins must be a list of names, not {plugins!r}")
    return plugins


def foreign(objective: str, kinds: Iterable[str]) -> list[str]:
    """Of kinds of samplers those that models of an objective do not take."""
    registry = OBJECTIVES.get(objective).samplers
    return [kind for kind in kinds if registry is None or kind != registry.kind]


def check_kinds(objective: str, kinds: Iterable[str], where: str = "") -> None:
    """Raises GenkitError for kinds of samplers that models of an objective do not take; where: before its message."""
    registry = OBJECTIVES.get(objective).samplers
    takes = "" if registry is None else f"; its {registry.kind} is one of {', '.join(registry.names())}"
    if wrong := foreign(objective, kinds):
        raise GenkitError(
            f"{where}a model of the objective '{objective}' takes no {' and no '.join(wrong)}{takes}"
        )


def taken(sampling: Mapping[str, Any], objective: Any) -> dict[str, Any]:
    """Of options of `sampling` that are meant for several models, those that one of this objective takes: its kind of
    sampler, and guidance where it has something to guide it."""
    options = {"name": objective} if isinstance(objective, str) else objective
    if not isinstance(options, Mapping) or options.get("name") not in OBJECTIVES.names():
        return dict(sampling)  # which another error is about
    kind, others = OBJECTIVES.get(options["name"]), foreign(options["name"], SAMPLERS)
    guidance = build_guidance(sampling.get("guidance", 1.0))
    told = options.get("conditional", True) and options.get("label_dropout", True)
    if kind.predicts not in guidance.of or not (told or guidance.by_model or kind.by_prompt):
        others.append("guidance")
    return {name: value for name, value in sampling.items() if name not in others}


def check_guide(guidance: Guidance, config: Mapping[str, Any], where: str) -> None:
    """Raises GenkitError for guidance by a snapshot that the training of a resolved recipe does not keep."""
    asked, kept = guidance.checkpoint, sorted(config["training"]["snapshots"])
    if not (guidance.active and guidance.by_model):
        return
    if isinstance(asked, str) and not asked.isdecimal():
        names = ["last", *["best"] * (config["training"]["checkpoint_best"] is not None)]
        if asked not in names and not asked.endswith(".safetensors"):
            raise GenkitError(f"{where}: {GUIDANCES.name_of(guidance)}: {choose(asked, names, 'checkpoint')}")
        return
    asked = None if asked is None else int(asked)
    if not kept or (asked is not None and asked not in kept):
        what = "a snapshot" if asked is None else f"the snapshot of step {asked}"
        there = f"keeps {', '.join(map(str, kept))}" if kept else "keeps none"
        raise GenkitError(
            f"{where}: {GUIDANCES.name_of(guidance)} needs {what}, and training.snapshots {there}"
        )


def _without(config: Any, key: str) -> Any:
    if not isinstance(config, Mapping):
        return config
    return {name: _without(value, key) for name, value in config.items() if name != key}


@lru_cache(maxsize=4)
def _dataset(config: str, *changed: int) -> Dataset:
    options = json.loads(config)
    if isinstance(options.get("codec"), str):
        options["codec"] = load_codec(options["codec"])
    return DATASETS.build(options)


def load_codec(folder: str) -> Codec:
    """What data that name a codec are given of its run. Raises GenkitError for none, and for a run of another kind."""
    try:
        run = load(folder)
    except GenkitError as error:
        raise GenkitError(
            f"the data need the codec of sounds in {folder}, which `genkit train "
            f"recipes/papers/trimodal/sound_codec.yaml --out {folder}` makes: {error}"
        ) from None
    model: Any = run.objective
    if not hasattr(model, "codebook"):
        name = run.recipe.config["objective"]["name"]
        raise GenkitError(f"{folder} is no codec of sounds: its objective is '{name}', not 'autoencoder'")
    return Codec(run.spec, model.codebook, model.tokens.length, run.hash, model.encode, model.decode)


def _find(config: Any, key: str) -> Iterable[str]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _find(value, key)


class Run:
    """A trained model with its recipe.

    run.sample(64, steps=4, solver="heun").x     run.log_prob(x, y).value

    checkpoint: the name of the file that its weights come from, such as best or step_200; None for the final ones.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        objective: Objective,
        environment: dict[str, Any],
        checkpoint: str | None = None,
    ) -> None:
        self.folder, self.recipe, self.objective, self.environment = folder, recipe, objective, environment
        self.checkpoint = checkpoint
        self._snapshots: dict[Path, Objective] = {}

    @property
    def name(self) -> str:
        return self.folder.name if self.checkpoint is None else f"{self.folder.name} ({self.checkpoint})"

    @property
    def spec(self) -> DataSpec:
        return self.objective.spec

    @cached_property
    def dataset(self) -> Dataset:
        """Raises GenkitError where it is no longer what the model was trained on: another vocabulary or shape."""
        dataset = self.recipe.dataset()
        theirs, ours = dataclasses.asdict(dataset.spec), dataclasses.asdict(self.spec)
        for key in SAME:
            if theirs[key] != ours[key]:
                what = "vocabulary" if key in ("levels", "tokenizer", "fixed") else key
                raise GenkitError(
                    f"{self.folder} was trained on data of another {what} than '{dataset.spec.name}' has now: "
                    f"the data of {self.folder / 'recipe.yaml'} have changed; restore them, or train again"
                )
        return dataset

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the weights' file, of a checkpoint of its weights: the identity of a teacher."""
        if self.checkpoint is not None:
            return tensors_hash(self.objective.state_dict())
        return hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()

    def to(self, device: torch.device | str) -> Run:
        self.objective.to(device)
        return self

    def sampler(
        self,
        *,
        solver: Sampler = None,
        unmasker: Sampler = None,
        inverter: Sampler = None,
        **options: float | None,
    ) -> Solver | Unmasker | Inverter | None:
        """What to sample with: what is asked for, over the recipe's, over the objective's own. None where there is no
        choice. `options` (steps, temperature, top_p) that are not None are laid over it."""
        registry, name = self.objective.samplers, self.recipe.config["objective"]["name"]
        asked = {"solver": solver, "unmasker": unmasker, "inverter": inverter}
        given = {key: value for key, value in options.items() if value is not None}
        kinds = [kind for kind, value in asked.items() if value is not None]
        check_kinds(name, kinds if registry else [*kinds, *given])
        if registry is None:
            return None
        choices = (asked[registry.kind], self.recipe.config["sampling"][registry.kind])
        chosen = next((one for one in choices if one is not None), self.objective.default_sampler)
        return registry.build(chosen, **given)

    def _log_prob_options(self, asked: bool, **options: Any) -> dict[str, Any]:
        """`options` that are not None. Raises GenkitError where they would have no effect."""
        given = {key: value for key, value in options.items() if value is not None}
        if given and not asked:
            raise GenkitError(
                f"{' and '.join(given)}: of log-probabilities, which are not asked for (--log-prob)"
            )
        if given and self.objective.samplers is not SOLVERS:
            name = self.recipe.config["objective"]["name"]
            raise GenkitError(
                f"a log-probability of the objective '{name}' takes no {' and no '.join(given)}"
            )
        return given

    def guidance(self, guidance: Guidance | str | Mapping[str, Any] | float | None = None) -> Guidance:
        """What is asked for, over the recipe's; a number is the scale of `classifier_free`. With its weaker model, if
        it takes one."""
        built = build_guidance(self.recipe.config["sampling"]["guidance"] if guidance is None else guidance)
        if built.active and built.by_model and built.guide is None:
            built = copy.copy(built)
            built.guide = self.snapshot(built.checkpoint)
        return built

    @property
    def snapshots(self) -> dict[int, Path]:
        """The files of the snapshots that training kept, by step."""
        return {int(name): path for name, path in kept_weights(self.folder).items() if name.isdecimal()}

    def snapshot(self, checkpoint: int | str | None = None) -> Objective:
        """The model with other weights, by their name (see `find_weights`), or (null) those of the first snapshot.

        Raises GenkitError for what is not there, or is of another model.
        """
        checkpoint = next(iter(self.snapshots), None) if checkpoint is None else checkpoint
        if checkpoint is None:
            raise GenkitError(f"{self.folder} has no snapshots, which training.snapshots=[STEP, ...] keeps")
        path = find_weights(self.folder, checkpoint)
        if path not in self._snapshots:
            model = with_weights(self.recipe, self.spec, read_weights(path), path)
            self._snapshots[path] = model.to(self.objective.device)
        return self._snapshots[path]

    def sized(self, resolution: int | None = None, points: int | None = None) -> Objective:
        """The model for images of this side, or clouds of so many points. Raises GenkitError for data and models that
        have no such size."""
        size = points if resolution is None else resolution
        if size is None:
            return self.objective
        word, fits = ("points", self.spec.cloud) if resolution is None else ("resolution", self.spec.image)
        if not fits or (resolution is not None and points is not None):
            raise GenkitError(
                f"{word} is not for '{self.spec.name}', whose samples are {self.spec.shape}: images have a resolution, "
                "clouds of points a number of points"
            )
        return self.objective.resized(size)

    def sample(
        self,
        n: int,
        y: Tensor | Sequence[int] | Sequence[float] | Sequence[Sequence[float]] | float | None = None,
        *,
        solver: Sampler = None,
        unmasker: Sampler = None,
        inverter: Sampler = None,
        steps: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        guidance: Guidance | str | Mapping[str, Any] | float | None = None,
        prompt: str | None = None,
        task: str | None = None,
        resolution: int | None = None,
        points: int | None = None,
        seed: int = 0,
        return_log_prob: bool = False,
        divergence: str | None = None,
        probes: int | None = None,
    ) -> Sample:
        """n samples, decoded to the form in which the data set stores its rows (images: integer levels).

        y: of a conditional model a class, a class for each sample, or None for all classes in turn; of one of K real
            values these, (n, K) for each sample, or None for the conditions of the test rows in turn.
        prompt, task: what is given of each sample, in the words of the data set (see its `given`).
        resolution, points: the side of images, or the number of points of clouds, of models that can change it.
        return_log_prob: with the log-density of each sample as encoded (levels are cells of [-1, 1]), which for levels
            is not that of `Run.log_prob`. divergence, probes: of that of flows of pairs (see `LikelihoodOptions`).
        """
        objective = self.sized(resolution, points)
        sampler = self.sampler(
            solver=solver,
            unmasker=unmasker,
            inverter=inverter,
            steps=steps,
            temperature=temperature,
            top_p=top_p,
        )
        known: dict[str, Any] = self._log_prob_options(return_log_prob, divergence=divergence, probes=probes)
        if prompt is not None or task is not None or self.spec.answer is not None:
            if self.objective.samplers is not UNMASKERS:
                raise GenkitError(
                    f"a model of the objective '{self.recipe.config['objective']['name']}' takes no prompt"
                )
            row = self.dataset.given(prompt or "", task)
            known["given"] = row.expand(max(n, 0), *row.shape)
        return draw(
            objective,
            n,
            self.conditions(max(n, 0), y),
            generator=keyed_generator(seed, "sample", device=self.objective.device),
            sampler=sampler,
            guidance=self.guidance(guidance),
            return_log_prob=return_log_prob,
            **known,
        )

    def conditions(self, n: int, y: Any = None) -> Tensor | None:
        """`y` of `sample` for each of n samples, on the device of the model. Raises GenkitError for the null."""
        model = self.objective
        if y is None and model.classes is not None:
            y = torch.arange(n) % model.classes
        elif y is None and model.condition_dims is not None:
            test = self.dataset.test
            y = test.take(torch.arange(n) % len(test))[1]
        if y is None:
            return None
        y = torch.as_tensor(y, device=model.device, dtype=torch.float32 if model.condition_dims else None)
        if model.condition_dims is not None and y.ndim < 2 and y.numel() == model.condition_dims:
            y = y.expand(n, model.condition_dims)
        elif y.ndim == 0:
            y = y.expand(n)
        if model.condition_dims is not None and bool(y.isnan().any()):
            raise GenkitError(f"conditions of '{self.spec.name}' must be finite")
        if model.condition_dims is None and bool((y < 0).any()):
            raise GenkitError(
                f"class {int(y.min())} is out of range: classes count from 0 to {(self.spec.classes or 0) - 1}"
            )
        return y

    def target(
        self,
        compose: str | None = None,
        *,
        label: int | None = None,
        beta: float = 1.0,
        divide_prior: bool = False,
        controls: Sequence[Mapping[str, Any]] = (),
        models: Mapping[str, Run] | None = None,
    ) -> Target:
        """What particles sample of an energy: FeynmanKac(particles=256).sample(run.target("3 AND 8", beta=2.0)).

        compose: an expression (see `genkit.particles.expression`); null for the class `label`, or for all of the data.
        beta: its power. controls: targets that take it further, such as {name: bounded, low: 0}. models: other runs
        that the expression names. Raises GenkitError for a model without an energy, and for what does not parse.
        """
        others = {name: run.objective for name, run in (models or {}).items()}
        return build_target(
            self.objective,
            compose,
            label=label,
            beta=beta,
            divide_prior=divide_prior,
            controls=controls,
            models=others,
        )

    def show(self, x: Tensor) -> Shown:
        """Samples x (N, *shape) as pictures, texts or sounds."""
        return self.dataset.show(x)

    def log_prob(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        solver: Solver | str | Mapping[str, Any] | None = None,
        steps: int | None = None,
        divergence: str | None = None,
        probes: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> LogProb:
        """Log-probability (B,) in nats of data as the data set stores them; `options` go to the objective.

        solver (by default rk4), steps (of it 32), divergence, probes: of flows of pairs (see `LikelihoodOptions`).
        """
        asked = {"solver": solver, "steps": steps, "divergence": divergence, "probes": probes}
        given = self._log_prob_options(True, **asked)
        paced = {"steps": given.pop("steps")} if "steps" in given else {}
        if (chosen := given.pop("solver", "rk4" if paced else None)) is not None:
            given["sampler"] = SOLVERS.build(chosen, **paced)
        generator = keyed_generator(seed, "log_prob", device=self.objective.device)
        return self.objective.log_prob(x, y, generator=generator, **given, **options)


def draw(
    objective: Objective,
    n: int,
    y: Tensor | None,
    *,
    generator: torch.Generator,
    given: Tensor | None = None,
    **options: Any,
) -> Sample:
    """`Objective.sample`, of which each of several processes does its part of the rows; all have all of them.

    They are the rows of one process, but for rounding, and the tolerance of samplers that choose their steps by the
    rows of a batch: solvers that adapt, Jacobi's iteration; and, with `steps: null` and prompts of several lengths,
    unmaskers of a network that is told the time. nfe is that of the process with the most calls: unmaskers make none
    where no row of a process has a symbol to reveal.
    """
    index, count = parts()
    known: dict[str, Any] = {} if given is None else {"given": given}
    if count == 1 or n < 1:
        return objective.sample(n, y, generator=generator, **known, **options)
    ends = [i * n // count for i in range(count + 1)]
    sizes = [stop - start for start, stop in pairwise(ends)]
    first, size = ends[index], max(1, sizes[index])  # one that has none draws a row that is not taken
    rows = slice(first, first + size)
    own = keyed_generator(generator.initial_seed(), "part", index, device=generator.device)
    found = objective.sample(
        size,
        None if y is None else y[rows],
        generator=RankGenerator.of(generator, own, first, size, n),
        **{key: value[rows] for key, value in known.items()},
        **options,
    )
    log_prob = found.log_prob
    if log_prob is not None:
        stderr, values = (
            None if part is None else joined(part, sizes) for part in (log_prob.stderr, log_prob.count)
        )
        log_prob = LogProb(joined(log_prob.value, sizes), log_prob.kind, stderr, values)
    x = joined(found.x, sizes)
    calls, tokens = joined(
        x.new_tensor([[found.nfe, found.tokens]], dtype=torch.float64), [1] * count
    ).T.tolist()
    of_row = sum(size * each for size, each in zip(sizes, tokens, strict=True)) / n
    return Sample(x, int(max(calls)), of_row, log_prob)


def joined(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, in their order; of the i-th the first sizes[i]."""
    own = rows.new_zeros(max(sizes), *rows.shape[1:])
    own[: len(rows)] = rows
    found = [torch.empty_like(own) for _ in sizes]
    distributed.all_gather(found, own)
    return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])


def load(
    folder: str | Path,
    *,
    plugins: Iterable[str | Path] = (),
    trust_plugins: bool = False,
    checkpoint: int | str | None = None,
    device: str = "cpu",
) -> Run:
    """The run in a folder. Only the plug-ins given here are run, and with `trust_plugins` those that are installed.

    checkpoint: other weights than the final ones, which a run that is not finished has not: the step of a snapshot,
    best, last, or a file .safetensors seen from the run folder. They are averaged ones where there is an average.
    Raises GenkitError for a folder that is no run, weights that are missing or corrupt, or of another model.
    """
    folder = Path(folder)
    loaded = [load_plugin(plugin) for plugin in plugins] + (load_installed() if trust_plugins else [])
    if not folder.is_dir():
        raise GenkitError(f"no such run folder: {folder}{_nearest_run(folder)}")
    if not (folder / "recipe.yaml").is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/recipe.yaml"))
        hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
        raise GenkitError(f"{folder} is not a run folder: it has no recipe.yaml{hint}")
    config = read_yaml(folder / "recipe.yaml")
    check_plugins(config, loaded, str(folder / "recipe.yaml"))
    config.pop("trainer", None)  # where it was trained, perhaps in a way that is not offered any more
    if isinstance(config.get("sampling"), Mapping):  # that of a comparison's other arms, once, was kept too
        config["sampling"] = taken(config["sampling"], config.get("objective"))
    recipe = Recipe.resolve(config, str(folder / "recipe.yaml"))
    weights = folder / "model.safetensors"
    if weights.is_file():
        state, about = read_tensors(weights)
        try:
            spec = DataSpec.of(about["spec"])
        except (KeyError, TypeError, ValueError) as error:
            raise GenkitError(f"{weights} is corrupt, or was not written by genkit: {error}") from None
    elif checkpoint is not None:
        spec = recipe.dataset().spec
    else:
        hint = "; --checkpoint last takes it as it is" if "last" in kept_weights(folder) else ""
        raise GenkitError(
            f"{folder} has no weights (model.safetensors): its training has not finished; "
            f"run the same `genkit train` again to resume{hint}"
        )
    if checkpoint is not None:
        weights = find_weights(folder, checkpoint)
        state = read_weights(weights)
    objective = with_weights(recipe, spec, state, weights).to(device)
    return Run(
        folder, recipe, objective, read_environment(folder), None if checkpoint is None else weights.stem
    )


def with_weights(recipe: Recipe, spec: DataSpec, state: Mapping[str, Tensor], weights: Path) -> Objective:
    """A recipe's model with the weights of a file, to be sampled. Raises GenkitError where they do not fit."""
    check_fit(recipe, spec, state, weights)
    objective = recipe.objective(spec)
    objective.load_state_dict(state)
    return objective.eval().requires_grad_(False)


def check_fit(recipe: Recipe, spec: DataSpec, state: Mapping[str, Tensor], weights: Path) -> None:
    """Raises GenkitError unless a recipe's model of such data has weights of these names and shapes, before memory is
    taken for it: both come from files."""
    depth = recipe.config["model"]["depth"]
    if depth > len(state):  # each layer has some; to build them all, even without memory, takes time
        raise GenkitError(f"{weights} does not fit {recipe.source}: it has no weights of {depth} layers")
    try:
        wanted = {key: tuple(value.shape) for key, value in recipe.check(spec).state_dict().items()}
    except Exception as error:
        raise GenkitError(f"{weights} does not fit {recipe.source}: {error}") from None
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in sorted({*wanted, *found}):
        if wanted.get(key) != found.get(key):
            ours, theirs = (str(shapes.get(key, "missing")) for shapes in (wanted, found))
            raise GenkitError(f"{weights} does not fit {recipe.source}: {key} is {theirs}, not {ours}")


def _nearest_run(folder: Path) -> str:
    there = [p.parent.name for p in folder.parent.glob("*/recipe.yaml")] if folder.parent.is_dir() else []
    return f" ({choose(folder.name, there, 'run')})" if there else ""


def check_plugins(config: Mapping[str, Any], loaded: Iterable[str], source: str) -> None:
    """A recipe may name the plug-ins it needs; only a flag runs them."""
    for name in plugins_of(config, source):
        if name not in loaded and not plugin_loaded(name):
            raise GenkitError(f"{source} needs the plug-in '{name}': {how_to_load(name)}")


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    teacher: Run | None = None,
    report: Report | None = None,
) -> Run:
    """Trains a recipe in a folder, or goes on with it there; a finished run is loaded as it is.

    Of several processes the first writes; all need to see the folder. Raises GenkitError when the folder holds another
    run, or another process writes to it; KeyboardInterrupt after Ctrl-C, Terminated after SIGTERM, with a checkpoint.
    """
    with locked(Path(folder)):
        return _train(recipe, Path(folder), teacher, report)


def _train(recipe: Recipe, folder: Path, teacher: Run | None, report: Report | None) -> Run:
    if teacher is None and recipe.teacher is not None:
        teacher = load(recipe.teacher)
    dataset = recipe.dataset()
    recipe.check(dataset.spec)
    fingerprint = recipe.fingerprint(dataset.hash, teacher.hash if teacher else None)
    held = read_environment(folder)
    weights, begun = ((folder / name).exists() for name in ("model.safetensors", "checkpoints/last.ckpt"))
    if (weights or begun) and held and held.get("fingerprint") != fingerprint:
        raise GenkitError(
            f"{folder} holds another run{differences(folder, recipe, dataset.hash, teacher)}: choose another --out, or "
            "remove the folder"
        )
    if weights and not held:
        raise GenkitError(
            f"{folder} has weights, and no environment.json that says of what: choose another --out"
        )
    if (
        rank() == 0 and not (held or begun) and (folder / "recipe.yaml").exists()
    ):  # others may see what this one writes
        raise GenkitError(f"{folder} holds a recipe.yaml that is not of a run: choose another --out")
    options, trainer = recipe.section("training"), recipe.section("trainer")
    if weights and held.get("finished"):
        check_snapshots(folder, options.snapshots, held["steps"])
        if options.checkpoint_best is not None and not (folder / "checkpoints" / "best.ckpt").exists():
            raise GenkitError(
                f"training: checkpoint_best: {folder} is trained, and kept none: choose another --out"
            )
        if rank() == 0:  # it may say otherwise how to sample
            write_text(folder / "recipe.yaml", recipe.yaml())
        meet()
        return load(folder)

    objective = recipe.objective(dataset.spec)
    check_training(objective, options, trainer)
    environment = {
        "fingerprint": fingerprint,
        "finished": False,
        "data_hash": dataset.hash,
        "teacher": {"folder": str(teacher.folder), "hash": teacher.hash} if teacher else None,
        "parameters": sum(p.numel() for p in objective.parameters()),
        "backbone_parameters": sum(p.numel() for p in objective.backbone.parameters()),
        "seed": recipe.seed,
        "precision": options.precision,
        **made_with(),
    }
    if rank() == 0:  # a recipe without its environment would not be of a run: it comes second
        write_json(folder / "environment.json", environment)
        write_text(folder / "recipe.yaml", recipe.yaml())
    fitted = fit(
        objective,
        dataset.split("train"),
        options,
        folder,
        seed=recipe.seed,
        trainer=trainer,
        teacher=teacher.objective if teacher else None,
        made_from={"data": dataset.hash, "teacher": teacher.hash if teacher else None, "recipe": fingerprint},
        report=report,
    )
    if fitted.stopped and fitted.steps < options.physical.steps:
        raise stopped_by(fitted.stopped, goes_on(folder / "checkpoints" / "last.ckpt"))
    objective.eval().requires_grad_(False)
    environment |= {
        "finished": True,
        "device": fitted.device,
        "processes": fitted.processes,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "bad_steps": fitted.bad_steps,
        "rollbacks": fitted.rollbacks,
        "setup_seconds": fitted.setup_seconds,
        "setup_tokens": objective.setup_rows * objective.tokens.length,
        # all that went through a backbone, also a teacher's that pairs the rows
        "tokens": int(fitted.steps * options.batch_size * objective.tokens.length * objective.passes),
    }
    if rank() == 0:
        about = {"spec": dataclasses.asdict(dataset.spec), "fingerprint": fingerprint}
        write_tensors(folder / "model.safetensors", objective.state_dict(), about)
        write_json(folder / "environment.json", environment)
    meet()  # the weights are there for all
    if fitted.stopped:  # in its last step: a comparison must not go on to its next arm
        raise stopped_by(fitted.stopped, f"{folder} is trained")
    return Run(folder, recipe, objective, environment)


def differences(folder: Path, recipe: Recipe, data_hash: str, teacher: Run | None) -> str:
    """What of the run in a folder is another than of a recipe, as far as can be told, for an error."""
    held = read_environment(folder)
    found = ["its data were others"] if held.get("data_hash") != data_hash else []
    if (held.get("teacher") or {}).get("hash") != (teacher.hash if teacher else None):
        found.append("it had another teacher")
    with suppress(GenkitError, OSError):
        before, now = (flat(one.of_weights) for one in (Recipe.load(folder / "recipe.yaml"), recipe))
        found += [
            f"{key} was {before.get(key, 'not there')}, not {now.get(key, 'there')}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
    found = found or ["its recipe or plug-ins were others"]
    return f" ({'; '.join(found[:SHOWN])}{'; ...' if len(found) > SHOWN else ''})"


def flat(config: Any, key: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys."""
    if not isinstance(config, Mapping):
        return {key: config}
    return {
        k: v for name, value in config.items() for k, v in flat(value, f"{key}.{name}".lstrip(".")).items()
    }


def read_environment(folder: Path) -> dict[str, Any]:
    """environment.json of a run folder, empty where there is none. Raises GenkitError for a corrupt one."""
    path = folder / "environment.json"
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise GenkitError(f"{path} is corrupt: {error}") from None
    if not isinstance(found, dict):
        raise GenkitError(f"{path} is corrupt: it does not hold an object")
    for key in ("teacher", "versions"):
        if not isinstance(found.get(key) or {}, dict):
            raise GenkitError(f"{path} is corrupt: '{key}' is no object, but {found[key]!r}")
    if found.get("finished"):
        for key in COSTS:
            if type(found.get(key)) not in (int, float):
                raise GenkitError(f"{path} is corrupt: '{key}' is no number, but {found.get(key)!r}")
    return found
