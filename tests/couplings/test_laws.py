"""The laws see faults: each coupling here breaks one promise, and a law's number says so."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from genkit.couplings import COUPLINGS, Coupling
from genkit.couplings.independent import Independent
from genkit.data.base import Encoded, TensorSplit
from genkit.data.views import Continuous
from genkit.randomness import keyed_generator
from genkit.testing import couplings as laws
from genkit.types import DataSpec, Generator, Pair, Rows

SPEC = DataSpec("toy", (2,), classes=3)
DATA = Encoded(
    TensorSplit(torch.randn(300, 2, generator=keyed_generator(0, "laws")) + 1, torch.arange(300) % 3),
    Continuous(SPEC),
)


class Changed(Coupling):
    """The independent coupling, with a fault."""

    independent = True

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        return self.fault(Pair(self.source.sample(x1, generator=generator), x1, y, index))

    def fault(self, pair: Pair) -> Pair:
        return pair


class Reordered(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(pair.x0, pair.x1.flip(0), pair.y, pair.index)


class Dropped(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(pair.x0, pair.x1[:-1], pair.y, pair.index)


class Mislabelled(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(pair.x0, pair.x1, None, pair.index)


class Touched(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(pair.x0, pair.x1 + 1e-3, pair.y, pair.index)


class NotTheRowsItNames(Changed):
    rows: ClassVar[Rows] = Rows.DRAWN

    def fault(self, pair: Pair) -> Pair:
        assert pair.index is not None
        return Pair(pair.x0, pair.x1, pair.y, (pair.index + 3) % 300)


class DeafToTheGenerator(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(torch.randn_like(pair.x0), pair.x1, pair.y, pair.index)


class Shrunk(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(0.6 * pair.x0, pair.x1, pair.y, pair.index)


class Tilted(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(pair.x0, pair.x1, pair.y, pair.index, torch.sigmoid(2 * pair.x0[:, 0]))


class Leaning(Changed):
    def fault(self, pair: Pair) -> Pair:
        return Pair(0.6 * pair.x0 + 0.8 * (pair.x1 - 1), pair.x1, pair.y, pair.index)


def test_a_right_coupling_passes_all() -> None:
    for coupling in (Changed(), Independent()):
        assert laws.moved(coupling, DATA) == laws.repeats(coupling, DATA) == 0
        assert laws.source_p(coupling, DATA) > 1e-3
        assert laws.data_p(coupling, DATA) > 1e-3
        assert laws.dependence(coupling, DATA) < 1.5
        assert laws.cost_ratio(coupling, DATA) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("fault", [Reordered, Dropped, Mislabelled, Touched, NotTheRowsItNames])
def test_rows_that_are_not_what_they_should_be(fault: type[Coupling]) -> None:
    assert laws.moved(fault(), DATA) > 5e-4


def test_a_generator_that_has_no_say() -> None:
    assert laws.repeats(DeafToTheGenerator(), DATA) > 0.1


@pytest.mark.parametrize("fault", [Shrunk, Tilted])
def test_a_source_that_is_not_kept(fault: type[Coupling]) -> None:
    """Also one that weights bend."""
    assert laws.source_p(fault(), DATA) < 1e-6


def test_an_independence_that_is_not_there() -> None:
    assert laws.dependence(Leaning(), DATA) > 10
    assert laws.dependence(COUPLINGS.build("ot"), DATA) > 10
