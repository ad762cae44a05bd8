"""Every schedule: it rises, its derivative is one, and it says which ends it reaches."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.errors import GenkitError
from genkit.paths import SCHEDULES
from genkit.paths.base import Schedule

NAMES = SCHEDULES.names()
# Where it starts and ends, for those that do not go from 0 to 1; the schedule's docstring says so.
ENDS = {"log_linear": (1e-3, 1.0), "geometric": (math.exp(-20), math.exp(-1e-4))}
OPTIONS = [*((name, {}) for name in NAMES), ("polynomial", {"exponent": 0.5}), ("log_linear", {"floor": 0.2})]
EACH = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
INSIDE = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_ends(name: str) -> None:
    assert SCHEDULES.build(name).ends == pytest.approx(ENDS.get(name, (0.0, 1.0)), abs=1e-11)
    assert (SCHEDULES.build(name).ends == (0.0, 1.0)) == (name not in ENDS)  # exactly, for it is compared


@EACH
def test_the_derivative_is_that_of_alpha(name: str, options: dict[str, float]) -> None:
    schedule = SCHEDULES.build(name, **options)
    _, tangent = torch.func.jvp(schedule.alpha, (INSIDE,), (torch.ones_like(INSIDE),))
    assert torch.allclose(schedule.d_alpha(INSIDE), tangent, atol=1e-12, rtol=1e-9)


def test_cosine_keeps_few_symbols_first() -> None:
    cosine: Schedule = SCHEDULES.build("cosine")
    assert (cosine.alpha(INSIDE) < INSIDE).all()
    assert float(cosine.alpha(torch.tensor(2 / 3))) == pytest.approx(0.5)


def test_special_cases_agree() -> None:
    linear = SCHEDULES.build("linear").alpha(INSIDE)
    assert torch.allclose(SCHEDULES.build("polynomial", exponent=1.0).alpha(INSIDE), linear)
    assert torch.allclose(SCHEDULES.build("log_linear", floor=0.0).alpha(INSIDE), linear)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("polynomial", {"exponent": 0.0}, "exponent must be positive, not 0"),
        ("polynomial", {"exponent": math.nan}, "exponent must be positive, not nan"),
        ("log_linear", {"floor": 1.0}, r"floor must be in \[0, 1\), not 1"),
        ("log_linear", {"floor": -0.1}, "floor must be"),
        ("geometric", {"smallest": 0.0}, "0 < smallest < largest is needed, not 0"),
        ("geometric", {"smallest": 2.0, "largest": 1.0}, "not 2.0 and 1.0"),
    ],
)
def test_bad_options(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        SCHEDULES.build(name, **options)
