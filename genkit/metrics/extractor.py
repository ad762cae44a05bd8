"""The pinned feature extractors: one small classifier for each built-in set of images or sounds, and each size of it.

    load_extractor("digits")                                              the committed weights, checked
    python -m genkit.metrics.extractor digits --out digits.safetensors    trains them again

Weights are safetensors in `weights/`, with what they were trained on in their metadata, and their SHA-256
below. The training is deterministic on one machine and version of torch; elsewhere it gives weights as good,
but with another hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from genkit.data.base import DATASETS, Dataset, KeyedBatches
from genkit.errors import GenkitError, choose
from genkit.types import DataSpec

WEIGHTS = Path(__file__).parent / "weights"


class Pinned(NamedTuple):
    """How an extractor was trained, and the SHA-256 of its weights."""

    data: dict[str, Any]
    epochs: int
    hash: str


PINNED = {
    "digits": Pinned(
        {"name": "digits"}, 40, "65735ec524133d244176e03c1a8e5924bcc4bff9becf1de426653c6723d9be1d"
    ),
    "fashion_mnist": Pinned(
        {"name": "fashion_mnist"}, 6, "495bee175e97de1e2ff82273cd15cde3e7ebd2e2d71c8958c4bd7650d93a7ad3"
    ),
    "photo_patches_1_16_16": Pinned(
        {"name": "photo_patches", "size": 16},
        6,
        "4448b6a070bd87dff3a8d84618dbe21529ed69fcbd18cef3fcc3f4bb863bb775",
    ),
    "photo_patches_1_32_32": Pinned(
        {"name": "photo_patches", "size": 32},
        6,
        "be19d17bbf2d75b7150247463b638087c79cccac356265b4864db8a291f814c8",
    ),
    "spoken_digits": Pinned(
        {"name": "spoken_digits"}, 16, "40637bb5257c4da3d7c379edb7a7824a1237999f20d833b9b86120e6f2f7644c"
    ),
}
BLOCK = 1024  # rows that go through the network at once
WINDOW, HOP, BANDS = 256, 160, 32  # of a sound's spectrogram: samples, and bands of equal width


class Extractor(nn.Module):
    """A convolutional classifier whose last hidden layer gives features.

    rows -> pictures (B, C, H, W) -> 3 x [convolution 3x3, batch norm, GELU], halving the size in the first
    (from 16 pixels on), after the second, and in the third (sounds, and from 32 pixels on) -> linear -> GELU =
    features (B, 48) -> linear = logits (B, classes).

    Images, levels (B, C, H, W), become 2 l / (V - 1) - 1. Sounds (B, T) in [-1, 1] become the logarithm of
    their spectrogram in 32 bands, log(m + 0.01) / 4.

    hash: SHA-256 of the weights file; accuracy: on test data. Both are empty until the weights are loaded.
    """

    num_features = 48

    def __init__(self, shape: tuple[int, ...], levels: int | None, classes: int) -> None:
        super().__init__()
        self.shape, self.levels, self.classes = shape, levels, classes
        self.hash, self.accuracy = "", float("nan")
        picture = self.picture(torch.zeros(2, *shape))
        side = max(picture.shape[2:])
        self.trunk = nn.Sequential(
            *_layer(picture.shape[1], 32, stride=2 if side >= 16 else 1),
            *_layer(32, 48),
            nn.MaxPool2d(2, ceil_mode=True),
            *_layer(48, 32, stride=2 if side >= 32 or not levels else 1),
            nn.Flatten(),
        )
        size = self.trunk(picture).shape[1]
        self.hidden = nn.Linear(size, self.num_features)
        self.head = nn.Linear(self.num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, *shape) as stored -> features (B, 48). Raises GenkitError for rows of another shape."""
        if tuple(x.shape[1:]) != self.shape:
            what = "images" if self.levels else "sounds"
            raise GenkitError(f"this extractor reads {what} {self.shape}, not {tuple(x.shape[1:])}")
        return functional.gelu(self.hidden(self.trunk(self.picture(x.to(self.head.weight.dtype)))))

    def predict(self, x: Tensor) -> Tensor:
        """Rows (B, *shape) as stored -> logits (B, classes)."""
        return self.head(self(x))

    def picture(self, x: Tensor) -> Tensor:
        """What the convolutions see of rows (B, *shape): (B, C, H, W), about in [-1, 1]."""
        if self.levels:
            return 2 * x / (self.levels - 1) - 1
        window = torch.hann_window(WINDOW, device=x.device, dtype=x.dtype)
        spectrum = torch.stft(x, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
        bands = spectrum[:, :-1].abs().unflatten(1, (BANDS, -1)).mean(2)
        return torch.log(bands + 0.01)[:, None] / 4

    def moved(self, x: Tensor) -> Tensor:
        """Training rows, all moved by up to a pixel, or by up to 40 ms at 8 kHz."""
        if self.levels:
            down, right = torch.randint(-1, 2, (2,)).tolist()
            return x.roll((down, right), (2, 3))
        return x.roll(int(torch.randint(-2 * HOP, 2 * HOP + 1, ())), 1)


def _layer(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.GELU()]


def pinned(spec: DataSpec) -> str | None:
    """The extractor for such data: that of their name, or of their name and shape; None where there is none."""
    names = (spec.name, "_".join([spec.name, *map(str, spec.shape)]))
    return next((name for name in names if name in PINNED), None)


def pinned_hash(spec: DataSpec) -> str | None:
    """The SHA-256 of that extractor's weights."""
    name = pinned(spec)
    return None if name is None else PINNED[name].hash


def load_extractor(name: str) -> Extractor:
    """The pinned extractor of a data set, frozen and in evaluation mode.

    Raises GenkitError for a data set without one (its metrics are those that need none), and for a weights
    file that is missing or not the pinned one.
    """
    from safetensors import safe_open
    from safetensors.torch import load

    if name not in PINNED:
        error = choose(name, PINNED, "feature extractor for the data set")
        raise GenkitError(f"{error}; sliced_wasserstein, energy_distance and nearest need none")
    path = WEIGHTS / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GenkitError(f"the weights of the extractor for '{name}' cannot be read: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != PINNED[name].hash:
        raise GenkitError(
            f"{path} is not the pinned extractor: SHA-256 {found}, not {PINNED[name].hash}; restore it"
        )
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["extractor"])
    extractor = Extractor(tuple(about["shape"]), about["levels"], about["classes"])
    extractor.load_state_dict(load(content))
    extractor.hash, extractor.accuracy = found, about["accuracy"]
    return extractor.eval().requires_grad_(False)


def train_extractor(data: Dataset, epochs: int) -> Extractor:
    """Trains a classifier on the train part; `accuracy` is on the test part. A function of its arguments.

    AdamW with one cycle of the learning rate, rows moved a little (`Extractor.moved`), cross-entropy with labels
    smoothed by 0.05. Raises GenkitError for data that are neither labelled images with levels nor sounds.
    """
    from rich.console import Console
    from rich.progress import track

    spec = data.spec
    image, sound = spec.image and spec.levels is not None, spec.rate is not None and spec.levels is None
    if spec.classes is None or not (image or sound):
        raise GenkitError(
            f"an extractor is trained on labelled images with levels, or on sounds, which '{spec.name}' are not"
        )
    torch.manual_seed(0)
    extractor = Extractor(spec.shape, spec.levels, spec.classes)
    size = 128
    steps = epochs * len(data.train) // size
    optimizer = torch.optim.AdamW(extractor.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    batches = KeyedBatches(data.train, size, seed=0, stop=steps)
    for batch in track(batches, f"extractor for {data.spec.name}", console=Console(stderr=True)):
        assert batch.y is not None
        logits = extractor.predict(extractor.moved(batch.x))
        loss = functional.cross_entropy(logits, batch.y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    extractor.eval().requires_grad_(False)
    extractor.accuracy = _accuracy(extractor, data)
    return extractor


def _accuracy(extractor: Extractor, data: Dataset) -> float:
    right = 0
    for rows in torch.arange(len(data.test)).split(BLOCK):
        x, y = data.test.take(rows)
        assert y is not None
        right += int((extractor.predict(x).argmax(1) == y).sum())
    return right / len(data.test)


def save_extractor(extractor: Extractor, data: Dataset, path: Path) -> str:
    """Writes weights and metadata as safetensors, and gives the SHA-256 to pin."""
    from safetensors.torch import save

    about = {
        "accuracy": extractor.accuracy,
        "classes": extractor.classes,
        "data": data.spec.name,
        "data_hash": data.hash,
        "levels": extractor.levels,
        "shape": list(extractor.shape),
    }
    # one key, because safetensors writes several in no fixed order
    content = save(extractor.state_dict(), metadata={"extractor": json.dumps(about, sort_keys=True)})
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """Trains the extractor of one data set; prints its test accuracy and the hash to pin."""
    parser = argparse.ArgumentParser(prog="python -m genkit.metrics.extractor", description=main.__doc__)
    parser.add_argument("data", choices=sorted(PINNED))
    parser.add_argument("--out", type=Path, help="the weights file (default: the committed one)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    chosen = PINNED[options.data]
    data = DATASETS.build(chosen.data)
    extractor = train_extractor(data, chosen.epochs)
    path = options.out or WEIGHTS / f"{options.data}.safetensors"
    digest = save_extractor(extractor, data, path)
    print(f"{path}: test accuracy {extractor.accuracy:.4f}, SHA-256 {digest}")


if __name__ == "__main__":
    main()
