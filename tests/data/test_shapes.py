"""The solids: points are on their surfaces, as densely everywhere."""

import pytest
import torch

from genkit.data.base import DATASETS
from genkit.data.shapes import cube, cylinder, sphere, torus, turns
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator


def test_points_are_on_the_surfaces() -> None:
    generator = keyed_generator(0, "solids")
    assert torch.allclose(sphere(2, 50, generator).norm(dim=-1), torch.ones(2, 50))
    assert torch.allclose(cube(2, 50, generator).abs().amax(-1), torch.full((2, 50), 3**-0.5))
    ring = torus(2, 50, generator)
    assert torch.allclose(
        (ring[..., :2].norm(dim=-1) - 0.75).square() + ring[..., 2].square(), torch.full((2, 50), 0.25**2)
    )
    can = cylinder(2, 500, generator)
    r, z = can[..., :2].norm(dim=-1), can[..., 2].abs()
    assert bool((torch.isclose(r, torch.tensor(0.5)) | torch.isclose(z, torch.tensor(0.8))).all())


def test_points_are_as_dense_everywhere() -> None:
    generator = keyed_generator(1, "solids")
    ring = torus(1, 50_000, generator)[0]
    outside = (ring[:, :2].norm(dim=-1) > 0.75).double().mean()
    assert abs(outside - (0.5 + 0.25 / (torch.pi * 0.75))) < 0.01  # the outer half has the larger area
    ends = (cylinder(1, 50_000, generator)[0, :, 2].abs() > 0.7999).double().mean()
    assert abs(ends - 0.5 / 2.1) < 0.01


def test_turns_keep_lengths_and_hands() -> None:
    turn = turns(5, keyed_generator(0, "turns")).double()
    assert torch.allclose(turn @ turn.mT, torch.eye(3).double().expand(5, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(turn), torch.ones(5).double(), atol=1e-6)


def test_resized_has_another_number_of_points() -> None:
    data = DATASETS.build({"name": "shapes", "n_train": 8, "n_test": 4, "points": 16}).resized(40)
    assert data.spec.shape == (40, 3)
    assert data.spec.cloud
    assert (len(data.train), len(data.test)) == (8, 4)


def test_numbers_must_be_positive() -> None:
    with pytest.raises(GenkitError, match="shapes: points must be at least 1, not 0"):
        DATASETS.build({"name": "shapes", "points": 0})
