"""Solvers and time grids side by side on one trained flow, at equal numbers of network evaluations.

run ── benchmark ──> report (plain data) ── write ──> OUT/samplers.json, table.md, figures/*.png
    ── fit_grid ───> a file for the grid `fitted`

Every method starts from the same noise, of several draws. The error of a deterministic method is the distance of its
ends to those of a reference of many steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator
from torch import Tensor

from genkit.compare.figures import DPI, REAL, SOFT, looks_of, plain_ticks, styled
from genkit.compare.numbers import Json, capital, listed, number
from genkit.compare.report import md, md_row
from genkit.errors import GenkitError
from genkit.files import write_atomically, write_json, write_text
from genkit.guidance import Guidance
from genkit.metrics import Judge
from genkit.paths import PATHS
from genkit.randomness import keyed_generator
from genkit.recipe import Run
from genkit.solvers import GRIDS, SOLVERS, Solver
from genkit.solvers.adaptive import Adaptive
from genkit.solvers.fitted import distance, fit
from genkit.solvers.stochastic import Forward
from genkit.training.machine import device_name
from genkit.types import Field

Entry = str | dict[str, Any]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured.

    solvers: names, or mappings with options; null for all. One with a `grid` of its own has that one only.
    grids: the same, one after the other for each solver; null for all that need no option.
    evaluations: budgets of network evaluations; a method takes the most steps that stay within.
    tolerances: of adaptive methods, in the place of budgets.
    reference: the solver whose ends are held to be exact; null for rk4 with 64 steps, or, where data or noise are
        predicted, exponential with 256.
    samples, guidance, seed, batch_size: as in an evaluation. draws: of so many samples each, of the seeds `seed`,
        `seed + 1`, ...; figures are medians over them.
    """

    solvers: list[str | dict[str, Any]] | None = None
    grids: list[str | dict[str, Any]] | None = None
    evaluations: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 31])
    tolerances: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3])
    reference: str | dict[str, Any] | None = None
    samples: int | None = None
    guidance: float | str | dict[str, Any] | None = None
    draws: int = 3
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:  # a wrong value must show before anything is sampled
        for name in ("evaluations", "tolerances"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) < len(values):
                raise GenkitError(f"benchmark: {name} must be positive and distinct, not {values}")
        for name in ("draws", "batch_size"):
            if getattr(self, name) < 1:
                raise GenkitError(f"benchmark: {name} must be positive, not {getattr(self, name)}")
        if self.reference is not None:
            SOLVERS.check(self.reference, "benchmark: reference")
        for solver, grid in self.pairs():
            SOLVERS.check(solver, "benchmark: solvers")
            if grid is not None:
                GRIDS.check(grid, "benchmark: grids")

    def pairs(self) -> list[tuple[dict[str, Any], Entry | None]]:
        """Each solver with each grid; None for adaptive methods, which have one interval."""
        grids: list[Any] = [*GRIDS.without_options()]
        found: list[tuple[dict[str, Any], Entry | None]] = []
        for entry in SOLVERS.names() if self.solvers is None else self.solvers:
            options = {"name": entry} if isinstance(entry, str) else dict(entry)
            own = [options.pop("grid")] if "grid" in options else grids if self.grids is None else self.grids
            if "steps" in options:
                raise GenkitError(
                    f"benchmark: {options['name']}: steps follow from evaluations, leave them out"
                )
            adaptive = issubclass(SOLVERS.get(options["name"]), Adaptive)
            found += [(options, grid) for grid in ([None] if adaptive else own)]
        return found


def words(entry: Entry | float) -> str:
    """ "dpmpp (order 3)"."""
    if not isinstance(entry, Mapping):
        return str(entry)
    options = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "name")
    return f"{entry['name']} ({options})" if options else entry["name"]


# --- measuring ----------------------------------------------------------------------------------------


class Ends(NamedTuple):
    """Where a solver ends (N, ...), its evaluations, and the seconds it took."""

    x: Tensor
    nfe: int
    seconds: float


