"""Autoregressive models: exact likelihoods, no leaks, samples of the right distribution, completed prefixes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance import GUIDANCES
from genkit.objectives.autoregressive import Autoregressive
from genkit.randomness import keyed_generator
from genkit.types import DataSpec
from genkit.unmasking import UNMASKERS
from genkit.unmasking.base import draw, uniform
from tests.objectives.models import COLOUR, IMAGES, batch, build, model_options

TINY = DataSpec("tiny", (3,), levels=3, classes=2, ordered=False)
PACKED = DataSpec("packed", (6,), levels=4, ordered=False, fixed=(3,), boundary=3)
PADDED = DataSpec("padded", (5,), levels=4, ordered=False, fixed=(3,))
PROMPTED = DataSpec("prompted", (5,), levels=4, ordered=False, fixed=(3,), answer=3)
PIXELS = DataSpec("pixels", (1, 2, 2), levels=3, classes=2)


def model(spec: DataSpec = TINY, **options: object) -> Autoregressive:
    built = build("autoregressive", spec, model=model_options(patch=1, depth=2), **options)
    assert isinstance(built, Autoregressive)
    return built.double().requires_grad_(False)


def everything(length: int, symbols: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(symbols), repeat=length)))


def assert_frequencies(x: Tensor, rows: Tensor, p: Tensor) -> None:
    """The drawn rows x (n, N) have the probabilities p (K,) of `rows` (K, N), within four standard errors."""
    found = (x[:, None] == rows).all(-1).double().mean(0)
    assert float(found.sum()) == pytest.approx(1)
    assert ((found - p).abs() < 4 * (p * (1 - p) / len(x)).sqrt() + 1e-9).all()


# --- likelihood -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [None, 0, 1])
def test_probabilities_sum_to_one(y: int | None) -> None:
    rows = everything(3, 3)
    found = model().log_prob(rows, None if y is None else torch.full((len(rows),), y))
    assert found.kind == "exact"
    assert float(found.value.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert found.count.tolist() == [3] * len(rows)
    assert float(found.value.exp().max() / found.value.exp().min()) > 1.5  # and the model is not trivial


def test_images_are_read_row_by_row() -> None:
    pixels = model(PIXELS)
    rows = everything(4, 3)
    assert float(pixels.log_prob(rows.view(-1, 1, 2, 2)).value.exp().sum()) == pytest.approx(1, abs=1e-12)
    image = torch.arange(4).view(1, 1, 2, 2) % 3
    assert pixels.symbols(image).tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("layout", "free"), [((3, -1, -1, 3, -1, -1), 4), ((-1, -1, 3, -1, 3, 3), 3), ((3, 3, -1, -1, -1, 3), 3)]
)
def test_given_symbols_are_conditioned_on_and_not_counted(layout: tuple[int, ...], free: int) -> None:
    """For every layout the rest sums to one; layout symbols themselves have no probability."""
    values = everything(free, 3)
    rows = torch.tensor(layout).repeat(len(values), 1)
    rows[rows < 0] = values.flatten()
    packed = model(PACKED)
    found = packed.log_prob(rows)
    assert float(found.value.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert found.count.tolist() == [free] * len(rows)
    assert packed.logits(rows).softmax(-1)[..., 3].max() == 0


def test_prompts_are_given() -> None:
    rows = torch.tensor([[0, 1, 3, 2, 2], [0, 1, 3, 0, 1]])
    found = model(PROMPTED).log_prob(rows)
    assert found.count.tolist() == [2, 2]
    answers = everything(2, 3)
    all_of_one = torch.cat((torch.tensor([0, 1, 3]).expand(9, -1), answers), dim=1)
    assert float(model(PROMPTED).log_prob(all_of_one).value.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_the_loss_is_the_mean_over_modelled_symbols() -> None:
    packed = model(PACKED)
    rows = batch(PACKED, 16)
    loss = packed.loss(packed.prepare(rows), generator=keyed_generator(0))["loss"]
    found = packed.log_prob(rows.x)
    assert float(loss) == pytest.approx(float(-found.value.sum() / found.count.sum()), abs=1e-12)


# --- no leaks ---------------------------------------------------------------------------------------------


def test_a_symbol_is_predicted_from_those_before_it_alone() -> None:
    pixels = model(DataSpec("six", (6,), levels=4))
    x = torch.tensor([[0, 1, 2, 3, 2, 1]])
    before = pixels.logits(x)
    for j in range(6):
        other = x.clone()
        other[0, j] = (x[0, j] + 1) % 4
        changed = (pixels.logits(other) - before)[0].abs().amax(-1) > 1e-9
        assert changed.tolist() == [i > j for i in range(6)]


def test_packed_documents_do_not_see_each_other() -> None:
    """Nor does the first symbol of a document see how the one before it ends."""
    packed = model(PACKED)
    x = torch.tensor([[0, 1, 3, 2, 0, 1]])
    for j in (0, 1):
        other = x.clone()
        other[0, j] = 2
        change = (packed.logits(other) - packed.logits(x))[0].abs().amax(-1)
        assert change[3:].max() == 0
    other = x.clone()
    other[0, 3] = 1
    assert (packed.logits(other) - packed.logits(x))[0, 4:].abs().amax(-1).min() > 1e-9


# --- sampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [None, 1])
def test_samples_have_the_exact_probabilities(y: int | None) -> None:
    tiny, rows, n = model(), everything(3, 3), 20_000
    sample = tiny.sample(n, None if y is None else torch.full((n,), y), generator=keyed_generator(0))
    p = tiny.log_prob(rows, None if y is None else torch.full((len(rows),), y)).value.exp()
    assert_frequencies(sample.x, rows, p)
    assert sample.nfe == sample.tokens == 3


def test_samples_come_with_their_log_probability() -> None:
    tiny, y = model(), torch.arange(40) % 2
    sample = tiny.sample(40, y, return_log_prob=True, generator=keyed_generator(0))
    assert sample.log_prob.kind == "exact"
    assert sample.log_prob.count.tolist() == [3] * 40
    assert torch.allclose(sample.log_prob.value, tiny.log_prob(sample.x, y).value, atol=1e-12)


def reference(m: Autoregressive, x: Tensor, free: Tensor, y: Tensor | None, scale: float = 1.0) -> Tensor:
    """Without a cache: the network over everything, for each symbol anew."""
    generator = keyed_generator(0)
    for i in range(x.shape[1]):
        chance = uniform(x[:, i], generator=generator)
        logits = m.logits(x, y=y)[:, i]
        if scale != 1:
            other = m.logits(x, y=torch.full_like(y, -1))[:, i]
            logits = logits + (scale - 1) * (logits - other)
        drawn = draw(logits, chance)
        x[:, i] = torch.where(free[:, i], drawn, x[:, i])
    return x


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cached_sampling_is_uncached_sampling(scale: float) -> None:
    pixels, y = model(IMAGES), torch.arange(6) % 3
    guidance = GUIDANCES.build("classifier_free", scale=scale)
    sample = pixels.sample(6, y, guidance=guidance, generator=keyed_generator(0))
    with torch.no_grad():
        x = reference(pixels, torch.zeros(6, 16).long(), torch.ones(6, 16).bool(), y, scale)
    assert torch.equal(pixels.symbols(sample.x), x)
    assert (sample.nfe, sample.tokens) == (16, 16 if scale == 1 else 32)


def test_a_weaker_model_has_a_cache_of_its_own() -> None:
    """The most probable symbols of l + 2 (l - l_g), each from those before it."""
    pixels, weak, y = model(IMAGES), model(IMAGES), torch.arange(6) % 3
    with torch.no_grad():
        for p in weak.parameters():
            p.mul_(0.7)
    auto = GUIDANCES.build("autoguidance", scale=3.0)
    auto.guide = weak
    greedy = {"name": "left_to_right", "temperature": 0.0}
    sample = pixels.sample(6, y, sampler=greedy, guidance=auto)
    x = pixels.symbols(sample.x)
    with torch.no_grad():
        logits, other = (m.logits(x, y=y) for m in (pixels, weak))
    assert torch.equal((logits + 2 * (logits - other)).argmax(-1), x)
    assert not torch.equal(logits.argmax(-1), x)
    assert (sample.nfe, sample.tokens) == (16, 32)


def test_the_cache_gives_the_logits_of_the_whole() -> None:
    pixels, x = model(IMAGES), torch.randint(5, (3, 16))
    whole = pixels.logits(x)
    cache = pixels.backbone.cache(3, 16)
    for i in (0, 1, 5, 6, 15):  # several at once, too
        assert torch.allclose(pixels.next(x[:, : i + 1], None, cache), whole[:, i], atol=1e-12)


def test_a_prefix_is_completed_as_the_model_has_it() -> None:
    tiny, n = model(), 20_000
    given = torch.tensor([2, 0, -1]).expand(n, 3)
    calls = []
    tiny.backbone.register_forward_hook(lambda *_: calls.append(1))
    sample = tiny.sample(n, given=given, generator=keyed_generator(0))
    assert sample.nfe == len(calls) == 1  # the prefix is read at once
    assert sample.tokens == 3
    rows = torch.tensor([[2, 0, v] for v in range(3)])
    assert_frequencies(sample.x, rows, tiny.log_prob(rows).value.softmax(0))


def test_prefixes_of_a_batch_may_differ_and_layout_may_follow() -> None:
    padded = model(PADDED)
    given = torch.tensor([[1, 2, 0, -1, 3], [2, -1, -1, -1, 3], [-1, -1, -1, 3, 3]])
    sample = padded.sample(3, given=given, return_log_prob=True, generator=keyed_generator(0))
    assert torch.equal(sample.x[given >= 0], given[given >= 0])
    assert (sample.x[given < 0] < 3).all()
    assert (sample.nfe, sample.tokens) == (4, 4)
    assert sample.log_prob.count.tolist() == [1, 3, 3]
    free = given < 0
    with torch.no_grad():
        expected = reference(padded, given.masked_fill(free, 0), free, None)
        log_p = padded.own(padded.logits(sample.x).log_softmax(-1), sample.x)
    assert torch.equal(sample.x, expected)
    assert torch.allclose(sample.log_prob.value, (log_p * free).sum(1), atol=1e-12)


def test_given_documents_are_kept_apart() -> None:
    packed = model(PACKED)
    given = torch.tensor([[3, 0, 1, 3, -1, -1], [3, 2, 2, 3, -1, -1]])
    sample = packed.sample(2, given=given, generator=keyed_generator(0))
    with torch.no_grad():
        free = given < 0
        expected = reference(packed, given.masked_fill(free, 0), free, None)
    assert torch.equal(sample.x, expected)
    assert (sample.nfe, sample.tokens) == (2, 5 + 6)
    one = packed.sample(2, generator=keyed_generator(0))  # without any: one document, cached
    assert one.tokens == 6
    assert (one.x != 3).all()


def test_temperature_and_top_p_are_the_unmasker_s() -> None:
    tiny = model()
    greedy = tiny.sample(5, sampler=UNMASKERS.build("left_to_right", temperature=0.0)).x
    assert (greedy == greedy[0]).all()
    with torch.no_grad():
        first = tiny.logits(greedy)[0].argmax(-1)
    assert torch.equal(greedy[0], first)
    nucleus = tiny.sample(200, sampler=UNMASKERS.build("left_to_right", top_p=0.01)).x
    assert torch.equal(nucleus, greedy[:1].expand(200, -1))


# --- as a teacher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [TINY, PACKED], ids=lambda spec: spec.name)
def test_log_odds_are_the_first_order_in_one_hot_symbols(spec: DataSpec) -> None:
    """Against the gradient in one-hot vectors that are both read and predicted."""
    m = model(spec)
    x = torch.tensor([[0, 2, 1], [1, 1, 0]]) if spec is TINY else torch.tensor([[0, 1, 3, 2, 0, 1]])
    hot = torch.eye(m.vocabulary + 1).double()[x].requires_grad_()
    start = torch.eye(m.vocabulary + 1).double()[torch.full_like(x[:, :1], m.start)]
    read = torch.cat((start, hot[:, :-1]), dim=1)
    inputs = read @ m.stem.symbol.weight + m.stem.position
    log_p = m.outputs(inputs, x, None).log_softmax(-1)
    modelled = ~m.given(x)
    ((hot[..., : m.vocabulary] * log_p).sum(-1) * modelled).sum().backward()
    slope = hot.grad[..., : m.vocabulary]
    expected = slope - slope.gather(-1, x[..., None])
    assert torch.allclose(m.log_odds(x)[modelled], expected[modelled], atol=1e-10)


def test_log_odds_are_exact_for_the_last_symbol() -> None:
    tiny = model()
    x = torch.tensor([[0, 2, 1]])
    rows = torch.tensor([[0, 2, v] for v in range(3)])
    expected = tiny.log_likelihood(rows) - tiny.log_likelihood(x)
    assert torch.allclose(tiny.log_odds(x)[0, 2], expected, atol=1e-12)


def test_log_odds_work_without_gradients_and_leave_none() -> None:
    tiny = model().requires_grad_(False)
    with torch.no_grad():
        assert not tiny.log_odds(torch.tensor([[0, 2, 1]])).requires_grad


# --- what it refuses --------------------------------------------------------------------------------------


def test_requests_that_cannot_be_met() -> None:
    tiny = model()
    with pytest.raises(GenkitError, match=r"a patch of 4: set model\.patch=1"):
        build("autoregressive", IMAGES, model=model_options(patch=2))
    with pytest.raises(GenkitError, match="2 channels"):
        build("autoregressive", COLOUR, model=model_options(patch=1))
    with pytest.raises(GenkitError, match="not by 'confidence': use the unmasker left_to_right"):
        tiny.sample(2, sampler="confidence")
    with pytest.raises(GenkitError, match="completes a prefix.* infilling needs masked_diffusion"):
        tiny.sample(2, given=torch.tensor([[0, -1, 1], [0, 1, -1]]))
    with pytest.raises(GenkitError, match="nothing is left to fill in"):
        tiny.sample(1, given=torch.tensor([[0, 1, 1]]))
    for options in ({"temperature": 0.5}, {"top_p": 0.9}):
        with pytest.raises(GenkitError, match="plain draws: set temperature=1 and top_p=1"):
            tiny.sample(2, sampler=UNMASKERS.build("left_to_right", **options), return_log_prob=True)
