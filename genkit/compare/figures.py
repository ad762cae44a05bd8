"""The figures of a comparison.

    report (a mapping), OUT/**/*.safetensors ── quality, samples, ... ── Figure ── OUT/figures/*.png

A figure function returns None where the report has nothing for it to show (a model of noised data has no
bits/dim). An arm has the same colour and marker everywhere. Figures are drawn for 100 CSS pixels an inch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from genkit.compare.control import shown_control
from genkit.compare.evaluate import shown_as
from genkit.compare.numbers import (
    ENTROPY,
    PERPLEXITY,
    Json,
    by_nfe,
    by_unmasker,
    capital,
    conditional,
    likelihood,
    main_measure,
    one_shot,
    over_runs,
    unit,
)
from genkit.compare.pictures import draw_cloud
from genkit.compare.sizes import shown_size
from genkit.errors import GenkitError
from genkit.files import write_atomically

DPI = 200  # two device pixels a CSS pixel
INK, SOFT, FAINT = "#1f2328", "#6a737d", "#d9dce0"
# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
MARKERS = "osD^vPX*<>h"
FLOOR = "\0floor"  # among the names of arms
REAL: dict[str, Any] = {"color": "#9aa1a9", "linewidth": 4, "alpha": 0.45}  # the line of real data
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names are shown as they are
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.8,
}
styled = matplotlib.rc_context(STYLE)


# --- how figures look ---------------------------------------------------------------------------------


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    marker: str


def looks(report: Json) -> dict[str, Look]:
    """The colour and marker of each arm, by its place in the report."""
    return looks_of(report["arms"])


def unmasker_looks(report: Json) -> dict[str, Look]:
    """The same of the unmaskers, one for all arms."""
    return looks_of(dict.fromkeys(name for arm in report["arms"].values() for name in by_unmasker(arm)))


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    cycle = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {name: Look(*look) for name, look in zip(names, cycle, strict=False)}


def plain(text: object, width: int = 28) -> str:
    """A name on one line, not too long, whose entry in a legend is not hidden."""
    name = " ".join(str(text).split())
    name = name if len(name) <= width else name[: width - 1] + "…"
    return f"\u200a{name}" if name.startswith("_") else name


def steps_label(point: Json) -> str:
    """ "1 step", "4 steps (8 evaluations)", "64 evaluations"."""
    steps, nfe = point.get("steps"), point["nfe"]
    if steps is None:
        return f"{nfe} evaluations"
    label = "1 step" if steps == 1 else f"{steps} steps"
    return label if steps == nfe else f"{label} ({nfe} evaluations)"


def _new(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def plain_ticks(axis: Axis, locator: Locator) -> None:
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend(fig: Figure, handles: list[Any]) -> None:
    """Under the panels, in rows that fit the width."""
    lengths = [len(str(handle.get_label())) + 7 for handle in handles]
    columns = len(handles) if sum(lengths) < 105 else max(1, 118 // max(lengths))
    fig.legend(handles=handles, loc="outside lower left", ncols=columns, columnspacing=1.6, handlelength=2.6)


# --- figures ------------------------------------------------------------------------------------------


def _by_evaluations(
    ax: Axes, key: str, arms: Mapping[str, Json], look: Mapping[str, Look], floor: float | None
) -> dict[str, Any]:
    """Draws a metric of each arm against network evaluations, and its floor; returns what a legend says of them.

    A band is ± one spread over seeds. An arm with a fixed number of evaluations is carried across. The vertical axis
    is logarithmic where figures differ by more than a factor of four, without those that a logarithm cannot show.
    """
    handles: dict[str, Any] = {}
    ticks: set[int] = set()
    for name, arm in arms.items():
        values = {nfe: value for nfe, value in by_nfe(arm, key).items() if value.mean > 0}
        if not values:
            continue
        mean = np.array([value.mean for value in values.values()])
        spread = np.array([value.spread or 0.0 for value in values.values()])
        style: dict[str, Any] = {"color": look[name].colour, "marker": look[name].marker, "zorder": 4}
        if alone := one_shot(arm):
            ax.axhline(float(mean[-1]), color=look[name].colour, linewidth=1.0, linestyle=(0, (5, 4)))
            style |= {"linestyle": "none"}
        low = np.maximum(mean - spread, mean * 0.1)
        if spread.any() and alone:
            ax.errorbar([*values], mean, [mean - low, spread], color=look[name].colour, capsize=3)
        elif spread.any():
            ax.fill_between([*values], low, mean + spread, color=look[name].colour, alpha=0.18, linewidth=0)
        ax.plot([*values], mean, **style)
        handles[name] = Line2D([], [], **{**style, "linestyle": "--" if alone else "-"}, label=plain(name))
        ticks |= values.keys()
    if not handles:
        return {}
    if floor is not None and floor > 0:
        ax.axhline(floor, **REAL, zorder=1)
        handles[FLOOR] = Line2D([], [], **REAL, label="floor: real data")
    ax.set_xscale("log", base=2)
    plain_ticks(ax.xaxis, FixedLocator(_apart(ticks)))
    if ax.dataLim.y1 > 4 * ax.dataLim.y0:
        ax.set_yscale("log")
        plain_ticks(ax.yaxis, LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.set_ylim(bottom=0.85 * ax.dataLim.y0)
    return handles


def _apart(ticks: Iterable[int]) -> list[int]:
    """Those of the numbers whose labels do not overlap on a logarithmic axis; powers of two before others."""
    kept: list[int] = []
    for tick in sorted(ticks, key=lambda tick: (tick & (tick - 1) != 0, tick)):
        if all(abs(math.log2(tick / other)) > 0.45 for other in kept):
            kept.append(tick)
    return sorted(kept)


@styled
def quality(report: Json) -> Figure | None:
    """The main distance against network evaluations."""
    measure = main_measure(report)
    fig = _new(8.6, 5.0)
    ax = fig.add_subplot()
    floor = report["floor"].get(measure.key)
    handles = _by_evaluations(ax, measure.key, report["arms"], looks(report), floor)
    if not handles:
        return None
    ax.set_title(f"{capital(measure.name)} against network evaluations")
    ax.set_xlabel("sequential network evaluations a sample (NFE)")
    ax.set_ylabel(f"{measure.name}{' to test data (lower' if measure.lower else ' (higher'} is better)")
    _legend(fig, [*handles.values()])
    return fig


@styled
def perplexity(report: Json) -> Figure | None:
    """Generative perplexity, and beside it the entropy of the same samples, without which it says nothing."""
    fig = _new(8.6, 4.0)
    handles: dict[str, Any] = {}
    for i, (key, title) in enumerate(((PERPLEXITY, "Generative perplexity"), (ENTROPY, "Sample entropy"))):
        ax = fig.add_subplot(1, 2, i + 1)
        drawn = _by_evaluations(ax, key, report["arms"], looks(report), report["floor"].get(key))
        if not drawn:
            return None
        handles |= drawn
        ax.set_title(title)
        ax.set_xlabel("network evaluations a sample")
        ax.set_ylabel("perplexity a symbol" if key == PERPLEXITY else "nats")
    _legend(fig, [*handles.values()])
    return fig


@styled
def unmasking(report: Json) -> Figure | None:
    """The main distance against network evaluations: a panel for each arm, a line for each unmasker."""
    measure = main_measure(report)
    panels = {name: by_unmasker(arm) for name, arm in report["arms"].items()}
    panels = {name: found for name, found in panels.items() if found}
    if not panels:
        return None
    look = unmasker_looks(report)
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    fig = _new(8.6, 0.8 + 3.2 * rows)
    handles: dict[str, Any] = {}
    first: Axes | None = None
    for i, (name, found) in enumerate(panels.items()):
        ax = fig.add_subplot(rows, columns, i + 1, sharex=first, sharey=first)
        first = first or ax
        handles |= _by_evaluations(ax, measure.key, found, look, report["floor"].get(measure.key))
        ax.set_title(plain(name), color=looks(report)[name].colour)
        ax.set_xlabel("network evaluations a sample")
        if i % columns == 0:
            ax.set_ylabel(measure.name)
    if not handles:
        return None
    real = handles.pop(FLOOR, None)
    _legend(fig, [*handles.values(), *([real] if real else [])])
    return fig


@styled
def bits_per_dim(report: Json) -> Figure | None:
    """Bars of bits/dim (of text bits/char) with the spread over seeds, or the standard error of one run."""
    found = {name: likelihood(arm) for name, arm in report["arms"].items()}
    bars = [(name, *value) for name, value in found.items() if value is not None]
    if not bars:
        return None
    look = looks(report)
    fig = _new(8.6, 0.95 + 0.5 * len(bars))
    ax = fig.add_subplot()
    for row, (name, value, error, _) in enumerate(bars):
        ax.barh(row, value, height=0.62, color=look[name].colour, alpha=0.85)
        ax.errorbar(value, row, xerr=error, color=INK, capsize=3, linewidth=1.2)
        text = f"{value:.3f} ± {error:.3f}" if error else f"{value:.3f}"
        ax.annotate(text, (value + error, row), xytext=(7, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(bars)), [f"{plain(name)}  ({plain(kind)})" for name, _, _, kind in bars])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ends = [value + error for _, value, error, _ in bars]
    ax.set_xlim(min(0.0, min(ends) * 1.2), max(max(ends) * 1.25, 1e-9))
    ax.set_title("Likelihood of test data")
    kind = "discrete" if report["data"]["levels"] else "real-valued"
    ax.set_xlabel(f"{unit(report)} of the {kind} test data (lower is better)")
    return fig


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean (N,) -> (N,), over fewer values at the ends."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


@styled
def curves(report: Json) -> Figure | None:
    """Training loss against step, a panel for each objective: each seed faint as logged, smoothed on top."""
    families: dict[str, list[str]] = {}
    for name, arm in report["arms"].items():
        if any(run.get("curve") for run in arm["runs"]):
            families.setdefault(arm["objective"], []).append(name)
    if not families:
        return None
    look = looks(report)
    columns = min(len(families), 2)
    rows = math.ceil(len(families) / columns)
    fig = _new(8.6, 0.5 + 3.1 * rows)
    for i, (family, names) in enumerate(families.items()):
        ax = fig.add_subplot(rows, columns, i + 1)
        shown = []
        for name in names:
            for run in report["arms"][name]["runs"]:
                kept = [(step, loss) for step, loss in run.get("curve") or [] if loss is not None]
                curve = np.array([pair for pair in kept if math.isfinite(pair[1])], dtype=float)
                if len(curve) == 0:
                    continue
                smooth = _smooth(curve[:, 1], max(1, len(curve) // 15) | 1)
                ax.plot(curve[:, 0], curve[:, 1], color=look[name].colour, alpha=0.22, linewidth=0.9)
                alone = "o" if len(curve) == 1 else ""
                ax.plot(curve[:, 0], smooth, color=look[name].colour, linewidth=1.6, marker=alone)
                shown.append(curve[len(curve) // 30 :, 1])
        if shown:  # the first steps may lie above the panel
            low, high = min(part.min() for part in shown), max(part.max() for part in shown)
            margin = 0.06 * (high - low or abs(high) or 1.0)
            ax.set_ylim(low - margin, high + margin)
        ax.set_title(f"Training loss: {plain(family)}".replace("_", " "))
        ax.set_xlabel("training step")
        ax.set_ylabel("training loss")
    named = [name for names in families.values() for name in names]
    _legend(fig, [Line2D([], [], color=look[name].colour, label=plain(name)) for name in named])
    return fig


# --- figures of samples -------------------------------------------------------------------------------


def tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file as arrays, empty where there is none. Raises GenkitError for a corrupt one."""
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise GenkitError(f"{path} is corrupt: {error}") from None


