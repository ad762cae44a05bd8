"""The laws of objectives, on a small backbone and the first of some small data sets that they take."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor

from genkit.backbone import ModelOptions, Transformer
from genkit.data.base import TensorSplit
from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.objectives.base import OBJECTIVES, Objective
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.testing.laws import Finding, Laws, at_most, both, difference, equal
from genkit.types import Batch, DataSpec, Kind, null_like

# What is tried, in this order: data, and the size of a patch.
DATA = (
    (DataSpec("images", (1, 4, 4), levels=5, classes=3, class_names=("a", "b", "c")), 2),
    (DataSpec("images", (1, 4, 4), levels=5, classes=3, class_names=("a", "b", "c")), 1),
    (DataSpec("vectors", (3,), classes=3), 1),
    (DataSpec("letters", (6,), levels=4, ordered=False), 1),
    (DataSpec("sound", (64,), rate=8000), 1),
    (DataSpec("sound", (4096,), rate=8000), 1),
)


def rows_of(spec: DataSpec, n: int = 64) -> TensorSplit:
    generator = keyed_generator(0, "law rows")
    y = torch.arange(n) % spec.classes if spec.classes else None
    if spec.condition:
        y = torch.randn(n, spec.condition, generator=keyed_generator(0, "law conditions"))
    if spec.levels:
        return TensorSplit(torch.randint(spec.levels, (n, *spec.shape), generator=generator), y)
    return TensorSplit(torch.randn(n, *spec.shape, generator=generator).clamp(-1, 1), y)


@dataclass
class Case:
    """An objective class with its options, and an objective whose weights are as after training: none is zero."""

    cls: type[Objective]
    options: dict[str, Any]
    spec: DataSpec = field(init=False)
    model: ModelOptions = field(init=False)

    def __post_init__(self) -> None:
        why: list[str] = []
        for spec, patch in DATA:
            self.spec, self.model = spec, ModelOptions(width=24, depth=4, heads=2, patch=patch)
            try:
                self.objective = self.build()
            except GenkitError as error:
                why.append(f"{spec.name} {spec.shape}: {error}")
            else:
                return
        raise GenkitError(f"{self.cls.__name__} takes none of the data of this check. " + "; ".join(why))

    def build(self, seed: int = 0, spec: DataSpec | None = None) -> Objective:
        torch.manual_seed(seed)
        objective = self.cls(spec or self.spec, self.model, **self.options)
        objective.setup(rows_of(spec or self.spec))
        with torch.no_grad():
            for p in objective.parameters():
                if p.abs().max() == 0:
                    p.normal_(std=0.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.1)
        return objective.eval()

    def loss(self, objective: Objective | None = None, key: int = 0, n: int = 32) -> dict[str, Tensor]:
        objective, generator = objective or self.objective, keyed_generator(key)
        index = torch.arange(n) % 64
        batch = Batch(*rows_of(objective.spec).take(index), index)
        return objective.loss(objective.prepare(batch, generator=generator), generator=generator)

    @property
    def classes(self) -> Tensor | None:
        return torch.arange(4) % self.objective.classes if self.objective.classes else None

    def sample(self, key: int = 0, **options: Any) -> Any:
        return self.objective.sample(4, self.classes, generator=keyed_generator(key), **options)


LAWS = Laws(OBJECTIVES, Case)


@LAWS.law
def the_backbone_is_shared(case: Case) -> Finding:
    """`backbone` is the Transformer of the model options, with its keys and shapes: weights of any objective load into
    it strictly, and comparisons are at equal parameters. Stems and heads of your own belong outside of it."""
    plain = Transformer(case.model).state_dict()
    ours = case.objective.backbone.state_dict()
    wrong = [
        key
        for key in {*plain, *ours}
        if key not in plain or key not in ours or plain[key].shape != ours[key].shape
    ]
    return Finding(
        not wrong, f"{len(plain)} tensors" + (f", unlike: {', '.join(sorted(wrong)[:3])}" if wrong else "")
    )


@LAWS.law
def gradients_reach_every_parameter(case: Case) -> Finding:
    """The loss has a gradient for every parameter, finite and not zero: one that gets none is not trained. Look for a
    detach, a layer that is not called, or one whose output is not used."""
    objective = case.build()
    case.loss(objective)["loss"].backward()
    missed = [
        name
        for name, p in objective.named_parameters()
        if p.grad is None or not bool(p.grad.isfinite().all()) or not bool(p.grad.any())
    ]
    total = sum(1 for _ in objective.parameters())
    return Finding(
        not missed, f"{total - len(missed)} of {total}" + (f", not {', '.join(missed[:4])}" if missed else "")
    )


@LAWS.law
def the_loss_is_a_number(case: Case) -> Finding:
    """`loss` gives a mapping whose "loss" is a finite scalar; all else in it is finite too, and is logged. Also for a
    batch of one."""
    for n in (32, 1):
        found = case.loss(n=n)
        wrong = [key for key, value in found.items() if not bool(torch.as_tensor(value).isfinite().all())]
        if "loss" not in found or found["loss"].ndim or wrong:
            return Finding(
                False, f"batch of {n}: keys {', '.join(found)}; not finite: {', '.join(wrong) or 'none'}"
            )
    return Finding(True, f"loss {float(case.loss()['loss']):.4g}")


@LAWS.law
def the_generator_decides_the_loss(case: Case) -> Finding:
    """The loss of a batch is a function of weights and generator, whatever torch's own seed is, also the second time:
    a resumed run could not be the same else."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(case.loss()["loss"].detach())
    return at_most(difference(*found), 0, "two losses of one seed differ by")


