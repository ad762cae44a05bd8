"""scikit-learn's tables of measurements: real-valued rows that need no download."""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch

from genkit.data.base import DATASETS, Dataset, TensorSplit
from genkit.randomness import keyed_generator
from genkit.types import DataSpec

EVERY = 5  # one row of so many is held out


class Table(Dataset):
    """Rows (D,), each column with mean 0 and standard deviation 1 over the rows to train on.

    The split is fixed: of the rows in a keyed order, every fifth from the first is test. A log-density is in nats of
    the standardized columns.

    labels: whether the class is given, where a table has one.
    """

    def __init__(self, labels: bool = False) -> None:
        x, y, names = self.rows()
        self.labels = labels and names != ()
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.spec = DataSpec(
            DATASETS.name_of(self),
            tuple(self.x.shape[1:]),
            classes=len(names) if self.labels else None,
            class_names=tuple(map(str, names)) if self.labels else (),
        )

    @abc.abstractmethod
    def rows(self) -> tuple[Any, Any, tuple[str, ...]]:
        """Arrays x (N, D) and y (N,), and the names of the classes, if y is one."""

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        order = torch.randperm(len(self.x), generator=keyed_generator(0, "table", self.spec.name))
        held_out = torch.arange(len(order)) % EVERY == 0
        train, part = order[~held_out], order[held_out if name == "test" else ~held_out]
        std, mean = torch.std_mean(self.x[train], 0, correction=0)
        x = ((self.x[part] - mean) / std).float()
        return TensorSplit(x, self.y[part].long() if self.labels else None)


@DATASETS.register("breast_cancer")
class BreastCancer(Table):
    """Shapes of cell nuclei, 30 columns, 2 classes; 455 rows to train on, 114 to test.

    Wolberg, Mangasarian, Street and Street, UCI 1993 (https://archive.ics.uci.edu/dataset/17).
    """

    def rows(self) -> tuple[Any, Any, tuple[str, ...]]:
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer()
        return bunch.data, bunch.target, tuple(bunch.target_names)


@DATASETS.register("wine")
class Wine(Table):
    """Chemical analyses of wines, 13 columns, 3 classes; 142 rows to train on, 36 to test.

    Aeberhard and Forina, UCI 1991 (https://archive.ics.uci.edu/dataset/109).
    """

    def rows(self) -> tuple[Any, Any, tuple[str, ...]]:
        from sklearn.datasets import load_wine

        bunch = load_wine()
        return bunch.data, bunch.target, tuple(bunch.target_names)


@DATASETS.register("diabetes")
class Diabetes(Table):
    """Patients' age, body, blood and disease a year later, 10 columns; 353 rows to train on, 89 to test.

    The column of sex is left out: its two values have no density.
    Efron, Hastie, Johnstone and Tibshirani 2004 (https://doi.org/10.1214/009053604000000067).
    """

    def rows(self) -> tuple[Any, Any, tuple[str, ...]]:
        import numpy
        from sklearn.datasets import load_diabetes

        bunch = load_diabetes(scaled=False)
        kept = [i for i, name in enumerate(bunch.feature_names) if name != "sex"]
        return numpy.c_[bunch.data[:, kept], bunch.target], bunch.target, ()
