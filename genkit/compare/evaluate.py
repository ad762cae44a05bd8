"""The measurements of one trained run, the same for every objective.

run ── samples at each number of steps ──> metrics of samples, seconds, tokens
                                        ──> a scorer's log-probabilities ──> generative perplexity
    ── the same with each of several unmaskers
    ── test rows ──> log-probabilities ──> bits/dim (of text bits/char) with its kind
    ── trajectories ──> curvature, transport cost

The model works on its own device; the metrics work on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.compare.control import Control, controlled
from genkit.compare.sizes import resized, shown_size
from genkit.data.base import Dataset
from genkit.errors import GenkitError, within
from genkit.guidance import Guidance, build_guidance
from genkit.inversion import INVERTERS, Inverter
from genkit.metrics import Judge, Scorer
from genkit.objectives import Objective
from genkit.objectives.likelihood import Divergence, LikelihoodOptions
from genkit.particles.base import has_energy
from genkit.randomness import keyed_generator
from genkit.recipe import SAMPLERS, Recipe, Run, check_kinds, draw, load
from genkit.solvers import SOLVERS, Solver
from genkit.types import DataSpec, LogProb, Sample
from genkit.unmasking import UNMASKERS, Unmasker

SHOWN_ROWS, SHOWN_POINTS, SHOWN_PATHS, SHOWN_TEXTS, SHOWN_SOUNDS = 40, 2000, 500, 6, 10
# The options that have an effect on models with a likelihood only.
LIKELIHOOD = ("likelihood", "likelihood_rows", "likelihood_tolerance", "divergence", "probes")
SHOWN_PAIRS, PAIRS_FROM = 8, 120  # of each task, among the first so many rows of all
Progress = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured.

    samples: how many samples, and as many real rows beside them; null for as many as the smaller part has.
    steps: numbers of steps of the solver or unmasker.
    solver: with which they are sampled; null for each run's own (`sampling.solver`).
    inverter: with which normalizing flows are; null for each run's own (`sampling.inverter`).
    unmasker: with which discrete models are, where they can take it; null for each run's own (`sampling.unmasker`).
    unmaskers: more of them (names, or mappings with options), to compare: discrete models are also sampled with each
        that they can take, at each number of steps, or as it is where it has none. unmaskers_on: the arms of a
        comparison for which that is done; null for all.
    control: what energies are sampled for with particles, expressions or mappings (see `genkit.compare.control`).
        control_on: the arms of a comparison for which that is done; null for all.
    scorer: an arm, or the folder of a run, with an exact likelihood, under which samples have a generative perplexity.
    sizes: sides of images, or numbers of points of clouds, at which samples are judged by data of that size: sampled at
        it where the model can do so, beside samples of its own size that are resized (see `genkit.compare.sizes`). They
        take the most of `steps`.
    guidance: a scale, or a guidance with options; 1 is off; null for each run's own (`sampling.guidance`). Arms without
        classes have none, but for `autoguidance`.
    likelihood_rows: test rows for bits/dim, 0 for none. likelihood: the solver for flows of pairs, one without noise of
        its own.
        divergence, probes, likelihood_tolerance: see `genkit.objectives.likelihood.LikelihoodOptions`; the tolerance is
        held against the first batch.
    seed: of the noise, equal for all arms and all steps, and of the choice of real rows.
    """

    samples: int | None = None
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    solver: Solver | str | None = "euler"
    inverter: Inverter | str | None = None
    unmasker: Unmasker | str | None = "ancestral"
    unmaskers: list[str | dict[str, Any]] = field(default_factory=list)
    unmaskers_on: list[str] | None = None
    control: list[str | dict[str, Any]] = field(default_factory=list)
    control_on: list[str] | None = None
    scorer: str | None = None
    sizes: list[int] = field(default_factory=list)
    guidance: Guidance | str | float | None = None
    likelihood_rows: int = 128
    likelihood: Solver | str | dict[str, Any] = field(
        default_factory=lambda: {"name": "rk4", "steps": 8, "grid": "cosine"}
    )
    divergence: Divergence = "auto"
    probes: int = 1
    likelihood_tolerance: float | None = 0.01
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:  # a wrong value must show before training, not after
        if not self.steps or min(self.steps) < 1 or len(set(self.steps)) < len(self.steps):
            raise GenkitError(f"evaluation: steps must be positive and distinct, not {self.steps}")
        if self.samples is not None and self.samples < 2:
            raise GenkitError(f"evaluation: samples must be at least 2 or null, not {self.samples}")
        if len(set(self.sizes)) < len(self.sizes) or min(self.sizes, default=1) < 1:
            raise GenkitError(f"evaluation: sizes must be positive and distinct, not {self.sizes}")
        if self.likelihood_rows < 0:
            raise GenkitError(f"evaluation: likelihood_rows must not be negative, not {self.likelihood_rows}")
        for name in ("probes", "batch_size"):
            if getattr(self, name) < 1:
                raise GenkitError(f"evaluation: {name} must be positive, not {getattr(self, name)}")
        with within("evaluation"):
            for steps in self.steps if self.solver is not None else ():
                SOLVERS.build(self.solver, steps=steps)  # a fitted grid has one number of them
            if self.inverter is not None:
                INVERTERS.build(self.inverter)
            if self.unmasker is not None:
                UNMASKERS.build(self.unmasker)
            self.compared()
            self.controls()
            LikelihoodOptions(self.divergence, self.probes, tolerance=self.likelihood_tolerance)
            likelihood = SOLVERS.build(self.likelihood)
            if self.guidance is not None:
                build_guidance(self.guidance)
        if "score" in likelihood.needs:
            raise GenkitError(
                "evaluation: likelihood needs a solver without noise of its own, such as heun, not "
                f"{SOLVERS.name_of(likelihood)}"
            )

    def on(self, arm: str) -> EvaluationOptions:
        """What is measured of one arm of a comparison."""
        chosen: dict[str, Any] = {}
        for name in ("unmaskers", "control"):
            arms = getattr(self, f"{name}_on")
            chosen |= {name: getattr(self, name) if arms is None or arm in arms else [], f"{name}_on": None}
        return replace(self, **chosen)

    def of(self, recipe: Recipe, objective: Objective) -> EvaluationOptions:
        """With the guidance and, where it takes one, the sampler of this model: its recipe's or its own, where the
        evaluation names none, or an unmasker that it cannot take."""
        own: dict[str, Any] = {}
        sampling = recipe.config["sampling"]
        if self.guidance is None:
            own["guidance"] = sampling["guidance"]
        if (registry := objective.samplers) is not None:
            kind, asked = registry.kind, getattr(self, registry.kind)
            if asked is None or (registry is UNMASKERS and not objective.takes(registry.build(asked))):
                own[kind] = sampling[kind] or objective.default_sampler
        return replace(self, **own)

    def compared(self) -> list[Compared]:
        """`unmaskers`, built. Raises GenkitError for what cannot be built, twice the same, and one with steps."""
        found = [Compared.of(entry) for entry in self.unmaskers]
        for i, one in enumerate(found):
            if any((one.curve, one.options) == (other.curve, other.options) for other in found[:i]):
                raise GenkitError(f"unmaskers: {one.curve} {one.options}".rstrip() + " is there twice")
        return found

    def controls(self) -> list[Control]:
        """`control`, built. Raises GenkitError for what cannot be built, and for twice the same."""
        found = [Control.of(given) for given in self.control]
        words = [control.words for control in found]
        if repeated := [word for i, word in enumerate(words) if word in words[:i]]:
            raise GenkitError(f"control: '{repeated[0]}' is there twice")
        return found

    def judge(self, dataset: Dataset, scorer: Scorer | None = None) -> Judge:
        """Raises GenkitError for more samples than there are real rows, and for sizes that the data have not."""
        with within("evaluation"):
            for size in self.sizes:
                dataset.resized(size)
            return Judge(dataset, self.samples, seed=self.seed, scorer=scorer)

    def check_scorer(self, objective: Objective, spec: DataSpec) -> None:
        """Raises GenkitError for a model that cannot score samples of such data."""
        where = f"evaluation: the scorer '{self.scorer}'"
        if spec.levels is None or spec.ordered:
            raise GenkitError(f"{where} has nothing to do: '{spec.name}' has no symbols, as text has")
        for key in ("tokenizer", "levels", "fixed", "shape"):
            if getattr(objective.spec, key) != getattr(spec, key):
                what = "of another length" if key == "shape" else "with another vocabulary"
                raise GenkitError(
                    f"{where} was trained on '{objective.spec.name}', {what} than '{spec.name}' has"
                )
        if objective.likelihood != "exact":
            kind = f"has one of kind '{objective.likelihood}'" if objective.likelihood else "has none"
            raise GenkitError(f"{where} needs an exact likelihood, as autoregressive models have; it {kind}")

    def scorer_of(self, run: Run) -> Scorer | None:
        """The scorer for one run alone, which must be the folder of a run. Raises GenkitError."""
        if self.scorer is None:
            return None
        scorer = load(self.scorer).to(run.objective.device)
        self.check_scorer(scorer.objective, run.spec)
        return RunScorer(scorer, self)


