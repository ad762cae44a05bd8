"""Tables: their rows, how they are standardized, and that what is held out is not seen."""

from __future__ import annotations

import numpy
import pytest
import sklearn.datasets
import torch

from genkit.data.base import DATASETS

SIZES = {"breast_cancer": (455, 114, 30, 2), "wine": (142, 36, 13, 3), "diabetes": (353, 89, 10, None)}


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_those_of_scikit_learn_standardized_by_the_rows_to_train_on(name: str) -> None:
    data = DATASETS.build({"name": name, "labels": True})
    *sizes, columns, classes = SIZES[name]
    assert [len(data.train), len(data.test)] == sizes
    assert data.spec.shape == (columns,)
    assert data.spec.classes == classes
    assert len(data.spec.class_names) == (classes or 0)
    x = data.train.x.double()
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-5
    raw = getattr(sklearn.datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    first = raw.data[:, 0]  # up to a scale and a shift the same values, each as often
    ours = numpy.sort(torch.cat([data.train.x, data.test.x])[:, 0].double().numpy())
    slope, shift = numpy.polyfit(numpy.sort(first), ours, 1)
    assert numpy.abs(slope * numpy.sort(first) + shift - ours).max() < 1e-5


def test_a_table_has_no_classes_unless_they_are_asked_for() -> None:
    assert DATASETS.build("wine").spec.classes is None
    assert DATASETS.build("wine").train.y is None
    assert DATASETS.build({"name": "wine", "labels": True}).train.y.unique().tolist() == [0, 1, 2]
    assert DATASETS.build({"name": "diabetes", "labels": True}).train.y is None