def samples_file(arm: Json, out: Path) -> Path:
    """What is shown of an arm, of its first seed."""
    return out / arm["runs"][0]["folder"] / "samples.safetensors"


def _shown(arm: Json, held: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """(caption, samples) of the first seed at 1, 2, 4, 8, 32 steps; where there are none, at six."""
    points = [point for point in arm["runs"][0]["points"] if shown_as(point) in held]
    wanted = [point for point in points if point.get("steps") in (None, 1, 2, 4, 8, 32)]
    return [(steps_label(point), held[shown_as(point)]) for point in (wanted or points)[:6]]


def _blocks(report: Json, out: Path) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
    """(arm, what is shown of it) of arms that have samples."""
    for name, arm in report["arms"].items():
        shown = _shown(arm, tensors(samples_file(arm, out)))
        if shown:
            yield name, shown


def _mosaic(images: np.ndarray, levels: int, scale: int, gap: int) -> np.ndarray:
    """Integer levels (N, C, H, W) -> one row of pictures, `scale` pixels a pixel, RGB in [0, 1] (h, w, 3).

    One channel is ink on white paper, three are colours.
    """
    x = np.clip(images.astype(np.float64) / max(levels - 1, 1), 0, 1).transpose(0, 2, 3, 1)
    x = x[..., :3] if x.shape[-1] >= 3 else np.repeat(1 - x[..., :1], 3, axis=-1)
    x = x.repeat(scale, axis=1).repeat(scale, axis=2)
    x = np.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1.0)
    return np.concatenate(list(x), axis=1)[:, :-gap]


