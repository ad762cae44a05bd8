"""The figures of a comparison, and the few numbers that they share with its tables.

    report (a mapping), OUT/**/*.safetensors ── quality, samples, ... ── Figure ── OUT/figures/*.png

A figure function returns None where the report has nothing for it to show (2-D data have no bits/dim).
An arm has the same colour and marker everywhere. Figures are drawn for 100 CSS pixels an inch.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from safetensors import SafetensorError
from safetensors.numpy import load_file

from genkit.compare.evaluate import shown_as
from genkit.errors import GenkitError
from genkit.files import write_atomically

Json = Mapping[str, Any]

DPI = 200  # two device pixels a CSS pixel
INK, SOFT, FAINT = "#1f2328", "#6a737d", "#d9dce0"
# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")
MARKERS = "osD^vPX*<>h"
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


# --- numbers ------------------------------------------------------------------------------------------


class Stat(NamedTuple):
    """A number over seeds: mean, sample standard deviation (None for one seed), number of seeds."""

    mean: float
    spread: float | None
    seeds: int

    def level(self, other: Stat) -> bool:
        """Whether they differ by no more than their spreads in quadrature; for single seeds, not at all."""
        if self.spread is None or other.spread is None:
            return self.mean == other.mean
        return abs(self.mean - other.mean) <= math.hypot(self.spread, other.spread)

    def __str__(self) -> str:
        return number(self.mean) if self.spread is None else f"{number(self.mean)} ± {self.spread_text}"

    @property
    def spread_text(self) -> str:
        """The spread to as many decimals as the mean, more where it would vanish."""
        decimals = len(number(self.mean).partition(".")[2])
        text = f"{self.spread or 0:,.{decimals}f}"
        return text if float(text.replace(",", "")) or not self.spread else f"{self.spread:.1g}"


class Cost(NamedTuple):
    """What training took: the arm's own, its teacher's, and both."""

    own: Stat
    teacher: Stat
    total: Stat


class Measure(NamedTuple):
    """A metric of samples. lower: whether lower is better, None where neither is."""

    key: str
    name: str
    lower: bool | None


MEASURES = (
    Measure("frechet", "Fréchet distance", True),
    Measure("sliced_wasserstein", "sliced Wasserstein distance", True),
    Measure("energy_distance", "energy distance", True),
    Measure("accuracy", "share of samples of the class asked for", False),
    Measure("nearest", "distance to the nearest training sample", None),
)
BESIDE = ("nfe", "steps", "seconds", "tokens")  # what a point holds beside metrics


def stat(values: Iterable[float | None]) -> Stat | None:
    """Over the finite values; None when there is none."""
    kept = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not kept:
        return None
    mean = sum(kept) / len(kept)
    if len(kept) == 1:
        return Stat(mean, None, 1)
    return Stat(mean, math.sqrt(sum((value - mean) ** 2 for value in kept) / (len(kept) - 1)), len(kept))


def by_nfe(arm: Json, key: str) -> dict[int, Stat]:
    """A value of the points of an arm, over its seeds, by number of sequential network evaluations."""
    found: dict[int, list[float | None]] = {}
    for run in arm["runs"]:
        for point in run["points"]:
            found.setdefault(point["nfe"], []).append(point.get(key))
    stats = {nfe: stat(values) for nfe, values in sorted(found.items())}
    return {nfe: value for nfe, value in stats.items() if value is not None}


def measures(report: Json) -> list[Measure]:
    """The metrics that the report holds: the known ones, then those of plug-ins by name."""
    return measures_of(
        point for arm in report["arms"].values() for run in arm["runs"] for point in run["points"]
    )


def measures_of(points: Iterable[Json]) -> list[Measure]:
    held = {
        key for point in points for key, value in point.items() if key not in BESIDE and value is not None
    }
    known = [measure for measure in MEASURES if measure.key in held]
    extra = sorted(held - {measure.key for measure in MEASURES})
    return known + [Measure(key, key.replace("_", " "), None) for key in extra]


def main_measure(report: Json) -> Measure:
    """What the arms are judged by: the Fréchet distance, else the first distance that the report holds."""
    return next((measure for measure in measures(report) if measure.lower), MEASURES[0])


def one_shot(arm: Json) -> bool:
    """Whether the number of network calls is the model's, not the solver's (an autoregressive flow)."""
    points = arm["runs"][0]["points"]
    return bool(points) and all(point.get("steps") is None for point in points)


def spent(arm: Json, unit: str) -> Cost:
    """Training cost in `unit` ("seconds" or "tokens"), over seeds."""
    runs = [run["train"] for run in arm["runs"]]
    own = [run.get(unit) or 0.0 for run in runs]
    teacher = [run.get(f"teacher_{unit}") or 0.0 for run in runs]
    nothing = Stat(0.0, None, 0)
    both = [a + b for a, b in zip(own, teacher, strict=True)]
    return Cost(stat(own) or nothing, stat(teacher) or nothing, stat(both) or nothing)


def likelihood(arm: Json) -> tuple[float, float, str] | None:
    """bits/dim, its error (the spread over seeds, or the standard error of one run), and its kind."""
    held = [run["bits_per_dim"] for run in arm["runs"] if run.get("bits_per_dim")]
    value, stderr = stat(entry["value"] for entry in held), stat(entry.get("stderr") for entry in held)
    if value is None:
        return None
    error = value.spread if value.spread is not None else stderr.mean if stderr else 0.0
    return value.mean, error, held[0]["kind"]


def conditional(report: Json) -> bool:
    """Whether sample i is of class i % classes in all arms; an arm says otherwise by `conditional: false`."""
    return bool(report["data"].get("classes")) and all(
        arm.get("conditional", True) for arm in report["arms"].values()
    )


def number(value: float) -> str:
    """Three significant digits or so, without exponents where they can be avoided.

    >>> [number(x) for x in (2023.4, 55.04, 1.934, 0.14, 0.01234, 0, 3e-7)]
    ['2,023', '55.0', '1.93', '0.140', '0.0123', '0', '3e-07']
    """
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.0995 else f"{value:.3g}"


def capital(name: str) -> str:
    return name[:1].upper() + name[1:]


# --- how figures look ---------------------------------------------------------------------------------


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    marker: str


def looks(report: Json) -> dict[str, Look]:
    """The colour and marker of each arm, by its place in the report."""
    cycle = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {name: Look(*look) for name, look in zip(report["arms"], cycle, strict=False)}


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


def _log_axis(ax: Axes, which: str, base: int = 10, ticks: Iterable[int] | None = None) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=base)
    if ticks is not None:
        axis.set_ticks(sorted(ticks))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _floor(ax: Axes, report: Json, measure: Measure) -> Line2D | None:
    value = report["floor"].get(measure.key)
    if value is None or not value > 0:
        return None
    ax.axhline(value, color="#9aa1a9", linewidth=4, alpha=0.45, zorder=1)
    return Line2D([], [], color="#9aa1a9", linewidth=4, alpha=0.45, label="floor: real training data")


def _arm_handle(name: str, look: Look, dashed: bool = False) -> Line2D:
    line = Line2D([], [], color=look.colour, marker=look.marker, label=plain(name))
    line.set_linestyle("--" if dashed else "-")
    return line


def _distances(report: Json) -> dict[str, dict[int, Stat]]:
    """The main distance of each arm by evaluations, where a logarithmic axis can show it."""
    key = main_measure(report).key
    found = {name: by_nfe(arm, key) for name, arm in report["arms"].items()}
    found = {name: {n: s for n, s in values.items() if s.mean > 0} for name, values in found.items()}
    return {name: values for name, values in found.items() if values}


def _legend(fig: Figure, handles: list[Any]) -> None:
    """Under the panels, in rows that fit the width."""
    lengths = [len(str(handle.get_label())) + 7 for handle in handles]
    columns = len(handles) if sum(lengths) < 125 else max(1, 118 // max(lengths))
    fig.legend(handles=handles, loc="outside lower left", ncols=columns, columnspacing=1.6, handlelength=2.6)


# --- figures ------------------------------------------------------------------------------------------


@styled
def quality(report: Json) -> Figure | None:
    """The main distance against network evaluations, both logarithmic; a band of ± one spread over seeds."""
    measure, look, drawn = main_measure(report), looks(report), _distances(report)
    if not drawn:
        return None
    fig = _new(8.6, 5.0)
    ax = fig.add_subplot()
    handles: list[Any] = []
    for name, values in drawn.items():
        colour, marker = look[name]
        alone = one_shot(report["arms"][name])
        mean = np.array([value.mean for value in values.values()])
        spread = np.array([value.spread or 0.0 for value in values.values()])
        if alone:
            ax.axhline(float(mean[-1]), color=colour, linewidth=1.0, linestyle=(0, (5, 4)), zorder=2)
        if spread.any() and alone:
            ax.errorbar([*values], mean, np.minimum(spread, mean * 0.9), color=colour, fmt="none", capsize=3)
        elif spread.any():
            low = np.maximum(mean - spread, mean * 0.1)
            ax.fill_between([*values], low, mean + spread, color=colour, alpha=0.18, linewidth=0)
        ax.plot([*values], mean, color=colour, marker=marker, linestyle="none" if alone else "-", zorder=4)
        handles.append(_arm_handle(name, look[name], alone))
    _log_axis(ax, "x", base=2, ticks={nfe for values in drawn.values() for nfe in values})
    _log_axis(ax, "y")
    floor = _floor(ax, report, measure)
    ax.set_ylim(bottom=0.85 * ax.dataLim.y0)
    ax.set_title(f"{capital(measure.name)} against network evaluations")
    ax.set_xlabel("sequential network evaluations a sample (NFE)")
    ax.set_ylabel(f"{measure.name} to test data (lower is better)")
    _legend(fig, handles + ([floor] if floor else []))
    return fig


@styled
def bits_per_dim(report: Json) -> Figure | None:
    """Bars of bits/dim with the spread over seeds, or the standard error of one run."""
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
    ax.set_xlabel("bits/dim of the discrete data (lower is better)")
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


@styled
def cost(report: Json) -> Figure | None:
    """The main distance against training time with the teacher's (left) and sampling time (right)."""
    measure, look, arms = main_measure(report), looks(report), _distances(report)
    if not arms:
        return None
    fig = _new(8.6, 4.7)
    left = fig.add_subplot(1, 2, 1)
    right = fig.add_subplot(1, 2, 2, sharey=left)
    _training_cost(left, report, arms)
    _sampling_cost(right, report, arms)
    _log_axis(left, "y")
    for ax in (left, right):
        _floor(ax, report, measure)
    left.set_ylim(0.85 * left.dataLim.y0, 1.5 * left.dataLim.y1)
    left.set_ylabel(f"{measure.name} (lower is better)")
    right.tick_params(axis="y", labelleft=False)
    grey: dict[str, Any] = {"color": SOFT, "marker": "o", "linestyle": "none"}
    handles = [_arm_handle(name, look[name]) for name in arms]
    handles.append(Line2D([], [], label="left: at fewest evaluations", **grey))
    handles.append(Line2D([], [], label="left: at its best", markerfacecolor="white", **grey))
    if any(spent(report["arms"][name], "seconds").teacher.mean for name in arms):
        handles.append(Line2D([], [], color=SOFT, linestyle=":", label="left: teacher's share"))
    _legend(fig, handles)
    return fig


