"""Couplings that are prepared once: semidiscrete transport, pairs of a trained flow, cached codes."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkit.couplings import COUPLINGS, Coupling
from genkit.couplings import semidiscrete as module
from genkit.couplings.assignment import assign
from genkit.data.base import Encoded, TensorSplit
from genkit.data.densities import DensitySource
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.randomness import keyed_generator
from genkit.testing import couplings as laws
from genkit.types import DataSpec, StandardNormal
from tests.objectives.models import model_options
from tests.oracles import same_p

N = 60
SPEC = DataSpec("toy", (2,), classes=3)
X = torch.randn(N, 2, generator=keyed_generator(0, "whole")) * torch.tensor([2.0, 0.5]) + 1
DATA = TensorSplit(X + 3 * (torch.arange(N) % 3)[:, None], torch.arange(N) % 3)
ENCODED = Encoded(DATA, Continuous(SPEC))
LEVELS = Encoded(
    TensorSplit((torch.arange(40 * 4) % 7).reshape(40, 1, 2, 2).to(torch.uint8)),
    Continuous(DataSpec("levels", (1, 2, 2), levels=7)),
)


def build(name: str, data: Encoded = ENCODED, teacher: Any = None, **options: Any) -> Coupling:
    if name == "semidiscrete":
        options = {"steps": 500, **options}  # enough for so few rows
    coupling = COUPLINGS.build(name, **options)
    coupling.setup(data, StandardNormal(), teacher)
    return coupling


# semidiscrete


def test_all_rows_are_drawn_equally_often() -> None:
    coupling: Any = build("semidiscrete")
    assert abs(coupling.imbalance) < 0.05
    pair = laws.draw(coupling, ENCODED, batches=200)
    share = torch.bincount(pair.index, minlength=N) / len(pair.index) * N
    assert float((share - 1).square().mean()) < 0.05


def test_it_costs_little_more_than_the_best_plan_of_many_samples() -> None:
    """Against exact transport of 12 N source samples onto N rows, 12 copies each."""
    pair = laws.draw(build("semidiscrete"), ENCODED, batches=12, size=N)
    copies = ENCODED.take(torch.arange(N).repeat(12))[0].double()
    cost = torch.cdist(copies, pair.x0.double()).square()
    best = float(cost[torch.arange(len(cost)), assign(cost)].mean())
    assert laws.mean_cost(pair) == pytest.approx(best, rel=0.03)


def test_conditional_keeps_the_source_of_each_class_and_the_classes() -> None:
    coupling: Any = build("semidiscrete", conditional=True)
    assert not coupling.skews_classes
    assert abs(coupling.imbalance) < 0.05
    y, x0 = torch.full((4000,), 1), torch.zeros(4000, 2)
    pair = coupling(x0, y, generator=keyed_generator(0))
    assert (pair.y == 1).all()
    normal = torch.randn(4000, 2, generator=keyed_generator(1))
    assert same_p(pair.x0, normal) > 1e-3
    plain = build("semidiscrete")(x0, generator=keyed_generator(0))
    assert DATA.y is not None
    assert same_p(plain.x0[DATA.y[plain.index] == 1], normal) < 1e-6


def test_rows_come_with_fresh_noise_of_their_encoding() -> None:
    coupling = build("semidiscrete", LEVELS, steps=200)
    pair = coupling(torch.zeros(16, 1, 2, 2), generator=keyed_generator(0))
    assert pair.index is not None
    assert torch.equal(LEVELS.view.decode(pair.x1), LEVELS.split.take(pair.index)[0])
    assert laws.moved(coupling, LEVELS) == 0


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling, x1 = build("semidiscrete", steps=50, tolerance=9.0), torch.zeros(33, 2)
    whole = coupling(x1, generator=keyed_generator(0))
    monkeypatch.setattr(module, "SCORES", 5 * N)
    assert torch.equal(coupling(x1, generator=keyed_generator(0)).x1, whole.x1)


def test_a_fit_that_is_too_short_warns() -> None:
    with pytest.warns(
        UserWarning, match=r"semidiscrete: some of the 60 rows .* more steps of the fit than 1"
    ):
        build("semidiscrete", steps=1, tolerance=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("semidiscrete")


def test_the_fit_goes_on_until_it_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """In rounds, the fewer the larger the tolerance; by default it does not warn. A number of steps is kept to."""
    taken: list[int] = []
    ascend = module.Semidiscrete.ascend

    def counted(self: Any, steps: int, *given: Any) -> None:
        taken.append(steps)
        ascend(self, steps, *given)

    monkeypatch.setattr(module.Semidiscrete, "ascend", counted)
    monkeypatch.setattr(module, "ROUNDS", (20, 200, 400))
    found = {}
    for tolerance in (9.0, 0.05, 1e-9):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            coupling: Any = build("semidiscrete", steps=None, tolerance=tolerance)
        found[tolerance] = (taken.copy(), coupling.imbalance <= tolerance, len(caught))
        taken.clear()
    assert found[9.0] == ([20], True, 0)
    assert found[0.05] == ([20, 200], True, 0)
    assert found[1e-9] == ([20, 200, 400], False, 1)
    build("semidiscrete", steps=30, tolerance=1e3)
    assert taken == [30]


def test_one_row_is_drawn_always() -> None:
    one = Encoded(TensorSplit(torch.ones(1, 2)), Continuous(DataSpec("one", (2,))))
    assert (build("semidiscrete", one, steps=3)(torch.zeros(5, 2)).x1 == 1).all()


def test_what_semidiscrete_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GenkitError, match="conditional=true needs data with classes"):
        build("semidiscrete", LEVELS, conditional=True)
    coupling = build("semidiscrete", steps=5, tolerance=99.0, conditional=True)
    with pytest.raises(GenkitError, match="needs the class of each row"):
        coupling(torch.zeros(3, 2))
    with pytest.raises(GenkitError, match="needs the class of each row"):
        coupling(torch.zeros(3, 2), torch.tensor([0, 1, 7]))
    with pytest.raises(GenkitError, match="rows of 3 values were given, and set up were 2"):
        coupling(torch.zeros(3, 3))
    with pytest.raises(GenkitError, match="steps and batch must be positive"):
        COUPLINGS.build("semidiscrete", steps=0)
    with pytest.raises(GenkitError, match="not finite"):
        build("semidiscrete", Encoded(TensorSplit(torch.full((4, 2), torch.nan)), Continuous(SPEC)))
    monkeypatch.setattr(module, "free_memory", lambda device: 100)
    with pytest.raises(GenkitError, match="60 rows take .* are free: 'ot' and 'sliced_ot'"):
        build("semidiscrete")


# reflow


def flow(**options: Any) -> Any:
    torch.manual_seed(0)
    model = OBJECTIVES.build({"name": "flow_matching", **options}, SPEC, model_options())
    for p in model.parameters():  # a head starts at zero
        nn.init.normal_(p, std=0.2)
    return model.eval().requires_grad_(False)


def test_reflow_is_the_teachers_own_samples() -> None:
    teacher, y = flow(), torch.arange(12) % 3
    coupling = build("reflow", teacher=teacher, solver={"name": "euler", "steps": 3})
    pair = coupling(torch.zeros(12, 2), y, generator=keyed_generator(0))
    expected = teacher.sample(12, y, sampler=teacher.samplers.build("euler", steps=3), start=pair.x0).x
    assert torch.equal(pair.x1, expected)
    assert torch.equal(pair.x0, StandardNormal().sample(torch.zeros(12, 2), generator=keyed_generator(0)))
    assert torch.equal(pair.y, y)
    assert coupling.passes == 3
    assert coupling.setup_rows == 16 * 3
    assert build("reflow", teacher=teacher).passes == 32  # heun with 16 steps


def test_an_unconditional_teacher_is_given_no_class() -> None:
    pair = build("reflow", teacher=flow(conditional=False))(torch.zeros(4, 2), torch.arange(4) % 3)
    assert pair.x1.isfinite().all()
    assert pair.y is None


def test_classes_are_not_learned_from_a_teacher_without_any(recwarn: pytest.WarningsRecorder) -> None:
    """What it makes or codes is of no class: a student of reflow's rows is refused, one of its codes is warned of."""
    student: Any = {"name": "flow_matching", "coupling": "reflow"}
    with pytest.raises(
        GenkitError, match="the coupling 'reflow' makes its rows by a teacher, which is unconditional"
    ):
        OBJECTIVES.build(student, SPEC, model_options()).check_teacher(flow(conditional=False))
    OBJECTIVES.build(student, SPEC, model_options()).check_teacher(flow())
    OBJECTIVES.build({**student, "conditional": False}, SPEC, model_options()).check_teacher(
        flow(conditional=False)
    )
    options: Any = {"name": "normalizing_flow", "spans": 2}
    for conditional in (True, False):
        torch.manual_seed(0)
        teacher = OBJECTIVES.build({**options, "conditional": conditional}, SPEC, model_options()).eval()
        OBJECTIVES.build({**student, "coupling": "distilled"}, SPEC, model_options()).setup(DATA, teacher)
        said = [str(w.message) for w in recwarn if "pairs without regard to conditions" in str(w.message)]
        assert [text.partition("take ")[2] for text in said] == (
            [] if conditional else ["a conditional teacher, or conditional=false"]
        )


