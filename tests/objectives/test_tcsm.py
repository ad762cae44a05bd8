"""Target concrete score matching: divergences, exact targets of teachers, tilted and corrected distributions."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import genkit
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.objectives.autoregressive import Autoregressive
from genkit.objectives.discrete import NEVER
from genkit.objectives.rewards import REWARDS, Reward
from genkit.objectives.tcsm import TCSM, Target, conditionals, contrast
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, train
from genkit.types import Batch, DataSpec
from tests.objectives.models import IMAGES, LETTERS, SYMBOLS, WORDS, batch, build, model_options, split

TINY = DataSpec("tiny", (3,), levels=3, classes=2, ordered=False)
PAIRS = DataSpec("pairs", (2,), levels=3, ordered=False)
PACKED = DataSpec("packed", (6,), levels=4, ordered=False, fixed=(3,), boundary=3)
MODEL = model_options(width=16, depth=1, patch=1)
EXACT = {"name": "ancestral", "steps": None}  # one symbol a step: exact


def teacher(spec: DataSpec = TINY) -> Autoregressive:
    built = build("autoregressive", spec, model=MODEL)
    assert isinstance(built, Autoregressive)
    return built.double().requires_grad_(False)


def pretrained(spec: DataSpec = PAIRS, **options: Any) -> Any:
    return build("masked_diffusion", spec, model=MODEL, scale=1.5, **options).requires_grad_(False)


def tcsm(spec: DataSpec = TINY, by: Any = None, **options: Any) -> TCSM:
    """Fresh, as it starts training, set up with a teacher where one is given."""
    torch.manual_seed(0)
    named = {"teacher": None if by is None else "named"}
    built = OBJECTIVES.build({"name": "tcsm", **named, **options}, spec, MODEL)
    assert isinstance(built, TCSM)
    built.setup(split(spec), by)
    return built


def everything(length: int, symbols: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(symbols), repeat=length)))


def fit(model: TCSM, data: Tensor, steps: int = 200, lr: float = 1e-2) -> None:
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        generator = keyed_generator(0, step)
        index = torch.randint(len(data), (256,), generator=generator)
        prepared = model.prepare(Batch(data[index], None, index), generator=generator)
        optimizer.zero_grad()
        model.loss(prepared, generator=generator)["loss"].backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def of_pairs(model: Any) -> Tensor:
    """p(x) (9,) of samples that are unmasked one by one in random order."""
    rows, mask = everything(2, 3), model.mask
    hidden = torch.full_like(rows, mask)
    first = model.logits(hidden, torch.tensor(0.0)).softmax(-1).gather(-1, rows[..., None])[..., 0]
    p = torch.zeros(9)
    for i in (0, 1):
        x = hidden.clone()
        x[:, i] = rows[:, i]
        second = model.logits(x, torch.tensor(0.5)).softmax(-1).gather(-1, rows[..., None])[:, 1 - i, 0]
        p += first[:, i] * second / 2
    return p


def distance(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


# --- divergences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SYMBOLS, ids=lambda spec: spec.name)
def test_forward_kl_of_data_is_masked_diffusion(spec: DataSpec) -> None:
    one, other = build("tcsm", spec), build("masked_diffusion", spec)
    losses = []
    for model in (one, other):
        generator = keyed_generator(0)
        losses.append(
            model.loss(model.prepare(batch(spec), generator=generator), generator=generator)["loss"]
        )
    assert torch.equal(*losses)
    assert one.passes == other.passes == 1


def gen_kl_of(log_q: Tensor, p: Tensor, model: TCSM) -> Tensor:
    """The loss (places,) in expectation over the target p (places, V), a network's log_q (places, V) given."""
    places, size = p.shape
    symbols = torch.arange(size).expand(1, places, size)
    where = torch.arange(places)[None]
    return model.mismatch(log_q[None], Target(where, symbols, p[None], torch.ones(1, places)))[0]


