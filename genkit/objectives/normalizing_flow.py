"""Autoregressive normalizing flow (TarFlow): exact likelihood from spans of the shared causal backbone.

    x ── tokens ── span 0 ── flip ── span 1 ── ... ── span K-1 ── z ~ N(0, I)

    span:  (a_i, mu_i) = network(z_1 .. z_{i-1}, y),   z'_i = (z_i - mu_i) exp(-a_i)
    log p(x) = log N(z; 0, I) - sum over spans and tokens of a

Every span is a slice of the same stack, run causally, with a small stem and head of its own; the token order
is reversed in every second span. Equal spans are TarFlow; shallow spans next to the data and one deep span
next to the noise, which alone is told y (`spans: [1, 1, 6]`, `told: last`), are STARFlow.

Zhai et al., Normalizing Flows are Capable Generative Models, https://arxiv.org/abs/2412.06329; Gu et al.,
STARFlow, https://arxiv.org/abs/2506.06276.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genkit.backbone import Condition, Head, ModelOptions, Stem, Tokens
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.guidance import Guidance, in_effect
from genkit.inversion import INVERTERS, Conditioner, Inverted, Inverter
from genkit.objectives.base import OBJECTIVES, Objective, finite
from genkit.types import Batch, DataSpec, Generator, LogProb, Sample, StandardNormal, null_like


class Decoded(NamedTuple):
    """x (B, ...) of a code z, log |det dz/dx| (B,), and how each span was inverted, from the noise to the data.

    tokens: tokens that went through the whole stack, of a sample; both branches of guidance count.
    """

    x: Tensor
    log_det: Tensor
    spans: list[Inverted]
    tokens: float


@OBJECTIVES.register("normalizing_flow")
class NormalizingFlow(Objective):
    """TarFlow and STARFlow: affine autoregressive spans of the backbone, trained by maximum likelihood.

    spans: their number (equal parts of the stack), or the layers of each, from the data to the noise.
    told: the spans that are given y, and so are guided by it: `all`, or the `last`, next to the noise.
    noise, sigma: `uniform` dequantization has bits/dim; `gaussian` with `sigma` is the papers' augmentation,
        without a likelihood of the data and with a denoising step after sampling.
    clip: log-scales are soft-clipped, a -> clip tanh(a / clip).
    """

    samplers = INVERTERS
    predicts = "affine"
    default_sampler = "sequential"
    source: StandardNormal

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        spans: int | list[int] = 4,
        told: Literal["all", "last"] = "all",
        conditional: bool = True,
        label_dropout: float = 0.1,
        noise: Literal["uniform", "gaussian", "none"] | None = None,
        sigma: float = 0.0,
        clip: float = 4.0,
    ) -> None:
        super().__init__(spec, model, conditional=conditional, label_dropout=label_dropout)
        if clip <= 0:
            raise GenkitError(f"normalizing_flow: clip must be positive, not {clip}")
        self.view = Continuous(spec, noise=noise, sigma=sigma)
        self.source = StandardNormal()
        self.told = told
        layers = span_layers(spans, model.depth)
        self.condition = Condition(
            model.width, classes=self.classes, values=self.condition_dims, spans=len(layers)
        )
        self.spans = nn.ModuleList(
            Span(self.tokens, model.width, part, flip=k % 2 == 1, clip=clip) for k, part in enumerate(layers)
        )

    @property
    def parts(self) -> list[Span]:
        return [span for span in self.spans if isinstance(span, Span)]

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        y = self.drop_label(batch.y, generator=generator)
        return {"loss": -self.log_density(batch.read, y).mean() / self.spec.dims}

    def log_density(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x | y) (B,) of encoded data x (B, ...)."""
        z, log_det = self.forward(x, y)
        return self.source.log_prob(z) + log_det

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encoded data x (B, ...) -> z (B, ...) and log |det dz/dx| (B,)."""
        z = self.tokens.split(x)
        log_det = z.new_zeros(len(z))
        for k, span in enumerate(self.parts):
            cond = self.condition(len(z), y=self.known(y, k), span=k)
            z = span.order(z)
            h = self.backbone(
                span.inputs(z), cond, pos=span.order(self.positions), causal=True, layers=span.layers
            )
            a, mu = span.affine(h, cond)
            z = span.order((z - mu) * torch.exp(-a))
            log_det = log_det - a.sum((1, 2))
        return self.tokens.join(z), log_det

    def known(self, y: Tensor | None, k: int) -> Tensor | None:
        """y where span k is told it."""
        return y if self.told == "all" or k == len(self.spans) - 1 else None

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The code z (B, ...) of encoded data: what a teacher gives a coupling."""
        return self.forward(x, y if self.conditional else None)[0]

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        y: Tensor | None = None,
        *,
        guidance: Guidance | None = None,
        inverter: Inverter | str = "sequential",
    ) -> Decoded:
        """The inverse of `forward`, to the tolerance of the inverter. With guidance it is the guided map that is
        inverted, and the log-determinant is of that."""
        inverter = INVERTERS.build(inverter)
        x, found, passes = self.tokens.split(z), [], 0.0
        for k, span in reversed(list(enumerate(self.parts))):
            known = self.known(y, k)
            guided = in_effect(guidance, known)
            found.append(inverter.invert(self.conditioner(k, len(z), known, guided), span.order(x)))
            x = span.order(found[-1].x)
            share = (span.layers.stop - span.layers.start) / self.backbone.depth
            passes += found[-1].tokens * share * (1 if guided is None else 2)
        log_det = -torch.stack([part.a.sum((1, 2)) for part in found]).sum(0)
        return Decoded(self.tokens.join(x), log_det, found, passes)

    def conditioner(
        self, k: int, batch: int, y: Tensor | None, guidance: Guidance | None = None
    ) -> Conditioner:
        """What an inverter asks span k, with its cache of keys and values. With guidance the conditional and the
        unconditional network run as one batch of twice the size; a weaker model has a cache of its own."""
        span, copies, guide = self.parts[k], 1, self.guide(guidance)
        done = torch.linspace(0, 1, self.tokens.length, dtype=span.start.dtype, device=self.device)[:, None]
        if guidance is not None and guide is not None:
            own, weaker = (model.conditioner(k, batch, y) for model in (self, guide))

            def combined(x: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
                parts = own(x, start, stop), weaker(x, start, stop)
                return guidance.combine_affine(*parts, done[start:stop])

            return combined
        if guidance is not None and y is not None:
            y, copies = torch.cat((y, null_like(y))), 2
        cond = self.condition(copies * batch, y=y, span=k)
        cache = self.backbone.cache(copies * batch, self.tokens.length, span.layers)
        pos = span.order(self.positions)

        def affine(x: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
            cache.filled = start
            h = span.inputs(x, start, stop).repeat(copies, 1, 1)
            h = self.backbone(h, cond, pos=pos[start:stop], layers=span.layers, cache=cache)
            a, mu = span.affine(h, cond)
            if guidance is None:
                return a, mu
            (a_c, a_u), (mu_c, mu_u) = a.chunk(2), mu.chunk(2)
            return guidance.combine_affine((a_c, mu_c), (a_u, mu_u), done[start:stop])

        return affine

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: Any = None,
        guidance: Guidance | None = None,
        return_log_prob: bool = False,
        generator: Generator = None,
    ) -> Sample:
        """Inverts noise, with the inverter `sampler`; after Gaussian augmentation one denoising step follows."""
        inverter = INVERTERS.build(self.default_sampler if sampler is None else sampler)
        y = self.labels(n, y, guidance, log_prob=return_log_prob)
        if return_log_prob and self.view.sigma:
            raise GenkitError("samples of a model of noised data are denoised: they have no log-probability")
        z = self.source.sample(torch.empty(n, *self.spec.shape, device=self.device), generator=generator)
        found = self.decode(z, y, guidance=guidance, inverter=inverter)
        x, log_prob = found.x, None
        nfe, tokens = sum(part.calls for part in found.spans), found.tokens
        if return_log_prob:
            value = self.source.log_prob(z) + found.log_det
            if not all(part.exact for part in found.spans):  # then z is not quite the code of x
                value = self.log_density(x, y)
                nfe, tokens = nfe + len(self.spans), tokens + self.tokens.length
            log_prob = LogProb(value, "exact")
        if self.view.sigma:
            x = self.denoise(x, y)
            nfe, tokens = nfe + len(self.spans), tokens + self.tokens.length
        return Sample(self.view.decode(finite(x)), nfe, tokens, log_prob)

    def denoise(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Tweedie's estimate of the clean data: x + sigma^2 grad_x log p(x | y)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_density(x, y).sum(), x)
        return x.detach() + self.view.sigma**2 * score

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, generator: Generator = None) -> LogProb:
        encoded, y = self.encoded_for_likelihood(x, y, generator)
        assert self.view.likelihood is not None
        return LogProb(self.log_density(encoded, y) + self.view.log_volume, self.view.likelihood)


class Span(nn.Module):
    """The stem and head of one span of layers. Slot i reads token i-1 (slot 0: a learned start) and gives
    the log-scale and shift of token i, so that the first token too is transformed."""

    def __init__(self, tokens: Tokens, width: int, layers: slice, *, flip: bool, clip: float) -> None:
        super().__init__()
        self.layers, self.flip, self.clip = layers, flip, clip
        self.stem = Stem(tokens, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.head = Head(width, 2 * tokens.dim)

    def order(self, tokens: Tensor) -> Tensor:
        """Tokens (..., L, D) in the order of this span; its own inverse."""
        return tokens.flip(-2) if self.flip else tokens

    def inputs(self, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Tokens (B, L, D) in the span's order -> inputs of the backbone (B, n, W) of slots start .. stop - 1."""
        stop = tokens.shape[1] if stop is None else stop
        h = self.stem(tokens[:, max(start - 1, 0) : stop - 1], slice(max(start, 1), stop))
        if start > 0:
            return h
        return torch.cat(((self.start + self.stem.position[0]).expand(len(tokens), 1, -1), h), dim=1)

    def affine(self, h: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale a and shift mu, each (B, L, D)."""
        a, mu = self.head(h, cond).chunk(2, dim=-1)
        return self.clip * torch.tanh(a / self.clip), mu


def span_layers(spans: int | Sequence[int], depth: int) -> list[slice]:
    """The slice of the stack of each span. Raises GenkitError when they do not make up the stack."""
    if isinstance(spans, int):
        if spans < 1 or depth % spans:
            raise GenkitError(
                f"normalizing_flow: {spans} equal spans do not divide a stack of {depth} layers"
            )
        spans = [depth // spans] * spans
    if sum(spans) != depth or min(spans) < 1:
        raise GenkitError(
            f"normalizing_flow: spans {list(spans)} must be positive and sum to the depth, {depth}"
        )
    ends = list(itertools.accumulate(spans))
    return [slice(end - n, end) for n, end in zip(spans, ends, strict=True)]
