"""Fashion-MNIST, from idx files on disk or from the hub."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genkit.data.base import DATASETS, Dataset, Split, TensorSplit
from genkit.data.hub import Hub
from genkit.errors import GenkitError
from genkit.types import DataSpec

PLACES = ("/usr/share/datasets/fashion-mnist", "data/fashion-mnist")
NAMES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
LARGEST = 2**28  # bytes of an idx file: five times the images to train on
HUB = "zalando-datasets/fashion_mnist"
MENDING = "install Debian's package (apt install dataset-fashion-mnist) or give its folder as root=PATH"


@DATASETS.register("fashion_mnist")
class FashionMNIST(Dataset):
    """Grey images of clothes, 1x28x28 with 256 levels, 10 classes; 60,000 to train, 10,000 to test.

    root: folder with the four idx files (train-images-idx3-ubyte and so on), plain or .gz. Without it, they
    are looked for in /usr/share/datasets/fashion-mnist and data/fashion-mnist, then fetched from the hub
    through `datasets`. The order of rows is that of the publication, whatever they come from.
    n_train: the first so many rows to train on; null for all. Classes are well mixed in any part of them.

    Xiao, Rasul and Vollgraf 2017 (https://arxiv.org/abs/1708.07747).
    Raises GenkitError for a root without the files, a damaged file (named), and when they are nowhere.
    """

    spec = DataSpec("fashion_mnist", (1, 28, 28), levels=256, classes=10, class_names=NAMES)

    def __init__(self, root: str | None = None, n_train: int | None = None) -> None:
        if n_train is not None and not 1 <= n_train <= 60_000:
            raise GenkitError(f"fashion_mnist: n_train must be from 1 to 60000 or null, not {n_train}")
        self.n_train = n_train
        self.root = None if root is None else Path(root)
        if self.root is not None:
            for part in ("train", "test"):
                _files(self.root, part)

    def load(self, name: Literal["train", "test"]) -> Split:
        places = [Path(place) for place in PLACES] if self.root is None else [self.root]
        for place in places:
            if self.root is not None or place.is_dir():
                return self._part(self._read(place, name), name)
        return self._part(_from_hub(name), name)

    def _part(self, split: Split, name: str) -> Split:
        if name != "train" or self.n_train is None:
            return split
        x, y = split.take(torch.arange(min(self.n_train, len(split))))
        return TensorSplit(x.to(torch.uint8), y)

    def _read(self, place: Path, name: str) -> TensorSplit:
        images, labels = _files(place, name)
        x, y = read_idx(images), read_idx(labels)
        if x.shape[1:] != self.spec.shape[1:]:
            raise GenkitError(f"{images} holds arrays of shape {tuple(x.shape)}, not images of 28x28")
        if y.shape != x.shape[:1] or int(y.max()) >= len(NAMES):
            raise GenkitError(
                f"{labels} does not hold a class 0..9 for each of the {len(x)} images of {images}"
            )
        return TensorSplit(x[:, None], y.long())


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, plain or gzip by its first bytes, as a uint8 tensor.

    The format (http://yann.lecun.com/exdb/mnist): two zero bytes, the type (8 for unsigned bytes), the number
    of dimensions, each size as 4 bytes with the most significant first, then the values.
    Raises GenkitError, naming the file, when it cannot be read, is no idx file, or has another length.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(LARGEST + 1)  # a small gzip file can unpack to any size
    except (OSError, EOFError, zlib.error) as error:
        raise GenkitError(f"{path} cannot be read: {error}") from error
    if len(content) > LARGEST:
        raise GenkitError(f"{path} has more than the {LARGEST} bytes that an idx file may have here")
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        raise GenkitError(
            f"{path} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * content[3]
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) < start or len(content) != start + math.prod(sizes):
        wanted = f"{start + math.prod(sizes)} bytes for {'x'.join(map(str, sizes))}"
        raise GenkitError(f"{path} is damaged: it has {len(content)} bytes, not {wanted}; get it again")
    if len(content) == start:
        raise GenkitError(f"{path} holds no values: its sizes are {'x'.join(map(str, sizes))}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


def _files(place: Path, name: str) -> tuple[Path, Path]:
    stem = "train" if name == "train" else "t10k"
    return _file(place, f"{stem}-images-idx3-ubyte"), _file(place, f"{stem}-labels-idx1-ubyte")


def _file(place: Path, stem: str) -> Path:
    for path in (place / stem, place / f"{stem}.gz"):
        if path.is_file():
            return path
    raise GenkitError(f"no {stem} (or {stem}.gz) in {place}: {MENDING}")


def _from_hub(name: Literal["train", "test"]) -> Split:
    try:
        return Hub(HUB, channels=1, size=28).split(name)
    except GenkitError as error:
        raise GenkitError(
            f"Fashion-MNIST is not on disk: {MENDING}. The hub did not give it either: {error}"
        ) from error