class Compared(NamedTuple):
    """An unmasker of several: its name among them, and the options that tell it from those of its name.

    One without steps is a point of a curve: of `entropy` with several bounds.
    """

    curve: str
    options: str
    entry: str | Mapping[str, Any]
    unmasker: Unmasker

    @classmethod
    def of(cls, entry: str | Mapping[str, Any]) -> Compared:
        unmasker = UNMASKERS.build(entry)
        options = {} if isinstance(entry, str) else {k: v for k, v in entry.items() if k != "name"}
        name = entry if isinstance(entry, str) else entry["name"]
        if "steps" in options:
            raise GenkitError(f"unmaskers: {name}: steps are those of the evaluation, leave them out")
        words = ", ".join(
            f"{key} {value['name'] if isinstance(value, Mapping) and 'name' in value else value}"
            for key, value in options.items()
        )
        if hasattr(unmasker, "steps"):
            return cls(f"{name} ({words})" if words else name, "", entry, unmasker)
        return cls(name, words, entry, unmasker)


@dataclass(frozen=True)
class RunScorer:
    """A run that says how probable samples are: see `genkit.metrics.Scorer`."""

    run: Run
    options: EvaluationOptions

    @property
    def hash(self) -> str:
        return self.run.hash

    def __call__(self, x: Tensor, y: Tensor | None) -> Iterator[LogProb]:
        for part in torch.arange(len(x)).split(self.options.batch_size):
            classes = None if y is None or not self.run.objective.conditional else y[part]
            yield on_cpu(self.run.objective.log_prob(x[part], classes))