@pytest.mark.parametrize("n", [100, 5000])
def test_the_scale_of_codes_is_of_rows_of_all_the_data(n: int) -> None:
    """Files of data come in the order of their classes, whose codes differ in size."""
    x = (
        torch.randn(n, 2, generator=keyed_generator(0, "sorted"))
        * (1 + 9 * (torch.arange(n) >= 0.8 * n))[:, None]
    )
    coupling: Any = build("distilled", Encoded(TensorSplit(x), Continuous(SPEC)), Code(1.0))
    exact = float(x.square().mean().sqrt())
    assert coupling.scale == (pytest.approx(exact, rel=0.05) if n > 4096 else exact)


def test_what_reflow_refuses() -> None:
    with pytest.raises(GenkitError, match="must be a flow of pairs, such as flow_matching; Linear is none"):
        build("reflow", teacher=nn.Linear(2, 2))
    with pytest.raises(GenkitError, match="reflow: solver: no solver 'hein'; did you mean 'heun'"):
        build("reflow", teacher=flow(), solver="hein")
    with pytest.raises(GenkitError, match="starts from another source"):
        build("reflow", teacher=flow(source="8gaussians"))
    coupling = COUPLINGS.build("reflow")
    coupling.setup(ENCODED, DensitySource("8gaussians"), flow(source="8gaussians"))  # type: ignore[arg-type]
    assert 4 < float(coupling(torch.zeros(50, 2)).x0.norm(dim=1).mean()) < 6


