"""Couplings beyond the laws of them all (see tests/testing): what they need, and what each one is."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from genkit.couplings import COUPLINGS, Coupling
from genkit.data.base import Encoded, TensorSplit
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.testing import couplings as laws
from genkit.types import DataSpec, Source, StandardNormal

NAMES = COUPLINGS.names()
FITTED: dict[Any, Coupling] = {}  # couplings that take a while to set up, by name and source
SPEC = DataSpec("toy", (2,), classes=3)
DATA = TensorSplit(
    torch.randn(300, 2, generator=keyed_generator(0, "toy")) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + 1,
    torch.arange(300) % 3,
)

ENCODED = Encoded(DATA, Continuous(SPEC))


class Teacher(nn.Module):
    """An invertible flow with a closed form, f(x, y) = (2 + y / 2) x + y, and a flow of pairs to 2 x0 + y."""

    samplers = SOLVERS
    classes, conditional = 3, True
    device = torch.device("cpu")

    def __init__(self, sigma: float = 0.0, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.shape, self.source = shape, StandardNormal()
        self.slope = nn.Parameter(torch.tensor(2.0))
        self.spec, self.view = SPEC, SimpleNamespace(sigma=sigma)
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.append((x, y))
        shift = torch.zeros(len(x), 1) if y is None else y[:, None].to(x)
        return (self.slope + shift / 2) * x + shift

    def trajectory(
        self, n: int, y: Tensor | None, *, sampler: Any, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        x0 = self.source.sample(torch.empty(n, *self.shape), generator=generator)
        self.seen.append((x0, y))
        end = 2 * x0 if y is None else 2 * x0 + y.reshape(-1, *[1] * len(self.shape))
        return [x0, end], torch.tensor([0.0, 1.0])

    def sample(self, n: int, *, sampler: Any, generator: torch.Generator) -> Any:
        return SimpleNamespace(nfe=SOLVERS.build(sampler).solve(lambda t, x: 0 * x, torch.zeros(n, 2)).nfe)


def build(name: str, source: Source | None = None, **options: Any) -> Coupling:
    key = (name, type(source), *options.items())
    if key in FITTED:
        return FITTED[key]
    coupling = COUPLINGS.build(name, **options)
    teacher = Teacher() if coupling.needs_teacher else None
    if teacher is not None and source is not None:
        teacher.source = source
    coupling.setup(ENCODED, source or StandardNormal(), teacher)
    if coupling.needs_data:
        FITTED[key] = coupling
    return coupling


def batch(n: int = 48, key: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.randint(300, (n,), generator=keyed_generator(key, "rows"))
    return *DATA.take(index), index  # type: ignore[return-value]


@pytest.mark.parametrize("name", [name for name in NAMES if not COUPLINGS.get(name).independent])
def test_none_claims_less_than_it_keeps(name: str) -> None:
    assert laws.dependence(build(name), ENCODED) > 3


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_shares_the_teacher_and_the_data(name: str) -> None:
    """An averaged model is a deep copy; the teacher's weights must not be in it twice, nor in its state."""
    coupling = build(name)
    copied = copy.deepcopy(SimpleNamespace(coupling=coupling)).coupling
    assert copied.teacher is coupling.teacher
    assert copied.data is coupling.data
    assert not isinstance(coupling, nn.Module)


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if COUPLINGS.get(name).keeps_source and not COUPLINGS.get(name).needs_data],
)
def test_without_setup_the_source_is_the_standard_normal(name: str) -> None:
    if not COUPLINGS.get(name).needs_teacher:
        coupling = COUPLINGS.build(name)
        pairs = laws.drawn(coupling, ENCODED, batches=10)
        assert laws.source_p(coupling, ENCODED, pairs=pairs) > 1e-3


@pytest.mark.parametrize("name", [name for name in NAMES if COUPLINGS.get(name).needs_teacher])
def test_a_missing_teacher_is_an_error_that_says_what_to_set(name: str) -> None:
    with pytest.raises(GenkitError, match="needs a teacher: set teacher=RUN_FOLDER"):
        COUPLINGS.build(name).setup(ENCODED, StandardNormal(), None)


