"""Every unmasker against the exact model of a small distribution: what it samples, costs, and leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import RankGenerator, keyed_generator
from genkit.unmasking import UNMASKERS, Noise, Unmasked
from genkit.unmasking.base import Alpha, Denoiser, Predict, draw
from genkit.unmasking.base import uniform as chances
from tests.oracles import Joint

NAMES = UNMASKERS.names()
EACH = pytest.mark.parametrize("name", NAMES)
UNIFORM = [name for name in NAMES if UNMASKERS.get(name).uniform]
JOINT = Joint.example()
SMALL = Joint.example(2)
MANY = 60_000
# Ways to reveal one symbol a step, at a position that is chosen before its value.
ONE_BY_ONE: list[tuple[str, dict[str, Any]]] = [
    ("ancestral", {"steps": None}),
    ("left_to_right", {}),
    ("confidence", {"steps": None}),
    ("confidence", {"steps": None, "noise": 2.0}),
    ("margin", {"steps": None}),
    ("entropy", {"bound": 0.0}),
    ("blockwise", {"steps": None, "block": 2}),
    ("blockwise", {"steps": None, "block": 2, "within": "ancestral"}),
    ("blockwise", {"steps": 4, "block": 1, "within": "margin"}),
    ("blockwise", {"block": 3, "within": "left_to_right"}),
]
# Ways to reveal all in one step.
AT_ONCE: list[tuple[str, dict[str, Any]]] = [
    *((name, {"steps": 1}) for name in ("ancestral", "confidence", "margin", "remasking", "corrector")),
    ("entropy", {"bound": 1e9}),
    ("blockwise", {"block": 4, "within": {"name": "entropy", "bound": 1e9}}),
]


def masks(joint: Joint) -> Noise:
    return Noise(torch.arange(joint.vocabulary), joint.mask)


def uniform(joint: Joint) -> Noise:
    return Noise(torch.arange(joint.vocabulary))


def sample(
    name: str,
    joint: Joint = JOINT,
    n: int = MANY,
    *,
    given: Tensor | None = None,
    source: Noise | None = None,
    predict: Predict | None = None,
    key: int = 0,
    **options: Any,
) -> Unmasked:
    """`given`: rows (n, N) with -1 where a symbol is free."""
    generator, noise = keyed_generator(key), source or masks(joint)
    template = torch.full((n, joint.length), -1) if given is None else given
    exact = joint.denoise if noise.mask is None else joint.predict
    x = torch.where(template < 0, noise.draw(template, generator=generator), template)
    unmasker = UNMASKERS.build(name, **options)
    return unmasker.sample(predict or exact, x, template < 0, noise, generator=generator)


def chance(x: Tensor, joint: Joint) -> float:
    """The p-value of the frequencies of x under the joint, where that is possible at all."""
    possible, counts = joint.p.flatten() > 0, joint.counts(x)
    if counts[~possible].any():
        return 0.0
    return float(
        stats.chisquare(counts[possible].numpy(), len(x) * joint.p.flatten()[possible].numpy()).pvalue
    )


class Recorder:
    """A predictor that notes what it is asked."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.calls: list[tuple[Alpha, Tensor, Tensor]] = []

    def __call__(self, alpha: Alpha, x: Tensor, rows: Tensor) -> Tensor:
        self.calls.append((alpha, x.clone(), rows.clone()))
        return self.predict(alpha, x, rows)


def certain(*sure: float) -> Predict:
    """Two symbols; position i takes the first with probability sure[i]."""
    p = torch.tensor(sure, dtype=torch.float64)
    return lambda alpha, x, rows: torch.stack((p, 1 - p), -1).log().expand(len(x), -1, -1)


# --- what is sampled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), ONE_BY_ONE, ids=str)
def test_one_symbol_a_step_is_exact(name: str, options: dict[str, Any]) -> None:
    found = sample(name, **options)
    assert found.nfe == 4
    assert found.passes == 4
    assert chance(found.x, JOINT) > 1e-3


