"""Masked diffusion against exact enumeration: of all masks, of all orders, of all sequences of a tiny space."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.objectives.discrete import NEVER
from genkit.objectives.masked_diffusion import MaskedDiffusion
from genkit.randomness import keyed_generator
from genkit.types import Batch, DataSpec
from tests.objectives.models import IMAGES, WORDS, batch, build, model_options
from tests.oracles import Joint

JOINT = Joint.example(3)
TINY = DataSpec("tiny", (3,), levels=3, ordered=False)
PACKED = DataSpec("packed", (8,), levels=5, ordered=False, fixed=(4,), boundary=4)
COMPLETE = ["linear", "cosine", {"name": "polynomial", "exponent": 3.0}]
PARTIAL = [
    {"name": "log_linear", "floor": 0.3},
    {"name": "geometric", "smallest": 0.2, "largest": 1.5},
]


def masked(spec: DataSpec = TINY, **options: Any) -> MaskedDiffusion:
    objective = build("masked_diffusion", spec, model=model_options(patch=1, depth=1), **options)
    assert isinstance(objective, MaskedDiffusion)
    return objective


def tabled(exact: bool = False, **options: Any) -> MaskedDiffusion:
    """A random network, or the exact model, looked up: as fast as it is small. In float64."""
    torch.set_default_dtype(torch.float64)
    objective = masked(scale=4.0, **options)
    if exact:
        table = JOINT.conditionals
    else:
        table = objective.logits(torch.cartesian_prod(*3 * [torch.arange(4)])).detach()
    objective.logits = lambda x, alpha=None, y=None: table[x @ torch.tensor([16, 4, 1])]  # type: ignore[method-assign]
    return objective


def surprise(objective: MaskedDiffusion, x: Tensor, hidden: Tensor) -> Tensor:
    """-log p of the symbols of x (B, N) where `hidden` (N,) masks them, 0 elsewhere."""
    log_p = objective.logits(torch.where(hidden, objective.mask, x)).log_softmax(-1)
    return -log_p.gather(-1, x[..., None])[..., 0] * hidden


def enumerated(objective: MaskedDiffusion, x: Tensor) -> Tensor:
    """The bound (B,) in nats by Gauss-Legendre over alpha, exact for polynomials, and the sum over all masks."""
    first, last = objective.schedule.ends
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = first * x.shape[1] * math.log(objective.vocabulary) * torch.ones(len(x))
    for pattern in itertools.product([False, True], repeat=x.shape[1]):
        nats, k = surprise(objective, x, torch.tensor(pattern)).sum(1), sum(pattern)
        for node, weight in zip(nodes, weights, strict=True):
            alpha = first + (last - first) * (node + 1) / 2
            if k > 0:
                share = alpha ** (x.shape[1] - k) * (1 - alpha) ** (k - 1)
                total += (last - first) / 2 * weight * share * nats
        total += last ** (x.shape[1] - k) * (1 - last) ** k * nats
    return total


def likelihood(objective: MaskedDiffusion, x: Tensor) -> Tensor:
    """log p (B,) of the model that draws one symbol after the other, in random order: the mean over all orders."""
    each = []
    for order in itertools.permutations(range(x.shape[1])):
        hidden, log_p = torch.ones(x.shape[1], dtype=torch.bool), torch.zeros(len(x))
        for i in order:
            log_p -= surprise(objective, x, hidden)[:, i]
            hidden[i] = False
        each.append(log_p)
    return torch.stack(each).logsumexp(0) - math.log(len(each))


# --- the bound ---------------------------------------------------------------------------------------------


def test_it_is_a_bound() -> None:
    """Of a random model, for each sequence, and not by much less than it could be."""
    objective, x = tabled(), JOINT.states
    exact = likelihood(objective, x)
    assert float(exact.exp().sum()) == pytest.approx(1)
    slack = exact + enumerated(objective, x)
    assert slack.min() >= 0
    assert slack.max() > 0.05
    assert float((-enumerated(objective, x)).exp().sum()) < 1


def test_it_is_tight_for_an_exact_model() -> None:
    objective = tabled(exact=True)
    assert torch.allclose(-enumerated(objective, JOINT.states), JOINT.log_prob(JOINT.states), atol=1e-10)


@pytest.mark.parametrize("schedule", COMPLETE, ids=str)
def test_schedules_that_reach_both_ends_give_the_same_bound(schedule: Any) -> None:
    assert torch.allclose(
        enumerated(tabled(schedule=schedule), JOINT.states), enumerated(tabled(), JOINT.states)
    )


@pytest.mark.parametrize("schedule", [*COMPLETE, *PARTIAL], ids=str)
def test_log_prob_estimates_the_bound_with_an_honest_error(schedule: Any) -> None:
    objective = tabled(schedule=schedule)
    x = JOINT.states.repeat(300, 1)
    found = objective.log_prob(x, generator=keyed_generator(0))
    assert found.kind == "estimate"
    assert found.count.tolist() == [3] * len(x)
    error = found.value + enumerated(objective, JOINT.states).repeat(300)
    assert abs(float(error.mean())) < 4 * float(error.std()) / len(x) ** 0.5
    ratio = error.square().mean().sqrt() / found.stderr.square().mean().sqrt()
    assert (
        0.5 < float(ratio) < 1.02
    )  # stratified points err less than independent ones, of which the error is


def test_more_draws_err_less() -> None:
    few, many = (tabled().log_prob(JOINT.states, draws=n, generator=keyed_generator(0)) for n in (8, 512))
    assert float((many.stderr / few.stderr).mean()) == pytest.approx(1 / 8, rel=0.3)
    assert tabled().log_prob(JOINT.states, draws=1).stderr is None
    with pytest.raises(GenkitError, match="number of draws must be at least 1, not 0"):
        tabled().log_prob(JOINT.states, draws=0)


@pytest.mark.parametrize("schedule", PARTIAL, ids=str)
def test_boundary_terms_make_it_a_bound_again(schedule: Any) -> None:
    """An exact model of the data: the mean is at least their entropy, and without the terms it would not be."""
    objective, p = tabled(exact=True, schedule=schedule), JOINT.p.flatten()
    entropy = -float((p * p.log()).sum())
    found = float((p * enumerated(objective, JOINT.states)).sum())
    assert found > entropy + 0.01
    terms = objective.boundary(JOINT.states.repeat(2000, 1), None, generator=keyed_generator(0))
    assert found - float((p * terms.reshape(2000, 27).mean(0)).sum()) < entropy - 0.01


# --- the loss ----------------------------------------------------------------------------------------------


def losses(objective: MaskedDiffusion, x: Tensor, calls: int, size: int) -> Tensor:
    """`calls` losses of batches of `size` of the rows x in random order."""
    found = []
    for key in range(calls):
        generator = keyed_generator(key)
        rows = x[torch.randint(len(x), (size,), generator=generator)]
        found.append(objective.loss(Batch(rows, encoded=rows), generator=generator)["loss"])
    return torch.stack(found)


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("times", ["uniform", "low_discrepancy"])
@pytest.mark.parametrize("schedule", COMPLETE, ids=str)
def test_the_mean_loss_is_the_bound_of_a_symbol(schedule: Any, times: str, complementary: bool) -> None:
    objective = tabled(schedule=schedule, times=times, complementary=complementary)
    found = losses(objective, JOINT.states, 150, 400)
    exact = float(enumerated(objective, JOINT.states).mean()) / 3
    stderr = float(found.std()) / len(found) ** 0.5
    assert float(found.mean()) == pytest.approx(exact, abs=4 * stderr)
    assert stderr < 0.02 * exact  # so the line above can fail


def test_complementary_masks_spread_less_at_the_same_cost() -> None:
    """Between the quartiles: the variance is infinite, for near t=1 masks are rare and weigh 1 / (1 - alpha)."""

    def spread(complementary: bool) -> float:
        objective = tabled(times="uniform", complementary=complementary)
        low, high = losses(objective, JOINT.states[5:6], 1000, 64).quantile(torch.tensor([0.25, 0.75]))
        return float(high - low)

    assert spread(True) < 0.9 * spread(False)


def test_complementary_masks_hide_each_symbol_once() -> None:
    objective, seen = masked(complementary=True, conditional=False), []
    logits = objective.logits
    objective.logits = lambda x, *rest: (seen.append(x), logits(x, *rest))[1]  # type: ignore[method-assign,func-returns-value]
    rows = torch.randint(3, (9, 3), generator=keyed_generator(1))
    objective.loss(Batch(rows, encoded=rows), generator=keyed_generator(0))
    one, other = seen[0].chunk(2)
    assert len(one) == len(other) == 5
    assert ((one == 3) ^ (other == 3)).all()


@pytest.mark.parametrize("schedule", PARTIAL, ids=str)
def test_complements_need_a_schedule_that_reaches_both_ends(schedule: Any) -> None:
    with pytest.raises(
        GenkitError, match="complementary masks need a schedule from 0 to 1.*this one goes from"
    ):
        masked(complementary=True, schedule=schedule)


def test_only_a_network_of_time_is_told_it() -> None:
    x = torch.full((2, 3), 3)
    for time in (False, True):
        objective = masked(time=time)
        early, late = (objective.logits(x, torch.tensor(alpha)) for alpha in (0.1, 0.9))
        assert torch.equal(early, late) != time


# --- layout and prompts ------------------------------------------------------------------------------------

QUESTION = torch.tensor(
    [1, 2, 4, 0, 3, 1]
)  # a prompt of two symbols, the answer symbol, three that are modelled
OPEN = torch.tensor([1, 2, 3, 0, 3, 1])  # no prompt: all six


def test_layout_and_prompts_are_given() -> None:
    objective, x = masked(WORDS), torch.stack((QUESTION, OPEN))
    assert objective.given(x).tolist() == [[True, True, True, False, False, False], 6 * [False]]
    x_t, noisy = objective.corrupt(x, torch.zeros(2), generator=keyed_generator(0))
    assert torch.equal(noisy, ~objective.given(x))
    assert torch.equal(x_t, torch.where(noisy, objective.mask, x))
    logits = objective.logits(x_t)
    assert (logits[..., 4] == NEVER).all()
    assert logits[..., :4].min() > -1e3


def test_they_are_not_counted() -> None:
    """A fresh network takes all symbols that are modelled for equally probable: ln 4 nats each, no more of them."""
    objective = masked(WORDS, scale=None)
    x = torch.stack((QUESTION, OPEN)).repeat(300, 1)
    found = objective.log_prob(x, generator=keyed_generator(0))
    assert found.count.reshape(300, 2)[0].tolist() == [3, 6]
    mean, stderr = found.value.reshape(300, 2).mean(0), found.value.reshape(300, 2).std(0) / 300**0.5
    expected = -math.log(4) * torch.tensor([3.0, 6.0])
    assert ((mean - expected).abs() < 4 * stderr).all()
    generator = keyed_generator(0)
    loss = [objective.loss(Batch(x, encoded=x), generator=generator)["loss"].item() for _ in range(30)]
    assert np.mean(loss) == pytest.approx(math.log(4), abs=4 * np.std(loss) / 30**0.5)


def test_a_batch_of_nothing_but_layout_has_a_loss() -> None:
    objective, x = masked(WORDS), torch.full((2, 6), 4)
    loss = objective.loss(Batch(x, encoded=x), generator=keyed_generator(0))["loss"]
    assert loss == 0
    assert objective.log_prob(x, generator=keyed_generator(0)).value.tolist() == [0, 0]


def test_samples_hold_no_layout_but_what_is_given() -> None:
    objective = masked(WORDS, conditional=False)
    given = torch.where(torch.arange(6) < 3, QUESTION, -1).expand(200, 6)
    x = objective.sample(200, given=given, generator=keyed_generator(0)).x
    assert (x[:, :3] == QUESTION[:3]).all()
    assert set(x[:, 3:].unique().tolist()) == {0, 1, 2, 3}
    assert objective.sample(200, generator=keyed_generator(0)).x.max() == 3


def test_the_documents_of_a_row_do_not_see_each_other() -> None:
    x = torch.tensor([[4, 0, 5, 2, 4, 1, 5, 3]])  # two documents, a mask in each
    other = torch.tensor([[4, 3, 5, 0, 4, 1, 5, 3]])
    apart = masked(PACKED)
    assert torch.equal(apart.logits(x)[:, 4:], apart.logits(other)[:, 4:])
    assert not torch.allclose(apart.logits(x)[:, 2], apart.logits(other)[:, 2], atol=1e-3)
    together = masked(DataSpec("whole", (8,), levels=5, ordered=False, fixed=(4,)))
    assert not torch.allclose(together.logits(x)[:, 4:], together.logits(other)[:, 4:], atol=1e-3)


def test_boundaries_need_tokens_of_one_symbol() -> None:
    spec = DataSpec("tiles", (1, 4, 4), levels=5, fixed=(4,), boundary=4)
    with pytest.raises(GenkitError, match="'tiles' has boundaries: a token must be one symbol"):
        build("masked_diffusion", spec)


# --- sampling and guidance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, [-1, 2, -1]])
def test_samples_of_an_exact_model(given: list[int] | None) -> None:
    objective, n = tabled(exact=True), 30_000
    rows = None if given is None else torch.tensor(given).expand(n, 3)
    sampler = {"name": "ancestral", "steps": None}
    found = objective.sample(n, sampler=sampler, given=rows, generator=keyed_generator(0))
    p = JOINT.p.clone()
    if given is not None:
        p[:, [0, 1]] = 0
    p = p.flatten() / p.sum()
    counts = JOINT.counts(found.x)
    assert not counts[p == 0].any()
    assert stats.chisquare(counts[p > 0].numpy(), n * p[p > 0].numpy()).pvalue > 1e-3
    assert found.nfe == (3 if given is None else 2)
    assert found.tokens == 3 * found.nfe


def guidance(scale: float) -> Any:
    return GUIDANCES.build("classifier_free", scale=scale)


def recorded(objective: MaskedDiffusion) -> list[Tensor]:
    seen: list[Tensor] = []
    predict = objective.predict
    objective.predict = lambda t, x, y: (seen.append(x), predict(t, x, y))[1]  # type: ignore[method-assign,func-returns-value]
    return seen


def test_guidance_by_a_prompt_hides_it_from_the_unconditional_branch() -> None:
    objective = masked(WORDS, conditional=False)
    seen, given = recorded(objective), torch.where(torch.arange(6) < 4, QUESTION, -1).expand(8, 6)
    plain, off, on = (
        objective.sample(8, given=given, guidance=scale and guidance(scale), generator=keyed_generator(0))
        for scale in (None, 1.0, 3.0)
    )
    assert torch.equal(plain.x, off.x)
    assert on.tokens == 2 * plain.tokens
    assert on.nfe == plain.nfe == off.nfe
    assert (on.x[:, :4] == QUESTION[:4]).all()
    for x in seen[-on.nfe :]:
        prompted, bare = x.chunk(2)
        assert (prompted[:, :4] == QUESTION[:4]).all()
        assert (bare[:, :4] == torch.tensor([5, 5, 4, 5])).all()  # the layout stays
        assert torch.equal(prompted[:, 4:], bare[:, 4:])
    for x in seen[: -on.nfe]:
        assert (x[:, :4] == QUESTION[:4]).all()


def test_guidance_by_a_prompt_is_that_of_the_logits() -> None:
    """One step, temperature 0: the most probable symbols of l_u + 3 (l_c - l_u)."""
    objective = masked(WORDS, conditional=False, scale=4.0)
    given = torch.where(torch.arange(6) < 3, QUESTION, -1)[None]
    sampler = {"name": "confidence", "steps": 1, "temperature": 0.0}
    found = objective.sample(1, given=given, sampler=sampler, guidance=guidance(3.0)).x
    with_prompt = torch.where(given < 0, 5, given)
    without = torch.tensor([[5, 5, 4, 5, 5, 5]])
    conditional, unconditional = objective.logits(with_prompt), objective.logits(without)
    expected = (unconditional + 3 * (conditional - unconditional)).argmax(-1)
    assert torch.equal(found[:, 3:], expected[:, 3:])


def test_a_share_of_prompts_is_hidden_in_training() -> None:
    """So that the unconditional branch is trained: whole prompts, never the layout, never the rest."""
    objective = masked(WORDS, label_dropout=0.3, conditional=False)
    x = QUESTION.expand(10_000, 6)
    hidden = objective.drop_prompt(x, x, generator=keyed_generator(0)) == objective.mask
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert not hidden[:, 2:].any()
    assert float(hidden[:, 0].double().mean()) == pytest.approx(0.3, abs=0.02)
    seen = recorded(objective)
    objective.loss(Batch(x, encoded=x), generator=keyed_generator(0))
    assert float((seen[0][:, 0] == objective.mask).double().mean()) == pytest.approx(0.3, abs=0.02)
    plain = masked(WORDS, label_dropout=0.0, conditional=False)
    assert torch.equal(plain.drop_prompt(x, x), x)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"label_dropout": 0.0}, QUESTION.where(torch.arange(6) < 3, -1), "label_dropout 0"),
        ({}, QUESTION, "everything is given in some row"),
        ({}, torch.tensor([9, -1, -1, -1, -1, -1]), "symbol 9 is given; 'words' has 0 to 4"),
        ({}, torch.tensor([-1, -1]), r"must have shape \(2, 6\), not \(2, 2\)"),
    ],
)
def test_what_cannot_be_given(options: dict[str, Any], given: Tensor, message: str) -> None:
    objective = masked(WORDS, conditional=False, **options)
    with pytest.raises(GenkitError, match=message):
        objective.sample(2, given=given.expand(2, -1), guidance=guidance(2.0))


def test_other_samples_that_cannot_be() -> None:
    objective = masked(WORDS, conditional=False)
    given = torch.full((2, 6), -1)
    with pytest.raises(GenkitError, match="unconditional: it takes no class"):
        objective.sample(2, torch.tensor([0, 1]), given=given)
    with pytest.raises(GenkitError, match="at least 1, not 0"):
        objective.sample(0, given=given[:0])
    with pytest.raises(GenkitError, match="no log-probability of a sample"):
        objective.sample(2, return_log_prob=True)


def test_classes_and_given_symbols_go_together() -> None:
    objective, given = masked(WORDS), torch.where(torch.arange(6) < 3, QUESTION, -1).expand(300, 6)
    a, b = (
        objective.sample(300, torch.full((300,), y), given=given, generator=keyed_generator(0)).x
        for y in (0, 1)
    )
    assert not torch.equal(a, b)
    assert (a[:, :3] == QUESTION[:3]).all()


def test_images_in_patches_are_symbols_too() -> None:
    """A token of four symbols: the mask of one does not hide the others of its patch."""
    objective, rows = build("masked_diffusion", IMAGES), batch(IMAGES)
    x = objective.prepare(rows).encoded
    assert x is not None
    x_t, noisy = objective.corrupt(x, torch.full((8,), 0.5), generator=keyed_generator(0))
    assert 0 < float(noisy.unflatten(1, (4, 4)).all(-1).double().mean()) < 0.3
    other = x_t.clone()
    other[:, 1] = (other[:, 1] + 1) % 5
    assert not torch.allclose(objective.logits(x_t)[:, 0], objective.logits(other)[:, 0], atol=1e-3)