@pytest.mark.parametrize("name", [name for name in NAMES if COUPLINGS.get(name).needs_data])
def test_a_missing_data_set_is_an_error(name: str) -> None:
    with pytest.raises(GenkitError, match="needs the data set"):
        COUPLINGS.build(name).setup(None, StandardNormal())
    with pytest.raises(GenkitError, match="call setup"):
        COUPLINGS.build(name)(batch()[0])


# ot


@pytest.mark.parametrize("n", [1, 7, 128])
def test_ot_costs_what_pot_finds(n: int) -> None:
    import ot

    x1 = torch.randn(n, 5, generator=keyed_generator(n), dtype=torch.float64)
    pair = COUPLINGS.build("ot")(x1, generator=keyed_generator(n, "x0"))
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    exact = float(ot.emd2(weights, weights, ot.dist(pair.x0, x1)))
    assert float((pair.x0 - x1).square().sum(1).mean()) == pytest.approx(exact, rel=1e-5)


def test_ot_is_the_best_of_all_permutations() -> None:
    x1 = batch(6)[0].double()
    pair = COUPLINGS.build("ot")(x1, generator=keyed_generator(0))
    best = min(
        float((x1 - pair.x0[list(order)]).square().sum()) for order in itertools.permutations(range(6))
    )
    assert float((x1 - pair.x0).square().sum()) == pytest.approx(best, rel=1e-12)


def test_ot_costs_what_the_linear_program_over_all_plans_does() -> None:
    """The plan of the transport problem itself, by SciPy's solver of linear programs."""
    n = 24
    x1 = batch(n)[0]
    pair = COUPLINGS.build("ot")(x1, generator=keyed_generator(0))
    costs = torch.cdist(x1.double(), pair.x0.double()).square()
    rows = torch.eye(n).repeat_interleave(n, 1)
    columns = torch.eye(n).repeat(1, n)
    program = linprog(
        costs.flatten().numpy(), A_eq=torch.cat((rows, columns)).numpy(), b_eq=np.full(2 * n, 1 / n)
    )
    assert laws.mean_cost(pair) == pytest.approx(program.fun, rel=1e-5)


def test_ot_uses_every_source_sample_once() -> None:
    x1 = batch(32)[0]
    x0 = COUPLINGS.build("ot")(x1, generator=keyed_generator(3)).x0
    drawn = StandardNormal().sample(x1, generator=keyed_generator(3))
    assert sorted(map(tuple, x0.tolist())) == sorted(map(tuple, drawn.tolist()))


