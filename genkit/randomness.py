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


def sample_like(
    kind: Callable[..., Tensor],
    like: Tensor,
    generator: torch.Generator | None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """torch.rand or torch.randn of a shape, that of `like` where none is given, with its dtype and on its device.

    It is drawn where the generator is, which may be another device.
    """
    device = like.device if generator is None else generator.device
    size = like.shape if shape is None else shape
    return kind(size, generator=generator, dtype=like.dtype, device=device).to(like.device)
