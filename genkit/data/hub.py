"""Any image data set that Hugging Face `datasets` can read: from the hub, or from a local folder."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from genkit.data.base import DATASETS, Dataset, Split, TensorSplit, held_out
from genkit.errors import GenkitError, choose
from genkit.randomness import keyed_generator
from genkit.types import DataSpec

if TYPE_CHECKING:
    from PIL import Image

LIKELY = 5  # rows of a class that a part without any would have by chance
BLOCK = 256  # rows that are decoded at once


@DATASETS.register("hub")
class Hub(Dataset):
    """Images of a data set on the hub, or of a local folder of images or parquet files; 256 levels.

    path: name on the hub ("uoft-cs/cifar10"), or a folder that `datasets` can read. config: name of a subset.
    image, label: columns; label None for unlabelled data.
    train, test: names of splits, or slices of them ("train[:90%]"). test None: the split of that name or, where there
        is none, one row of five of the others, in a keyed order.
    size: height and width, by resizing and cropping about the centre; None for images of one size, kept.
    channels: 1 (grey) or 3 (RGB).
    limit: at most so many rows of each part, chosen by a fixed key.
    memory: bytes of pixels up to which a part is decoded once into a tensor; a larger part decodes rows when
    they are taken, and its hash is of the encoded images.

    Raises GenkitError for data that cannot be reached or read, an unknown column or split (with the nearest),
    labels that are not class numbers, a test part without a class of the training part, and images of several
    sizes when `size` is not given.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        image: str = "image",
        label: str | None = "label",
        train: str = "train",
        test: str | None = None,
        size: int | None = None,
        channels: Literal[1, 3] = 3,
        limit: int | None = None,
        memory: int = 4 * 2**30,
    ) -> None:
        for key, value, least in (("size", size, 1), ("limit", limit, 1), ("memory", memory, 0)):
            if value is not None and value < least:
                raise GenkitError(f"{key} must be at least {least}, not {value}")
        if channels not in (1, 3):
            raise GenkitError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}")
        self.path, self.config, self.image, self.label = path, config, image, label
        self.parts = {"train": train, "test": test or "test"}
        self.apart = test is not None  # else it may have to be held out
        self.size, self.channels, self.limit, self.memory = size, channels, limit, memory

    @cached_property
    def spec(self) -> DataSpec:  # type: ignore[override]
        rows = self._rows["train"]
        width, height = (self.size, self.size) if self.size else decode(rows, self.image, [0])[0].size
        names = self._class_names(rows)
        return DataSpec(
            f"hub:{self.path}",
            (self.channels, height, width),
            levels=256,
            classes=None if names is None else len(names),
            class_names=names or (),
        )

    def load(self, name: Literal["train", "test"]) -> Split:
        rows, spec = self._rows[name], self.spec
        y = None
        if self.label is not None:
            y = torch.tensor(self._labels(rows))
            if int(y.min()) < 0 or int(y.max()) >= (spec.classes or 0):
                place = f"column '{self.label}' of split '{self.parts[name]}' of '{self.path}'"
                raise GenkitError(
                    f"{place} has labels {int(y.min())}..{int(y.max())}, not 0..{(spec.classes or 0) - 1}"
                )
            if name == "test" and self.apart:
                self._check_classes(y, torch.tensor(self._labels(self._rows["train"])))
        split = ImageSplit(rows, self.image, spec.shape, y, fit=self.size is not None)
        return split.decoded() if len(rows) * spec.dims <= self.memory else split

    @cached_property
    def _rows(self) -> dict[str, Any]:
        """Both parts as `datasets.Dataset`, with images that decode to PIL."""
        import datasets

        train = read_split(self.path, self.config, self.parts["train"])
        if self.apart or "test" in _splits(self.path, self.config):
            parts = {"train": train, "test": read_split(self.path, self.config, self.parts["test"])}
        else:
            orders = held_out(len(train), "hub")
            parts = {
                name: train.select(order.sort().values.tolist())
                for name, order in zip(self.parts, orders, strict=True)
            }
        found = {}
        for name, rows in parts.items():
            for column in (self.image, self.label):
                if column is not None and column not in rows.column_names:
                    error = choose(column, rows.column_names, f"column in '{self.path}'")
                    raise GenkitError(
                        f"{error}{'; label null leaves labels out' if column == self.label else ''}"
                    )
            if not isinstance(rows.features[self.image], datasets.Image):
                raise GenkitError(
                    f"column '{self.image}' of '{self.path}' holds {rows.features[self.image]}, no images"
                )
            found[name] = limited(rows, self.limit, name)
        return found

    def _check_classes(self, test: Tensor, train: Tensor) -> None:
        """Raises GenkitError where the test part has no row of a class of which chance would give it several."""
        share = train[train >= 0].bincount().double() / len(train)
        lacks = (share * len(test) >= LIKELY) & (test.bincount(minlength=len(share))[: len(share)] == 0)
        if bool(lacks.any()):
            name = self.spec.class_names[int(lacks.nonzero()[0])]
            raise GenkitError(
                f"'{self.parts['test']}' of '{self.path}' has no row of class '{name}', as a slice of rows in "
                "the order of their classes has not: without `test` it is the split of that name, or one row of five"
            )

    def _labels(self, rows: Any) -> list[int]:
        """The class of each row, -1 for none."""
        return [-1 if label is None else label for label in rows[self.label][:]]

    def _class_names(self, rows: Any) -> tuple[str, ...] | None:
        import datasets

        if self.label is None:
            return None
        feature = rows.features[self.label]
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        if getattr(feature, "dtype", "").startswith(("int", "uint")):
            return tuple(str(label) for label in range(max(self._labels(rows)) + 1))
        raise GenkitError(f"column '{self.label}' of '{self.path}' holds {feature}, no class numbers")


