"""The rule for the batch size: its numbers, and the law that it is for."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.training import GenerativeModule, TrainingOptions
from genkit.training.callbacks import EMA
from tests.training.test_training import Recording, saved, small, train

BASE = TrainingOptions(
    steps=600, warmup=50, batch_size=64, lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, ema=0.98
)


def other(batch_size: int, **options: Any) -> TrainingOptions:
    """BASE, as the logical batch, at another physical one."""
    return replace(BASE, batch_size=batch_size, logical_batch=64, **options)


# --- numbers ------------------------------------------------------------------------------------------


def test_without_a_logical_batch_nothing_changes() -> None:
    assert BASE.physical == (1.0, 600, 1e-3, (0.9, 0.99), 1e-6, 0.1, 0.98)
    assert other(64).physical == BASE.physical


@pytest.mark.parametrize("batch", [8, 16, 48, 64, 256, 640])
def test_the_numbers_of_the_rule(batch: int) -> None:
    found, kappa = other(batch).physical, batch / 64
    assert found.kappa == kappa
    assert found.lr**2 == pytest.approx(1e-6 * kappa)
    assert [math.log(beta) for beta in found.betas] == pytest.approx(
        [kappa * math.log(b) for b in (0.9, 0.99)]
    )
    assert found.eps * math.sqrt(kappa) == pytest.approx(1e-6)
    assert found.lr * found.weight_decay == pytest.approx(1e-3 * 0.1 * kappa)
    assert found.ema == pytest.approx(0.98**kappa)
    assert found.steps * batch == pytest.approx(600 * 64, abs=batch / 2)


def test_the_rule_composes() -> None:
    """From 64 to 256 by way of 128."""
    half = other(128).physical
    middle = replace(
        BASE, steps=half.steps, lr=half.lr, betas=half.betas, eps=half.eps, ema=half.ema,
        weight_decay=half.weight_decay, batch_size=256, logical_batch=128,
    )  # fmt: skip
    for a, b in zip(middle.physical[1:], other(256).physical[1:], strict=True):
        assert a == pytest.approx(b)


def test_the_optimizer_has_the_numbers_of_the_rule() -> None:
    options = other(16)
    optimizer = GenerativeModule(small(), options).configure_optimizers()["optimizer"]
    for group, decay in zip(optimizer.param_groups, (options.physical.weight_decay, 0), strict=True):
        assert group["initial_lr"] == options.physical.lr
        assert (group["betas"], group["eps"]) == (options.physical.betas, options.physical.eps)
        assert group["weight_decay"] == decay


@pytest.mark.parametrize("batch", [16, 32, 128, 192, 256])
def test_the_schedule_counts_samples(batch: int) -> None:
    """After equal numbers of samples the factors are equal, up to what they change within one step."""
    one, two = (GenerativeModule(small(), options) for options in (BASE, other(batch)))
    kappa = batch / 64
    factors = [two.lr_factor(step) for step in range(two.options.physical.steps)]
    assert all(0 < factor <= 1 for factor in factors)
    for step, factor in enumerate(factors):
        # as it rises, a step takes the rate at its end, as it falls the one at its start
        assert factor == pytest.approx(one.lr_factor(round(step * kappa)), abs=(1 + 2 * kappa) / 50)
    assert sum(factors) * kappa == pytest.approx(sum(map(one.lr_factor, range(600))), rel=0.01)


@pytest.mark.parametrize("batch", [16, 128])
def test_equal_samples_are_seen(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in the same order, and steps that end with them."""
    seen: dict[int, list[int]] = {32: [], batch: []}
    for size, rows in seen.items():
        objective = small()
        loss = objective.loss

        def watched(given: Any, *, generator: Any, rows: list[int] = rows, loss: Any = loss) -> Any:
            rows += given.index.tolist()
            return loss(given, generator=generator)

        objective.loss = watched  # type: ignore[method-assign]
        fitted = train(objective, tmp_path / str(size), steps=8, batch_size=size, logical_batch=32)
        assert fitted.steps == 8 * 32 // size
        assert int(saved(tmp_path / str(size))["global_step"]) == fitted.steps
    assert seen[batch] == seen[32]


def test_averages_forget_by_the_sample() -> None:
    """Weights that go with the samples seen, averaged at every update: warm-up, then a horizon in samples."""

    def averages(batch: int) -> dict[int, float]:
        options, kappa = other(batch, ema=0.95), batch / 64  # warmed up after 170 logical steps
        ema, found = EMA(options.physical.ema, kappa), {}
        ema.averages = [torch.zeros((), dtype=torch.float64)]
        for n in range(1, options.physical.steps):
            ema.update([torch.tensor(n * kappa / 600, dtype=torch.float64)], n)
            found[n * batch] = float(ema.averages[0])
        return found

    small, large = averages(16), averages(256)
    for samples, average in large.items():
        # the later of two steps holds samples of which the other has seen the first only: half of them at most
        assert average == pytest.approx(small[samples], abs=256 / 64 / 600)
    late = [samples / 64 / 600 - average for samples, average in small.items() if samples > 64 * 400]
    assert late == pytest.approx([0.95 / (1 - 0.95) / 600] * len(late), rel=0.03)


# --- no-ops and errors --------------------------------------------------------------------------------


