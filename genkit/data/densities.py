"""Generated two-dimensional densities, as data sets and as sources.

All but the closed-form one are known by their samples only. A density is a uniform choice of mode y and a
`draw` of points given y; the base class makes splits and fresh samples of it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.data.base import DATASETS, Dataset, TensorSplit
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.types import DataSpec, Generator, Source

CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda x: x[:, :1],
    "y": lambda x: x[:, 1:],
    "direction": lambda x: F.normalize(x, dim=1),
}


class Density(Dataset):
    """A density on the plane: mode y uniform in 0..modes-1, then x ~ p(x | y).

    n_train, n_test: rows of the two parts. seed: of both. labels: whether the mode is given as the class.
    condition: what else is given of a point: its coordinate `x` or `y`, or its `direction` from the origin x / |x|.
    Raises GenkitError for a part without rows, and for labels beside a condition.
    """

    modes: ClassVar[int]

    def __init__(
        self,
        n_train: int = 20_000,
        n_test: int = 5_000,
        seed: int = 0,
        labels: bool = False,
        condition: Literal["x", "y", "direction"] | None = None,
    ) -> None:
        for key, n in (("n_train", n_train), ("n_test", n_test)):
            if n < 1:
                raise GenkitError(f"{key} must be at least 1, not {n}")
        self.sizes, self.seed, self.labels = {"train": n_train, "test": n_test}, seed, labels
        self.condition = None if condition is None else CONDITIONS[condition]
        classes = self.modes if labels else None
        values = None if self.condition is None else self.condition(torch.zeros(1, 2)).shape[1]
        self.spec = DataSpec(DATASETS.name_of(self), (2,), classes=classes, condition=values)

    @abc.abstractmethod
    def draw(self, y: Tensor, generator: Generator) -> Tensor:
        """Points (n, 2) of the modes y (n,), on the device of y, which is the generator's."""

    def sample(
        self, n: int, *, generator: Generator = None, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Fresh x (n, 2) and, with `labels`, y (n,), or with a `condition` (n, K), drawn where the generator is, moved
        to `device`."""
        where = generator.device if generator is not None else torch.device(device or "cpu")
        y = torch.randint(self.modes, (n,), generator=generator, device=where)
        x = self.draw(y, generator).float()
        given = self.condition(x) if self.condition is not None else y if self.labels else None
        return x.to(device or where), None if given is None else given.to(device or where)

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        generator = keyed_generator(self.seed, "density", self.spec.name, name)
        return TensorSplit(*self.sample(self.sizes[name], generator=generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """(B, 2) -> (B,) nats. Raises GenkitError: only a density that overrides this has a closed form."""
        raise GenkitError(f"'{self.spec.name}' has no closed-form density; '8gaussians' has")


def _uniform(n: int, y: Tensor, generator: Generator) -> Tensor:
    return torch.rand(len(y), n, generator=generator, device=y.device, dtype=torch.float32)


def _normal(y: Tensor, generator: Generator) -> Tensor:
    return torch.randn(len(y), 2, generator=generator, device=y.device, dtype=torch.float32)


def _on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


@DATASETS.register("8gaussians")
class EightGaussians(Density):
    """Eight Gaussians on a circle of radius 5, covariance sqrt(0.1) I.

    x = 5 (cos a, sin a) + 0.1^(1/4) N(0, I), a = 2 pi y / 8. The scale is that of the 8 gaussians -> moons
    problem of Tong et al. 2023 (https://arxiv.org/abs/2302.00482), whose code has this covariance.
    """

    modes = 8
    radius, variance = 5.0, math.sqrt(0.1)

    def draw(self, y: Tensor, generator: Generator) -> Tensor:
        centre = self.radius * _on_circle(y * (2 * math.pi / 8))
        return centre + math.sqrt(self.variance) * _normal(y, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = logsumexp_k log N(x; c_k, v I) - ln 8: (B, 2) -> (B,) nats."""
        angles = torch.arange(8, device=x.device, dtype=x.dtype) * (2 * math.pi / 8)
        squares = (x[:, None] - self.radius * _on_circle(angles)).square().sum(-1)  # (B, 8)
        modes = -squares / (2 * self.variance) - math.log(2 * math.pi * self.variance)
        return modes.logsumexp(1) - math.log(8)


@DATASETS.register("moons")
class Moons(Density):
    """Two interleaving half circles of radius 3.

    Upper: (cos a, sin a); lower: (1 - cos a, 1/2 - sin a), a ~ U(0, pi); then x = 3 (m + 0.2 u (1, 1)) - 1,
    u ~ U(0, 1): the moons of the 8 gaussians -> moons problem (Tong et al. 2023,
    https://arxiv.org/abs/2302.00482), which smear each point along the diagonal.
    """

    modes = 2

    def draw(self, y: Tensor, generator: Generator) -> Tensor:
        angle, smear = _uniform(2, y, generator).unbind(1)
        upper = _on_circle(math.pi * angle)
        moons = torch.where(y[:, None] == 0, upper, torch.tensor([1.0, 0.5], device=y.device) - upper)
        return 3 * (moons + 0.2 * smear[:, None]) - 1


@DATASETS.register("checkerboard")
class Checkerboard(Density):
    """Uniform on the eight dark cells, of side 2, of a 4x4 board on [-4, 4]^2.

    Cell y: column y // 2, in it rows r and r + 2 with r the column's parity. Scale of FFJORD's toy data
    (Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367).
    """

    modes = 8

    def draw(self, y: Tensor, generator: Generator) -> Tensor:
        column = y // 2
        row = column % 2 + 2 * (y % 2)
        return 2 * (torch.stack([column, row], 1) + _uniform(2, y, generator)) - 4


@DATASETS.register("spirals")
class Spirals(Density):
    """Two spirals of one and a half turns, within radius 3.

    r = 3 pi sqrt(u); arm = ((-r cos r, r sin r) + u' / 2) / 3 and its negative, plus 0.1 N(0, I), with
    u ~ U(0, 1), u' ~ U(0, 1)^2. Scale of FFJORD's toy data (https://arxiv.org/abs/1810.01367).
    """

    modes = 2

    def draw(self, y: Tensor, generator: Generator) -> Tensor:
        u = _uniform(3, y, generator)
        r = 3 * math.pi * u[:, :1].sqrt()
        arm = (r * torch.cat([-r.cos(), r.sin()], 1) + u[:, 1:] / 2) / 3
        return (1 - 2 * y[:, None]) * arm + 0.1 * _normal(y, generator)


@DATASETS.register("pinwheel")
class Pinwheel(Density):
    """Five Gaussian blades, bent about the origin.

    f = (1 + 0.3 n_1, 0.1 n_2), turned by 2 pi y / 5 + exp(f_1) / 4 clockwise, times 2. Scale of FFJORD's toy
    data (https://arxiv.org/abs/1810.01367), after Johnson et al. 2016 (https://arxiv.org/abs/1603.06277).
    """

    modes = 5

    def draw(self, y: Tensor, generator: Generator) -> Tensor:
        radial, tangential = _normal(y, generator).unbind(1)
        blade = torch.complex(1 + 0.3 * radial, 0.1 * tangential)
        angle = y * (2 * math.pi / 5) + blade.real.exp() / 4
        return 2 * torch.view_as_real(blade * torch.exp(1j * angle).conj())


class DensitySource(Source):
    """A density as the distribution at t=0, such as 8 gaussians at the start of 8 gaussians -> moons.

    density: a registered density, by name, mapping or instance. Raises GenkitError for another data set.
    """

    def __init__(self, density: Dataset) -> None:
        built = DATASETS.build(density)
        if not isinstance(built, Density):
            known = ", ".join(name for name in DATASETS.names() if issubclass(DATASETS.get(name), Density))
            raise GenkitError(f"data set '{built.spec.name}' is no density to start from (one of: {known})")
        self.density = built
        self.closed_form = type(built).log_prob is not Density.log_prob

    def sample(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        """Fresh points with the device and dtype of `like` (B, 2). Raises GenkitError for another shape."""
        if like.shape[1:] != (2,):
            raise GenkitError(f"'{self.density.spec.name}' starts points (B, 2), not {tuple(like.shape)}")
        return self.density.sample(len(like), generator=generator, device=like.device)[0].to(like.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """(B, 2) -> (B,) nats. Raises GenkitError for a density without a closed form."""
        return self.density.log_prob(x)