@dataclass
class Trial:
    """A run with the noise from which all methods start, in batches, and the fields to solve."""

    run: Run
    judge: Judge
    guidance: Guidance
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        objective: Any = self.run.objective
        if objective.samplers is not SOLVERS:
            name = self.run.recipe.config["objective"]["name"]
            raise GenkitError(f"solvers are for flows: a model of the objective '{name}' has none")
        self.y = self.judge.conditions if objective.conditional else None
        self.parts = torch.arange(self.judge.count).split(self.batch_size)
        self.noise = [
            objective.start(len(part), generator=self.generator("noise", part)) for part in self.parts
        ]
        given = [None if self.y is None else self.y[part].to(objective.device) for part in self.parts]
        self.fields: list[Field] = [objective.field(y, self.guidance) for y in given]

    @property
    def exact(self) -> Solver:
        """What ends are held against where nothing is said. A prediction of data has no velocity at the end."""
        if self.fields[0].kind == "velocity":
            return SOLVERS.build("rk4", steps=64)
        return SOLVERS.build("exponential", steps=256, order=3)

    def generator(self, what: str, part: Tensor) -> torch.Generator:
        return keyed_generator(self.seed, "samplers", what, int(part[0]), device=self.run.objective.device)

    @torch.no_grad()
    def ends(self, solver: Solver) -> Ends:
        """Raises GenkitError for ends that are not finite, and what the solver raises."""
        start = time.perf_counter()
        found = [
            solver.solve(field, x, generator=self.generator("solver", part))
            for field, x, part in zip(self.fields, self.noise, self.parts, strict=True)
        ]
        x = torch.cat([solution.x for solution in found]).cpu()  # waits for the device
        seconds = time.perf_counter() - start
        if not bool(x.isfinite().all()):
            raise GenkitError("samples are not finite")
        return Ends(x, max(solution.nfe for solution in found), seconds)


