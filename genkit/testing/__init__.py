"""Laws that entries of a registry keep, as checks: `genkit check KIND NAME`, or from a test

    from genkit.testing import check_coupling

    def test_mine():
        check_coupling(Mine, strength=0.5)      # a class or a registered name, and its options

A check returns its results, and raises an AssertionError that says which laws are broken and what they mean. It raises
GenkitError where it cannot be run: the class does not build, or needs what the check does not have.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from genkit.errors import choose
from genkit.registry import Registry
from genkit.testing.laws import Laws, Report, Result

# kind -> the module of its laws, and their name there
KINDS = {
    "coupling": ("couplings", "LAWS"),
    "solver": ("solvers", "LAWS"),
    "grid": ("solvers", "GRID_LAWS"),
    "path": ("paths", "LAWS"),
    "schedule": ("paths", "SCHEDULE_LAWS"),
    "times": ("paths", "TIMES_LAWS"),
    "guidance": ("guidance", "LAWS"),
    "inverter": ("inversion", "LAWS"),
    "unmasker": ("unmasking", "LAWS"),
    "dataset": ("data", "LAWS"),
    "metric": ("metrics", "LAWS"),
    "objective": ("objectives", "LAWS"),
}

__all__ = [
    "Report",
    "Result",
    "check",
    "check_coupling",
    "check_dataset",
    "check_guidance",
    "check_inverter",
    "check_metric",
    "check_objective",
    "check_path",
    "check_solver",
    "check_unmasker",
    "examine",
]


def laws_of(kind: str) -> Laws[Any]:
    """Raises GenkitError for a kind without laws."""
    if kind not in KINDS:
        raise choose(kind, KINDS, "kind of entry with laws")
    module, name = KINDS[kind]
    return getattr(importlib.import_module(f"genkit.testing.{module}"), name)


def registry_of(kind: str) -> Registry[Any]:
    return laws_of(kind).registry


def examine(kind: str, target: type | str, /, **options: Any) -> Report:
    """All laws of a kind on a class, or on the name of a registered one, built with `options`.

    Raises GenkitError for a kind without laws, and for what cannot be built.
    """
    return laws_of(kind).examine(target, options)


def check(kind: str, target: type | str, /, **options: Any) -> list[Result]:
    """The results of `examine`. Raises AssertionError where a law is broken, and what `examine` raises.

    A coupling that needs a teacher gets one in closed form; an objective is built on the first of some small data sets
    that it takes. `check_coupling(...)` is `check("coupling", ...)`, and so are its sisters.
    """
    __tracebackhide__ = True  # pytest shows the caller's line and the message
    report = examine(kind, target, **options)
    if not report.holds:
        raise AssertionError(report.text(only_broken=True))
    return report.results


check_coupling = partial(check, "coupling")
check_solver = partial(check, "solver")
check_path = partial(check, "path")
check_objective = partial(check, "objective")
check_guidance = partial(check, "guidance")
check_inverter = partial(check, "inverter")
check_unmasker = partial(check, "unmasker")
check_dataset = partial(check, "dataset")
check_metric = partial(check, "metric")