def test_gen_kl_is_the_bregman_divergence_of_concrete_scores() -> None:
    """sum_v a log(a/b) - a + b, with a and b the ratios to a symbol drawn from p, over V and up to a constant."""
    model = tcsm(divergence="gen_kl")
    p, q1, q2 = torch.rand(3, 5, dtype=torch.float64).softmax(-1)

    def bregman(q: Tensor) -> Tensor:
        a, b = p[None] / p[:, None], q[None] / q[:, None]
        return (p * (a * (a / b).log() - a + b).sum(1)).sum() / len(p)

    one, other = (gen_kl_of(q.log()[None], p[None], model)[0] for q in (q1, q2))
    assert float(one - other) == pytest.approx(float(bregman(q1) - bregman(q2)), abs=1e-12)


def test_gen_kl_of_a_drawn_symbol_has_the_formula_and_the_expectation() -> None:
    model = tcsm(divergence="gen_kl")
    p, q = torch.rand(2, 4, dtype=torch.float64).softmax(-1)
    where, one = torch.zeros(4, 1).long(), torch.ones(4, 1, 1)
    drawn = model.mismatch(
        q.log().expand(4, 1, 4), Target(where, torch.arange(4)[:, None, None], one, one[0])
    )
    expected = -q.log() + 1 / (4 * q) + q.log().mean()
    assert torch.allclose(drawn[:, 0], expected, atol=1e-12)
    assert float((p * drawn[:, 0]).sum()) == pytest.approx(
        float(gen_kl_of(q.log()[None], p[None], model)), abs=1e-12
    )


@pytest.mark.parametrize("divergence", ["forward_kl", "gen_kl"])
@pytest.mark.parametrize("smallest", [0.1, 1e-3, 1e-7, 0.0])
def test_divergences_are_least_at_the_target(divergence: str, smallest: float) -> None:
    """Also where a symbol is rarer than the floor of gen_kl, or never comes."""
    model = tcsm(divergence=divergence)
    p = torch.tensor([smallest, 0.3, 0.25, 0.45 - smallest], dtype=torch.float64)
    at_p = gen_kl_of(p.clamp(min=1e-12).log()[None], p[None], model)
    generator = keyed_generator(0)
    for size in (0.01, 0.1, 1.0, 5.0):
        noise = size * torch.randn(200, 4, dtype=torch.float64, generator=generator)
        log_q = (p.clamp(min=1e-12).log() + noise).log_softmax(-1)
        assert (gen_kl_of(log_q, p.expand(200, 4), model) > at_p - 1e-12).all()
    if smallest > 1e-4:  # a smooth minimum
        logits = p.log()[None].requires_grad_()
        gen_kl_of(logits.log_softmax(-1), p[None], model).sum().backward()
        assert float(logits.grad.abs().max()) < 1e-12


def test_gen_kl_is_finite_where_q_is_tiny() -> None:
    """And the symbol that came still has its gradient."""
    model = tcsm(divergence="gen_kl")
    logits = torch.tensor([[-200.0, 0.0, 1.0, NEVER]]).requires_grad_()
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    loss = gen_kl_of(logits.log_softmax(-1), p, model).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0] < -0.5
    assert logits.grad[0, 3] == 0  # a symbol that cannot be is none of the V