@pytest.mark.parametrize(("name", "options"), AT_ONCE, ids=str)
def test_one_step_draws_symbols_as_if_independent(name: str, options: dict[str, Any]) -> None:
    found = sample(name, **options)
    assert found.nfe == 1
    assert chance(found.x, JOINT.marginals()) > 1e-3
    assert chance(found.x, JOINT) < 1e-12  # so the test above can fail


@pytest.mark.parametrize(("name", "options"), ONE_BY_ONE, ids=str)
def test_what_is_given_is_a_condition(name: str, options: dict[str, Any]) -> None:
    """Rows with unlike numbers of free symbols, in one batch: each is exact."""
    given = torch.full((MANY, 4), -1)
    given[: MANY // 2] = torch.tensor([-1, 2, -1, 0])
    found = sample(name, given=given, **options).x
    pinned = torch.zeros_like(JOINT.p)
    pinned[:, 2, :, 0] = JOINT.p[:, 2, :, 0] / JOINT.p[:, 2, :, 0].sum()
    assert chance(found[: MANY // 2], Joint(pinned)) > 1e-3
    assert chance(found[MANY // 2 :], JOINT) > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ancestral", lambda steps: {}),
        ("corrector", lambda steps: {"strength": 1.0}),
        ("remasking", lambda steps: {"rate": 1 / steps}),  # a rate a step: the same forgetting in more steps
    ],
)
def test_more_steps_are_less_biased(name: str, options: Any) -> None:
    distances = [JOINT.distance(sample(name, steps=steps, **options(steps)).x) for steps in (2, 8, 64)]
    assert distances[1] < 0.5 * distances[0]
    assert distances[2] < 0.3 * distances[1] + 0.01  # Monte Carlo alone gives 0.01


@pytest.mark.parametrize("name", UNIFORM)
def test_a_uniform_source_with_the_exact_posterior_is_exact_in_the_limit(name: str) -> None:
    """The bias falls as one over the number of steps."""
    distances = [
        SMALL.distance(sample(name, SMALL, source=uniform(SMALL), steps=steps).x) for steps in (4, 16, 64)
    ]
    for more, fewer in zip(distances[1:], distances[:-1], strict=True):
        assert more < 0.4 * fewer
    assert distances[-1] < 0.02


@pytest.mark.parametrize(
    ("name", "options", "noise"),
    [
        ("remasking", {"rate": 0.0}, masks(JOINT)),
        ("corrector", {"strength": 0.0}, masks(JOINT)),
        ("corrector", {"strength": 0.0}, uniform(JOINT)),
    ],
    ids=["remasking", "corrector", "corrector of a uniform source"],
)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric"])
def test_without_forgetting_it_is_ancestral_bit_for_bit(
    name: str, options: dict[str, Any], noise: Noise, schedule: str
) -> None:
    one, other = (
        sample(kind, n=500, source=noise, steps=7, schedule=schedule, **more)
        for kind, more in ((name, options), ("ancestral", {}))
    )
    assert torch.equal(one.x, other.x)
    assert (one.nfe, one.passes) == (other.nfe, other.passes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("remasking", {"rate": 0.1}),
        ("remasking", {"rate": 1.0}),
        ("corrector", {"strength": 1.0}),
        ("corrector", {"strength": 20.0}),
        ("ancestral", {}),
    ],
)
def test_the_share_of_revealed_symbols_is_the_schedules(name: str, options: dict[str, Any]) -> None:
    unmasker = UNMASKERS.build(name, steps=6, schedule="cosine", **options)
    n, generator = 10_000, keyed_generator(0)
    x, free = torch.full((n, 4), JOINT.mask), torch.ones(n, 4, dtype=torch.bool)
    model = Denoiser(JOINT.predict, masks(JOINT), 1.0, 1.0, generator)
    for alpha, target in unmasker.moments(4):
        model.begin(x)
        x = unmasker.step(model, x, free, alpha, target)
        share = float((x != JOINT.mask).double().mean())
        assert share == pytest.approx(target, abs=5 * (target * (1 - target) / x.numel()) ** 0.5 + 1e-12)


@pytest.mark.parametrize("name", ["remasking", "corrector"])
def test_forgetting_asks_again(name: str) -> None:
    often = {"rate": 0.5} if name == "remasking" else {"strength": 4.0}
    plain, again = sample("ancestral", n=500, steps=16), sample(name, n=500, steps=16, **often)
    assert again.passes > 1.3 * plain.passes


# --- draws -------------------------------------------------------------------------------------------------


def frequencies_fit(logits: Tensor, expected: Tensor, **options: float) -> bool:
    u = torch.rand(MANY, generator=keyed_generator(0), dtype=torch.float64)
    x = draw(logits.expand(MANY, -1), u, **options)
    counts = torch.bincount(x, minlength=len(expected))
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    return len(counts) == 1 or stats.chisquare(counts.numpy(), MANY * expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    p = torch.tensor([0.1, 0.4, 0.05, 0.45], dtype=torch.float64)
    tempered = p ** (1 / temperature)
    assert frequencies_fit(p.log() + 3, tempered / tempered.sum(), temperature=temperature)
    assert not frequencies_fit(p.log(), torch.full_like(p, 0.25), temperature=temperature)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, [0, 1, 2, 3]), (0.96, [0, 1, 2, 3]), (0.9, [0, 1, 3]), (0.8, [1, 3]), (0.44, [3]), (1e-9, [3])],
)
def test_top_p_keeps_the_smallest_set_of_that_probability(top_p: float, kept: list[int]) -> None:
    p = torch.tensor([0.1, 0.4, 0.05, 0.45], dtype=torch.float64)
    expected = torch.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    assert frequencies_fit(p.log(), expected, top_p=top_p)


