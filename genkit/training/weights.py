"""Weights in files: safetensors of runs, which hold a hash of what they are, and checkpoints of training."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genkit.errors import GenkitError
from genkit.files import write_atomically


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors, by which a changed bit shows (safetensors has no checksum)."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_weights(path: Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes tensors whole or not at all, with plain data about them."""
    plain = {key: value.contiguous() for key, value in state.items()}
    # one entry: safetensors keeps no order among several
    metadata = {"genkit": json.dumps({**about, "hash": weights_hash(plain)})}
    write_atomically(path, lambda file: file.write(save(plain, metadata=metadata)))


def read_weights(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what `write_weights` was told about them. Raises GenkitError for a file that is not whole."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = dict(json.loads(metadata["genkit"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise GenkitError(f"{path} is corrupt, or was not written by genkit: {error}") from None
    if "hash" in about and about["hash"] != weights_hash(state):
        raise GenkitError(f"{path} is corrupt: its weights are not those that were written")
    return state, about


PARTS = {"callbacks", "global_step", "loops", "lr_schedulers", "optimizer_states", "state_dict"}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, mapped into memory. Raises GenkitError for a file that is none, or damaged.

    Nothing in it can execute code. Each part has a checksum (CRC-32), which torch writes but does not read.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        lacking = ", ".join(sorted(PARTS - saved.keys()))
        if lacking:
            raise ValueError(f"it lacks {lacking}")
        int(saved["global_step"])
        return saved
    except (
        Exception
    ) as error:  # also those of unpickling, whose further lines advise to run what is in the file
        reason = (str(error) or type(error).__name__).splitlines()[0].removesuffix(".")
        raise GenkitError(
            f"{path} cannot be read as a checkpoint ({reason}); remove it to train from the start"
        ) from error


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The objective's weights in a checkpoint, averaged where there is an average."""
    prefix = "objective."
    state = checkpoint["state_dict"].items()
    return {key.removeprefix(prefix): value for key, value in state if key.startswith(prefix)}
