"""The judge: every metric in the registry is fed, references are filled once, floors are at equal counts."""

import math

import pytest
import torch
from torch import Tensor

from genkit.data import DATASETS, Dataset, TensorSplit
from genkit.errors import GenkitError
from genkit.metrics import METRICS, Judge, in_turn, judge
from genkit.metrics.base import DataMetric, TwoSample
from genkit.types import DataSpec, LogProb


class Line(Dataset):
    """Whole numbers on the line."""

    spec = DataSpec("line", (1,))

    def load(self, name):
        return TensorSplit(torch.arange(40.0 if name == "train" else 10.0)[:, None])


@pytest.fixture
def metrics():
    """Metrics of a test are gone after it."""
    names = METRICS.names()
    yield METRICS
    for name in set(METRICS.names()) - set(names):
        del METRICS._entries[name]


def test_floors_are_at_equal_counts_and_keyed(metrics):
    seen = []

    @metrics.register("counting")
    class Counting(TwoSample):
        def distance(self, x, y):
            seen.append((x, y))
            return (x.sort(0).values - y.sort(0).values).square().mean()

    first = Judge(Line()).floors()
    ((x, y),) = seen
    assert len(x.unique()) == 10
    assert sorted(y.flatten().tolist()) == list(range(10))
    expected = (x.flatten().sort().values - torch.arange(10.0)).square().mean().sqrt()
    assert first["sliced_wasserstein"] == pytest.approx(expected.item())
    assert first == Judge(Line()).floors()
    assert first != Judge(Line(), seed=1).floors()
    assert len(Judge(Line(), 4).floors()) == len(first)
    assert [len(side) for side in seen[-1]] == [4, 4]


class Classes(Line):
    """The same, of twenty classes."""

    spec = DataSpec("classes", (1,), classes=20, class_names=tuple(map(str, range(20))))

    def load(self, name):
        x = torch.arange(80.0 if name == "train" else 20.0)[:, None]
        return TensorSplit(x, x[:, 0].long() % 20)


def test_a_floor_has_rows_of_the_classes_of_the_test_rows():
    """Metrics that go class by class need some of each."""
    floors = Judge(Classes(), 20).floors()
    assert "class_wasserstein" in floors
    x, y = Judge(Classes(), 20)._of_classes(torch.arange(20))
    assert y.sort().values.tolist() == [*range(20)]
    assert torch.equal(x[:, 0].long() % 20, y)


class Given(Line):
    """The same, each number with its negative as a condition; test rows lie beside the training rows."""

    spec = DataSpec("given", (1,), condition=1)

    def load(self, name):
        x = torch.arange(40.0)[:, None] if name == "train" else torch.arange(3.0, 13.0)[:, None] + 0.25
        return TensorSplit(x, -x)


def test_samples_have_the_conditions_of_the_rows_they_are_compared_with():
    judge = Judge(Given(), 6)
    rows, y = judge.reference
    assert y is judge.conditions is not None
    assert torch.equal(y, -rows)
    assert judge.samples(rows, y)["joint_wasserstein"] == 0
    assert judge.floors()["joint_wasserstein"] == pytest.approx(0.25)  # real rows of the nearest conditions
    assert judge.floors()["wasserstein"] == pytest.approx(0.25)
    assert "joint_wasserstein" not in judge.samples(rows)
    assert Judge(Line()).conditions is None


def test_samples_have_the_classes_of_the_rows_they_are_compared_with_in_turn():
    data = DATASETS.build("breast_cancer", labels=True)
    x, y = Judge(data, 40).reference
    rows, real = Judge(data, 40)._rows("test", 40)
    assert y is not None
    assert real is not None
    assert {(*row, label) for row, label in zip(x.tolist(), y.tolist(), strict=True)} == {
        (*row, label) for row, label in zip(rows.tolist(), real.tolist(), strict=True)
    }
    assert y.bincount().tolist() == real.bincount().tolist() == [15, 25]
    assert y[:30].tolist() == 15 * [0, 1]
    assert in_turn(torch.tensor([2, 0, 0, 1, 2])).tolist() == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("count", [11, 1, -3])
def test_more_rows_than_there_are_real_ones_are_refused(count):
    with pytest.raises(GenkitError, match=rf"from 2 to 10, as many as 'line' has.*not {count}"):
        Judge(Line(), count)


def test_samples_are_fed_to_every_metric_by_what_it_reads(metrics):
    @metrics.register("of_labels")
    class OfLabels(DataMetric):
        reads = "labels"
        higher_is_better = True

        def __init__(self, spec):
            super().__init__()
            self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

        def update(self, x, y):
            self.count += (x.flatten() == y).sum()

        def compute(self):
            return self.count

    judge = Judge(Line(), 5)
    x = torch.arange(5.0)[:, None]
    assert judge.samples(x).keys() == {"sliced_wasserstein", "wasserstein", "energy_distance", "nearest"}
    found = judge.samples(x, torch.arange(5))
    assert found["of_labels"] == 5
    assert found["nearest"] == 0
    about = {entry["name"]: entry for entry in judge.about()}
    assert about["of_labels"] == {"name": "of_labels", "words": "of labels", "lower": False}
    assert about["nearest"]["lower"] is None
    assert next(iter(about)) == "sliced_wasserstein"


