"""Keyed randomness: a generator that depends on its key alone, never on what was drawn before."""

from __future__ import annotations

import hashlib
import json

import torch


def keyed_generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` whose state is a function of (seed, key) and of nothing else.

    The key is hashed with SHA-256 to a seed of 63 bits, so streams of different keys are independent for all
    practical purposes, and equal keys give equal streams in every process.

        keyed_generator(0, "data", epoch)      # not keyed_generator(0 + epoch)

    Raises TypeError for a key that is neither whole number nor text.
    """
    digest = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