def test_top_p_is_of_the_tempered_probabilities() -> None:
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)  # squared and renormalized: 0.78, 0.20, 0.02
    expected = torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64)
    assert frequencies_fit(p.log(), expected, temperature=0.5, top_p=0.9)


def test_temperature_0_takes_the_most_probable() -> None:
    logits = torch.randn(7, 5, 9)
    assert torch.equal(draw(logits, torch.rand(7, 5), 0.0), logits.argmax(-1))
    greedy = torch.full((1, 4), -1)
    for i in range(4):
        x = torch.where(greedy < 0, JOINT.mask, greedy)
        greedy[0, i] = JOINT.predict(0.0, x, torch.arange(1))[0, i].argmax()
    assert (sample("left_to_right", n=50, temperature=0.0).x == greedy).all()


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_temperature_and_top_p_reach_every_draw(top_p: float) -> None:
    """The distribution of a chain whose every conditional is tempered and cut, by the chain rule."""
    joint = Joint.example(3)
    expected = torch.ones(27, dtype=torch.float64)
    for i in range(3):
        x = torch.where(torch.arange(3) < i, joint.states, joint.mask)
        p = (joint.predict(0.0, x, torch.arange(27))[:, i] / 0.7).softmax(-1)
        ordered, index = p.sort(descending=True)
        p = torch.zeros_like(p).scatter(1, index, ordered * (ordered.cumsum(1) - ordered < top_p))
        expected *= (p / p.sum(1, keepdim=True)).gather(1, joint.states[:, i : i + 1])[:, 0]
    found = sample("left_to_right", joint, temperature=0.7, top_p=top_p)
    assert chance(found.x, Joint(expected.reshape(3, 3, 3))) > 1e-3


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_what_has_no_probability_is_never_drawn(u: float) -> None:
    """Not at the ends of the unit interval either; and in float64, whatever the logits are."""
    p = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    chance = torch.tensor(u, dtype=torch.float64)
    for logits in (p.log(), p.log().clamp(min=-1e9)):
        assert draw(logits, chance).item() == (1 if u == 0 else 3)
    assert chances(p).dtype == torch.float64