# a cache of codes


class Code(nn.Module):
    """A teacher that counts the rows it sees."""

    conditional = False

    def __init__(self, slope: float = 2.0) -> None:
        super().__init__()
        self.slope, self.rows = nn.Parameter(torch.tensor(slope)), 0
        self.view = SimpleNamespace(sigma=0.0)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows += len(x)
        return self.slope * x


@pytest.mark.parametrize("endpoint", ["clean", "noised"])
def test_a_cache_gives_codes_of_the_rows_without_the_teacher(tmp_path: Path, endpoint: str) -> None:
    options: dict[str, Any] = {"noise": 0.1, "endpoint": endpoint, "cache": str(tmp_path), "copies": 3}
    first = build("distilled", LEVELS, Code(), **options)
    assert first.teacher.rows == 3 * 40
    teacher = Code()
    again = build("distilled", LEVELS, teacher, **options)
    index = torch.arange(40).repeat(20)
    x1, _ = LEVELS.take(index, generator=keyed_generator(1))
    one, other = (c(x1, index=index, generator=keyed_generator(0)) for c in (first, again))
    assert teacher.rows == 0
    assert again.passes == 0
    assert first.setup_rows == again.setup_rows == 3 * 40  # to each run in full
    plain = build("distilled", LEVELS, Code())
    assert (plain.passes, plain.setup_rows, plain.teacher.rows) == (1, 40, 40)
    assert torch.equal(one.x0, other.x0)
    assert float(one.x0.square().mean()) == pytest.approx(1, rel=0.05)
    code = one.x0 * first.scale / 2  # type: ignore[attr-defined]
    assert float((code - one.x1).std()) == pytest.approx(0.1 if endpoint == "clean" else 0, abs=0.01)
    if endpoint == "clean":
        assert torch.equal(LEVELS.view.decode(one.x1), LEVELS.split.take(index)[0])
    assert len(one.x0.unique(dim=0)) == 3 * 40


def test_without_noise_a_cache_changes_nothing(tmp_path: Path) -> None:
    x1, y, index = laws.rows_of(ENCODED, 20)
    cached, plain = (build("distilled", ENCODED, Code(), **o) for o in ({"cache": str(tmp_path)}, {}))
    one, other = (c(x1, y, index=index, generator=keyed_generator(0)) for c in (cached, plain))
    assert torch.equal(one.x0, other.x0)
    assert torch.equal(one.x1, x1)


def test_a_cache_of_another_teacher_or_other_data_is_an_error(tmp_path: Path) -> None:
    folder = str(tmp_path)
    build("distilled", ENCODED, Code(), cache=folder)
    with pytest.raises(GenkitError, match="belongs to another teacher: choose another `cache`, or remove it"):
        build("distilled", ENCODED, Code(3.0), cache=folder)
    other = Encoded(TensorSplit(DATA.x + 1, DATA.y), Continuous(SPEC))
    with pytest.raises(GenkitError, match="belongs to another data set"):
        build("distilled", other, Code(), cache=folder)
    with pytest.raises(GenkitError, match="belongs to another noise, endpoint or copies"):
        build("distilled", ENCODED, Code(), cache=folder, copies=2)
    (tmp_path / "codes.safetensors").write_bytes(b"no cache")
    with pytest.raises(GenkitError, match="is no cache of codes, or corrupt"):
        build("distilled", ENCODED, Code(), cache=folder)


def test_what_a_cache_needs(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="copies are those that a cache keeps"):
        COUPLINGS.build("distilled", copies=2)
    with pytest.raises(GenkitError, match="looked up by row numbers"):
        build("distilled", ENCODED, Code(), cache=str(tmp_path))(torch.zeros(3, 2))
