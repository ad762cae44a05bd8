"""The laws of metrics, fed with rows of the first data set to which they apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from genkit.data.base import DATASETS, Dataset
from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric
from genkit.randomness import keyed_generator
from genkit.testing.laws import Finding, Laws, at_most, both
from genkit.types import DataSpec, LogProb

DATA: dict[str, dict[str, Any]] = {
    "digits": {},
    "moons": {},
    "moons given x": {"name": "moons", "condition": "x"},
    "pydoc": {},
    "shapes": {"points": 24, "n_train": 200, "n_test": 100},
    "trimodal": {},
}
ROWS = 96
READS = get_args(get_args(get_type_hints(DataMetric)["reads"])[0])
NUMBERS = {"samples", "rows", "labels", "answers", "scored"}  # what gives one number

Feed = Callable[[DataMetric, Tensor], None]  # updates a metric with the rows of these numbers


@lru_cache(maxsize=len(DATA))
def data_set(key: str) -> Dataset:
    return DATASETS.build({"name": key} | DATA[key])


@dataclass
class Case:
    """A metric class with its options, and how it is fed: with rows as they should be, or as they should not.

    Of the options, `data` is that of the check: the data set, or its name, that the metric is fed with.
    """

    cls: type[DataMetric]
    options: dict[str, Any]
    data: Dataset = field(init=False)
    taken: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.options.pop("data", None)
        known = [data_set(key) for key in DATA] if given is None else [DATASETS.build(given)]
        found = next((data for data in known if self.cls.applies(data.spec)), None)
        if found is None:
            names = ", ".join(dict.fromkeys(data.spec.name for data in known))
            raise GenkitError(f"{self.cls.__name__} applies to none of {names}: give data=NAME")
        if self.cls.reads not in READS:
            raise GenkitError(
                f"{self.cls.__name__}.reads must be one of {', '.join(READS)}, not {self.cls.reads!r}"
            )
        self.data = found
        self.build()

    def build(self, spec: DataSpec | None = None) -> DataMetric:
        cls: Any = self.cls
        return cls(spec or self.data.spec, **self.options)

    def fed(self, *parts: Tensor, feed: Feed | None = None, metric: DataMetric | None = None) -> DataMetric:
        """A metric that has seen these parts of the rows; all in one, if there are none."""
        metric = metric or self.build()
        if self.cls.reads == "parts":
            metric.update(self.rows("train"), part="train")
        for part in parts or (torch.arange(ROWS),):
            (feed or self.right)(metric, part)
        return metric

    def rows(self, name: str) -> Tensor:
        """Rows of one part; of data with prompts, of the metric's own task."""
        if name not in self.taken:
            split = self.data.split(name)  # type: ignore[arg-type]
            rows = split.take(torch.arange(len(split)))[0].split(1)
            if self.cls.reads == "answers":
                task = self.cls.task  # type: ignore[attr-defined]
                rows = tuple(islice((row for row in rows if self.data.words(row, task)), ROWS))
            self.taken[name] = torch.cat([rows[i % len(rows)] for i in range(ROWS)])
        return self.taken[name]

    def given(self, i: Tensor) -> dict[str, Tensor]:
        """What is given of the test rows of these numbers, for a metric that takes it, of data that have it."""
        told = self.cls.by_class and self.data.spec.conditional
        return {"y": self.labels[i]} if told else {}

    @property
    def labels(self) -> Tensor:
        y = self.data.test.take(torch.arange(ROWS))[1]
        if y is None:
            raise GenkitError(
                f"{self.cls.__name__} reads labels, and '{self.data.spec.name}' has none: give data=NAME"
            )
        return y

    @property
    def right(self) -> Feed:
        """Samples that are real rows, of the class or the answer that was asked for."""
        return self.feed(self.rows("train"), torch.arange(ROWS))

    @property
    def wrong(self) -> Feed:
        """Noise in the place of samples; classes and answers of other rows."""
        real, generator = self.rows("train"), keyed_generator(0, "law junk")
        levels = self.data.spec.levels
        if levels is None:
            junk = real + 5 * real.std() * torch.randn(real.shape, generator=generator)
        else:
            junk = torch.randint(levels, real.shape, generator=generator)
        return self.feed(junk, torch.randperm(ROWS, generator=generator))

    def feed(self, samples: Tensor, order: Tensor) -> Feed:
        reads, test = self.cls.reads, self.rows("test")
        generator = keyed_generator(0, "law values")
        if reads == "samples":

            def update(metric: DataMetric, i: Tensor) -> None:
                metric.update(test[i], real=True, **self.given(i))
                metric.update(samples[i], real=False, **self.given(i))

        elif reads == "parts":

            def update(metric: DataMetric, i: Tensor) -> None:
                metric.update(test[i], part="test")
                metric.update(samples[i], part="sample")

        elif reads == "rows":

            def update(metric: DataMetric, i: Tensor) -> None:
                metric.update(samples[i])

        elif reads == "labels":
            labels = self.labels[order]

            def update(metric: DataMetric, i: Tensor) -> None:
                metric.update(test[i], labels[i])

        elif reads == "answers":

            def update(metric: DataMetric, i: Tensor) -> None:
                metric.update(test[order][i], test[i], self.data)

        elif reads == "trajectory":
            states = torch.randn(5, ROWS, *self.data.spec.shape, generator=generator)
            times = torch.tensor([0.0, 0.1, 0.4, 0.6, 1.0])

            def update(metric: DataMetric, i: Tensor) -> None:
                metric.update([state[i] for state in states], times)

        else:
            value = -100 * torch.rand(ROWS, generator=generator, dtype=torch.float64) - 1
            spread = torch.rand(ROWS, generator=generator, dtype=torch.float64)

            def update(metric: DataMetric, i: Tensor) -> None:
                scored = reads == "scored"
                log_prob = LogProb(value[i], "exact") if scored else LogProb(value[i], "estimate", spread[i])
                metric.update(log_prob)

        return update


