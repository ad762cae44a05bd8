"""What stands around the trunk: tokens and back, stems, heads, conditions."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.backbone import Condition, Head, Stem, SymbolStem, tokens_of
from genkit.backbone.embed import sinusoid
from genkit.errors import GenkitError
from genkit.types import DataSpec


@pytest.mark.parametrize(
    ("shape", "patch", "length", "dim"),
    [
        ((1, 8, 8), 2, 16, 4),
        ((3, 4, 8), 2, 8, 12),
        ((2, 6, 6), 3, 4, 18),
        ((1, 4, 4), 1, 16, 1),
        ((5,), 2, 5, 1),
    ],
)
def test_tokens_and_back(shape: tuple[int, ...], patch: int, length: int, dim: int) -> None:
    tokens, x = tokens_of(DataSpec("some", shape), patch), torch.randn(3, *shape)
    split = tokens.split(x)
    assert split.shape == (3, length, dim) == (3, tokens.length, tokens.dim)
    assert torch.equal(tokens.join(split), x)
    assert len(tokens.positions) == length
    assert len(tokens.positions.unique(dim=0)) == length


def test_a_token_is_a_patch_and_its_position_the_patchs_place() -> None:
    tokens, x = tokens_of(DataSpec("some", (3, 4, 6)), 2), torch.randn(1, 3, 4, 6)
    split = tokens.split(x)
    assert tokens.positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    for token, (row, column) in enumerate(tokens.positions.tolist()):
        patch = x[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert sorted(split[0, token].tolist()) == sorted(patch.flatten().tolist())


def test_vectors_are_a_coordinate_a_token() -> None:
    x = torch.randn(2, 5)
    assert torch.equal(tokens_of(DataSpec("some", (5,)), 2).split(x)[..., 0], x)


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((1, 8, 8), 3, "patch 3 does not divide the image size 8x8"),
        ((4, 4), 2, "images .* and vectors .* known"),
    ],
)
def test_data_that_cannot_be_cut(shape: tuple[int, ...], patch: int, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        tokens_of(DataSpec("some", shape), patch)


def test_a_stem_takes_tokens_at_chosen_positions() -> None:
    tokens = tokens_of(DataSpec("some", (5,)), 1)
    stem, x = Stem(tokens, 8), torch.randn(2, 5, 1)
    whole = stem(x)
    assert whole.shape == (2, 5, 8)
    for i in range(5):
        assert torch.allclose(stem(x[:, i : i + 1], slice(i, i + 1)), whole[:, i : i + 1], atol=1e-6)
    assert not torch.allclose(stem(x[:, :1], slice(1, 2)), whole[:, :1], atol=1e-4)


def test_a_stem_of_symbols() -> None:
    tokens = tokens_of(DataSpec("some", (4,)), 1)
    stem, symbols = SymbolStem(7, tokens, 8), torch.tensor([[3, 3, 0, 6]])[..., None]
    out = stem(symbols)
    assert out.shape == (1, 4, 8)
    assert torch.allclose(out[0, 0] - stem.position[0], out[0, 1] - stem.position[1], atol=1e-6)
    assert not torch.allclose(out[0, 0] - stem.position[0], out[0, 2] - stem.position[2], atol=1e-3)
    assert torch.allclose(stem(symbols[:, 2:], slice(2, 4)), out[:, 2:])


def test_a_stem_of_patches_of_symbols_tells_their_places_apart() -> None:
    """A token is the sum of its symbols, each embedded by its place in the patch: a swap is another token."""
    tokens = tokens_of(DataSpec("some", (1, 4, 4)), 2)
    stem = SymbolStem(5, tokens, 8)
    symbols = torch.randint(5, (3, 4, 4))
    out = stem(symbols)
    assert out.shape == (3, 4, 8)
    assert stem.symbol.weight.shape == (4 * 5, 8)
    by_hand = sum(stem.symbol.weight[5 * slot + symbols[..., slot]] for slot in range(4)) + stem.position
    assert torch.allclose(out, by_hand, atol=1e-6)
    pair = stem(torch.tensor([[[0, 1, 0, 0]], [[1, 0, 0, 0]]]), slice(0, 1))
    assert not torch.allclose(pair[0], pair[1], atol=1e-3)


def test_a_head_starts_at_zero_and_follows_the_condition_later() -> None:
    head, h, cond = Head(8, 3), torch.randn(2, 5, 8), torch.randn(2, 8)
    assert torch.equal(head(h, cond), torch.zeros(2, 5, 3))
    for p in head.parameters():
        torch.nn.init.normal_(p)
    assert not torch.allclose(head(h, cond), head(h, cond + 1), atol=1e-3)
    assert torch.allclose(head(3 * h + 1, cond), head(h, cond), atol=1e-4)  # the final norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_heads_output_is_float32_or_better(dtype: torch.dtype) -> None:
    head, h, cond = Head(8, 3).to(dtype), torch.randn(2, 5, 8, dtype=dtype), torch.randn(2, 8, dtype=dtype)
    assert head(h, cond).dtype == dtype
    if dtype == torch.float32:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert head(h, cond).dtype == torch.float32


def test_a_condition_tells_time_class_and_span_apart() -> None:
    torch.manual_seed(0)
    condition = Condition(8, classes=3, time=True, spans=2)
    y, t = torch.tensor([0, 1, 2, -1]), torch.tensor(0.5)
    out = condition(4, t=t, y=y, span=0)
    assert out.shape == (4, 8)
    assert torch.cdist(out, out).fill_diagonal_(1).min() > 1e-3
    assert torch.allclose(out[3:], condition(1, t=t, y=None, span=0))  # no class is the null class
    for other in (condition(4, t=t, y=y, span=1), condition(4, t=t + 0.1, y=y, span=0)):
        assert not torch.allclose(out, other, atol=1e-3)
    rows = condition(4, t=torch.tensor([0.5, 0.1, 0.9, 0.5]), y=y, span=0)
    assert torch.allclose(rows[0], out[0])
    assert torch.allclose(rows[3], out[3])
    assert not torch.allclose(rows[1], out[1], atol=1e-3)


def test_a_condition_of_real_values_has_a_null_of_its_own() -> None:
    torch.manual_seed(0)
    condition = Condition(8, values=2).double()
    y = torch.randn(4, 2).double()
    y[1], y[2, 0] = torch.nan, torch.nan
    out = condition(4, y=y)
    assert torch.allclose(out[:1], condition(1, y=y[:1]))
    assert torch.equal(out[1:3], condition(2, y=None))  # a value that is missing leaves nothing
    assert torch.cdist(out[[0, 1, 3]], out[[0, 1, 3]]).fill_diagonal_(1).min() > 1e-3
    out.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in condition.parameters()
    )
    assert condition(4, y=y.float()).dtype == torch.float64


def test_a_condition_without_anything_is_the_learned_null() -> None:
    condition = Condition(8)
    assert torch.equal(condition(3), condition.null.expand(3, -1))


def test_a_model_of_time_needs_the_time() -> None:
    with pytest.raises(GenkitError, match="give t"):
        Condition(8, time=True)(2)


def test_the_sinusoid_by_hand() -> None:
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = sinusoid(t, 7)
    for j in range(3):
        angle = 1000 * t * math.exp(-math.log(10_000) * j / 3)
        assert torch.allclose(found[:, j], angle.cos())
        assert torch.allclose(found[:, 3 + j], angle.sin())
    assert (found[:, 6] == 0).all()
