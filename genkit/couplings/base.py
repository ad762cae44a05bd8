"""The coupling interface and its registry."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Protocol

from torch import Tensor

from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import Generator, Pair, Rows, Source, StandardNormal


class EncodedData(Protocol):
    """The training rows as an objective reads them (see `genkit.data.Encoded`)."""

    def __len__(self) -> int: ...

    def some(self, count: int) -> Tensor: ...

    def take(self, index: Tensor, *, generator: Generator = None) -> tuple[Tensor, Tensor | None]: ...

    @property
    def hash(self) -> str: ...


class Coupling(abc.ABC):
    """Draws the source sample x0 for each row of a batch of data x1.

    Declares what holds of it, which the property tests check. Where pairs have weights, it holds of the weighted
    pairs.
    independent: x0 is independent of x1 (given y), so that the field has a score.
    rows: KEPT, row i of x1 stays row i; DRAWN, it chooses data rows; GENERATED, it makes x1.
    keeps_source: the marginal of x0 is the source.
    lowers_cost: E|x1 - x0|^2 is at most that of the independent coupling.
    skews_classes: it pairs without regard to y, so that each class or condition has a source of its own.
    needs_teacher, needs_data: `setup` must have been called with one, or with the data set.
    passes: how often a row goes through a teacher's network each time it is paired.
    setup_rows: how many rows, each time they do, went through it in `setup`.
    """

    independent: ClassVar[bool] = False
    rows: ClassVar[Rows] = Rows.KEPT
    keeps_source: ClassVar[bool] = True
    lowers_cost: ClassVar[bool] = False
    skews_classes: bool = False
    needs_teacher: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    passes: float = 0.0
    setup_rows: int = 0

    data: EncodedData | None = None
    source: Source = StandardNormal()
    teacher: Any = None

    def check_teacher(self, teacher: Any) -> None:
        """Raises GenkitError when a teacher is needed and missing, or is of no use."""
        if self.needs_teacher and teacher is None:
            raise GenkitError(
                f"the coupling {type(self).__name__} needs a teacher: set teacher=RUN_FOLDER or an arm"
            )

    def setup(self, data: EncodedData | None, source: Source, teacher: Any = None) -> None:
        """Once before training. Raises GenkitError where a teacher or data are needed and missing."""
        self.check_teacher(teacher)
        if self.needs_data and data is None:
            raise GenkitError(
                f"the coupling {type(self).__name__} needs the data set: give setup(data, source)"
            )
        self.data, self.source, self.teacher = data, source, teacher

    @abc.abstractmethod
    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        """x1 (B, ...) encoded data, y (B,) classes or (B, K) conditions, index (B,) row numbers -> a Pair with
        aligned rows."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Coupling:
        return self  # of a model that is copied, to be sharded: the teacher and the data stay shared


COUPLINGS = Registry(Coupling, "coupling", "genkit.couplings")
