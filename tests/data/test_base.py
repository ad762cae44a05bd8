"""Splits and keyed batches: nothing depends on history, on the number of processes or on loader workers."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from genkit.data import DATASETS, Continuous, Encoded, KeyedBatches, TensorSplit
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import Batch


def split(n: int) -> TensorSplit:
    return TensorSplit(torch.arange(n, dtype=torch.uint8)[:, None, None, None], torch.arange(n) % 3)


def order(batches: KeyedBatches) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]  # type: ignore[union-attr]


def test_a_split_widens_levels_and_keeps_reals() -> None:
    x, y = split(5).take(torch.tensor([4, 0]))
    assert x.dtype == y.dtype == torch.int64
    assert x.flatten().tolist() == [4, 0]
    assert y.tolist() == [1, 0]
    reals, none = TensorSplit(torch.rand(3, 2)).take(torch.tensor([1]))
    assert reals.dtype == torch.float32
    assert none is None


def test_the_hash_is_of_content() -> None:
    assert split(5).hash == split(5).to("cpu").hash
    others = [split(6), TensorSplit(split(5).x), TensorSplit(split(5).x.long(), split(5).y)]
    swapped = TensorSplit(split(5).x, split(5).y.flip(0))  # type: ignore[union-attr]
    assert len({s.hash for s in [split(5), swapped, *others]}) == 5


def test_conditions_stay_real_and_are_finite() -> None:
    y = torch.tensor([[0.5], [1.5]])
    assert torch.equal(TensorSplit(torch.zeros(2, 1), y).take(torch.tensor([1]))[1], y[1:])
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(GenkitError, match="conditions that are not finite"):
            TensorSplit(torch.zeros(2, 1), torch.tensor([[0.5], [wrong]]))


def test_bad_splits_are_refused() -> None:
    with pytest.raises(GenkitError, match="3 rows but 2 labels"):
        TensorSplit(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(GenkitError, match="at least one row"):
        TensorSplit(torch.zeros(0, 2))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 23), part=st.integers(1, 30), world=st.sampled_from([1, 2, 3]), seed=st.integers(0, 9)
)
def test_each_epoch_visits_each_row_once(n: int, part: int, world: int, seed: int) -> None:
    size = part * world
    steps = 3 * n // size + 1
    batches = KeyedBatches(split(n), size, seed=seed, stop=steps)
    rows = order(batches)
    assert len(rows) == steps * size
    for epoch in range(len(rows) // n):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))
    ranks = [KeyedBatches(split(n), size, seed=seed, stop=steps, rank=r, world=world) for r in range(world)]
    for whole, *parts in zip(batches, *ranks, strict=True):
        assert torch.equal(whole.x, torch.cat([p.x for p in parts]))
        assert torch.equal(whole.index, torch.cat([p.index for p in parts]))  # type: ignore[arg-type]


def test_a_resume_gives_the_same_batches() -> None:
    whole = order(KeyedBatches(split(10), 4, seed=1, stop=20))
    resumed = order(KeyedBatches(split(10), 4, seed=1, start=7, stop=20))
    assert resumed == whole[7 * 4 :]


def test_epochs_and_seeds_differ() -> None:
    batches = KeyedBatches(split(100), 100, seed=1, stop=2)
    first, second = (batch.index.tolist() for batch in batches)  # type: ignore[union-attr]
    other = order(KeyedBatches(split(100), 100, seed=2, stop=1))
    assert first != second
    assert first != other
    assert first != list(range(100))


def test_rows_and_labels_stay_together() -> None:
    for batch in KeyedBatches(split(20), 6, seed=0, stop=5):
        assert isinstance(batch, Batch)
        assert torch.equal(batch.x.flatten(), batch.index)  # type: ignore[arg-type]
        assert torch.equal(batch.y, batch.index % 3)  # type: ignore[arg-type, operator]


def test_loader_workers_keep_the_order() -> None:
    batches = KeyedBatches(split(10), 4, seed=1, start=2, stop=9)
    loader = DataLoader(batches, batch_size=None, num_workers=2)
    assert [batch.index.tolist() for batch in loader] == [batch.index.tolist() for batch in batches]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10, "world": 4}, "try 8"),
        ({"batch_size": 0}, "try 1"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank 2"),
        ({"batch_size": 4, "start": 9}, "from 9 to 5"),
    ],
)
def test_bad_batches_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        KeyedBatches(split(10), **{"seed": 0, "stop": 5, **options})  # type: ignore[arg-type]


def test_encoded_rows_are_the_view_of_the_rows() -> None:
    data = DATASETS.build("digits")
    view = Continuous(data.spec)
    index = torch.tensor([5, 3])
    x1, y = Encoded(data.train, view).take(index, keyed_generator(0))
    x, labels = data.train.take(index)
    assert torch.equal(view.decode(x1), x)
    assert torch.equal(y, labels)  # type: ignore[arg-type]
    assert len(Encoded(data.train, view)) == len(data.train)


ELSEWHERE = {"arrays", "hub", "hub_text", "fashion_mnist", "spoken_digits"}  # those need files, or a program
OFFLINE = sorted(set(DATASETS.names()) - ELSEWHERE)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_data_set_is_what_its_spec_says(name: str) -> None:
    data, again = DATASETS.build(name), DATASETS.build(name)
    spec = data.spec
    assert spec.name == name
    for part in ("train", "test"):
        rows = data.split(part)  # type: ignore[arg-type]
        x, y = rows.take(torch.arange(len(rows)))
        assert x.shape == (len(rows), *spec.shape)
        if spec.levels is None:
            assert x.dtype == torch.float32
        else:
            assert x.dtype == torch.int64
            low, high = int(x.min()), int(x.max())
            assert low >= 0
            assert high < spec.levels
            missing = (
                spec.levels // 100
            )  # of many levels those at the ends may be missing, and any letter may
            assert not spec.ordered or max(low, spec.levels - 1 - high) <= missing
        assert (y is None) == (spec.classes is None)
        if y is not None:
            assert y.unique().tolist() == list(range(spec.classes or 0))
    assert data.hash == again.hash
    assert data.train is data.split("train")
    train, test = (data.split(part).take(torch.arange(36))[0] for part in ("train", "test"))  # type: ignore[arg-type]
    assert not (train[:, None] == test[None]).flatten(2).all(-1).any(), "test rows are among the train rows"


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(GenkitError, match="did you mean 'train'"):
        DATASETS.build("digits").split("trian")  # type: ignore[arg-type]


def test_hashes_of_different_data_differ() -> None:
    hashes = [DATASETS.build(name).hash for name in OFFLINE]
    hashes.append(DATASETS.build("moons", seed=1).hash)
    hashes.append(DATASETS.build("moons", labels=True).hash)
    assert all(a != b for a, b in itertools.combinations(hashes, 2))
