"""What a law is, and how laws are run.

    @LAWS.law
    def rows_stay_in_place(case: Case) -> Finding | None:
        \"\"\"Row i of x1 comes back as row i: return x1 as it was given, or declare `rows`.\"\"\"
        return at_most(share_of_rows_that_moved, 0, "share of rows that moved")

A law's name is that of its function, and its docstring says what it means and what to do where it is broken. It gives
None where it asks nothing of the class.
"""

from __future__ import annotations

import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.registry import Registry, check_options

C = TypeVar("C")


class Finding(NamedTuple):
    """Whether a law holds, and the numbers that say so."""

    passed: bool
    numbers: str = ""


@dataclass(frozen=True)
class Law(Generic[C]):
    """`function` measures a case; see the head of the module."""

    name: str
    meaning: str
    function: Callable[[C], Finding | None]


@dataclass(frozen=True)
class Result:
    """One law of one class: whether it holds, the numbers, and what it means."""

    law: str
    passed: bool
    numbers: str
    meaning: str


@dataclass(frozen=True)
class Report:
    """The results of all laws that ask something of a class."""

    subject: str
    results: list[Result]

    @property
    def broken(self) -> list[Result]:
        return [result for result in self.results if not result.passed]

    @property
    def holds(self) -> bool:
        return not self.broken

    def text(self, *, color: bool = False, only_broken: bool = False) -> str:
        """A paragraph for each law: passed or failed, its numbers, and what it means."""
        lines = [self.subject]
        for result in self.broken if only_broken else self.results:
            verdict = "passed" if result.passed else "FAILED"
            if color:
                verdict = f"\033[{32 if result.passed else 31}m{verdict}\033[0m"
            lines.append(f"  {verdict}  {result.law}" + (f": {result.numbers}" if result.numbers else ""))
            lines.append(
                textwrap.fill(result.meaning, 110, initial_indent=10 * " ", subsequent_indent=10 * " ")
            )
        kept = len(self.results) - len(self.broken)
        lines.append(f"{kept} of {len(self.results)} laws hold")
        return "\n".join(lines)


@dataclass
class Laws(Generic[C]):
    """The laws of one kind. `case` sets up what they measure, from a class and its options; it raises GenkitError where
    it cannot.

    own: options of the check itself, which `case` takes and the class does not.
    """

    registry: Registry[Any]
    case: Callable[[type, dict[str, Any]], C]
    own: tuple[str, ...] = ()
    laws: list[Law[C]] = field(default_factory=list)

    def law(self, function: Callable[[C], Finding | None]) -> Callable[[C], Finding | None]:
        """Decorator: the function is one more law."""
        meaning = " ".join((function.__doc__ or "").split())
        self.laws.append(Law(function.__name__.replace("_", " "), meaning, function))
        return function

    def examine(self, target: type | str, options: Mapping[str, Any]) -> Report:
        """Runs the laws on a class or the name of one. Raises GenkitError where it cannot be built."""
        cls = self.registry.get(target) if isinstance(target, str) else target
        if not (isinstance(cls, type) and issubclass(cls, self.registry.base)):
            raise GenkitError(f"{cls!r} is not a subclass of {self.registry.base.__name__}")
        name = target if isinstance(target, str) else cls.__name__
        subject = f"{self.registry.kind} '{name}'"
        theirs = {key: value for key, value in options.items() if key not in self.own}
        check_options(cls, theirs, subject, given=self.registry.given)
        with quiet():
            try:
                with seeded():
                    case = self.case(cls, dict(options))
            except GenkitError:
                raise
            except Exception as error:
                raise GenkitError(f"{subject} cannot be set up: {where_raised(error)}") from error
            found = [(law, measured(law, case)) for law in self.laws]
        results = [
            Result(law.name, bool(finding.passed), finding.numbers, law.meaning)
            for law, finding in found
            if finding is not None
        ]
        return Report(
            f"{subject} ({cls.__module__.removeprefix('genkit_plugin_')}.{cls.__qualname__})", results
        )


def measured(law: Law[C], case: C) -> Finding | None:
    """What the law finds; an exception breaks it. Torch's own generator is the same for each law."""
    with seeded():
        try:
            return law.function(case)
        except Exception as error:
            return Finding(False, where_raised(error))


@contextmanager
def seeded() -> Iterator[None]:
    """Torch's own generator from the same seed each time, and after it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def where_raised(error: Exception) -> str:
    """The exception, with the place in its file."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


class quiet(warnings.catch_warnings):
    """No warnings: what a class says of the small data of a check is not for its author."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def at_most(value: float, limit: float, what: str) -> Finding:
    return Finding(value <= limit, f"{what} {value:.3g}, at most {limit:.3g} allowed")


def at_least(value: float, limit: float, what: str) -> Finding:
    return Finding(value >= limit, f"{what} {value:.3g}, at least {limit:.3g} asked for")


def equal(found: object, expected: object, what: str) -> Finding:
    return Finding(
        found == expected, f"{what} {found}" + ("" if found == expected else f", expected {expected}")
    )


def both(*findings: Finding) -> Finding:
    """Holds where all hold; the numbers are those of the broken ones, or of all."""
    broken = [finding for finding in findings if not finding.passed]
    return Finding(not broken, "; ".join(finding.numbers for finding in broken or findings))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; inf for another shape, and where only one is finite."""
    if a.shape != b.shape:
        return torch.inf
    if torch.equal(a, b):
        return 0.0
    found = float((a.double() - b.double()).abs().max())
    return found if found == found else torch.inf


def p_value(a: Tensor, b: Tensor) -> float:
    """Whether a (batches, rows, ...) and b, of as many batches or others, have one distribution: small if they differ.

    Features of the rows (along random lines the value, its size, cosine, sine and place among three quantiles) are
    averaged over each batch, and the averages of both compared by Welch's test; the least p-value counts times their
    number. Rows of a batch may depend on each other, batches may not.
    """
    from scipy.stats import ttest_ind

    a, b = a.flatten(2).double(), b.flatten(2).double()
    lines = torch.randn(5, a.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = torch.cat((a.flatten(0, 1), b.flatten(0, 1))) @ lines.T
    mean, std, cuts = (
        pooled.mean(0),
        pooled.std(0),
        pooled.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 0),
    )

    def features(x: Tensor) -> Tensor:
        along = x @ lines.T
        z = (along - mean) / std
        each = [z, z.abs(), (2 * z).cos(), (2 * z).sin(), *((along < cut).double() for cut in cuts)]
        return torch.cat(each, -1).mean(1)

    one, other = features(a), features(b)
    with quiet():  # of features that do not vary
        found = torch.from_numpy(ttest_ind(one.numpy(), other.numpy(), equal_var=False).pvalue)
    same = (one.var(0) < 1e-20) & (other.var(0) < 1e-20) & ((one.mean(0) - other.mean(0)).abs() < 1e-9)
    found = torch.where(same, 1.0, found.nan_to_num(0.0))
    return min(1.0, found.numel() * float(found.min()))
