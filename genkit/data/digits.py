"""scikit-learn's handwritten digits: 1,797 real images that need no download."""

from __future__ import annotations

from typing import Literal

import torch

from genkit.data.base import DATASETS, Dataset, TensorSplit
from genkit.randomness import keyed_generator
from genkit.types import DataSpec


@DATASETS.register("digits")
class Digits(Dataset):
    """Handwritten digits, 1x8x8 with 17 grey levels, 10 classes; 1,437 to train, 360 to test.

    The split is fixed and stratified: of the rows in a keyed order, sorted by class, every fifth from the
    first is test (so each class gives a fifth of itself, to one row). Both parts stay in the keyed order.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998
    (https://archive.ics.uci.edu/dataset/80), the test part, as shipped with scikit-learn.
    """

    spec = DataSpec("digits", (1, 8, 8), levels=17, classes=10, class_names=tuple("0123456789"))

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
        y = torch.from_numpy(bunch.target).long()
        order = torch.randperm(len(y), generator=keyed_generator(0, "digits", "split"))
        x, y = x[order], y[order]
        test = torch.zeros(len(y), dtype=torch.bool)
        test[y.argsort(stable=True)[::5]] = True
        rows = test if name == "test" else ~test
        return TensorSplit(x[rows], y[rows])
