"""The laws of couplings: what each declares, measured.

    draw(coupling, data)                     pairs of many batches, weighted pairs by their weight
    moved, repeats                           0 where rows stay where they are, and where the generator decides
    source_p, data_p                         p-values of equal marginals; small where they differ
    dependence                               at most about 1 where x0 and x1 are independent given the class
    cost_ratio                               E|x1 - x0|^2 over that of independent pairs

The coupling is one that was set up. Randomness is keyed: the same coupling gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling, EncodedData
from genkit.data.base import DATASETS, Encoded, TensorSplit
from genkit.data.densities import DensitySource
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.testing.laws import Finding, Laws, at_least, at_most, both, equal, p_value
from genkit.testing.oracles import AffineFlow
from genkit.types import DataSpec, Pair, Rows, Source, StandardNormal

Given = tuple[Tensor, Tensor | None, Tensor]
RARE = 1e-3  # p-values below it break a law
SPEC = DataSpec("toy", (2,), classes=3)
PICTURES = DataSpec("pictures", (1, 4, 4), classes=3)
GIVEN = DataSpec("given", (2,), condition=1)


def toy(spec: DataSpec = SPEC, n: int = 300) -> Encoded:
    """Rows of unequal scales, away from the origin, with classes, or with their first value as a condition."""
    x = torch.randn(n, spec.dims, generator=keyed_generator(0, "toy")) + 1
    x[:, 0] *= 2
    x[:, 1] = x[:, 0] / 2 + x[:, 1] / 2
    y = torch.arange(n) % 3 if spec.condition is None else x[:, : spec.condition].clone()
    return Encoded(TensorSplit(x.reshape(n, *spec.shape), y), Continuous(spec))


@dataclass
class Case:
    """A coupling class with its options, and toy data: `build` sets it up with a teacher in closed form, if it needs
    one."""

    cls: type[Coupling]
    options: dict[str, Any]
    data: Encoded = field(default_factory=toy)

    def __post_init__(self) -> None:
        self.coupling = self.build()

    def build(self, source: Source | None = None, data: Encoded | None = None) -> Coupling:
        coupling = self.cls(**self.options)
        source, data = source or StandardNormal(), data or self.data
        teacher = AffineFlow(data.split.take(torch.arange(1))[0].shape[1:], source)
        coupling.setup(data, source, teacher if coupling.needs_teacher else None)
        return coupling

    def pair(self, size: int = 48, key: int = 0) -> tuple[Given, Pair]:
        """A batch, and what the coupling makes of it."""
        given = rows_of(self.data, size, key)
        x1, y, index = given
        copies = x1.clone(), None if y is None else y.clone()
        return given, self.coupling(*copies, index=index.clone(), generator=keyed_generator(key, "law pairs"))

    @cached_property
    def pairs(self) -> list[Pair]:
        return drawn(self.coupling, self.data)


LAWS = Laws(COUPLINGS, Case)


@LAWS.law
def pairs_are_aligned_rows(case: Case) -> Finding:
    """x0 and x1 have the shape and dtype of the batch, are finite and carry no gradient; weights are one a row, none
    negative, not all zero. Also for a batch of one, and for pictures."""
    findings = []
    for size in (48, 7, 1):
        (x1, _, _), pair = case.pair(size)
        findings.append(shapes(pair, x1))
    pictures = toy(PICTURES, 30)
    x1, y, index = rows_of(pictures, 6)
    pair = case.build(data=pictures)(x1, y, index=index, generator=keyed_generator(0))
    return both(*findings, shapes(pair, x1))


def shapes(pair: Pair, x1: Tensor) -> Finding:
    for name, x in (("x0", pair.x0), ("x1", pair.x1)):
        if x.shape != x1.shape or x.dtype != x1.dtype:
            wanted = f"{tuple(x1.shape)} {x1.dtype}"
            return Finding(False, f"{name} is {tuple(x.shape)} {x.dtype} for a batch of {wanted}")
        if not bool(x.isfinite().all()) or x.requires_grad:
            return Finding(
                False, f"{name} carries a gradient" if x.requires_grad else f"{name} is not finite"
            )
    w = pair.weight
    if w is not None and not (
        w.shape == x1.shape[:1] and bool((w >= 0).all()) and 0 < float(w.sum()) < torch.inf
    ):
        return Finding(False, f"weights {tuple(w.shape)} for {len(x1)} rows, from {float(w.min()):.3g}")
    return Finding(True, f"{len(x1)} rows of {tuple(x1.shape[1:])}")


@LAWS.law
def data_rows_stay_in_place(case: Case) -> Finding | None:
    """Row i of x1 comes back as row i, none moved, lost or drawn twice (rows = Rows.KEPT): training counts on it.
    Return x1 as it was given and choose among the rows of x0, or declare Rows.DRAWN or Rows.GENERATED."""
    if case.cls.rows is not Rows.KEPT:
        return None
    (x1, _, _), pair = case.pair()
    if pair.x1.shape != x1.shape:
        return Finding(False, f"{len(pair.x1)} rows came back of {len(x1)}")
    same = (pair.x1[:, None] == x1).flatten(2).all(2)
    away, lost = int((~same.diagonal()).sum()), int((~same.any(0)).sum())
    return Finding(not away, f"{away} of {len(x1)} rows differ, {lost} came back nowhere")


@LAWS.law
def classes_and_row_numbers_go_with_the_rows(case: Case) -> Finding | None:
    """y and index of the pair are those of its rows: given back as they came where rows are kept, of the chosen rows
    where they are drawn. Pass them on: Pair(x0, x1, y, index)."""
    return at_most(moved(case.coupling, case.data), 0, "distance to the rows that `index` names")


@LAWS.law
def real_valued_conditions_go_with_the_rows(case: Case) -> Finding | None:
    """Of data with real numbers (B, K) in the place of classes, the pair has those of its rows, and the generator
    decides; or the coupling says that it needs classes."""
    data = toy(GIVEN)
    try:
        coupling = case.build(data=data)
    except GenkitError as error:
        return Finding(True, f"refused: {error}")
    return both(
        at_most(moved(coupling, data), 0, "distance to the rows that `index` names"),
        at_most(repeats(coupling, data), 0, "difference between two draws of one seed"),
    )


@LAWS.law
def unlabelled_data_stay_unlabelled(case: Case) -> Finding | None:
    """Without classes in the batch there are none in the pair, and the coupling works (or says that it needs them)."""
    x1, _, _ = rows_of(case.data, 12)
    try:
        pair = case.coupling(x1, generator=keyed_generator(0))
    except GenkitError:
        return None
    return equal(pair.y, None, "classes of the pair:")


@LAWS.law
def the_batch_is_left_alone(case: Case) -> Finding:
    """What was passed in is not written to: others read the same tensors."""
    x1, y, index = rows_of(case.data, 48)
    given = x1.clone(), None if y is None else y.clone(), index.clone()
    case.coupling(x1, y, index=index, generator=keyed_generator(0))
    changed = [
        name
        for name, now, before in zip(("x1", "y", "index"), (x1, y, index), given, strict=True)
        if not alike(now, before)
    ]
    return Finding(not changed, f"written to: {', '.join(changed) or 'nothing'}")


@LAWS.law
def the_generator_decides(case: Case) -> Finding:
    """Generators of one seed give the same pairs, whatever torch's own seed is: a run could not be resumed else. Hand
    `generator` to everything that draws."""
    return at_most(repeats(case.coupling, case.data), 0, "difference between two draws of one seed")


@LAWS.law
def other_generators_give_other_pairs(case: Case) -> Finding | None:
    """Another seed gives other noise: a source sample that is the same in all batches is no sample. Draw with
    self.source.sample(x1, generator=generator)."""
    if not case.cls.keeps_source:
        return None
    x1, y, index = rows_of(case.data, 48)
    one, other = (case.coupling(x1, y, index=index, generator=keyed_generator(k)).x0 for k in (1, 2))
    shared = float((one[:, None] == other).flatten(2).all(2).any(1).double().mean())
    return at_most(shared, 0.5, "share of noise samples that two seeds have in common:")


@LAWS.law
def the_marginal_of_x0_is_the_source(case: Case) -> Finding | None:
    """Over many batches x0 is distributed as the source that was set up (a normal, then 8 gaussians), in weighted
    pairs by their weights. Else the model is sampled from where it was not trained: declare keeps_source = False."""
    if not case.cls.keeps_source:
        return None
    found = at_least(source_p(case.coupling, case.data, pairs=case.pairs), RARE, "standard normal: p =")
    source = DensitySource(DATASETS.build("8gaussians"))
    try:
        coupling = case.build(source)
    except GenkitError:  # it says that it is for normal noise only
        return found
    return both(found, at_least(source_p(coupling, case.data), RARE, "8 gaussians: p ="))


@LAWS.law
def the_marginal_of_x1_is_the_data(case: Case) -> Finding | None:
    """Over many batches x1 is distributed as the data, where it is chosen among them (Rows.DRAWN) and the source is
    kept: no row is drawn more often than another."""
    if case.cls.rows is not Rows.DRAWN or not case.cls.keeps_source:
        return None
    return at_least(data_p(case.coupling, case.data), RARE, "p =")


@LAWS.law
def pairs_are_as_independent_as_declared(case: Case) -> Finding | None:
    """With independent = True, x0 says nothing of x1 in a class: the field is then taken to have a score, and samplers
    use it. The distance covariance of pairs must be within that of 99 shuffles. Leave `independent` False if x0
    depends on x1."""
    if not case.cls.independent:
        return None
    return at_most(
        dependence(case.coupling, case.data), 1.25, "dependence, in units of the largest of shuffles,"
    )


@LAWS.law
def the_cost_is_below_that_of_independent_pairs(case: Case) -> Finding | None:
    """With lowers_cost = True, E|x1 - x0|^2 is lower than that of independent pairs. Declare it False if it is not."""
    if not case.cls.lowers_cost:
        return None
    return at_most(cost_ratio(case.coupling, case.data), 0.99, "cost, in units of that of independent pairs,")


def rows_of(data: EncodedData, size: int = 48, key: int = 0) -> Given:
    """x1 (size, ...), y or None, and index (size,) of rows drawn with replacement."""
    index = torch.randint(len(data), (size,), generator=keyed_generator(key, "law rows"))
    x1, y = data.take(index, generator=keyed_generator(key, "law noise"))
    return x1, y, index


def drawn(coupling: Coupling, data: EncodedData, *, batches: int = 100, size: int = 48) -> list[Pair]:
    """The pairs of each of many batches; those of a weighted batch are drawn again by their weights."""
    pairs = []
    for key in range(batches):
        x1, y, index = rows_of(data, size, key)
        pair = coupling(x1, y, index=index, generator=keyed_generator(key, "law pairs"))
        pairs.append(pair if pair.weight is None else resampled(pair, key))
    return pairs


def draw(coupling: Coupling, data: EncodedData, *, batches: int = 60, size: int = 48) -> Pair:
    """All pairs (batches * size) that are `drawn`."""
    pairs = drawn(coupling, data, batches=batches, size=size)
    x0, x1 = torch.cat([pair.x0 for pair in pairs]), torch.cat([pair.x1 for pair in pairs])
    return Pair(x0, x1, joined([pair.y for pair in pairs]), joined([pair.index for pair in pairs]))


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """None where some part is."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are None, or equal."""
    return torch.equal(a, b) if a is not None and b is not None else a is b


