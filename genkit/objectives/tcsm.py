"""Target concrete score matching: a masked model led by ratios of what is known of the clean data.

The concrete score of p at x is [p(v, x_-i) / p(x)] over symbols v and places i. The posterior's is the target's times
a factor of the noise that is known, so that a model of x1 given x_t can be fitted to ratios of the *clean* target p:

    loss = E alpha'_t / (1 - alpha_t) sum over masked i of D(target(. | x_-i), q_i),   q_i = softmax logits(x_t)_i

    divergence   forward_kl  D = - sum_v target(v) log q(v)
                 gen_kl      the same + (1/V) [sum_v target(v) / q(v) + sum_v log q(v)]

gen_kl is the generalized KL divergence of the concrete scores, sum_v a log(a/b) - a + b with a = p(v)/p(x),
b = q(v)/q(x), x drawn from p, over V and up to a constant. What it adds to forward_kl is the Itakura-Saito divergence
sum_v [p/q - log(p/q) - 1] / V, so both are least at q = p and nowhere else. Where V q < 1e-4 the addition is held
constant, since it falls without end for symbols that never come; the least point stays where it is.

    from             target
    data             the symbol itself: with forward_kl this is `masked_diffusion`
    teacher          p_T(x_i = . | x_-i) of an `autoregressive` run, from likelihoods of one-symbol substitutions in
                     rows of data; q is led to its mean over the data that agree with x_t
    reward           p_pre(x) exp(R(x) / beta) / Z, by samples of p_pre with self-normalized weights
    density_ratio    the data again, by q = p_ref r / Z with r fitted to tell the data from p_ref

Zhang et al., Target Concrete Score Matching, https://arxiv.org/abs/2504.16431. The formulas above are derived here
and tested; the paper's text was not at hand.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit.backbone import ModelOptions
from genkit.data.base import Split
from genkit.errors import GenkitError
from genkit.objectives.autoregressive import Autoregressive
from genkit.objectives.base import OBJECTIVES, Beside
from genkit.objectives.discrete import NEVER, TINY, Diffused
from genkit.objectives.masked_diffusion import MaskedDiffusion
from genkit.objectives.rewards import REWARDS, Reward
from genkit.paths import Schedule, Times
from genkit.randomness import keyed_generator, sample_like
from genkit.types import Batch, DataSpec, Generator
from genkit.unmasking import UNMASKERS, Unmasker

FLOOR = 1e-4  # of V q in gen_kl
CHUNK = 256  # rows of the pool that are sampled at a time


class Target(NamedTuple):
    """Of P places a row, the target's probabilities of K symbols; the others have none.

    places (B, P); symbols (B, P, K); p (B, P, K); share (B, P): how many masked symbols a place stands for.
    """

    places: Tensor
    symbols: Tensor
    p: Tensor
    share: Tensor


@OBJECTIVES.register("tcsm")
class TCSM(MaskedDiffusion):
    """Masked diffusion fitted to concrete scores: of data, of a teacher, of a reward, or as a density ratio.

    divergence: `forward_kl` or `gen_kl`.
    teacher: a run folder or an arm. Alone, an `autoregressive` run that is distilled; with `reward` or
        `density_ratio` a masked-diffusion run of the same `model`.
    ratios: of the teacher, `exact` likelihoods at some places, or `first_order`, all places from one pass through the
        teacher and back. That is cheap and can be far off, since a symbol for another is no small step: of a small
        model of text, what it says of later symbols hardly correlated with the truth (0.07), and the teacher's forward
        conditional alone was nearer to the exact one.
    candidates: exact ratios are of the so many symbols that the teacher's forward conditional holds most probable,
        the true one always among them (which leans to it where the others leave out much); null for all.
        positions: masked places of a row that they are taken at.
    reward: a name with options (see `genkit list rewards`) or, from Python, `Reward.of(function)`. The model starts
        from the teacher, p_pre. beta: temperature; lower is greedier. pool: samples of p_pre, drawn once before
        training by `unmasker` ({name: ancestral, steps: null} is exact); layouts, prompts and classes are the data's.
    density_ratio: how r is fitted, with the data as positives and p_ref(. | x_t), the teacher's, as negatives, which
        are not drawn but summed over: `bce` logistic, `lsif` least squares, `kl`.
    schedule, times, time, conditional, label_dropout: as for `masked_diffusion`.
    """

    pool_x: Tensor
    pool_y: Tensor | None
    pool_weight: Tensor
    effective: Tensor

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        divergence: Literal["forward_kl", "gen_kl"] = "forward_kl",
        teacher: str | None = None,
        ratios: Literal["exact", "first_order"] = "exact",
        candidates: int | None = 8,
        positions: int = 4,
        reward: Reward | str | None = None,
        beta: float = 1.0,
        pool: int = 512,
        unmasker: Unmasker | str = "ancestral",
        density_ratio: Literal["bce", "lsif", "kl"] | None = None,
        schedule: Schedule | str = "linear",
        times: Times | str = "low_discrepancy",
        time: bool = False,
        conditional: bool = True,
        label_dropout: float = 0.1,
    ) -> None:
        network: dict[str, Any] = {"time": time, "conditional": conditional, "label_dropout": label_dropout}
        super().__init__(spec, model, schedule=schedule, times=times, **network)
        if reward is not None and density_ratio is not None:
            raise GenkitError("tcsm: reward and density_ratio are two uses of a teacher: choose one")
        if density_ratio is not None and divergence != "forward_kl":
            raise GenkitError("tcsm: density_ratio has a loss of its own: leave divergence out")
        for name, least, value in (
            ("candidates", 1, candidates),
            ("positions", 1, positions),
            ("pool", 2, pool),
        ):
            if value is not None and value < least:
                raise GenkitError(f"tcsm: {name} must be at least {least}, not {value}")
        if not 0 < beta < math.inf:
            raise GenkitError(f"tcsm: beta must be positive, not {beta}")
        self.divergence, self.density_ratio = divergence, density_ratio
        self.reward: Reward | None = None if reward is None else REWARDS.build(reward)
        if self.reward is not None:
            self.reward.setup(spec)
        self.beta, self.size_of_pool, self.unmasker = beta, pool, UNMASKERS.build(unmasker)
        self.pooled = 0  # rows that the teacher sampled
        self.distills = teacher is not None and reward is None and density_ratio is None
        self.ratios, self.places = ratios, positions
        symbols = self.vocabulary - len(set(spec.fixed))
        self.candidates = symbols if candidates is None else min(candidates, symbols)
        self.teacher: Beside[Autoregressive] | None = None
        # Sampling needs p_ref, and a run folder is whole in itself: unlike other teachers this one is part of the
        # model. It has no gradients, which keeps it out of the optimizer.
        self.reference: MaskedDiffusion | None = None
        if density_ratio is not None:
            self.reference = MaskedDiffusion(spec, model, **network).requires_grad_(False)
            self.networks = 2

    # --- teachers -----------------------------------------------------------------------------------------

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        given = "none is given: set teacher=RUN_FOLDER or an arm"
        if teacher is not None:
            given = f"{type(teacher).__name__} is given"
        if self.distills:
            if not isinstance(teacher, Autoregressive):
                raise GenkitError(
                    f"tcsm: distillation needs an autoregressive run as its teacher, and {given} (masked-diffusion "
                    "runs are teachers with reward or density_ratio)"
                )
            if self.tokens.dim > 1:
                raise GenkitError("tcsm: the teacher's tokens are single symbols: set model.patch=1 here too")
        elif self.reward is not None or self.density_ratio is not None:
            what = "a reward" if self.reward is not None else "a density ratio"
            if not isinstance(teacher, Diffused) or getattr(teacher, "uniform", False):
                raise GenkitError(f"tcsm: {what} needs a masked-diffusion run as its teacher, and {given}")
            if shapes(teacher) != shapes(self.reference or self):
                raise GenkitError(
                    f"tcsm: with {what} the network is the teacher's: model, time and conditional must be as there"
                )

    def setup(self, data: Split, teacher: Any = None) -> None:
        super().setup(data, teacher)
        if self.distills:
            self.teacher = Beside(teacher)
        elif self.reference is not None:
            self.reference.load_state_dict(teacher.state_dict())
        elif self.reward is not None:
            self.load_state_dict(teacher.state_dict())
            self.fill_pool(self.reward, data, teacher)

    def fill_pool(self, reward: Reward, data: Split, teacher: Diffused) -> None:
        """Samples of p_pre with weights exp(R / beta) / Z, of mean 1 over the pool."""
        generator = keyed_generator(0, "tcsm", "pool", device=teacher.device)
        rows = torch.randint(len(data), (self.size_of_pool,), generator=keyed_generator(0, "tcsm", "rows"))
        x, y = data.take(rows)
        y = y if self.conditional else None
        symbols = self.symbols(self.view.encode(x))
        given = self.values(symbols.masked_fill(~self.given(symbols), -1))
        samples = [
            teacher.sample(
                len(part),
                None if y is None else y[part],
                sampler=self.unmasker,
                generator=generator,
                given=given[part],
            )
            for part in torch.arange(len(rows)).split(CHUNK)
        ]
        x = torch.cat([sample.x for sample in samples]).to(self.device)
        self.pooled = round(sum(len(one.x) * one.tokens for one in samples) / self.tokens.length)
        rewards = reward(x).double()
        if rewards.shape != (len(x),) or not bool(rewards.isfinite().all()):
            raise GenkitError(
                f"the reward must give {len(x)} samples as many finite numbers; it gave {tuple(rewards.shape)}"
            )
        weight = len(x) * (rewards / self.beta).softmax(0)
        effective = len(x) ** 2 / weight.square().sum()
        if effective < 0.02 * len(x):
            warnings.warn(
                f"tcsm: the reward leaves {float(effective):.1f} effective samples of a pool of {len(x)}: "
                "a higher beta or a larger pool is needed",
                stacklevel=2,
            )
        self.register_buffer("pool_x", x, persistent=False)
        self.register_buffer("pool_y", None if y is None else y.to(self.device), persistent=False)
        self.register_buffer("pool_weight", weight.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("effective", effective.to(torch.get_default_dtype()), persistent=False)

    @property
    def passes(self) -> float:
        if self.distills:
            return 2.0 if self.ratios == "first_order" else 2.0 + self.places * self.candidates
        return float(self.networks)

    @property
    def setup_rows(self) -> int:
        return self.pooled

    # --- the loss -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, batch: Batch, *, generator: Generator = None) -> Batch:
        if self.reward is not None:  # rows of the pool in place of the data
            kind = partial(torch.randint, len(self.pool_x))
            drawn = sample_like(kind, batch.x.long(), generator, (len(batch),))
            batch = Batch(self.pool_x[drawn], None if self.pool_y is None else self.pool_y[drawn], drawn)
        return super().prepare(batch, generator=generator)

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        if self.divergence == "forward_kl" and not (self.distills or self.reward or self.reference):
            return super().loss(batch, generator=generator)
        x, y = batch.read, self.drop_label(batch.y, generator=generator)
        t = self.draw_times(len(x), generator=generator)
        alpha, rate = self.schedule.alpha(t), self.schedule.d_alpha(t)
        x_t, noisy = self.corrupt(x, alpha, generator=generator)
        x_t = self.drop_prompt(x, x_t, generator=generator)
        if self.reference is not None:
            log_r, p_ref = super().logits(x_t, alpha, y), self.reference.logits(x_t, alpha, y).softmax(-1)
            nats = (contrast(self.density_ratio, log_r, p_ref, x) * noisy).sum(1)
        else:
            target = self.target(x, noisy, batch.y, generator=generator)
            nats = (self.mismatch(self.predict(alpha, x_t, y), target) * target.share).sum(1)
        nats = rate * (nats / (1 - alpha).clamp(min=TINY))
        if self.reward is None:
            return {"loss": self.per_symbol(nats, x)}
        weight = self.pool_weight[batch.index]
        return {"loss": self.per_symbol(weight * nats, x), "effective_samples": self.effective}

    def mismatch(self, logits: Tensor, target: Target) -> Tensor:
        """D(target, q) at each place (B, P), for logits (B, N, V) of q."""
        if target.places.shape[1] < logits.shape[1]:
            logits = logits.gather(1, target.places[..., None].expand(-1, -1, logits.shape[-1]))
        log_q = logits.log_softmax(-1)
        nats = -(target.p * log_q.gather(-1, target.symbols)).sum(-1)
        if self.divergence == "gen_kl":
            possible = log_q > NEVER / 2
            count = possible.sum(-1, keepdim=True)
            low = torch.maximum(log_q, (FLOOR / count).log())
            over_q = (target.p * (-low.gather(-1, target.symbols)).exp()).sum(-1)
            nats = nats + (over_q + (low * possible).sum(-1)) / count[..., 0]
        return nats

    def target(self, x: Tensor, noisy: Tensor, y: Tensor | None, *, generator: Generator = None) -> Target:
        """What the masked symbols of x (B, N) are to be; a teacher sees the true class."""
        everywhere = torch.arange(x.shape[1], device=x.device).expand_as(x)
        if not self.distills:
            return Target(everywhere, x[..., None], torch.ones_like(x)[..., None], noisy)
        if self.teacher is None:
            raise GenkitError("tcsm: the loss needs the teacher, which setup() is given")
        teacher = self.teacher.on(x.device)
        y = y if teacher.conditional else None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            if self.ratios == "first_order":
                p = teacher.log_odds(x, y).softmax(-1)
                return Target(
                    everywhere, torch.arange(self.vocabulary, device=x.device).expand_as(p), p, noisy
                )
            chance = sample_like(torch.rand, x.float(), generator).masked_fill(~noisy, -1.0)
            places = chance.topk(min(self.places, x.shape[1]), dim=1).indices
            masked = noisy.gather(1, places)
            share = masked * noisy.sum(1, keepdim=True) / masked.sum(1, keepdim=True).clamp(min=1)
            return Target(places, *conditionals(teacher, x, places, self.candidates, y), share)

    # --- the density ratio --------------------------------------------------------------------------------

    def logits(self, x: Tensor, alpha: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Those of the network or, of a density ratio, of p_ref r."""
        own = super().logits(x, alpha, y)
        return own if self.reference is None else own + self.reference.logits(x, alpha, y)

    def train(self, mode: bool = True) -> TCSM:
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self


