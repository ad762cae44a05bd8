"""Crops of scikit-learn's two photographs, at any resolution."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.data.base import DATASETS, Dataset, TensorSplit
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import DataSpec

PHOTOS = ("china", "flower")
STRIP = 40  # pixels; every fourth strip of a photograph is test


@DATASETS.register("photo_patches")
class PhotoPatches(Dataset):
    """Random crops of two photographs (427x640), 256 levels, of class china or flower.

    A crop is a square of `window` pixels, averaged down to size x size. Where the crops are depends on the seed, the
    number and the window alone: the data set at another size is of the same crops at another resolution. Crops to train
    on and crops to test on are of different strips of the photographs, so that none overlap.

    size: side of an image; it must divide the window. window: side of a crop, up to 40. color: 3 channels, or grey.
    n_train, n_test: crops of the two parts. seed: of both.
    Raises GenkitError for a size or window that does not fit, and for numbers that are not positive.
    """

    def __init__(
        self,
        size: int = 16,
        window: int = 32,
        color: bool = False,
        n_train: int = 8_000,
        n_test: int = 1_000,
        seed: int = 0,
    ) -> None:
        for key, n in (("size", size), ("window", window), ("n_train", n_train), ("n_test", n_test)):
            if n < 1:
                raise GenkitError(f"photo_patches: {key} must be at least 1, not {n}")
        if window > STRIP or window % size:
            raise GenkitError(
                f"photo_patches: window {window} must be a multiple of the size {size}, and at most {STRIP}"
            )
        self.window, self.color, self.seed = window, color, seed
        self.sizes = {"train": n_train, "test": n_test}
        shape = (3 if color else 1, size, size)
        self.spec = DataSpec("photo_patches", shape, levels=256, classes=len(PHOTOS), class_names=PHOTOS)

    def resized(self, size: int) -> PhotoPatches:
        n_train, n_test = self.sizes.values()
        return PhotoPatches(size, self.window, self.color, n_train, n_test, self.seed)

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        from sklearn.datasets import load_sample_image

        photos = torch.stack([torch.from_numpy(load_sample_image(f"{p}.jpg").copy()) for p in PHOTOS])
        x, y = self.crops(photos, name)
        return TensorSplit(torch.cat([self.averaged(part) for part in x.split(1000)]), y)

    def crops(self, photos: Tensor, name: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Photographs (2, H, W, ...) -> crops (N, window, window, ...) of one part, and of which they are (N,)."""
        generator = keyed_generator(self.seed, "photo_patches", name)
        n = self.sizes[name]
        y = torch.randint(len(PHOTOS), (n,), generator=generator)
        quarter = torch.randint(4, (n,), generator=generator)
        down, across = torch.rand(2, n, generator=generator)
        width, first = (STRIP, 3 * STRIP) if name == "test" else (3 * STRIP, 0)
        top = (down * (photos.shape[1] - self.window + 1)).long()
        left = 4 * STRIP * quarter + first + (across * (width - self.window + 1)).long()
        rows, columns = (start[:, None] + torch.arange(self.window) for start in (top, left))
        return photos[y[:, None, None], rows[:, :, None], columns[:, None, :]], y

    def averaged(self, crops: Tensor) -> Tensor:
        """(B, window, window, 3) of uint8 -> (B, C, size, size) of uint8."""
        x = crops.permute(0, 3, 1, 2).float()
        if not self.color:
            x = x.mean(1, keepdim=True)
        return F.avg_pool2d(x, self.window // self.spec.shape[-1]).round().to(torch.uint8)
