"""Points sampled on the surfaces of 3-D shapes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from genkit.data.base import DATASETS, Dataset, TensorSplit
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import DataSpec


@DATASETS.register("shapes")
class Shapes(Dataset):
    """Clouds of points (points, 3) on the surface of a sphere, cube, cylinder or torus of random size and direction.

    Each solid fits the unit sphere, each of its axes is stretched by U(0.7, 1.3), and it is turned about the third
    by a uniform angle. Points are uniform on the solid before it is stretched. They have no order.

    points: of a cloud. n_train, n_test: clouds of the two parts. seed: of both.
    Raises GenkitError for numbers that are not positive.
    """

    def __init__(self, points: int = 256, n_train: int = 4_000, n_test: int = 500, seed: int = 0) -> None:
        for key, n in (("points", points), ("n_train", n_train), ("n_test", n_test)):
            if n < 1:
                raise GenkitError(f"shapes: {key} must be at least 1, not {n}")
        self.sizes, self.seed = {"train": n_train, "test": n_test}, seed
        self.spec = DataSpec("shapes", (points, 3), classes=len(SOLIDS), class_names=tuple(SOLIDS))

    def resized(self, size: int) -> Shapes:
        n_train, n_test = self.sizes.values()
        return Shapes(size, n_train, n_test, self.seed)

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        generator = keyed_generator(self.seed, "shapes", name)
        n, (points, _) = self.sizes[name], self.spec.shape
        y = torch.randint(len(SOLIDS), (n,), generator=generator)
        x = torch.empty(n, points, 3)
        for label, solid in enumerate(SOLIDS.values()):
            x[y == label] = solid(int((y == label).sum()), points, generator)
        stretch = 0.7 + 0.6 * torch.rand(n, 1, 3, generator=generator)
        return TensorSplit((x * stretch) @ turns(n, generator), y)


def turns(n: int, generator: torch.Generator) -> Tensor:
    """Rotations (n, 3, 3) about the third axis, by uniform angles."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    c, s, one, zero = angle.cos(), angle.sin(), torch.ones(n), torch.zeros(n)
    return torch.stack((c, -s, zero, s, c, zero, zero, zero, one), 1).unflatten(1, (3, 3))


def sphere(n: int, points: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, points, 3, generator=generator), dim=-1)


def cube(n: int, points: int, generator: torch.Generator) -> Tensor:
    """Half a side is 1 / sqrt(3): its corners are on the unit sphere. One coordinate is at either end."""
    x = 2 * torch.rand(n, points, 3, generator=generator) - 1
    face = torch.randint(3, (n, points, 1), generator=generator)
    end = 2.0 * torch.randint(2, (n, points, 1), generator=generator) - 1
    return x.scatter(2, face, end) / math.sqrt(3)


def cylinder(n: int, points: int, generator: torch.Generator) -> Tensor:
    """Radius 0.5 and half height 0.8: side and two ends by their areas."""
    radius, half = 0.5, 0.8
    share, u, angle = torch.rand(3, n, points, generator=generator)
    side = share < 2 * half / (2 * half + radius)  # of the areas 2 pi r 2h and 2 pi r^2
    r = torch.where(side, radius, radius * u.sqrt())
    end = torch.where(angle < 0.5, half, -half)
    z = torch.where(side, half * (2 * u - 1), end)
    turn = 2 * math.pi * torch.where(side, angle, (2 * angle) % 1)
    return torch.stack((r * turn.cos(), r * turn.sin(), z), -1)


def torus(n: int, points: int, generator: torch.Generator) -> Tensor:
    """Radii R = 0.75 and r = 0.25, with area (R + r cos a) da db: a by rejection, the first of 16 that is kept."""
    large, small, tries = 0.75, 0.25, 16
    a = 2 * math.pi * torch.rand(n, points, tries, generator=generator)
    kept = torch.rand(a.shape, generator=generator) * (large + small) < large + small * a.cos()
    a = a.gather(2, kept.float().argmax(2, keepdim=True))[..., 0]
    b = 2 * math.pi * torch.rand(n, points, generator=generator)
    r = large + small * a.cos()
    return torch.stack((r * b.cos(), r * b.sin(), small * a.sin()), -1)


SOLIDS = {"sphere": sphere, "cube": cube, "cylinder": cylinder, "torus": torus}