LAWS = Laws(METRICS, Case, own=("data",))


def numbers(found: Any) -> dict[str, Any]:
    """What `compute` gives, as floats and words."""
    found = found if isinstance(found, Mapping) else {"value": found}
    return {key: value if isinstance(value, str) else float(value) for key, value in found.items()}


def apart(one: DataMetric, other: DataMetric) -> float:
    """The largest relative difference between two metrics."""
    a, b = numbers(one.compute()), numbers(other.compute())
    if a.keys() != b.keys():
        return torch.inf
    gaps = [0.0]
    for key, x in a.items():
        y = b[key]
        if x != y and not (x != x and y != y):
            gaps.append(torch.inf if isinstance(x, str) else abs(x - y) / (abs(x) + abs(y) + 1e-9))
    return max(gaps)


@LAWS.law
def it_gives_numbers(case: Case) -> Finding:
    """`compute` gives one number, or of `parts`, `log_prob` and `trajectory` a mapping of names to numbers (or words);
    none is infinite. Tables and reports are made of them."""
    found = case.fed().compute()
    if isinstance(found, Mapping) == (case.cls.reads in NUMBERS):
        return Finding(False, f"{type(found).__name__} of a metric that reads {case.cls.reads}")
    plain = numbers(found)
    shown = ", ".join(f"{key} {value:.4g}" for key, value in plain.items() if not isinstance(value, str))
    return Finding(all(isinstance(v, str) or abs(v) < torch.inf for v in plain.values()), shown)


@LAWS.law
def it_says_what_it_is(case: Case) -> Finding:
    """`higher_is_better` is True, False, or None for neither; `words` is text; each state says how processes reduce it
    (add_state(..., dist_reduce_fx=...))."""
    metric = case.fed()
    loose = [name for name, reduction in metric._reductions.items() if reduction is None]
    right = case.cls.higher_is_better in (True, False, None) and isinstance(case.cls.words, str)
    return Finding(right and not loose, f"states without a reduction: {', '.join(loose) or 'none'}")


@LAWS.law
def batches_do_not_matter(case: Case) -> Finding:
    """Rows in one update or in several of unequal size give the same: keep sums and counts, not means of batches."""
    parts = torch.arange(ROWS).split([50, 7, ROWS - 57])
    return at_most(apart(case.fed(), case.fed(*parts)), 1e-4, "relative difference")


@LAWS.law
def the_order_of_rows_does_not_matter(case: Case) -> Finding:
    """A figure of a set of samples is not one of their order."""
    order = torch.randperm(ROWS, generator=keyed_generator(0, "law order"))
    return at_most(apart(case.fed(), case.fed(order)), 1e-4, "relative difference")


@LAWS.law
def processes_together_measure_what_one_would(case: Case) -> Finding:
    """States of several processes reduce to what one process with all rows has (`merge_state` does as a distributed
    run). All that `compute` needs is a state."""
    first, second = (case.fed(part) for part in torch.arange(ROWS).split([30, ROWS - 30]))
    first.merge_state(second)
    return at_most(apart(case.fed(), first), 1e-4, "relative difference")


@LAWS.law
def reset_forgets(case: Case) -> Finding:
    """After `reset` a metric is as new: one metric judges several models."""
    metric = case.fed(feed=case.wrong)
    metric.compute()
    metric.reset()
    return at_most(apart(case.fed(), case.fed(metric=metric)), 1e-4, "relative difference")


@LAWS.law
def nothing_to_measure_is_refused(case: Case) -> Finding:
    """`compute` without rows raises GenkitError: a zero would be taken for a figure."""
    try:
        found = case.build().compute()
    except GenkitError as error:
        return Finding(True, str(error))
    return Finding(False, f"without rows it is {numbers(found)}")


@LAWS.law
def real_rows_are_better_than_noise(case: Case) -> Finding | None:
    """Real rows in the place of samples are better, in the sense of `higher_is_better`, than noise is; so are classes
    and answers that were asked for than others."""
    better = case.cls.higher_is_better
    if better is None or case.cls.reads not in ("samples", "labels", "answers"):
        return None
    good, bad = (float(case.fed(feed=feed).compute()) for feed in (case.right, case.wrong))
    return Finding(good > bad if better else good < bad, f"real {good:.4g}, wrong {bad:.4g}")


@LAWS.law
def other_data_are_refused(case: Case) -> Finding:
    """A metric built for data to which it does not apply (`applies`) raises GenkitError: call self.require(spec)."""
    others = [spec for spec in (data_set(key).spec for key in DATA) if not case.cls.applies(spec)]
    taken = []
    for spec in others:
        try:
            case.build(spec)
        except GenkitError:
            continue
        taken.append(spec.name)
    return both(
        Finding(not taken, f"built for {', '.join(taken)}" if taken else f"{len(others)} others refused")
    )
