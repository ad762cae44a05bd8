"""Checkpoints of training, and weights among them by name, as they are read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from genkit.errors import GenkitError, choose
from genkit.files import ending
from genkit.tensors import read_tensors

PARTS = {
    "callbacks": dict,
    "global_step": int,
    "loops": dict,
    "lr_schedulers": list,
    "optimizer_states": list,
    "state_dict": dict,
}
REMOVE = "; remove it to train from the start"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, mapped into memory. Raises GenkitError for a file that is none, or damaged.

    Nothing in it can execute code. Each part has a checksum (CRC-32), which torch writes but does not read.
    """
    with readable(path):
        with zipfile.ZipFile(ending(path)) as parts:
            # torch compresses none; a small one could unpack to more than there is memory for
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("its parts are compressed")
            damaged = parts.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        lacking = ", ".join(name for name, kind in PARTS.items() if not isinstance(saved.get(name), kind))
        if lacking:
            raise ValueError(f"it lacks {lacking}")
        if not all(isinstance(value, Tensor) for value in saved["state_dict"].values()):
            raise ValueError("its state_dict holds more than tensors")
        return saved


@contextmanager
def readable(path: Path, cure: str = "") -> Iterator[None]:
    """What is raised here by the content of a checkpoint is raised as a GenkitError that says it cannot be read."""
    try:
        yield
    except GenkitError as error:
        raise GenkitError(f"{error}{cure}") from error
    except Exception as error:
        raise GenkitError(f"{unreadable(path, error)}{cure}") from error


def unreadable(path: Path, error: Exception) -> str:
    # the further lines of an error of unpickling advise to run what is in the file
    reason = (str(error) or type(error).__name__).splitlines()[0].removesuffix(".")
    return f"{path} cannot be read as a checkpoint ({reason})"


def check_optimizer(optimizer: Optimizer, path: Path) -> None:
    """Gives AdamW, whose state was read from `path`, its own options back. Raises GenkitError for moments that are not
    of their parameters' shape, kind and layout: its fused step would write beyond them."""
    own = {key: value for key, value in optimizer.defaults.items() if key not in ("lr", "weight_decay")}
    with readable(path, REMOVE):
        for group in optimizer.param_groups:
            group |= own
            if not all(type(group[key]) is float for key in ("lr", "weight_decay")):
                raise ValueError("lr and weight_decay of its optimizer are no numbers")
        for parameter, state in optimizer.state.items():
            like = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            if state.keys() != like.keys() or not all(same_layout(state[key], like[key]) for key in like):
                raise ValueError(f"its moments of a parameter {tuple(parameter.shape)} are of another kind")


def same_layout(value: Any, like: Tensor) -> bool:
    """Whether it is a tensor whose numbers lie in memory as those of another, without gaps or overlaps."""
    if not isinstance(value, Tensor) or (value.shape, value.dtype) != (like.shape, like.dtype):
        return False
    return value.stride() == like.stride() or (value.is_contiguous() and like.is_contiguous())


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


def snapshot(folder: Path, step: int) -> Path:
    """The file of a snapshot in a run folder."""
    return folder / "snapshots" / f"step_{step}.safetensors"


def check_snapshots(folder: Path, steps: Iterable[int], trained: int) -> None:
    """Raises GenkitError for a snapshot of a step that is past and was not kept."""
    past = [step for step in steps if step < trained and not snapshot(folder, step).is_file()]
    if past:
        raise GenkitError(
            f"training: snapshots: {folder} is at step {trained}, and kept none of {', '.join(map(str, past))}: leave "
            "them out, or choose another --out"
        )


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