def check_given(run: Run, options: EvaluationOptions, given: Collection[str]) -> None:
    """Raises GenkitError for options, of those `given` for this run alone, that have no effect on it; in a comparison
    they may be meant for other arms."""
    objective, name = run.objective, run.recipe.config["objective"]["name"]
    given = {key for key in given if getattr(options, key) not in (None, [])}
    for key in sorted({"unmaskers_on", "control_on"} & given):
        raise GenkitError(f"{key} names arms of a comparison: leave it out for one run")
    check_kinds(name, [kind for kind in SAMPLERS if {kind, f"{kind}s"} & given])
    if "unmasker" in given:
        objective.check_sampler(UNMASKERS.build(options.unmasker))
    for one in options.compared():
        objective.check_sampler(one.unmasker)
    sampled = [*samplers(run, options), *(at_steps(one.unmasker, options)[0] for one in options.compared())]
    if "steps" in given and all(steps is None for steps, _ in sampled):
        raise GenkitError(f"steps: this model of the objective '{name}' is sampled without a number of them")
    by_class = run.objective.conditional or run.spec.answer is None
    if options.guidance is not None:
        objective.check_guidance(build_guidance(options.guidance), by_class=by_class)
    for control in options.controls():
        control.check(objective)
    asked = [key for key in LIKELIHOOD if key in given]
    if asked and objective.no_likelihood:
        raise GenkitError(f"{asked[0]}: {objective.no_likelihood}")
    asked = [key for key in asked if key != "likelihood_rows"]
    if asked and objective.samplers is not SOLVERS:
        raise GenkitError(f"{asked[0]} is of flows of pairs, not of the objective '{name}': leave it out")