def _training_cost(ax: Axes, report: Json, arms: Mapping[str, Mapping[int, Stat]]) -> None:
    """An arm is a vertical line at its cost, from its result at the fewest evaluations to its best one."""
    look = looks(report)
    for i, (name, values) in enumerate(arms.items()):
        colour, marker = look[name]
        seconds = spent(report["arms"][name], "seconds")
        own, total = seconds.own.mean, seconds.total.mean
        first, best = values[min(values)].mean, min(value.mean for value in values.values())
        # Arms of equal cost stand beside each other, not on top of each other.
        beside = ScaledTranslation((i - (len(arms) - 1) / 2) * 7 / 72, 0, ax.figure.dpi_scale_trans)
        style: dict[str, Any] = {"color": colour, "transform": ax.transData + beside}
        if total > own:
            ax.plot([own, total], [first, first], linewidth=1.2, linestyle=":", **style)
            ax.plot([own], [first], marker="|", markersize=8, **style)
        ax.plot([total, total], [first, best], linewidth=1.4, **style)
        ax.plot([total], [best], marker=marker, markerfacecolor="white", zorder=3, **style)
        ax.plot([total], [first], marker=marker, zorder=4, **style)
        ax.update_datalim([(own, first), (total, best)])
    ax.autoscale_view()
    longest = max(spent(report["arms"][name], "seconds").total.mean for name in arms)
    ax.set_xlim(0, 1.2 * longest or 1.0)
    ax.set_title("Training")
    ax.set_xlabel("training, with the teacher's (seconds)")