def resampled(pair: Pair, key: int = 0) -> Pair:
    """As many pairs, drawn by their weights: without weights, and with what holds of the weighted ones."""
    assert pair.weight is not None
    rows = torch.multinomial(
        pair.weight, len(pair.weight), replacement=True, generator=keyed_generator(key, "law weights")
    )
    y, index = (None if column is None else column[rows] for column in (pair.y, pair.index))
    return Pair(pair.x0[rows], pair.x1[rows], y, index)


def moved(coupling: Coupling, data: EncodedData) -> float:
    """How far data, classes or row numbers of a batch are from those that the coupling's `rows` promise: 0, or inf.

    KEPT: from those given. DRAWN: from the rows that the pair's `index` names, up to noise of their encoding.
    Of GENERATED rows nothing is asked.
    """
    x1, y, index = rows_of(data)
    pair = coupling(x1.clone(), y, index=index, generator=keyed_generator(0, "law pairs"))
    if coupling.rows is Rows.GENERATED:
        return 0.0
    if coupling.rows is Rows.DRAWN:
        if pair.index is None:
            return torch.inf
        index = pair.index
        x1, y = data.take(index, generator=keyed_generator(0, "law noise"))
        again, _ = data.take(index, generator=keyed_generator(1, "law noise"))
        if not torch.equal(x1, again):  # encoded with fresh noise each time
            x1 = pair.x1
    same = alike(pair.index, index) and alike(pair.y, y) and pair.x1.shape == x1.shape
    return float((pair.x1 - x1).abs().max()) if same else torch.inf


