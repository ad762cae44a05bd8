"""A codec of sound: finite scalar quantization between the two halves of the shared backbone.

    x ── spectrogram ── stem ── first half ── (B, L, d) ── FSQ ── codes (B, L)
    codes (B, L) ── values (B, L, d) ── stem ── second half ── spectrogram ── Griffin-Lim ── x

It turns a sound into L symbols, for discrete objectives to model, and symbols into a sound. It is trained on
log-magnitudes and has no density and no samples of its own.

Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, https://arxiv.org/abs/2309.15505; Griffin & Lim,
Signal Estimation from Modified Short-Time Fourier Transform, https://doi.org/10.1109/TASSP.1984.1164317, made
faster by Perraudin et al., https://doi.org/10.1109/WASPAA.2013.6701851.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit.backbone import Condition, Head, ModelOptions, Stem, Tokens
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.objectives.base import OBJECTIVES, Objective
from genkit.randomness import keyed_generator
from genkit.types import Batch, DataSpec, Generator

BLOCK = 64  # sounds that are decoded at once: phases are found faster while all fits the cache


@OBJECTIVES.register("autoencoder")
class Autoencoder(Objective):
    """A codec that turns sound into symbols and back: finite scalar quantization in the middle of the backbone.

    loss = mean |s - s^| + mean (s - s^)^2 over the compressed log-magnitudes s (see `Spectrogram`).

    frames: tokens, and so symbols, of a sound; its length must be a multiple of them.
    levels: values of each dimension of a code; their product is the size of the codebook.
    iterations: of Griffin-Lim, which finds the phases.

    encode(x): sounds (B, T) -> codes (B, L). decode(codes): the sounds (B, T) in [-1, 1].
    Logs the perplexity of the codes of a batch: how many of them are in use.
    Raises GenkitError for data that are no real-valued sound, and for fewer than two layers.
    """

    generates = False

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        frames: int = 64,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        iterations: int = 32,
    ) -> None:
        if spec.rate is None or spec.levels is not None or len(spec.shape) != 1:
            raise GenkitError(
                f"autoencoder: it is a codec of real-valued sound (such as spoken_digits), not of '{spec.name}'"
            )
        if model.depth < 2:
            raise GenkitError("autoencoder: each half needs a layer: the depth must be at least 2")
        super().__init__(spec, model, conditional=False, label_dropout=0.0)
        self.view = Continuous(spec, noise="none")
        self.tokens = self.spectrogram = Spectrogram(spec.dims, frames, iterations)
        self.positions = self.tokens.positions
        self.quantizer = Quantizer(tuple(levels))
        dims, half = len(levels), model.depth // 2
        self.halves = slice(0, half), slice(half, model.depth)
        self.condition = Condition(model.width, spans=2)
        self.reader = Stem(self.tokens, model.width)
        self.to_code = Head(model.width, dims)
        self.from_code = nn.Linear(dims, model.width)
        self.position = nn.Parameter(0.02 * torch.randn(frames, model.width))
        self.writer = Head(model.width, self.tokens.dim)

    @property
    def codebook(self) -> int:
        """Number of codes."""
        return self.quantizer.size

    @property
    def likelihood(self) -> None:
        return None

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        seen = self.tokens.split(batch.read)
        values = self.quantizer(self.latent(seen))
        error = self.spectrum(values) - seen
        codes = self.quantizer.codes(values.detach())
        share = codes.flatten().bincount(minlength=self.codebook) / codes.numel()
        return {
            "loss": error.abs().mean() + error.square().mean(),
            "perplexity": torch.exp(-torch.xlogy(share, share).sum()),
        }

    def latent(self, seen: Tensor) -> Tensor:
        """Log-magnitudes (B, L, bins) -> what is quantized (B, L, d)."""
        return self._half(0, self.reader(seen), self.to_code)

    def spectrum(self, values: Tensor) -> Tensor:
        """Values of codes (B, L, d) -> log-magnitudes (B, L, bins)."""
        return self._half(1, self.from_code(values) + self.position, self.writer)

    def _half(self, half: int, h: Tensor, head: Head) -> Tensor:
        cond = self.condition(len(h), span=half)
        return head(self.backbone(h, cond, pos=self.positions, layers=self.halves[half]), cond)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Sounds (B, T) -> codes (B, L), int64 in 0..codebook-1. Raises GenkitError for another length."""
        if tuple(x.shape[1:]) != self.spec.shape:
            raise GenkitError(f"sounds of shape {self.spec.shape} expected, not {tuple(x.shape[1:])}")
        seen = self.tokens.split(self.view.encode(x.to(self.device)))
        return self.quantizer.codes(self.quantizer(self.latent(seen)))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, L) -> sounds (B, T) in [-1, 1]. Raises GenkitError for another shape or unknown codes."""
        if codes.ndim != 2 or codes.shape[1] != self.tokens.length or codes.is_floating_point():
            wanted = f"whole numbers (B, {self.tokens.length})"
            raise GenkitError(f"codes are {wanted}, not {codes.dtype} of shape {tuple(codes.shape)}")
        if bool(((codes < 0) | (codes >= self.codebook)).any()):
            raise GenkitError(
                f"codes must be from 0 to {self.codebook - 1}; found {int(codes.min())} to {int(codes.max())}"
            )
        parts = (self.spectrum(self.quantizer.values(part)) for part in codes.to(self.device).split(BLOCK))
        return torch.cat([self.tokens.join(part).clamp(-1, 1) for part in parts])

    def sample(self, n: int, y: Tensor | None = None, **options: Any) -> NoReturn:
        """Raises GenkitError: there is nothing to sample."""
        raise GenkitError(
            "an autoencoder has no samples of its own: it encodes sounds and decodes codes; "
            "train a discrete objective on its codes, and decode what that samples"
        )

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, generator: Generator = None) -> NoReturn:
        """Raises GenkitError: there is no density."""
        raise GenkitError("an autoencoder has no likelihood of the data: it encodes sounds and decodes codes")


class Quantizer(nn.Module):
    """Finite scalar quantization: dimension i of z (..., d) is rounded to one of V_i values.

    bounded: z' = h tanh(z + atanh(o / h)) - o, with h = (V - 1) (1 + e) / 2, e = 1e-3, o = 1/2 for even V, else 0
    rounded: z'' = round(z'), one of -(V // 2), ..., (V - 1) // 2, with the gradient of z' (straight-through)
    values:  z'' / (V // 2)
    code:    sum_i (z''_i + V_i // 2) prod_{j < i} V_j

    Raises GenkitError unless there are dimensions, each of at least two levels.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise GenkitError(
                f"autoencoder: levels must be at least 2 in each dimension, such as [8, 5, 5, 5], not {list(levels)}"
            )
        self.size = math.prod(levels)
        bases = [math.prod(levels[:i]) for i in range(len(levels))]
        self.levels: Tensor
        self.bases: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("bases", torch.tensor(bases), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """z (..., d) -> values (..., d) in [-1, 1], with a straight-through gradient."""
        bounded = self.bound(z)
        return (bounded + (bounded.round() - bounded).detach()) / (self.levels // 2)

    def bound(self, z: Tensor) -> Tensor:
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (1 - self.levels % 2) / 2
        return half * torch.tanh(z + torch.atanh(offset / half)) - offset

    def codes(self, values: Tensor) -> Tensor:
        """Values (..., d) -> codes (...), int64."""
        half = self.levels // 2
        return (((values * half).round().long() + half) * self.bases).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """The inverse of `codes`."""
        half = self.levels // 2
        digits = codes[..., None] // self.bases % self.levels
        return (digits - half).to(torch.get_default_dtype()) / half


class Spectrogram(Tokens):
    """A sound (T,) as L frames of T / L samples, each seen as the magnitudes m of a window four frames wide.

    split: s = ln(1 + m / 0.01) / 4 - 1, of the Hann window about the start of each frame.
    join: magnitudes back, the one behind the last frame 0, and phases by fast Griffin-Lim: in turn the sound
    whose spectrogram is nearest, and the phases of its spectrogram, with momentum 0.99, from phases that are
    random but always the same.

    Raises GenkitError for a length that is not a multiple of the frames, or frames too short for a spectrum.
    """

    def __init__(self, length: int, frames: int, iterations: int) -> None:
        if frames < 1 or length % frames or length // frames < 4:
            raise GenkitError(
                f"autoencoder: {frames} frames do not divide a sound of {length} samples into 4 or more each"
            )
        if iterations < 1:
            raise GenkitError(f"autoencoder: iterations must be at least 1, not {iterations}")
        self.samples, self.length, self.iterations = length, frames, iterations
        self.hop = length // frames
        self.dim = 2 * self.hop + 1
        self.positions = torch.arange(frames)[:, None]

    def split(self, x: Tensor) -> Tensor:
        magnitude = self._transform(x)[..., :-1].abs()
        return torch.log1p(magnitude.mT / 0.01) / 4 - 1

    def join(self, tokens: Tensor) -> Tensor:
        magnitude = F.pad(0.01 * torch.expm1(4 * (tokens.mT + 1)).clamp(min=0), (0, 1))
        angle = torch.rand(magnitude.shape[1:], generator=keyed_generator(0, "griffin_lim"), device="cpu")
        phase = torch.polar(torch.ones_like(angle), 2 * math.pi * angle).to(magnitude.device)
        previous = torch.zeros_like(magnitude)
        for _ in range(self.iterations):
            found = self._transform(self._inverse(magnitude * phase))
            moved = found + 0.99 * (found - previous)
            phase, previous = moved / moved.abs().clamp(min=1e-8), found
        return self._inverse(magnitude * phase)

    def _transform(self, x: Tensor) -> Tensor:
        """(B, T) -> complex spectrogram (B, 2 hop + 1, L + 1)."""
        window = torch.hann_window(4 * self.hop, device=x.device, dtype=x.dtype)
        return torch.stft(x, 4 * self.hop, self.hop, window=window, pad_mode="constant", return_complex=True)

    def _inverse(self, spectrum: Tensor) -> Tensor:
        window = torch.hann_window(4 * self.hop, device=spectrum.device, dtype=spectrum.real.dtype)
        return torch.istft(spectrum, 4 * self.hop, self.hop, window=window, length=self.samples)
