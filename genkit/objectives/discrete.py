"""What discrete objectives share: symbols in and logits out of the backbone, what is given, sampling, the bound.

    x (B, ...) ── tokens ── symbols (B, N) ── SymbolStem ── Transformer ── Head ── logits (B, N, V)

N values of a sample in the order of its tokens; a token of S symbols (an image patch) gives S x V logits. Symbols
0..V-1 are the data's; V is the mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.backbone import Condition, Head, ModelOptions, SymbolStem
from genkit.data.views import Symbols
from genkit.errors import GenkitError
from genkit.guidance import Guidance, Guided
from genkit.guidance.base import Predictor
from genkit.objectives.base import Objective
from genkit.paths import SCHEDULES, TIMES, Schedule, Times
from genkit.randomness import sample_like
from genkit.types import Batch, DataSpec, Generator, Kind, LogProb, Sample
from genkit.unmasking import UNMASKERS, Noise, Unmasker
from genkit.unmasking.base import Alpha

NEVER = -1e9  # a logit: finite, so that guidance may subtract two of them
TINY = 1e-6  # shares of symbols below this are never divided by


class Discrete(Objective):
    """A model of symbols. `logits` is the network; a subclass adds `loss` and `log_prob`.

    networks: backbones that a call of `logits` goes through.
    """

    samplers = UNMASKERS
    predicts = "logits"
    by_prompt = True
    default_sampler = "ancestral"
    kind: Kind = "estimate"
    networks = 1

    def __init__(
        self, spec: DataSpec, model: ModelOptions, *, conditional: bool, label_dropout: float, time: bool
    ) -> None:
        super().__init__(spec, model, conditional=conditional, label_dropout=label_dropout)
        self.view = Symbols(spec, self.kind)
        assert spec.levels is not None
        self.vocabulary = self.mask = spec.levels
        self.size = self.tokens.length * self.tokens.dim
        if (spec.boundary is not None or spec.answer is not None) and self.tokens.dim > 1:
            raise GenkitError(f"'{spec.name}' has boundaries: a token must be one symbol")
        self.stem = SymbolStem(self.vocabulary + 1, self.tokens, model.width)
        self.condition = Condition(model.width, classes=self.classes, values=self.condition_dims, time=time)
        self.head = Head(model.width, self.tokens.dim * self.vocabulary)
        modelled = torch.ones(self.vocabulary, dtype=torch.bool)
        modelled[list(spec.fixed)] = False
        self.modelled: Tensor
        self.register_buffer("modelled", modelled, persistent=False)
        self.alphabet: Tensor  # the symbols that are modelled, without a search on the device at each step
        alphabet = [symbol for symbol in range(self.vocabulary) if symbol not in set(spec.fixed)]
        self.register_buffer("alphabet", torch.tensor(alphabet), persistent=False)
        kinds = modelled.repeat(1 + len(spec.modalities), 1)  # the symbols of none, and of each modality
        for kind, modality in zip(kinds[1:], spec.modalities, strict=True):
            kind[: modality.first] = kind[modality.stop :] = False
        self.kinds: Tensor
        self.register_buffer("kinds", kinds, persistent=False)

    # --- symbols and what is given ------------------------------------------------------------------------

    def symbols(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, N)."""
        return self.tokens.split(x).flatten(1)

    def values(self, symbols: Tensor) -> Tensor:
        """(B, N) -> (B, *shape), the inverse of `symbols`."""
        return self.tokens.join(symbols.unflatten(1, (self.tokens.length, self.tokens.dim)))

    @torch.no_grad()
    def prepare(self, batch: Batch, *, generator: Generator = None) -> Batch:
        batch.encoded = self.symbols(self.view.encode(batch.x, generator=generator))
        return batch

    def layout(self, x: Tensor) -> Tensor:
        """Which of the symbols (B, N), masks among them, are fixed ones: boundaries, tasks, padding."""
        return ~torch.cat((self.modelled, self.modelled.new_ones(1)))[x]

    def given(self, x: Tensor) -> Tensor:
        """Which of the symbols (B, N) are not modelled: the layout, and a prompt up to its answer symbol."""
        return self.layout(x) if self.spec.answer is None else self.layout(x) | self.prompt(x)

    def prompt(self, x: Tensor) -> Tensor:
        """Which symbols (B, N) stand before the first answer symbol of a row that has one."""
        answer = x.eq(-1 if self.spec.answer is None else self.spec.answer)
        return (answer.cumsum(1) == 0) & answer.any(1, keepdim=True)

    def drop_prompt(self, x: Tensor, x_t: Tensor, *, generator: Generator = None) -> Tensor:
        """x_t with the prompts of a share `label_dropout` of the rows masked: the unconditional model of guidance."""
        if self.spec.answer is None:
            return x_t
        dropped = sample_like(torch.rand, x.float(), generator, (len(x), 1)) < self.label_dropout
        return x_t.masked_fill(dropped & self.prompt(x) & ~self.layout(x), self.mask)

    # --- the network --------------------------------------------------------------------------------------

    def logits(self, x: Tensor, alpha: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """symbols (B, N), masks among them -> logits (B, N, V); NEVER for those of the layout.

        alpha: scalar or (B,), the share of revealed symbols, for a network of time.
        """
        cond = self.condition(len(x), t=alpha, y=y)
        tokens = x.unflatten(1, (self.tokens.length, self.tokens.dim))
        h = self.backbone(self.stem(tokens), cond, pos=self.positions, segments=self.segments(x))
        return self.possible(self.head(h, cond).reshape(len(x), self.size, self.vocabulary), x)

    def possible(self, logits: Tensor, x: Tensor | None = None) -> Tensor:
        """Logits (..., V) with NEVER for the symbols of the layout, which are given and not modelled.

        x: symbols (B, N) up to the last that the logits (B, n, V) are of: they say of which modality each one is.
        """
        if x is not None and self.spec.modalities:
            return logits.masked_fill(~self.kinds[self.modality(x)[:, -logits.shape[1] :]], NEVER)
        return logits.masked_fill(~self.modelled, NEVER) if self.spec.fixed else logits

    def modality(self, x: Tensor) -> Tensor:
        """Of which modality the symbols (B, N) are, by the last mark before them: 1, 2, ..., and 0 before any."""
        marks = (k * x.eq(modality.mark) for k, modality in enumerate(self.spec.modalities, 1))
        kind = sum(marks, start=torch.zeros_like(x))
        place = torch.arange(x.shape[1], device=x.device)
        return kind.gather(1, torch.where(kind > 0, place, 0).cummax(1).values)

    def segments(self, x: Tensor) -> Tensor | None:
        """The packed document of each symbol (B, N); None where rows are one."""
        return None if self.spec.boundary is None else x.eq(self.spec.boundary).cumsum(1)

    # --- sampling -----------------------------------------------------------------------------------------

    def takes(self, sampler: Unmasker) -> bool:
        return sampler.uniform or self.noise().mask is not None

    def check_sampler(self, sampler: Unmasker) -> None:
        sampler.check(self.noise())

    def check_guidance(self, guidance: Guidance | None, *, by_class: bool = True) -> None:
        super().check_guidance(guidance, by_class=by_class)
        if by_class or guidance is None or not guidance.active or guidance.by_model:
            return
        if self.spec.answer is not None and self.label_dropout == 0:
            raise GenkitError("guidance needs a model that saw dropped prompts; this one has label_dropout 0")

    def noise(self) -> Noise:
        """What symbols are at t=0."""
        return Noise(self.alphabet, self.mask)

    def predict(self, alpha: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """Logits (R, N, V) of the values of noisy symbols, at a share alpha of revealed ones."""
        return self.logits(x, alpha, y)

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
        """`sampler`: an unmasker. `given`: rows (n, *shape) with -1 where a symbol is to be filled in (default: all).

        With guidance and no classes, the unconditional branch sees the given symbols masked.
        """
        if return_log_prob:
            raise GenkitError("unmasking gives no log-probability of a sample: ask log_prob for its bound")
        unmasker = UNMASKERS.build(self.default_sampler if sampler is None else sampler)
        if n < 1:
            raise GenkitError(f"the number of samples must be at least 1, not {n}")
        template = self.template(n, given)
        prompted = not self.conditional and given is not None
        y = self.prompted(n, y, guidance) if prompted else self.labels(n, y, guidance)
        free, noise = template < 0, self.noise()
        x = torch.where(free, noise.draw(template, generator=generator), template)
        guide, seen = self.guide(guidance), 0

        def network(model: Discrete, known: Tensor) -> Predictor:
            def predict(t: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
                t = t.to(x.device)
                if not prompted or y is None:
                    return model.predict(t, x, y)
                unseen = (y < 0)[:, None] & known.repeat(len(x) // len(known), 1) & ~model.layout(x)
                return model.predict(t, x.masked_fill(unseen, model.mask), None)

            return predict

        def predict(alpha: Alpha, part: Tensor, rows: Tensor) -> Tensor:
            nonlocal seen
            known, of_rows = ~free[rows], None if y is None else y[rows]
            weaker = None if guide is None else network(guide, known)
            guided = Guided(network(self, known), of_rows, guidance, weaker)
            logits = guided(torch.as_tensor(alpha), part)
            seen += guided.rows
            return logits

        done = unmasker.sample(predict, x, free, noise, generator=generator)
        tokens = seen / n * self.networks * self.tokens.length
        return Sample(self.view.decode(self.values(done.x)), done.nfe, tokens)

    def template(self, n: int, given: Tensor | None) -> Tensor:
        """Symbols (n, N) with -1 where they are free. Raises GenkitError for what cannot be given."""
        if given is None:
            return torch.full((n, self.size), -1, device=self.device)
        if tuple(given.shape) != (n, *self.spec.shape):
            raise GenkitError(
                f"what is given must have shape {(n, *self.spec.shape)}, not {tuple(given.shape)}"
            )
        if bool((given >= self.vocabulary).any()):
            raise GenkitError(
                f"symbol {int(given.max())} is given; '{self.spec.name}' has 0 to {self.vocabulary - 1}"
            )
        template = self.symbols(given.to(self.device).long())
        if not bool((template < 0).any(1).all()):
            raise GenkitError("everything is given in some row: nothing is left to fill in")
        return template

    def prompted(self, n: int, y: Tensor | None, guidance: Guidance | None) -> Tensor | None:
        """The stand-in for a class (n,) by which `guided` tells its branches apart, where a prompt is the condition."""
        if y is not None:
            raise GenkitError(f"this model of '{self.spec.name}' is unconditional: it takes no class")
        self.check_guidance(guidance, by_class=False)
        if guidance is None or not guidance.active:
            return None
        return torch.zeros(n, dtype=torch.long, device=self.device)


class Diffused(Discrete):
    """A model of partly noised symbols, with a bound of the likelihood as an integral over time:

    -log p(x) <= int gap(x, alpha) d alpha + boundary = int_0^1 alpha'(t) gap(x, alpha(t)) dt + boundary

    so that the bound knows nothing of the schedule but its ends.
    """

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        schedule: Schedule | str,
        times: Times | str,
        time: bool,
        conditional: bool,
        label_dropout: float,
    ) -> None:
        super().__init__(spec, model, conditional=conditional, label_dropout=label_dropout, time=time)
        self.schedule: Schedule = SCHEDULES.build(schedule)
        self.times: Times = TIMES.build(times)

    def gap(self, x: Tensor, alpha: Tensor, y: Tensor | None, *, generator: Generator = None) -> Tensor:
        """The integrand at alpha (B,) for one draw of x_t: nats summed over a row, (B,)."""
        x_t, noisy = self.corrupt(x, alpha, generator=generator)
        return self.cost(x, x_t, noisy, alpha, y)

    def draw_times(self, n: int, *, generator: Generator = None) -> Tensor:
        return self.times(torch.empty(n, device=self.device), generator=generator)

    def corrupt(self, x: Tensor, alpha: Tensor, *, generator: Generator = None) -> tuple[Tensor, Tensor]:
        """x_t (B, N) where each symbol is itself with probability alpha (B,), and where it is noise (B, N) instead."""
        chance = sample_like(torch.rand, x.float(), generator)
        noisy = (chance >= alpha[:, None].to(chance.dtype)) & ~self.given(x)
        return torch.where(noisy, self.noise().draw(x, generator=generator), x), noisy

    def cost(self, x: Tensor, x_t: Tensor, noisy: Tensor, alpha: Tensor, y: Tensor | None) -> Tensor:
        """The integrand in alpha for one x_t, summed over a row (B,); of masks the -log p of what is masked, over the
        share 1 - alpha that is."""
        return (self.surprise(x, x_t, alpha, y) * noisy).sum(1) / (1 - alpha).clamp(min=TINY)

    def per_symbol(self, nats: Tensor, x: Tensor) -> Tensor:
        """The mean over modelled symbols of nats (B,) summed over rows of x (B, N): a scalar.

        Where rows answer prompts it is taken in each row first: a short answer counts as much as a long one.
        """
        count = (~self.given(x)).sum(1).clamp(min=1)
        return nats.sum() / count.sum() if self.spec.answer is None else (nats / count).mean()

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, draws: int = 16, generator: Generator = None
    ) -> LogProb:
        """An estimate of the bound from `draws` points a row, with its standard error.

        The points are stratified in r = sqrt(1 - alpha), where int gap d alpha = int 2 r gap dr has a finite variance
        (in alpha it has none: near the data noise is rare and weighs much). The error is that of independent
        points, so it is on the safe side.
        """
        if draws < 1:
            raise GenkitError(f"the number of draws must be at least 1, not {draws}")
        encoded, y = self.encoded_for_likelihood(x, y, generator)
        symbols = self.symbols(encoded)
        far, near = ((1 - end) ** 0.5 for end in self.schedule.ends)
        first = torch.rand(len(symbols), generator=generator, device=self.device)
        parts = []
        for k in range(draws):
            root = (near + (far - near) * (first + k) / draws).clamp(min=TINY)
            gap = self.gap(symbols, 1 - root.square(), y, generator=generator)
            parts.append(2 * (far - near) * root * gap + self.boundary(symbols, y, generator=generator))
        nats = torch.stack(parts, dim=1)
        stderr = nats.std(1) / draws**0.5 if draws > 1 else None
        return LogProb(-nats.mean(1), "estimate", stderr, (~self.given(symbols)).sum(1))

    def boundary(self, x: Tensor, y: Tensor | None, *, generator: Generator = None) -> Tensor | float:
        """What a schedule that does not reach the ends adds to the bound (B,), for one draw.

        prior: at t=0 a symbol is still itself with probability alpha(0), coded by the uniform distribution,
        alpha(0) log K nats. reconstruction: -log p(x | x_1) of what is still noise at t=1.
        """
        first, last = self.schedule.ends
        nats: Tensor | float = 0.0
        if first > 0:
            nats = nats + first * (~self.given(x)).sum(1) * math.log(len(self.alphabet))
        if last < 1:
            alpha = torch.full((len(x),), last, device=x.device)
            x_t, noisy = self.corrupt(x, alpha, generator=generator)
            nats = nats + (self.surprise(x, x_t, alpha, y) * noisy).sum(1)
        return nats

    def surprise(self, x: Tensor, x_t: Tensor, alpha: Tensor, y: Tensor | None) -> Tensor:
        """-log p(x | x_t) of each symbol (B, N), nats."""
        nats = F.cross_entropy(self.predict(alpha, x_t, y).transpose(1, 2), x, reduction="none")
        return nats.masked_fill(self.given(x), 0.0)
