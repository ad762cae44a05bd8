"""Couplings that plan within a batch, against POT and against each other's limits."""

from __future__ import annotations

import math
from typing import Any

import ot
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genkit import memory
from genkit.couplings import COUPLINGS, batch
from genkit.couplings.assignment import SLACK, assign
from genkit.couplings.conditional_ot import unlike, weight_of_ratio
from genkit.couplings.entropic import entropic_plan, log_rows
from genkit.data.base import Encoded, TensorSplit
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.testing.couplings import mean_cost
from genkit.types import DataSpec, Pair, StandardNormal
from tests.oracles import same_p

PLANS = [name for name in COUPLINGS.names() if issubclass(COUPLINGS.get(name), batch.BatchCoupling)]


def points(n: int, d: int = 2, key: int = 0) -> Tensor:
    """Data of two far clusters, in float64."""
    generator = keyed_generator(key, "points")
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.2, 1.5, d) + 3 * (torch.arange(n) % 2)[:, None]


def pair_of(name: str, x1: Tensor, y: Tensor | None = None, **options: object) -> Pair:
    return COUPLINGS.build(name, **options)(x1, y, generator=keyed_generator(0))


def costs(x1: Tensor) -> Tensor:
    """To the source samples that `pair_of` draws."""
    return torch.cdist(x1, StandardNormal().sample(x1, generator=keyed_generator(0))).square()


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


# what all of them do


@pytest.mark.parametrize("name", PLANS)
def test_a_batch_of_one_is_paired(name: str) -> None:
    pair = pair_of(name, torch.zeros(1, 3))
    assert torch.equal(pair.x0, StandardNormal().sample(torch.zeros(1, 3), generator=keyed_generator(0)))


@pytest.mark.parametrize("name", PLANS)
def test_equal_rows_and_few_rows_are_no_trouble(name: str) -> None:
    for x1 in (torch.zeros(2, 3), torch.zeros(7, 1, 2, 2), torch.ones(5, 1)):
        assert pair_of(name, x1).x0.isfinite().all()


@pytest.mark.parametrize("name", PLANS)
def test_data_that_are_not_finite(name: str) -> None:
    with pytest.raises(GenkitError, match=rf"^{name}: .* not finite"):
        pair_of(name, torch.tensor([[1.0, float("nan")], [0.0, 0.0]]))


def test_a_matrix_that_does_not_fit_is_said_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    for name in PLANS:
        if name in ("sliced_ot", "weighted"):
            assert len(pair_of(name, points(64)).x0) == 64
            continue
        with pytest.raises(
            GenkitError, match=rf"^{name}: 64 x 64 costs take .*'sliced_ot' and 'weighted' need no"
        ):
            pair_of(name, points(64))


# assignment


@pytest.mark.parametrize("d", [1, 2, 30])
@pytest.mark.parametrize("n", [2, 9, 80])
def test_all_solvers_find_the_optimum_of_pot(n: int, d: int) -> None:
    x1 = points(n, d)
    cost = costs(x1)
    exact = float(ot.emd2(uniform(n), uniform(n), cost))
    for solver in ("auto", "scipy", "pot", "torch"):
        order = assign(cost, solver)  # type: ignore[arg-type]
        assert sorted(order.tolist()) == list(range(n))
        found = float(cost[torch.arange(n), order].mean())
        slack = SLACK * float(cost.std()) if solver == "torch" else 0
        assert found == pytest.approx(exact, rel=1e-9, abs=slack)
        assert mean_cost(pair_of("ot", x1, solver=solver)) == pytest.approx(exact, rel=1e-5)


def test_the_auction_with_ties() -> None:
    cost = torch.randint(3, (20, 20), generator=keyed_generator(0)).double()
    one, other = (cost[torch.arange(20), assign(cost, solver)].sum() for solver in ("scipy", "torch"))
    assert one == other


def test_pot_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    with pytest.raises(GenkitError, match=r"pip install 'genkit-torch\[pot\]'"):
        pair_of("ot", points(4), solver="pot")


# entropic plans


def test_the_entropic_plan_is_that_of_pot() -> None:
    cost = costs(points(40))
    plan, error = entropic_plan(cost, 0.3, tolerance=1e-10, iterations=5000)
    expected = ot.sinkhorn(uniform(40), uniform(40), cost, 0.3, method="sinkhorn_log", stopThr=1e-12)
    assert torch.allclose(plan.exp(), expected, atol=1e-9)
    assert error < 1e-10
    assert torch.allclose(plan.exp().sum(1), uniform(40), atol=1e-12)


