"""The laws of guidance."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from genkit.guidance import GUIDANCES, Guidance
from genkit.guidance.base import Affine
from genkit.testing.laws import Finding, Laws, at_most, both, difference, equal

TIMES = [torch.tensor(t, dtype=torch.float64) for t in (0.0, 0.25, 1.0)]


@dataclass
class Case:
    """A guidance class with its options, and predictions (8, 3) with and without the class."""

    cls: type[Guidance]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.guidance = self.build()
        self.conditional, self.unconditional = torch.randn(2, 8, 3, dtype=torch.float64)
        a_c, a_u, mu_c, mu_u = torch.randn(4, 2, 5, 3, dtype=torch.float64)
        self.affine: tuple[Affine, Affine] = (a_c, mu_c), (a_u, mu_u)  # (2, 5, 3): of five tokens

    def build(self, scale: float | None = None) -> Guidance:
        """With another scale, if one is given and it has one."""
        takes = "scale" in inspect.signature(self.cls).parameters
        return self.cls(**self.options | ({"scale": scale} if takes and scale is not None else {}))

    @property
    def strong(self) -> Guidance:
        return self.build(2.5)


DONE = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
LAWS = Laws(GUIDANCES, Case)


@LAWS.law
def scale_1_is_off_bit_for_bit(case: Case) -> Finding | None:
    """With scale 1, `active` is False, so that the unconditional branch is not paid for, and `combine` gives the
    conditional prediction bit for bit: v_c + (scale - 1) (v_c - v_u)."""
    off = case.build(1.0)
    if "scale" not in inspect.signature(case.cls).parameters:
        return None
    worst = max(
        difference(off.combine(case.conditional, case.unconditional, t), case.conditional) for t in TIMES
    )
    return both(equal(off.active, False, "active:"), at_most(worst, 0, "it changes the prediction by"))


@LAWS.law
def it_guides(case: Case) -> Finding | None:
    """Active guidance depends on both predictions, at some time at least."""
    guidance = case.strong
    if not guidance.active:
        return None
    v_c, v_u = case.conditional, case.unconditional
    moved = max(difference(guidance.combine(v_c, v_u, t), guidance.combine(v_c, v_u + 1, t)) for t in TIMES)
    return Finding(moved > 0, f"another unconditional prediction moves it by {moved:.3g}")


@LAWS.law
def equal_predictions_are_not_changed(case: Case) -> Finding:
    """Where the class makes no difference, guidance makes none."""
    v = case.conditional
    worst = max(difference(case.strong.combine(v, v.clone(), t), v) for t in TIMES)
    return at_most(worst, 1e-6, "equal predictions changed by")


@LAWS.law
def shape_dtype_and_inputs_are_left_alone(case: Case) -> Finding:
    """The result has shape and dtype of the predictions, which are not written to: also pictures in float32."""
    findings = []
    for shape, dtype in (((8, 3), torch.float64), ((4, 1, 6, 6), torch.float32)):
        v_c, v_u = torch.randn(2, *shape, dtype=dtype)
        kept = v_c.clone(), v_u.clone()
        found = case.strong.combine(v_c, v_u, torch.tensor(0.5, dtype=dtype))
        same = torch.equal(v_c, kept[0]) and torch.equal(v_u, kept[1])
        right = same and found.shape == v_c.shape and found.dtype == dtype
        findings.append(
            Finding(right, f"{tuple(found.shape)} {found.dtype}" + ("" if same else ", inputs written"))
        )
    return both(*findings)


@LAWS.law
def rows_are_guided_one_by_one(case: Case) -> Finding:
    """A row's result does not depend on the other rows of the batch, nor on calls before."""
    v_c, v_u, guidance = case.conditional, case.unconditional, case.strong
    whole = guidance.combine(v_c, v_u, TIMES[1])
    parts = torch.cat([guidance.combine(v_c[i : i + 1], v_u[i : i + 1], TIMES[1]) for i in range(8)])
    return at_most(difference(whole, parts), 1e-12, "rows differ from those of a batch by")


@LAWS.law
def where_it_does_not_act_the_conditional_stands(case: Case) -> Finding | None:
    """At a time of which `acts` says no, `combine` gives the conditional prediction bit for bit: there the other may
    not have been asked for."""
    guidance, v_c, v_u = case.strong, case.conditional, case.unconditional
    off = [t for t in TIMES if not guidance.acts(t)]
    if not off:
        return None
    return at_most(max(difference(guidance.combine(v_c, v_u, t), v_c) for t in off), 0, "it is changed by")


@LAWS.law
def scale_1_is_off_for_autoregressive_flows_too(case: Case) -> Finding | None:
    """With scale 1, and where both networks agree at any scale, `combine_affine` gives the conditional log-scales and
    shifts (bit for bit, and but for rounding)."""
    if "affine" not in case.cls.of or "scale" not in inspect.signature(case.cls).parameters:
        return None
    one, other = case.affine
    off = zip(case.build(1.0).combine_affine(one, other, DONE), one, strict=True)
    agreed = zip(case.strong.combine_affine(one, (one[0].clone(), one[1].clone()), DONE), one, strict=True)
    return both(
        at_most(max(difference(found, c) for found, c in off), 0, "scale 1 changes them by"),
        at_most(max(difference(found, c) for found, c in agreed), 1e-12, "equal ones are changed by"),
    )


@LAWS.law
def tokens_are_guided_one_by_one(case: Case) -> Finding | None:
    """A token's log-scale and shift do not depend on the other tokens of the call: inverters differ in which they ask
    for together."""
    if "affine" not in case.cls.of:
        return None
    (a_c, mu_c), (a_u, mu_u) = case.affine
    whole = case.strong.combine_affine((a_c, mu_c), (a_u, mu_u), DONE)
    each = [
        case.strong.combine_affine((a_c[:, i], mu_c[:, i]), (a_u[:, i], mu_u[:, i]), DONE[i])
        for i in range(len(DONE))
    ]
    parts = [torch.stack(part, 1) for part in zip(*each, strict=True)]
    worst = max(difference(one, other) for one, other in zip(whole, parts, strict=True))
    return at_most(worst, 1e-12, "tokens differ from those of a call by")
