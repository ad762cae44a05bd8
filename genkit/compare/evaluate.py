"""The measurements of one trained run, the same for every objective.

run ── samples at each number of steps ──> metrics of samples, seconds, tokens
    ── test rows ──> log-probabilities ──> bits/dim with its kind
    ── trajectories ──> curvature, transport cost

The model works on its own device; the metrics work on the CPU.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genkit.data.base import Dataset
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES, Guidance
from genkit.metrics import Judge
from genkit.randomness import keyed_generator
from genkit.recipe import Run
from genkit.solvers import SOLVERS, Solver
from genkit.types import LogProb, Sample
from genkit.unmasking import UNMASKERS, Unmasker

SHOWN_IMAGES, SHOWN_POINTS, SHOWN_PATHS = 40, 2000, 500
Progress = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured.

    samples: how many samples, and as many real rows beside them; null for as many as the smaller part has.
    steps: numbers of steps of the solver or unmasker.
    solver: with which they are sampled; unmasker: with which discrete models are, where they can take it.
    guidance: a scale, or a guidance with options; 1 is off.
    likelihood_rows: test rows for bits/dim. likelihood: the solver for flows of pairs. probes: of its trace.
    seed: of the noise, equal for all arms and all steps, and of the choice of real rows.
    """

    samples: int | None = None
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    solver: Solver | str = "euler"
    unmasker: Unmasker | str = "ancestral"
    guidance: Guidance | str | float = 1.0
    likelihood_rows: int = 128
    likelihood: Solver | str = "heun"
    probes: int = 1
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:  # a wrong value must show before training, not after
        if not self.steps or min(self.steps) < 1 or len(set(self.steps)) < len(self.steps):
            raise GenkitError(f"evaluation: steps must be positive and distinct, not {self.steps}")
        if self.samples is not None and self.samples < 2:
            raise GenkitError(f"evaluation: samples must be at least 2 or null, not {self.samples}")
        for name in ("likelihood_rows", "probes", "batch_size"):
            if getattr(self, name) < 1:
                raise GenkitError(f"evaluation: {name} must be positive, not {getattr(self, name)}")
        try:
            SOLVERS.build(self.solver)
            UNMASKERS.build(self.unmasker)
            likelihood = SOLVERS.build(self.likelihood)
            self.built_guidance()
        except GenkitError as error:
            raise GenkitError(f"evaluation: {error}") from None
        if likelihood.needs - {"velocity"}:
            raise GenkitError(
                f"evaluation: likelihood needs a solver of velocity alone, such as heun, not {self.likelihood}"
            )

    def built_guidance(self) -> Guidance:
        scale = self.guidance
        if isinstance(scale, (int, float)):
            return GUIDANCES.build({"name": "classifier_free", "scale": float(scale)})
        return GUIDANCES.build(scale)

    def judge(self, dataset: Dataset) -> Judge:
        """Raises GenkitError for more samples than there are real rows."""
        try:
            return Judge(dataset, self.samples, seed=self.seed)
        except GenkitError as error:
            raise GenkitError(f"evaluation: {error}") from None


def evaluate(
    run: Run, options: EvaluationOptions, judge: Judge, *, progress: Progress = lambda message: None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All figures of one run as plain data, and samples to show by name."""
    spec = run.spec
    y = classes_in_turn(judge.count, run.objective.classes)
    points: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}
    for steps, sampler in samplers(run, options):
        progress(f"sampling, {steps} steps" if steps else "sampling")
        sample_in_batches(run, options, sampler, y, count=min(4, judge.count))  # warm-up
        start = time.perf_counter()
        sample = sample_in_batches(run, options, sampler, y, count=judge.count)
        seconds = time.perf_counter() - start
        points.append(
            {
                "nfe": sample.nfe,
                "steps": steps,
                "seconds": seconds,
                "tokens": sample.tokens,
                **judge.samples(sample.x, y),
            }
        )
        shown[shown_as(points[-1])] = sample.x[: SHOWN_IMAGES if spec.image else SHOWN_POINTS]
    result: dict[str, Any] = {"points": points, "bits_per_dim": None}
    if run.objective.likelihood is not None:
        progress("likelihood")
        result |= judge.log_probs(log_probs(run, options))
    if run.objective.samplers is SOLVERS:
        progress("trajectories")
        count = min(SHOWN_PATHS, judge.count, options.batch_size)
        states, times = run.objective.trajectory(
            count,
            None if y is None else y[:count],
            sampler=SOLVERS.build("euler", steps=32),
            generator=noise(run, options, 0),
        )
        states = [state.cpu() for state in states]
        result |= judge.trajectories(states, times)
        if not spec.image:
            shown["trajectory"] = torch.stack(states)
    return result, {name: value.contiguous() for name, value in shown.items()}


def samplers(run: Run, options: EvaluationOptions) -> list[tuple[int | None, Solver | Unmasker | None]]:
    """(steps, sampler) of each point that is measured; steps None where their number is the model's own."""
    if run.objective.samplers is SOLVERS:
        return [(steps, run.sampler(solver=options.solver, steps=steps)) for steps in options.steps]
    if run.objective.samplers is not UNMASKERS:
        return [(None, None)]
    unmasker = UNMASKERS.build(options.unmasker)
    if not run.objective.takes(unmasker):
        unmasker = UNMASKERS.build(run.objective.default_sampler)
    if not hasattr(unmasker, "steps"):
        return [(None, unmasker)]
    return [(steps, with_steps(unmasker, steps)) for steps in options.steps]


def with_steps(unmasker: Unmasker, steps: int) -> Unmasker:
    changed = copy.copy(unmasker)
    changed.steps = steps  # type: ignore[attr-defined]
    return changed


def shown_as(point: dict[str, Any]) -> str:
    """The name under which the shown samples of a point are kept."""
    return f"steps_{point['steps']}" if point["steps"] else "samples"


def noise(run: Run, options: EvaluationOptions, start: int) -> torch.Generator:
    """The randomness of the batch whose first row is `start`, on the device of the model."""
    return keyed_generator(options.seed, "evaluate", start, device=run.objective.device)


def sample_in_batches(
    run: Run, options: EvaluationOptions, sampler: Solver | Unmasker | None, y: Tensor | None, *, count: int
) -> Sample:
    """`count` samples on the CPU; each batch starts from noise that depends on the seed alone."""
    parts = [
        run.objective.sample(
            len(part),
            None if y is None else y[part],
            sampler=sampler,
            guidance=options.built_guidance() if y is not None else None,
            generator=noise(run, options, int(part[0])),
        )
        for part in torch.arange(count).split(options.batch_size)
    ]
    return Sample(torch.cat([part.x.cpu() for part in parts]), parts[0].nfe, parts[0].tokens)


def log_probs(run: Run, options: EvaluationOptions) -> Iterator[LogProb]:
    """Log-probabilities of test rows, batch by batch, on the CPU."""
    split = run.dataset.split("test")
    order = torch.randperm(len(split), generator=keyed_generator(options.seed, "likelihood"))
    settings = (
        {"sampler": options.likelihood, "probes": options.probes} if run.objective.samplers is SOLVERS else {}
    )
    start = 0
    for part in order[: options.likelihood_rows].split(options.batch_size):
        x, y = split.take(part)
        found = run.objective.log_prob(
            x,
            None if run.objective.classes is None else y,
            generator=noise(run, options, start),
            **settings,
        )
        start += len(part)
        yield LogProb(found.value.cpu(), found.kind, None if found.stderr is None else found.stderr.cpu())


def classes_in_turn(count: int, classes: int | None) -> Tensor | None:
    return torch.arange(count) % classes if classes else None