# --- what it leaves alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 50])
@EACH
def test_everything_is_revealed_and_what_is_given_stays(name: str, steps: int) -> None:
    """Also rows in which all is given, and all is free."""
    options = {} if name in ("entropy", "left_to_right") else {"steps": steps}
    for noise in (masks(JOINT), uniform(JOINT))[: 1 + UNMASKERS.get(name).uniform]:
        given = torch.randint(3, (200, 4), generator=keyed_generator(1))
        free = torch.rand(200, 4, generator=keyed_generator(2)) < 0.5
        free[0], free[1] = True, False
        found = sample(name, given=given.masked_fill(free, -1), source=noise, **options).x
        assert torch.equal(found[~free], given[~free])
        assert found.max() < JOINT.mask


@pytest.mark.parametrize("schedule", ["linear", "cosine", "geometric", "log_linear"])
@pytest.mark.parametrize("name", ["ancestral", "confidence", "remasking", "corrector"])
def test_any_schedule_ends_with_all_revealed(name: str, schedule: str) -> None:
    assert sample(name, n=200, steps=5, schedule=schedule).x.max() < JOINT.mask


@pytest.mark.parametrize("name", ["ancestral", "confidence", "remasking", "corrector"])
def test_a_schedule_that_rounds_to_1_before_the_end(name: str) -> None:
    schedule = {"name": "polynomial", "exponent": 30.0}
    assert sample(name, n=200, steps=32, schedule=schedule).x.max() < JOINT.mask


# --- what it costs -----------------------------------------------------------------------------------------


@EACH
def test_network_calls_and_passes_are_counted(name: str) -> None:
    recorder = Recorder(JOINT.predict)
    found = sample(name, n=300, predict=recorder)
    assert found.nfe == len(recorder.calls)
    assert found.passes == pytest.approx(sum(len(rows) for _, _, rows in recorder.calls) / 300)
    for alpha, x, rows in recorder.calls:
        assert ((torch.as_tensor(alpha) >= 0) & (torch.as_tensor(alpha) < 1)).all()
        assert len(x) == len(rows) > 0
        assert (x == JOINT.mask).any(1).all()  # no row is asked for that is done


@EACH
def test_a_step_in_which_nothing_changes_costs_no_call(name: str) -> None:
    """Forty times as many steps as symbols, one row: at most a call for each symbol that is revealed."""
    options = {} if name in ("entropy", "left_to_right") else {"steps": 160}
    recorder = Recorder(JOINT.predict)
    found = sample(name, n=1, predict=recorder, **options)
    left = [int((x == JOINT.mask).sum()) for _, x, _ in recorder.calls]
    if name in ("remasking", "corrector"):
        assert found.nfe < 160
    else:
        assert found.nfe <= 4
        assert all(after < before for before, after in zip(left[:-1], left[1:], strict=True))


def test_a_uniform_source_asks_for_the_rows_that_change() -> None:
    recorder = Recorder(SMALL.denoise)
    found = sample("ancestral", SMALL, 200, source=uniform(SMALL), predict=recorder, steps=50)
    assert found.nfe == len(recorder.calls)
    assert found.passes < 10  # sum of 1 - (1 - 1/k)^2 over k = 1..50 is 7.4
    assert sample("ancestral", SMALL, 1, source=uniform(SMALL), steps=1000).nfe < 50


@pytest.mark.parametrize(("schedule", "left"), [("linear", [8, 6, 4, 2]), ("cosine", [8, 7, 5, 3])])
def test_cosine_reveals_few_symbols_first(schedule: str, left: list[int]) -> None:
    recorder = Recorder(certain(*8 * [0.5]))
    joint = Joint.example(8, 2)
    sample("confidence", joint, 3, predict=recorder, steps=4, schedule=schedule)
    assert [int((x[0] == 2).sum()) for _, x, _ in recorder.calls] == left


# --- which positions ---------------------------------------------------------------------------------------