def test_the_column_error_is_the_error_of_the_columns() -> None:
    cost = costs(points(40))
    plan, error = entropic_plan(cost, 0.1, tolerance=0.02, iterations=5000)
    assert 1e-4 < error < 0.02
    assert float((plan.exp().sum(0) - 1 / 40).abs().sum()) == pytest.approx(float(error), rel=1e-6)


def test_the_unbalanced_plan_is_that_of_pot() -> None:
    cost = costs(points(40))
    plan, _ = entropic_plan(cost, 0.5, tolerance=1e-12, iterations=5000, relaxation=2.0)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        uniform(40), uniform(40), cost, 0.5, 2.0, reg_type="kl", numItermax=5000, stopThr=1e-14
    )
    assert torch.allclose(plan.exp(), expected, atol=1e-8)
    assert torch.allclose(log_rows(plan), 40 * expected.sum(1), atol=1e-6)


def test_sinkhorn_goes_to_ot_as_epsilon_falls() -> None:
    """The plan, and at last what is drawn from it."""
    x1 = points(40)
    cost, exact = costs(x1), mean_cost(pair_of("ot", x1))
    found = [cost.mean()]
    for epsilon in (10.0, 1.0, 0.1, 0.02):
        plan, _ = entropic_plan(cost, epsilon, tolerance=1e-4, iterations=20_000)
        found.append((plan.exp() * cost).sum())
    assert (torch.stack(found).diff() < 0).all()
    assert float(found[-1]) == pytest.approx(exact, rel=1e-3)
    for name, option in (("sinkhorn", {"epsilon": 1e-3}), ("schrodinger_bridge", {"sigma": 0.05})):
        pair = pair_of(name, x1, iterations=20_000, **option)
        assert mean_cost(pair) == pytest.approx(exact, rel=0.03)


def test_sinkhorn_goes_to_independent_as_epsilon_grows() -> None:
    cost = costs(points(40))
    plan, _ = entropic_plan(cost, 1e6, tolerance=1e-6, iterations=100)
    assert torch.allclose(plan.exp(), torch.full((40, 40), 1 / 1600, dtype=torch.float64), rtol=1e-3)


def test_a_plan_that_did_not_converge_is_an_error() -> None:
    for name, options in (("sinkhorn", {"epsilon": 1e-3}), ("schrodinger_bridge", {"sigma": 0.01})):
        with pytest.raises(
            GenkitError, match=rf"^{name}: the plan did not converge in 30 iterations \(error"
        ):
            pair_of(name, points(40), iterations=30, **options)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sinkhorn", "column_error"),
        ("schrodinger_bridge", "column_error"),
        ("unbalanced_ot", "plan_error"),
        ("ot", None),
    ],
)
def test_pairs_of_entropic_plans_say_the_error_that_is_left(name: str, key: str | None) -> None:
    coarse, fine = (
        COUPLINGS.build(name, **({"tolerance": tolerance} if key else {}))(
            points(40), generator=keyed_generator(0)
        ).logs
        for tolerance in (1e-2, 1e-5)
    )
    assert list(coarse) == list(fine) == ([key] if key else [])
    if key:
        assert coarse[key].shape == ()
        assert 0 < fine[key] < 1e-5 < coarse[key] < 1e-2


def test_unbalanced_goes_to_sinkhorn_and_leaves_an_outlier_out() -> None:
    x1 = points(40)
    assert float(pair_of("unbalanced_ot", x1, relaxation=1e4).weight.std()) < 1e-3  # type: ignore[union-attr]
    x1[0] += 20
    weight = pair_of("unbalanced_ot", x1, relaxation=0.1).weight
    assert weight is not None
    assert weight[0] < 0.01 * weight[1:].mean()


# partial transport


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_partial_ot_costs_what_pot_finds(share: float) -> None:
    x1 = points(30)
    pair, count = pair_of("partial_ot", x1, mass=share), round(30 * share)
    plan = ot.partial.partial_wasserstein(uniform(30), uniform(30), costs(x1), m=min(count / 30, 1 - 1e-12))
    assert pair.weight is not None
    assert float(pair.weight.sum()) == count
    assert mean_cost(pair) * count / 30 == pytest.approx(float((plan * costs(x1)).sum()), rel=1e-9)
    drawn = StandardNormal().sample(x1, generator=keyed_generator(0))
    assert torch.equal(pair.x0.sort(0).values, drawn.sort(0).values)  # what is left over goes with weight 0