@styled
def samples(report: Json, out: Path) -> Figure | None:
    """Images: a block of rows for each arm, a row for each number of steps; real data on top where given.

    A column is one class (of conditional models) and one noise sample. Real images are `test` (N, C, H, W)
    of OUT/data.safetensors, class by class in turn as the samples are.
    """
    data, blocks = report["data"], list(_blocks(report, out))
    if len(data["shape"]) != 3 or not blocks:
        return None
    look = looks(report)
    heads = [(plain(name, 60), look[name].colour, shown) for name, shown in blocks]
    real = tensors(out / "data.safetensors").get("test")
    if real is not None and real.shape[1:] == tuple(data["shape"]):
        heads.insert(0, ("real data", INK, [("test set", real)]))
    classes = []
    if conditional(report):
        classes = [plain(name, 12) for name in data.get("class_names") or range(data["classes"])]
    return _image_rows(heads, data, classes)


Head = tuple[str, str, list[tuple[str, np.ndarray]]]  # name, colour, (caption, images)


def _image_rows(heads: list[Head], data: Json, classes: Sequence[str] = ()) -> Figure:
    """A block of rows of images for each head; `classes` over the columns, in turn."""
    steep = any(len(name) > 2 for name in classes)

    # All sizes in device pixels, so that a pixel of an image is a whole number of them.
    count = min(20, *(len(images) for _, _, shown in heads for _, images in shown))
    height, width = data["shape"][1:]
    scale = max(1, round(64 / width))
    gap, head, margin = 8, 46, 220
    row_h, column_w = height * scale + gap, width * scale + gap
    top = 8 if not classes else 150 if steep else 44
    total_w = margin + count * column_w - gap + (90 if steep else 4)
    total_h = top + sum(head + len(shown) * row_h + 14 for _, _, shown in heads)
    fig = Figure(figsize=(total_w / DPI, total_h / DPI), dpi=DPI, facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        fig.text(x / total_w, 1 - y / total_h, text, **style)

    turned = {"ha": "left", "rotation": 50, "rotation_mode": "anchor"} if steep else {"ha": "center"}
    for j in range(count if classes else 0):
        x = margin + j * column_w + (column_w - gap) / 2
        write(x, top - 6, classes[j % len(classes)], va="bottom", color=SOFT, fontsize=8.5, **turned)
    y = top
    for name, colour, shown in heads:
        write(6, y + head / 2, name, color=colour, weight="bold", va="center")
        y += head
        for caption, images in shown:
            row = _mosaic(images[:count], data["levels"] or 256, scale, gap)
            bottom = 1 - (y + row_h - gap) / total_h
            ax = fig.add_axes(
                (margin / total_w, bottom, row.shape[1] / total_w, row.shape[0] / total_h), frameon=False
            )
            ax.imshow(row, interpolation="nearest", aspect="auto")
            ax.set_axis_off()
            label = caption.replace(" (", "\n(")
            write(margin - 18, y + (row_h - gap) / 2, label, ha="right", va="center", fontsize=8.5)
            y += row_h
        y += 14
    return fig


Panel = tuple[str, str, np.ndarray, np.ndarray | None]


def _frame(ax: Axes, points: np.ndarray) -> None:
    """A square frame around points (N, 2), without ticks."""
    low, high = points.min(0), points.max(0)
    centre, half = (low + high) / 2, 0.58 * float((high - low).max()) or 1.0
    ax.set_xlim(centre[0] - half, centre[0] + half)
    ax.set_ylim(centre[1] - half, centre[1] + half)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT)


