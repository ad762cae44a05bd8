"""Discrete flow matching: masks are masked diffusion; the uniform source against enumeration and its own process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.objectives.discrete_flow_matching import DiscreteFlowMatching
from genkit.randomness import keyed_generator
from genkit.types import Batch, DataSpec
from genkit.unmasking import UNMASKERS
from tests.objectives.models import IMAGES, WORDS, batch, build, model_options
from tests.oracles import Joint

JOINT = Joint.example(2)
PAIR = DataSpec("pair", (2,), levels=3, ordered=False)
STATES = JOINT.states
S, N, V = 9, 2, 3


def flow(spec: DataSpec = PAIR, *, patch: int = 1, **options: Any) -> DiscreteFlowMatching:
    model = model_options() if patch > 1 else model_options(patch=1, depth=1, width=8)
    objective = build("discrete_flow_matching", spec, model=model, **{"source": "uniform", **options})
    assert isinstance(objective, DiscreteFlowMatching)
    return objective


def from_others(alpha: float, x: Tensor) -> Tensor:
    """log p(x1_i | x_t without its symbol i) (B, N, V) of pairs x_t (B, N): what the network should give."""
    seen = (alpha * torch.eye(V, dtype=torch.float64) + (1 - alpha) / V)[x]  # q(x_t_i | x1_i)
    found = torch.stack((seen[:, 1] @ JOINT.p.T, seen[:, 0] @ JOINT.p), 1)
    return (found / found.sum(2, keepdim=True)).log()


def exact(**options: Any) -> DiscreteFlowMatching:
    """With the exact prediction of each symbol from the others in place of the network."""
    torch.set_default_dtype(torch.float64)
    objective = flow(**options)

    def logits(x: Tensor, alpha: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        assert alpha is not None
        found, alpha = torch.empty(*x.shape, V), alpha.expand(len(x))
        for each in alpha.unique():
            found[alpha == each] = from_others(float(each), x[alpha == each])
        return found

    objective.logits = logits  # type: ignore[method-assign]
    return objective


def random(**options: Any) -> DiscreteFlowMatching:
    """With predictions that are wrong, in another way at each time."""
    torch.set_default_dtype(torch.float64)
    objective = flow(**options)
    early, late = torch.randn(2, S, N, V, generator=keyed_generator(7))

    def logits(x: Tensor, alpha: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, place = alpha.expand(len(x))[:, None, None], x @ torch.tensor([V, 1])
        return (1 - alpha) * early[place] + alpha * late[place]

    objective.logits = logits  # type: ignore[method-assign,assignment]
    return objective


def expected(integrand: Any) -> Tensor:
    """int E integrand(x, x_t, alpha) d alpha for each sequence x (S,): by the sum over all x_t, and Gauss-Legendre
    in r, alpha = 1 - r^2."""
    points = 24
    nodes, weights = (torch.from_numpy(found) for found in np.polynomial.legendre.leggauss(points))
    root = (nodes + 1) / 2
    x, x_t = STATES.repeat_interleave(S, 0).repeat(points, 1), STATES.repeat(S * points, 1)
    alpha = (1 - root.square()).repeat_interleave(S * S)
    q = (alpha[:, None] * (x == x_t) + (1 - alpha[:, None]) / V).prod(1)
    found = (q * integrand(x, x_t, alpha)).reshape(points, S, S).sum(2)
    return (weights * root) @ found


def enumerated(objective: DiscreteFlowMatching) -> Tensor:
    """The bound (S,) in nats."""
    return expected(lambda x, x_t, alpha: objective.cost(x, x_t, x != x_t, alpha, None))


def likelihood(objective: DiscreteFlowMatching) -> Tensor:
    """log p (S,) of the model: its reversed process, as a continuous-time Markov chain on all S sequences.

    dp/d alpha = p Q, with rates m(z) / m(x_i) / (alpha V) from x to x with z at i, m = alpha p^ + (1 - alpha) / V;
    in s = log alpha the rates are finite at the noise. Exponentials of Q at the middle of 1000 steps.
    """
    steps, start = 1000, math.log(1e-5)
    alpha = (start * (1 - (torch.arange(steps) + 0.5) / steps)).exp().repeat_interleave(S)[:, None, None]
    x = STATES.repeat(steps, 1)
    m = alpha * objective.logits(x, alpha.flatten()).softmax(-1) + (1 - alpha) / V
    ratio = (m / m.gather(2, x[..., None]) / V).reshape(steps, S, N, V)
    rates = torch.zeros(steps, S, S)
    for i, j in (STATES[:, None] != STATES).sum(2).eq(1).nonzero().tolist():
        place = int((STATES[i] != STATES[j]).nonzero())
        rates[:, i, j] = ratio[:, i, place, STATES[j, place]]
    p = torch.full((S,), 1 / S)
    for change in torch.matrix_exp((rates - torch.diag_embed(rates.sum(2))) * -start / steps):
        p = p @ change
    return p.log()


# --- masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [IMAGES, WORDS], ids=lambda spec: spec.name)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", "geometric"])
def test_from_masks_it_is_masked_diffusion_bit_for_bit(schedule: str, spec: DataSpec) -> None:
    """The same parameters, loss, bound and samples."""
    one = flow(spec, patch=2, source="mask", schedule=schedule)
    other = build("masked_diffusion", spec, schedule=schedule)
    other.load_state_dict(one.state_dict())
    found = []
    for objective in (one, other):
        rows, generator = batch(spec, 32), keyed_generator(0)
        loss = objective.loss(objective.prepare(rows, generator=generator), generator=generator)["loss"]
        bound = objective.log_prob(rows.x, rows.y, generator=keyed_generator(1))
        samples = objective.sample(16, torch.arange(16) % 3, generator=keyed_generator(2))
        found.append(
            (loss, bound.value, bound.stderr, samples.x, torch.tensor([samples.nfe, samples.tokens]))
        )
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_the_cross_entropy_of_masks_is_that_of_the_hidden_symbols() -> None:
    objective = flow(WORDS, source="mask", weighting="cross_entropy", scale=None)
    x = torch.randint(4, (4000, 6), generator=keyed_generator(0))
    loss = objective.loss(Batch(x, encoded=x), generator=keyed_generator(0))["loss"]
    assert loss.item() == pytest.approx(math.log(4) / 2, rel=0.03)  # half of them, ln 4 each


# --- the bound of a uniform source -------------------------------------------------------------------------


def test_the_bound_is_tight_for_an_exact_model() -> None:
    """For each sequence, not on average only."""
    assert torch.allclose(-enumerated(exact()), JOINT.log_prob(STATES), atol=1e-4)


def test_the_process_of_an_exact_model_makes_the_data() -> None:
    """A test of the judge of the next one."""
    assert torch.allclose(likelihood(exact()), JOINT.log_prob(STATES), atol=3e-3)


def test_it_is_a_bound() -> None:
    objective = random()
    log_p, bound = likelihood(objective), -enumerated(objective)
    assert float(log_p.exp().sum()) == pytest.approx(1)
    slack = log_p - bound
    assert slack.min() > -3e-3
    assert slack.max() > 0.02


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_log_prob_estimates_the_bound_with_an_honest_error(schedule: str) -> None:
    objective = random(schedule=schedule)
    x = STATES.repeat(200, 1)
    found = objective.log_prob(x, generator=keyed_generator(0))
    assert found.kind == "estimate"
    error = found.value + enumerated(objective).repeat(200)
    assert abs(float(error.mean())) < 4 * float(error.std()) / len(x) ** 0.5
    ratio = error.square().mean().sqrt() / found.stderr.square().mean().sqrt()
    assert 0.5 < float(ratio) < 1.05


@pytest.mark.parametrize("spec", [PAIR, WORDS], ids=lambda spec: spec.name)
def test_a_fresh_network_needs_ln_k_nats_a_symbol(spec: DataSpec) -> None:
    """It takes symbols for uniform, which is exact for data that are: K of them, the layout not counted."""
    objective, size = flow(spec, scale=None), {"pair": 3, "words": 4}[spec.name]
    x = torch.randint(size, (4000, spec.dims), generator=keyed_generator(0))
    found = objective.log_prob(x, generator=keyed_generator(1))
    stderr = float(found.value.std()) / len(x) ** 0.5
    assert float(found.value.mean()) == pytest.approx(-spec.dims * math.log(size), abs=4 * stderr)
    assert stderr < 0.02 * spec.dims


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_mean_loss_is_the_bound_of_a_symbol(schedule: str) -> None:
    objective = random(schedule=schedule)
    found = mean_loss(objective)
    assert found[0] == pytest.approx(float(enumerated(objective).mean()) / N, abs=4 * found[1])
    assert found[1] < 0.03 * found[0]


def mean_loss(objective: DiscreteFlowMatching) -> tuple[float, float]:
    losses = []
    for key in range(60):
        x, generator = STATES.repeat(60, 1), keyed_generator(key)
        losses.append(float(objective.loss(Batch(x, encoded=x), generator=generator)["loss"]))
    return float(np.mean(losses)), float(np.std(losses)) / len(losses) ** 0.5


def test_the_mean_cross_entropy_is_that_of_the_posterior() -> None:
    objective = random(weighting="cross_entropy")

    def nats(x: Tensor, x_t: Tensor, alpha: Tensor) -> Tensor:
        log_p = objective.predict(alpha, x_t, None).log_softmax(-1)
        return -log_p.gather(-1, x[..., None])[..., 0].sum(1)

    found = mean_loss(objective)
    assert found[0] == pytest.approx(float(expected(nats).mean()) / N, abs=4 * found[1])
    assert found[1] < 0.03 * found[0]


@pytest.mark.parametrize("weighting", ["bound", "cross_entropy"])
@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_gradients_reach_every_parameter(source: Any, weighting: Any) -> None:
    for spec in (IMAGES, WORDS):
        objective = flow(spec, patch=2, source=source, weighting=weighting)
        prepared = objective.prepare(batch(spec, 32), generator=keyed_generator(0))
        objective.loss(prepared, generator=keyed_generator(0))["loss"].backward()
        for name, p in objective.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("alpha", [0.0, 1e-7, 1 - 1e-7, 1.0])
def test_the_bound_is_finite_at_the_ends(alpha: float) -> None:
    objective = flow(WORDS)
    x = torch.randint(4, (64, 6), generator=keyed_generator(0))
    gap = objective.gap(x, torch.full((64,), alpha), None, generator=keyed_generator(0))
    assert gap.isfinite().all()
    gap.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


# --- sampling from a uniform source ------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_predictions_are_the_posterior(alpha: float) -> None:
    """What the others say, times what the noisy symbol itself says."""
    found = exact().predict(torch.tensor(alpha), STATES, None).log_softmax(-1)
    assert torch.allclose(found, JOINT.denoise(alpha, STATES, torch.arange(S)), atol=1e-9)


@pytest.mark.parametrize("name", ["ancestral", "corrector"])
def test_samples_of_an_exact_model(name: str) -> None:
    distances = [
        JOINT.distance(
            exact().sample(30_000, sampler={"name": name, "steps": steps}, generator=keyed_generator(0)).x
        )
        for steps in (4, 64)
    ]
    assert distances[1] < 0.025
    assert distances[0] > 3 * distances[1]


def test_the_noise_is_uniform_over_what_is_modelled() -> None:
    objective = flow(WORDS)
    x_t, noisy = objective.corrupt(
        torch.zeros(5000, 6, dtype=torch.long), torch.zeros(5000), generator=keyed_generator(0)
    )
    assert noisy.all()
    assert x_t.unique(return_counts=True)[1].tolist() == pytest.approx(4 * [7500], rel=0.04)
    question = torch.tensor([[1, 2, 4, 0, 3, 1]]).repeat(500, 1)
    x_t, noisy = objective.corrupt(question, torch.zeros(500), generator=keyed_generator(0))
    assert (x_t[:, :3] == question[:, :3]).all()
    assert not noisy[:, :3].any()
    assert x_t.max() == 4
    assert x_t[:, 3:].max() == 3
    given = torch.where(torch.arange(6) < 3, question[:1], -1).expand(50, 6)
    found = flow(WORDS, conditional=False).sample(50, given=given, generator=keyed_generator(0)).x
    assert (found[:, :3] == question[0, :3]).all()
    assert found[:, 3:].max() <= 3


def test_unmaskers_that_need_masks_are_refused() -> None:
    for name in UNMASKERS.names():
        unmasker = UNMASKERS.build(name)
        assert flow(source="mask").takes(unmasker)
        assert flow().takes(unmasker) == unmasker.uniform
        if not unmasker.uniform:
            with pytest.raises(GenkitError, match="noise is uniform symbols"):
                flow().sample(2, sampler=unmasker)


@pytest.mark.parametrize("schedule", ["log_linear", "geometric"])
def test_a_uniform_source_needs_a_schedule_that_reaches_both_ends(schedule: str) -> None:
    with pytest.raises(GenkitError, match="uniform source needs a schedule from 0 to 1"):
        flow(schedule=schedule)


def test_the_network_of_a_uniform_source_is_told_the_time() -> None:
    assert flow().condition.time is not None
    assert flow(source="mask").condition.time is None
    assert flow(time=False).condition.time is None


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_training_comes_near_the_entropy(source: Any) -> None:
    """A network of a tiny space, for a second: the bound reaches what an exact model has."""
    torch.set_default_dtype(torch.float32)
    objective = flow(source=source, scale=None).train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    p = JOINT.p.flatten()
    for step in range(200):
        generator = keyed_generator(step)
        x = STATES[torch.multinomial(p, 256, replacement=True, generator=generator)]
        optimizer.zero_grad()
        objective.loss(Batch(x, encoded=x), generator=generator)["loss"].backward()
        optimizer.step()
    found = objective.eval().log_prob(STATES.repeat(200, 1), generator=keyed_generator(0)).value
    nats = -float((p * found.double().reshape(200, S).mean(0)).sum())
    entropy = -float((p * p.log()).sum())
    assert entropy - 0.03 < nats < entropy + 0.12
    assert entropy + 0.4 < 2 * math.log(V)  # where it started
