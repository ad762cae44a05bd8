"""The shared trunk: what sees what, spans, cache, segments, positions; a fresh one is the identity."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit.backbone import ModelOptions, Transformer, twice_differentiable
from genkit.backbone.transformer import rotary, rotate
from genkit.errors import GenkitError

WIDTH, LENGTH = 24, 6


def trunk(**options: Any) -> Transformer:
    """A trunk in float64 with all weights random, as training leaves it."""
    torch.manual_seed(0)
    model = Transformer(ModelOptions(**{"width": WIDTH, "depth": 4, "heads": 2, **options})).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(std=0.3 if p.ndim > 1 else 0.1)
    return model


def inputs(batch: int = 3, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator)
    return h, torch.randn(batch, WIDTH, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_a_fresh_trunk_is_the_identity(mlp: str) -> None:
    """adaLN-zero: every gate starts at 0, for any condition."""
    model = Transformer(ModelOptions(width=WIDTH, depth=3, heads=2, mlp=mlp)).double()  # type: ignore[arg-type]
    h, cond = inputs()
    assert torch.equal(model(h, cond), h)
    assert torch.equal(model(h, cond, causal=True), h)


@pytest.mark.parametrize("j", range(LENGTH))
def test_causal_tokens_see_no_later_ones(j: int) -> None:
    model, (h, cond) = trunk(), inputs()
    changed = h.clone()
    changed[:, j] += torch.randn(WIDTH).double()
    moved = (model(h, cond, causal=True) - model(changed, cond, causal=True)).abs().amax((0, 2))
    assert (moved[:j] == 0).all()
    assert (moved[j:] > 1e-6).all()


def test_bidirectional_tokens_see_all() -> None:
    model, (h, cond) = trunk(), inputs()
    for j in range(LENGTH):
        changed = h.clone()
        changed[:, j] += torch.randn(WIDTH).double()
        assert ((model(h, cond) - model(changed, cond)).abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("causal", [False, True])
def test_samples_do_not_see_each_other_and_the_condition_counts(causal: bool) -> None:
    model, (h, cond) = trunk(), inputs()
    whole = model(h, cond, causal=causal)
    for i in range(len(h)):
        assert torch.allclose(
            model(h[i : i + 1], cond[i : i + 1], causal=causal), whole[i : i + 1], atol=1e-12
        )
    assert not torch.allclose(model(h, cond + 0.1, causal=causal), whole, atol=1e-3)


@pytest.mark.parametrize("cuts", [[2], [1, 3], [1, 2, 3]])
def test_spans_compose_to_the_whole(cuts: list[int]) -> None:
    model, (h, cond) = trunk(), inputs()
    whole, ends = model(h, cond, causal=True), [0, *cuts, 4]
    for a, b in itertools.pairwise(ends):
        h = model(h, cond, causal=True, layers=slice(a, b))
    assert torch.equal(h, whole)


def test_an_empty_span_does_nothing() -> None:
    h, cond = inputs()
    assert torch.equal(trunk()(h, cond, layers=slice(2, 2)), h)


@pytest.mark.parametrize("layers", [slice(None), slice(1, 3)])
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [LENGTH], [2, 3, 1], [1, 5], [5, 1]])
def test_a_cache_gives_what_one_causal_pass_gives(chunks: list[int], layers: slice) -> None:
    model, (h, cond) = trunk(), inputs()
    cache = model.cache(len(h), LENGTH, layers)
    parts = [model(part, cond, layers=layers, cache=cache) for part in h.split(chunks, dim=1)]
    whole = model(h, cond, causal=True, layers=layers)
    assert cache.filled == LENGTH
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_cache_with_given_positions(axes: int) -> None:
    model, (h, cond) = trunk(), inputs()
    pos = torch.randint(0, 9, (LENGTH, axes), generator=torch.Generator().manual_seed(0)).flip(0)
    whole = model(h, cond, pos=pos, causal=True)
    cache = model.cache(len(h), LENGTH)
    parts = [model(h[:, i : i + 2], cond, pos=pos[i : i + 2], cache=cache) for i in range(0, LENGTH, 2)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10, rtol=0)
    assert not torch.allclose(model(h, cond, causal=True), whole, atol=1e-3)  # the positions count


def test_a_cache_is_not_larger_than_asked_for() -> None:
    model, (h, cond) = trunk(), inputs()
    cache = model.cache(len(h), 4)
    model(h[:, :3], cond, cache=cache)
    with pytest.raises(GenkitError, match="holds 4 tokens; 5 were given"):
        model(h[:, 3:5], cond, cache=cache)


def test_caches_share_nothing() -> None:
    model, (h, cond) = trunk(), inputs()
    first, second = (model.cache(len(h), LENGTH) for _ in range(2))
    model(h[:, :3], cond, cache=first)
    alone = model(h[:, 3:], cond, cache=second)
    assert torch.allclose(alone, model(h[:, 3:], cond, causal=True), atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_segments_are_as_separate_ones(causal: bool) -> None:
    """Positions restart in each segment, as they would alone."""
    model, (h, cond) = trunk(), inputs()
    lengths = [1, 3, 2]
    segments = torch.tensor([0, 1, 1, 1, 2, 2]).expand(len(h), -1)
    pos = torch.cat([torch.arange(n) for n in lengths])
    packed = model(h, cond, pos=pos, causal=causal, segments=segments)
    apart = [model(part, cond, causal=causal) for part in h.split(lengths, 1)]
    assert torch.allclose(packed, torch.cat(apart, 1), atol=1e-10, rtol=0)


def test_each_sample_has_its_own_segments() -> None:
    """Padding: a segment of its own, of any content."""
    model, (h, cond) = trunk(), inputs()
    segments = torch.tensor([[0] * 6, [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]])
    padded = model(h, cond, segments=segments)
    assert torch.allclose(padded[1, :4], model(h[1:2, :4], cond[1:2])[0], atol=1e-10)
    assert torch.allclose(padded[2, :2], model(h[2:3, :2], cond[2:3])[0], atol=1e-10)


def test_segments_and_a_filled_cache_are_refused() -> None:
    model, (h, cond) = trunk(), inputs()
    cache = model.cache(len(h), LENGTH)
    model(h[:, :2], cond, cache=cache)
    with pytest.raises(GenkitError, match="segments and a filled cache"):
        model(h[:, 2:3], cond, cache=cache, segments=torch.zeros(3, 1, dtype=torch.long))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_only_relative_positions_count(axes: int) -> None:
    model, (h, cond) = trunk(width=24, heads=2), inputs()
    pos = torch.randint(0, 5, (LENGTH, axes), generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([7, -3, 2])[:axes]
    here, there = model(h, cond, pos=pos), model(h, cond, pos=pos + shift)
    assert torch.allclose(here, there, atol=1e-9)
    for axis in range(axes):  # and every axis is looked at
        stretched = pos.clone()
        stretched[:, axis] *= 2
        assert not torch.allclose(here, model(h, cond, pos=stretched), atol=1e-4)


def test_positions_of_each_sample() -> None:
    model, (h, cond) = trunk(), inputs()
    pos = torch.randint(0, 5, (3, LENGTH, 2), generator=torch.Generator().manual_seed(0))
    together = model(h, cond, pos=pos)
    for i in range(3):
        assert torch.allclose(together[i], model(h[i : i + 1], cond[i : i + 1], pos=pos[i])[0], atol=1e-10)


def test_default_positions_count_from_0() -> None:
    model, (h, cond) = trunk(), inputs()
    assert torch.equal(model(h, cond), model(h, cond, pos=torch.arange(LENGTH)))


def test_rotation_is_one_and_turns_by_the_stated_angles() -> None:
    x = torch.randn(1, 1, 5, 8, dtype=torch.float64)
    turned = rotate(x, rotary(torch.arange(5), 8, 100.0, x.dtype))
    assert torch.allclose(turned.square().sum(-1), x.square().sum(-1))
    for p in range(5):
        for j in range(4):
            a = torch.complex(x[0, 0, p, j], x[0, 0, p, j + 4])
            b = torch.complex(turned[0, 0, p, j], turned[0, 0, p, j + 4])
            angle = torch.tensor(p * 100.0 ** (-j / 4), dtype=torch.float64)
            assert torch.allclose(b, a * torch.polar(torch.ones_like(angle), angle))


@pytest.mark.parametrize("part", ["q", "k"])
def test_queries_and_keys_are_normalized(part: str) -> None:
    """Their scale has no say; that of the values has."""
    h, cond = inputs()
    model = trunk()
    before = model(h, cond)
    rows = {"q": slice(0, WIDTH), "k": slice(WIDTH, 2 * WIDTH), "v": slice(2 * WIDTH, None)}

    def scaled(which: str) -> Tensor:
        model = trunk()
        with torch.no_grad():
            for layer in model.layers:
                layer.qkv.weight[rows[which]] *= 10
                layer.qkv.bias[rows[which]] *= 10
        return model(h, cond)

    assert torch.allclose(scaled(part), before, atol=1e-8)
    assert not torch.allclose(scaled("v"), before, atol=1e-2)


@pytest.mark.parametrize("width", [24, 96])
def test_swiglu_and_gelu_have_the_same_number_of_weights(width: int) -> None:
    sizes = {}
    for mlp in ("swiglu", "gelu"):
        layer = Transformer(ModelOptions(width=width, depth=1, heads=2, mlp=mlp)).layers[0].mlp  # type: ignore[arg-type]
        sizes[mlp] = layer.up.weight.numel() + layer.down.weight.numel()
    assert sizes["swiglu"] == pytest.approx(sizes["gelu"], rel=0.02)
    assert sizes["gelu"] == 8 * width * width


def test_the_mlp_by_hand() -> None:
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    gelu, swiglu = (trunk(mlp=mlp).layers[0].mlp for mlp in ("gelu", "swiglu"))
    hidden = torch.nn.functional.gelu(x @ gelu.up.weight.T + gelu.up.bias)
    assert torch.allclose(gelu(x), hidden @ gelu.down.weight.T + gelu.down.bias)
    gate, value = (x @ swiglu.up.weight.T + swiglu.up.bias).chunk(2, -1)
    hidden = gate * gate.sigmoid() * value
    assert torch.allclose(swiglu(x), hidden @ swiglu.down.weight.T + swiglu.down.bias)


@pytest.mark.parametrize("causal", [False, True])
def test_the_math_path_has_a_jvp_and_a_double_backward(causal: bool) -> None:
    model, (h, cond) = trunk(depth=2), inputs(batch=2, length=3)
    tangent = torch.randn_like(h)
    with twice_differentiable():
        _, forward = torch.func.jvp(lambda x: model(x, cond, causal=causal), (h,), (tangent,))
        x = h.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(x, cond, causal=causal).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * tangent).sum(), x)
    step = 1e-5
    f = lambda x: model(x, cond, causal=causal)  # noqa: E731
    assert torch.allclose(forward, (f(h + step * tangent) - f(h - step * tangent)) / (2 * step), atol=1e-6)

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x).square().sum(), x)[0]

    numeric = (gradient(h + step * tangent) - gradient(h - step * tangent)) / (2 * step)
    assert torch.allclose(second, numeric, atol=1e-4, rtol=1e-4)


def test_the_math_path_and_the_fused_path_agree() -> None:
    model, (h, cond) = trunk(), inputs()
    with twice_differentiable():
        math = model(h, cond, causal=True)
    assert torch.allclose(math, model(h, cond, causal=True), atol=1e-10)


def test_dropout_is_off_at_evaluation_and_random_in_training() -> None:
    model, (h, cond) = trunk(dropout=0.5), inputs()
    assert not torch.equal(model(h, cond), model(h, cond))
    model.eval()
    assert torch.equal(model(h, cond), model(h, cond))
    assert torch.equal(model(h, cond), trunk()(h, cond))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be positive, not 0"),
        ({"depth": -1}, "depth must be positive, not -1"),
        ({"heads": 0}, "heads must be positive"),
        ({"patch": 0}, "patch must be positive"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"width": 96, "heads": 5}, r"width 96 must be a multiple of 2 \* heads = 10"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"mlp": "relu"}, "mlp must be 'swiglu' or 'gelu', not 'relu'"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        ModelOptions(**options)
