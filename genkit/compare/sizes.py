"""Samples of another size than that of training: images of another side, clouds of another number of points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.types import DataSpec


def resized(x: Tensor, spec: DataSpec) -> Tensor:
    """Samples (N, *shape) brought to the size of a spec without a model: what sampling at that size is held against.

    Images by bilinear interpolation, rounded to levels; of clouds the points, each again where there are too few.
    """
    if spec.cloud:
        return x[:, torch.arange(spec.shape[0]) % x.shape[1]]
    found = F.interpolate(x.float(), size=spec.shape[1:], mode="bilinear", antialias=True)
    return found if spec.levels is None else found.round().clamp(0, spec.levels - 1).to(x.dtype)


def shown_size(size: int, what: str = "") -> str:
    """The name under which samples of a size are kept; `what`: "resized" or "real"."""
    return f"size_{size}" + (f".{what}" if what else "")
