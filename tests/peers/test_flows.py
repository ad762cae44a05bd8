"""Affine autoregressive flows against zuko's (https://zuko.readthedocs.io): its networks in ours, ours in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import AffineTransform
from zuko.distributions import DiagNormal, NormalizingFlow
from zuko.transforms import (
    AutoregressiveTransform,
    ComposedTransform,
    DependentTransform,
    PermutationTransform,
)

from genkit.backbone import ModelOptions
from genkit.objectives import OBJECTIVES
from genkit.objectives.normalizing_flow import Span
from genkit.types import DataSpec

DIMS = 5


def flow(spans: int, dims: int = DIMS) -> Any:
    """A flow of vectors whose weights are drawn, so that no transform is the identity."""
    torch.manual_seed(3)
    spec = DataSpec("rows", (dims,))
    model = OBJECTIVES.build(
        {"name": "normalizing_flow", "spans": spans}, spec, ModelOptions(width=16, depth=spans, heads=2)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval().requires_grad_(False)


class Theirs(Span):
    """A span whose scale and shift are those of a transform of zuko: y = x exp(s) + b is (x - mu) exp(-a)."""

    def __init__(self, transform: Any, layers: slice, *, flip: bool) -> None:
        nn.Module.__init__(self)
        self.transform, self.layers, self.flip = transform, layers, flip

    def inputs(self, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return tokens

    def affine(self, h: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        x = self.order(h)[..., 0]  # zuko's masks know the order
        inner = self.transform().meta(x).base
        a = -inner.log_scale
        return tuple(self.order(value[..., None]) for value in (a, -inner.shift * torch.exp(a)))


class Through(nn.Module):
    """In the place of the backbone: what comes in goes out."""

    def forward(self, h: Tensor, *_: Any, **__: Any) -> Tensor:
        return h


@pytest.mark.parametrize("transforms", [1, 3])
def test_a_masked_autoregressive_flow_of_zuko_has_the_same_density_here(transforms: int) -> None:
    torch.manual_seed(0)
    theirs = zuko.flows.MAF(DIMS, transforms=transforms, hidden_features=(32, 32)).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = flow(transforms)
    ours.backbone = Through()
    ours.spans = nn.ModuleList(
        Theirs(transform, slice(k, k + 1), flip=k % 2 == 1)
        for k, transform in enumerate(theirs.transform.transforms)
    )
    x = 2 * torch.randn(64, DIMS, dtype=torch.float64)
    expected = theirs().log_prob(x)
    assert expected.std() > 1
    torch.testing.assert_close(ours.log_density(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.encode(x), theirs().transform(x), rtol=1e-10, atol=1e-10)


def in_zuko(ours: Any) -> NormalizingFlow:
    """Our flow as one of zuko's, whose transforms ask our networks."""
    backwards = torch.arange(DIMS).flip(0)

    def meta(k: int, x: Tensor) -> Any:
        span, cond = ours.parts[k], ours.condition(len(x), span=k)
        h = ours.backbone(
            span.inputs(x[..., None]), cond, pos=span.order(ours.positions), causal=True, layers=span.layers
        )
        a, mu = (value[..., 0] for value in span.affine(h, cond))
        return DependentTransform(AffineTransform(-mu * torch.exp(-a), torch.exp(-a)), 1)

    transforms: list[Any] = []
    for k, span in enumerate(ours.parts):
        step = AutoregressiveTransform(lambda x, k=k: meta(k, x), passes=DIMS)
        turn = [PermutationTransform(backwards)] if span.flip else []
        transforms += [*turn, step, *turn]
    zeros = torch.zeros(DIMS, dtype=torch.float64)
    return NormalizingFlow(ComposedTransform(*transforms), DiagNormal(zeros, zeros + 1))


def test_our_flow_has_the_same_density_and_samples_in_zuko() -> None:
    ours = flow(3)
    theirs = in_zuko(ours)
    x = torch.randn(32, DIMS, dtype=torch.float64)
    torch.testing.assert_close(ours.log_density(x), theirs.log_prob(x), rtol=1e-10, atol=1e-10)
    z = ours.encode(x)
    torch.testing.assert_close(ours.decode(z).x, theirs.transform.inv(z), rtol=1e-8, atol=1e-8)
