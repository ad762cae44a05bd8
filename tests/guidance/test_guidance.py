"""Guidance beyond its laws (see tests/testing): the formula, and both branches in one batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genkit.guidance import GUIDANCES, guided

T = torch.tensor(0.25)


def predict(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
    """Depends on all that it is given, so that a swap shows."""
    y = torch.full((len(x),), -1) if y is None else y
    return t + x * (2.0 + y[:, None]) + y[:, None]


def test_the_unconditional_branch_of_inactive_guidance_is_not_paid_for() -> None:
    rows, x, y = [], torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])

    def counting(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        rows.append(len(x))
        return predict(t, x, y)

    for scale in (1.0, 2.0):
        guided(counting, y, GUIDANCES.build("classifier_free", scale=scale))(T, x)
    assert rows == [5, 10]


@pytest.mark.parametrize("name", GUIDANCES.names())
def test_no_guidance_without_classes_or_guidance(name: str) -> None:
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(guided(predict, None, GUIDANCES.build(name, scale=3.0))(T, x), predict(T, x, None))
    assert torch.equal(guided(predict, y, None)(T, x), predict(T, x, y))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0])
def test_classifier_free_formula(scale: float) -> None:
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    guidance = GUIDANCES.build("classifier_free", scale=scale)
    v_c, v_u = predict(T, x, y), predict(T, x, torch.full_like(y, -1))
    assert guidance.active
    assert torch.allclose(guided(predict, y, guidance)(T, x), v_c + (scale - 1) * (v_c - v_u), atol=1e-6)
    if scale == 0:
        assert torch.allclose(guided(predict, y, guidance)(T, x), v_u, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_annealed_guidance_grows_with_time(t: float) -> None:
    v_c, v_u = torch.randn(2, 4, 3)
    found = GUIDANCES.build("classifier_free", scale=3.0, annealed=True).combine(v_c, v_u, torch.tensor(t))
    assert torch.allclose(found, v_c + 2 * t * (v_c - v_u))
