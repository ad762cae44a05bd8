"""Keyed randomness: a generator that depends on its key alone, never on what was drawn before; and how to draw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import torch
from torch import Tensor


def keyed_generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` whose state is a function of (seed, key) and of nothing else.

    The key is hashed with SHA-256 to a seed of 63 bits, so streams of different keys are independent for all
    practical purposes, and equal keys give equal streams in every process.

        keyed_generator(0, "data", epoch)      # not keyed_generator(0 + epoch)

    Raises TypeError for a key that is neither whole number nor text.
    """
    digest = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class RankGenerator(torch.Generator):
    """A process's own generator, which also knows `common`, the one that all processes have alike.

    Of a batch of `total` rows this process has `count`, from `first` on; of one with k times as many, k times as many.
    `sample_like` draws from `common` for the global batch and takes this process's rows, so that what is drawn does not
    depend on the number of processes. Whatever draws from the generator itself gets numbers of this process alone.
    """

    common: torch.Generator
    first: int
    count: int
    total: int

    @classmethod
    def keyed(
        cls, seed: int, *key: int | str, rank: int, world: int, device: torch.device | str = "cpu"
    ) -> RankGenerator:
        """For equal parts. `common` is keyed_generator(seed, *key, 0), what a single process has."""
        common, own = (keyed_generator(seed, *key, r, device=device) for r in (0, rank))
        return cls.of(common, own, rank, 1, world)

    @classmethod
    def of(
        cls, common: torch.Generator, own: torch.Generator, first: int, count: int, total: int
    ) -> RankGenerator:
        made = cls(common.device)
        made.manual_seed(own.initial_seed())
        made.common, made.first, made.count, made.total = common, first, count, total
        return made

    def rows(self, n: int) -> tuple[slice, int]:
        """Which rows of the global batch this process's n are, and how many that has."""
        k, left = divmod(n, self.count)
        assert not left, f"{n} rows are drawn by a process that has {self.count} of them"
        return slice(k * self.first, k * (self.first + self.count)), k * self.total


def streams(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """Generators for `count` parts of what is drawn, from one draw: how much is drawn for one part does not move the
    others. Those of a RankGenerator are such, too."""
    seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()
    own = [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]
    if not isinstance(generator, RankGenerator):
        return own
    common, (first, rows, total) = generator.common, (generator.first, generator.count, generator.total)
    return [
        RankGenerator.of(one, mine, first, rows, total)
        for one, mine in zip(streams(common, count), own, strict=True)
    ]


def sample_like(
    kind: Callable[..., Tensor],
    like: Tensor,
    generator: torch.Generator | None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Draws of a shape, that of `like` where none is given, with its dtype and on its device.

    kind: torch.rand, torch.randn, partial(torch.randint, high). The first dimension is the batch; a scalar is one draw
    for all. It is drawn where the generator is, which may be another device.
    """
    device = like.device if generator is None else generator.device
    size = tuple(like.shape if shape is None else shape)
    if isinstance(generator, RankGenerator):
        rows, total = generator.rows(size[0] if size else 0)
        whole = (total, *size[1:]) if size else ()
        drawn = kind(whole, generator=generator.common, dtype=like.dtype, device=device)
        return (drawn[rows] if size else drawn).to(like.device)
    return kind(size, generator=generator, dtype=like.dtype, device=device).to(like.device)


def shuffle_like(like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, int]:
    """For the rows of `like` (B, ...) their places (B,) in a random order of the whole batch, and its size."""
    if isinstance(generator, RankGenerator):
        rows, total = generator.rows(len(like))
        order = torch.randperm(total, generator=generator.common, device=generator.device)
        return order[rows].to(like.device), total
    device = like.device if generator is None else generator.device
    return torch.randperm(len(like), generator=generator, device=device).to(like.device), len(like)