@styled
def density(report: Json, out: Path) -> Figure | None:
    """2-D data: samples over test data (grey), a row for each arm, a column for each number of steps.

    Reads `test` and `source` (N, 2) of OUT/data.safetensors. Samples outside the frame are not seen.
    """
    data = tensors(out / "data.safetensors")
    blocks = list(_blocks(report, out))
    if tuple(report["data"]["shape"]) != (2,) or "test" not in data or not blocks:
        return None
    look, test = looks(report), data["test"]
    # Panels are (title, colour, points, what stands behind them). Arms with one panel share the first row.
    first: list[Panel] = [("test data", SOFT, test, None)]
    if "source" in data:
        first.insert(0, ("source (own scale)", SOFT, data["source"], None))
    rows = [("", INK, first)]
    for name, shown in blocks:
        colour = look[name].colour
        if len(shown) == 1:
            caption, x = shown[0]
            first.append((f"{plain(name, 14)}, {caption}", colour, x, test))
        else:
            rows.append((plain(name), colour, [(caption, colour, x, test) for caption, x in shown]))
    return _point_rows(rows)


def _point_rows(rows: list[tuple[str, str, list[Panel]]]) -> Figure:
    """Panels of points, a row for each (label, colour, panels)."""
    grey = "#c6cbd1"
    columns = max(4, *(len(panels) for _, _, panels in rows))
    width = 8.6 / columns
    fig = _new(8.6, len(rows) * (width + 0.22) + 0.1)
    axes = fig.subplots(len(rows), columns, squeeze=False)
    for line, (label, colour, panels) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, color=colour, weight="bold")
        for ax in line[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, ink, x, behind) in zip(line, panels, strict=False):
            if behind is not None:
                ax.scatter(behind[:, 0], behind[:, 1], s=1.2, color=grey, linewidths=0)
            ax.scatter(x[:, 0], x[:, 1], s=1.6, color=ink, alpha=0.55, linewidths=0)
            ax.set_title(title, color=INK if label else ink, weight="normal", fontsize=9, pad=4)
            _frame(ax, x if behind is None else behind)
    return fig