def test_a_distance_may_ask_to_be_the_one_that_judges(metrics):
    @metrics.register("first")
    class First(TwoSample):
        priority = 9

        def distance(self, x, y):
            return x.mean()

    assert Judge(Line()).about()[0] == {"name": "first", "words": "first", "lower": True}


def test_references_are_filled_once(metrics):
    filled = []

    @metrics.register("slow")
    class Slow(TwoSample):
        def update(self, x, real):
            filled.append(real)
            super().update(x, real)

        def distance(self, x, y):
            return x.mean() - y.mean()

    judge = Judge(Line())
    a, b = (judge.samples(torch.full((10, 1), value)) for value in (2.0, 7.0))
    judge.floors()
    assert filled.count(True) == 1
    assert b["slow"] - a["slow"] == 5
    assert b == Judge(Line()).samples(torch.full((10, 1), 7.0))


def test_training_rows_are_taken_and_held_once_a_part_at_a_time(monkeypatch):
    """As bytes where they are levels, and not again for each model that is judged."""
    data = DATASETS.build("digits")
    samples = data.train.take(torch.arange(40))[0].flip(-1)
    whole = Judge(data, 40).samples(samples)
    monkeypatch.setattr(judge, "ROWS", 100)
    asked, take = [], TensorSplit.take
    monkeypatch.setattr(
        TensorSplit, "take", lambda self, index: asked.append(len(index)) or take(self, index)
    )
    found = Judge(data, 40)
    assert found.samples(samples) == whole
    held = found._filled["nearest"].train_rows
    assert max(asked) == 100
    assert sum(map(len, held)) == len(data.train)
    assert {rows.dtype for rows in held} == {torch.uint8}
    copy = judge.copied(found._filled["nearest"])
    assert all(a is b for a, b in zip(copy.train_rows, held, strict=True))
    copy.update(samples, "sample")
    assert (copy.sums[1, 0], found._filled["nearest"].sums[1, 0]) == (40, 0)


def test_likelihoods_and_paths_are_plain_numbers():
    judge = Judge(Line())
    found = judge.log_probs(LogProb(torch.zeros(3), "exact") for _ in range(2))
    assert found["bits_per_dim"]["value"] == 0
    assert found["bits_per_dim"]["kind"] == "exact"
    assert not any(isinstance(value, Tensor) for value in found["bits_per_dim"].values())
    paths = judge.trajectories([torch.zeros(3, 1), torch.ones(3, 1)], torch.tensor([0.0, 1.0]))
    energies = {"path_energy": 1.0, "normalized_path_energy": 0.0}
    assert paths == {"curvature": 0.0, "transport_cost": 1.0} | energies


def test_real_images_are_of_their_class():
    floors = Judge(DATASETS.build("digits"), 200).floors()
    assert floors["accuracy"] > 0.95
    numbers = {"sliced_wasserstein", "energy_distance", "nearest"}
    assert floors.keys() == numbers | {"frechet", "accuracy", "precision", "recall"}


class Letters(Dataset):
    """Rows of two letters."""

    spec = DataSpec("letters", (6,), levels=2, ordered=False, tokenizer="characters:ab")

    def load(self, name):
        rows = torch.arange(20 if name == "train" else 12)
        return TensorSplit((rows[:, None] >> torch.arange(6)) & 1)


class Fair:
    """A scorer to whom every letter is as probable as its share of ones in a row is high."""

    hash = "fair"

    def __call__(self, x, y):
        for part in x.split(5):
            yield LogProb(-part.sum(1).double(), "exact")


def test_a_scorer_judges_samples_and_real_text_alike():
    judge = Judge(Letters(), 10, scorer=Fair())
    x = torch.zeros(10, 6, dtype=torch.long)
    x[:, :3] = 1
    found = judge.samples(x)
    assert found.keys() == judge.floors().keys() == {"ngrams", "sample_entropy", "generative_perplexity"}
    assert found["generative_perplexity"] == pytest.approx(math.exp(3 / 6))
    assert found["sample_entropy"] == pytest.approx(math.log(2))
    real, _ = judge._rows("test", 10)
    assert judge.floors()["generative_perplexity"] == pytest.approx(math.exp(real.double().mean()))
    assert next(entry["name"] for entry in judge.about()) == "ngrams"
    assert {entry["name"]: entry["lower"] for entry in judge.about()}["generative_perplexity"] is None


def test_without_a_scorer_there_is_no_perplexity():
    judge = Judge(Letters(), 10)
    assert judge.floors().keys() == {"ngrams", "sample_entropy"}
    assert {entry["name"] for entry in judge.about()} == {"ngrams", "sample_entropy"}
