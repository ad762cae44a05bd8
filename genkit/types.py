"""The nouns that all parts share.

Time runs from t=0 (source, noise) to t=1 (data): x_t = alpha_t x1 + sigma_t x0. Log-probabilities are
nats, summed over a sample. B is the batch, shapes of one sample are written (...).
"""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import sample_like

Generator = torch.Generator | None
Kind = Literal["exact", "bound", "estimate", "unnormalized"]


class Modality(NamedTuple):
    """One kind of content in rows that hold several: behind its fixed symbol `mark`, up to the next mark, stand
    symbols from `first` to `stop` - 1 only."""

    name: str
    mark: int
    first: int
    stop: int


@dataclass(frozen=True)
class DataSpec:
    """What a data set holds: the shape of a sample, its integer levels or symbols, and its classes or conditions.

    shape: (C, H, W) for images, (D,) for vectors, (L,) for sequences of symbols or of sound samples, (P, D) for
        clouds of P points in no order.
    levels: number of integer levels of a value (17 for digits), None for real-valued data.
    classes: number of classes, None for unlabelled data.
    condition: in the place of classes, the number of real values, of about unit size, that go with each sample.
    ordered: whether levels have an order (grey levels do, letters do not).
    tokenizer: for text, what `genkit.data.tokenizers` makes a tokenizer of; "" for other data.
    characters: of text, the mean number of characters of a symbol.
    rate: of sound, samples a second.
    fixed: symbols that are part of the layout, never masked and never modelled: boundaries, tasks, padding.
    boundary: the fixed symbol that stands before each packed document; attention stays within a document.
    answer: the fixed symbol that ends a prompt: symbols before it are given, not modelled.
    modalities: of data that mix several.
    Raises GenkitError for data with both classes and conditions.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None = None
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    ordered: bool = True
    tokenizer: str = ""
    characters: float = 1.0
    rate: int | None = None
    fixed: tuple[int, ...] = ()
    boundary: int | None = None
    answer: int | None = None
    modalities: tuple[Modality, ...] = ()
    condition: int | None = None

    def __post_init__(self) -> None:
        if self.condition is not None and self.classes is not None:
            raise GenkitError(f"data '{self.name}': samples have classes or real-valued conditions, not both")
        if self.condition is not None and self.condition < 1:
            raise GenkitError(f"data '{self.name}': a condition has at least one value, not {self.condition}")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> DataSpec:
        """From plain data, as JSON gives them."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**fields | {"modalities": tuple(Modality(*m) for m in content.get("modalities", ()))})

    @property
    def conditional(self) -> bool:
        """Whether rows come with y: classes (B,) int64, or conditions (B, condition) float32."""
        return self.classes is not None or self.condition is not None

    @property
    def dims(self) -> int:
        return math.prod(self.shape)

    @property
    def image(self) -> bool:
        return len(self.shape) == 3

    @property
    def cloud(self) -> bool:
        return len(self.shape) == 2

    def resized(self, size: int) -> DataSpec:
        """Of images of this side (the height; the width in proportion), or clouds of so many points.

        Raises GenkitError for data that have no such size, and for a size that cannot be.
        """
        if not (self.image or self.cloud):
            raise GenkitError(
                f"'{self.name}' holds no images and no clouds of points, which can have another size"
            )
        if size < 1:
            raise GenkitError(f"the size of a sample must be at least 1, not {size}")
        if self.cloud:
            return replace(self, shape=(size, self.shape[1]))
        channels, height, width = self.shape
        if size * width % height:
            raise GenkitError(
                f"images of {height}x{width} cannot be {size} high: their width would be {size * width / height:g}"
            )
        return replace(self, shape=(channels, size, size * width // height))

    @property
    def text(self) -> bool:
        return bool(self.tokenizer)


def null_like(y: Tensor) -> Tensor:
    """The null in the place of y, by which a model is told nothing of a sample: -1 of classes (B,), NaN of conditions
    (B, K)."""
    return torch.full_like(y, torch.nan if y.is_floating_point() else -1)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to go with rows of `like` (B, ...); a scalar as (1, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class View(abc.ABC):
    """How an objective reads data: `encode` to what it models, `decode` back.

    log_volume: nats to add to a density of encoded values to get the log-probability of the data.
    likelihood: what that log-probability is when the density is exact; None when there is none.
    sigma: standard deviation of Gaussian noise that `encode` adds, in encoded units.
    """

    spec: DataSpec
    sigma: float = 0.0
    log_volume: float
    likelihood: Kind | None

    @abc.abstractmethod
    def encode(self, data: Tensor, *, generator: Generator = None) -> Tensor: ...

    @abc.abstractmethod
    def decode(self, x: Tensor) -> Tensor: ...


class Source(abc.ABC):
    """The distribution at t=0. `gaussian`: it is the standard normal; `closed_form`: it has a log_prob."""

    gaussian: bool = False
    closed_form: bool = True

    @abc.abstractmethod
    def sample(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        """Samples with the shape, device and dtype of `like` (B, ...)."""

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B,) nats."""


class StandardNormal(Source):
    """N(0, I) in any shape."""

    gaussian = True

    def sample(self, like: Tensor, *, generator: Generator = None) -> Tensor:
        return sample_like(torch.randn, like, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return -0.5 * x.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


class Rows(enum.Enum):
    """What a coupling does with the data rows it is given."""

    KEPT = "kept"  # row i of x1 stays row i
    DRAWN = "drawn"  # it chooses among the data rows
    GENERATED = "generated"  # it makes x1


@dataclass
class Pair:
    """Source and data rows that belong together: x0, x1 (B, ...), y (B,) or (B, K), index (B,), weight (B,).

    logs: what to log with the loss of how they were made, scalars on their device.
    """

    x0: Tensor
    x1: Tensor
    y: Tensor | None = None
    index: Tensor | None = None
    weight: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Batch:
    """Rows of a data set: x (B, ...) as stored, y (B,) classes or (B, K) conditions, index (B,) row numbers.

    `prepare` of an objective adds what it trains on: `pair` (flows of pairs) or `encoded`.
    """

    x: Tensor
    y: Tensor | None = None
    index: Tensor | None = None
    pair: Pair | None = None
    encoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def paired(self) -> Pair:
        """The pair. Raises GenkitError for a batch that did not go through `prepare`."""
        if self.pair is None:
            raise GenkitError("loss takes a batch that went through prepare()")
        return self.pair

    @property
    def read(self) -> Tensor:
        """The rows as encoded. Raises GenkitError for a batch that did not go through `prepare`."""
        if self.encoded is None:
            raise GenkitError("loss takes a batch that went through prepare()")
        return self.encoded


class Point(NamedTuple):
    """A point of a path: x_t, its velocity u_t, and the conditional score where the path gives one."""

    x_t: Tensor
    u_t: Tensor
    score: Tensor | None = None


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives: x_t = alpha x1 + sigma x0, u_t = d_alpha x1 + d_sigma x0."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


@runtime_checkable
class Velocity(Protocol):
    """Any f(t, x): t a scalar tensor, x (B, ...); returns dx/dt (B, ...)."""

    def __call__(self, t: Tensor, x: Tensor, /) -> Tensor: ...


Prediction = Literal["velocity", "data", "noise", "score"]


@dataclass
class Field:
    """What a model predicts, as a field of velocity, with all that can be derived on a Gaussian-form path.

    With x = alpha x1 + sigma x0, v = d_alpha x1 + d_sigma x0 and det = alpha d_sigma - sigma d_alpha, the expectations
    D of x1 and E of x0 given x follow from any one of them:

        from v:  D = (d_sigma x - sigma v) / det,  E = (alpha v - d_alpha x) / det
        from D:  E = (x - alpha D) / sigma         (not where sigma = 0, at the data)
        from E:  D = (x - sigma E) / alpha         (not where alpha = 0, at the source)
        score = -E / sigma,  v = d_alpha D + d_sigma E

    predict: f(t, x), by default the velocity; solvers give t in float64 on the CPU. kind: what it predicts.
    coefficients: those of the path; None leaves velocity alone.
    no_score: why the score is not valid (None when it is: Gaussian source and independent coupling).
    """

    predict: Velocity
    coefficients: Callable[[Tensor], Coefficients] | None = None
    no_score: str | None = "only the velocity of this field is known"
    kind: Prediction = "velocity"

    def __post_init__(self) -> None:
        if self.kind != "velocity" and self.coefficients is None:
            raise GenkitError(f"a prediction of {self.kind} is a field on a path only: give its coefficients")

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        if self.kind == "velocity":
            return self.predict(t, x)
        data, noise = self.endpoints(t, x)
        at = self.at(t)
        return at.d_alpha * data + at.d_sigma * noise

    def undefined(self, t: Tensor) -> str | None:
        """Why the prediction gives no velocity at t (on the CPU), None where it does."""
        if self.kind == "velocity":
            return None
        at = self.at(t)
        name, value = ("sigma", at.sigma) if self.kind == "data" else ("alpha", at.alpha)
        if float(value) > 1e-6:  # the cosine of a right angle is not quite 0
            return None
        return f"a prediction of {self.kind} gives no velocity at t={float(t):g}, where {name} is 0"

    def endpoints(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[x1 | x_t = x] and E[x0 | x_t = x], from one prediction."""
        alpha, sigma, d_alpha, d_sigma = self.at(t)
        found = self.predict(t, x)
        if self.kind == "velocity":
            det = alpha * d_sigma - sigma * d_alpha
            return (d_sigma * x - sigma * found) / det, (alpha * found - d_alpha * x) / det
        if self.kind == "data":
            return found, (x - alpha * found) / sigma
        noise = found if self.kind == "noise" else -sigma * found
        return (x - sigma * noise) / alpha, noise

    @property
    def gives(self) -> frozenset[str]:
        known = {"velocity"}
        if self.coefficients is not None:
            known |= {"data", "noise"}
            if self.no_score is None:
                known.add("score")
        return frozenset(known)

    def data(self, t: Tensor, x: Tensor) -> Tensor:
        """E[x1 | x_t = x]."""
        return self.predict(t, x) if self.kind == "data" else self.endpoints(t, x)[0]

    def noise(self, t: Tensor, x: Tensor) -> Tensor:
        """E[x0 | x_t = x]."""
        return self.predict(t, x) if self.kind == "noise" else self.endpoints(t, x)[1]

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """grad_x log p_t(x)."""
        if self.no_score is not None:
            raise GenkitError(f"this field has no score: {self.no_score}")
        return -self.noise(t, x) / self.at(t).sigma

    def at(self, t: Tensor) -> Coefficients:
        if self.coefficients is None:
            raise GenkitError("this field gives velocity only: it comes without a Gaussian-form path")
        return self.coefficients(t)


@dataclass
class Solution:
    """The end of an integration: x, the field evaluations it took, and the states at each time if kept."""

    x: Tensor
    nfe: int
    trajectory: list[Tensor] = field(default_factory=list)


@dataclass
class LogProb:
    """value (B,) nats of the data, its kind, and the standard error (B,) of a Monte Carlo estimate.

    count: (B,) how many values of a row it is of, where that is not all of them (see `DataSpec.fixed`).
    """

    value: Tensor
    kind: Kind
    stderr: Tensor | None = None
    count: Tensor | None = None


@dataclass
class Sample:
    """Generated data x (B, ...), decoded as the data set stores it, with what it cost.

    nfe: sequential network calls. tokens: tokens that went through the whole backbone, a sample.
    log_prob: when asked for, the log-density of each sample as encoded, before `decode`.
    """

    x: Tensor
    nfe: int
    tokens: float
    log_prob: LogProb | None = None
