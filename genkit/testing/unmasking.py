"""The laws of unmaskers, held against the exact model of a small distribution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import RankGenerator, keyed_generator
from genkit.testing.laws import Finding, Laws, at_least, at_most, both, equal
from genkit.testing.oracles import Joint
from genkit.unmasking import UNMASKERS, Noise, Unmasked, Unmasker
from genkit.unmasking.base import Alpha

JOINT = Joint.example()
SMALL = Joint.example(2)
MANY = 30_000


@dataclass
class Asked:
    """An exact model that notes what it is asked: for each call, the rows and how many of their symbols are noise."""

    joint: Joint
    noise: Noise
    calls: list[tuple[Tensor, Tensor]]

    def __call__(self, alpha: Alpha, x: Tensor, rows: Tensor) -> Tensor:
        self.calls.append((rows.clone(), self.noise.marks(x).sum(1)))
        return (self.joint.predict if self.noise.mask is not None else self.joint.denoise)(alpha, x, rows)


@dataclass
class Case:
    """An unmasker class with its options; `sample` reveals rows of four symbols (of two where noise is uniform)."""

    cls: type[Unmasker]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.unmasker = self.cls(**self.options)

    @property
    def noises(self) -> list[Noise]:
        masks = Noise(torch.arange(JOINT.vocabulary), JOINT.mask)
        return [masks, Noise(torch.arange(SMALL.vocabulary))] if self.cls.uniform else [masks]

    def sample(
        self,
        n: int,
        *,
        unmasker: Unmasker | None = None,
        noise: Noise | None = None,
        given: Tensor | None = None,
        key: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Unmasked, Asked]:
        """`given`: rows with -1 where a symbol is free; all are, if there is none."""
        noise = noise or self.noises[0]
        joint = JOINT if noise.mask is not None else SMALL
        generator, asked = generator or keyed_generator(key), Asked(joint, noise, [])
        given = torch.full((n, joint.length), -1) if given is None else given
        x = torch.where(given < 0, noise.draw(given, generator=generator), given)
        found = (unmasker or self.unmasker).sample(asked, x, given < 0, noise, generator=generator)
        return found, asked

    def paced(self, steps: int | None) -> Unmasker | None:
        """The method with another number of steps; None where it has none."""
        try:
            return self.unmasker.paced(steps)
        except GenkitError:
            return None

    @cached_property
    def one_by_one(self) -> Unmasker | None:
        """The method at one symbol a step; None where it does not reveal so few, or forgets some."""
        unmasker = self.paced(None)
        if unmasker is None:
            return None
        _, asked = self.sample(50, unmasker=unmasker)
        left = [counts for _, counts in asked.calls]
        alone = len(left) == JOINT.length and all(
            bool((counts == JOINT.length - k).all()) for k, counts in enumerate(left)
        )
        return unmasker if alone else None


LAWS = Laws(UNMASKERS, Case)


@LAWS.law
def given_symbols_stay_and_all_others_are_revealed(case: Case) -> Finding:
    """What is given of a row is a condition: it comes back as it was; where `free` is true no noise is left. Also in
    rows that are all given or all free. Write to noisy positions only."""
    findings = []
    for noise in case.noises:
        length = JOINT.length if noise.mask is not None else SMALL.length
        given = torch.randint(3, (200, length), generator=keyed_generator(1))
        free = torch.rand(200, length, generator=keyed_generator(2)) < 0.5
        free[0], free[1] = True, False
        found = case.sample(200, noise=noise, given=given.masked_fill(free, -1))[0].x
        changed = int((found != given)[~free].sum())
        left = int(((found < 0) | (found >= JOINT.vocabulary)).sum())
        findings.append(
            Finding(changed == 0 == left, f"{changed} given symbols changed, {left} are noise still")
        )
    return both(*findings)


@LAWS.law
def one_symbol_a_step_is_exact(case: Case) -> Finding | None:
    """With an exact model and one symbol a step (paced(None)) the samples have the model's distribution, by a
    chi-squared test. Choose the position before its value is drawn, and draw the value from the whole prediction."""
    if case.one_by_one is None:
        return None
    from scipy import stats

    found, _ = case.sample(MANY, unmasker=case.one_by_one)
    counts = JOINT.counts(found.x).numpy()
    p = float(stats.chisquare(counts, counts.sum() * JOINT.p.flatten().numpy()).pvalue)
    return at_least(p, 1e-3, "p =")


@LAWS.law
def many_steps_come_near_the_model(case: Case) -> Finding | None:
    """With 64 steps little is drawn as if independent: the frequencies of samples are near the model's probabilities,
    in total variation. The share of noise that a step reveals must follow the schedule."""
    unmasker = case.paced(64)
    if unmasker is None or not hasattr(unmasker, "steps"):
        return None
    findings = []
    for noise in case.noises:
        joint = JOINT if noise.mask is not None else SMALL
        found, _ = case.sample(MANY, unmasker=unmasker, noise=noise)
        findings.append(at_most(joint.distance(found.x), 0.05, "distance"))
    return both(*findings)


@LAWS.law
def the_generator_decides(case: Case) -> Finding:
    """Generators of one seed give the same samples, whatever torch's own seed is, and others give others."""
    found = []
    for seed, key in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(seed)
        found.append(case.sample(50, key=key)[0].x)
    return both(
        at_most(float((found[0] != found[1]).sum()), 0, "symbols that differ between two draws of one seed:"),
        Finding(not torch.equal(found[1], found[2]), "another seed gives other samples"),
    )