def evaluate(
    run: Run, options: EvaluationOptions, judge: Judge, *, progress: Progress = lambda message: None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All figures of one run as plain data, those of real data among them, and samples to show by name (see
    `showing`)."""
    spec = run.spec
    controls = options.controls() if has_energy(run.objective) else []
    for control in controls:
        control.check(run.objective)
    y = judge.conditions if run.objective.conditional else None
    points: list[dict[str, Any]] = []
    texts: dict[str, list[str]] = {}
    shown: dict[str, Tensor] = {}
    for steps, sampler in samplers(run, options):
        progress(f"sampling, {steps} steps" if steps else "sampling")
        point, x = measured(run, options, judge, sampler, y, steps=steps)
        points.append(point)
        held, words = showing(run, x, shown_as(point))
        shown |= held
        texts |= words
    result: dict[str, Any] = {"points": points, "floor": judge.floors(), "bits_per_dim": None, "texts": texts}
    if options.sizes:
        result["sizes"], held = at_sizes(run, options, judge, x, y, progress)
        shown |= held
    if options.unmaskers and run.objective.samplers is UNMASKERS:
        result["unmasking"] = unmasking(run, options, judge, y, points, progress)
    if controls:
        result["control"], held = controlled(run, controls, judge, options.seed, progress)
        shown |= {name: x[:SHOWN_POINTS] if x.ndim == 2 else x[:SHOWN_ROWS] for name, x in held.items()}
    if options.likelihood_rows and run.objective.likelihood is not None:
        progress("likelihood")
        given = {"given": "y" if run.objective.conditional else None}  # p(x|y) is no figure of p(x)
        found = judge.log_probs(log_probs(run, options))
        result |= {name: value | given for name, value in found.items()}
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
        if spec.shape == (2,):
            shown["trajectory"] = torch.stack(states)
    return result, {name: value.contiguous() for name, value in shown.items()}


def measured(
    run: Run,
    options: EvaluationOptions,
    judge: Judge,
    sampler: Solver | Unmasker | Inverter | None,
    y: Tensor | None,
    size: int | None = None,
    **labels: Any,
) -> tuple[dict[str, Any], Tensor]:
    """The figures of samples made with `sampler`, of a size of their own if one is given, beside `labels` of the point,
    and the samples."""
    sampled = partial(sample_in_batches, run, options, sampler, y, prompts=judge.prompts, size=size)
    sampled(count=min(4, judge.count))  # warm-up
    start = time.perf_counter()
    sample = sampled(count=judge.count)
    seconds = time.perf_counter() - start
    cost = {"nfe": sample.nfe, **labels, "seconds": seconds, "tokens": sample.tokens}
    return cost | judge.samples(sample.x, y), sample.x


def at_sizes(
    run: Run, options: EvaluationOptions, judge: Judge, x: Tensor, y: Tensor | None, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Figures at each of the sizes, by real data of it, and samples to show (see `shown_size`) beside data of their y.

    x: samples of the trained size. An entry has the figures of the model at that size, those of x resized as `resized`
    (where the model has that one size only, they are all there is), and those of real data as `floor`.
    """
    found: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}
    steps, sampler = samplers(run, options)[-1]
    for size in options.sizes:
        progress(f"sampling at size {size}")
        theirs = Judge(run.dataset.resized(size), judge.count, seed=judge.seed)
        spec = theirs.dataset.spec
        other = resized(x, spec)
        plain = theirs.samples(other, y)
        point, sample = {"steps": steps, **plain}, other
        if run.objective.any_size:
            point, sample = measured(run, options, theirs, sampler, y, size, steps=steps)
        sampled = run.objective.any_size
        found.append({"size": size, "sampled": sampled, **point, "resized": plain, "floor": theirs.floors()})
        kinds = {"": sample, "resized": other, "real": theirs.reference[0]}
        shown |= {
            shown_size(size, what): rows[:SHOWN_ROWS] for what, rows in kinds.items() if sampled or what
        }
    return found, shown


def unmasking(
    run: Run,
    options: EvaluationOptions,
    judge: Judge,
    y: Tensor | None,
    points: list[dict[str, Any]],
    progress: Progress,
) -> dict[str, list[dict[str, Any]]]:
    """Points by unmasker, of those in `unmaskers` that the model takes; `points` are those of its main one."""
    found: dict[str, list[dict[str, Any]]] = {}
    main = main_unmasker(run, options)
    for curve, words, entry, unmasker in options.compared():
        if not run.objective.takes(unmasker):
            continue
        if not isinstance(main, Unmasker) and without_steps(main) == without_steps(entry):
            found.setdefault(curve, []).extend(points)
            continue
        for steps, sampler in at_steps(unmasker, options):
            progress(f"{curve}, {f'{steps} steps' if steps else words or 'sampling'}")
            point, _ = measured(run, options, judge, sampler, y, steps=steps, setting=words)
            found.setdefault(curve, []).append(point)
    return found


