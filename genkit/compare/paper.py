"""A paper's recipe, run, and what it expects held against what was measured.

    recipe with `paper` and `expected` ── compare ── report ── verdicts ── report["expected"], the page, a table

Each entry of `expected` is a figure, found in the report by arm, metric and steps, or a claim: an order of figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from genkit.compare.numbers import Json, Stat, stat
from genkit.compare.report import print_columns, reasons, verdict_rows
from genkit.compare.runner import Comparison
from genkit.compare.terminal import Terminal
from genkit.errors import GenkitError, choose, within
from genkit.metrics import METRICS
from genkit.recipe import read_yaml
from genkit.registry import resolve_options

PAPERS = Path(__file__).parents[2] / "recipes" / "papers"
OF_RUNS = (
    "curvature",
    "transport_cost",
    "normalized_path_energy",
    "seconds",
    "tokens",
    "train",
    "control",
    "sizes",
)
Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Expected:
    """What is expected of a run of the recipe.

    metric: a figure of a point (`wasserstein`) or of a run (`curvature`, `bits_per_dim`, `train.seconds`) in the
        report; by default the entry's name.
    arm: by default the only one. steps, or nfe: of the point, where an arm has several.
    paper, ours: the figure that was published, and that measured here with this recipe; one of them is expected.
    tolerance: how far a run may be from it. stderr: of ours.
    claim: instead of a figure, an order such as `ot < independent`, of arms or ARM@STEPS, by `metric` and `steps`;
        `ours` then is the verdict that was found here, and `paper` may say anything.
    seeds: over how many ours was taken: a run of fewer leaves a miss undecided.
    protocol, machine: how, and where. note: the cause, where something does not hold.
    """

    metric: str | None = None
    arm: str | None = None
    steps: int | None = None
    nfe: int | None = None
    paper: float | str | None = None
    ours: float | str | None = None
    tolerance: float | None = None
    stderr: float | None = None
    claim: str | None = None
    seeds: int = 1
    protocol: str | None = None
    machine: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.claim is not None:
            if self.arm is not None:
                raise GenkitError("claim: it names its arms itself, leave `arm` out")
            self.sides()
            return
        for key in ("paper", "ours"):
            if isinstance(getattr(self, key), str):
                raise GenkitError(f"{key} must be a number, not {getattr(self, key)!r}")
        if self.paper is None and self.ours is None:
            raise GenkitError("it expects nothing: give a figure as `ours` or `paper`, or a `claim`")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise GenkitError(f"tolerance must not be negative, not {self.tolerance}")

    def sides(self) -> list[tuple[str, int | None]]:
        """(arm, steps) of a claim, from the smallest. Raises GenkitError for what is no order."""
        words = [word.strip() for word in re.split("[<>]", self.claim or "")]
        signs = set(re.findall("[<>]", self.claim or ""))
        found = [re.fullmatch(r"([^@]+?)(?:@(\d+))?", word) for word in words]
        if len(signs) != 1 or not all(found):
            raise GenkitError(
                f"claim: an order is such as 'ot < independent' or 'a@1 < b@4', not {self.claim!r}"
            )
        sides = [(str(one[1]), int(one[2]) if one[2] else self.steps) for one in found if one]
        return sides if signs == {"<"} else sides[::-1]


@dataclass(frozen=True)
class Found:
    """An entry beside what was measured: for a figure its Stat, for a claim that of each side in order.

    Where the report has no such figure, nothing is measured, and `missing` says what there is instead.
    """

    name: str
    entry: Expected
    measured: list[Stat]
    verdict: Verdict
    missing: str = ""

    def plain(self) -> dict[str, Any]:
        entry = {key: value for key, value in asdict(self.entry).items() if value is not None}
        metric = {"metric": self.entry.metric or self.name}
        stats = [one._asdict() for one in self.measured]
        missing = {"missing": self.missing} if self.missing else {}
        return {"name": self.name, **entry, **metric, "measured": stats, "verdict": self.verdict, **missing}


def find(paper: str) -> Path:
    """The recipe of a paper: a YAML file, FOLDER under recipes/papers (its small.yaml), or FOLDER/FILE there."""
    if paper.endswith((".yaml", ".yml")):
        return Path(paper)
    for file in (PAPERS / paper / "small.yaml", PAPERS / f"{paper}.yaml"):
        if file.is_file():
            return file
    there = sorted(folder.parent.name for folder in PAPERS.glob("*/small.yaml"))
    if not there:
        raise GenkitError(
            f"there are no papers' recipes beside this installation: give a YAML file, not '{paper}'"
        )
    raise choose(paper, there, "paper")


def load(path: Path, overrides: Iterable[str] = ()) -> tuple[Comparison, dict[str, Expected]]:
    """The comparison that a paper's recipe is, one arm `model` where it has no arms, and what it expects.

    Raises GenkitError for a recipe without `paper` or `expected`, and for entries that no report could answer.
    """
    overrides = list(overrides)
    config = read_yaml(path, overrides)
    for key in ("paper", "expected"):
        if not isinstance(config.get(key), Mapping) or not config[key]:
            raise GenkitError(f"{path}: a paper's recipe has a section `{key}`, a mapping")
    alone = [] if "arms" in config else ["arms={model: {}}"]
    comparison = Comparison.load(path, [*overrides, *alone])
    entries = expectations(comparison)
    for name, entry in entries.items():
        with within(f"{path}: expected.{name}"):
            check(name, entry, comparison)
    return comparison, entries


def expectations(comparison: Comparison) -> dict[str, Expected]:
    """What a comparison expects, by name; empty where it says nothing. Raises GenkitError for entries that are none."""
    entries = {}
    given = comparison.shared.get("expected") or {}
    if not isinstance(given, Mapping):
        raise GenkitError(f"{comparison.source}: expected must be a mapping of entries, not {given!r}")
    for name, options in given.items():
        where = f"{comparison.source}: expected.{name}"
        if not isinstance(options, Mapping):
            raise GenkitError(
                f"{where} must be a mapping such as {{ours: 1.5, tolerance: 0.2}}, not {options!r}"
            )
        resolved = resolve_options(Expected, options, where)
        with within(where):
            entries[name] = Expected(**resolved)
    return entries


def check(name: str, entry: Expected, comparison: Comparison) -> None:
    """Raises GenkitError for an arm, a metric or steps that the comparison has not."""
    metric = (entry.metric or name).partition(".")[0]
    if metric not in {*METRICS.names(), *OF_RUNS}:
        raise choose(metric, (*METRICS.names(), *OF_RUNS), "metric")
    sides = entry.sides() if entry.claim else [(entry.arm, entry.steps)]
    for arm, steps in sides:
        if arm is None and len(comparison.arms) > 1:
            raise GenkitError(f"give the arm: {', '.join(comparison.arms)}")
        if arm is not None and arm not in comparison.arms:
            raise choose(arm, comparison.arms, "arm")
        if steps is not None and steps not in comparison.options().steps:
            raise GenkitError(f"nothing is measured at {steps} steps, but at {comparison.options().steps}")


def judged(entries: Mapping[str, Expected], report: Json) -> list[Found]:
    """Each entry beside its figures in the report; undecided where the report has none."""
    found = []
    for name, entry in entries.items():
        metric = entry.metric or name
        sides = entry.sides() if entry.claim else [(entry.arm or next(iter(report["arms"])), entry.steps)]
        try:
            measured = [look_up(report, arm, metric, steps, entry.nfe) for arm, steps in sides]
        except GenkitError as error:  # a report of hours is not lost for it
            found.append(Found(name, entry, [], "undecided", str(error)))
            continue
        decide = of_claim if entry.claim else of_figure
        found.append(Found(name, entry, measured, decide(entry, measured)))
    return found


def verdicts(comparison: Comparison, report: Json) -> dict[str, Any]:
    """The entries `paper` and `expected` of a report; empty for a recipe that expects nothing."""
    found = judged(expectations(comparison), report)
    paper = comparison.shared.get("paper")
    paper = dict(paper) if isinstance(paper, Mapping) else {}
    return {"paper": paper, "expected": [one.plain() for one in found]} if found else {}


def look_up(report: Json, arm: str, metric: str, steps: int | None, nfe: int | None) -> Stat:
    """A figure over the runs of an arm: of its point at `steps` or `nfe`, or, dotted, of the run itself."""
    if arm not in report["arms"]:
        raise choose(arm, report["arms"], "arm")
    values = [value_of(run, metric, steps, nfe) for run in report["arms"][arm]["runs"]]
    found = stat(values)
    if found is None:
        raise GenkitError(f"{metric} is no finite number in the report: {values}")
    return found


def value_of(run: Json, metric: str, steps: int | None, nfe: int | None) -> float | None:
    points = [point for point in run["points"] if metric in point]
    if points:
        own = len(points) == 1 and points[0].get("steps") is None  # a model's own number of calls
        chosen = [
            point
            for point in points
            if own or (steps in (None, point.get("steps")) and nfe in (None, point["nfe"]))
        ]
        if len(chosen) != 1:
            at = ", ".join(str(point.get("steps")) for point in points)
            raise GenkitError(f"{metric} is measured at {at} steps: give `steps`, one of them")
        return chosen[0][metric]
    value: Any = run
    for word in metric.split("."):
        try:
            value = value[int(word)] if isinstance(value, list) else value[word]
        except (KeyError, IndexError, ValueError, TypeError):
            raise GenkitError(f"the report has no {metric}") from None
    value = value["value"] if isinstance(value, Mapping) and "value" in value else value
    if value is not None and not isinstance(value, int | float):
        raise GenkitError(f"{metric} is no number in the report, but {value!r}")
    return value


def of_figure(entry: Expected, measured: list[Stat]) -> Verdict:
    """Within the tolerance it holds; within the spread beyond, or over fewer seeds than ours, a miss is undecided."""
    (found,) = measured
    expected = entry.ours if entry.ours is not None else entry.paper
    assert isinstance(expected, int | float)
    if entry.tolerance is None:
        return "undecided"
    beyond = abs(found.mean - expected) - entry.tolerance
    if beyond <= 1e-9 * abs(expected):
        return "holds"
    if beyond <= (found.spread or 0.0) or found.seeds < entry.seeds:
        return "undecided"
    return "does not hold"


def of_claim(entry: Expected, measured: list[Stat]) -> Verdict:
    """An order holds where all neighbours differ by more than chance: their spreads, or of single seeds 5%."""
    pairs = list(zip(measured, measured[1:], strict=False))
    if any(a.mean > b.mean and not a.level(b) for a, b in pairs):
        return "undecided" if measured[0].seeds < entry.seeds else "does not hold"
    return "undecided" if any(a.level(b) for a, b in pairs) else "holds"


def print_verdicts(report: Json, *, console: Console | None = None) -> None:
    """The paper, then of each entry the verdict, what was measured, what is expected, and the paper's figure."""
    console, paper = console or Terminal(), report["paper"]
    console.print()
    console.print(Text(f"{paper.get('title', '')} {paper.get('link', '')}".strip(), style="bold"))
    if paper.get("claim"):
        console.print(Text(str(paper["claim"])))
    console.print()
    if rows := verdict_rows(report):
        print_columns(console, "", "", rows.heads, rows.arms)
    for name, why in reasons(report).items():
        console.print(Text(f"{name}: {why}", style="dim"))