@LAWS.law
def parts_draw_what_the_whole_draws(case: Case) -> Finding:
    """Of several processes each reveals its part of the rows, and they are the rows that one would reveal, also where
    rows of one begin with given symbols: draw by `uniform`, for all rows and positions at a time, whether they are
    needed or not."""
    differ = 0.0
    for known in (0, JOINT.length - 1):
        given = torch.full((7, JOINT.length), -1)
        given[:4, :known] = 0
        whole, found = case.sample(7, given=given)[0].x, []
        for first, count in ((0, 4), (4, 3)):
            common, own = keyed_generator(0), keyed_generator(0, "own", first)
            part = RankGenerator.of(common, own, first, count, 7)
            found.append(case.sample(count, given=given[first : first + count], generator=part)[0].x)
        differ += float((torch.cat(found) != whole).sum())
    return at_most(differ, 0, "symbols that differ between two processes and one:")


@LAWS.law
def calls_and_passes_are_counted(case: Case) -> Finding:
    """`nfe` is the number of network calls, `passes` how often a row was in one, on average; a row with nothing to
    reveal is not asked for. Comparisons are at equal cost."""
    found, asked = case.sample(300)
    rows = sum(len(rows) for rows, _ in asked.calls) / 300
    idle = sum(int((counts == 0).sum()) for _, counts in asked.calls)
    return both(
        equal(found.nfe, len(asked.calls), "nfe"),
        equal(round(found.passes, 6), round(rows, 6), "passes"),
        Finding(idle == 0, f"{idle} rows asked for in vain"),
    )


@LAWS.law
def nothing_to_reveal_costs_nothing(case: Case) -> Finding:
    """Rows that are all given come back without a network call."""
    given = torch.zeros(5, JOINT.length, dtype=torch.long)
    found, _ = case.sample(5, given=given)
    return both(equal(found.nfe, 0, "nfe"), Finding(torch.equal(found.x, given), "rows as given"))


@LAWS.law
def inputs_are_left_alone_and_nothing_is_kept(case: Case) -> Finding:
    """x and free are not written to, and a second call gives what the first gave: the unmasker holds no state."""
    noise = case.noises[0]
    x, free = torch.full((6, 4), JOINT.mask), torch.ones(6, 4, dtype=torch.bool)
    first, again = (
        case.unmasker.sample(JOINT.predict, x, free, noise, generator=keyed_generator(0)).x for _ in range(2)
    )
    alone = bool((x == JOINT.mask).all()) and bool(free.all())
    return both(
        Finding(alone, "inputs are as they were" if alone else "inputs were written to"),
        Finding(torch.equal(first, again), "a second call gives the same"),
    )


@LAWS.law
def noise_that_it_cannot_take_away_is_refused(case: Case) -> Finding | None:
    """A method for masks raises GenkitError for a model of uniform noise (call self.check(noise)); one that takes it
    says so by `uniform`."""
    if case.cls.uniform:
        return None
    try:
        case.sample(2, noise=Noise(torch.arange(SMALL.vocabulary)))
    except GenkitError:
        return Finding(True, "refused")
    return Finding(False, "uniform noise is taken, and uniform = False")
