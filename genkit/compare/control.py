"""What particles make of an energy: compositions, temperatures and constraints, each with its cost and its figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics import Judge
from genkit.metrics.extractor import load_extractor, pinned
from genkit.particles import FeynmanKac, Target
from genkit.particles.expression import build_target
from genkit.randomness import keyed_generator
from genkit.recipe import Run
from genkit.registry import resolve_options
from genkit.types import DataSpec

SEEN = 3  # so many classes are named of those that a classifier sees


@dataclass(frozen=True)
class Control:
    """One way to sample an energy with particles.

    compose: an expression, such as "3 AND 8"; null for each class in turn, with its share of the particles.
    beta, divide_prior, controls: as for `Run.target`.
    sampler: options of the Feynman-Kac sampler; where nothing is said it takes as many particles as samples are judged.
    """

    compose: str | None = None
    beta: float = 1.0
    divide_prior: bool = False
    controls: list[dict[str, Any]] = field(default_factory=list)
    sampler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Control:
        """From an expression alone, or from a mapping. Raises GenkitError for what cannot be."""
        options = {"compose": given} if isinstance(given, str) else given
        control = cls(**resolve_options(cls, options, "control"))
        control.built(2)
        return control

    def built(self, particles: int) -> FeynmanKac:
        options = resolve_options(FeynmanKac, self.sampler, "control: sampler")
        return FeynmanKac(**options | {"particles": self.sampler.get("particles", particles)})

    @property
    def words(self) -> str:
        """What it is called: "3 AND 8, beta 2"."""
        words = [self.compose or "as trained"]
        if self.beta != 1:
            words.append(f"beta {self.beta:g}")
        if self.divide_prior:
            words.append("prior divided out")
        for options in self.controls:
            words.append(
                " ".join(str(value) for key, value in options.items() if key == "name" or value is not None)
            )
        return ", ".join([*words, *(f"{key} {value}" for key, value in self.sampler.items())])

    @property
    def tempered(self) -> bool:
        """Whether it is the model as trained, but for beta: a point of the curve along beta."""
        return self.compose is None and not self.controls

    def target(self, objective: Any, label: int | None = None) -> Target:
        return build_target(
            objective,
            self.compose,
            label=label,
            beta=self.beta,
            divide_prior=self.divide_prior,
            controls=self.controls,
        )

    def check(self, objective: Any) -> None:
        """Raises GenkitError for what is no target of this model, and for a model without an energy."""
        self.target(objective, 0 if self.compose is None and objective.classes else None)


def controlled(
    run: Run, controls: Sequence[Control], judge: Judge, seed: int, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The figures of each control, and its samples by name (see `shown_control`)."""
    found, shown = [], {}
    for i, control in enumerate(controls):
        progress(f"particles: {control.words}")
        entry, x = measured_control(run, control, judge, seed)
        found.append(entry)
        shown[shown_control(i)] = x
    return found, shown


def shown_control(place: int) -> str:
    """The name under which the samples of a control are kept."""
    return f"control_{place}"


def measured_control(run: Run, control: Control, judge: Judge, seed: int) -> tuple[dict[str, Any], Tensor]:
    """The figures of one control, and as many samples as are judged, those of classes in turn mixed."""
    classes = run.objective.classes if control.compose is None else None
    labels: list[int | None] = [*range(classes)] if classes else [None]
    share = -(-judge.count // len(labels))
    sampler = control.built(max(2, share))
    if sampler.particles < share:
        raise GenkitError(
            f"control '{control.words}': {share} samples cannot be drawn from {sampler.particles} particles: raise "
            "sampler.particles"
        )
    start = time.perf_counter()
    runs, parts = [], []
    for label in labels:
        generator = keyed_generator(seed, "particles", str(label), device=run.objective.device)
        target = control.target(run.objective, label)
        runs.append(sampler.sample(target, generator=generator))
        parts.append(target.decode(runs[-1].draw(share, generator=generator)).cpu())
    seconds = time.perf_counter() - start
    x = torch.stack(parts, dim=1).flatten(0, 1)[: judge.count]
    y = torch.arange(judge.count) % classes if classes else None
    return {
        "words": control.words,
        "beta": control.beta,
        "tempered": control.tempered,
        "nfe": sum(found.evaluations for found in runs) // len(runs),
        "particles": sampler.particles * len(runs),
        "ess": sum(found.ess[-1] for found in runs),
        "least_ess": sum(min(found.ess) for found in runs),
        "resamplings": sum(found.resamplings for found in runs) / len(runs),
        "seconds": seconds,
        "seen": seen(x, run.spec),
        **judge.samples(x, y),
    }, x


def seen(x: Tensor, spec: DataSpec) -> list[tuple[str, float]]:
    """The classes that the pinned classifier gives most of its probability to, each with the mean of it."""
    name = pinned(spec)
    if name is None or not spec.levels:
        return []
    shares = load_extractor(name).predict(x).softmax(1).mean(0)
    names = spec.class_names or tuple(map(str, range(len(shares))))
    return [(names[int(i)], float(shares[i])) for i in shares.argsort(descending=True)[:SEEN]]