def repeats(coupling: Coupling, data: EncodedData) -> float:
    """The largest difference between two draws with the same generator; torch's own generator must have no say."""
    x1, y, index = rows_of(data)
    pairs = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pairs.append(coupling(x1, y, index=index, generator=keyed_generator(0, "law pairs")))
    first, again = pairs
    return float(max((first.x0 - again.x0).abs().max(), (first.x1 - again.x1).abs().max()))


def source_p(coupling: Coupling, data: EncodedData, *, pairs: list[Pair] | None = None) -> float:
    """p-value that x0 comes from the source, over many batches, or over these `pairs` (see `p_value`)."""
    pairs = drawn(coupling, data) if pairs is None else pairs
    x0 = torch.stack([pair.x0 for pair in pairs])
    like = x0.repeat(4, *[1] * (x0.ndim - 1))  # more of them, for the test to see more
    fresh = coupling.source.sample(like.flatten(0, 1), generator=keyed_generator(0, "law source"))
    return p_value(x0, fresh.reshape(like.shape))


def data_p(coupling: Coupling, data: EncodedData) -> float:
    """p-value that x1 comes from the data, over many batches (see `p_value`)."""
    pairs = drawn(coupling, data)
    fresh = [rows_of(data, key=key)[0] for key in range(len(pairs), 5 * len(pairs))]
    return p_value(torch.stack([pair.x1 for pair in pairs]), torch.stack(fresh))