def showing(run: Run, x: Tensor, name: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """What a report shows of rows x: tensors NAME (rows) and NAME.sounds, and texts NAME."""
    if run.dataset.tasks:
        return showing_pairs(run, x, name)
    small = len(run.spec.shape) == 1 and run.spec.dims <= 3
    tensors, shown = {name: x[: SHOWN_POINTS if small else SHOWN_ROWS]}, run.show(x[:SHOWN_ROWS])
    if shown.sounds is not None:
        tensors[f"{name}.sounds"] = shown.sounds[:SHOWN_SOUNDS].float()
    return tensors, {} if shown.texts is None else {name: shown.texts[:SHOWN_TEXTS]}


def showing_pairs(run: Run, x: Tensor, name: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The same of rows of several tasks: also NAME.TASK.images in [0, 1] and NAME.TASK.sounds, and texts NAME.TASK."""
    tensors, texts = {name: x[:SHOWN_ROWS]}, {}
    for task in run.dataset.tasks:
        shown, words = run.dataset.pairs(x[:PAIRS_FROM], task)
        if shown.images is not None:
            tensors[f"{name}.{task}.images"] = shown.images[:SHOWN_PAIRS].float() / (shown.levels - 1)
        if shown.sounds is not None:
            tensors[f"{name}.{task}.sounds"] = shown.sounds[:SHOWN_PAIRS].float()
        texts[f"{name}.{task}"] = words[:SHOWN_PAIRS]
    return tensors, texts


def samplers(
    run: Run, options: EvaluationOptions
) -> Sequence[tuple[int | None, Solver | Unmasker | Inverter | None]]:
    """(steps, sampler) of each point that is measured; steps None where their number is the model's own."""
    if run.objective.samplers is SOLVERS:
        return [(steps, run.sampler(solver=options.solver, steps=steps)) for steps in options.steps]
    if run.objective.samplers is not UNMASKERS:
        return [(None, run.sampler(inverter=options.inverter))]
    return at_steps(UNMASKERS.build(main_unmasker(run, options)), options)


def main_unmasker(run: Run, options: EvaluationOptions) -> Unmasker | str:
    """That of the evaluation of this run (see `EvaluationOptions.of`)."""
    unmasker = options.of(run.recipe, run.objective).unmasker
    assert unmasker is not None
    return unmasker


def without_steps(unmasker: object) -> dict[str, Any]:
    return {key: value for key, value in UNMASKERS.resolve(unmasker).items() if key != "steps"}


def at_steps(unmasker: Unmasker, options: EvaluationOptions) -> list[tuple[int | None, Unmasker]]:
    if not hasattr(unmasker, "steps"):
        return [(None, unmasker)]
    return [(steps, unmasker.paced(steps)) for steps in options.steps]


def shown_as(point: dict[str, Any]) -> str:
    """The name under which the shown samples of a point are kept."""
    return f"steps_{point['steps']}" if point["steps"] else "samples"


def noise(run: Run, options: EvaluationOptions, start: int) -> torch.Generator:
    """The randomness of the batch whose first row is `start`, on the device of the model."""
    return keyed_generator(options.seed, "evaluate", start, device=run.objective.device)


def sample_in_batches(
    run: Run,
    options: EvaluationOptions,
    sampler: Solver | Unmasker | Inverter | None,
    y: Tensor | None,
    *,
    count: int,
    prompts: Tensor | None = None,
    size: int | None = None,
) -> Sample:
    """`count` samples on the CPU; each batch starts from noise that depends on the seed alone. Their cost is the mean
    over rows: adaptive solvers, and some unmaskers and inverters, take other numbers of calls for each batch.

    prompts: rows that are given in part, see `Judge.prompts`. size: of samples, where not that of the data.
    """
    objective = run.objective if size is None else run.objective.resized(size)
    guidance = run.guidance(options.guidance)
    guides = y is not None or prompts is not None or guidance.by_model

    parts = [
        draw(
            objective,
            len(part),
            None if y is None else y[part],
            sampler=sampler,
            guidance=guidance if guides else None,
            generator=noise(run, options, int(part[0])),
            given=None if prompts is None else prompts[part],
        )
        for part in torch.arange(count).split(options.batch_size)
    ]
    nfe, tokens = (
        sum(getattr(part, cost) * len(part.x) for part in parts) / count for cost in ("nfe", "tokens")
    )
    return Sample(torch.cat([part.x.cpu() for part in parts]), round(nfe), tokens)


def log_probs(run: Run, options: EvaluationOptions) -> Iterator[LogProb]:
    """Log-probabilities of test rows, batch by batch, on the CPU."""
    split = run.dataset.split("test")
    order = torch.randperm(len(split), generator=keyed_generator(options.seed, "likelihood"))
    settings: dict[str, Any] = {}
    if run.objective.samplers is SOLVERS:
        settings = {"sampler": options.likelihood, "divergence": options.divergence, "probes": options.probes}
        settings["tolerance"] = options.likelihood_tolerance
    start = 0
    for part in order[: options.likelihood_rows].split(options.batch_size):
        x, y = split.take(part)
        found = run.objective.log_prob(
            x,
            y if run.objective.conditional else None,
            generator=noise(run, options, start),
            **settings,
        )
        if settings:
            settings["tolerance"] = None  # it is said once
        start += len(part)
        yield on_cpu(found)


def on_cpu(found: LogProb) -> LogProb:
    stderr, count = (None if part is None else part.cpu() for part in (found.stderr, found.count))
    return LogProb(found.value.cpu(), found.kind, stderr, count)
