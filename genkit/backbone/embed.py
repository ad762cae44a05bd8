"""What stands around the trunk: tokens of the data, stems in front, heads behind, conditioning beside.

x (B, ...) ── Tokens.split ── (B, L, D) ── Stem ── (B, L, W) ── Transformer ── Head ── (B, L, D) ── Tokens.join
points (B, Q, D) ── PointStem ── (B, Q, W) ── Reader of what the Transformer gives ── Head ── (B, Q, D)
t (B,), y (B,) or (B, K), span ── Condition ── cond (B, W)
"""

from __future__ import annotations

import abc
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genkit.backbone.transformer import MLP, ModelOptions, modulate, normalize, rotary, rotate
from genkit.errors import GenkitError
from genkit.types import DataSpec


class Tokens(abc.ABC):
    """A sample as a sequence of `length` tokens of `dim` values; `positions` (length, axes) says where each is."""

    length: int
    dim: int
    positions: Tensor

    @abc.abstractmethod
    def split(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, length, dim)."""

    @abc.abstractmethod
    def join(self, tokens: Tensor) -> Tensor:
        """The inverse of `split`."""


class Patches(Tokens):
    """Square patches of an image (C, H, W), row by row; a token holds its patch's p * p * C values."""

    def __init__(self, shape: tuple[int, ...], patch: int) -> None:
        channels, height, width = shape
        if height % patch or width % patch:
            raise GenkitError(f"model: patch {patch} does not divide the image size {height}x{width}")
        self.patch, self.rows, self.columns = patch, height // patch, width // patch
        self.length, self.dim = self.rows * self.columns, channels * patch * patch
        self.positions = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns))

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch)

    def join(self, tokens: Tensor) -> Tensor:
        return rearrange(
            tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=self.rows, p=self.patch, q=self.patch
        )


class Coordinates(Tokens):
    """A vector (D,), a coordinate a token."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        (self.length,), self.dim = shape, 1
        self.positions = torch.arange(self.length)[:, None]

    def split(self, x: Tensor) -> Tensor:
        return x[..., None]

    def join(self, tokens: Tensor) -> Tensor:
        return tokens[..., 0]


class Grid(Tokens):
    """Each place of an image (C, H, W) or a vector (D,) a token, of C values or of one.

    positions: where it is in [-1, 1]^axes, the centre of a pixel: so grids of other sizes cover the same field.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, axes = shape, shape[1:] if len(shape) > 1 else shape
        self.length, self.dim = math.prod(axes), math.prod(shape) // math.prod(axes)
        centres = [(2 * torch.arange(n) + 1) / n - 1 for n in axes]
        self.positions = torch.cartesian_prod(*centres).reshape(self.length, len(axes))

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.dim, self.length).mT

    def join(self, tokens: Tensor) -> Tensor:
        return tokens.mT.reshape(len(tokens), *self.shape)


class Cloud(Tokens):
    """Points (length, dim) as they are, which have no order: all positions are 0."""

    def __init__(self, length: int, dim: int) -> None:
        self.shape, self.length, self.dim = (length, dim), length, dim
        self.positions = torch.zeros(length, 1)

    def split(self, x: Tensor) -> Tensor:
        return x

    def join(self, tokens: Tensor) -> Tensor:
        return tokens


def tokens_of(spec: DataSpec, patch: int) -> Tokens:
    """The tokens of a data set: patches of images, coordinates of vectors."""
    if spec.image:
        return Patches(spec.shape, patch)
    if len(spec.shape) == 1:
        return Coordinates(spec.shape)
    raise GenkitError(
        f"data '{spec.name}' of shape {spec.shape}: images (C, H, W) and vectors (D,) are known here; clouds of points "
        "(P, D) are for the objective 'ambient'"
    )


class Stem(nn.Module):
    """Tokens of values to the width of the trunk, with learned positions: (B, L, D) -> (B, L, W)."""

    def __init__(self, tokens: Tokens, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(tokens.dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens.length, width))

    def forward(self, tokens: Tensor, positions: slice | Tensor = slice(None)) -> Tensor:
        """`positions`: which of the learned positions the tokens have."""
        return self.proj(tokens) + self.position[positions]


