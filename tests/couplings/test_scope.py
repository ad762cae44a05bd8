"""Plans over the gathered batch of a distributed run, in two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from genkit.couplings import COUPLINGS
from genkit.randomness import keyed_generator
from genkit.testing.couplings import mean_cost
from genkit.types import Pair

PLANS = ("ot", "conditional_ot", "partial_ot", "sinkhorn", "sliced_ot", "weighted")
N, D = 12, 3


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * torch.randn(2 * N, D, generator=keyed_generator(0, "scope")), torch.arange(2 * N) % 3


def pair_of(name: str, rank: int, scope: str) -> Pair:
    part = slice(rank * N, (rank + 1) * N)
    x1, y = (z[part] for z in rows())
    return COUPLINGS.build(name, scope=scope)(
        x1, y, index=torch.arange(2 * N)[part], generator=keyed_generator(7, rank)
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {(name, scope): pair_of(name, rank, scope) for name in PLANS for scope in ("rank", "global")}
    torch.save({key: vars(pair) for key, pair in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Pair]]:
    folder = tmp_path_factory.mktemp("scope")
    mp.spawn(work, (str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    return {key: [Pair(**rank[key]) for rank in ranks] for key in ranks[0]}


def joined(pairs: list[Pair], field: str) -> torch.Tensor:
    return torch.cat([getattr(pair, field) for pair in pairs])


@pytest.mark.parametrize("name", PLANS)
def test_each_rank_keeps_its_rows(name: str, found: dict[tuple[str, str], list[Pair]]) -> None:
    pairs = found[name, "global"]
    x1, y = rows()
    assert torch.equal(joined(pairs, "x1"), x1)
    assert torch.equal(joined(pairs, "y"), y)
    assert torch.equal(joined(pairs, "index"), torch.arange(2 * N))


@pytest.mark.parametrize("name", PLANS)
def test_per_rank_is_as_if_alone(name: str, found: dict[tuple[str, str], list[Pair]]) -> None:
    for rank in range(2):
        assert torch.equal(found[name, "rank"][rank].x0, pair_of(name, rank, "rank").x0)


@pytest.mark.parametrize("name", ["ot", "conditional_ot", "partial_ot", "sliced_ot"])
def test_one_permutation_of_all_noise(name: str, found: dict[tuple[str, str], list[Pair]]) -> None:
    noise = joined([pair_of("weighted", rank, "rank") for rank in range(2)], "x0")
    assert torch.equal(joined(found[name, "global"], "x0").sort(0).values, noise.sort(0).values)


def test_the_global_plan_is_that_of_the_whole_batch(found: dict[tuple[str, str], list[Pair]]) -> None:
    noise = joined([pair_of("weighted", rank, "rank") for rank in range(2)], "x0")
    x1, _ = rows()
    ot = COUPLINGS.build("ot")
    order = ot.plan(x1.double(), noise.double(), None, None).order  # type: ignore[attr-defined]
    pairs = found["ot", "global"]
    assert torch.equal(joined(pairs, "x0"), noise[order])
    both = [Pair(joined(found["ot", scope], "x0"), x1) for scope in ("global", "rank")]
    assert mean_cost(both[0]) < mean_cost(both[1])
    weight = joined(found["weighted", "global"], "weight")
    assert float(weight.mean()) == pytest.approx(1, rel=1e-6)
    assert float(found["weighted", "global"][0].weight.mean()) != pytest.approx(1, rel=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PLANS)
def test_with_one_process_both_scopes_are_equal(name: str) -> None:
    one, other = (pair_of(name, 0, scope) for scope in ("rank", "global"))
    assert torch.equal(one.x0, other.x0)
