"""Checkpoints of training, as they are read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError

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
