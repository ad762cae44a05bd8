"""The report of a comparison: what was measured, as JSON, Markdown, a page and a table in the terminal.

    report (a mapping) ── write_report ── OUT/report.json, table.md, figures/*.png, report.html

The page is one file that asks for nothing else: pictures are inlined, there are no scripts. Whatever comes
from a recipe or a data set is escaped.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

import genkit
from genkit.compare.figures import (
    Json,
    Measure,
    Stat,
    by_nfe,
    capital,
    conditional,
    likelihood,
    looks,
    main_measure,
    measures,
    measures_of,
    number,
    put,
    save_figures,
    spent,
    stat,
)


def write_report(report: Json, out: str | Path) -> Path:
    """Writes report.json, table.md, figures/*.png and report.html under `out`; returns the page.

    Pictures of samples are drawn from OUT/<folder of a run>/samples.safetensors and OUT/data.safetensors.
    Raises GenkitError naming what cannot be written.
    """
    out = Path(out)
    content = json.dumps(_finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    put(out / "report.json", f"{content}\n".encode())
    put(out / "table.md", markdown(report).encode())
    figures = save_figures(report, out)
    return put(out / "report.html", html(report, figures).encode())


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


CLOSE = 1.05  # a ratio of distances that a single seed does not decide


# --- what the numbers say -----------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Which arm has the best main distance at `nfe` network evaluations.

    level: the arms that are not told from it: by the spread over seeds or, with one seed, within 5%.
    """

    nfe: int
    best: str
    value: Stat
    second: str
    other: Stat
    level: tuple[str, ...]


def verdicts(report: Json) -> list[Verdict]:
    """One for each number of evaluations at which two arms or more were measured."""
    key = main_measure(report).key
    found: dict[int, dict[str, Stat]] = {}
    for name, arm in report["arms"].items():
        for nfe, value in by_nfe(arm, key).items():
            found.setdefault(nfe, {})[name] = value
    result = []
    for nfe, values in sorted(found.items()):
        if len(values) > 1:
            best, second, *_ = ranked = sorted(values, key=lambda name: values[name].mean)
            level = tuple(name for name in ranked[1:] if _level(values[best], values[name]))
            result.append(Verdict(nfe, best, values[best], second, values[second], level))
    return result


def _level(best: Stat, other: Stat) -> bool:
    if best.spread is None or other.spread is None:
        return other.mean <= CLOSE * best.mean
    return other.level(best)


def margin(better: float, worse: float) -> str:
    """How much lower `better` is, in words.

    >>> margin(55, 370), margin(21, 22), margin(20, 20)
    ('6.7 times lower than', '5% lower than', 'level with')
    """
    if not better > 0:
        return "lower than" if better < worse else "level with"
    ratio = worse / better
    if ratio >= 2:
        return f"{ratio:.1f} times lower than" if ratio < 9.95 else f"{ratio:,.0f} times lower than"
    percent = round(100 * (1 - better / worse))
    return f"{percent}% lower than" if percent else "level with"


def headline(report: Json) -> str:
    """The result in a sentence or two, as text."""
    found, measure = verdicts(report), main_measure(report)
    if not found:
        return f"No two arms have a {measure.name} at the same number of network evaluations."
    clear: dict[str, list[int]] = {}
    for verdict in found:
        if not verdict.level:
            clear.setdefault(verdict.best, []).append(verdict.nfe)
    sentences = []
    if clear:
        (name, counts), *others = clear.items()
        parts = [f"{name} is best at {_evaluations(counts)}"]
        parts += [f"{other} at {_list(counts)}" for other, counts in others]
        sentences.append(
            f"By {measure.name}, {', '.join(parts[:-1])}{', and ' if others else ''}{parts[-1]}."
        )
    if unclear := [verdict.nfe for verdict in found if verdict.level]:
        reason = "within the seeds' spread" if _seeds(report) > 1 else "within 5%, too close for one seed"
        sentences.append(f"At {_evaluations(unclear)} the best arms are level: {reason}.")
    return " ".join(sentences)


def equivalents(report: Json) -> str:
    """How many evaluations the arms take to match the best one at the fewest; empty where none was best."""
    found = verdicts(report)
    if not found:
        return ""
    nfe, best, value, *_ = found[0]
    takes: dict[str, int] = {}
    never = []
    for name, arm in report["arms"].items():
        values = by_nfe(arm, main_measure(report).key)
        enough = [n for n, other in values.items() if other.mean <= value.mean or _level(value, other)]
        if enough:
            takes[name] = min(enough)
        elif values:
            never.append(name)
    others = sorted((n, name) for name, n in takes.items() if name != best)
    text = f"{best} reaches {number(value.mean)} with {_evaluations([nfe])}"
    if others:
        (first, name), *rest = others
        match = [f"{name} takes {first} to match that", *(f"{name} {n}" for n, name in rest)]
        text += f"; {_list(match)}"
    if never:
        text += f"; {_list(never)} {'does' if len(never) == 1 else 'do'} not match it at any number measured"
    return f"{text}."


def _list(words: Iterable[object]) -> str:
    *some, last = [str(word) for word in words]
    return f"{', '.join(some)} and {last}" if some else last


def _evaluations(counts: Sequence[int]) -> str:
    return f"{_list(counts)} network evaluation{'' if list(counts) == [1] else 's'}"


def _seeds(report: Json) -> int:
    return max((len(arm["runs"]) for arm in report["arms"].values()), default=0)


# --- tables -------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """Text of a table, a smaller note to it, and whether it is the best of its column."""

    text: str
    note: str = ""
    best: bool = False

    @classmethod
    def of(cls, value: Stat | None, best: bool = False) -> Cell:
        if value is None:
            return cls("–")
        return cls(number(value.mean), "" if value.spread is None else f"± {value.spread_text}", best)

    def __str__(self) -> str:
        return f"{self.text} {self.note}" if self.note else self.text


class Rows(NamedTuple):
    """A table: column heads, a row of cells for each arm, and what stands around them.

    over: (head, columns) of groups of columns. real: (name, cells) of a last row, for real data.
    """

    heads: list[str]
    arms: dict[str, list[Cell]]
    over: list[tuple[str, int]] | None = None
    real: tuple[str, list[Cell]] | None = None


def by_evaluations(
    report: Json, cells: Mapping[str, Mapping[int, Cell]], real: tuple[str, float] | None = None
) -> Rows:
    """A table with a column for each number of evaluations: cells of an arm by number."""
    nfes = sorted({nfe for values in cells.values() for nfe in values})
    return Rows(
        [str(nfe) for nfe in nfes],
        {name: [cells[name].get(nfe, Cell("–")) for nfe in nfes] for name in report["arms"]},
        [("network evaluations", len(nfes))],
        real and (real[0], [Cell(number(real[1]))] * len(nfes)),
    )


def quality_rows(report: Json, measure: Measure) -> Rows:
    """A metric of each arm by network evaluations, with its floor."""
    values = {name: by_nfe(arm, measure.key) for name, arm in report["arms"].items()}
    nfes = {nfe for of_arm in values.values() for nfe in of_arm}
    best = {
        nfe: _best({name: of_arm[nfe] for name, of_arm in values.items() if nfe in of_arm}, measure.lower)
        for nfe in nfes
    }
    cells = {
        name: {nfe: Cell.of(value, name in best[nfe]) for nfe, value in of_arm.items()}
        for name, of_arm in values.items()
    }
    floor = report["floor"].get(measure.key)
    return by_evaluations(report, cells, None if floor is None else ("train against test", floor))


def _best(values: Mapping[str, Stat], lower: bool | None) -> set[str]:
    """The best of several arms and those that the seeds' spread does not tell from it."""
    if lower is None or len(values) < 2:
        return set()
    best = (min if lower else max)(values.values(), key=lambda value: value.mean)
    return {name for name, value in values.items() if value.level(best)}


def _bits(arm: Json) -> tuple[Cell, str]:
    """bits/dim with its error (the spread over seeds, or the standard error of one run), and its kind."""
    found = likelihood(arm)
    if found is None:
        return Cell("–"), ""
    value, error, kind = found
    return Cell(f"{value:.3f}", f"± {error:.3f}" if error else ""), kind


def tokens(value: float) -> str:
    """A count of tokens.

    >>> tokens(3072000), tokens(16), tokens(1536.0), tokens(2.5e9)
    ('3.07 M', '16', '1.54 k', '2.50 G')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{value:.4g}"


def _over_runs(arm: Json, key: str) -> Stat | None:
    return stat(run.get(key) for run in arm["runs"])


def main_rows(report: Json) -> Rows:
    """The table of table.md and the terminal: quality, then bits/dim, training cost, curvature."""
    rows = quality_rows(report, main_measure(report))
    for name, arm in report["arms"].items():
        bits, kind = _bits(arm)
        rows.arms[name].extend(
            [
                Cell(f"{bits} ({kind})" if kind else "–"),
                Cell(tokens(spent(arm, "tokens").total.mean)),
                Cell.of(spent(arm, "seconds").total),
                Cell.of(_over_runs(arm, "curvature")),
            ]
        )
    rows.heads.extend(["bits/dim (kind)", "train tokens", "train s", "curvature"])
    return rows


def _main_title(report: Json) -> str:
    measure = main_measure(report)
    floor = report["floor"].get(measure.key)
    title = f"{capital(measure.name)} at each number of network evaluations"
    return title if floor is None else f"{title} (floor {number(floor)})"


def _main_note(report: Json) -> str:
    seeds = _seeds(report)
    error = (
        f"± is the standard deviation over {seeds} seeds"
        if seeds > 1
        else "± is the standard error over test rows"
    )
    return f"Lower is better; {error}. Training tokens and seconds include the teacher's."


def markdown(report: Json) -> str:
    """The main table in Markdown."""
    rows = main_rows(report)
    assert rows.over is not None
    measured = rows.over[0][1]
    heads = [f"at {head}" if i < measured else head for i, head in enumerate(rows.heads)]
    lines = [
        f"**{_md(report['name'])}**: {_md(_main_title(report))}",
        "",
        _md_row(["arm", *heads]),
        _md_row(["---", *["---:"] * len(heads)]),
    ]
    for name, cells in rows.arms.items():
        texts = (f"**{cell}**" if cell.best else _md(cell) for cell in cells)
        lines.append(_md_row([_md(name), *texts]))
    return "\n".join([*lines, "", _main_note(report), ""])


def _md(text: object) -> str:
    """Text that Markdown shows as it is, also in a table."""
    plain = escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{c}" if c in "\\|*_`[]" else c for c in plain)


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def print_table(report: Json, page: str | Path | None = None, *, console: Console | None = None) -> None:
    """Prints the main table in two parts, the result in a sentence, and where the report is."""
    console = console or Console()
    rows = main_rows(report)
    assert rows.over is not None
    measured = rows.over[0][1]
    console.print()
    for title, part in (
        (_main_title(report), slice(measured)),
        ("Likelihood and cost", slice(measured, None)),
    ):
        table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
        longest = max((len(name) for name in rows.arms), default=0)
        table.add_column("arm", min_width=min(longest, 14), max_width=24, overflow="fold")
        for head in rows.heads[part]:
            table.add_column(Text(head), justify="right")
        for name, cells in rows.arms.items():
            texts = (Text(str(cell), style="bold green" if cell.best else "") for cell in cells[part])
            table.add_row(Text(name), *texts)
        console.print(table)
        console.print()
    console.print(Text(_main_note(report), style="dim"))
    console.print(Text(headline(report)))
    if page is not None:
        console.print(Text(f"report: {page}", style="bold"), soft_wrap=True)


def print_evaluation(name: str, result: Json, *, console: Console | None = None) -> None:
    """Prints the evaluation of one run: a row for each number of network evaluations, and what else it has."""
    console = console or Console()
    shown = measures_of(result["points"])
    table = Table(title=Text(f"Samples of {name}"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in (
        "evaluations",
        "steps",
        *(measure.key.replace("_", " ") for measure in shown),
        "seconds",
        "tokens",
    ):
        table.add_column(Text(head), justify="right")
    for point in result["points"]:
        values = (point.get(measure.key) for measure in shown)
        table.add_row(
            str(point["nfe"]),
            str(point.get("steps") or "–"),
            *("–" if value is None else number(value) for value in values),
            number(point["seconds"]),
            tokens(point["tokens"]),
        )
    console.print(table)
    bits, kind = _bits({"runs": [result]})
    if kind:
        console.print(Text(f"bits/dim {bits} ({kind})"))
    for key in ("curvature", "transport_cost"):
        if result.get(key) is not None:
            console.print(Text(f"{key.replace('_', ' ')} {number(result[key])}"))


# --- the page -----------------------------------------------------------------------------------------


def html(report: Json, figures: Mapping[str, Path]) -> str:
    """The page; `figures` are PNG files by name."""
    body = _Page(report, figures).body()
    template = (files("genkit.compare") / "templates" / "report.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(f"{report['name']}: genkit comparison"), body=body)


class _Page:
    """Writes the parts of the page. Methods return HTML; text from outside goes through `escape`."""

    def __init__(self, report: Json, figures: Mapping[str, Path]) -> None:
        self.report, self.figures = report, figures
        self.arms: Mapping[str, Json] = report["arms"]
        self.looks = looks(report)
        self.measure = main_measure(report)
        self.image = len(report["data"]["shape"]) == 3
        self.seeds = _seeds(report)

    def body(self) -> str:
        sections = {
            "Quality": self.quality(),
            "Samples": self.samples(),
            "Likelihood": self.likelihood(),
            "Cost": self.cost(),
            "Paths": self.paths(),
            "Memorization": self.memorization(),
            "Training curves": self.curves(),
            "Protocol": self.protocol(),
        }
        kept = {title.lower().replace(" ", "-"): (title, text) for title, text in sections.items() if text}
        links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, (title, _) in kept.items())
        parts = "".join(
            f'<section id="{anchor}"><h2>{title}</h2>{text}</section>'
            for anchor, (title, text) in kept.items()
        )
        return (
            f"<header>{self.top()}<nav>{links}</nav></header>\n<main>{parts}</main>\n"
            f"<footer>genkit {escape(genkit.__version__)}. The numbers are in report.json, "
            "the main table in table.md.</footer>"
        )

    # --- parts

    def top(self) -> str:
        data, count = self.report["data"], self.report["evaluation"]["samples"]
        shared = {run["backbone_parameters"] for arm in self.arms.values() for run in arm["runs"]}
        backbone = f" on one backbone of {shared.pop():,} parameters" if len(shared) == 1 else ""
        about = [
            f"{len(self.arms)} arms{backbone}",
            f"{data['name']}: {_shape(data)}",
            f"{data['train']:,} to train on, {count:,} samples to judge by",
            f"{self.seeds} seed{'' if self.seeds == 1 else 's'}",
        ]
        notes = [f"{capital(self.measure.name)} to test data: lower is better."]
        floor = self.report["floor"].get(self.measure.key)
        if floor is not None:
            notes.append(f"Real training data reach {number(floor)}.")
        if self.seeds > 1:
            notes.append(
                "± is the standard deviation over seeds; arms no further apart than theirs are level."
            )
        else:
            notes.append("There is one seed, so arms within 5% are called level, and more may be chance.")
        return (
            f"<h1>{escape(self.report['name'])}</h1>"
            f'<p class="kicker">{escape(" · ".join(about))}</p>'
            f'<p class="verdict">{self.prose(headline(self.report))}</p>'
            f'<ul class="cards">{"".join(map(self.card, verdicts(self.report)))}</ul>'
            f"<p>{self.prose(equivalents(self.report))}</p>"
            f'<p class="note">{escape(" ".join(notes))}</p>'
        )

    def card(self, verdict: Verdict) -> str:
        winners = "".join(f"<div>{self.arm(name)}</div>" for name in (verdict.best, *verdict.level))
        spread = "" if verdict.value.spread is None else f" <small>± {verdict.value.spread_text}</small>"
        if verdict.level:
            by = "level, within the spread over seeds" if self.seeds > 1 else "level, within 5%"
        else:
            less = margin(verdict.value.mean, verdict.other.mean)
            by = f"{less} {verdict.second} ({number(verdict.other.mean)})"
        return (
            f'<li style="--c:{self.looks[verdict.best].colour}">'
            f'<div class="at">{verdict.nfe} evaluation{"" if verdict.nfe == 1 else "s"}</div>{winners}'
            f'<div class="value">{number(verdict.value.mean)}{spread}</div>'
            f'<div class="by">{self.prose(by)}</div></li>'
        )

    def quality(self) -> str:
        caption = (
            f"Lower and further left is better: {self.measure.name} to the test set against the network "
            "evaluations spent on a sample, both logarithmic. A dashed line carries an arm with a fixed "
            "number of evaluations across the plot; the grey line is what real training data reach, the "
            "best that can be expected."
        )
        bold = "Bold: the best of a column."
        if self.seeds > 1:
            caption += " Bands are ± one standard deviation over seeds."
            bold = "Bold: the best of a column, and what the seeds' spread does not tell from it."
        others = [m for m in measures(self.report) if m.key not in (self.measure.key, "nearest")]
        more = "".join(self.metric(measure) for measure in others)
        return (
            self.figure(
                "quality", f"{capital(self.measure.name)} of each arm by network evaluations", caption
            )
            + self.metric(self.measure)
            + f'<p class="note">{bold}</p>'
            + (f"<details><summary>Other metrics of the samples</summary>{more}</details>" if more else "")
        )

    def metric(self, measure: Measure) -> str:
        better = {True: " (lower is better)", False: " (higher is better)", None: ""}[measure.lower]
        table = self.table(quality_rows(self.report, measure))
        return f"<h3>{escape(capital(measure.name))}{better}</h3>{table}"

    def samples(self) -> str:
        if self.image:
            column = "a column is one class; " if conditional(self.report) else ""
            return self.figure(
                "samples",
                "Generated images of each arm at several numbers of steps",
                f"Read a block from top to bottom: each row spends more steps on the same noise; {column}"
                "these are the first samples of the first seed, not chosen ones.",
            )
        return self.figure(
            "density",
            "Generated points of each arm over test data at several numbers of steps",
            "Coloured samples should cover the grey test data and nothing else; a row is an arm, and steps "
            "grow to the right.",
        ) + self.figure(
            "trajectories",
            "Paths from source to sample of each arm",
            "Each line leads from a source point (hollow) to a sample (filled): the straighter the lines, "
            "the fewer steps a solver needs.",
        )

    def likelihood(self) -> str:
        cells = {name: _bits(arm) for name, arm in self.arms.items()}
        if not any(kind for _, kind in cells.values()):
            return ""
        arms = {name: [bits, Cell(kind or "–")] for name, (bits, kind) in cells.items()}
        error = "the standard deviation over seeds" if self.seeds > 1 else "the standard error over test rows"
        return (
            self.figure(
                "bits_per_dim",
                "Bits per dimension of the arms that have a likelihood",
                f"Shorter is better; whiskers are ± {error}.",
            )
            + self.table(Rows(["bits/dim", "kind"], arms))
            + '<p class="note">All are likelihoods of the same discrete test data. '
            "<b>exact</b>: the model's own; <b>bound</b>: the model is at least this good; "
            "<b>estimate</b>: a bound that was integrated numerically or by Monte Carlo.</p>"
        )

    def cost(self) -> str:
        count = self.report["evaluation"]["samples"]
        return (
            self.figure(
                "cost",
                "Quality of each arm against training time and sampling time",
                "Left: each arm stands at its training time including its teacher's (dotted), from its "
                "result at the fewest evaluations (filled) down to its best (hollow). Right: what time "
                "spent on sampling buys; the numbers count network evaluations.",
            )
            + f"<h3>Training</h3>{self.training()}"
            + '<p class="note">A teacher\'s training is counted in full to the student that needs it. '
            "Tokens: what passes through the whole backbone.</p>"
            + f"<h3>Sampling</h3>{self.sampling()}"
            + f'<p class="note">Seconds for {count:,} samples; tokens through the whole backbone for one.</p>'
        )

    def training(self) -> str:
        arms = {}
        for name, arm in self.arms.items():
            work, seconds, teacher = spent(arm, "tokens"), spent(arm, "seconds"), arm.get("teacher")
            arms[name] = [
                Cell(f"{arm['runs'][0]['steps']:,}"),
                Cell(tokens(work.own.mean)),
                Cell(tokens(work.teacher.mean) if teacher else "–"),
                Cell(tokens(work.total.mean)),
                Cell.of(seconds.own),
                Cell.of(seconds.teacher) if teacher else Cell("–"),
                Cell.of(seconds.total),
            ]
        three = ["own", "teacher's", "in all"]
        return self.table(Rows(["steps", *three, *three], arms, [("", 1), ("tokens", 3), ("seconds", 3)]))

    def sampling(self) -> str:
        cells = {}
        for name, arm in self.arms.items():
            work = by_nfe(arm, "tokens")
            cells[name] = {
                nfe: Cell(
                    f"{number(value.mean)} s", f"{tokens(work[nfe].mean)} tokens" if nfe in work else ""
                )
                for nfe, value in by_nfe(arm, "seconds").items()
            }
        return self.table(by_evaluations(self.report, cells))

    def paths(self) -> str:
        bends = {name: _over_runs(arm, "curvature") for name, arm in self.arms.items()}
        moves = {name: _over_runs(arm, "transport_cost") for name, arm in self.arms.items()}
        if not any([*bends.values(), *moves.values()]):
            return ""
        straight = _best({name: value for name, value in bends.items() if value}, True)
        short = _best({name: value for name, value in moves.items() if value}, True)
        arms = {
            name: [Cell.of(bends[name], name in straight), Cell.of(moves[name], name in short)]
            for name in self.arms
        }
        return (
            self.table(Rows(["curvature", "transport cost"], arms))
            + '<p class="note">Curvature is 0 for straight paths at constant speed, which one step follows '
            "exactly. Transport cost is the mean squared distance between the ends of a path, in encoded "
            "units.</p>"
        )

    def memorization(self) -> str:
        real = self.report["floor"].get("nearest")
        cells = {}
        for name, arm in self.arms.items():
            cells[name] = {
                nfe: Cell(number(value.mean), f"{value.mean / real:.2f}×" if real else "")
                for nfe, value in by_nfe(arm, "nearest").items()
            }
        if not any(cells.values()):
            return ""
        ratio = ", and its ratio to that of the test set" if real else ""
        return (
            self.table(by_evaluations(self.report, cells, None if real is None else ("test set", real)))
            + f'<p class="note">Mean distance of a sample to the nearest training sample{ratio}. '
            "Far below that of the test set, a model repeats its training data; far above, its samples are "
            "unlike any.</p>"
        )

    def curves(self) -> str:
        return self.figure(
            "curves",
            "Training loss of each arm by step",
            "Look for curves that still fall at the end: a larger budget would help. Panels hold different "
            "losses, and a coupling changes how low the loss of flow matching can get, so a lower curve is "
            "not a better model.",
        )

    def protocol(self) -> str:
        data, evaluation, machine = (self.report[key] for key in ("data", "evaluation", "machine"))
        arms = {}
        for name, arm in self.arms.items():
            run = arm["runs"][0]
            arms[name] = [
                Cell(str(arm["objective"])),
                Cell(str(arm.get("coupling") or "–")),
                Cell(str(arm.get("teacher") or "–")),
                Cell(f"{run['backbone_parameters']:,}"),
                Cell(f"{run['parameters']:,}"),
                Cell(_list(entry["seed"] for entry in arm["runs"])),
            ]
        heads = ["objective", "coupling", "teacher", "backbone", "all", "seeds"]
        table = Rows(heads, arms, [("", 3), ("parameters", 2), ("", 1)])
        facts = {
            "Data": f"{data['name']}, {data['train']:,} training and {data['test']:,} test samples",
            "Data hash": data["hash"],
            "Feature extractor": evaluation.get("extractor") or "none",
            "Extractor hash": evaluation.get("extractor_hash") or "–",
            "Samples": f"{evaluation['samples']:,} for each arm, seed and number of evaluations",
            "Noise": f"seed {evaluation['seed']}, the same for all arms",
            "Solver": f"{evaluation['solver']} at {_list(evaluation['steps'])} steps",
            "Guidance": f"{evaluation['guidance']}",
            "Machine": f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        }
        lines = "".join(
            f"<dt>{key}</dt><dd{' class=hash' if 'hash' in key else ''}>{escape(str(value))}</dd>"
            for key, value in facts.items()
        )
        return f"{self.table(table, words=3)}<dl>{lines}</dl>"

    # --- pieces

    def arm(self, name: str) -> str:
        return f'<span class="arm" style="--c:{self.looks[name].colour}">{escape(name)}</span>'

    def prose(self, text: str) -> str:
        """Escaped text whose arms are not broken over lines."""
        if not self.arms:
            return escape(text)
        names = "|".join(re.escape(name) for name in sorted(self.arms, key=len, reverse=True))
        parts = re.split(rf"(?<![\w-])({names})(?![\w-])", text)
        return "".join(
            f'<span class="name">{escape(part)}</span>' if part in self.arms else escape(part)
            for part in parts
        )

    def table(self, rows: Rows, *, words: int = 0) -> str:
        """words: how many columns hold text, from the left."""
        kinds = ["text" if i < words else "" for i in range(len(rows.heads))]
        lines = []
        if rows.over:
            over = "".join(
                f'<th colspan="{columns}"{" class=over" if head else ""}>{escape(head)}</th>'
                for head, columns in rows.over
            )
            lines.append(f"<tr><th></th>{over}</tr>")
        heads = zip(rows.heads, kinds, strict=True)
        lines.append(f"<tr><th>arm</th>{''.join(_cell('th', head, kind) for head, kind in heads)}</tr>")
        lines.append("</thead><tbody>")
        for name, cells in rows.arms.items():
            row = (
                _cell("td", cell.text, f"{kind} best" if cell.best else kind, cell.note)
                for cell, kind in zip(cells, kinds, strict=True)
            )
            lines.append(f'<tr><th scope="row">{self.arm(name)}</th>{"".join(row)}</tr>')
        if rows.real is not None:
            name, cells = rows.real
            row = (_cell("td", cell.text) for cell in cells)
            lines.append(f'<tr class="real"><th scope="row">{escape(name)}</th>{"".join(row)}</tr>')
        return f'<div class="scroll"><table><thead>{"".join(lines)}</tbody></table></div>'

    def figure(self, name: str, alt: str, caption: str) -> str:
        """A picture with its caption, at the size it was drawn for; empty where there is none."""
        if name not in self.figures:
            return ""
        content = self.figures[name].read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of the PNG's header
        source = base64.b64encode(content).decode()
        return (
            f'<figure><img src="data:image/png;base64,{source}" width="{width // 2}" height="{height // 2}" '
            f'alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'
        )


def _cell(tag: str, text: str, kind: str = "", note: str = "") -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    named = f' class="{kind.strip()}"' if kind.strip() else ""
    return f"<{tag}{named}>{escape(text)}{small}</{tag}>"


def _shape(data: Json) -> str:
    """ "8 × 8 images of 17 levels, 10 classes", "points in 2 dimensions"."""
    if len(data["shape"]) == 3:
        channels, height, width = data["shape"]
        text = f"{height} × {width} images{f' in {channels} channels' if channels > 1 else ''}"
    else:
        text = f"points in {math.prod(data['shape'])} dimensions"
    text += f" of {data['levels']} levels" if data.get("levels") else ""
    return text + (f", {data['classes']} classes" if data.get("classes") else "")
