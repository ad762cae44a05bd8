"""Class accuracy of known samples."""

import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS
from genkit.metrics.extractor import load_extractor
from genkit.types import DataSpec


def test_real_rows_have_the_classifiers_own_accuracy():
    data = DATASETS.build("digits")
    metric = METRICS.build("accuracy", data.spec)
    for index in torch.arange(360).split(100):
        metric.update(*data.test.take(index))
    assert metric.compute().item() == pytest.approx(load_extractor("digits").accuracy)
    metric.reset()
    x, y = data.test.take(torch.arange(360))
    metric.update(x, (y + 1) % 10)
    assert metric.compute() < 0.02


def test_data_without_an_extractor_say_which_have_one():
    with pytest.raises(GenkitError, match="one of: digits, fashion_mnist"):
        METRICS.build("accuracy", DataSpec("hub:x", (3, 8, 8), levels=256))