@pytest.mark.parametrize("spec", SYMBOLS, ids=lambda spec: spec.name)
def test_gen_kl_trains_every_parameter(spec: DataSpec) -> None:
    model, generator = build("tcsm", spec, divergence="gen_kl"), keyed_generator(0)
    model.loss(model.prepare(batch(spec, 32), generator=generator), generator=generator)["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_gen_kl_finds_the_distribution_of_the_data() -> None:
    p = torch.tensor([0.3, 0.02, 0.08, 0.05, 0.2, 0.05, 0.1, 0.15, 0.05])
    data = everything(2, 3).repeat_interleave((p * 1000).round().long(), dim=0)
    model = tcsm(PAIRS, divergence="gen_kl")
    fit(model, data)
    assert distance(of_pairs(model), p) < 0.05


# --- distillation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [None, 1])
def test_all_candidates_give_the_exact_conditional(y: int | None) -> None:
    rows = everything(3, 3)
    classes = None if y is None else torch.full((len(rows),), y)
    t = teacher()
    joint = t.log_likelihood(rows, classes).exp().view(3, 3, 3)
    places = torch.arange(3).expand(len(rows), 3)
    symbols, p = conditionals(t, rows, places, 3, classes)
    found = torch.zeros_like(p).scatter(-1, symbols, p)
    for x, row in zip(rows.tolist(), found, strict=True):
        for i in range(3):
            line = joint[tuple(slice(None) if j == i else x[j] for j in range(3))]
            assert torch.allclose(row[i], line / line.sum(), atol=1e-12)


@pytest.mark.parametrize("candidates", [1, 2])
def test_fewer_candidates_are_the_likeliest_with_the_true_one(candidates: int) -> None:
    rows, t = everything(3, 3), teacher()
    places = torch.arange(3).expand(len(rows), 3)
    all_symbols, all_p = conditionals(t, rows, places, 3)
    dense = torch.zeros_like(all_p).scatter(-1, all_symbols, all_p)
    symbols, p = conditionals(t, rows, places, candidates)
    assert (symbols == rows[..., None]).any(-1).all()
    kept = dense.gather(-1, symbols)
    assert torch.allclose(p, kept / kept.sum(-1, keepdim=True), atol=1e-12)
    forward = t.logits(rows)
    others = forward.scatter(-1, symbols, -math.inf).amax(-1)
    chosen = forward.gather(-1, symbols).masked_fill(symbols == rows[..., None], math.inf).amin(-1)
    assert (chosen >= others).all()


def test_conditionals_of_packed_rows_are_of_their_document() -> None:
    """Substitution changes no boundary, and only symbols that are modelled come in question."""
    x, t = torch.tensor([[3, 0, 1, 3, 2, 0]]), teacher(PACKED)
    symbols, p = conditionals(t, x, torch.tensor([[2, 5]]), 3)
    assert sorted(symbols[0, 0].tolist()) == [0, 1, 2]
    last = t.logits(x).softmax(-1)[0, 5]
    assert torch.allclose(torch.zeros(4).double().scatter(0, symbols[0, 1], p[0, 1]), last, atol=1e-12)


def noisy_rows() -> tuple[Tensor, Tensor]:
    """Rows (6, 3), and of each how many are masked: 0 to 3."""
    noisy = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1]]).bool()
    return everything(3, 3)[::4][:6], noisy


def test_exact_targets_are_at_masked_places_that_stand_for_all() -> None:
    t = teacher()
    model, (x, noisy) = tcsm(by=t, positions=2, candidates=None), noisy_rows()
    target = model.target(x, noisy, None, generator=keyed_generator(0))
    assert target.places.shape == (6, 2)
    assert torch.equal(target.share > 0, noisy.gather(1, target.places))
    assert target.share.sum(1).tolist() == noisy.sum(1).tolist()
    assert torch.equal(target.p, conditionals(t, x, target.places, 3)[1])
    everywhere = tcsm(by=t, positions=7).target(x, noisy, None, generator=keyed_generator(0))
    assert torch.equal(everywhere.share.bool(), noisy.gather(1, everywhere.places))