def test_a_logical_batch_that_is_the_physical_one_changes_no_bit(tmp_path: Path) -> None:
    states = []
    for logical in (None, 16):
        torch.manual_seed(0)
        objective, folder = small(), tmp_path / str(logical)
        train(objective, folder, logical_batch=logical, eps=1e-7, clip=0.5)
        states.append(saved(folder))
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(a, states[1][part][key]) for key, a in states[0][part].items())


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective_trains_by_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small(name)
    recorded = Recording(objective, monkeypatch)
    fitted = train(objective, tmp_path, logical_batch=64, steps=3, warmup=1, lr=1e-3, accumulate=2)
    assert fitted.steps == len(recorded.rates) == 12
    assert recorded.rates[:4] == pytest.approx([0.5e-3 * part / 4 for part in (1, 2, 3, 4)])


@pytest.mark.parametrize(("clip", "share"), [(1e6, 0.0), (1e-6, 1.0)])
def test_the_share_of_clipped_steps_is_logged(clip: float, share: float, tmp_path: Path) -> None:
    train(small(), tmp_path, logical_batch=32, steps=3, clip=clip)
    assert {float(row["clipped"]) for row in rows(tmp_path)} == {share}


def test_the_share_of_clipped_steps_is_that_of_all_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def norms(folder: Path, **options: Any) -> list[float]:
        objective = small()
        recorded = Recording(objective, monkeypatch)
        train(objective, folder, steps=8, logical_batch=16, **options)
        monkeypatch.undo()
        return recorded.norms

    clip = sum(sorted(norms(tmp_path / "norms", clip=None))[3:5]) / 2
    above = [norm > clip * (1 - 1e-4) for norm in norms(tmp_path / "shares", clip=clip)]  # after clipping
    assert 0 < sum(above) < 8
    shares = [float(row["clipped"]) for row in rows(tmp_path / "shares")]
    assert shares == pytest.approx([sum(above[:n]) / n for n in range(1, 9)])


def test_nothing_is_logged_where_nothing_is_asked(tmp_path: Path) -> None:
    train(small(), tmp_path / "plain")
    train(small(), tmp_path / "unclipped", logical_batch=32, clip=None)
    for folder in ("plain", "unclipped"):
        assert "clipped" not in rows(tmp_path / folder)[0]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logical_batch": 0}, "logical_batch must be positive or null, not 0"),
        ({"logical_batch": -64}, "logical_batch must be positive or null, not -64"),
        ({"eps": 0.0}, "eps must be positive, not 0"),
        ({"steps": 3, "logical_batch": 4}, "3 steps of logical_batch 4 are less than one of batch_size 128"),
        ({"logical_batch": 10**9}, "betas to the power of batch_size / logical_batch = 1.28e-07 are 1"),
        ({"logical_batch": 10**9, "betas": (0.0, 0.0)}, "ema to the power of .* are 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        TrainingOptions(**options)


# --- the law ------------------------------------------------------------------------------------------

CURVATURE, COPIES = 0.1, 10_000


class Quadratic(nn.Module):
    """Independent copies of CURVATURE x^2 / 2, as a column, so that they decay; they start at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(COPIES, 1, dtype=torch.float64))


def moments(options: TrainingOptions, seed: int) -> Tensor:
    """(8 times, 2) means and variances over the copies, and the same of their averages, in equal parts of a run.

    AdamW goes down a gradient with noise of variance 64 / B.
    """
    generator = torch.Generator().manual_seed(seed)
    module = GenerativeModule(Quadratic(), options)  # type: ignore[arg-type]
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    x: Tensor = module.objective.x  # type: ignore[assignment]
    steps = options.physical.steps
    ema, found = EMA(options.physical.ema, options.physical.kappa), []
    ema.averages = [x.detach().clone()]
    for step in range(1, steps + 1):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x.grad = CURVATURE * x.detach() + math.sqrt(64 / options.batch_size) * noise
        optimizer.step()
        scheduler.step()
        ema.update([x.detach()], step)
        if step % (steps // 8) == 0:
            both = torch.cat([x.detach(), *ema.averages], 1)
            found.append(torch.stack([both.mean(0), both.var(0)]))
    return torch.stack(found)


@pytest.mark.parametrize("kappa", [0.25, 4.0])
def test_the_rule_keeps_the_trajectory(kappa: float) -> None:
    """Means and variances agree within Monte Carlo error and the order of a step; without the rule they do not."""
    base = replace(
        BASE, steps=800, warmup=80, lr=0.04, betas=(0.9, 0.999), ema=0.99, eps=0.3, weight_decay=0.02,
        final_lr=0.5,
    )  # fmt: skip
    batch = int(64 * kappa)
    expected = moments(base, seed=1)
    ruled = moments(replace(base, batch_size=batch, logical_batch=64), seed=2)
    counted = {"steps": int(800 / kappa), "warmup": int(80 / kappa)}
    unruled = moments(replace(base, batch_size=batch, **counted), seed=3)
    means, variances = (ruled - expected)[:, 0].abs(), (ruled / expected - 1)[:, 1].abs()
    assert means.max() < 0.02
    assert variances.max() < 0.08
    means, variances = (unruled - expected)[:, 0].abs(), (unruled / expected - 1)[:, 1].abs()
    assert means.min() > 0.08
    assert variances.min() > 0.5
