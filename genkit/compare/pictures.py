"""Samples as files: a picture, text, sound, or arrays."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.data.base import Shown
from genkit.errors import GenkitError
from genkit.files import check_text, write_atomically
from genkit.types import DataSpec

SUFFIXES = (".png", ".txt", ".wav", ".npy", ".safetensors")
KINDS = {".png": "pictures", ".txt": "text", ".wav": "sound"}


def writable(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Raises GenkitError, before any work, for a path that cannot be written or ends in none of `suffixes`."""
    if suffixes and path.suffix not in suffixes:
        raise GenkitError(f"{path}: the file's ending must be one of {', '.join(suffixes)}")
    check_text(path)
    try:
        if not path.name or path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        probe.unlink(missing_ok=True)
        probe.touch(exist_ok=False)  # new, so never what a link leads to
        probe.unlink()
    except OSError as error:
        raise GenkitError(f"cannot write {path}: {error.strerror}") from None


def suffix(shown: Shown, spec: DataSpec) -> str:
    """The ending of the file that shows such samples best."""
    if shown.sounds is not None or shown.texts is not None:
        return ".wav" if shown.sounds is not None else ".txt"
    drawn = shown.images is not None or spec.shape == (2,) or (spec.cloud and spec.shape[1] == 3)
    return ".png" if drawn else ".npy"


def save_samples(x: Tensor, shown: Shown, spec: DataSpec, path: Path, **beside: Tensor) -> None:
    """Samples as the data set stores them, and as they are shown -> a file of the kind of its ending.

    .png: a grid of images, points, or clouds in space. .txt: texts, with a line between them. .wav: sounds one after
    the other. .npy, .safetensors: the samples as stored, in the latter with the arrays beside them. Raises GenkitError
    where there is nothing of the kind.
    """
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        import numpy

        numpy.save(buffer, x.numpy())
    elif path.suffix == ".safetensors":
        from safetensors.torch import save

        buffer.write(save({"x": x.contiguous(), **beside}))
    elif path.suffix == ".txt" and shown.texts is not None:
        buffer.write("\n\n---\n\n".join(shown.texts).encode())
    elif path.suffix == ".wav" and shown.sounds is not None and spec.rate is not None:
        from genkit.data.audio import write_wav

        pause = torch.zeros(len(shown.sounds), spec.rate // 4)
        write_wav(buffer, torch.cat((shown.sounds, pause), dim=1).flatten(), spec.rate)
    elif path.suffix == ".png" and shown.images is not None:
        draw_grid(shown.images, shown.levels, buffer)
    elif path.suffix == ".png" and spec.shape == (2,):
        draw_points(x, spec, buffer)
    elif path.suffix == ".png" and spec.cloud and spec.shape[1] == 3:
        draw_clouds(x, buffer)
    else:
        raise GenkitError(
            f"samples of '{spec.name}' are no {KINDS[path.suffix]}: write {suffix(shown, spec)} or .safetensors"
        )
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def draw_grid(images: Tensor, levels: int, buffer: io.BytesIO) -> None:
    from PIL import Image

    scale = max(1, 256 // (8 * images.shape[-1]))
    pixels = grid(images, levels).repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")


def draw_points(x: Tensor, spec: DataSpec, buffer: io.BytesIO) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x[:, 0], x[:, 1], s=4, alpha=0.5, linewidths=0)
    axes.set(title=f"{len(x)} samples of {spec.name}", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    figure.savefig(buffer, dpi=120, format="png")


def draw_clouds(x: Tensor, buffer: io.BytesIO) -> None:
    """The first 64 clouds (N, P, 3), all seen from one side and in one scale, nearer points darker."""
    from matplotlib.figure import Figure

    x = x[:64]
    columns = math.ceil(math.sqrt(len(x)))
    lines = math.ceil(len(x) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.6 * lines))
    figure.subplots_adjust(0, 0, 1, 1, 0, 0)
    for axes, cloud in zip(figure.subplots(lines, columns, squeeze=False).flat, x, strict=False):
        draw_cloud(axes, cloud)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(buffer, dpi=100, format="png")


def draw_cloud(axes: Any, cloud: Tensor, size: float = 4.0) -> None:
    """A cloud (P, 3) in a panel, from a little above, nearer points darker; what is over 1.4 from the middle is cut."""
    turn, tilt = math.radians(30), math.radians(25)
    x, y, z = cloud.double().unbind(1)
    across = math.cos(turn) * x + math.sin(turn) * y
    depth = math.cos(turn) * y - math.sin(turn) * x
    up, near = math.cos(tilt) * z + math.sin(tilt) * depth, math.sin(tilt) * z - math.cos(tilt) * depth
    order = near.argsort()
    axes.scatter(
        across[order], up[order], c=near[order], cmap="Blues", vmin=-2.0, vmax=1.0, s=size, linewidths=0
    )
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])


def grid(x: Tensor, levels: int) -> Tensor:
    """Images (N, C, H, W) of levels -> one picture (rows, columns, C) of uint8, in rows as square as they come."""
    count, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    brightness = x.float() * (255 / (levels - 1))
    canvas = torch.full((lines * columns, channels, height + 1, width + 1), 255.0)
    canvas[:count, :, :height, :width] = brightness
    canvas = canvas.reshape(lines, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    picture = canvas.reshape(lines * (height + 1), columns * (width + 1), channels)
    return picture[:-1, :-1].round().to(torch.uint8)
