"""Rows of one's own, from a file of arrays or a table."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from genkit.data.base import DATASETS, Dataset, TensorSplit, held_out, standardized
from genkit.errors import GenkitError, choose, within
from genkit.files import read_bytes
from genkit.types import DataSpec

FORMS = (".csv", ".npy", ".npz", ".safetensors")
LABELS = ("label", "labels", "class", "classes", "target", "targets", "kind")  # names that y often has


class Content(NamedTuple):
    spec: DataSpec
    train: TensorSplit
    test: TensorSplit


@DATASETS.register("arrays")
class Arrays(Dataset):
    """Rows of a file of one's own: arrays (.npy, .npz, .safetensors), or a table with a line of names (.csv).

    file: with an array `x` of vectors (N, D), images (N, C, H, W) or clouds of points (N, P, D). Of a table x is all
        columns but y, which must be numbers.
    test: a file of the same form with the rows that are held out; without it, one row of five in a keyed order.
    y: the array, or column, of what goes with each row: classes, which are words or whole numbers from 0 on, or
        real-valued conditions (N,) or (N, K). Where it is not named, `y` if there is one; null for none.
    levels: the number of levels of values that are whole numbers from 0 on, for likelihoods of these and for discrete
        objectives. Images of bytes have 256; all else without it is real-valued.
    standardize: real values have mean 0 and standard deviation 1 over the rows to train on, each column, channel or
        coordinate, and so have samples; densities are of these. Else values are as they are, and should be of about
        that size.

    Raises GenkitError for files that cannot be read, and arrays that are none of this.
    """

    def __init__(
        self,
        file: str,
        test: str | None = None,
        y: str | None = "y",
        levels: int | None = None,
        standardize: bool = False,
    ) -> None:
        if levels is not None and levels < 2:
            raise GenkitError(f"arrays: levels must be at least 2, not {levels}")
        self.files = [Path(path) for path in (file, test) if path is not None]
        self.y, self.levels, self.standardize = y, levels, standardize

    @property
    def spec(self) -> DataSpec:  # type: ignore[override]
        return self.content.spec

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        return self.content.train if name == "train" else self.content.test

    @cached_property
    def content(self) -> Content:
        with within(" and ".join(map(str, self.files))):
            found = [read_rows(path, self.y) for path in self.files]
            try:
                x = numpy.concatenate([x for x, _ in found])
                labels = [y for _, y in found if y is not None]
                y = numpy.concatenate(labels) if labels else None
            except ValueError:
                raise GenkitError("their rows differ in shape") from None
            if y is not None and len(y) != len(x):
                raise GenkitError(f"x has {len(x)} rows, and y {len(y)}")
            sizes = [len(x) for x, _ in found]
            train, test = held_out(len(x), "arrays") if len(found) == 1 else torch.arange(len(x)).split(sizes)
            values, levels = self.values(x)
            if levels is None:
                values = self.scaled(values, train)
            known, kinds = meaning(y)
            spec = DataSpec(self.files[0].stem, tuple(values.shape[1:]), levels=levels, **kinds)
            parts = (TensorSplit(values[i], None if known is None else known[i]) for i in (train, test))
            return Content(spec, *parts)

    def values(self, x: Any) -> tuple[Tensor, int | None]:
        """x as a tensor, and the number of its levels, None where it is real-valued."""
        if x.dtype.kind not in "fiub" or x.dtype.itemsize > 8 or x.ndim not in (2, 3, 4) or not x.size:
            raise GenkitError(
                f"x is {x.dtype} of shape {x.shape}: rows are numbers (N, D), (N, P, D) or (N, C, H, W)"
            )
        if (
            x.ndim == 4
            and x.shape[2] != x.shape[3]
            and x.shape[3] in (1, 3, 4)
            and x.shape[1] not in (1, 3, 4)
        ):
            raise GenkitError(f"x of shape {x.shape} looks like (N, H, W, C): channels come first")
        levels = 256 if self.levels is None and x.dtype == numpy.uint8 and x.ndim == 4 else self.levels
        if levels is None:
            if not numpy.isfinite(x).all():
                row = int(numpy.argwhere(~numpy.isfinite(x))[0][0])
                raise GenkitError(f"row {row} of x has a value that is missing, or not finite")
            return torch.from_numpy(x if x.dtype.kind == "f" else x.astype(numpy.float64)), None
        if x.dtype.kind == "f" or x.min() < 0 or x.max() >= levels:
            raise GenkitError(
                f"levels are whole numbers from 0 to {levels - 1}; x is {x.dtype}, {x.min()} to {x.max()}"
            )
        return torch.from_numpy(x.astype(numpy.uint8 if levels <= 256 else numpy.int64)), levels

    def scaled(self, x: Tensor, train: Tensor) -> Tensor:
        if self.standardize:
            return standardized(x, train).float()
        size = float(x[train].square().mean().sqrt())
        if not 0.05 < size < 20:
            warnings.warn(
                f"the values of {self.files[0]} are of size {size:.3g}, and models expect about 1: "
                "take standardize=true",
                stacklevel=2,
            )
        return x.float()


def read_rows(path: Path, y: str | None) -> tuple[Any, Any]:
    """The arrays x and y of a file, y None where there is none."""
    if path.suffix not in FORMS:
        raise choose(path.suffix, FORMS, "form of a file of arrays,")
    content, names = io.BytesIO(read_bytes(path, "the file of arrays")), list[str]()
    try:
        if path.suffix == ".csv":
            held, names = of_table(content, y)
        elif path.suffix == ".npy":
            held = {"x": numpy.load(content, allow_pickle=False)}
        elif path.suffix == ".npz":
            with numpy.load(content, allow_pickle=False) as arrays:
                names = list(arrays)
                held = {key: arrays[key] for key in names if key in ("x", y)}
        else:
            from safetensors.numpy import load

            held = load(content.getvalue())
    except GenkitError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise GenkitError(f"it cannot be read: {' '.join(str(error).split())}") from None
    for name in ("x", y):
        if name not in (None, "y", *held):
            raise choose(name, names or held, "array")
    unnamed(names or held, y)
    return held["x"], None if y is None else held.get(y)


def unnamed(names: Iterable[str], y: str | None) -> None:
    """Warns of what is likely to be y where that is not named."""
    names = list(names)
    for name in names if y == "y" and y not in names else ():
        if name.lower() in LABELS:
            warnings.warn(
                f"'{name}' is there, and y is not named: y={name} says that it goes with each row, y=null that it "
                "does not",
                stacklevel=2,
            )


def of_table(content: io.BytesIO, y: str | None) -> tuple[dict[str, Any], list[str]]:
    """The column y and all others as x, and the names of all."""
    import pandas

    table = pandas.read_csv(content)
    numbers = pandas.to_numeric(table.columns, errors="coerce")
    if numbers.notna().all() and list(numbers) != list(range(len(numbers))):
        raise GenkitError("the first line of a table has the names of its columns, and here it is of numbers")
    for name in table:
        if str(name).startswith("Unnamed: "):
            raise GenkitError(
                "a column has no name: write the table without its index (index=False), or name it"
            )
        if table[name].isna().any():
            raise GenkitError(
                f"line {int(table[name].isna().argmax()) + 2} has no value in the column '{name}'"
            )
        if name != y and table[name].dtype.kind not in "fiub":
            raise GenkitError(f"the column '{name}' is not of numbers: leave it out, or name it as y")
    held = {str(name): table[name].to_numpy() for name in table if name == y}
    if y not in (None, "y", *held):
        raise choose(y, map(str, table), "column")
    if y == "y" and "y" in held and held["y"].dtype.kind == "f":
        warnings.warn("the column 'y' is a condition of each row; y=null makes it a value of x", stacklevel=2)
    return {**held, "x": table.drop(columns=list(held)).to_numpy()}, list(map(str, table))


def meaning(y: Any) -> tuple[Tensor | None, dict[str, Any]]:
    """y as a split has it, and what a spec says of it."""
    if y is None:
        return None, {}
    if y.ndim not in (1, 2) or y.dtype.kind not in ("fiubUSO" if y.ndim == 1 else "fiub"):
        raise GenkitError(f"y is {y.dtype} of shape {y.shape}: classes are (N,), conditions (N,) or (N, K)")
    if y.dtype.kind == "f" or y.ndim == 2:
        known = torch.from_numpy(y.astype(numpy.float32)).reshape(len(y), -1)
        return known, {"condition": known.shape[1]}
    names, number = numpy.unique(y, return_inverse=True)
    if y.dtype.kind in "iub" and names.tolist() != list(range(len(names))):
        raise GenkitError(
            f"y is {names[0]} to {names[-1]}, of {len(names)} numbers: classes go from 0 on without gaps; conditions "
            "are real numbers, such as 3.0"
        )
    return torch.from_numpy(number), {"classes": len(names), "class_names": tuple(map(str, names))}
