"""scikit-learn's tables of measurements: real-valued rows that need no download."""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch

from genkit.data.base import DATASETS, Dataset, TensorSplit, held_out, standardized
from genkit.types import DataSpec


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
        train, test = held_out(len(self.x), "table", self.spec.name)
        part = train if name == "train" else test
        x = standardized(self.x, train)[part].float()
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
