"""The laws of inverters, held against an autoregressive map in closed form."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.inversion import INVERTERS, Inverted, Inverter
from genkit.randomness import keyed_generator
from genkit.testing.laws import Finding, Laws, at_most, both, difference, equal

BATCH, LENGTH, DIM = 4, 40, 2
TIGHT = 1e-16


@dataclass
class Triangular:
    """a = tanh(A x + b), mu = M x + c, with A and M strictly lower triangular in the tokens.

    As keys and values do, what a call has seen of tokens before its own slot stands until that slot is asked again.
    """

    length: int = LENGTH
    strength: float = 0.1
    asked: list[int] = field(default_factory=list)  # tokens of each call
    seen: Tensor | None = None

    def __post_init__(self) -> None:
        draw = torch.randn(2, self.length, DIM, self.length, DIM, generator=keyed_generator(0)).double()
        lower = torch.ones(self.length, self.length).tril(-1)[:, None, :, None]
        self.weight = self.strength * lower * draw
        self.bias = torch.randn(2, self.length, DIM, generator=keyed_generator(1)).double()

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and mu (B, L, D) of x."""
        a, mu = torch.einsum("pldmk,bmk->pbld", self.weight.to(x), x) + self.bias[:, None].to(x)
        return torch.tanh(a), mu

    def encode(self, x: Tensor) -> Tensor:
        a, mu = self.both(x)
        return (x - mu) * torch.exp(-a)

    def __call__(self, x: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if self.seen is None:
            self.seen = torch.full_like(x, torch.nan)
        self.asked.append(stop - start)
        new = slice(max(start - 1, 0), stop - 1)  # slot i reads token i - 1
        self.seen[:, new] = x[:, new]
        known = torch.cat((self.seen[:, : stop - 1], torch.zeros_like(x[:, stop - 1 :])), 1)
        return tuple(part[:, start:stop] for part in self.both(known))  # type: ignore[return-value]


@dataclass
class Case:
    """An inverter class with its options; `run` inverts a batch."""

    cls: type[Inverter]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.inverter = self.cls(**self.options)
        self.z = torch.randn(BATCH, LENGTH, DIM, generator=keyed_generator(2)).double()

    def takes(self, *options: str) -> bool:
        return set(options) <= set(inspect.signature(self.cls).parameters)

    @property
    def tight(self) -> Inverter:
        """With a small tolerance and no cap, where it has them."""
        tight = {key: value for key, value in (("tolerance", TIGHT), ("cap", None)) if self.takes(key)}
        return self.cls(**self.options | tight)

    def run(self, inverter: Inverter, z: Tensor | None = None) -> tuple[Inverted, Triangular]:
        z = self.z if z is None else z
        span = Triangular(z.shape[1])
        return inverter.invert(span, z), span


LAWS = Laws(INVERTERS, Case)


@LAWS.law
def it_inverts(case: Case) -> Finding:
    """Encoding x gives z back; a small tolerance leaves a small error."""
    found, span = case.run(case.tight)
    return at_most(difference(span.encode(found.x), case.z), 1e-5, "z is missed by")


@LAWS.law
def log_scales_are_those_of_x(case: Case) -> Finding:
    """`a` holds the log-scales of the last call for each token, at the tokens that are returned."""
    found, span = case.run(case.tight)
    return at_most(difference(found.a, span.both(found.x)[0]), 1e-5, "log-scales are off by")


@LAWS.law
def calls_and_tokens_are_counted(case: Case) -> Finding:
    """`calls` are the network calls in sequence, `tokens` all that went through them."""
    found, span = case.run(case.inverter)
    return both(equal(found.calls, len(span.asked), "calls"), equal(found.tokens, sum(span.asked), "tokens"))


@LAWS.law
def exact_is_exact(case: Case) -> Finding | None:
    """`exact` promises the inverse but for rounding, and that log |det| is that of x."""
    found, span = case.run(case.inverter)
    if not found.exact:
        return None
    off = max(difference(span.encode(found.x), case.z), difference(found.a, span.both(found.x)[0]))
    return at_most(off, 1e-9, "z or the log-scales are off by")


@LAWS.law
def one_token_takes_one_call(case: Case) -> Finding:
    """The first token depends on no other."""
    z = case.z[:, :1]
    found, span = case.run(case.inverter, z)
    return both(
        equal(len(span.asked), 1, "calls"),
        at_most(difference(span.encode(found.x), z), 1e-9, "z is missed by"),
    )


@LAWS.law
def rows_are_inverted_one_by_one(case: Case) -> Finding:
    """A row's result does not depend on the other rows of the batch, but for the tolerance."""
    whole = case.run(case.tight)[0].x
    parts = torch.cat([case.run(case.tight, case.z[i : i + 1])[0].x for i in range(BATCH)])
    return at_most(difference(whole, parts), 1e-5, "rows differ from those of a batch by")


@LAWS.law
def the_input_is_left_alone_and_nothing_is_kept(case: Case) -> Finding:
    """z is not written to, shape and dtype are kept, and a second call gives what the first gave."""
    z = case.z.float()
    kept = z.clone()
    first, second = (case.run(case.inverter, z)[0].x for _ in range(2))
    same = torch.equal(z, kept) and torch.equal(first, second)
    right = same and first.shape == z.shape and first.dtype == z.dtype
    return Finding(right, f"{tuple(first.shape)} {first.dtype}" + ("" if same else ", written or kept"))


@LAWS.law
def a_tolerance_that_is_not_reached_is_refused(case: Case) -> Finding | None:
    """Where one pass is all that is allowed and not enough, a GenkitError says so."""
    if not case.takes("tolerance", "cap"):
        return None
    try:
        case.run(case.cls(**case.options | {"tolerance": TIGHT, "cap": 1}))
    except GenkitError as error:
        return Finding(True, f"refused: {error}"[:60])
    return Finding(False, "one pass was taken for enough")