def conditionals(
    teacher: Autoregressive, x: Tensor, places: Tensor, candidates: int, y: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """p(x_i = v | x_-i) at `places` (B, P) of x (B, N): symbols v (B, P, K) and their probabilities (B, P, K).

    By Bayes from the likelihoods of x with v at place i, over the K = `candidates` symbols that are most probable after
    x_<i, with x_i always among them; exact for all of them. B P K rows go through the teacher, B at a time.
    """
    forward = teacher.logits(x, y=y)
    forward = forward.gather(1, places[..., None].expand(-1, -1, forward.shape[-1]))
    own = x.gather(1, places)[..., None]
    symbols = forward.scatter(-1, own, math.inf).topk(candidates, dim=-1).indices
    where = places[..., None, None].expand(*symbols.shape, 1)
    rows = x[:, None, None].expand(*symbols.shape, -1).scatter(-1, where, symbols[..., None]).flatten(0, 2)
    of_rows = None if y is None else y.repeat_interleave(symbols[0].numel(), 0)
    log_p = [
        teacher.log_likelihood(rows[part], None if of_rows is None else of_rows[part])
        for part in torch.arange(len(rows), device=x.device).split(len(x))
    ]
    return symbols, torch.cat(log_p).view(symbols.shape).softmax(-1)


def contrast(form: str | None, log_r: Tensor, p_ref: Tensor, x: Tensor) -> Tensor:
    """The loss (B, N) of log r (B, N, V): data x (B, N) are the positives, p_ref (B, N, V) the negatives.

        bce   -log s(log r)   -log s(-log r)      s the sigmoid
        lsif  -r               r^2 / 2
        kl    -log r           r

    In all three the best r is p(v | x_t) / p_ref(v | x_t).
    """
    of_data = log_r.gather(-1, x[..., None])[..., 0]
    if form == "bce":
        return F.softplus(-of_data) + (p_ref * F.softplus(log_r)).sum(-1)
    if form == "lsif":
        return (p_ref * (2 * log_r).exp()).sum(-1) / 2 - of_data.exp()
    return (p_ref * log_r.exp()).sum(-1) - of_data


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Of everything in a module's state."""
    return {key: value.shape for key, value in module.state_dict().items()}