def dependence(coupling: Coupling, data: EncodedData) -> float:
    """Distance covariance of x0 and x1 within classes, over the largest of 99 shuffles of x1.

    Szekely, Rizzo & Bakirov, https://arxiv.org/abs/0803.4101.
    """
    pair = draw(coupling, data, batches=20)
    y = torch.zeros(len(pair.x0)) if pair.y is None else pair.y
    generator = keyed_generator(0, "law shuffle")
    totals = torch.zeros(100)
    for value in y.unique():
        a, b = (centred(x[y == value]) for x in (pair.x0, pair.x1))
        for k in range(len(totals)):
            order = torch.randperm(len(a), generator=generator) if k else torch.arange(len(a))
            totals[k] += (a * b[order][:, order]).sum() / len(a)
    return float(totals[0] / totals[1:].max())


def centred(x: Tensor) -> Tensor:
    """Distances between rows of x (n, ...), less their means over rows and columns: (n, n)."""
    distances = torch.cdist(x.flatten(1), x.flatten(1))
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


def mean_cost(pair: Pair) -> float:
    """The weighted mean of |x1 - x0|^2."""
    cost = (pair.x1 - pair.x0).square().flatten(1).sum(1)
    weight = torch.ones_like(cost) if pair.weight is None else pair.weight
    return float((weight * cost).sum() / weight.sum())


def cost_ratio(coupling: Coupling, data: EncodedData) -> float:
    """The mean of |x1 - x0|^2 over that of independent pairs of the same source and data."""
    independent = COUPLINGS.build("independent")
    independent.source = coupling.source
    one, other = (draw(c, data, batches=10) for c in (coupling, independent))
    return mean_cost(one) / mean_cost(other)
