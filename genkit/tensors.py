"""Tensors in files: safetensors with plain data about them, and a hash by which damage shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genkit.errors import GenkitError
from genkit.files import write_atomically


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors and their names, by which a changed bit shows (safetensors has no checksum)."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes tensors whole or not at all, with plain data about them."""
    plain = {key: value.contiguous() for key, value in tensors.items()}
    # one entry: safetensors keeps no order among several
    metadata = {"genkit": json.dumps({**about, "hash": tensors_hash(plain)})}
    write_atomically(path, lambda file: file.write(save(plain, metadata=metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what `write_tensors` was told about them. Raises GenkitError for a file that is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = dict(json.loads(metadata["genkit"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise GenkitError(f"{path} is corrupt, or was not written by genkit: {error}") from None
    if "hash" in about and about["hash"] != tensors_hash(tensors):
        raise GenkitError(f"{path} is corrupt: its values are not those that were written")
    return tensors, about