@styled
def trajectories(report: Json, out: Path) -> Figure | None:
    """2-D data: the paths of each arm, from source (hollow) to sample (filled).

    Reads `trajectory` (steps + 1, N, 2) of each run's samples.safetensors.
    """
    paths = {}
    for name, arm in report["arms"].items():
        held = tensors(samples_file(arm, out)).get("trajectory")
        if held is not None and held.ndim == 3 and held.shape[-1] == 2 and len(held) > 1:
            paths[name] = held[:, :160]
    if not paths:
        return None
    look = looks(report)
    columns = min(len(paths), 3)
    rows = math.ceil(len(paths) / columns)
    width = 8.6 / max(columns, 2)
    fig = _new(width * columns, rows * (width + 0.4))
    everything = np.concatenate([path.reshape(-1, 2) for path in paths.values()])
    inside = np.quantile(everything, [0.002, 0.998], axis=0)
    for i, (name, path) in enumerate(paths.items()):
        ax = fig.add_subplot(rows, columns, i + 1)
        colour = look[name].colour
        lines = list(path.swapaxes(0, 1))
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=0.6, alpha=0.45))
        ax.scatter(
            path[0, :, 0], path[0, :, 1], s=7, facecolors="white", edgecolors=SOFT, linewidths=0.6, zorder=3
        )
        ax.scatter(path[-1, :, 0], path[-1, :, 1], s=7, color=colour, linewidths=0, zorder=4)
        bend = over_runs(report["arms"][name], "curvature")
        ax.set_title(plain(name), color=colour, pad=4)
        ax.set_xlabel(f"{len(path) - 1} steps" + ("" if bend is None else f", curvature {bend}"))
        _frame(ax, inside)
    return fig