def test_places_are_drawn_evenly() -> None:
    model, x = tcsm(by=teacher(), positions=1), torch.zeros(3000, 3).long()
    noisy = torch.tensor([True, False, True]).expand(3000, 3)
    target = model.target(x, noisy, None, generator=keyed_generator(0))
    assert float((target.places == 0).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert (target.share == 2).all()


def test_first_order_targets_are_of_the_teacher_s_odds() -> None:
    t, (x, noisy) = teacher(), noisy_rows()
    target = tcsm(by=t, ratios="first_order").target(x, noisy, None)
    assert torch.equal(target.p, t.log_odds(x).softmax(-1))
    assert torch.equal(target.share, noisy)
    exact = conditionals(t, x, target.places, 3)
    dense = torch.zeros_like(target.p).scatter(-1, *exact)
    assert torch.allclose(target.p[:, 2], dense[:, 2], atol=1e-12)  # of the last symbol it is exact
    assert not torch.allclose(target.p[:, 0], dense[:, 0], atol=1e-4)


@pytest.mark.parametrize("ratios", ["exact", "first_order"])
@pytest.mark.parametrize("spec", [IMAGES, LETTERS, PACKED], ids=lambda spec: spec.name)
@pytest.mark.parametrize("divergence", ["forward_kl", "gen_kl"])
def test_distillation_trains_the_student_alone(ratios: str, spec: DataSpec, divergence: str) -> None:
    t = build("autoregressive", spec, model=MODEL).requires_grad_(False)
    before = copy.deepcopy(t.state_dict())
    model = tcsm(spec, t, ratios=ratios, divergence=divergence)
    assert not any("teacher" in key for key in model.state_dict())
    copied = copy.deepcopy(model)
    assert copied.teacher is not None
    assert copied.teacher.on(torch.device("cpu")) is t
    generator = keyed_generator(0)
    logs = model.loss(model.prepare(batch(spec), generator=generator), generator=generator)
    logs["loss"].backward()
    assert logs["loss"].isfinite()
    assert model.head.proj.weight.grad.abs().max() > 0
    assert all(torch.equal(value, before[key]) for key, value in t.state_dict().items())


@pytest.mark.parametrize("conditional", [True, False])
def test_the_teacher_sees_the_true_class(conditional: bool) -> None:
    """Also where the student's is dropped, or it takes none."""
    t = teacher()
    seen: list[Tensor] = []
    t.condition.register_forward_pre_hook(lambda m, a, k: seen.append(k["y"]), with_kwargs=True)
    model = tcsm(by=t, conditional=conditional, label_dropout=0.9)
    rows, generator = batch(TINY), keyed_generator(0)
    model.loss(model.prepare(rows, generator=generator), generator=generator)
    assert torch.equal(seen[0], rows.y)
    assert all((part >= 0).all() for part in seen)


def test_the_work_of_the_teacher_is_counted() -> None:
    assert tcsm(by=teacher(), ratios="first_order").passes == 2
    t, rows = teacher(), []
    model = tcsm(by=t, positions=2, candidates=3)
    t.backbone.register_forward_hook(lambda m, a, k: rows.append(len(a[0])))
    model.backbone.register_forward_hook(lambda m, a, k: rows.append(len(a[0])))
    generator = keyed_generator(0)
    model.loss(model.prepare(batch(TINY, 4), generator=generator), generator=generator)
    assert sum(rows) == 4 * model.passes == 4 * (2 + 2 * 3)
    assert (
        tcsm(PACKED, teacher(PACKED), candidates=None, positions=1).passes == 2 + 3
    )  # a boundary is no candidate


def test_a_student_learns_what_its_teacher_says() -> None:
    """With all but one symbol known, the teacher's conditionals: from rows that say nothing themselves."""
    t = build("autoregressive", PAIRS, model=MODEL, scale=3.0).requires_grad_(False)
    model, rows = tcsm(PAIRS, t, candidates=None, positions=1), everything(2, 3)
    fit(model, rows)
    symbols, p = conditionals(t, rows, torch.arange(2).expand(9, 2), 3)
    dense = torch.zeros_like(p).scatter(-1, symbols, p)
    for i in (0, 1):
        x = rows.clone()
        x[:, i] = model.mask
        with torch.no_grad():
            q = model.logits(x).softmax(-1)[:, i]
        assert float((q - dense[:, i]).abs().max()) < 0.03
    assert float(dense.amax(-1).max()) > 0.5


# --- rewards ----------------------------------------------------------------------------------------------


def twos(x: Tensor) -> Tensor:
    return (x == 2).float().sum(1)


def test_the_pool_is_of_the_tilted_distribution() -> None:
    """p_pre(x) exp(R(x) / beta) / Z within four standard errors; and how many samples it is worth is logged."""
    pre = pretrained()
    model = tcsm(PAIRS, pre, reward=Reward.of(twos), beta=0.7, pool=6000, unmasker=EXACT)
    p = of_pairs(pre)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    rows = everything(2, 3)
    tilted = p * (twos(rows) / 0.7).exp()
    tilted /= tilted.sum()
    match = (model.pool_x[:, None] == rows).all(-1).float()
    weight = model.pool_weight[:, None]
    assert float(weight.mean()) == pytest.approx(1, abs=1e-5)
    spread = (tilted / p) ** 2 * (torch.eye(9) - tilted[:, None]) ** 2  # of self-normalized weights
    stderr = ((p * spread).sum(1) / 6000).sqrt()
    assert (((weight * match).mean(0) - tilted).abs() < 4 * stderr).all()
    assert distance(tilted, p) > 0.2
    generator = keyed_generator(0)
    logs = model.loss(model.prepare(batch(PAIRS), generator=generator), generator=generator)
    assert float(logs["effective_samples"]) == pytest.approx(6000**2 / float(weight.square().sum()), rel=1e-4)


def test_fine_tuning_starts_from_the_teacher_and_ends_at_the_tilted_distribution() -> None:
    pre = pretrained()
    model = tcsm(PAIRS, pre, reward=Reward.of(twos), beta=0.7, pool=4000, unmasker=EXACT)
    p = of_pairs(pre)
    assert torch.equal(of_pairs(model), p)
    fit(model, everything(2, 3)[:1].expand(300, -1))  # the data are not asked
    tilted = p * (twos(everything(2, 3)) / 0.7).exp()
    assert distance(of_pairs(model), tilted / tilted.sum()) < 0.05
    assert distance(of_pairs(model), p) > 0.15


def test_the_pool_is_the_same_each_time_and_is_no_part_of_the_model() -> None:
    pre = pretrained(IMAGES)
    one, other = (tcsm(IMAGES, pre, reward="brightness", pool=20) for _ in range(2))
    assert torch.equal(one.pool_x, other.pool_x)
    assert one.pool_y is not None
    assert other.pool_y is not None
    assert torch.equal(one.pool_y, other.pool_y)
    assert one.state_dict().keys() == pre.state_dict().keys()
    averaged = copy.deepcopy(one)
    assert torch.equal(averaged.pool_x, one.pool_x)


def test_layouts_and_prompts_of_the_pool_are_those_of_data() -> None:
    pre = pretrained(WORDS)
    model = tcsm(WORDS, pre, reward={"name": "symbol_share", "symbols": [1]}, pool=30)
    x, _ = split(WORDS).take(torch.arange(64))
    known = {tuple(row.tolist()) for row in torch.where(model.given(x), x, -1)}
    pool = model.pool_x
    assert {tuple(row.tolist()) for row in torch.where(model.given(pool), pool, -1)} <= known


def test_a_greedy_temperature_is_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"effective samples of a pool of 200: a higher beta or a larger pool"
    ):
        tcsm(
            PAIRS, pretrained(), reward=Reward.of(lambda x: torch.arange(len(x)).float()), beta=0.01, pool=200
        )


