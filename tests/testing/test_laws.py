"""How laws are run: what an exception is, what cannot be run, and how a report reads."""

from __future__ import annotations

import pytest
import torch

from genkit.couplings import Coupling
from genkit.couplings.independent import Independent
from genkit.errors import GenkitError
from genkit.metrics.base import TwoSample
from genkit.solvers import OneStep
from genkit.testing import check_coupling, check_metric, check_solver, examine
from genkit.testing.laws import at_least, at_most, both, difference, equal, p_value
from genkit.types import DataSpec, Pair


class Fails(Independent):
    def __call__(self, x1, y=None, *, index=None, generator=None):
        raise KeyError("no such thing")


def test_an_exception_breaks_a_law_and_says_where() -> None:
    report = examine("coupling", Fails)
    assert len(report.broken) == len(report.results) > 5
    assert "KeyError: 'no such thing' (test_laws.py, line " in report.broken[0].numbers


class Doubles(Independent):
    """Options of its own; broken from a strength on."""

    def __init__(self, strength: float = 0.0) -> None:
        self.strength = strength

    def __call__(self, x1, y=None, *, index=None, generator=None):
        pair = super().__call__(x1, y, index=index, generator=generator)
        return Pair(pair.x0 * (1 + self.strength), x1, y, index)


def test_a_check_gives_results_and_its_assertion_says_what_is_broken() -> None:
    results = check_coupling(Doubles)
    assert all(result.passed and result.meaning and result.numbers for result in results)
    with pytest.raises(AssertionError) as caught:
        check_coupling(Doubles, strength=0.5)
    lines = str(caught.value).splitlines()
    assert lines[0] == "coupling 'Doubles' (tests.testing.test_laws.Doubles)"
    assert lines[1].startswith("  FAILED  the marginal of x0 is the source: standard normal: p = ")
    assert "declare keeps_source = False" in " ".join(line.strip() for line in lines)
    assert lines[-1] == f"{len(results) - 1} of {len(results)} laws hold"


class NeedsOther(Independent):
    needs_teacher = True

    def check_teacher(self, teacher):
        if not hasattr(teacher, "wisdom"):
            raise GenkitError("the teacher must be wise")


class DoesNotBuild(OneStep):
    order = 1

    def __init__(self, steps: int = 8, grid: str = "uniform") -> None:
        self.steps = steps / 0

    def advance(self, field, t, dt, x):
        return x


class OfNothing(TwoSample):
    words = "nothing"

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.name == "moons" and spec.classes == 2

    def distance(self, x, y):
        return (x.mean() - y.mean()).abs()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: check_coupling("ott"), "no coupling 'ott'; did you mean 'ot'"),
        (lambda: check_coupling(Doubles, strenght=1.0), "no option 'strenght'; did you mean 'strength'"),
        (
            lambda: check_coupling(Doubles, strength="a"),
            "coupling 'Doubles': strength must be a number, not 'a'",
        ),
        (lambda: check_coupling(DoesNotBuild), "is not a subclass of Coupling"),
        (lambda: check_coupling(NeedsOther), "the teacher must be wise"),
        (lambda: check_coupling(Coupling), "cannot be set up: TypeError: .* abstract"),
        (
            lambda: check_solver(DoesNotBuild),
            "cannot be set up: ZeroDivisionError: .*test_laws.py",
        ),
        (
            lambda: check_metric(OfNothing),
            "applies to none of digits, moons, pydoc, shapes, trimodal: give data=",
        ),
        (
            lambda: examine("couplings", "ot"),
            "no kind of entry with laws 'couplings'; did you mean 'coupling'",
        ),
    ],
)
def test_what_cannot_be_run_is_an_error(run, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        run()


def test_a_metric_is_fed_with_the_data_that_are_given() -> None:
    check_metric(OfNothing, data={"name": "moons", "labels": True, "n_train": 200, "n_test": 200})


def test_findings() -> None:
    assert at_most(1, 2, "x").passed
    assert not at_most(float("nan"), 2, "x").passed
    assert not at_least(float("nan"), 2, "x").passed
    assert not equal(1, 2, "x").passed
    found = both(at_most(1, 2, "a"), at_most(3, 2, "b"))
    assert found == (False, "b 3, at most 2 allowed")
    assert difference(torch.zeros(2), torch.zeros(3)) == torch.inf
    assert difference(torch.tensor([0.0, torch.nan]), torch.zeros(2)) == torch.inf
    assert difference(torch.zeros(2), torch.tensor([0.0, 0.5])) == 0.5


def draws(n: int = 100, *, shared: bool = False, seed: int = 0) -> torch.Tensor:
    """n batches of 48 rows; `shared`: the rows of a batch are one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1 if shared else 48, 2, generator=generator).expand(n, 48, 2)


def test_p_values_are_small_for_other_distributions_and_only_for_them() -> None:
    """Of 20 pairs of equal ones none is below 1e-3, though rows of a batch depend on each other."""
    for shared in (False, True):
        found = [p_value(draws(seed=k, shared=shared), draws(400, seed=100 + k)) for k in range(20)]
        assert min(found) > 1e-3
    fresh = draws(400, seed=1)
    for wrong in (1.1 * draws(), draws() + 0.1, draws().abs(), torch.zeros(100, 48, 2)):
        assert p_value(wrong, fresh) < 1e-5
    assert p_value(draws(), draws()) == 1
