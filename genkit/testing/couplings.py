"""The laws of couplings: what each declares, measured.

    draw(coupling, data)                     pairs of many batches, weighted pairs by their weight
    moved, repeats                           0 where rows stay where they are, and where the generator decides
    source_p, data_p                         p-values of equal marginals; small where they differ
    dependence                               about 1 where x0 and x1 are independent, larger where not
    cost_ratio                               E|x1 - x0|^2 over that of independent pairs

The coupling is one that was set up. Randomness is keyed: the same coupling gives the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling, EncodedData
from genkit.randomness import keyed_generator
from genkit.types import Pair, Rows

Given = tuple[Tensor, Tensor | None, Tensor]


def rows_of(data: EncodedData, size: int, key: int = 0) -> Given:
    """x1 (size, ...), y (size,) or None, and index (size,) of rows drawn with replacement."""
    index = torch.randint(len(data), (size,), generator=keyed_generator(key, "law rows"))
    x1, y = data.take(index, generator=keyed_generator(key, "law noise"))
    return x1, y, index


def draw(coupling: Coupling, data: EncodedData, *, batches: int = 60, size: int = 48) -> Pair:
    """The pairs (batches * size) of many batches; those of a weighted batch are drawn again by their weights."""
    pairs = []
    for key in range(batches):
        x1, y, index = rows_of(data, size, key)
        pair = coupling(x1, y, index=index, generator=keyed_generator(key, "law pairs"))
        pairs.append(pair if pair.weight is None else resampled(pair, key))
    columns = zip(*((p.x0, p.x1, p.y, p.index) for p in pairs), strict=True)
    return Pair(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def resampled(pair: Pair, key: int = 0) -> Pair:
    """As many pairs, drawn by their weights: without weights, and with what holds of the weighted ones."""
    assert pair.weight is not None
    rows = torch.multinomial(
        pair.weight, len(pair.weight), replacement=True, generator=keyed_generator(key, "law weights")
    )
    return Pair(*(None if c is None else c[rows] for c in (pair.x0, pair.x1, pair.y, pair.index)))  # type: ignore[arg-type]


def moved(coupling: Coupling, data: EncodedData, *, size: int = 48) -> float:
    """How far data, classes or row numbers of a batch are from those that the coupling's `rows` promise: 0, or inf.

    KEPT: from those given. DRAWN: from the rows that the pair's `index` names, up to noise of their encoding.
    Of GENERATED rows nothing is asked.
    """
    x1, y, index = rows_of(data, size)
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
    same = pair.index is not None and torch.equal(pair.index, index) and pair.x1.shape == x1.shape
    same = same and (y is None) == (pair.y is None) and (y is None or torch.equal(y, pair.y))  # type: ignore[arg-type]
    return float((pair.x1 - x1).abs().max()) if same else torch.inf


def repeats(coupling: Coupling, data: EncodedData, *, size: int = 48) -> float:
    """The largest difference between two draws with the same generator; torch's own generator must have no say."""
    x1, y, index = rows_of(data, size)
    pairs = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pairs.append(coupling(x1, y, index=index, generator=keyed_generator(0, "law pairs")))
    first, again = pairs
    return float(max((first.x0 - again.x0).abs().max(), (first.x1 - again.x1).abs().max()))


def source_p(coupling: Coupling, data: EncodedData, *, batches: int = 60, size: int = 48) -> float:
    """p-value that x0 comes from the source, over many batches (see `same_p`)."""
    x0 = draw(coupling, data, batches=batches, size=size).x0
    return same_p(x0, coupling.source.sample(x0, generator=keyed_generator(0, "law source")))


def data_p(coupling: Coupling, data: EncodedData, *, batches: int = 60, size: int = 48) -> float:
    """p-value that x1 comes from the data, over many batches (see `same_p`)."""
    x1 = draw(coupling, data, batches=batches, size=size).x1
    fresh = [rows_of(data, size, key)[0] for key in range(batches, 2 * batches)]
    return same_p(x1, torch.cat(fresh))


def same_p(a: Tensor, b: Tensor, *, directions: int = 5) -> float:
    """p-value that a and b (n, ...) have one distribution: Kolmogorov-Smirnov along random lines, the least one
    times their number."""
    from scipy.stats import ks_2samp

    a, b = a.flatten(1).double(), b.flatten(1).double()
    lines = torch.randn(
        directions, a.shape[1], generator=keyed_generator(0, "law lines"), dtype=torch.float64
    )
    found = [ks_2samp((a @ line).numpy(), (b @ line).numpy()).pvalue for line in lines]
    return min(1.0, directions * float(min(found)))


def dependence(coupling: Coupling, data: EncodedData, *, batches: int = 25, size: int = 48) -> float:
    """Energy distance between pairs (x0, x1) and pairs of shuffled rows, over the largest of five between two
    shuffles."""
    pair = draw(coupling, data, batches=batches, size=size)

    def shuffled(key: int) -> Tensor:
        order = torch.randperm(len(pair.x0), generator=keyed_generator(key, "law shuffle"))
        return torch.cat((pair.x0.flatten(1), pair.x1[order].flatten(1)), 1)

    joint = torch.cat((pair.x0.flatten(1), pair.x1.flatten(1)), 1)
    null = max(energy_distance(shuffled(2 * k), shuffled(2 * k + 1)) for k in range(5))
    return energy_distance(joint, shuffled(99)) / null


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|, of samples (n, d), (m, d)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def mean_cost(pair: Pair) -> float:
    """The weighted mean of |x1 - x0|^2."""
    cost = (pair.x1 - pair.x0).square().flatten(1).sum(1)
    weight = torch.ones_like(cost) if pair.weight is None else pair.weight
    return float((weight * cost).sum() / weight.sum())


def cost_ratio(coupling: Coupling, data: EncodedData, *, batches: int = 10, size: int = 48) -> float:
    """The mean of |x1 - x0|^2 over that of independent pairs of the same source and data."""
    independent = COUPLINGS.build("independent")
    independent.source = coupling.source
    one, other = (draw(c, data, batches=batches, size=size) for c in (coupling, independent))
    return mean_cost(one) / mean_cost(other)