def _sampling_cost(ax: Axes, report: Json, arms: Mapping[str, Mapping[int, Stat]]) -> None:
    """Distance against seconds for 1,000 samples; the evaluations stand over the highest point."""
    look, thousands = looks(report), report["evaluation"]["samples"] / 1000
    highest: dict[int, tuple[float, float]] = {}
    note: dict[str, Any] = {"textcoords": "offset points", "color": SOFT, "fontsize": 8.5}
    for name, values in arms.items():
        seconds = by_nfe(report["arms"][name], "seconds")
        at = {
            nfe: value.mean / thousands for nfe, value in seconds.items() if nfe in values and value.mean > 0
        }
        ax.plot(
            [*at.values()],
            [values[nfe].mean for nfe in at],
            color=look[name].colour,
            marker=look[name].marker,
        )
        if len(at) == 1:  # its own number stands beside it
            ((nfe, time),) = at.items()
            ax.annotate(str(nfe), (time, values[nfe].mean), xytext=(7, -3), **note)
            continue
        for nfe, time in at.items():
            highest[nfe] = max(highest.get(nfe, (0.0, 0.0)), (time, values[nfe].mean), key=lambda xy: xy[1])
    for nfe, point in highest.items():
        ax.annotate(str(nfe), point, xytext=(0, 6), ha="center", **note)
    _log_axis(ax, "x")
    ax.set_title("Sampling (numbers: NFE)")
    ax.set_xlabel("seconds for 1,000 samples")


