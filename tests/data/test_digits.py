"""The digits' split is a fixed, stratified partition of scikit-learn's."""

import torch
from sklearn.datasets import load_digits

from genkit.data import DATASETS


def test_the_parts_are_a_stratified_partition() -> None:
    data = DATASETS.build("digits")
    parts = [data.split(name).take(torch.arange(n)) for name, n in (("train", 1437), ("test", 360))]  # type: ignore[arg-type]
    together = torch.cat([torch.cat([x.flatten(1), y[:, None]], 1) for x, y in parts])  # type: ignore[index]
    original = load_digits()
    rows = torch.cat([torch.from_numpy(original.data).long(), torch.from_numpy(original.target)[:, None]], 1)
    assert sorted(together.tolist()) == sorted(rows.tolist())
    counts = torch.stack([y.bincount() for _, y in parts]).double()  # type: ignore[union-attr]
    assert (counts[1] - counts.sum(0) / 5).abs().max() <= 1


def test_the_split_is_pinned() -> None:
    assert DATASETS.build("digits").hash == "8cd19ed6a330a8373ea96fca1b6a1d2b33fb7becb9485202bc36a36a4752eb60"