@pytest.mark.parametrize("wrong", [lambda x: x.float(), lambda x: x[:, 0] / 0])
def test_a_reward_is_a_finite_number_a_sample(wrong: Any) -> None:
    with pytest.raises(GenkitError, match="must give 512 samples as many finite numbers"):
        tcsm(PAIRS, pretrained(), reward=Reward.of(wrong))


def test_rewards() -> None:
    x = torch.tensor([[0, 1, 1, 2], [3, 3, 3, 3]])
    share = REWARDS.build("symbol_share", symbols=[1, 2])
    share.setup(DataSpec("four", (4,), levels=4))
    assert share(x).tolist() == [0.75, 0]
    letters = REWARDS.build("symbol_share", characters="a!")
    letters.setup(DataSpec("text", (4,), levels=96, ordered=False, tokenizer="ascii"))
    a, bang = 1 + ord("a") - 32, 1 + ord("!") - 32
    assert letters(torch.tensor([[a, bang, 3, 3]])).tolist() == [0.5]
    bright = REWARDS.build("brightness")
    bright.setup(IMAGES)
    assert bright(torch.tensor([0, 4]).view(2, 1, 1, 1).expand(-1, 1, 4, 4)).tolist() == [0, 1]
    for reward, spec, message in (
        ({"name": "symbol_share"}, TINY, "name the symbols"),
        ({"name": "symbol_share", "characters": "e"}, TINY, "'tiny' is no text"),
        ({"name": "symbol_share", "symbols": [3]}, TINY, "'tiny' has symbols 0 to 2, not 3"),
        ("brightness", TINY, "'tiny' is not made of images"),
    ):
        with pytest.raises(GenkitError, match=message):
            OBJECTIVES.build({"name": "tcsm", "teacher": "named", "reward": reward}, spec, model_options())


