"""Autoregressive models: each symbol from those before it, with an exact likelihood.

    start  x_1  x_2 .. x_N-1      read by slots 1 .. N: SymbolStem ── causal Transformer ── Head
     |      |    |      |
     x_1   x_2  x_3 ..  x_N       predicted

    log p(x) = sum_i log p(x_i | x_1 .. x_i-1),    loss = -log p(x), the mean over modelled symbols

The backbone is that of all objectives, run causally; what stands for "no symbol yet" is the stem's spare symbol, the
mask of diffusion models. Given symbols (the layout, and prompts) are conditioned on when their turn comes, and not
counted. In packed rows a slot belongs to the document of the symbol that it reads: the slot that would predict a
boundary still sees the document that ends there, and no slot of the next document sees it.

Bengio et al., A Neural Probabilistic Language Model, https://www.jmlr.org/papers/v3/bengio03a.html; Radford et al.,
Language Models are Unsupervised Multitask Learners (GPT-2), https://openai.com/research/better-language-models; of
images: Chen et al., Generative Pretraining from Pixels, https://proceedings.mlr.press/v119/chen20s.html.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.backbone import Cache, ModelOptions
from genkit.errors import GenkitError
from genkit.guidance import Guidance, Guided, in_effect
from genkit.guidance.base import Predictor
from genkit.objectives.base import OBJECTIVES
from genkit.objectives.discrete import Discrete
from genkit.types import Batch, DataSpec, Generator, LogProb, Sample
from genkit.unmasking import UNMASKERS, Unmasker
from genkit.unmasking.base import draw, uniform
from genkit.unmasking.ordered import LeftToRight


@OBJECTIVES.register("autoregressive")
class Autoregressive(Discrete):
    """A causal model of symbols, in the order of the data (images: row by row, with model.patch=1).

    It is sampled from left to right, and completes a prefix. As a teacher it gives `log_likelihood` and `log_odds`.
    """

    default_sampler = "left_to_right"
    by_prompt = False
    kind = "exact"

    def __init__(
        self, spec: DataSpec, model: ModelOptions, *, conditional: bool = True, label_dropout: float = 0.1
    ) -> None:
        super().__init__(spec, model, conditional=conditional, label_dropout=label_dropout, time=False)
        if self.tokens.dim > 1:
            channels = spec.shape[0] if spec.image else 1
            mend = "set model.patch=1" if channels == 1 else f"these images have {channels} channels"
            raise GenkitError(
                f"autoregressive: a token must be one symbol, not a patch of {self.tokens.dim}: {mend}"
            )
        self.start = self.mask  # what slot 0 reads

    # --- the network --------------------------------------------------------------------------------------

    def logits(self, x: Tensor, alpha: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Symbols (B, n), n <= N -> logits (B, n, V) of each from those before it; the last is not read."""
        return self.outputs(self.stem(self.read(x)[..., None], slice(x.shape[1])), x, y)

    def read(self, x: Tensor) -> Tensor:
        """What the slots of symbols (B, n) read: (B, n)."""
        return F.pad(x[:, :-1], (1, 0), value=self.start)

    def outputs(self, inputs: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """Inputs of the backbone (B, n, W), of slots that predict the symbols x (B, n) -> logits (B, n, V)."""
        cond, segments = self.condition(len(x), y=y), self.segments(x)
        if segments is not None:
            segments = F.pad(segments[:, :-1], (1, 0))
        h = self.backbone(inputs, cond, pos=self.positions[: x.shape[1]], causal=True, segments=segments)
        return self.possible(self.head(h, cond), x)

    def next(self, x: Tensor, y: Tensor | None, cache: Cache) -> Tensor:
        """Logits (B, V) of the last symbol of x (B, n), which is not read; `cache` has read the first of them."""
        place = slice(cache.filled, x.shape[1])
        cond = self.condition(len(x), y=y)
        inputs = self.stem(self.read(x)[:, place, None], place)
        h = self.backbone(inputs, cond, pos=self.positions[place], cache=cache)
        return self.possible(self.head(h[:, -1:], cond), x)[:, 0]

    # --- likelihood ---------------------------------------------------------------------------------------

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        x, y = batch.read, self.drop_label(batch.y, generator=generator)
        return {"loss": -self.log_likelihood(x, y).sum() / (~self.given(x)).sum().clamp(min=1)}

    def log_likelihood(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x | y) (B,) of symbols x (B, N): nats summed over the modelled ones, given the others."""
        return self.own(self.logits(x, y=y).log_softmax(-1), x).sum(1)

    def own(self, log_p: Tensor, x: Tensor) -> Tensor:
        """Of log-probabilities (B, N, V) those of the symbols x (B, N) themselves; 0 where they are given."""
        return log_p.gather(-1, x[..., None])[..., 0].masked_fill(self.given(x), 0.0)

    def log_prob(self, x: Tensor, y: Tensor | None = None, *, generator: Generator = None) -> LogProb:
        encoded, y = self.encoded_for_likelihood(x, y, generator)
        symbols = self.symbols(encoded)
        return LogProb(self.log_likelihood(symbols, y), "exact", count=(~self.given(symbols)).sum(1))

    def log_odds(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x with symbol i replaced by v) - log p(x) to first order, for all i and v at once: (B, N, V).

        With symbols as one-hot vectors o_i, log p is o_i . log p(. | x_<i), which is exact for any o_i, plus what the
        later symbols' probabilities gain from reading o_i, which is expanded: (e_v - e_x_i) . grad in the embeddings
        e. One pass forward and one back. Grathwohl et al., Oops I Took A Gradient, https://arxiv.org/abs/2102.04509.
        """
        inputs = self.stem(self.read(x)[..., None]).detach()
        with torch.enable_grad():
            log_p = self.outputs(inputs.requires_grad_(), x, y).log_softmax(-1)
            (slope,) = torch.autograd.grad(self.own(log_p, x).sum(), inputs)
        slope = F.pad(slope[:, 1:], (0, 0, 0, 1))  # symbol i is read by the slot behind it, the last by none
        gain = log_p.detach() + slope @ self.stem.symbol.weight[: self.vocabulary].detach().T
        return gain - gain.gather(-1, x[..., None])

    # --- sampling -----------------------------------------------------------------------------------------

    def takes(self, sampler: Unmasker) -> bool:
        return isinstance(sampler, LeftToRight)

    def check_sampler(self, sampler: Unmasker) -> None:
        if not self.takes(sampler):
            raise GenkitError(
                f"an autoregressive model is sampled from left to right, not by '{UNMASKERS.name_of(sampler)}': "
                "use the unmasker left_to_right"
            )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: Unmasker | str | None = None,
        guidance: Guidance | None = None,
        return_log_prob: bool = False,
        generator: Generator = None,
        given: Tensor | None = None,
    ) -> Sample:
        """Symbol by symbol with cached keys and values; what is given before the first free symbol is read at once.

        sampler: `left_to_right`, with its temperature and top_p. given: rows (n, *shape), a prefix, with -1 behind it
        (but for symbols of the layout). Packed documents in `given` are kept apart, which takes a run of the network
        over all symbols so far for each new one.
        """
        unmasker = UNMASKERS.build(self.default_sampler if sampler is None else sampler)
        self.check_sampler(unmasker)
        if return_log_prob and (unmasker.temperature, unmasker.top_p) != (1, 1):
            raise GenkitError("a log-probability is that of plain draws: set temperature=1 and top_p=1")
        y = self.labels(n, y, guidance, log_prob=return_log_prob)
        template = self.template(n, given)
        free = self.completed(template)
        x = template.masked_fill(free, self.mask)

        branches, guide = 1 if in_effect(guidance, y) is None else 2, self.guide(guidance)
        packed = self.spec.boundary is not None and bool((x == self.spec.boundary).any())
        cache = self.backbone.cache((branches if guide is None else 1) * n, self.size)

        def network(model: Autoregressive, cache: Cache) -> Predictor:
            return lambda t, x, y: model.logits(x, y=y)[:, -1] if packed else model.next(x, y, cache)

        weaker = None if guide is None else network(guide, guide.backbone.cache(n, self.size))
        predict = Guided(network(self, cache), y, guidance, weaker, cached=True)
        done = torch.linspace(0, 1, self.size, device=self.device)
        log_prob = torch.zeros(n, dtype=torch.float64, device=self.device)
        columns = free.any(0).nonzero()[:, 0].tolist()
        for i in range(self.size):
            # also where no row of this process has a symbol to draw: others may
            chance = uniform(x[:, i], generator=generator)
            if i not in columns:
                continue
            logits = predict(done[i], x[:, : i + 1])
            drawn = draw(logits, chance, unmasker.temperature, unmasker.top_p)
            x[:, i] = torch.where(free[:, i], drawn, x[:, i])
            log_p = logits.double().log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
            log_prob += torch.where(free[:, i], log_p, 0.0)
        tokens = branches * (sum(i + 1 for i in columns) if packed else cache.filled)
        return Sample(
            self.view.decode(self.values(x)),
            len(columns),
            float(tokens),
            LogProb(log_prob, "exact", count=free.sum(1)) if return_log_prob else None,
        )

    def completed(self, template: Tensor) -> Tensor:
        """Which symbols of a template (n, N) are free. Raises GenkitError where some are given behind them."""
        free = template < 0
        if bool(((free.cumsum(1) > 0) & ~free & ~self.layout(template)).any()):
            raise GenkitError(
                "an autoregressive model completes a prefix: symbols are given behind free ones, and infilling "
                "needs masked_diffusion"
            )
        return free