def test_ot_is_exact_far_from_the_origin_and_under_autocast() -> None:
    """A common shift leaves the best permutation as it is; rounding must not decide it."""
    x1 = (DATA.x[:32] * 256).round() / 256  # so that the shifted data are exact
    expected = COUPLINGS.build("ot")(x1, generator=keyed_generator(0)).x0
    assert torch.equal(COUPLINGS.build("ot")(x1 + 1000, generator=keyed_generator(0)).x0, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(COUPLINGS.build("ot")(x1, generator=keyed_generator(0)).x0, expected)


def test_ot_of_data_that_are_not_finite() -> None:
    with pytest.raises(GenkitError, match="not finite"):
        COUPLINGS.build("ot")(torch.tensor([[1.0, float("nan")], [0.0, 0.0]]))


# distilled


def distilled(teacher: Teacher, **options: Any) -> Coupling:
    coupling = COUPLINGS.build("distilled", **options)
    coupling.setup(ENCODED, StandardNormal(), teacher)
    return coupling


def test_distilled_is_the_code_of_the_teacher_with_the_true_class() -> None:
    x1, y, index = batch()
    coupling = distilled(Teacher(), rescale=False)
    pair = coupling(x1, y, index=index, generator=keyed_generator(0))
    assert torch.equal(pair.x0, Teacher().encode(x1, y))
    assert torch.equal(pair.x1, x1)
    assert torch.equal(coupling.teacher.seen[-1][1], y)


def test_rescaled_codes_have_the_second_moment_of_the_source() -> None:
    teacher = Teacher()
    coupling = distilled(teacher)
    with torch.no_grad():
        raw = teacher.encode(DATA.x, DATA.y)
    pair = coupling(DATA.x, DATA.y, generator=keyed_generator(0))
    assert coupling.scale == pytest.approx(float(raw.square().mean().sqrt()), rel=1e-5)
    assert float(pair.x0.square().mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(pair.x0 * coupling.scale, raw, rtol=1e-5)


@pytest.mark.parametrize("endpoint", ["clean", "noised"])
def test_the_teacher_sees_noise_and_the_student_the_chosen_end(endpoint: str) -> None:
    x1, y, _ = batch(2000)
    coupling = distilled(Teacher(), noise=0.3, endpoint=endpoint, rescale=False)
    pair = coupling(x1, y, generator=keyed_generator(0))
    seen = coupling.teacher.seen[-1][0]
    assert float((seen - x1).std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(pair.x1, x1 if endpoint == "clean" else seen)
    assert torch.equal(pair.x0, Teacher().encode(seen, y))


def test_spread_mixes_fresh_noise_into_the_code_and_keeps_the_second_moment() -> None:
    x1, y, _ = batch(2000)
    tight, loose, free = (
        distilled(Teacher(), spread=r)(x1, y, generator=keyed_generator(0)).x0 for r in (0.0, 0.6, 1.0)
    )
    assert float(loose.square().mean()) == pytest.approx(1, rel=0.03)
    assert float(torch.nn.functional.mse_loss(loose, 0.8 * tight)) == pytest.approx(0.36, rel=0.05)
    assert torch.equal(free, StandardNormal().sample(x1, generator=keyed_generator(0)))
    with pytest.raises(GenkitError, match=r"spread must be from 0 to 1, not 1\.5"):
        COUPLINGS.build("distilled", spread=1.5)


def test_the_noise_is_the_teachers_own_unless_it_is_said() -> None:
    x1, y, _ = batch(2000)

    def noise(sigma: float, **options: Any) -> float:
        coupling = distilled(Teacher(sigma), **options)
        coupling(x1, y, generator=keyed_generator(0))
        return float((coupling.teacher.seen[-1][0] - x1).std())

    assert noise(0.2) == pytest.approx(0.2, rel=0.05)
    assert noise(0.2, noise=0.0) == 0
    assert noise(0.0, noise=0.1) == pytest.approx(0.1, rel=0.05)


def test_a_second_setup_takes_the_second_teachers_noise() -> None:
    coupling = COUPLINGS.build("distilled")
    x1, y, _ = batch(2000)
    for sigma in (0.1, 0.4):
        coupling.setup(ENCODED, StandardNormal(), Teacher(sigma))
        coupling(x1, y, generator=keyed_generator(0))
        assert float((coupling.teacher.seen[-1][0] - x1).std()) == pytest.approx(sigma, rel=0.05)


def test_the_teacher_runs_in_full_precision_and_gives_no_gradient() -> None:
    x1, y, _ = batch()
    coupling = distilled(Teacher(), rescale=False)
    coupling.teacher.encode = lambda x, y: x @ coupling.teacher.slope.expand(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x0 = coupling(x1, y, generator=keyed_generator(0)).x0
    assert x0.dtype == torch.float32
    assert not x0.requires_grad
    assert torch.allclose(x0, x1 @ torch.full((2, 2), 2.0), atol=1e-6)


def test_wrong_options_and_teachers_of_distilled() -> None:
    with pytest.raises(GenkitError, match="noise must not be negative, not -0.1"):
        COUPLINGS.build("distilled", noise=-0.1)
    with pytest.raises(GenkitError, match="'clean', 'noised'"):
        COUPLINGS.build("distilled", endpoint="blurred")
    with pytest.raises(GenkitError, match="normalizing flow"):
        distilled(nn.Linear(2, 2))  # type: ignore[arg-type]
