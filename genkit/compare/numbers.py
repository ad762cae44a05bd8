"""The numbers of a report, over seeds and arms, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Json = Mapping[str, Any]
PERPLEXITY, ENTROPY = "generative_perplexity", "sample_entropy"  # the one is shown beside the other only
CLOSE = 0.05  # a relative difference that a single seed does not decide


class Stat(NamedTuple):
    """A number over seeds: mean, sample standard deviation (None for one seed), number of seeds."""

    mean: float
    spread: float | None
    seeds: int

    def level(self, other: Stat) -> bool:
        """Whether they differ by no more than their spreads in quadrature; with single seeds, than 5%."""
        gap = abs(self.mean - other.mean)
        if self.spread is None or other.spread is None:
            return gap <= CLOSE * max(abs(self.mean), abs(other.mean))
        return gap <= math.hypot(self.spread, other.spread)

    def __str__(self) -> str:
        return " ".join(filter(None, (number(self.mean), self.error)))

    @property
    def error(self) -> str:
        """The spread to as many decimals as the mean, more where it would vanish; empty for one seed."""
        if self.spread is None:
            return ""
        text = f"{self.spread:,.{len(number(self.mean).partition('.')[2])}f}"
        return f"± {text if float(text.replace(',', '')) or not self.spread else f'{self.spread:.1g}'}"


class Cost(NamedTuple):
    """What training took: the arm's steps, what was set up before them, its teacher's training, and all."""

    own: Stat
    setup: Stat
    teacher: Stat
    total: Stat


class Measure(NamedTuple):
    """A metric of samples. lower: whether lower is better, None where neither is."""

    key: str
    name: str
    lower: bool | None


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
    """A value of the points of an arm, over its seeds, by number of sequential network evaluations.

    Points of equal steps and setting belong together: an adaptive solver takes other evaluations for each seed, and
    stands at their mean. Where two numbers of steps end at one, the smaller is kept.
    """
    groups: dict[tuple[int, str], list[Json]] = {}
    for run in arm["runs"]:
        for point in run["points"]:
            groups.setdefault((point.get("steps") or 0, point.get("setting") or ""), []).append(point)
    found: dict[int, Stat] = {}
    for _, points in sorted(groups.items()):
        value = stat(point.get(key) for point in points)
        if value is not None:
            found.setdefault(round(sum(point["nfe"] for point in points) / len(points)), value)
    return dict(sorted(found.items()))


def measures(report: Json) -> list[Measure]:
    """The metrics of samples that some arm has, the one that judges the comparison first."""
    known = [Measure(entry["name"], entry["words"], entry["lower"]) for entry in report["metrics"]]
    return [m for m in known if any(by_nfe(arm, m.key) for arm in report["arms"].values())]


def main_measure(report: Json) -> Measure:
    """What the arms are judged by: the first distance that the report holds, else the first share of what is right."""
    ranked = sorted((m for m in measures(report) if m.lower is not None), key=lambda m: not m.lower)
    return ranked[0] if ranked else Measure("", "distance", True)


def best(values: Mapping[str, Stat], lower: bool | None) -> list[str]:
    """The best of several arms, then those that are level with it; none where there is no competition."""
    if lower is None or len(values) < 2:
        return []
    ranked = sorted(values, key=lambda name: values[name].mean, reverse=not lower)
    return [name for name in ranked if values[name].level(values[ranked[0]])]


def over_runs(arm: Json, key: str) -> Stat | None:
    return stat(run.get(key) for run in arm["runs"])


def spent(arm: Json, unit: str) -> Cost:
    """Training cost in `unit` ("seconds" or "tokens"), over seeds."""
    parts = [
        [run["train"].get(key) or 0.0 for run in arm["runs"]]
        for key in (unit, f"setup_{unit}", f"teacher_{unit}")
    ]
    parts.append([sum(of_run) for of_run in zip(*parts, strict=True)])
    return Cost(*(stat(values) or Stat(0.0, None, 0) for values in parts))


def likelihood(arm: Json) -> tuple[float, float, str] | None:
    """bits/dim, its error (the spread over seeds, or the standard error of one run), and its kind: "bound", of p(x|y)
    "bound, given y"."""
    held = [run["bits_per_dim"] for run in arm["runs"] if run.get("bits_per_dim")]
    value, stderr = stat(entry["value"] for entry in held), stat(entry.get("stderr") for entry in held)
    if value is None:
        return None
    error = value.spread if value.spread is not None else stderr.mean if stderr else 0.0
    given = held[0].get("given")
    return value.mean, error, held[0]["kind"] + (f", given {given}" if given else "")


def unit(report: Json) -> str:
    """What likelihoods are counted in: "bits/dim", of text "bits/char"."""
    held = (run.get("bits_per_dim") for arm in report["arms"].values() for run in arm["runs"])
    return next((entry["unit"] for entry in held if entry and "unit" in entry), "bits/dim")


def by_unmasker(arm: Json) -> dict[str, Json]:
    """What an arm would be with each of several unmaskers, by its name; empty where fewer than two were measured."""
    names = dict.fromkeys(name for run in arm["runs"] for name in run.get("unmasking") or {})
    found: dict[str, Json] = {
        name: {"runs": [{"points": (run.get("unmasking") or {}).get(name, [])} for run in arm["runs"]]}
        for name in names
    }
    return found if len(found) > 1 else {}


def one_shot(arm: Json) -> bool:
    """Whether the number of network calls is the model's, not the solver's (an autoregressive flow)."""
    points = arm["runs"][0]["points"]
    return len(points) == 1 and points[0].get("steps") is None


def conditional(report: Json) -> bool:
    """Whether sample i is of class i % classes in all arms; an arm says otherwise by `conditional: false`, the data by
    `in_turn: false`."""
    data, arms = report["data"], report["arms"].values()
    in_turn = bool(data.get("classes")) and data.get("in_turn", True)
    return in_turn and all(arm.get("conditional", True) for arm in arms)


def seeds(report: Json) -> int:
    return max((len(arm["runs"]) for arm in report["arms"].values()), default=0)


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


def tokens(value: float) -> str:
    """A count of tokens.

    >>> tokens(3072000), tokens(16), tokens(1536.0), tokens(2.5e9)
    ('3.07 M', '16', '1.54 k', '2.50 G')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{value:.4g}"


def listed(words: Iterable[object]) -> str:
    """ "1, 2 and 4"."""
    *some, last = [str(word) for word in words]
    return f"{', '.join(some)} and {last}" if some else last


def capital(name: str) -> str:
    return name[:1].upper() + name[1:]