# --- the density ratio ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bce", "lsif", "kl"])
def test_the_best_ratio_is_that_of_the_densities(form: str) -> None:
    """The expected loss has no gradient at log r = log p - log p_ref, and is higher elsewhere."""
    p, p_ref = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)
    x = torch.arange(3)[:, None]

    def expected(log_r: Tensor) -> Tensor:
        return (p * contrast(form, log_r.expand(3, 1, 3), p_ref.expand(3, 1, 3), x)[:, 0]).sum()

    log_r = (p / p_ref).log().requires_grad_()
    least = expected(log_r)
    (slope,) = torch.autograd.grad(least, log_r)
    assert float(slope.abs().max()) < 1e-12
    for change in torch.randn(50, 3, dtype=torch.float64, generator=keyed_generator(0)):
        assert expected(log_r + change) > least


@pytest.mark.parametrize("form", ["bce", "lsif", "kl"])
def test_a_ratio_turns_the_reference_into_the_data(form: str) -> None:
    p = torch.tensor([0.3, 0.02, 0.08, 0.05, 0.2, 0.05, 0.1, 0.15, 0.05])
    data = everything(2, 3).repeat_interleave((p * 1000).round().long(), dim=0)
    ref = pretrained()
    model = tcsm(PAIRS, ref, density_ratio=form)
    assert torch.allclose(of_pairs(model), of_pairs(ref), atol=1e-6)  # log r starts at 0
    before = copy.deepcopy(model.reference.state_dict())
    fit(model, data)
    assert distance(of_pairs(model), p) < 0.05
    assert distance(of_pairs(ref), p) > 0.2
    assert all(torch.equal(value, before[key]) for key, value in model.reference.state_dict().items())
    x = model.sample(3000, sampler=EXACT, generator=keyed_generator(0)).x
    found = (x[:, None] == everything(2, 3)).all(-1).float().mean(0)
    assert distance(found, of_pairs(model)) < 0.05


def test_the_reference_is_still() -> None:
    """It takes no dropout while the model trains, no gradients, and counts as a second network."""
    model = tcsm(PAIRS, pretrained(), density_ratio="bce").train()
    assert model.training
    assert not any(module.training for module in model.reference.modules())
    assert model.passes == 2
    generator = keyed_generator(0)
    model.loss(model.prepare(batch(PAIRS), generator=generator), generator=generator)["loss"].backward()
    assert all(p.grad is None for p in model.reference.parameters())
    one, two = pretrained().sample(2, sampler=EXACT), model.sample(2, sampler=EXACT)
    assert (two.nfe, two.tokens) == (one.nfe, 2 * one.tokens)


def recipe(**objective: Any) -> Recipe:
    return Recipe.resolve(
        {
            "data": "digits",
            "model": {"width": 24, "depth": 2, "heads": 2, "patch": 1},
            "objective": objective,
            "training": {"steps": 3, "batch_size": 4, "warmup": 1, "log_every": 1},
        }
    )


