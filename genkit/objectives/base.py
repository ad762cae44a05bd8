"""The objective interface and its registry."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from genkit.backbone import ModelOptions, Tokens, Transformer, tokens_of
from genkit.data.base import Split, whole
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES, Guidance
from genkit.guidance.base import Predicted, no_guide
from genkit.randomness import sample_like
from genkit.registry import Registry
from genkit.types import Batch, DataSpec, Generator, Kind, LogProb, Sample, Source, View, null_like, per_row

T = TypeVar("T", bound="Objective")
# What a teacher's data must have alike.
SAME = ("shape", "levels", "classes", "condition", "tokenizer", "fixed")


class Objective(nn.Module, abc.ABC):
    """A backbone with the stems and heads of one family of models, its loss, and its ways to sample.

    spec: of the data. model: of the backbone. The other arguments of a class are its options in a recipe.
    conditional: whether it is told y of a sample: one of so many `classes`, or `condition_dims` real values.
    samplers: the registry of what samples are made with (solvers, unmaskers, inverters); None where there is no choice.
    default_sampler: what they are made with when nothing is said.
    generates: whether it makes samples; a codec does not.
    any_size: whether samples may be of another size than the data's, by `resized`.
    second_order: whether the loss differentiates a gradient of the backbone.
    predicts: what guidance has to combine. by_prompt: whether it may go by a prompt in the place of a class.
    """

    generates: ClassVar[bool] = True
    any_size: ClassVar[bool] = False
    second_order: ClassVar[bool] = False
    predicts: ClassVar[Predicted] = "field"
    by_prompt: ClassVar[bool] = False
    samplers: ClassVar[Registry[Any] | None] = None
    default_sampler: str = ""
    view: View
    source: Source | None = None
    positions: Tensor

    def __init__(
        self, spec: DataSpec, model: ModelOptions, *, conditional: bool, label_dropout: float
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout < 1:
            raise GenkitError(f"label_dropout must be in [0, 1), not {label_dropout}")
        self.spec, self.model = spec, model
        self.conditional = conditional and spec.conditional
        self.classes = spec.classes if self.conditional else None
        self.condition_dims = spec.condition if self.conditional else None
        self.label_dropout = label_dropout
        self.tokens = self.cut(spec, model)
        self.register_buffer("positions", self.tokens.positions, persistent=False)
        self.backbone = Transformer(model)

    def cut(self, spec: DataSpec, model: ModelOptions) -> Tokens:
        """The tokens of the backbone. Raises GenkitError for data of a shape that this objective does not take."""
        return tokens_of(spec, model.patch)

    def resized(self, size: int) -> Objective:
        """The same weights, which sample images of this side, or clouds of so many points.

        Raises GenkitError where samples have the size of the data.
        """
        able = ", ".join(f"'{name}'" for name in OBJECTIVES.names() if OBJECTIVES.get(name).any_size)
        raise GenkitError(
            f"a model of {type(self).__name__} makes samples of the size of its data only, {self.spec.shape}: those of "
            f"the objective {able} may have another"
        )

    def check_teacher(self, teacher: Any) -> None:
        """Raises GenkitError for a teacher that does not fit, and for none where one is needed."""
        for what in SAME if teacher is not None else ():
            theirs, ours = getattr(teacher.spec, what), getattr(self.spec, what)
            if theirs != ours:
                if what == "tokenizer":
                    raise GenkitError("the teacher was trained on text of another vocabulary")
                raise GenkitError(f"the teacher was trained on data of {what} {theirs}; these have {ours}")

    def takes(self, sampler: Any) -> bool:
        """Whether samples can be made with this one of the registry `samplers`."""
        return True

    def setup(self, data: Split, teacher: Any = None) -> None:
        """Once before training: what the objective needs of the data and of a teacher.

        Raises GenkitError for a teacher that does not fit, and data with other classes or conditions than their spec
        says.
        """
        self.check_teacher(teacher)
        if self.conditional:
            if data.y is None:
                raise GenkitError(f"the rows of '{self.spec.name}' come without the y that its spec says")
            self.labels(len(data), whole(data.y))
            if self.classes is not None and bool((data.y < 0).any()):
                raise GenkitError(
                    f"class -1 is the null: '{self.spec.name}' has classes 0 to {self.classes - 1}"
                )

    @torch.no_grad()
    def prepare(self, batch: Batch, *, generator: Generator = None) -> Batch:
        """Adds to the batch what `loss` trains on. It may run ahead of the step, in another thread: without gradients,
        apart from the weights that are trained, and with no draws but from `generator`."""
        batch.encoded = self.view.encode(batch.x, generator=generator)
        return batch

    @abc.abstractmethod
    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        """A prepared batch -> {"loss": scalar, ...}; what else is there is logged."""

    @abc.abstractmethod
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: Any = None,
        guidance: Guidance | None = None,
        return_log_prob: bool = False,
        generator: Generator = None,
    ) -> Sample:
        """n samples of the classes y (n,) or conditions (n, K); None is the unconditional model (the null)."""

    def trajectory(
        self, n: int, y: Tensor | None = None, *, sampler: Any, generator: Generator = None
    ) -> tuple[list[Tensor], Tensor]:
        """The states (n, ...) that a solver passes through, encoded, and their times; of flows of pairs."""
        raise GenkitError(f"samples of {type(self).__name__} do not go through time: there is no trajectory")

    @abc.abstractmethod
    def log_prob(self, x: Tensor, y: Tensor | None = None, *, generator: Generator = None) -> LogProb:
        """Log-probability (B,) in nats of data x (B, ...), as the data set stores them."""

    @property
    def likelihood(self) -> Kind | None:
        """The kind of `log_prob`; None where there is none."""
        return None if self.no_likelihood else self.view.likelihood

    @property
    def no_likelihood(self) -> str | None:
        """Why there is no `log_prob`; None where there is."""
        if self.view.likelihood is None:
            return (
                "a model trained on noised or undequantized data has no likelihood of the data: "
                "train with noise='uniform'"
            )
        if self.source is not None and not self.source.closed_form:
            return "the source of this model has no closed-form density, so there is no likelihood"
        return None

    def check_sampler(self, sampler: Any) -> None:
        """Raises GenkitError for one of the registry `samplers` that asks what this model cannot give."""

    @property
    def passes(self) -> float:
        """How often a row goes through a backbone, this one's or a teacher's, in a train step."""
        return 1.0

    @property
    def setup_rows(self) -> int:
        """How many rows, each time they do, went through a teacher's backbone in `setup`."""
        return 0

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def drop_label(self, y: Tensor | None, *, generator: Generator = None) -> Tensor | None:
        """Classes or conditions with a share `label_dropout` of them replaced by the null."""
        if y is None or not self.conditional:
            return None
        dropped = sample_like(torch.rand, y.float(), generator, (len(y),)) < self.label_dropout
        return torch.where(per_row(dropped, y), null_like(y), y)

    def labels(
        self, n: int, y: Tensor | None, guidance: Guidance | None = None, *, log_prob: bool = False
    ) -> Tensor | None:
        """`y` as this model takes it. Raises GenkitError for classes that do not exist, conditions of another shape,
        what cannot be guided, guidance without y, and a guided log-probability."""
        if n < 1:
            raise GenkitError(f"the number of samples must be at least 1, not {n}")
        self.check_guidance(guidance)
        if log_prob and guidance is not None and guidance.active:
            raise GenkitError("guided samples have no log-probability: set guidance to 1")
        if y is None:
            if guidance is not None and guidance.active and not guidance.by_model:
                what = "the class" if self.classes is not None else "the conditions"
                raise GenkitError(
                    f"guidance leads away from the model without y: give y, {what} of each sample"
                )
            return None
        if not self.conditional:
            raise GenkitError(f"this model of '{self.spec.name}' is unconditional: it takes no class")
        y = y.to(self.device)
        if self.condition_dims is not None:
            if y.shape != (n, self.condition_dims) or not y.is_floating_point():
                raise GenkitError(
                    f"conditions of '{self.spec.name}' must be real numbers of shape ({n}, {self.condition_dims}), not "
                    f"{tuple(y.shape)} {y.dtype}"
                )
            if bool(y.isinf().any()):
                raise GenkitError(f"conditions of '{self.spec.name}' must be finite")
            return y
        assert self.classes is not None
        if y.is_floating_point():
            raise GenkitError(f"'{self.spec.name}' has classes, which are whole numbers, not {y.dtype}")
        if y.shape != (n,):
            raise GenkitError(f"classes must have shape ({n},), not {tuple(y.shape)}")
        if bool(((y < -1) | (y >= self.classes)).any()):
            wrong = y[(y < -1) | (y >= self.classes)][0].item()
            raise GenkitError(
                f"class {wrong} is out of range: '{self.spec.name}' has classes 0 to {self.classes - 1}"
            )
        return y

    def check_guidance(self, guidance: Guidance | None, *, by_class: bool = True) -> None:
        """Raises GenkitError for guidance that this model cannot have. by_class: not by a prompt."""
        if guidance is None or not guidance.active:
            return
        if self.predicts not in guidance.of:
            able = [name for name in GUIDANCES.names() if self.predicts in GUIDANCES.get(name).of]
            raise GenkitError(
                f"the guidance '{GUIDANCES.name_of(guidance)}' is of {' and '.join(sorted(guidance.of))} predictions, "
                f"this model's are {self.predicts}: use one of {', '.join(able)}"
            )
        if by_class and not guidance.by_model and not (self.conditional and self.label_dropout):
            why = "was trained with label_dropout 0" if self.conditional else "is unconditional"
            raise GenkitError(f"guidance needs a conditional model with label dropout; this one {why}")

    def guide(self, guidance: Guidance | None) -> Self | None:
        """The weaker model that guides, on the device of this one; None where this one without the class does."""
        if guidance is None or not (guidance.active and guidance.by_model):
            return None
        if guidance.guide is None:
            raise GenkitError(no_guide(guidance))
        if guidance.guide.device != self.device:
            guidance.guide.to(self.device)
        return guidance.guide

    def encoded_for_likelihood(
        self, x: Tensor, y: Tensor | None, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Data as the model sees them, and their classes. Raises GenkitError when there is no likelihood."""
        if self.no_likelihood:
            raise GenkitError(self.no_likelihood)
        if tuple(x.shape[1:]) != self.spec.shape:
            raise GenkitError(f"data of shape {self.spec.shape} expected, not {tuple(x.shape[1:])}")
        x = self.view.encode(x.to(self.device), generator=generator)
        return x, self.labels(len(x), y) if self.conditional else None


class Beside(Generic[T]):
    """A teacher beside a model: no part of it, shared with its copies (what is sharded is one), on its device."""

    def __init__(self, teacher: T) -> None:
        self.teacher = teacher

    def on(self, device: torch.device) -> T:
        if self.teacher.device != device:
            self.teacher.to(device)
        return self.teacher

    def __deepcopy__(self, memo: dict[int, Any]) -> Beside[T]:
        return self


OBJECTIVES = Registry(Objective, "objective", "genkit.objectives", given=2)


def finite(x: Tensor) -> Tensor:
    """Encoded samples as they are. Raises GenkitError where one is not finite: it has no data to be decoded to."""
    if not bool(x.isfinite().all()):
        raise GenkitError(
            "samples are not finite: the sampler diverged; more steps, another solver or less guidance is the cure"
        )
    return x


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all elements of (B, ...), rows weighted by (B,); the weights need not sum to one."""
    if weight is None:
        return values.mean()
    return (values.flatten(1).mean(1) * weight).sum() / weight.sum()