# --- figures of samples -------------------------------------------------------------------------------


def tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file as arrays, empty where there is none. Raises GenkitError for a corrupt one."""
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise GenkitError(f"{path} is corrupt: {error}") from None


def _shown(arm: Json, held: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """(caption, samples) of the first seed at 1, 2, 4, 8, 32 steps; where there are none, at six."""
    points = [point for point in arm["runs"][0]["points"] if shown_as(point) in held]
    wanted = [point for point in points if point.get("steps") in (None, 1, 2, 4, 8, 32)]
    return [(steps_label(point), held[shown_as(point)]) for point in (wanted or points)[:6]]


def _blocks(report: Json, out: Path) -> Iterator[tuple[str, list[tuple[str, np.ndarray]]]]:
    """(arm, what is shown of it) of arms that have samples."""
    for name, arm in report["arms"].items():
        shown = _shown(arm, tensors(out / arm["runs"][0]["folder"] / "samples.safetensors"))
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
    data = report["data"]
    if len(data["shape"]) != 3:
        return None
    blocks = list(_blocks(report, out))
    if not blocks:
        return None
    real = tensors(out / "data.safetensors").get("test")
    heads: list[tuple[str, str, list[tuple[str, np.ndarray]]]] = []
    if real is not None and real.shape[1:] == tuple(data["shape"]):
        heads.append(("real data", INK, [("test set", real)]))
    look = looks(report)
    heads += [(plain(name, 60), look[name].colour, shown) for name, shown in blocks]

    # All sizes in device pixels, so that a pixel of an image is a whole number of them.
    count = min(20, *(len(images) for _, _, shown in heads for _, images in shown))
    height, width = data["shape"][1:]
    scale = max(1, round(64 / width))
    gap, head, margin = 8, 46, 220
    picture_h, picture_w = height * scale, width * scale
    classes = []
    if conditional(report):
        classes = [plain(name, 12) for name in data.get("class_names") or range(data["classes"])]
    steep = any(len(name) > 2 for name in classes)
    top = 8 if not classes else 150 if steep else 44
    total_w = margin + count * (picture_w + gap) - gap + (90 if steep else 4)
    total_h = top + sum(head + len(shown) * (picture_h + gap) + 14 for _, _, shown in heads)
    fig = Figure(figsize=(total_w / DPI, total_h / DPI), dpi=DPI, facecolor="white")

    for j in range(count if classes else 0):
        fig.text(
            (margin + j * (picture_w + gap) + picture_w / 2) / total_w,
            1 - (top - 6) / total_h,
            classes[j % len(classes)],
            ha="left" if steep else "center",
            va="bottom",
            rotation=50 if steep else 0,
            rotation_mode="anchor",
            color=SOFT,
            fontsize=8.5,
        )
    y = top
    for name, colour, shown in heads:
        fig.text(0.004, 1 - (y + head / 2) / total_h, name, color=colour, weight="bold", va="center")
        y += head
        for caption, images in shown:
            row = _mosaic(images[:count], data["levels"] or 256, scale, gap)
            ax = fig.add_axes(
                (margin / total_w, 1 - (y + picture_h) / total_h, row.shape[1] / total_w, picture_h / total_h)
            )
            ax.imshow(row, interpolation="nearest", aspect="auto")
            ax.set_axis_off()
            fig.text(
                (margin - 18) / total_w,
                1 - (y + picture_h / 2) / total_h,
                caption.replace(" (", "\n("),
                ha="right",
                va="center",
                fontsize=8.5,
            )
            y += picture_h + gap
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
    grey = "#c6cbd1"
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
        held = tensors(out / arm["runs"][0]["folder"] / "samples.safetensors").get("trajectory")
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
        bend = stat(run.get("curvature") for run in report["arms"][name]["runs"])
        ax.set_title(plain(name), color=colour, pad=4)
        ax.set_xlabel(f"{len(path) - 1} steps" + ("" if bend is None else f", curvature {bend}"))
        _frame(ax, inside)
    return fig


# --- files --------------------------------------------------------------------------------------------


def put(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all. Raises GenkitError naming a path that cannot be written."""
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise GenkitError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def save_figures(report: Json, out: Path) -> dict[str, Path]:
    """Draws what the report and the samples under `out` allow, as OUT/figures/NAME.png: name -> file."""
    drawn = {
        "quality": quality(report),
        "samples": samples(report, out),
        "density": density(report, out),
        "trajectories": trajectories(report, out),
        "bits_per_dim": bits_per_dim(report),
        "cost": cost(report),
        "curves": curves(report),
    }
    return {
        name: put(out / "figures" / f"{name}.png", png(figure))
        for name, figure in drawn.items()
        if figure is not None
    }