def test_a_run_of_a_ratio_is_whole_in_itself(tmp_path: Path) -> None:
    """The folder of its teacher may be gone."""
    ref = train(recipe(name="masked_diffusion"), tmp_path / "ref")
    options = {"name": "tcsm", "teacher": str(tmp_path / "ref"), "density_ratio": "bce"}
    trained = train(recipe(**options), tmp_path / "run")
    shutil.rmtree(tmp_path / "ref")
    loaded = genkit.load(tmp_path / "run")
    for key, value in ref.objective.state_dict().items():
        assert torch.allclose(loaded.objective.state_dict()[f"reference.{key}"], value, atol=1e-6), key
    one, other = (run.sample(4, steps=4, seed=1).x for run in (trained, loaded))
    assert torch.equal(one, other)
    x, y = loaded.dataset.test.take(torch.arange(4))
    assert loaded.log_prob(x, y, draws=2).value.isfinite().all()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("autoregressive", {"ratios": "first_order"}),
        ("autoregressive", {"positions": 1, "candidates": 2}),
        (
            "masked_diffusion",
            {"reward": "brightness", "pool": 8, "unmasker": {"name": "ancestral", "steps": 2}},
        ),
    ],
)
def test_a_run_with_a_teacher(first: str, then: dict[str, Any], tmp_path: Path) -> None:
    train(recipe(name=first), tmp_path / "first")
    run = train(recipe(name="tcsm", teacher=str(tmp_path / "first"), **then), tmp_path / "run")
    shutil.rmtree(tmp_path / "first")
    assert genkit.load(tmp_path / "run").sample(2, steps=2).x.shape == (2, 1, 8, 8)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert ("effective_samples" in header) == ("reward" in then)
    assert run.environment["tokens"] == 3 * 4 * 64 * run.objective.passes
    lowest, highest = (8 * 64, 2 * 8 * 64) if "reward" in then else (0, 0)
    assert lowest <= run.environment["setup_tokens"] <= highest
    assert run.environment["setup_seconds"] > 0


# --- what it refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "brightness", "density_ratio": "bce"}, "choose one"),
        ({"density_ratio": "bce", "divergence": "gen_kl"}, "leave divergence out"),
        ({"candidates": 0}, "candidates must be at least 1, not 0"),
        ({"positions": 0}, "positions must be at least 1, not 0"),
        ({"pool": 1}, "pool must be at least 2, not 1"),
        ({"beta": 0.0}, "beta must be positive, not 0"),
        ({"divergence": "reverse_kl"}, "divergence must be one of 'forward_kl', 'gen_kl'"),
        ({"reward": "brightnes"}, "did you mean 'brightness'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        OBJECTIVES.build({"name": "tcsm", **options}, IMAGES, model_options())


def test_teachers_that_are_missing_or_of_no_use() -> None:
    images = build("autoregressive", IMAGES, model=model_options(patch=1))
    uniform = build("discrete_flow_matching", IMAGES, model=model_options(patch=1), source="uniform")
    named: dict[str, Any] = {"name": "tcsm", "teacher": "named"}
    for options, teacher, message in (
        ({}, None, "distillation needs an autoregressive run .* none is given: set teacher=RUN_FOLDER"),
        ({}, pretrained(IMAGES), "distillation needs an autoregressive run .* MaskedDiffusion is given"),
        ({"reward": "brightness"}, None, "a reward needs a masked-diffusion run .* none is given"),
        (
            {"reward": "brightness"},
            images,
            "a reward needs a masked-diffusion run .* Autoregressive is given",
        ),
        ({"density_ratio": "kl"}, None, "a density ratio needs a masked-diffusion run .* none is given"),
        ({"density_ratio": "kl"}, uniform, "needs a masked-diffusion run .* DiscreteFlowMatching is given"),
        ({"density_ratio": "kl", "time": True}, pretrained(IMAGES), "the network is the teacher's"),
        ({"reward": "brightness", "conditional": False}, pretrained(IMAGES), "the network is the teacher's"),
        ({"density_ratio": "kl"}, pretrained(LETTERS), r"trained on data of shape \(6,\)"),
    ):
        objective = OBJECTIVES.build({**named, **options}, IMAGES, MODEL)
        with pytest.raises(GenkitError, match=message):
            objective.setup(split(IMAGES), teacher)
    coarse = OBJECTIVES.build(named, IMAGES, model_options(depth=2, patch=2))
    with pytest.raises(GenkitError, match=r"set model\.patch=1 here too"):
        coarse.setup(split(IMAGES), images)


def test_a_mask_source_is_masked_diffusion_whatever_its_name() -> None:
    flow = build("discrete_flow_matching", PAIRS, model=MODEL)
    assert tcsm(PAIRS, flow, density_ratio="bce").reference is not None