def order(name: str, predict: Predict, length: int, **options: Any) -> list[list[int]]:
    """The positions revealed in each call, of one row of two symbols."""
    recorder = Recorder(predict)
    sample(name, Joint.example(length, 2), 1, predict=recorder, **options)
    left = [set((x[0] == 2).nonzero()[:, 0].tolist()) for _, x, _ in recorder.calls] + [set()]
    return [sorted(before - after) for before, after in zip(left[:-1], left[1:], strict=True)]


def test_the_surest_first() -> None:
    predict = certain(0.6, 0.95, 0.2, 0.5)  # two symbols: margin and confidence order alike
    for name in ("confidence", "margin"):
        assert order(name, predict, 4, steps=None) == [[1], [2], [0], [3]]
        assert order(name, predict, 4, steps=2) == [[1, 2], [0, 3]]
    assert order("entropy", predict, 4, bound=0.0) == [[1], [2], [0], [3]]


def test_margin_is_not_confidence() -> None:
    p = torch.tensor([[0.5, 0.45, 0.05], [0.4, 0.3, 0.3]], dtype=torch.float64).log()
    joint = Joint.example(2)
    first = []
    for name in ("confidence", "margin"):
        recorder = Recorder(lambda alpha, x, rows: p.expand(len(x), -1, -1))
        sample(name, joint, 1, predict=recorder, steps=None)
        first.append(int((recorder.calls[1][1][0] != joint.mask).nonzero()))
    assert first == [0, 1]


def test_the_entropy_bound_by_hand() -> None:
    sure = (0.9, 0.5, 0.99, 0.7)  # entropies 0.325, 0.693, 0.056, 0.611
    predict = certain(*sure)
    assert order("entropy", predict, 4, bound=0.05) == [[2], [0], [3], [1]]
    assert order("entropy", predict, 4, bound=0.06) == [[0, 2], [3], [1]]
    assert order("entropy", predict, 4, bound=0.39) == [[0, 2, 3], [1]]
    assert order("entropy", predict, 4, bound=1.0) == [[0, 1, 2, 3]]


def test_the_entropy_bound_tells_each_row_its_own_share() -> None:
    """A row with one symbol to reveal, of six, is not told how far the others are."""
    recorder, joint = Recorder(certain(*6 * [0.5])), Joint.example(6, 2)
    given = torch.full((2, 6), -1)
    given[0, :5] = 1
    sample("entropy", joint, 2, given=given, predict=recorder, bound=0.0)
    for alpha, x, rows in recorder.calls:
        free = (given[rows] < 0).sum(1)
        assert torch.equal(torch.as_tensor(alpha), 1 - (x == joint.mask).sum(1) / free)
    assert recorder.calls[-1][0] == pytest.approx(5 / 6)


def test_a_symbol_that_is_certain_is_free_to_reveal() -> None:
    assert order("entropy", certain(1.0, 0.5, 1.0), 3, bound=0.0) == [[0, 1, 2]]


def test_noise_makes_the_order_of_confidence_random() -> None:
    predict = certain(0.6, 0.95, 0.2, 0.5)
    firsts = {order("confidence", predict, 4, steps=None, noise=5.0, key=key)[0][0] for key in range(30)}
    assert firsts == {0, 1, 2, 3}


