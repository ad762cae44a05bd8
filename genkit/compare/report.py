"""The report of a comparison: what was measured, as JSON, Markdown, a page and a table in the terminal.

    report (a mapping) ── write_report ── OUT/report.json, table.md, figures/*.png, report.html

The page is one file that asks for nothing else: pictures are inlined, there are no scripts. Whatever comes
from a recipe or a data set is escaped.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

import genkit
from genkit.compare.answers import Answered, answered, wav
from genkit.compare.evaluate import shown_as
from genkit.compare.figures import looks, samples_file, save_figures, steps_label, tensors, unmasker_looks
from genkit.compare.numbers import (
    CLOSE,
    ENTROPY,
    PERPLEXITY,
    Json,
    Measure,
    Stat,
    best,
    by_nfe,
    by_unmasker,
    capital,
    conditional,
    likelihood,
    listed,
    main_measure,
    measures,
    number,
    over_runs,
    seeds,
    spent,
    stat,
    tokens,
    unit,
)
from genkit.compare.terminal import Terminal
from genkit.errors import a, printable
from genkit.files import write_json, write_text

COLUMNS = 3  # texts beside each other
POINTS = {"steps": "steps", "nfe": "network evaluations"}  # where a figure that is expected was measured


def write_report(report: Json, out: str | Path) -> Path:
    """Writes report.json, table.md, figures/*.png and report.html under `out`; returns the page.

    Pictures and sounds of samples come from OUT/<folder of a run>/samples.safetensors and OUT/data.safetensors.
    Raises GenkitError naming what cannot be written.
    """
    out = Path(out)
    write_json(out / "report.json", finite(report))
    write_text(out / "table.md", markdown(report))
    page = out / "report.html"
    figures = save_figures(report, out)
    write_text(page, html(report, figures, texts(report), sounds(report, out), answered(report, out)))
    return page


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(report: Json) -> str:
    """The result in a sentence: who is best, or level with the best, at each number of evaluations; of text also in
    likelihood."""
    measure = main_measure(report)
    found: dict[int, dict[str, Stat]] = {}
    for name, arm in report["arms"].items():
        for nfe, value in by_nfe(arm, measure.key).items():
            found.setdefault(nfe, {})[name] = value
    winners: dict[tuple[str, ...], list[int]] = {}
    for nfe, values in sorted(found.items()):
        if names := tuple(best(values, measure.lower)):
            winners.setdefault(names, []).append(nfe)
    likely = most_likely(report) if report["data"].get("text") else ""
    if len(report["arms"]) == 1 and report["data"].get("tasks"):
        return right_answers(report)
    if not winners:
        return f"No two arms have {a(measure.name)} at the same number of network evaluations.{likely}"
    (first, counts), *others = winners.items()
    evaluations = "network evaluation" if counts == [1] else "network evaluations"
    parts = [f"{' or '.join(first)} at {listed(counts)} {evaluations}"]
    parts += [f"{' or '.join(names)} at {listed(counts)}" for names, counts in others]
    return f"{'Lowest' if measure.lower else 'Highest'} {measure.name}: {'; '.join(parts)}.{likely}"


def right_answers(report: Json) -> str:
    """How often the one arm of a report is right in each task, with the most network evaluations."""
    ((name, arm),) = report["arms"].items()
    shares = {m.name: by_nfe(arm, m.key) for m in measures(report) if m.lower is False}
    if not shares:
        return f"{name} answers in {len(report['data']['tasks'])} tasks."
    nfe = max(nfe for values in shares.values() for nfe in values)
    parts = [f"{share} {number(values[nfe].mean)}" for share, values in shares.items()]
    return f"{name}, with {nfe} network evaluations: {'; '.join(parts)}."


def most_likely(report: Json) -> str:
    """Who gives test data the highest likelihood, as a further sentence; empty where no two arms have one, or some are
    told more of a sample than others."""
    found = {name: value for name, arm in report["arms"].items() if (value := likelihood(arm))}
    if len({kind.partition(", ")[2] for _, _, kind in found.values()}) > 1:
        return ""
    count = seeds(report)
    values = {name: Stat(value[0], value[1] if count > 1 else None, count) for name, value in found.items()}
    names = best(values, lower=True)
    return f" Lowest {unit(report)}: {' or '.join(names)} at {values[names[0]].mean:.2f}." if names else ""


# --- tables -------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """Text of a table, a smaller note to it, and whether it is the best of its column."""

    text: str
    note: str = ""
    best: bool = False

    @classmethod
    def of(cls, value: Stat | None, best: bool = False) -> Cell:
        return cls("–") if value is None else cls(number(value.mean), value.error, best)

    def __str__(self) -> str:
        return f"{self.text} {self.note}" if self.note else self.text


class Rows(NamedTuple):
    """A table: column heads, a row of cells for each arm, and what stands around them.

    groups: (head, columns) over the heads. real: a last row, for real data.
    """

    heads: list[str]
    arms: dict[str, list[Cell]]
    groups: list[tuple[str, int]] | None = None
    real: list[Cell] | None = None

    def lines(self) -> dict[str, list[Cell]]:
        """The rows by name, that of real data last."""
        return self.arms | ({"real data": self.real} if self.real else {})


def by_evaluations(report: Json, cells: Mapping[str, Mapping[int, Cell]], real: float | None = None) -> Rows:
    """A table with a column for each number of evaluations: cells of an arm by number."""
    nfes = sorted({nfe for values in cells.values() for nfe in values})
    return Rows(
        [str(nfe) for nfe in nfes],
        {name: [cells[name].get(nfe, Cell("–")) for nfe in nfes] for name in report["arms"]},
        [("network evaluations", len(nfes))],
        None if real is None else [Cell(number(real))] * len(nfes),
    )


def metric_rows(report: Json, measure: Measure) -> Rows:
    """A metric of each arm by network evaluations, with its floor."""
    values = {name: by_nfe(arm, measure.key) for name, arm in report["arms"].items()}
    nfes = {nfe for of_arm in values.values() for nfe in of_arm}
    columns = {nfe: {name: of_arm[nfe] for name, of_arm in values.items() if nfe in of_arm} for nfe in nfes}
    winners = {nfe: best(column, measure.lower) for nfe, column in columns.items()}
    cells = {
        name: {nfe: Cell.of(value, name in winners[nfe]) for nfe, value in of_arm.items()}
        for name, of_arm in values.items()
    }
    return by_evaluations(report, cells, report["floor"].get(measure.key))


def perplexity_rows(report: Json) -> Rows | None:
    """Generative perplexity of each arm by network evaluations, each with the entropy of its samples."""
    cells = {name: perplexity_cells(arm) for name, arm in report["arms"].items()}
    if not any(cells.values()):
        return None
    rows = by_evaluations(report, cells)
    floor = report["floor"]
    if PERPLEXITY in floor:
        real = Cell(number(floor[PERPLEXITY]), f"entropy {number(floor[ENTROPY])}")
        rows = rows._replace(real=[real] * len(rows.heads))
    return rows


def perplexity_cells(arm: Json) -> dict[int, Cell]:
    entropy = by_nfe(arm, ENTROPY)
    return {
        nfe: Cell(str(value), f"entropy {entropy[nfe]}" if nfe in entropy else "")
        for nfe, value in by_nfe(arm, PERPLEXITY).items()
    }


def unmasker_rows(report: Json) -> dict[str, Rows]:
    """For each arm that was sampled with several unmaskers, the main distance of each, and its perplexity."""
    measure = main_measure(report)
    found = {}
    for name, arm in report["arms"].items():
        cells = {unmasker: unmasker_cells(of_one, measure) for unmasker, of_one in by_unmasker(arm).items()}
        if cells:
            found[name] = by_evaluations({"arms": cells}, cells, report["floor"].get(measure.key))
    return found


def unmasker_cells(arm: Json, measure: Measure) -> dict[int, Cell]:
    judged = perplexity_cells(arm)
    cells = {}
    for nfe, value in by_nfe(arm, measure.key).items():
        notes = [value.error, f"ppl {judged[nfe].text}, {judged[nfe].note}" if nfe in judged else ""]
        cells[nfe] = Cell(number(value.mean), " · ".join(filter(None, notes)))
    return cells


def control_rows(report: Json) -> dict[str, Rows]:
    """For each energy that was sampled with particles, what each control gave and took."""
    found = {}
    for name, arm in report["arms"].items():
        entries = arm["runs"][0].get("control") or []
        shares = [key for key in ("precision", "recall") if all(key in entry for entry in entries)]
        heads = [*shares, "a classifier sees", "effective", "resamplings", "evaluations", "seconds"]
        rows = {
            entry["words"]: [
                *(Cell(number(entry[key])) for key in shares),
                Cell(", ".join(f"{label} {share:.0%}" for label, share in entry["seen"]) or "–"),
                Cell(f"{entry['ess']:.0f} of {entry['particles']}", f"{entry['least_ess']:.0f} at least"),
                Cell(number(entry["resamplings"])),
                Cell(str(entry["nfe"])),
                Cell(number(entry["seconds"])),
            ]
            for entry in entries
        }
        if rows:
            found[name] = Rows(heads, rows)
    return found


def size_rows(report: Json) -> dict[int, Rows]:
    """For each size at which samples were judged, the figures of each arm at that size."""
    found: dict[int, Rows] = {}
    sizes = [entry["size"] for entry in next(iter(report["arms"].values()))["runs"][0].get("sizes") or ()]
    for i, size in enumerate(sizes):
        runs = {name: [run["sizes"][i] for run in arm["runs"]] for name, arm in report["arms"].items()}
        known = [m for m in measures(report) if all(m.key in entry for one in runs.values() for entry in one)]
        rows, real = {}, {}
        for name, entries in runs.items():
            ways = {f"{name}, resized": [entry["resized"] for entry in entries]}
            if entries[0]["sampled"]:
                ways = {f"{name}, sampled": entries, **ways}
            for row, values in ways.items():
                over = [stat(value[m.key] for value in values) for m in known]
                rows[row] = [Cell.of(one) for one in over]
            real["real data"] = [Cell(number(entries[0]["floor"][m.key])) for m in known]
        found[size] = Rows([m.name for m in known], {**rows, **real})
    return found


def bits(arm: Json) -> tuple[Cell, str]:
    """bits/dim with its error, and its kind; empty where there is no likelihood."""
    found = likelihood(arm)
    if found is None:
        return Cell("–"), ""
    value, error, kind = found
    return Cell(f"{value:.3f}", f"± {error:.3f}" if error else ""), kind


def likelihood_rows(report: Json) -> Rows | None:
    found = {name: bits(arm) for name, arm in report["arms"].items()}
    arms = {name: [cell, Cell(kind or "–")] for name, (cell, kind) in found.items()}
    return Rows([unit(report), "kind"], arms) if any(kind for _, kind in found.values()) else None


def training_rows(report: Json) -> Rows:
    arms = {}
    for name, arm in report["arms"].items():
        work, seconds = spent(arm, "tokens"), spent(arm, "seconds")
        cells = [*(Cell(tokens(value.mean)) for value in work), *map(Cell.of, seconds)]
        for i, value in enumerate((*work, *seconds)):
            if not value.mean:
                cells[i] = Cell("–")
        arms[name] = [Cell(f"{arm['runs'][0]['steps']:,}"), *cells]
    parts = ["own", "setup", "teacher's", "in all"]
    return Rows(["steps", *parts, *parts], arms, [("", 1), ("tokens", 4), ("seconds", 4)])


def sampling_rows(report: Json) -> Rows:
    cells = {}
    for name, arm in report["arms"].items():
        work = by_nfe(arm, "tokens")
        cells[name] = {
            nfe: Cell(f"{number(value.mean)} s", f"{tokens(work[nfe].mean)} tokens" if nfe in work else "")
            for nfe, value in by_nfe(arm, "seconds").items()
        }
    return by_evaluations(report, cells)


def path_rows(report: Json) -> Rows | None:
    arms: dict[str, list[Cell]] = {name: [] for name in report["arms"]}
    energies = any(over_runs(arm, "path_energy") for arm in report["arms"].values())
    keys = ["curvature", "transport_cost", *(["path_energy", "normalized_path_energy"] if energies else [])]
    for key in keys:
        values = {name: over_runs(arm, key) for name, arm in report["arms"].items()}
        winners = best({name: value for name, value in values.items() if value}, lower=True)
        for name, value in values.items():
            arms[name].append(Cell.of(value, name in winners))
    held = any(cell.text != "–" for cells in arms.values() for cell in cells)
    return Rows([key.replace("_", " ") for key in keys], arms) if held else None


def memorization_rows(report: Json) -> Rows | None:
    """Distances to the nearest training sample, each with its ratio to that of the test set."""
    real = report["floor"].get("nearest")
    values = {name: by_nfe(arm, "nearest") for name, arm in report["arms"].items()}
    cells = {
        name: {
            nfe: Cell(number(value.mean), f"{value.mean / real:.2f}×" if real else "")
            for nfe, value in of_arm.items()
        }
        for name, of_arm in values.items()
    }
    return by_evaluations(report, cells, real) if any(values.values()) else None


def protocol_rows(report: Json) -> Rows:
    arms = {}
    for name, arm in report["arms"].items():
        run = arm["runs"][0]
        words = (
            arm["objective"],
            "y" if arm.get("conditional") else None,
            arm.get("coupling"),
            arm.get("teacher"),
        )
        counts = (f"{run['backbone_parameters']:,}", f"{run['parameters']:,}")
        texts = (*words, *counts, listed(entry["seed"] for entry in arm["runs"]))
        arms[name] = [Cell(str(text or "–")) for text in texts]
    heads = ["objective", "given", "coupling", "teacher", "backbone", "all", "seeds"]
    return Rows(heads, arms, [("", 4), ("parameters", 2), ("", 1)])


def verdict_rows(report: Json) -> Rows | None:
    """What the recipe of a paper expects beside what was measured, by entry; None where it expects nothing."""
    arms = {}
    for entry in report.get("expected") or ():
        published, ours = entry.get("paper"), entry.get("ours")
        expected, note = entry.get("claim"), f"here {ours}" if ours else ""
        if not expected:
            expected, note = shown(published if ours is None else ours), ""
            expected += f" ± {number(entry['tolerance'])}" if "tolerance" in entry else ""
        arms[entry["name"]] = [
            Cell(entry["verdict"], best=entry["verdict"] == "holds"),
            Cell(", ".join(str(Stat(**one)) for one in entry["measured"]) or "–"),
            Cell(expected, note),
            Cell(shown(published)),
        ]
    heads = ["verdict", "measured", "expected", "the paper's"]
    if all(cells[-1].text == "–" for cells in arms.values()):
        heads, arms = heads[:-1], {name: cells[:-1] for name, cells in arms.items()}
    return Rows(heads, arms) if arms else None


def shown(value: float | str | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else number(value)


def reasons(report: Json) -> dict[str, str]:
    """Of the entries that do not hold, or are not decided, why, where it is known."""
    return {
        entry["name"]: str(entry.get("missing") or entry["note"])
        for entry in report.get("expected") or ()
        if entry["verdict"] != "holds" and (entry.get("missing") or entry.get("note"))
    }


def about_entries(report: Json) -> dict[str, str]:
    """What each entry is a figure of, and how and where it was expected."""
    names = {measure.key: measure.name for measure in measures(report)}
    found = {}
    for entry in report.get("expected") or ():
        of = f" of {entry['arm']}" if "arm" in entry else ""
        at = next((f" at {entry[key]} {word}" for key, word in POINTS.items() if key in entry), "")
        metric = names.get(entry["metric"], entry["metric"].replace("_", " "))
        over = f"{entry['seeds']} seed{'' if entry['seeds'] == 1 else 's'}"
        parts = (f"{capital(metric)}{of}{at}", entry.get("protocol"), over, entry.get("machine"))
        found[entry["name"]] = "; ".join(str(part) for part in parts if part)
    return found


def main_rows(report: Json) -> tuple[Rows, Rows]:
    """The two halves of table.md and the terminal's tables: quality; then bits/dim, training cost, curvature."""
    arms = {}
    curved = any(over_runs(arm, "curvature") for arm in report["arms"].values())
    for name, arm in report["arms"].items():
        cell, kind = bits(arm)
        arms[name] = [
            Cell(f"{cell} ({kind})" if kind else "–"),
            Cell(tokens(spent(arm, "tokens").total.mean)),
            Cell.of(spent(arm, "seconds").total),
            *([Cell.of(over_runs(arm, "curvature"))] if curved else []),
        ]
    heads = [f"{unit(report)} (kind)", "train tokens", "train s", *(["curvature"] if curved else [])]
    return metric_rows(report, main_measure(report)), Rows(heads, arms)


def main_title(report: Json) -> str:
    measure = main_measure(report)
    floor = report["floor"].get(measure.key)
    title = f"{capital(measure.name)} at each number of network evaluations"
    return title if floor is None else f"{title} (floor {number(floor)})"


def perplexity_title(report: Json) -> str:
    scorer = report["evaluation"].get("scorer")
    return f"Generative perplexity, scored by {Path(scorer).name}" if scorer else "Generative perplexity"


def main_note(report: Json) -> str:
    count = seeds(report)
    error = f"standard deviation over {count} seeds" if count > 1 else "standard error over test rows"
    better = (
        "Lower is better" if main_measure(report).lower else "Higher shares and lower bits/dim are better"
    )
    return f"{better}; ± is the {error}. Training tokens and seconds include those of setup and teacher."


def markdown(report: Json) -> str:
    """The main table in Markdown, and that of generative perplexity."""
    quality, rest = main_rows(report)
    heads = [*(f"at {head}" for head in quality.heads), *rest.heads]
    arms = {name: [*cells, *rest.arms[name]] for name, cells in quality.arms.items()}
    lines = [f"**{md(report['name'])}**: {md(main_title(report))}", "", *md_table(heads, arms)]
    lines += ["", main_note(report), ""]
    if judged := perplexity_rows(report):
        heads = [f"at {head}" for head in judged.heads]
        lines += [f"**{md(perplexity_title(report))}**", "", *md_table(heads, judged.lines()), ""]
    return "\n".join(lines)


def md_table(heads: Sequence[str], arms: Mapping[str, Sequence[Cell]]) -> list[str]:
    """A row for each arm, the best of a column in bold."""
    lines = [md_row(["arm", *heads]), md_row(["---", *["---:"] * len(heads)])]
    for name, cells in arms.items():
        lines.append(md_row([md(name), *(f"**{cell}**" if cell.best else md(cell) for cell in cells)]))
    return lines


def md(text: object) -> str:
    """Text that Markdown shows as it is, also in a table."""
    plain = escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{c}" if c in "\\|*_`[]" else c for c in plain)


def md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- in the terminal ----------------------------------------------------------------------------------


def print_table(report: Json, page: str | Path | None = None, *, console: Console | None = None) -> None:
    """Prints the main table in two parts, the result in a sentence, and where the report is."""
    console = console or Terminal()
    console.print()
    for title, rows in zip((main_title(report), "Likelihood and cost"), main_rows(report), strict=True):
        print_columns(console, title, "arm", rows.heads, rows.arms)
        console.print()
    if judged := perplexity_rows(report):
        print_columns(console, perplexity_title(report), "arm", judged.heads, judged.lines())
        console.print()
    if report["data"].get("tasks"):
        for name, arm in report["arms"].items():
            print_points(console, f"Answers of {name}", arm["runs"][0]["points"], report["floor"])
        console.print()
    for size, rows in size_rows(report).items():
        print_columns(console, f"At size {size}", "arm", rows.heads, rows.arms)
        console.print()
    console.print(Text(main_note(report), style="dim"))
    console.print(Text(headline(report)))
    if page is not None:
        console.print(Text(printable(f"report: {page}"), style="bold"), soft_wrap=True)


def print_evaluation(name: str, result: Json, *, console: Console | None = None) -> None:
    """Prints the evaluation of one run: a column for each number of network evaluations, and what else it has."""
    console, name = console or Terminal(), printable(name)
    floor = result.get("floor") or {}
    print_points(console, f"Samples of {name}", result["points"], floor)
    for unmasker, points in (result.get("unmasking") or {}).items():
        print_points(console, f"Samples of {name} by {unmasker}", points, floor)
    cell, kind = bits({"runs": [result]})
    if kind:
        console.print(Text(f"{unit({'arms': {name: {'runs': [result]}}})} {cell} ({kind})"))
    for rows in control_rows({"arms": {name: {"runs": [result]}}}).values():
        print_columns(console, f"Particles of {name}", "control", rows.heads, rows.arms)
    for key in ("curvature", "transport_cost"):
        if result.get(key) is not None:
            console.print(Text(f"{key.replace('_', ' ')} {number(result[key])}"))


def print_points(console: Console, title: str, points: Sequence[Json], floor: Json) -> None:
    """A table with a column for each point, and one for real data, and a row for each of their figures."""
    rows: dict[str, list[Cell]] = {}
    for key in dict.fromkeys(key for point in points for key in point if key != "nfe"):
        write = tokens if key == "tokens" else str if key in ("steps", "setting") else number
        values = [point.get(key) for point in points]
        if any(value not in (None, "") for value in values):
            cells = [Cell("–" if value is None else write(value)) for value in values]
            real = [Cell(number(floor[key]) if key in floor else "–")] if floor else []
            rows[key.replace("_", " ")] = cells + real
    heads = [*(str(point["nfe"]) for point in points), *(["real data"] if floor else [])]
    print_columns(console, title, "network evaluations", heads, rows)


def print_columns(
    console: Console, title: str, label: str, heads: Sequence[str], rows: Mapping[str, Sequence[Cell]]
) -> None:
    """A table, in several where the columns do not fit beside each other."""
    first = min(24, max(map(len, (label, *rows))))
    parts: list[slice] = []
    room = 0
    for i, head in enumerate(heads):
        width = 2 + max(map(len, (head, *(str(cells[i]) for cells in rows.values()))))
        if not parts or room < width:
            parts.append(slice(i, i))
            room = console.width - first
        parts[-1], room = slice(parts[-1].start, i + 1), room - width
    for i, part in enumerate(parts):
        table = Table(
            title=Text("" if i else title),
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
        )
        table.add_column(label, width=first, overflow="fold")
        for head in heads[part]:
            table.add_column(Text(head), justify="right")
        for name, cells in rows.items():
            texts = (Text(str(cell), style="bold green" if cell.best else "") for cell in cells[part])
            table.add_row(Text(name), *texts)
        console.print(table)


# --- the page -----------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Samples of an arm (None for real data) to read or to hear: (caption, samples) from few steps to many."""

    arm: str | None
    lines: list[tuple[str, list[Any]]]


def texts(report: Json) -> list[Block]:
    """The first texts of each arm, behind those of real data; empty where there are none."""
    blocks = []
    for name, arm in report["arms"].items():
        held = arm["runs"][0].get("texts") or {}
        points = spread([point for point in arm["runs"][0]["points"] if shown_as(point) in held])
        blocks.append(Block(name, [(steps_label(p), held[shown_as(p)][:COLUMNS]) for p in points]))
    real = report["data"].get("texts")
    blocks = [block for block in blocks if block.lines]
    return [Block(None, [("test set", real[:COLUMNS])]), *blocks] if real and blocks else blocks


def sounds(report: Json, out: Path) -> list[Block]:
    """The first sounds of each arm as WAV files in Base64, behind those of real data; empty where there are none."""
    rate = report["data"].get("rate")

    def heard(path: Path, name: str) -> list[str]:
        return [wav(x, rate) for x in tensors(path).get(f"{name}.sounds", ())]

    blocks = []
    for name, arm in report["arms"].items() if rate else ():
        path = samples_file(arm, out)
        points = [point for point in arm["runs"][0]["points"] if f"{shown_as(point)}.sounds" in tensors(path)]
        blocks.append(Block(name, [(steps_label(p), heard(path, shown_as(p))) for p in spread(points)]))
    blocks = [block for block in blocks if block.lines]
    real = heard(out / "data.safetensors", "test") if blocks else []
    return [Block(None, [("test set", real)]), *blocks] if real else blocks


def spread(points: list[Any]) -> list[Any]:
    """The first, the middle and the last of several."""
    places = dict.fromkeys((0, len(points) // 2, len(points) - 1))
    return [points[i] for i in places] if points else []


def html(
    report: Json,
    figures: Mapping[str, Path],
    texts: Sequence[Block] = (),
    sounds: Sequence[Block] = (),
    answers: Sequence[Answered] = (),
) -> str:
    """The page; `figures` are PNG files by name."""
    environment = Environment(
        loader=PackageLoader("genkit.compare"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    main = main_measure(report)
    perplexity = perplexity_rows(report)
    elsewhere = {main.key, "nearest"} | ({PERPLEXITY, ENTROPY} if perplexity else set())
    others = [measure for measure in measures(report) if measure.key not in elsewhere]
    backbones = {run["backbone_parameters"] for arm in report["arms"].values() for run in arm["runs"]}
    return environment.get_template("report.html").render(
        **{key: value for key, value in report.items() if key not in ("paper", "expected")},
        version=genkit.__version__,
        headline=headline(report),
        close=f"{CLOSE:.0%}",
        looks=looks(report),
        unmasker_looks=unmasker_looks(report),
        seeds=seeds(report),
        backbone=backbones.pop() if len(backbones) == 1 else None,
        shape=shape(report["data"]),
        conditional=conditional(report),
        main=main,
        capital=capital,
        number=number,
        listed=listed,
        quality=metric_rows(report, main),
        other=[(measure, metric_rows(report, measure)) for measure in others],
        perplexity=perplexity,
        perplexity_title=perplexity_title(report),
        unmasking=unmasker_rows(report),
        control={
            name: (rows, dict.fromkeys(rows.arms, looks(report)[name]))
            for name, rows in control_rows(report).items()
        },
        sizes=size_rows(report),
        texts=texts,
        sounds=sounds,
        answers=answers,
        classes=class_words(report),
        unit=unit(report),
        likelihood=likelihood_rows(report),
        training=training_rows(report),
        sampling=sampling_rows(report),
        paths=path_rows(report),
        memorization=memorization_rows(report),
        protocol=protocol_rows(report),
        paper=report.get("paper") or {},
        verdicts=verdict_rows(report),
        reasons=reasons(report),
        about_entries=about_entries(report),
        figures={name: picture(path) for name, path in figures.items()},
    )


def picture(path: Path) -> dict[str, Any]:
    """A PNG file for the page, at the size it was drawn for: two device pixels a CSS pixel."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of the PNG's header
    return {"data": base64.b64encode(content).decode(), "width": width // 2, "height": height // 2}


def class_words(report: Json) -> list[str]:
    """The classes of samples in turn; empty where they have none."""
    if not conditional(report):
        return []
    return [str(name) for name in report["data"].get("class_names") or range(report["data"]["classes"])]


def shape(data: Json) -> str:
    """In words, such as "8 × 8 images of 17 levels, 10 classes" or "points in 2 dimensions"."""
    levels = data.get("levels")
    if data.get("text"):
        symbols = {"bytes": "bytes", "subwords": "subwords"}.get(data["text"], "characters")
        text = f"text in rows of {math.prod(data['shape'])} {symbols}, {levels:,} different ones"
        text += f", of {number(data['characters'])} characters each" if symbols == "subwords" else ""
    elif data.get("tasks"):
        text = f"rows of {math.prod(data['shape'])} symbols, {levels:,} different ones, of {len(data['tasks'])} tasks"
    elif data.get("rate"):
        seconds = number(math.prod(data["shape"]) / data["rate"])
        text = (
            f"sounds of {seconds} s at {data['rate'] / 1000:g} kHz{f', of {levels} levels' if levels else ''}"
        )
    elif len(data["shape"]) == 3:
        channels, height, width = data["shape"]
        text = f"{height} × {width} images{f' in {channels} channels' if channels > 1 else ''}"
        text += f" of {levels} levels" if levels else ""
    else:
        text = f"points in {math.prod(data['shape'])} dimensions{f' of {levels} levels' if levels else ''}"
    if data.get("condition"):
        return text + f", given {data['condition']} real number{'s' if data['condition'] > 1 else ''} each"
    return text + (f", {data['classes']} classes" if data.get("classes") else "")
