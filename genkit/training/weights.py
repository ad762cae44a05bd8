"""Checkpoints of training, and weights among them by name, as they are read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError, choose
from genkit.files import ending
from genkit.tensors import read_tensors

PARTS = {"callbacks", "global_step", "loops", "lr_schedulers", "optimizer_states", "state_dict"}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, mapped into memory. Raises GenkitError for a file that is none, or damaged.

    Nothing in it can execute code. Each part has a checksum (CRC-32), which torch writes but does not read.
    """
    try:
        with zipfile.ZipFile(ending(path)) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        lacking = ", ".join(sorted(PARTS - saved.keys()))
        if lacking:
            raise ValueError(f"it lacks {lacking}")
        int(saved["global_step"])
        return saved
    except Exception as error:
        # the further lines of an error of unpickling advise to run what is in the file
        reason = (str(error) or type(error).__name__).splitlines()[0].removesuffix(".")
        raise GenkitError(f"{path} cannot be read as a checkpoint ({reason})") from error


def last_good(path: Path) -> str:
    """What a message says of the last checkpoint, which is written to `path`."""
    return f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"


def goes_on(path: Path) -> str:
    """The same, of a training that ended there."""
    return f"{last_good(path)}: the same command {'goes on from there' if path.exists() else 'begins again'}"


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The objective's weights in a checkpoint, averaged where there is an average."""
    prefix = "objective."
    state = checkpoint["state_dict"].items()
    return {key.removeprefix(prefix): value for key, value in state if key.startswith(prefix)}


def kept_weights(folder: Path) -> dict[str, Path]:
    """The files of the weights that training kept in a run folder, by name: steps of snapshots in order, best, last."""
    files = folder.glob("snapshots/step_*.safetensors")
    steps = {step: path for path in files if (step := path.stem.removeprefix("step_")).isdecimal()}
    found = {step: steps[step] for step in sorted(steps, key=int)}
    checkpoints = {name: folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")}
    return found | {name: path for name, path in checkpoints.items() if path.is_file()}


def find_weights(folder: Path, checkpoint: int | str) -> Path:
    """The file of the weights that are called `checkpoint`: the step of a snapshot, best, last, or a file .safetensors
    seen from the run folder. Raises GenkitError for what is not there, and says what is."""
    name, kept = str(checkpoint), kept_weights(folder)
    if name in kept:
        return kept[name]
    if name.endswith(".safetensors") and (folder / name).is_file():
        return folder / name
    raise GenkitError(
        f"{folder}: {choose(name, kept, 'checkpoint')}: training.snapshots=[STEP, ...] keeps those of steps, "
        "training.checkpoint_best=loss the best; a file .safetensors is seen from the run folder"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The objective's weights in a file that `find_weights` found. Raises GenkitError for a damaged one."""
    return weights_of(read_checkpoint(path)) if path.suffix == ".ckpt" else read_tensors(path)[0]
