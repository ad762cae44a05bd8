"""The shared backbone: (B, L, W) -> (B, L, W), the same weights and keys under every objective.

    h ─┬─ norm ─ scale,shift ─ attention ─ gate ─┬─ norm ─ scale,shift ─ MLP ─ gate ─┬─> next layer
       └─────────────────────────────────────────┴───────────────────────────────────┘
    cond ── SiLU ── Linear ──> scale, shift, gate of both branches (adaLN-zero: all are 0 at the start)

Attention normalizes queries and keys, rotates them by position, and is causal or bidirectional by the
call. `layers=slice(a, b)` runs a span of the stack. Stems, learned positions, heads and the final norm
are not part of it (see embed.py).

Peebles & Xie, Scalable Diffusion Models with Transformers, https://arxiv.org/abs/2212.09748 (adaLN-zero);
Su et al., RoFormer, https://arxiv.org/abs/2104.09864 (rotary positions); Henry et al., Query-Key
Normalization, https://arxiv.org/abs/2010.04245; Shazeer, GLU Variants, https://arxiv.org/abs/2002.05202.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from genkit.errors import GenkitError
from genkit.memory import check_memory

LAYER = 2**14  # bytes that the modules of a layer take at least, without their weights


@dataclass(frozen=True)
class ModelOptions:
    """Size and kind of the backbone, and how data are cut into its tokens.

    width, depth, heads: of the transformer; width must be a multiple of heads.
    patch: side of the square image patches that are one token (vectors: a coordinate is a token).
    mlp: SwiGLU or GELU, with a hidden layer of mlp_ratio * width (SwiGLU: two thirds of it, for the
        same number of parameters).
    rope_theta: base of the rotary frequencies.
    """

    width: int = 96
    depth: int = 4
    heads: int = 3
    patch: int = 2
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    mlp_ratio: float = 4.0
    rope_theta: float = 100.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch", "mlp_ratio", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise GenkitError(f"model: {name} must be positive, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise GenkitError(
                f"model: width {self.width} must be a multiple of 2 * heads = {2 * self.heads} "
                "(rotary positions turn pairs of a head's channels)"
            )
        if self.mlp not in ("swiglu", "gelu"):
            raise GenkitError(f"model: mlp must be 'swiglu' or 'gelu', not {self.mlp!r}")
        if not 0 <= self.dropout < 1:
            raise GenkitError(f"model: dropout must be in [0, 1), not {self.dropout}")


class Transformer(nn.Module):
    """The shared trunk. See the module's docstring for the flow of the data.

    recompute: whether layers keep no activations for the backward pass, which then runs them again (activation
    checkpointing, Chen et al., https://arxiv.org/abs/1604.06174): memory of one layer, for a third more work.
    """

    recompute = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options
        cpu = torch.device("cpu")  # where modules are, wherever their weights
        check_memory(f"model: {options.depth} layers", LAYER * options.depth, cpu, "take a smaller depth")
        self.layers = nn.ModuleList(Layer(options) for _ in range(options.depth))
        self.apply(_xavier)
        for name, weight in self.named_parameters():
            if name.endswith("modulation.weight"):
                nn.init.zeros_(weight)

    @property
    def depth(self) -> int:
        return len(self.layers)

    def forward(
        self,
        h: Tensor,
        cond: Tensor,
        *,
        pos: Tensor | None = None,
        causal: bool = False,
        segments: Tensor | None = None,
        layers: slice = slice(None),
        cache: Cache | None = None,
    ) -> Tensor:
        """h (B, L, W), cond (B, W) -> (B, L, W).

        pos: (L,) or (L, A) or (B, L, A), coordinates for the rotary embedding; default 0..L-1 (behind the
            tokens in `cache`). With A axes each gets an equal share of the rotated channels.
        segments: (B, L) integers; tokens attend within their own segment only.
        layers: which part of the stack runs.
        cache: keys and values of earlier tokens; `h` holds the tokens behind them. Implies causal.
        """
        start = cache.filled if cache else 0
        if pos is None:
            pos = torch.arange(start, start + h.shape[1], device=h.device)
        rotation = rotary(pos, self.options.width // self.options.heads, self.options.rope_theta, h.dtype)
        mask, is_causal = self._mask(h, causal or cache is not None, segments, start)
        cond = F.silu(cond)
        recompute = self.recompute and cache is None and torch.is_grad_enabled()
        for i, layer in enumerate(self.layers[layers]):
            given = (h, cond, rotation, mask, is_causal, cache, i)
            h = recomputed(layer, *given) if recompute else layer(*given)
        if cache is not None:
            cache.filled += h.shape[1]
        return h

    def cache(self, batch: int, length: int, layers: slice = slice(None)) -> Cache:
        """An empty cache for that many samples and tokens, for `layers` of the stack."""
        heads = self.options.heads
        like = next(self.parameters())
        n = len(range(*layers.indices(self.depth)))
        return Cache(n, batch, heads, length, self.options.width // heads, like=like)

    @staticmethod
    def _mask(h: Tensor, causal: bool, segments: Tensor | None, start: int) -> tuple[Tensor | None, bool]:
        """A mask only where `is_causal` cannot say it: (mask, is_causal)."""
        n = h.shape[1]
        if segments is not None:
            if start:
                raise GenkitError(
                    "segments and a filled cache do not go together: the cache keeps no segments"
                )
            mask = segments[:, None, :, None] == segments[:, None, None, :]
            if causal:
                mask = mask & torch.ones(n, n, dtype=torch.bool, device=h.device).tril()
            return mask, False
        if causal and start and n > 1:
            return torch.ones(n, start + n, dtype=torch.bool, device=h.device).tril(start), False
        return None, causal and n > 1


class Layer(nn.Module):
    """Attention and MLP, each between an adaLN scale-and-shift and a gate."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        width, self.heads = options.width, options.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // self.heads)
        self.k_norm = nn.RMSNorm(width // self.heads)
        self.out = nn.Linear(width, width)
        self.mlp = MLP(options)
        self.dropout = nn.Dropout(options.dropout)

    def forward(
        self,
        h: Tensor,
        cond: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        is_causal: bool,
        cache: Cache | None,
        index: int,
    ) -> Tensor:
        modulation = self.modulation(cond)[:, None].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation

        q, k, v = self.qkv(modulate(h, shift_a, scale_a)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q = rotate(normalize(q, self.q_norm).transpose(1, 2), rotation)
        k = rotate(normalize(k, self.k_norm).transpose(1, 2), rotation)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(index, k, v)
        a = F.scaled_dot_product_attention(
            q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=is_causal
        )
        h = h + gate_a * self.dropout(self.out(a.transpose(1, 2).flatten(2)))
        return h + gate_m * self.dropout(self.mlp(modulate(h, shift_m, scale_m)))


class MLP(nn.Module):
    """SwiGLU: W2 (silu(W1 h) * V h); GELU: W2 gelu(W1 h)."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.gated = options.mlp == "swiglu"
        hidden = int(options.mlp_ratio * options.width * (2 / 3 if self.gated else 1))
        self.up = nn.Linear(options.width, hidden * (2 if self.gated else 1))
        self.down = nn.Linear(hidden, options.width)

    def forward(self, h: Tensor) -> Tensor:
        h = self.up(h)
        if self.gated:
            gate, h = h.chunk(2, dim=-1)
            return self.down(F.silu(gate) * h)
        return self.down(F.gelu(h))


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(h) * (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


def normalize(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMS norm with the weight in the type of x, which keeps the kernel fused under autocast."""
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def rotary(pos: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (..., L, head_dim / 2) of the angle of each channel pair at each position.

    Axis a of A owns n = head_dim / 2 // A pairs of frequency theta^(-j/n), j < n; spare pairs do not turn.
    """
    if pos.ndim == 1:
        pos = pos[:, None]
    n = head_dim // 2 // pos.shape[-1]
    dtype = torch.promote_types(dtype, torch.float32)
    frequency = theta ** (-torch.arange(n, device=pos.device, dtype=dtype) / max(n, 1))
    angle = (pos.to(dtype)[..., None] * frequency).flatten(-2)
    angle = F.pad(angle, (0, head_dim // 2 - angle.shape[-1]))
    if angle.ndim == 3:
        angle = angle[:, None]  # a batch of positions: one axis for the heads
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the channel pairs (i, i + d/2) of x (B, H, L, d) by their angles."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class Cache:
    """Keys and values of the tokens seen so far, preallocated for `length` tokens: (layers, B, H, length, d)."""

    def __init__(self, layers: int, batch: int, heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_empty(layers, batch, heads, length, head_dim)
        self.values = torch.empty_like(self.keys)
        self.filled = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes (B, H, n, d) behind the filled part and returns all keys and values up to there."""
        end = self.filled + k.shape[2]
        if end > self.keys.shape[3]:
            raise GenkitError(f"the cache holds {self.keys.shape[3]} tokens; {end} were given")
        self.keys[layer, :, :, self.filled : end] = k
        self.values[layer, :, :, self.filled : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def twice_differentiable() -> AbstractContextManager[None]:
    """Attention that has a double backward and a JVP (fused kernels have neither); slower."""
    return sdpa_kernel(SDPBackend.MATH)


def recomputed(layer: nn.Module, *given: Any) -> Tensor:
    """layer(*given), run again for the backward pass, under the attention that it has now."""
    if torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled():
        return checkpoint(layer, *given, use_reentrant=False)
    return checkpoint(layer, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), Twice()))


class Twice(AbstractContextManager[None]):
    """`twice_differentiable()`, entered as often as there are backward passes."""

    def __enter__(self) -> None:
        self.within = twice_differentiable()
        self.within.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.within.__exit__(*error)
