"""Samples as files: a picture, or arrays."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.files import write_atomically
from genkit.types import DataSpec

SUFFIXES = (".png", ".npy", ".safetensors")


def writable(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Raises GenkitError, before any work, for a path that cannot be written or ends in none of `suffixes`."""
    if suffixes and path.suffix not in suffixes:
        raise GenkitError(f"{path}: the file's ending must be one of {', '.join(suffixes)}")
    try:
        if not path.name or path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise GenkitError(f"cannot write {path}: {error.strerror}") from None


def save_samples(x: Tensor, spec: DataSpec, path: Path) -> None:
    """Samples as the data set stores them -> .png (a grid of images, or points), .npy or .safetensors."""
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        import numpy

        numpy.save(buffer, x.numpy())
    elif path.suffix == ".safetensors":
        from safetensors.torch import save

        buffer.write(save({"x": x.contiguous()}))
    else:
        buffer = png(x, spec)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def png(x: Tensor, spec: DataSpec) -> io.BytesIO:
    buffer = io.BytesIO()
    if spec.image:
        from PIL import Image

        scale = max(1, 256 // (8 * spec.shape[-1]))
        pixels = grid(x, spec).repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    elif spec.shape == (2,):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        axes.scatter(x[:, 0], x[:, 1], s=4, alpha=0.5, linewidths=0)
        axes.set(title=f"{len(x)} samples of {spec.name}", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        figure.savefig(buffer, dpi=120, format="png")
    else:
        raise GenkitError(f"data of shape {spec.shape} have no picture: write .npy or .safetensors")
    return buffer


def grid(x: Tensor, spec: DataSpec) -> Tensor:
    """Images (N, C, H, W) of levels -> one picture (rows, columns, C) of uint8, in rows as square as they come."""
    count, (channels, height, width) = len(x), spec.shape
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    brightness = x.float() * (255 / ((spec.levels or 256) - 1))
    canvas = torch.full((lines * columns, channels, height + 1, width + 1), 255.0)
    canvas[:count, :, :height, :width] = brightness
    canvas = canvas.reshape(lines, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    picture = canvas.reshape(lines * (height + 1), columns * (width + 1), channels)
    return picture[:-1, :-1].round().to(torch.uint8)