def test_all_of_a_partial_plan_is_ot() -> None:
    assert torch.equal(pair_of("partial_ot", points(30), mass=1.0).x0, pair_of("ot", points(30)).x0)


# conditions


def test_conditional_ot_at_weight_zero_is_ot() -> None:
    x1, y = points(50), torch.arange(50) % 4
    for condition in (y, y.double(), torch.randn(50, 3)):
        assert torch.equal(pair_of("conditional_ot", x1, condition, weight=0.0).x0, pair_of("ot", x1).x0)
    assert torch.equal(pair_of("conditional_ot", x1).x0, pair_of("ot", x1).x0)


def test_each_class_keeps_its_source_under_conditional_ot_and_not_under_ot() -> None:
    y = torch.arange(64) % 2
    x0: dict[str, list[Tensor]] = {"conditional_ot": [], "ot": []}
    for key in range(30):
        x1 = points(64, key=key)
        for name, drawn in x0.items():
            drawn.append(COUPLINGS.build(name)(x1, y, generator=keyed_generator(key)).x0[y == 0])
    normal = torch.randn(30 * 32, 2, generator=keyed_generator(0), dtype=torch.float64)
    assert same_p(torch.cat(x0["conditional_ot"]), normal) > 1e-3
    assert same_p(torch.cat(x0["ot"]), normal) < 1e-6


def test_within_a_class_it_is_ot() -> None:
    x1, y = points(40), torch.arange(40) % 2
    x0 = StandardNormal().sample(x1, generator=keyed_generator(0))
    pair = pair_of("conditional_ot", x1, y)
    for label in (0, 1):
        ours, theirs = pair.x0[y == label], x0[y == label]
        assert torch.equal(ours.sort(0).values, theirs.sort(0).values)
        cost = torch.cdist(x1[y == label], theirs).square()
        best = cost[torch.arange(20), assign(cost)].sum()
        assert float((x1[y == label] - ours).square().sum()) == pytest.approx(float(best), rel=1e-9)


def test_the_distance_of_conditions() -> None:
    assert unlike(torch.tensor([0, 1, 0])).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert unlike(torch.tensor([[0, 1], [0, 2], [0, 1]])).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert unlike(torch.tensor([0.0, 3.0])).tolist() == [[0, 9], [9, 0]]
    vectors = unlike(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    assert torch.allclose(vectors, torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]]).double())


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.4])
def test_a_ratio_sets_the_weight(ratio: float) -> None:
    x1 = points(60)
    cost, apart = costs(x1), unlike(x1[:, 0])
    weight = weight_of_ratio(cost, apart, ratio)
    held = (cost + weight * apart <= cost.diagonal()[:, None] * (1 + 1e-12)).double().mean()
    assert float(held) == pytest.approx(ratio, abs=2e-3)


def test_a_larger_weight_brings_conditions_nearer_and_costs_more() -> None:
    x1 = points(60)
    condition = x1[:, 0].clone()
    x0 = StandardNormal().sample(x1, generator=keyed_generator(0))
    found = []
    for weight in (0.0, 1.0, 1e6):
        pair = pair_of("conditional_ot", x1, condition, weight=weight)
        of_noise = condition[torch.cdist(pair.x0, x0).argmin(1)]
        found.append((float((of_noise - condition).square().mean()), mean_cost(pair)))
    apart, cost = zip(*found, strict=True)
    assert apart[0] > apart[1] > 1e6 * apart[2]  # at last each noise goes with its own row
    assert cost[0] < cost[1] < cost[2]


def test_conditional_ot_of_real_numbers_lies_between_ot_and_independent_pairs() -> None:
    x1 = points(50)
    for y in (torch.randn(50, 1), F.normalize(torch.randn(50, 3), dim=1)):
        x0 = StandardNormal().sample(x1, generator=keyed_generator(0))
        assert torch.equal(pair_of("conditional_ot", x1, y, weight=0.0).x0, pair_of("ot", x1).x0)
        assert torch.equal(pair_of("conditional_ot", x1, y, weight=1e8).x0, x0)
        tuned = weight_of_ratio(costs(x1), unlike(y), 0.1)
        assert torch.equal(
            pair_of("conditional_ot", x1, y, ratio=0.1).x0, pair_of("conditional_ot", x1, y, weight=tuned).x0
        )


