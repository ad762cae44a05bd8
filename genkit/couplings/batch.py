"""What couplings that plan within a batch share: the batch, all of it, and the costs of its pairs."""

from __future__ import annotations

import abc
import atexit
import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling
from genkit.errors import GenkitError
from genkit.memory import check_memory
from genkit.processes import parts
from genkit.randomness import RankGenerator, keyed_generator, sample_like
from genkit.types import Generator, Pair

Scope = Literal["rank", "global"]


class Plan(NamedTuple):
    """For each row of x1 its row of x0 (n,), weights (n,) or None, and scalars to log with the loss."""

    order: Tensor
    weight: Tensor | None = None
    logs: Mapping[str, Tensor] = MappingProxyType({})


class BatchCoupling(Coupling):
    """Pairs the n rows of a batch with n source samples; a subclass writes `plan`.

    scope: of distributed runs. `rank`: each process plans for its own part of the batch; `global`: for the whole
        batch, which is gathered (n d values from each process to each). With one process they are the same.
    """

    lowers_cost = True
    skews_classes = True

    def __init__(self, scope: Scope = "rank") -> None:
        self.scope = scope

    @abc.abstractmethod
    def plan(self, x1: Tensor, x0: Tensor, y: Tensor | None, generator: Generator) -> Plan:
        """Of data x1 (n, d), source samples x0 (n, d), n > 1, both in float64, and classes y (n, ...)."""

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        x0 = self.source.sample(x1, generator=generator)
        n, first, all_x1, all_x0, all_y = len(x1), 0, x1, x0, y
        index_of, count = parts()
        if self.scope == "global" and count > 1:
            first = n * index_of
            all_x1, all_x0, all_y = gather(x1), gather(x0), None if y is None else gather(y)
            generator = shared(generator)
        if len(all_x1) == 1:
            return Pair(x0, x1, y, index)
        a, b = (precise(x) for x in (all_x1, all_x0))
        if not bool(torch.isfinite(a).all()):
            raise GenkitError(f"{self.name}: the data have values that are not finite; look at them")
        order, weight, logs = self.plan(a, b, None if all_y is None else all_y.to(a.device), generator)
        mine = order[first : first + n].to(x0.device)
        if weight is not None:
            weight = weight[first : first + n].to(x1)
        return Pair(all_x0[mine], x1, y, index, weight, {name: value.to(x1) for name, value in logs.items()})

    @property
    def name(self) -> str:
        return COUPLINGS.name_of(self)

    def distances(self, x1: Tensor, x0: Tensor, copies: float = 4) -> Tensor:
        """|x1_i - x0_j|^2 (n, m). Raises GenkitError where `copies` of it in float64 do not fit in memory."""
        n, m = len(x1), len(x0)
        cure = (
            "'sliced_ot' and 'weighted' need no such matrix, 'semidiscrete' fits the whole data set in parts; or take "
            "a smaller batch"
        )
        check_memory(f"{self.name}: {n} x {m} costs", 8 * n * m * copies, x1.device, cure)
        # as a product: faster than one by one, and the shift keeps rounding small far from the origin
        center = x1.mean(0)
        x1, x0 = x1 - center, x0 - center
        squares = x1.square().sum(1, keepdim=True) + x0.square().sum(1)
        return torch.addmm(squares, x1, x0.T, alpha=-2).clamp_min_(0)


def check_positive(name: str, **options: float) -> None:
    """Raises GenkitError for an option of the coupling `name` that is not positive and finite."""
    for option, value in options.items():
        if not 0 < value < math.inf:
            raise GenkitError(f"{name}: {option} must be positive, not {value}")


def precise(x: Tensor) -> Tensor:
    """(n, ...) -> (n, d) in float64, which autocast leaves alone: rounding must not decide who goes with whom."""
    x = x.detach().flatten(1)
    return (x.cpu() if x.device.type == "mps" else x).double()  # mps has no float64


def gather(x: Tensor) -> Tensor:
    """(n, ...) of each process -> (world n, ...), in the order of ranks, the same everywhere."""
    own = x.detach().cpu().contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own, group=_group(dist.group.WORLD))
    return torch.cat(parts).to(x.device)


@lru_cache(maxsize=1)
def _group(world: Any) -> Any:
    """Processes that talk about couplings only: a pair may be made beside a step whose gradients are gathered."""
    # its threads end before the interpreter does, else that may be aborted
    atexit.register(_group.cache_clear)
    return dist.new_group(backend="gloo")


def shared(generator: Generator) -> torch.Generator:
    """A generator that is the same in all processes: what they have in common, or a function of that of rank 0."""
    if isinstance(generator, RankGenerator):
        return generator.common
    device = "cpu" if generator is None else generator.device
    seed = gather(torch.randint(2**62, (1,), generator=generator, device=device))[0]
    return keyed_generator(int(seed), "shared")


def draw_columns(log_plan: Tensor, generator: Generator) -> Tensor:
    """For each row of log P (n, m) a column j with probability P_ij / sum_j P_ij: (n,)."""
    cumulative = log_plan.softmax(1).cumsum(1)
    u = sample_like(torch.rand, cumulative, generator, (len(log_plan),))[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, u, right=True).squeeze(1).clamp_max(log_plan.shape[1] - 1)