@LAWS.law
def preparing_takes_no_gradients(case: Case) -> Finding:
    """`prepare` may run a step ahead, on other weights: nothing it makes carries a gradient."""
    batch = Batch(*rows_of(case.spec).take(torch.arange(8)), torch.arange(8))
    with torch.enable_grad():
        made = case.objective.prepare(batch, generator=keyed_generator(0))
    pair = (made.pair.x0, made.pair.x1) if made.pair is not None else ()
    carries = any(x is not None and x.requires_grad for x in (made.encoded, *pair))
    return Finding(not carries, "a gradient is carried" if carries else "no gradient")


@LAWS.law
def samples_look_like_the_data(case: Case) -> Finding | None:
    """Samples have spec.shape, as the data set stores rows (int64 levels, or finite float32), with what they cost."""
    if not case.cls.generates:
        return None
    spec, found = case.spec, case.sample()
    x = found.x
    right = x.shape == (4, *spec.shape) and found.nfe > 0 and found.tokens > 0
    if spec.levels:
        right = right and x.dtype == torch.int64 and 0 <= int(x.min()) <= int(x.max()) < spec.levels
    else:
        right = right and x.dtype == torch.float32 and bool(x.isfinite().all())
    return Finding(
        right, f"{tuple(x.shape)} {x.dtype}, {found.nfe} evaluations, {found.tokens:.4g} tokens a sample"
    )


@LAWS.law
def the_generator_decides_the_samples(case: Case) -> Finding | None:
    """Generators of one seed give the same samples, whatever torch's own seed is, and others give others."""
    if not case.cls.generates:
        return None
    found = []
    for seed, key in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(seed)
        found.append(case.sample(key).x)
    return both(
        at_most(difference(found[0], found[1]), 0, "two draws of one seed differ by"),
        Finding(not torch.equal(found[1], found[2]), "another seed gives others"),
    )


@LAWS.law
def guidance_of_scale_1_is_off(case: Case) -> Finding | None:
    """Guidance that is not active leaves samples as they are, bit for bit, and costs no more."""
    if not case.cls.generates or not case.objective.classes or case.objective.label_dropout == 0:
        return None
    plain, off = case.sample(), case.sample(guidance=GUIDANCES.build("classifier_free", scale=1.0))
    return both(
        at_most(difference(plain.x, off.x), 0, "samples differ by"), equal(off.tokens, plain.tokens, "tokens")
    )


@LAWS.law
def log_probabilities_have_a_row_a_sample_and_a_kind(case: Case) -> Finding | None:
    """`log_prob` gives nats (B,), finite, of a kind (exact, bound, estimate, unnormalized), the same for one generator;
    or raises GenkitError where there is none."""
    x, y = rows_of(case.spec).take(torch.arange(6))
    few = {"sampler": SOLVERS.build("euler", steps=2), "tolerance": None}
    options = {k: few[k] for k in inspect.signature(case.objective.log_prob).parameters if k in few}
    try:
        one, again = (
            case.objective.log_prob(x, y, generator=keyed_generator(0), **options) for _ in range(2)
        )
    except GenkitError as error:
        return Finding(True, f"none: {error}")
    right = one.value.shape == (6,) and bool(one.value.isfinite().all()) and one.kind in get_args(Kind)
    same = torch.equal(one.value, again.value)
    return Finding(
        right and same,
        f"{tuple(one.value.shape)}, {one.kind}, {'the same' if same else 'not the same'} again",
    )


@LAWS.law
def the_state_is_all_of_it(case: Case) -> Finding:
    """Its state_dict loads strictly into a new one of other weights, which then has the same loss; so has a deep copy,
    which an average of the weights is. What counts is a parameter or a buffer."""
    other = case.build(seed=1)
    other.load_state_dict(case.objective.state_dict(), strict=True)
    expected = case.loss()["loss"].detach()
    return both(
        at_most(difference(case.loss(other)["loss"].detach(), expected), 0, "loss after loading differs by"),
        at_most(
            difference(case.loss(copy.deepcopy(case.objective))["loss"].detach(), expected), 0, "of a copy by"
        ),
    )


@LAWS.law
def real_valued_conditions_are_heard(case: Case) -> Finding | None:
    """Of data with conditions of real numbers, where it takes such: the loss and the samples depend on them, a NaN is
    the same as none, and those of another width raise GenkitError. Give Condition the `condition_dims`, and let
    drop_label and labels do the rest."""
    spec = replace(case.spec, classes=None, class_names=(), condition=2)
    try:
        objective = case.build(spec=spec)
    except GenkitError:
        return None
    if not case.cls.generates or not objective.conditional:
        return None
    y = rows_of(spec).take(torch.arange(4))[1]
    assert y is not None

    def sample(y: Tensor | None) -> Tensor:
        return objective.sample(4, y, generator=keyed_generator(0)).x

    try:
        sample(y[:, :1])
    except GenkitError:
        narrow = Finding(True, "another width is refused")
    else:
        narrow = Finding(False, "conditions of another width are taken")
    loss = case.loss(objective)["loss"]
    told = difference(sample(10 * y), sample(-10 * y))
    return both(
        Finding(bool(loss.isfinite()), f"loss {float(loss):.4g}"),
        Finding(told > 0, f"other conditions move samples by {told:.3g}"),
        at_most(difference(sample(null_like(y)), sample(None)), 1e-5, "NaN and none differ by"),
        narrow,
    )


@LAWS.law
def classes_that_do_not_exist_are_refused(case: Case) -> Finding | None:
    """A class out of range raises GenkitError (call self.labels), and does not index a table somewhere."""
    if not case.cls.generates or not case.objective.classes:
        return None
    try:
        case.objective.sample(2, torch.tensor([0, case.objective.classes]))
    except GenkitError:
        return Finding(True, "refused")
    return Finding(False, f"class {case.objective.classes} of {case.objective.classes} is taken")