def test_a_real_valued_condition_keeps_its_source_under_conditional_ot_and_not_under_ot() -> None:
    """The noise of points on the right is no further right than that of the others."""
    found: dict[str, list[Tensor]] = {"conditional_ot": [], "ot": []}
    for key in range(20):
        x1 = points(64, key=key)
        for name, drawn in found.items():
            options = {"ratio": 0.02} if name == "conditional_ot" else {}
            coupling = COUPLINGS.build(name, **options)
            x0 = coupling(x1, x1[:, :1], generator=keyed_generator(key)).x0
            drawn.append(torch.stack((x0[:, 0], x1[:, 0])))
    correlation = {name: float(torch.cat(drawn, 1).corrcoef()[0, 1]) for name, drawn in found.items()}
    assert correlation["ot"] > 0.6
    assert abs(correlation["conditional_ot"]) < 0.2


def test_conditions_that_cannot_be_taken() -> None:
    y = torch.zeros(8, 1)
    y[3] = torch.nan
    with pytest.raises(GenkitError, match="conditional_ot: the data have conditions that are not finite"):
        pair_of("conditional_ot", points(8), y)
    data = Encoded(
        TensorSplit(torch.randn(8, 2), torch.randn(8, 1)), Continuous(DataSpec("a", (2,), condition=1))
    )
    with pytest.raises(GenkitError, match="conditional=true is for classes.*take 'conditional_ot'"):
        COUPLINGS.build("semidiscrete", conditional=True).setup(data, StandardNormal())


def test_wrong_options() -> None:
    for name, options, words in (
        ("conditional_ot", {"weight": 1.0, "ratio": 0.2}, "not both"),
        ("conditional_ot", {"weight": -1.0}, "weight must not be negative"),
        ("conditional_ot", {"ratio": 0.0}, r"ratio must be in \(0, 1\]"),
        ("sinkhorn", {"epsilon": 0.0}, "epsilon must be positive, not 0"),
        ("schrodinger_bridge", {"sigma": math.inf}, "sigma must be positive"),
        ("unbalanced_ot", {"relaxation": -1.0}, "relaxation must be positive"),
        ("partial_ot", {"mass": 1.5}, r"mass must be in \(0, 1\], not 1\.5"),
        ("weighted", {"epsilon": -1.0}, "epsilon must be positive"),
        ("sliced_ot", {"projections": 0}, "projections must be positive"),
        ("ot", {"solver": "fast"}, "'auto', 'scipy', 'pot', 'torch'"),
        ("ot", {"scope": "world"}, "'rank', 'global'"),
    ):
        with pytest.raises(GenkitError, match=words):
            COUPLINGS.build(name, **options)


# weights and lines


def test_weights_are_the_formula() -> None:
    x1 = points(50)
    pair = pair_of("weighted", x1, epsilon=0.5)
    cost = (pair.x0 - x1).square().sum(1)
    expected = torch.exp(-cost / (0.5 * cost.std()))
    assert pair.weight is not None
    assert torch.allclose(pair.weight, 50 * expected / expected.sum())
    flat = pair_of("weighted", x1, epsilon=1e9).weight
    assert flat is not None
    assert torch.allclose(flat, torch.ones(50, dtype=torch.float64))


def test_sliced_ot_chooses_among_its_lines_without_waiting_for_the_device() -> None:
    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    x1, coupling = points(20, 3), COUPLINGS.build("sliced_ot", projections=5)
    with Waits() as waits:
        coupling.plan(x1, points(20, 3), None, keyed_generator(0))  # type: ignore[attr-defined]
    assert waits.count == 0
    with waits:
        float(x1.sum())
    assert waits.count == 1


def test_sliced_ot_is_exact_on_a_line_and_better_with_more_lines() -> None:
    x1 = points(50, 1)
    assert mean_cost(pair_of("sliced_ot", x1)) == pytest.approx(mean_cost(pair_of("ot", x1)), rel=1e-9)
    x1 = points(50, 6)
    found = [mean_cost(pair_of("sliced_ot", x1, projections=k)) for k in (1, 16, 256)]
    free = mean_cost(pair_of("independent", x1))
    assert free >= found[0] > found[1] > found[2] > mean_cost(pair_of("ot", x1))