class PointStem(nn.Module):
    """Values and where they are to the width of the trunk: (B, Q, D), (Q, A) or (B, Q, A) -> (B, Q, W).

    The place is given, not learned, as cos and sin of pi 2^(j-1) c, j < octaves, of each of its coordinates c: so it
    may lie between those that were trained on.
    """

    def __init__(self, dim: int, axes: int, octaves: int, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(dim, width)
        self.place = nn.Linear(2 * axes * octaves, width)
        self.register_buffer("frequencies", math.pi * 2.0 ** (torch.arange(octaves) - 1), persistent=False)
        self.frequencies: Tensor

    def forward(self, values: Tensor, where: Tensor) -> Tensor:
        angle = (where[..., None] * self.frequencies).flatten(-2)
        return self.value(values) + self.place(torch.cat((angle.cos(), angle.sin()), dim=-1))


class Reader(nn.Module):
    """Points read tokens: cross-attention and an MLP, modulated and gated by the condition as in a layer of the trunk.

    A point sees the tokens and not the other points, so what it gives does not depend on which others there are, and
    the cost is linear in their number.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        width, self.heads, self.theta = options.width, options.heads, options.rope_theta
        self.modulation = nn.Linear(width, 6 * width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = nn.RMSNorm(width // self.heads)
        self.k_norm = nn.RMSNorm(width // self.heads)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(options)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, points: Tensor, tokens: Tensor, cond: Tensor, *, at: Tensor, pos: Tensor) -> Tensor:
        """points (B, Q, W), tokens (B, L, W), cond (B, W) -> (B, Q, W).

        at: (Q, A) or (B, Q, A), where the points are among the positions `pos` (L, A) of the tokens.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(cond))[:, None].chunk(
            6, -1
        )
        q = self.q(modulate(points, shift_a, scale_a)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(F.layer_norm(tokens, tokens.shape[-1:])).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q, k = (
            rotate(normalize(x, norm), rotary(where, x.shape[-1], self.theta, x.dtype))
            for x, norm, where in ((q, self.q_norm, at), (k.transpose(1, 2), self.k_norm, pos))
        )
        read = F.scaled_dot_product_attention(q, k.to(q.dtype), v.transpose(1, 2).to(q.dtype))
        h = points + gate_a * self.out(read.transpose(1, 2).flatten(2))
        return h + gate_m * self.mlp(modulate(h, shift_m, scale_m))


class SymbolStem(nn.Module):
    """Symbols to the width of the trunk, with learned positions: (B, L, S) -> (B, L, W).

    A token of S symbols (a patch has several) is the sum of their embeddings, one table for each slot.
    """

    def __init__(self, vocabulary: int, tokens: Tokens, width: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(vocabulary * tokens.dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens.length, width))
        self.register_buffer("slots", vocabulary * torch.arange(tokens.dim), persistent=False)
        self.slots: Tensor
        nn.init.normal_(self.symbol.weight, std=0.02)

    def forward(self, symbols: Tensor, positions: slice | Tensor = slice(None)) -> Tensor:
        return self.symbol(symbols + self.slots).sum(2) + self.position[positions]


class Head(nn.Module):
    """Final norm, scaled and shifted by the condition, and a projection that starts at zero: (B, L, W) -> (B, L, D).

    Computed in the precision of its weights, also under autocast. bias: of the projection.
    """

    def __init__(self, width: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, dim, bias=bias)
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        dtype = self.proj.weight.dtype
        with torch.autocast(h.device.type, enabled=False):
            shift, scale = self.modulation(F.silu(cond.to(dtype)))[:, None].chunk(2, dim=-1)
            return self.proj(modulate(h.to(dtype), shift, scale))


class Condition(nn.Module):
    """The conditioning vector (B, W): a learned null plus what is given of time, span, and class or real values.

    A class of -1, and a row of values with a NaN, is none (label dropout, the unconditional branch of guidance): a
    learned null in its place.
    classes: their number. values: how many real ones are given.
    """

    def __init__(
        self,
        width: int,
        *,
        classes: int | None = None,
        values: int | None = None,
        time: bool = False,
        spans: int = 0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.null = nn.Parameter(0.02 * torch.randn(width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.time = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if time else None
        )
        self.span = nn.Embedding(spans, width) if spans else None
        self.values = None
        if values:
            self.values = nn.Sequential(nn.Linear(values, width), nn.SiLU(), nn.Linear(width, width))
            self.no_values = nn.Parameter(0.02 * torch.randn(width))
        for table in (self.label, self.span):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(
        self, batch: int, *, t: Tensor | None = None, y: Tensor | None = None, span: int | None = None
    ) -> Tensor:
        """t: scalar or (B,) in [0, 1]; y: (B,) classes or -1, or (B, K) values or NaN; span: index of the span of
        layers."""
        cond = self.null.expand(batch, -1)
        if self.label is not None and self.classes is not None:
            y = torch.full((batch,), -1, device=cond.device) if y is None else y
            cond = cond + self.label(y % (self.classes + 1))  # -1 -> the last row
        if self.values is not None:
            if y is None:
                cond = cond + self.no_values
            else:
                none = y.isnan().any(1, keepdim=True)
                given = self.values(torch.where(none, 0.0, y).to(cond.dtype))
                cond = cond + torch.where(none, self.no_values, given)
        if self.time is not None:
            if t is None:
                raise GenkitError("this model is conditioned on time: give t")
            features = sinusoid(t.expand(batch), cond.shape[-1])
            cond = cond + self.time(features.to(cond.dtype))
        if self.span is not None and span is not None:
            cond = cond + self.span.weight[span]
        return cond


def sinusoid(t: Tensor, width: int) -> Tensor:
    """cos and sin of 1000 t at frequencies 10000^(-j/n), j < n = width / 2: (B,) -> (B, width).

    Vaswani et al., Attention Is All You Need, https://arxiv.org/abs/1706.03762.
    """
    n = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(n, device=t.device, dtype=t.dtype) / n)
    angle = 1000 * t[:, None] * frequency
    return F.pad(torch.cat((angle.cos(), angle.sin()), dim=-1), (0, width - 2 * n))
