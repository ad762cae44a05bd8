"""Targets: densities known up to a constant at every time, as a tree over models.

    TARGETS.build("temperature", Model(objective, label=3), beta=2.0)

The leaves are models (`Density`, `Model`), each N(0, I) at t=0; the inner nodes are the entries of TARGETS, whose first
argument is the target, or the list of targets, that they are made of.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.paths import PATHS, Path
from genkit.registry import Registry
from genkit.types import DataSpec, Generator

if TYPE_CHECKING:
    from genkit.particles.sampler import FeynmanKac

Evaluation = tuple[Tensor, Tensor]  # log-density (N,) in float64, and its gradient (N, ...)
# steps done, steps foreseen, effective particles, resamplings
Progress = Callable[[int, int, float, int], None]
LogDensity = Callable[[Tensor, Tensor], Evaluation]  # t, x (N, ...)


@dataclass
class Cloud:
    """Particles x (N, ...) with the log-density (N,) and gradient (N, ...) of a target there, all in float64."""

    x: Tensor
    value: Tensor
    gradient: Tensor

    def __getitem__(self, rows: Tensor) -> Cloud:
        return Cloud(self.x[rows], self.value[rows], self.gradient[rows])


class Target(abc.ABC):
    """An unnormalized density pi_t(x) at every time t: a call gives log pi_t (N,) and its gradient (N, ...).

    exponent: c, the sum of the powers of the models in it. Each is N(0, I) at t=0, so pi_0 is N(0, I / c).
    parts: the targets that it is made of; none for a model.
    several: whether it is made of a list of targets, not of one.
    """

    several: ClassVar[bool] = False

    exponent: float
    parts: tuple[Target, ...] = ()

    @abc.abstractmethod
    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        """t (scalar, on the CPU), x (N, ...), float64. last: the end is reached, where soft constraints become hard."""

    def setup(
        self, sampler: FeynmanKac, *, generator: Generator = None, progress: Progress | None = None
    ) -> None:
        """Once before sampling: what has to be estimated with particles."""
        for part in self.parts:
            part.setup(sampler, generator=generator, progress=progress)

    def leaves(self) -> Iterator[Density]:
        """The models, from left to right; one that is used twice comes twice."""
        for part in self.parts:
            yield from part.leaves()

    @property
    def model(self) -> Density:
        """The first model: all share its path and the shape of its samples."""
        return next(self.leaves())

    @property
    def evaluations(self) -> int:
        """How often models were called so far, by this target or by others that share them."""
        return sum(leaf.calls for leaf in {id(leaf): leaf for leaf in self.leaves()}.values())

    def decode(self, x: Tensor) -> Tensor:
        """Encoded samples (N, ...) as the data set stores them."""
        return self.model.decode(x)

    def check(self) -> None:
        """Raises GenkitError for what cannot be normalized, and for models that do not fit together."""
        if not 0 < self.exponent < math.inf:
            raise GenkitError(
                f"the powers of the models in this target sum to {self.exponent:g}, and at t=0 it is a Gaussian of "
                "that precision, which cannot be normalized: make the negated powers smaller, so that the sum is "
                "positive, or divide the prior out, so that it is 1"
            )
        times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        for other in self.leaves():
            if other.shape != self.model.shape:
                raise GenkitError(
                    f"models of samples of shape {self.model.shape} and {other.shape} do not compose"
                )
            pairs = zip(other.path.coefficients(times), self.model.path.coefficients(times), strict=True)
            if not all(torch.allclose(a, b) for a, b in pairs):
                raise GenkitError("models on different paths do not compose: train them on the same path")


TARGETS = Registry(Target, "target", "genkit.particles", given=1)


class Density(Target):
    """A model given by a Python function: p_t(x), the density of alpha x1 + sigma x0, up to a constant of t.

    function: (t, x) -> log p_t (N,) and its gradient (N, ...); see `differentiated` for one that gives no gradient.
    path: of Gaussian form. shape: of a sample. decode: from encoded samples to data, which `spec` describes.
    dtype: what the function takes. end: the time at which it stands for the data.
    """

    exponent = 1.0

    def __init__(
        self,
        function: LogDensity,
        shape: tuple[int, ...],
        path: Path | str = "linear",
        *,
        decode: Callable[[Tensor], Tensor] = lambda x: x,
        spec: DataSpec | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        end: float = 0.99,  # nearer to 1 a density is too steep
    ) -> None:
        self.spec, self._end = spec, end
        self.function, self.shape, self.path, self._decode = function, tuple(shape), PATHS.build(path), decode
        self.device, self.dtype, self.calls = torch.device(device), dtype, 0

    def __call__(self, t: Tensor, x: Tensor, last: bool = False) -> Evaluation:
        self.calls += 1
        value, gradient = self.function(t.to(self.device, self.dtype), x.to(self.dtype))
        return value.double(), gradient.double()

    @property
    def end(self) -> float:
        return self._end

    def leaves(self) -> Iterator[Density]:
        yield self

    def decode(self, x: Tensor) -> Tensor:
        return self._decode(x.to(self.dtype))


def has_energy(objective: Any) -> bool:
    """Whether an objective gives log p_t(x) along a path, up to a constant; an autoregressive flow gives it at t=1."""
    return hasattr(objective, "log_density") and hasattr(objective, "path")


class Model(Density):
    """A trained energy, of a class or of all: p_t(x | label).

    objective: with `log_density(t, x, y)` -> log p_t (N,) up to a constant, and the score (N, ...), and `end`.
    label: the number of the class; None for the unconditional model (the null class).
    Raises GenkitError for an objective without an energy, and for a class or null class that it does not have.
    """

    def __init__(self, objective: Any, label: int | None = None) -> None:
        if not has_energy(objective):
            raise GenkitError(
                f"{type(objective).__name__} has no energy, which particles need: distil one from it with the "
                "objective energy"
            )
        classes, name = objective.classes, objective.spec.name
        if label is not None and classes is None:
            raise GenkitError(f"this model of '{name}' is unconditional: it has no class {label}")
        if label is not None and not 0 <= label < classes:
            raise GenkitError(f"class {label} is out of range: '{name}' has classes 0 to {classes - 1}")
        if label is None and objective.conditional and objective.label_dropout == 0:
            raise GenkitError(
                f"this model of '{name}' was trained with label_dropout 0: it has no unconditional density"
            )

        def function(t: Tensor, x: Tensor) -> Evaluation:
            number = -1 if label is None else label
            y = None if classes is None else torch.full((len(x),), number, device=x.device)
            return objective.log_density(t, x, y)

        self.objective = objective
        first = next(objective.parameters(), torch.empty(0))
        super().__init__(
            function,
            objective.spec.shape,
            objective.path,
            decode=objective.view.decode,
            spec=objective.spec,
            device=objective.device,
            dtype=first.dtype,
        )

    @cached_property
    def end(self) -> float:
        return getattr(self.objective, "end", self._end)


def differentiated(log_density: Callable[[Tensor, Tensor], Tensor]) -> LogDensity:
    """A function (t, x) -> log p_t (N,) with the gradient that autograd gives it (0 where it gives none)."""

    def function(t: Tensor, x: Tensor) -> Evaluation:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = log_density(t, x)
            gradient = torch.autograd.grad(value.sum(), x)[0] if value.requires_grad else torch.zeros_like(x)
        return value.detach(), gradient

    return function


def denoised(x: Tensor, gradient: Tensor, alpha: Any, sigma: Any, target: Target) -> Tensor:
    """E[x1 | x_t = x] for one model; for others that of a density as narrow: (x + sigma^2 / c grad log pi) / alpha."""
    return (x + sigma**2 / target.exponent * gradient) / alpha