def benchmark(
    run: Run, options: BenchmarkOptions, *, progress: Callable[[str], None] = lambda message: None
) -> Json:
    """The report, as plain data. Raises GenkitError for a run that is no flow, and options that do not fit it."""
    judge = Judge(run.dataset, options.samples, seed=options.seed)
    metric = next(entry for entry in judge.about() if entry["lower"] is not None)
    judge.names = [metric["name"]]
    guidance = options.guidance
    if guidance is None:
        guidance = run.recipe.config["sampling"]["guidance"]
    guide = run.guidance(guidance)
    trials = [
        Trial(run, judge, guide, options.batch_size, options.seed + draw) for draw in range(options.draws)
    ]

    def solved(solver: Solver) -> list[Ends]:
        return [trial.ends(solver) for trial in trials]

    def measured(found: list[Ends]) -> Json:
        """Medians over the draws, and the metric of each."""
        metrics = [
            judge.samples(run.objective.view.decode(ends.x), trials[0].y)[metric["name"]] for ends in found
        ]
        return {
            "nfe": max(ends.nfe for ends in found),
            "seconds": statistics.median(ends.seconds for ends in found),
            "metric": statistics.median(metrics),
            "metrics": metrics,
        }

    def apart(found: list[Ends], others: list[Ends]) -> float:
        pairs = zip(found, others, strict=True)
        return float(torch.cat([distance(one.x, other.x) for one, other in pairs]).mean())

    progress("reference")
    exact = trials[0].exact if options.reference is None else SOLVERS.build(options.reference)
    reference, half = solved(exact), solved(exact.paced(max(1, exact.steps // 2)))
    curves: list[dict[str, Any]] = []
    for entry, grid in options.pairs():
        cls = SOLVERS.get(entry["name"])
        curve: dict[str, Any] = {
            "solver": words(entry),
            "grid": None if grid is None else words(grid),
            "group": group(cls),
            "refused": SOLVERS.build(entry).lacks(trials[0].fields[0]),
            "points": [],
        }
        curves.append(curve)
        if curve["refused"] is not None:
            continue
        progress(" ".join(filter(None, (curve["solver"], curve["grid"]))))
        for point, chosen in settings(entry, grid, options):
            try:
                ends = solved(SOLVERS.build(entry, **chosen))
                point |= measured(ends)
                if not issubclass(cls, Forward):
                    point["error"] = apart(ends, reference)
            except GenkitError as error:
                point["failed"] = str(error)
            curve["points"].append(point)
    return {
        "run": run.name,
        "data": run.spec.name,
        "metric": metric,
        "floor": judge.floors()[metric["name"]],
        "reference": {
            "solver": f"{SOLVERS.name_of(exact)}, {exact.steps} steps",
            **measured(reference),
            "error": apart(reference, half),
        },
        "curves": curves,
        "options": asdict(options) | {"samples": judge.count, "guidance": guidance},
        "machine": {
            "device": device_name(run.objective.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def settings(
    entry: Mapping[str, Any], grid: Entry | None, options: BenchmarkOptions
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The beginning of each point of a curve, and the options with which its solver is built."""
    if grid is None:
        for tolerance in options.tolerances:
            yield {"tolerance": tolerance}, {"rtol": tolerance, "atol": tolerance}
        return
    only = GRIDS.build(grid).steps
    for budget in sorted(options.evaluations):
        cost = costs(SOLVERS.build(entry), budget)
        if cost and only in (None, len(cost)):
            yield {"budget": budget, "steps": len(cost)}, {"steps": len(cost), "grid": grid}


def costs(solver: Solver, budget: int) -> list[int]:
    """Evaluations with 1, 2, ... steps, as long as they stay within the budget."""
    found: list[int] = []

    def still(t: Tensor, x: Tensor) -> Tensor:
        return x

    field = Field(still, PATHS.build("linear").coefficients, None)
    while len(found) < budget:
        times = torch.linspace(0, 1, len(found) + 2, dtype=torch.float64)
        nfe = solver.solve(field, torch.zeros(1, 1), times=times).nfe
        if nfe > budget:
            break
        found.append(nfe)
    return found


def group(cls: type[Solver]) -> str:
    """With which others a solver is drawn."""
    if issubclass(cls, Adaptive):
        return "steps by tolerance"
    if issubclass(cls, Forward):
        return "noise of their own"
    return "prediction of data" if "data" in cls.needs else "velocity"


# --- fitting ------------------------------------------------------------------------------------------


def fit_grid(
    run: Run,
    solver: Entry,
    steps: int,
    *,
    samples: int | None = None,
    reference: Entry | None = None,
    guidance: float | str | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Json:
    """What the file of the grid `fitted` holds: `times` for so many steps of a solver, and how near its ends come to
    the reference's on `samples` rows of noise that it was fitted to and on as many held out, beside the other grids.

    samples: null for 256, or as many as there are test rows. reference: as in `BenchmarkOptions`.
    Raises GenkitError as `genkit.solvers.fitted.fit` does.
    """
    chosen = run.sampler(solver=solver, steps=steps)
    rows = min(len(run.dataset.train), len(run.dataset.test))
    judge = Judge(run.dataset, min(256, rows) if samples is None else samples, seed=seed)
    guide = run.guidance(guidance)
    fitted_to, held_out = (Trial(run, judge, guide, judge.count, key) for key in (seed, seed + 1))
    exact = fitted_to.exact if reference is None else SOLVERS.build(reference)
    assert isinstance(chosen, Solver)
    with torch.no_grad():
        found = fit(chosen, fitted_to.fields[0], fitted_to.noise[0], held_out.noise[0], reference=exact)
    return {
        "times": found.times.tolist(),
        "solver": solver,
        "model": run.hash,
        "best_other": found.best,
        "reference": f"{SOLVERS.name_of(exact)}, {exact.steps} steps",
        "errors": {
            grid: {"fitted_to": one, "held_out": other}
            for grid, (one, other) in {"fitted": found.fitted, **found.others}.items()
        },
    }


# --- showing ------------------------------------------------------------------------------------------


def write(report: Json, out: Path) -> Path:
    """Writes samplers.json, table.md and the figures; returns the table."""
    write_json(out / "samplers.json", report)
    for name, draw in {"solvers": draw_solvers, "grids": draw_grids}.items():
        if (drawn := draw(report)) is not None:
            write_atomically(out / "figures" / f"{name}.png", partial(drawn.savefig, dpi=DPI))
    write_text(out / "table.md", markdown(report))
    return out / "table.md"


def name_of(curve: Json) -> str:
    return " ".join(filter(None, (curve["solver"], curve["grid"] and f"on {curve['grid']}")))


def cell(curve: Json, budget: int, key: str) -> str:
    return next((shown(point, key) for point in curve["points"] if point.get("budget") == budget), "–")


def shown(point: Json, key: str) -> str:
    """A metric with its range over the draws, seconds as milliseconds."""
    if "failed" in point:
        return "failed"
    if key not in point:
        return "–"
    if key == "nfe":
        return str(point[key])
    low, high = (number(end(point["metrics"])) for end in (min, max))
    spread = f" ({low} to {high})" if key == "metric" and low != high else ""
    return number(1e3 * point[key] if key == "seconds" else point[key]) + spread


def markdown(report: Json) -> str:
    """The report as tables: a row for each solver and grid, a column for each budget."""
    metric, reference, options = report["metric"], report["reference"], report["options"]
    curves = [curve for curve in report["curves"] if curve["refused"] is None]
    fixed = [curve for curve in curves if curve["grid"] is not None]
    budgets = sorted(options["evaluations"])
    draws = f"one draw, of seed {options['seed']}"
    if options["draws"] > 1:
        draws = f"medians of {options['draws']} draws from seed {options['seed']} on, with their range"
    lines = [
        f"# Samplers on {report['run']}",
        "",
        f"{capital(report['data'])}, {options['samples']} samples from the same noise, guidance "
        f"{words(options['guidance'])}; {draws}. {capital(metric['words'])} to held-out data, of real data "
        f"{number(report['floor'])}. The reference ({reference['solver']}) takes {reference['nfe']} evaluations and "
        f"has {shown(reference, 'metric')}; with half the steps it ends {number(reference['error'])} from there. "
        f"{report['machine']['device']}, {report['machine']['threads']} threads, torch {report['machine']['torch']}.",
    ]
    heads = {
        "metric": capital(metric["words"]),
        "error": "Distance of the ends to the reference's, root mean square of the values of a sample",
        "seconds": "Milliseconds for all samples of a draw",
    }
    best = [(budget, ranked(fixed, budget, metric["lower"])[:3]) for budget in budgets]
    lines += ["", *(f"- Best at {budget}: {listed(names)}." for budget, names in best if names)]
    for key, head in heads.items() if fixed else ():
        lines += ["", f"## {head}, by network evaluations at most", ""]
        rows = [
            [curve["solver"], curve["grid"], *(cell(curve, b, key) for b in budgets)]
            for curve in fixed
            if any(key in point or "failed" in point for point in curve["points"])
        ]
        lines += table(["solver", "grid", *map(str, budgets)], rows)
    if points := [(curve, point) for curve in curves if curve["grid"] is None for point in curve["points"]]:
        lines += ["", "## Steps by tolerance", ""]
        columns = {"nfe": "evaluations", "metric": metric["words"], "error": "distance", "seconds": "ms"}
        rows = [
            [curve["solver"], f"{point['tolerance']:g}", *(shown(point, key) for key in columns)]
            for curve, point in points
        ]
        lines += table(["solver", "tolerance", *columns.values()], rows)
    failed = {
        f"{name_of(curve)}: {curve['refused'] or point['failed']}"
        for curve in report["curves"]
        for point in (curve["points"] if curve["refused"] is None else [{}])
        if curve["refused"] or "failed" in point
    }
    if failed:
        lines += ["", "## What could not be used", "", *(f"- {line}" for line in sorted(failed))]
    return "\n".join(lines) + "\n"


def ranked(curves: list[Json], budget: int, lower: bool) -> list[str]:
    """Curves within a budget with their metric, the best first."""
    found = {
        name_of(curve): point["metric"]
        for curve in curves
        for point in curve["points"]
        if point["budget"] == budget and "metric" in point
    }
    order = sorted(found, key=lambda name: found[name], reverse=not lower)
    return [f"{name} {number(found[name])}" for name in order]


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [md_row([md(cell) for cell in line]) for line in lines]


@styled
def draw_solvers(report: Json) -> Figure | None:
    """The metric, its median and range over the draws, against evaluations and against seconds: solvers in groups,
    each on the first of its grids."""
    first: dict[str, Json] = {}
    for curve in report["curves"]:
        if any("metric" in point for point in curve["points"]):
            first.setdefault(curve["solver"], curve)
    groups: dict[str, list[Json]] = {}
    for curve in first.values():
        groups.setdefault(curve["group"], []).append(curve)
    if not groups:
        return None
    grids = sorted({curve["grid"] for curve in first.values() if curve["grid"]})
    fig = figure(
        report, len(groups), 2.6, f"{report['data']}, on {listed(grids)}" if grids else report["data"]
    )
    reference: dict[str, Any] = {"color": SOFT, "linewidth": 1, "linestyle": (0, (4, 3))}
    others: dict[str, Any] = {"color": "#d5d9de", "linewidth": 0.8}
    rows = {"height_ratios": [0.07 * max(map(len, groups.values())), 1, 1]}
    keys, *axes = fig.subplots(3, len(groups), sharey="row", sharex="row", squeeze=False, gridspec_kw=rows)
    for column, (title, curves) in enumerate(sorted(groups.items())):
        look = looks_of(curve["solver"] for curve in curves)
        for ax, x in zip((axes[0][column], axes[1][column]), ("nfe", "seconds"), strict=True):
            for curve in first.values():
                plot(ax, curve, x, "metric", **others, zorder=1)
            for curve in curves:
                chosen = look[curve["solver"]]
                plot(ax, curve, x, "metric", color=chosen.colour, marker=chosen.marker, zorder=4)
                for point in (point for point in curve["points"] if "metric" in point):
                    ax.vlines(
                        point[x], min(point["metrics"]), max(point["metrics"]), color=chosen.colour, alpha=0.5
                    )
            ax.axhline(report["floor"], **REAL, zorder=1)
            ax.axhline(report["reference"]["metric"], **reference, zorder=2)
            ax.set_xlabel(
                "Network evaluations" if x == "nfe" else f"Seconds for {report['options']['samples']} samples"
            )
        handles = [
            Line2D([], [], color=look[name].colour, marker=look[name].marker, label=name) for name in look
        ]
        keys[column].set_axis_off()
        keys[column].set_title(capital(title))
        keys[column].legend(handles=handles, loc="upper left", fontsize=7.5, borderaxespad=0)
    for row in axes:
        row[0].set_ylabel(capital(report["metric"]["words"]))
    finish(axes[0], [1, 2, 4, 8, 16, 32, 64, 256, 1024])
    finish(axes[1], None)
    marks = [
        Line2D([], [], **REAL, label="real data"),
        Line2D([], [], **reference, label=f"reference, {report['reference']['nfe']} evaluations"),
        Line2D([], [], **others, label="the other solvers"),
    ]
    fig.legend(handles=marks, loc="outside lower left", ncols=3)
    return fig


@styled
def draw_grids(report: Json) -> Figure | None:
    """The error against evaluations on several grids, for each solver that has it; None where no solver has two."""
    solvers: dict[str, list[Json]] = {}
    for curve in report["curves"]:
        if curve["grid"] and any("error" in point for point in curve["points"]):
            solvers.setdefault(curve["solver"], []).append(curve)
    shown = [name for name, curves in solvers.items() if len(curves) > 1][:8]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    fig = figure(report, columns, rows, report["data"])
    axes = fig.subplots(rows, columns, sharey=True, sharex=True, squeeze=False)
    look = looks_of(dict.fromkeys(curve["grid"] for name in shown for curve in solvers[name]))
    for ax, name in zip(axes.flat, shown, strict=False):
        for curve in solvers[name]:
            chosen = look[curve["grid"]]
            plot(ax, curve, "nfe", "error", color=chosen.colour, marker=chosen.marker, zorder=4)
        ax.set_title(name)
        ax.set_xlabel("Network evaluations")
    for ax in list(axes.flat)[len(shown) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("Distance to the reference")
    finish(axes.flat, [1, 2, 4, 8, 16, 32, 64])
    handles = [Line2D([], [], color=one.colour, marker=one.marker, label=name) for name, one in look.items()]
    fig.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 3 * columns))
    return fig


def figure(report: Json, columns: int, rows: float, title: str) -> Figure:
    fig = Figure(
        figsize=(max(5.0, 2.9 * columns), 0.8 + 2.8 * rows), dpi=DPI, layout="constrained", facecolor="white"
    )
    fig.suptitle(f"{report['run']}: {title}", x=0.01, ha="left")
    return fig


def plot(ax: Axes, curve: Json, x: str, y: str, **style: Any) -> None:
    points = sorted((point[x], point[y]) for point in curve["points"] if y in point)
    if points:
        ax.plot(*zip(*points, strict=True), **style)


def finish(axes: Iterable[Axes], ticks: list[int] | None) -> None:
    """Logarithmic axes with plain numbers; those of a row are of one scale."""
    for ax in axes:
        ax.set_xscale("log")
        ax.set_yscale("log")
        plain_ticks(ax.xaxis, LogLocator(subs=(1.0,)) if ticks is None else FixedLocator(ticks))
        plain_ticks(ax.yaxis, LogLocator(subs=(1.0, 2.0, 5.0)))
