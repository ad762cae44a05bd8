"""The measurements of one trained run, the same for every objective.

run ── samples at each number of steps ──> metrics of samples, seconds, tokens
    ── test rows ──> bits/dim with its kind
    ── trajectories ──> curvature, transport cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from genkit.data.base import Dataset
from genkit.errors import GenkitError
from genkit.files import write_atomically
from genkit.guidance import Guidance
from genkit.metrics import METRICS, DataMetric, floor
from genkit.metrics.frechet import FrechetDistance
from genkit.randomness import keyed_generator
from genkit.recipe import Run
from genkit.solvers import SOLVERS, Solver
from genkit.types import DataSpec, Sample

SHOWN_IMAGES, SHOWN_POINTS, SHOWN_PATHS = 40, 2000, 500
Progress = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured.

    samples: how many samples, and how many test rows beside them; null for as many as the test part has.
    steps: numbers of solver steps at which flows of pairs are sampled.
    solver: with which they are sampled. guidance: a scale, or a guidance with options; 1 is off.
    likelihood_rows: test rows for bits/dim. likelihood: the solver for flows of pairs. probes: of its trace.
    seed: of the noise, equal for all arms and all steps.
    """

    samples: int | None = None
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    solver: Solver | str = "euler"
    guidance: Guidance | str | float = 1.0
    likelihood_rows: int = 128
    likelihood: Solver | str = "heun"
    probes: int = 1
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise GenkitError(f"evaluation: steps must be positive whole numbers, not {self.steps}")
        if self.samples is not None and self.samples < 2:
            raise GenkitError(f"evaluation: samples must be at least 2 or null, not {self.samples}")
        for name in ("likelihood_rows", "probes", "batch_size"):
            if getattr(self, name) < 1:
                raise GenkitError(f"evaluation: {name} must be positive, not {getattr(self, name)}")

    def count(self, dataset: Dataset) -> int:
        return len(dataset.split("test")) if self.samples is None else self.samples


def evaluate(
    run: Run, options: EvaluationOptions, *, progress: Progress = lambda message: None
) -> dict[str, Any]:
    """All figures of one run, as plain data; its shown samples go to samples.safetensors in the run folder."""
    spec, guidance = run.spec, run.guidance(options.guidance)
    count = options.count(run.dataset)
    reference = rows(run.dataset, "test", count)
    y = classes_in_turn(count, run.objective.classes)
    points: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}
    for solver in solvers_of(run, options):
        progress(f"sampling, {solver.steps} steps" if solver else "sampling")
        sample_in_batches(run, options, solver, guidance, y, count=min(4, count))  # warm-up
        start = time.perf_counter()
        sample = sample_in_batches(run, options, solver, guidance, y, count=count)
        seconds = time.perf_counter() - start
        points.append(
            {
                "nfe": sample.nfe,
                "steps": solver.steps if solver else None,
                "seconds": seconds,
                "tokens": sample.tokens,
                **sample_metrics(sample.x, y, reference, run.dataset),
            }
        )
        shown[f"nfe_{sample.nfe}"] = sample.x[: SHOWN_IMAGES if spec.image else SHOWN_POINTS]
    result: dict[str, Any] = {
        "points": points,
        "bits_per_dim": None,
        "curvature": None,
        "transport_cost": None,
    }
    if run.objective.view.likelihood is not None:
        progress("likelihood")
        result["bits_per_dim"] = bits_per_dim(run, options)
    if run.objective.solves:
        progress("trajectories")
        states, times = run.objective.trajectory(
            min(SHOWN_PATHS, count),
            None if y is None else y[:SHOWN_PATHS],
            sampler=SOLVERS.build("euler", steps=32),
            generator=keyed_generator(options.seed, "evaluate"),
        )
        metric = METRICS.build("trajectories", spec)
        metric.update(states, times)
        result |= {name: float(value) for name, value in metric.compute().items()}
        if not spec.image:
            shown["trajectory"] = torch.stack(states)
    shown = {name: value.contiguous() for name, value in shown.items()}
    write_atomically(run.folder / "samples.safetensors", lambda file: file.write(save(shown)))
    return result


