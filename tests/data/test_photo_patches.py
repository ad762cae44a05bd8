"""Crops of photographs: the same at each resolution."""

import pytest
import torch
import torch.nn.functional as F

from genkit.data.base import DATASETS
from genkit.errors import GenkitError


def rows(**options: object) -> torch.Tensor:
    data = DATASETS.build({"name": "photo_patches", "n_train": 20, "n_test": 5, **options})
    return data.train.take(torch.arange(20))[0]


def test_the_same_crops_at_each_resolution() -> None:
    small, large = rows(size=16), rows(size=32)
    assert small.shape == (20, 1, 16, 16)
    assert large.shape == (20, 1, 32, 32)
    assert float((F.avg_pool2d(large.float(), 2) - small).abs().max()) <= 1  # rounding


def test_resized_is_the_data_set_of_that_size() -> None:
    data = DATASETS.build({"name": "photo_patches", "n_train": 20, "n_test": 5})
    assert torch.equal(data.resized(32).train.take(torch.arange(20))[0], rows(size=32))
    with pytest.raises(GenkitError, match="'digits' has samples of one size only"):
        DATASETS.build("digits").resized(16)


def test_test_crops_are_of_other_strips() -> None:
    """A photograph in which every pixel knows its column: crops of neither part reach into the other's strips."""
    data = DATASETS.build({"name": "photo_patches", "size": 32, "n_train": 400, "n_test": 400})
    columns = torch.arange(640).expand(2, 427, 640)
    train, test = (data.crops(columns, name)[0].flatten(1) for name in ("train", "test"))
    assert bool((train % 160 < 120).all())
    assert bool((test % 160 >= 120).all())
    assert {int(c) // 160 for c in test[:, 0]} == {0, 1, 2, 3}


def test_grey_is_the_mean_of_the_colours() -> None:
    assert float((rows(color=True).float().mean(1, keepdim=True) - rows()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 24}, "multiple of the size 24"),
        ({"window": 48}, "at most 40"),
        ({"n_test": 0}, "n_test must be"),
    ],
)
def test_crops_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        rows(**options)