# --- other sizes --------------------------------------------------------------------------------------


@styled
def sizes(report: Json, out: Path) -> Figure | None:
    """Samples of each arm at its own size and at others, sampled there or resized, over real data of these sizes."""
    spec = report["data"]["shape"]
    entries = [arm["runs"][0].get("sizes") or [] for arm in report["arms"].values()]
    if not entries[0] or len(spec) not in (2, 3):
        return None
    heads: list[Head] = []
    for name, arm in report["arms"].items():
        held = tensors(samples_file(arm, out))
        own = held[shown_as(arm["runs"][0]["points"][-1])]
        lines = [(f"size {own.shape[-1] if len(spec) == 3 else own.shape[1]}", own)]
        for entry in arm["runs"][0]["sizes"]:
            size = entry["size"]
            if entry["sampled"]:
                lines.append((f"{size} (sampled)", held[shown_size(size)]))
            lines.append((f"{size} (resized)", held[shown_size(size, "resized")]))
        heads.append((plain(name, 60), looks(report)[name].colour, lines))
    real = [(f"size {entry['size']}", held[shown_size(entry["size"], "real")]) for entry in entries[0]]
    heads.append(("real data", INK, real))
    if len(spec) == 2:
        return _cloud_rows(heads) if spec[1] == 3 else None
    largest = max(images.shape[2] for _, _, lines in heads for _, images in lines)
    common = [
        (name, colour, [(label, _enlarged(images[:16], largest)) for label, images in lines])
        for name, colour, lines in heads
    ]
    return _image_rows(common, {**report["data"], "shape": [spec[0], largest, largest * spec[2] // spec[1]]})


def _enlarged(images: np.ndarray, height: int) -> np.ndarray:
    """Images (N, C, h, w) at a height of which theirs is the nearest whole part, pixels as they are."""
    rows, columns = (
        np.arange(n) * side // n
        for n, side in (
            (height, images.shape[2]),
            (height * images.shape[3] // images.shape[2], images.shape[3]),
        )
    )
    return images[:, :, rows][:, :, :, columns]


def _cloud_rows(heads: list[Head]) -> Figure:
    """A row of eight clouds in space for each (caption, clouds (N, P, 3)) of each head."""
    count = 8
    lines = [(name, colour, label, x[:count]) for name, colour, rows in heads for label, x in rows]
    fig = Figure(figsize=(8.6, 0.95 * len(lines)), dpi=DPI, facecolor="white")
    fig.subplots_adjust(0.14, 0.0, 1.0, 1.0, 0.0, 0.0)
    axes = fig.subplots(len(lines), count, squeeze=False)
    for line, (name, colour, label, clouds) in zip(axes, lines, strict=True):
        line[0].text(-1.55, 0.25, name, color=colour, weight="bold", ha="right", va="bottom", fontsize=8.5)
        line[0].text(-1.55, 0.15, label.replace(" (", "\n("), ha="right", va="top", fontsize=8)
        for ax in line:
            ax.set_axis_off()
        for ax, cloud in zip(line, clouds, strict=False):
            draw_cloud(ax, torch.from_numpy(cloud), size=1.6)
            ax.set_axis_off()
    return fig


# --- particles ----------------------------------------------------------------------------------------


@styled
def control(report: Json, out: Path) -> Figure | None:
    """What particles make of each energy: a row of images, or a panel of points, for each control of each arm."""
    blocks = []
    for name, arm in report["arms"].items():
        held = tensors(samples_file(arm, out))
        entries = enumerate(arm["runs"][0].get("control") or ())
        shown = [
            (entry["words"].replace(", ", ",\n"), held[shown_control(i)])
            for i, entry in entries
            if shown_control(i) in held
        ]
        if shown:
            blocks.append((name, shown))
    if not blocks:
        return None
    heads = [(plain(name, 60), looks(report)[name].colour, shown) for name, shown in blocks]
    if len(report["data"]["shape"]) == 3:
        return _image_rows(heads, report["data"])
    if tuple(report["data"]["shape"]) != (2,):
        return None
    test = tensors(out / "data.safetensors")["test"]
    return _point_rows(
        [(name, colour, [(words, colour, x, test) for words, x in shown]) for name, colour, shown in heads]
    )


@styled
def temperature(report: Json) -> Figure | None:
    """Precision (quality) against recall (diversity) along beta, a line for each arm; real data where they stand."""
    fig, handles, drawn = _new(8.6, 4.4), [], False
    ax = fig.add_subplot()
    for name, arm in report["arms"].items():
        entries = [
            entry
            for entry in arm["runs"][0].get("control") or ()
            if entry["tempered"] and {"precision", "recall"} <= entry.keys()
        ]
        entries.sort(key=lambda entry: entry["beta"])
        if len(entries) < 2:
            continue
        colour, marker = looks(report)[name]
        x, y = ([entry[key] for entry in entries] for key in ("recall", "precision"))
        ax.plot(x, y, color=colour, marker=marker)
        for entry in entries:
            place = (entry["recall"], entry["precision"])
            ax.annotate(
                f"β {entry['beta']:g}", place, xytext=(6, 4), textcoords="offset points", fontsize=8.5
            )
        handles.append(Line2D([], [], color=colour, marker=marker, label=plain(name)))
        drawn = True
    if not drawn:
        return None
    floor = report["floor"]
    if {"precision", "recall"} <= floor.keys():
        ax.scatter(floor["recall"], floor["precision"], color=SOFT, marker="x", zorder=3)
        handles.append(Line2D([], [], color=SOFT, marker="x", linestyle="", label="real data"))
    ax.set_title("Quality against diversity along beta")
    ax.set_xlabel("recall: share of test data that samples cover")
    ax.set_ylabel("precision: share of samples among test data")
    _legend(fig, handles)
    return fig


# --- files --------------------------------------------------------------------------------------------


def save_figures(report: Json, out: Path) -> dict[str, Path]:
    """Draws what the report and the samples under `out` allow, as OUT/figures/NAME.png: name -> file.

    A figure that an earlier report left there, and that this one has not, is removed.
    """
    drawn = {
        "quality": quality(report),
        "perplexity": perplexity(report),
        "unmasking": unmasking(report),
        "samples": samples(report, out),
        "density": density(report, out),
        "trajectories": trajectories(report, out),
        "sizes": sizes(report, out),
        "control": control(report, out),
        "temperature": temperature(report),
        "bits_per_dim": bits_per_dim(report),
        "curves": curves(report),
    }
    written: dict[str, Path] = {}
    for name, figure in drawn.items():
        path = out / "figures" / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, partial(figure.savefig, format="png", dpi=DPI))
            written[name] = path
    return written