def solvers_of(run: Run, options: EvaluationOptions) -> Iterator[Solver | None]:
    """The solver at each number of steps; None, once, for a model that takes no solver."""
    if not run.objective.solves:
        yield None
        return
    chosen = options.solver if isinstance(options.solver, dict) else {"name": options.solver}
    for steps in options.steps:
        yield SOLVERS.build({**chosen, "steps": steps})


def sample_in_batches(
    run: Run,
    options: EvaluationOptions,
    solver: Solver | None,
    guidance: Guidance,
    y: Tensor | None,
    *,
    count: int,
) -> Sample:
    """`count` samples; the noise depends on the seed alone, not on the solver."""
    generator = keyed_generator(options.seed, "evaluate", device=run.objective.device)
    parts = [
        run.objective.sample(
            len(part),
            None if y is None else y[part],
            sampler=solver,
            guidance=guidance if run.objective.classes is not None else None,
            generator=generator,
        )
        for part in torch.arange(count).split(options.batch_size)
    ]
    return Sample(torch.cat([part.x.cpu() for part in parts]), parts[0].nfe, parts[0].tokens)


def sample_metrics(x: Tensor, y: Tensor | None, reference: Tensor, dataset: Dataset) -> dict[str, float]:
    """Every metric of samples in the registry that applies to the data, by its name."""
    values = {}
    for name, metric in sample_metrics_of(dataset.spec):
        if metric.reads == "samples":
            metric.update(reference, real=True)
            metric.update(x, real=False)
            values[name] = float(metric.compute())
        elif metric.reads == "labels" and y is not None:
            metric.update(x, y)
            values[name] = float(metric.compute())
        elif metric.reads == "parts":
            metric.update(rows(dataset, "train", len(dataset.split("train"))), "train")
            metric.update(reference, "test")
            metric.update(x, "sample")
            values[name] = float(metric.compute()["sample"])
    return values


def sample_metrics_of(spec: DataSpec) -> Iterator[tuple[str, DataMetric]]:
    for name in METRICS.names():
        cls = METRICS.get(name)
        if cls.reads in ("samples", "labels", "parts") and cls.applies(spec):
            yield name, METRICS.build(name, spec)


def bits_per_dim(run: Run, options: EvaluationOptions) -> dict[str, Any]:
    """Bits/dim of test rows with the standard error over rows, and the kind of likelihood."""
    split = run.dataset.split("test")
    count = min(options.likelihood_rows, len(split))
    x, y = split.take(
        torch.randperm(len(split), generator=keyed_generator(options.seed, "likelihood"))[:count]
    )
    settings = {"sampler": options.likelihood, "probes": options.probes} if run.objective.solves else {}
    metric = METRICS.build("bits_per_dim", run.spec)
    for part in torch.arange(count).split(options.batch_size):
        labels = None if y is None or run.objective.classes is None else y[part]
        metric.update(run.log_prob(x[part], labels, seed=options.seed, **settings))
    found = metric.compute()
    return {"value": float(found["bits_per_dim"]), "stderr": float(found["stderr"]), "kind": found["kind"]}


def floors(dataset: Dataset, options: EvaluationOptions) -> dict[str, float]:
    """What each metric gives for real training rows in place of samples, at the same count."""
    train, test = dataset.split("train"), dataset.split("test")
    count = min(options.count(dataset), len(train), len(test))
    values = {}
    for name, metric in sample_metrics_of(dataset.spec):
        if metric.reads == "samples":
            build = partial(METRICS.build, name, dataset.spec)
            values[name] = float(floor(build, train, test, count=count))
        elif metric.reads == "parts":
            held_out = rows(dataset, "test", count)
            metric.update(rows(dataset, "train", len(train)), "train")
            metric.update(held_out, "test")
            metric.update(held_out, "sample")
            values[name] = float(metric.compute()["test"])
    return values


def rows(dataset: Dataset, part: Literal["train", "test"], count: int) -> Tensor:
    """The first `count` rows of a part (all, where it has fewer), on the CPU."""
    split = dataset.split(part)
    return split.take(torch.arange(min(count, len(split))))[0].cpu()


def classes_in_turn(count: int, classes: int | None) -> Tensor | None:
    return torch.arange(count) % classes if classes else None


def extractor_hash(spec: DataSpec) -> str | None:
    """The hash of the feature extractor that Fréchet distances of these data are taken on."""
    return FrechetDistance(spec).extractor_hash if FrechetDistance.applies(spec) else None