def test_left_to_right_and_block_by_block() -> None:
    predict = certain(0.6, 0.95, 0.2, 0.5)
    assert order("left_to_right", predict, 4) == [[0], [1], [2], [3]]
    assert order("blockwise", predict, 4, steps=None, block=2) == [[1], [0], [2], [3]]
    assert order("blockwise", predict, 4, steps=2, block=2) == [[0, 1], [2, 3]]
    assert order("blockwise", predict, 4, steps=1, block=3) == [[0, 1, 2], [3]]  # at least one each
    nested = {"name": "blockwise", "block": 1, "within": "ancestral"}
    assert order("blockwise", predict, 4, steps=None, block=2, within=nested) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("steps", "of_blocks"), [(3, [1, 1, 1]), (5, [1, 2, 2]), (8, [2, 3, 3]), (12, [4, 4, 4])]
)
def test_the_steps_of_all_blocks_are_as_many_as_were_asked_for(steps: int, of_blocks: list[int]) -> None:
    found = order("blockwise", certain(*12 * [0.5]), 12, steps=steps, block=4)
    assert len(found) == steps
    assert [sum(i // 4 == k for i, *_ in found) for k in range(3)] == of_blocks


def test_blocks_tell_the_network_the_share_of_all() -> None:
    recorder = Recorder(certain(*6 * [0.5]))
    sample("blockwise", Joint.example(6, 2), 2, predict=recorder, steps=None, block=3)
    assert [alpha for alpha, _, _ in recorder.calls] == pytest.approx([k / 6 for k in range(6)])


# --- what it refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNIFORM])
def test_masks_are_needed_where_nothing_else_marks_noise(name: str) -> None:
    for options in ({"within": "ancestral"}, {}) if name == "blockwise" else ({},):
        with pytest.raises(GenkitError, match="noise is uniform symbols: use ancestral or corrector"):
            sample(name, n=2, source=uniform(JOINT), **options)


def test_one_symbol_a_step_needs_masks() -> None:
    with pytest.raises(GenkitError, match="steps: null.* uniform symbols: give a number of steps"):
        sample("ancestral", n=2, source=uniform(JOINT), steps=None)
    with pytest.raises(GenkitError, match="Remasking needs a number of steps"):
        UNMASKERS.build("blockwise", steps=None, within="remasking")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(
            (name, {"temperature": -0.1}, "temperature must not be negative")
            for name in NAMES
            if name != "blockwise"
        ),
        *(
            (name, {"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0")
            for name in NAMES
            if name != "blockwise"
        ),
        ("ancestral", {"top_p": 1.1}, "top_p must be"),
        ("ancestral", {"temperature": math.nan}, "temperature must"),
        *((name, {"steps": 0}, "at least 1") for name in NAMES if name not in ("entropy", "left_to_right")),
        ("remasking", {"steps": None}, "steps must be a whole number"),
        ("remasking", {"rate": 1.5}, r"rate must be in \[0, 1\], not 1.5"),
        ("corrector", {"strength": -1.0}, "strength must not be negative"),
        ("corrector", {"strength": math.nan}, "strength must not be negative"),
        ("confidence", {"noise": -1.0}, "noise must not be negative"),
        ("entropy", {"bound": -1.0}, "bound must not be negative"),
        ("blockwise", {"block": 0}, "block and steps must be at least 1"),
        ("blockwise", {"within": "ancestrall"}, "did you mean 'ancestral'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        UNMASKERS.build(name, **options)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("steps", [None, 32])
def test_rows_of_blocks_depend_on_no_row_with_more_to_reveal(block: int, steps: int | None) -> None:
    """Of a model that goes by alpha, too: each row is told its own share."""
    told: list[Tensor] = []

    def predict(alpha: Alpha, x: Tensor, rows: Tensor) -> Tensor:
        share = torch.as_tensor(alpha).expand(len(x))
        told.append(((x != JOINT.vocabulary) & free[rows]).sum(1) / free[rows].sum(1) - share)
        return JOINT.predict(alpha, x, rows) * (1 + share[:, None, None])

    free = torch.ones(64, JOINT.length, dtype=torch.bool)
    free[:32, :2] = False
    x = torch.where(free, JOINT.vocabulary, 0)
    noise = Noise(torch.arange(JOINT.vocabulary), JOINT.vocabulary)
    unmasker = UNMASKERS.build("blockwise", steps=steps, block=block)
    whole = unmasker.sample(predict, x, free, noise, generator=keyed_generator(0)).x
    assert all(apart.abs().max() < 1e-6 for apart in told)
    all_free, found = free, []
    for first in (0, 32):
        rows = slice(first, first + 32)
        free = all_free[rows]
        part = RankGenerator.of(keyed_generator(0), keyed_generator(0, first), first, 32, 64)
        found.append(unmasker.sample(predict, x[rows], free, noise, generator=part).x)
    assert torch.equal(torch.cat(found), whole)
