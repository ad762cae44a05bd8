"""Exact 2-Wasserstein distance against POT and closed forms, in all and by class; path energy of known paths."""

import math

import ot
import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import METRICS, Judge
from genkit.types import DataSpec

POINTS = DataSpec("points", (2,), classes=2)
GIVEN = DataSpec("given", (2,), condition=1)


def measure(x, y, name="wasserstein", **classes):
    metric = METRICS.build(name, POINTS)
    for rows, real, key in ((y, True, "of_y"), (x, False, "of_x")):
        metric.update(rows, real, *([classes[key]] if key in classes else []))
    return metric.compute().item()


def test_is_the_root_of_emd2():
    x, y = torch.randn(60, 2).double(), 2 * torch.randn(60, 2).double() + 1
    assert measure(x, y) == pytest.approx(math.sqrt(ot.emd2([], [], ot.dist(x.numpy(), y.numpy()))))
    assert measure(x, x + 3) == pytest.approx(3 * math.sqrt(2), rel=1e-6)
    assert measure(x, x.flip(0)) == 0


def test_swapped_classes_are_seen_class_by_class_only():
    """Two points of one class each, a distance of 2 apart: samples with the classes swapped are right in all."""
    x, y = torch.tensor([[0.0, 0.0], [2.0, 0.0]] * 5), torch.tensor([0, 1] * 5)
    assert measure(x, x, "class_wasserstein", of_x=y, of_y=y) == 0
    assert measure(x, x, "class_wasserstein", of_x=1 - y, of_y=y) == pytest.approx(2)
    assert measure(x, x) == 0


def test_classes_count_by_their_share_of_reference_rows():
    x, y = torch.zeros(8, 2), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    moved = torch.where(y[:, None] == 1, torch.tensor([4.0, 0.0]), x)
    assert measure(moved, x, "class_wasserstein", of_x=y, of_y=y) == pytest.approx(math.sqrt(16 / 4))
    with pytest.raises(GenkitError, match="no samples of class 1"):
        measure(x, x, "class_wasserstein", of_x=torch.zeros(8), of_y=y)


def joint(x, real, of_x, of_real):
    metric = METRICS.build("joint_wasserstein", GIVEN)
    metric.update(real, True, of_real)
    metric.update(x, False, of_x)
    return metric.compute().item()


def test_points_under_wrong_conditions_are_far():
    """Two points 2 apart, and their conditions, at twice the scale: swapped, either point or condition moves by 2."""
    x, y = torch.tensor([[0.0, 0.0], [2.0, 0.0]] * 5), torch.tensor([[0.0], [4.0]] * 5)
    assert joint(x, x, y, y) == 0
    assert joint(x, x, y.flip(0), y) == pytest.approx(2)
    assert joint(x + 0.1, x, y, y) == pytest.approx(0.1 * math.sqrt(2), rel=1e-5)
    assert joint(x, x, 7 + 0 * y, 7 + 0 * y) == 0  # conditions that say nothing


def test_the_joint_distance_is_that_of_points_and_scaled_conditions():
    x, real, of_x, of_real = (torch.randn(40, d).double() for d in (2, 2, 1, 1))
    scale = (real.var(0).sum() / of_real.var(0).sum()).sqrt()
    a, b = torch.cat((x, scale * of_x), 1), torch.cat((real, scale * of_real), 1)
    wanted = math.sqrt(ot.emd2([], [], ot.dist(a.numpy(), b.numpy())))
    assert joint(x, real, of_x, of_real) == pytest.approx(wanted)
    assert joint(x, real, 9 * of_x, 9 * of_real) == pytest.approx(wanted)


def test_the_joint_distance_is_for_real_valued_conditions():
    with pytest.raises(GenkitError, match="and real-valued conditions, which 'points' has not"):
        METRICS.build("joint_wasserstein", POINTS)
    with pytest.raises(GenkitError, match="which 'given' has not"):
        METRICS.build("class_wasserstein", GIVEN)
    for y in (None, torch.zeros(4, 2), torch.zeros(4)):
        with pytest.raises(GenkitError, match=r"conditions of shape \(4, 1\): give y"):
            METRICS.build("joint_wasserstein", GIVEN).update(torch.zeros(4, 2), True, y)


@pytest.mark.parametrize("labels", [False, True])
def test_judge_feeds_classes_where_there_are_some(labels):
    data = DATASETS.build({"name": "moons", "n_train": 300, "n_test": 300, "labels": labels})
    judge = Judge(data, 200)
    x, y = data.train.take(torch.arange(200))
    found, alone = judge.samples(x, y), judge.samples(x)
    assert ("class_wasserstein" in found) == labels == ("class_wasserstein" in judge.floors())
    assert "class_wasserstein" not in alone
    assert alone["wasserstein"] == found["wasserstein"] > 0
    if labels:
        assert judge.samples(x, 1 - y)["class_wasserstein"] > 2 * found["class_wasserstein"]


def test_images_are_left_alone():
    assert "wasserstein" not in Judge(DATASETS.build("digits")).names
    with pytest.raises(GenkitError, match="at most three real numbers"):
        METRICS.build("path_energy", DATASETS.build("digits").spec)
    for name in ("wasserstein", "class_wasserstein", "path_energy"):
        with pytest.raises(GenkitError, match="rows must be at least 2"):
            METRICS.build({"name": name, "rows": 1}, POINTS)


def energy(states, times=None):
    metric = METRICS.build("path_energy", POINTS)
    metric.update(states, torch.linspace(0, 1, len(states)) if times is None else times)
    return {key: value.item() for key, value in metric.compute().items()}


def test_a_straight_shift_is_optimal():
    x = torch.randn(50, 2)
    found = energy([x + 3 * t for t in (0, 0.25, 1)], torch.tensor([0, 0.25, 1]))
    assert found == pytest.approx({"path_energy": 18, "normalized_path_energy": 0}, abs=1e-5)


def test_crossing_paths_and_detours_cost_more():
    """Two points that change places and move up by 1: 4 + 1 each, where moving up alone costs 1."""
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert energy([x, x.flip(0) + torch.tensor([0.0, 1.0])])["normalized_path_energy"] == pytest.approx(5 - 1)
    there = energy([x, x + 3, x + 1])  # |(3, 3)|^2 and |(2, 2)|^2 at double speed, of a shift by (1, 1)
    assert there["path_energy"] == pytest.approx((18 + 8) * 2)
    assert there["normalized_path_energy"] == pytest.approx(52 / 2 - 1)


def test_what_is_no_trajectory():
    x = torch.randn(4, 2)
    for states, times in (([x], [0.0]), ([x, x], [0.0]), ([x, x], [0.5, 0.5])):
        with pytest.raises(GenkitError):
            energy(states, torch.tensor(times))
