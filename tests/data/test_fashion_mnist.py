"""The idx parser on generated files, good and damaged; the real files where they are."""

import gzip
from pathlib import Path

import pytest
import torch

from genkit.data import DATASETS
from genkit.data import fashion_mnist as module
from genkit.data.fashion_mnist import PLACES, read_idx
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator


def idx(*sizes, values=None):
    count = int(torch.tensor(sizes).prod())
    values = torch.randint(256, (count,), generator=keyed_generator(0)) if values is None else values
    header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    return header + bytes(values.tolist())


@pytest.fixture
def root(tmp_path):
    """Both parts with few images: train gzipped, test plain."""
    for stem, n in (("train", 12), ("t10k", 5)):
        for name, content in (
            (f"{stem}-images-idx3-ubyte", idx(n, 28, 28)),
            (f"{stem}-labels-idx1-ubyte", idx(n, values=torch.arange(n) % 10)),
        ):
            if stem == "train":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (tmp_path / name).write_bytes(content)
    return tmp_path


def test_values_come_back(tmp_path):
    values = torch.arange(24)
    for name, content in (
        ("a", idx(2, 3, 4, values=values)),
        ("b", gzip.compress(idx(2, 3, 4, values=values))),
    ):
        (tmp_path / name).write_bytes(content)
        assert torch.equal(read_idx(tmp_path / name), values.reshape(2, 3, 4).to(torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\0\0", "begins with 00 00"),
        (b"PK\x03\x04 something", "begins with 50 4b 03 04"),
        (idx(4)[:2] + b"\x0d" + idx(4)[3:], "begins with 00 00 0d 01"),
        (idx(3, 28, 28)[:-1], "it has 2367 bytes, not 2368 bytes for 3x28x28"),
        (idx(3, 28, 28) + b"x", "it has 2369 bytes"),
        (idx(3, 28, 28)[:9], "damaged"),
        (gzip.compress(idx(3, 28, 28))[:-20], "cannot be read"),
        (b"\x1f\x8bnot gzip at all", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(GenkitError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_root_is_read(root):
    data = DATASETS.build("fashion_mnist", root=str(root))
    assert (len(data.train), len(data.test)) == (12, 5)
    x, y = data.train.take(torch.arange(12))
    expected = torch.randint(256, (12 * 784,), generator=keyed_generator(0)).reshape(12, 1, 28, 28)
    assert torch.equal(x, expected)
    assert y.tolist() == [*range(10), 0, 1]


def test_a_root_without_the_files_says_where_to_get_them(root):
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(GenkitError, match=r"no train-labels-idx1-ubyte .*apt install dataset-fashion-mnist"):
        DATASETS.build("fashion_mnist", root=str(root))


def test_files_that_do_not_fit_each_other_are_named(root):
    labels = root / "t10k-labels-idx1-ubyte"
    for content in (idx(4, values=torch.arange(4)), idx(5, values=torch.arange(5) + 8)):
        labels.write_bytes(content)
        with pytest.raises(GenkitError, match=r"t10k-labels-idx1-ubyte does not hold a class 0..9"):
            DATASETS.build("fashion_mnist", root=str(root)).split("test")
    (root / "t10k-images-idx3-ubyte").write_bytes(idx(5, 8, 8))
    with pytest.raises(GenkitError, match=r"shape \(5, 8, 8\), not images of 28x28"):
        DATASETS.build("fashion_mnist", root=str(root)).split("test")


def test_nowhere_to_be_had(monkeypatch, tmp_path):
    import datasets

    def unreachable(*_args, **_options):
        raise ConnectionError("no network")

    monkeypatch.setattr(module, "PLACES", (str(tmp_path / "none"),))
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(GenkitError, match=r"apt install dataset-fashion-mnist.*root=PATH.*no network"):
        DATASETS.build("fashion_mnist").split("train")


@pytest.mark.skipif(not Path(PLACES[0]).is_dir(), reason="Fashion-MNIST is not installed here")
def test_the_real_files():
    data = DATASETS.build("fashion_mnist")
    for name, n in (("train", 60_000), ("test", 10_000)):
        split = data.split(name)
        assert split.x.shape == (n, 1, 28, 28)
        assert split.y.bincount().tolist() == [n // 10] * 10
    share = data.train.x.flatten().bincount(minlength=256) / data.train.x.numel()
    levels = torch.arange(256) / 255
    mean = (share * levels).sum()
    assert mean.item() == pytest.approx(0.2860, abs=1e-4)  # the figures everybody normalizes by
    assert (share * (levels - mean).square()).sum().sqrt().item() == pytest.approx(0.3530, abs=1e-4)