def read_split(path: str, config: str | None, part: str) -> Any:
    """One split, or a slice of one, as `datasets.Dataset`.

    Raises GenkitError for data that cannot be reached or read, and for an unknown split (with the nearest).
    """
    import datasets

    if path == "pandas":  # the reader of pickles, which can execute code
        raise GenkitError("'pandas' is no data set: give its name on the hub, or a folder")
    try:
        return datasets.load_dataset(path, config, split=part)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        names = [] if isinstance(error, ConnectionError) else _splits(path, config)  # which would wait again
        if names and re.split(r"\W", part)[0] not in names:
            raise choose(part, names, f"split of '{path}'") from error
        where = "is neither a folder here nor to be had from the hub (is the network there?)"
        what = "cannot be read" if names or Path(path).exists() else where
        raise GenkitError(f"the data set '{path}' {what}: {error}") from error


def limited(rows: Any, limit: int | None, name: str) -> Any:
    """At most `limit` of the rows of a `datasets.Dataset`, chosen by a key that has the part's name."""
    if limit is None or limit >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=keyed_generator(0, "hub", "limit", name))
    return rows.select(order[:limit].sort().values.tolist())


def _splits(path: str, config: str | None) -> list[str]:
    """The splits there are, as far as they can be read."""
    import datasets

    try:
        return list(datasets.load_dataset(path, config))
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError):
        return []


class ImageSplit(Split):
    """Rows of a `datasets.Dataset`, decoded when they are taken.

    rows: with PIL images in column `image`. shape: (C, H, W) of what `take` gives. y: (N,) or None.
    fit: whether images are resized and cropped to the shape; without it, another size raises GenkitError.
    """

    def __init__(self, rows: Any, image: str, shape: tuple[int, ...], y: Tensor | None, *, fit: bool) -> None:
        self.rows, self.image, self.shape, self.y, self.fit = rows, image, shape, y, fit
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        index = index.cpu()
        x = self._pixels(index.tolist()).to(self.device).long()
        return x, None if self.y is None else self.y[index].to(self.device)

    def to(self, device: torch.device | str) -> ImageSplit:
        moved = ImageSplit(self.rows, self.image, self.shape, self.y, fit=self.fit)
        moved.device = torch.device(device)
        return moved

    @cached_property
    def hash(self) -> str:
        """Of the encoded images, labels and shape: to decode so many rows for a hash would take hours."""
        import datasets

        digest = hashlib.sha256(repr((self.shape, self.fit, len(self))).encode())
        encoded = self.rows.cast_column(self.image, datasets.Image(decode=False))
        for start in range(0, len(self), BLOCK):
            for row in encoded[start : start + BLOCK][self.image]:
                content = row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
                digest.update(hashlib.sha256(content).digest())
        if self.y is not None:
            digest.update(self.y.numpy().tobytes())
        return digest.hexdigest()

    def decoded(self) -> TensorSplit:
        """All rows as one uint8 tensor."""
        from rich.console import Console
        from rich.progress import track

        x = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        blocks = torch.arange(len(self)).split(BLOCK)
        for block in track(blocks, "decoding images", console=Console(stderr=True), transient=True):
            x[block] = self._pixels(block.tolist())
        return TensorSplit(x, self.y)

    def _pixels(self, index: list[int]) -> Tensor:
        return torch.stack([self._tensor(image) for image in decode(self.rows, self.image, index)])

    def _tensor(self, image: Image.Image) -> Tensor:
        import numpy
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        image = image.convert("L" if channels == 1 else "RGB")
        if self.fit:
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        if image.size != (width, height):
            found = f"{image.size[0]}x{image.size[1]} beside {width}x{height}"
            raise GenkitError(
                f"images of several sizes ({found}): give size={min(*image.size, width, height)}"
            )
        return torch.from_numpy(numpy.array(image)).reshape(height, width, channels).permute(2, 0, 1)


def decode(rows: Any, column: str, index: list[int]) -> list[Image.Image]:
    """The images of some rows. Raises GenkitError for one that is missing, cannot be decoded or is far too large."""
    from PIL import Image

    try:
        images = rows[index][column]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all are Pillow's
        raise GenkitError(
            f"column '{column}' has a damaged image in rows {index[0]}..{index[-1]}: {error}"
        ) from error
    if None in images:
        raise GenkitError(f"column '{column}' has no image in row {index[images.index(None)]}")
    return images
