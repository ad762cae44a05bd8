"""The laws of data sets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genkit.data.base import DATASETS, SPLITS, Dataset, Shown
from genkit.testing.laws import Finding, Laws, at_most, both, equal

ROWS = 20_000  # at most so many of a part are looked at


@dataclass
class Case:
    """A data set, built twice."""

    cls: type[Dataset]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.data = self.cls(**self.options)
        for name in SPLITS:  # files that are not there show now
            self.data.split(name)  # type: ignore[arg-type]

    @cached_property
    def again(self) -> Dataset:
        torch.manual_seed(2)
        return self.cls(**self.options)

    def rows(self, name: str, data: Dataset | None = None) -> tuple[Tensor, Tensor | None]:
        split = (data or self.data).split(name)  # type: ignore[arg-type]
        return split.take(torch.arange(min(len(split), ROWS)))


LAWS = Laws(DATASETS, Case)


@LAWS.law
def rows_are_what_the_spec_says(case: Case) -> Finding:
    """Both parts have rows of spec.shape: int64 levels from 0 to levels - 1, or float32 where levels is None. With them
    go classes, int64 from 0 to classes - 1, or conditions, finite float32 of spec.condition values, or None.
    Objectives are built from the spec alone."""
    spec = case.data.spec
    for name in SPLITS:
        x, y = case.rows(name)
        if tuple(x.shape[1:]) != spec.shape or x.dtype != (
            torch.float32 if spec.levels is None else torch.int64
        ):
            return Finding(False, f"{name}: rows {tuple(x.shape[1:])} {x.dtype}, the spec says {spec.shape}")
        if spec.levels is None and not bool(x.isfinite().all()):
            return Finding(False, f"{name}: values that are not finite")
        if spec.levels is not None and not 0 <= int(x.min()) <= int(x.max()) < spec.levels:
            return Finding(False, f"{name}: levels {int(x.min())} to {int(x.max())} of {spec.levels}")
        if (y is None) == spec.conditional:
            said = spec.classes if spec.condition is None else spec.condition
            return Finding(False, f"{name}: classes {'missing' if y is None else 'given'}, spec: {said}")
        wanted: tuple[Any, Any] = ((len(x),), torch.int64)
        if spec.condition is not None:
            wanted = ((len(x), spec.condition), torch.float32)
        if y is not None and (tuple(y.shape), y.dtype) != wanted:
            return Finding(False, f"{name}: classes {tuple(y.shape)} {y.dtype}, expected {wanted}")
        if y is not None and not bool(y.isfinite().all()):
            return Finding(False, f"{name}: conditions that are not finite")
        if (
            y is not None
            and spec.classes is not None
            and not 0 <= int(y.min()) <= int(y.max()) < spec.classes
        ):
            return Finding(False, f"{name}: classes {int(y.min())} to {int(y.max())} of {spec.classes}")
    return Finding(True, f"{len(case.data.train)} and {len(case.data.test)} rows of {spec.shape}")


@LAWS.law
def the_parts_are_the_same_each_time(case: Case) -> Finding:
    """Built again, the data set has the same rows in the same order and the same hash, whatever torch's own seed is:
    key what is drawn, keyed_generator(seed, ...). Runs are resumed and compared by the hash."""
    alike = all(
        torch.equal(one, other)
        for name in SPLITS
        for one, other in zip(case.rows(name), case.rows(name, case.again), strict=True)
        if one is not None and other is not None
    )
    return both(
        Finding(alike, "rows are the same" if alike else "rows differ"),
        Finding(case.data.hash == case.again.hash, f"hash {case.data.hash[:8]}, again {case.again.hash[:8]}"),
    )


@LAWS.law
def no_test_row_is_a_training_row(case: Case) -> Finding:
    """The parts share no rows, up to as many as are repeated within the training part: else memorized rows look like
    learned ones. Split before rows are cut, augmented or drawn."""
    train, test = ([bytes(row) for row in as_bytes(case.rows(name)[0])] for name in SPLITS)
    known = set(train)
    repeated = 1 - len(known) / len(train)
    shared = sum(row in known for row in test) / len(test)
    return at_most(shared, 0.01 + 2 * repeated, "share of test rows that are training rows:")


def as_bytes(x: Tensor) -> Any:
    """(N, ...) -> (N, bytes) as an array."""
    return x.flatten(1).contiguous().numpy().view("uint8")


@LAWS.law
def rows_are_taken_by_number(case: Case) -> Finding:
    """take(index) gives the rows of these numbers in this order, repeated ones twice, and the same again."""
    moved = 0
    for name in SPLITS:
        split = case.data.split(name)  # type: ignore[arg-type]
        x, y = case.rows(name)
        index = torch.tensor([len(x) - 1, 0, len(x) // 2, 0])
        for _ in range(2):
            rows, classes = split.take(index)
            moved += int((rows != x[index]).flatten(1).any(1).sum())
            moved += 0 if y is None or classes is None else int((classes != y[index]).sum())
    return at_most(moved, 0, "rows that differ:")


@LAWS.law
def the_parts_move_to_a_device(case: Case) -> Finding:
    """split.to(device) holds the same rows, with the same hash."""
    split = case.data.train
    return equal(split.to("cpu").hash[:8], split.hash[:8], "hash")


@LAWS.law
def rows_can_be_shown(case: Case) -> Finding:
    """show(x) gives pictures, texts or sounds for reports, or nothing; one for each row."""
    shown = case.data.show(case.rows("test")[0][:3])
    counts = [len(form) for form in (shown.images, shown.texts, shown.sounds) if form is not None]
    right = isinstance(shown, Shown) and all(n <= 3 for n in counts)
    return Finding(right, f"{counts or 'nothing'} of 3 rows")
