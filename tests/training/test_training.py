"""Options, schedule, averaging, finite weights, atomic files."""

from __future__ import annotations

import csv
import importlib.util
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genkit.backbone import ModelOptions
from genkit.data.base import KeyedBatches, TensorSplit
from genkit.errors import GenkitError
from genkit.files import write_atomically
from genkit.objectives import OBJECTIVES, Objective
from genkit.objectives.flow_matching import FlowMatching
from genkit.randomness import keyed_generator
from genkit.training import GenerativeModule, TrainerOptions, TrainingOptions, fit
from genkit.training.callbacks import AtomicCheckpointIO, CsvLog, read_rows
from genkit.types import Batch
from tests.objectives.models import IMAGES, LABELLED, build, data_of, model_of, model_options, split

CPU = TrainerOptions("cpu")


def small(name: str = "flow_matching", **options: Any) -> Objective:
    if name == "normalizing_flow":
        options |= {"spans": 2}
    return build(name, data_of(name)[0], scale=None, model=model_of(name, depth=2), **options).train()


def train(objective: Objective, folder: Path, **options: Any) -> Any:
    given = {"steps": 6, "batch_size": 16, "warmup": 2, "checkpoint_every": 3, "log_every": 1, **options}
    return fit(
        objective,
        split(objective.spec),
        TrainingOptions(**given),
        folder,
        trainer=CPU,
        tensorboard=False,
        seed=1,
    )


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


class Recording:
    """The weights after each step, and the gradient norms that the optimizer sees."""

    def __init__(self, objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[list[Tensor]] = []
        self.norms: list[float] = []
        self.rates: list[float] = []
        step = torch.optim.AdamW.step

        def recorded(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
            found = step(optimizer, closure)
            grads = [p.grad for p in objective.parameters() if p.grad is not None]
            self.norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
            self.weights.append([p.detach().clone() for p in objective.parameters()])
            self.rates.append(optimizer.param_groups[0]["lr"])
            return found

        monkeypatch.setattr(torch.optim.AdamW, "step", recorded)


def test_the_average_is_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """min(d, (1 + n) / (10 + n)) of the old at update n, from the first weights on; by hand, in a loop."""
    objective = small()
    recorded = Recording(objective, monkeypatch)
    train(objective, tmp_path, steps=8, ema=0.4, lr=1e-2)  # warmed up at n=5
    average = recorded.weights[0]
    for n, weights in enumerate(recorded.weights[1:], start=1):
        keep = min(0.4, (1 + n) / (10 + n))
        average = [keep * a + (1 - keep) * w for a, w in zip(average, weights, strict=True)]
    for p, a in zip(objective.parameters(), average, strict=True):
        assert torch.allclose(p, a, atol=1e-6)
    assert not all(
        torch.equal(p, w) for p, w in zip(objective.parameters(), recorded.weights[-1], strict=True)
    )


def test_without_averaging_the_last_weights_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small()
    recorded = Recording(objective, monkeypatch)
    train(objective, tmp_path, ema=0.0)
    for p, last in zip(objective.parameters(), recorded.weights[-1], strict=True):
        assert torch.equal(p, last)


def test_the_learning_rate_rises_and_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small()
    recorded = Recording(objective, monkeypatch)
    train(objective, tmp_path, steps=20, warmup=5, lr=1e-3, final_lr=0.1)
    assert recorded.rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    for step, rate in enumerate(recorded.rates[5:], start=5):
        cosine = (1 + math.cos(math.pi * (step - 5) / 15)) / 2
        assert rate == pytest.approx(1e-3 * (0.1 + 0.9 * cosine))


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (10, 10), (20, 10)])
def test_any_warmup_gives_rates_in_range(warmup: int, steps: int) -> None:
    module = GenerativeModule(small(), TrainingOptions(steps=steps, warmup=warmup, final_lr=0.01))
    factors = [module.lr_factor(step) for step in range(steps + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == pytest.approx(1 / max(warmup, 1))


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = {}
    for clip in (None, 0.01):
        objective = small()
        recorded = Recording(objective, monkeypatch)
        train(objective, tmp_path / str(clip), clip=clip, steps=3)
        norms[clip] = recorded.norms
        monkeypatch.undo()
    assert min(norms[None]) > 0.02
    assert norms[0.01] == pytest.approx([0.01] * 3, rel=1e-3)


def test_what_pairs_log_stands_beside_the_loss(tmp_path: Path) -> None:
    """The column error of each step's plan, and nothing for a coupling that logs nothing."""
    held = {}
    for name in ("sinkhorn", "independent"):
        train(small(coupling=name), tmp_path / name, steps=3)
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            held[name] = list(csv.DictReader(file))
    assert all(0 < float(row["column_error"]) < 1e-3 for row in held["sinkhorn"])
    assert len({row["column_error"] for row in held["sinkhorn"]}) == 3
    assert "column_error" not in held["independent"][0]


def test_weight_decay_acts_on_matrices_only() -> None:
    module = GenerativeModule(small(), TrainingOptions(weight_decay=0.3))
    decayed, plain = module.configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(module.parameters()))


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_accumulated_parts_are_one_batch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they hold the rows of the whole one; each draws for itself."""
    seen: dict[int, list[list[int]]] = {1: [], 2: []}
    draws: dict[int, list[int]] = {1: [], 2: []}
    for parts in seen:
        objective = small(name)
        loss = objective.loss

        def watched(batch: Batch, *, generator: Any, parts: int = parts, loss: Any = loss) -> Any:
            seen[parts].append(batch.index.tolist())
            draws[parts].append(generator.initial_seed())
            return loss(batch, generator=generator)

        objective.loss = watched  # type: ignore[method-assign]
        fitted = train(objective, tmp_path / str(parts), accumulate=parts)
        assert fitted.steps == 6
    joined = [a + b for a, b in zip(seen[2][::2], seen[2][1::2], strict=True)]
    assert joined == seen[1]
    assert draws[2][::2] == draws[1]  # part 0 of a step draws as the whole step does
    assert len({*draws[2]}) == 12


def test_two_accumulated_halves_take_the_step_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loss that is a mean over rows and draws nothing."""

    def mean(self: Any, batch: Batch, **_: Any) -> dict[str, Tensor]:
        x = batch.x.float() / 16 - 0.5
        return {"loss": (self.predict(torch.full((len(x),), 0.5), x, None) - x).square().mean()}

    monkeypatch.setattr(FlowMatching, "loss", mean)
    models = [small(), small()]
    for parts, objective in enumerate(models, start=1):
        train(objective, tmp_path / str(parts), batch_size=64, accumulate=parts, lr=1e-2, log_every=1)
    whole, halves = (
        [float(row["loss"]) for row in read_rows(tmp_path / parts / "metrics.csv")] for parts in ("1", "2")
    )
    assert halves == pytest.approx(whole, rel=1e-3)  # the mean over the parts
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_activation_checkpointing_leaves_the_gradient_as_it_is(name: str) -> None:
    """Also with dropout, whose draws are those of the forward pass, and where the loss holds a gradient."""
    spans = {"spans": 2} if name == "normalizing_flow" else {}
    spec = data_of(name)[0]
    objective = build(name, spec, scale=0.1, model=model_of(name, depth=2, dropout=0.1), **spans).train()
    calls = {False: 0, True: 0}
    objective.backbone.layers[0].register_forward_pre_hook(
        lambda *_: calls.update({recompute: calls[recompute] + 1})
    )
    found: dict[bool, list[Tensor | None]] = {}
    for recompute in calls:
        objective.backbone.recompute = recompute
        objective.zero_grad()
        torch.manual_seed(5)
        generator = keyed_generator(5)
        index = torch.arange(8)
        batch = objective.prepare(Batch(*split(spec).take(index), index), generator=generator)
        objective.loss(batch, generator=generator)["loss"].backward()
        found[recompute] = [None if p.grad is None else p.grad.clone() for p in objective.parameters()]
    assert calls[True] > calls[False] > 0
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_torchs_own_draws_are_not_those_of_the_step(tmp_path: Path) -> None:
    """Else the masks of dropout would be of the very numbers that x0 and t are made of; but they are keyed likewise."""
    objective = build("flow_matching", LABELLED, scale=None, model=model_options(depth=1))
    seen: list[tuple[int, int]] = []
    loss = objective.loss

    def noting(batch: Batch, *, generator: torch.Generator) -> dict[str, Tensor]:
        seen.append((torch.initial_seed(), generator.initial_seed()))
        return loss(batch, generator=generator)

    objective.loss = noting  # type: ignore[method-assign]
    for folder in ("one", "other"):
        train(objective, tmp_path / folder, steps=2)
    assert seen[:2] == seen[2:]
    assert len({seed for pair in seen for seed in pair}) == 4


@pytest.mark.slow
def test_a_compiled_backbone_with_checkpointing_in_bfloat16_learns(tmp_path: Path) -> None:
    """All economies at once: the loss of one row falls; what is left is the plain backbone."""
    x, _ = split(IMAGES).take(torch.zeros(16, dtype=torch.long))
    objective = build("flow_matching", IMAGES, scale=None, model=model_options(depth=1), conditional=False)
    options = TrainingOptions(
        steps=60, batch_size=16, warmup=5, lr=1e-2, log_every=1, precision="bf16", accumulate=2,
        activation_checkpointing=True, compile="aot_eager",
    )  # fmt: skip
    torch._dynamo.utils.counters.clear()
    fit(objective, TensorSplit(x, None), options, tmp_path, trainer=CPU, tensorboard=False)
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not objective.backbone.recompute
    assert objective.backbone._compiled_call_impl is None


def test_what_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="compile: .*'inducter'.*did you mean 'inductor'"):
        train(small(), tmp_path, compile="inducter")
    if importlib.util.find_spec("tvm") is None:
        with pytest.raises(GenkitError, match="compile: the backend 'tvm' failed: .* ImportError: "):
            train(small(), tmp_path, compile="tvm")


def test_a_loss_that_differentiates_a_gradient_is_refused_what_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GenkitError, match="compile is not for the objective 'energy', .*: take null"):
        train(small("energy"), tmp_path, compile="aot_eager")
    monkeypatch.setitem(fit.__globals__, "check_sharded", lambda trainer: None)
    trainer = TrainerOptions(strategy="fsdp")
    with pytest.raises(GenkitError, match="strategy fsdp is not for the objective 'energy', .*: take ddp"):
        fit(small("energy"), split(IMAGES), TrainingOptions(), tmp_path, trainer=trainer)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_bfloat16_trains_float32_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small(name)
    before = [p.detach().clone() for p in objective.parameters()]
    recorded = Recording(objective, monkeypatch)
    train(objective, tmp_path, precision="bf16", ema=0.0, clip=0.01)
    assert recorded.norms == pytest.approx([0.01] * 6, rel=1e-3)
    for p in objective.parameters():
        assert p.dtype == torch.float32
        assert p.isfinite().all()
    assert any(not torch.equal(p, old) for p, old in zip(objective.parameters(), before, strict=True))


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_the_loss_falls(name: str, tmp_path: Path) -> None:
    """On a batch that does not change: one split of 16 equal rows of black images."""
    spec = data_of(name)[0]
    x, _ = split(spec).take(torch.zeros(16, dtype=torch.long))  # one row, sixteen times
    rows = TensorSplit(x, torch.zeros(16, dtype=torch.long) if spec.classes else None)
    options = TrainingOptions(steps=60, batch_size=16, warmup=5, lr=1e-2, log_every=1)
    fit(small(name), rows, options, tmp_path, trainer=CPU, tensorboard=False)
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run(every: int, tmp_path: Path) -> None:
    """The message names the step and the checkpoint, and that has finite weights of an earlier step."""
    objective = small()
    loss, calls = objective.loss, []

    def poisoned(batch: Batch, **given: Any) -> Any:
        calls.append(1)
        return {"loss": loss(batch, **given)["loss"] * (math.nan if len(calls) == 6 else 1)}

    objective.loss = poisoned  # type: ignore[method-assign]
    with pytest.raises(
        GenkitError, match=r"not finite at step 5; the last good checkpoint is .*last\.ckpt.*lr"
    ):
        train(objective, tmp_path, steps=50, checkpoint_every=3, log_every=every)
    assert len(calls) <= 8
    checkpoint = saved(tmp_path)
    assert checkpoint["global_step"] == 3
    for part in ("state_dict", "current_model_state"):
        assert all(value.isfinite().all() for value in checkpoint[part].values())


def test_a_run_that_fails_at_once_says_there_is_no_checkpoint(tmp_path: Path) -> None:
    objective = small()
    loss = objective.loss
    objective.loss = lambda batch, **given: {"loss": loss(batch, **given)["loss"] * math.inf}  # type: ignore[method-assign]
    with pytest.raises(GenkitError, match="not finite at step 0; no checkpoint was written yet"):
        train(objective, tmp_path)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A finite loss with an infinite gradient: the root of zero."""
    objective = small()
    loss = objective.loss

    def rooted(batch: Batch, **given: Any) -> Any:
        zero = objective.condition.null[0] * 0
        return {"loss": loss(batch, **given)["loss"] + zero.sqrt()}

    objective.loss = rooted  # type: ignore[method-assign]
    with pytest.raises(GenkitError, match="training diverged.*no checkpoint was written yet"):
        train(objective, tmp_path)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


class Teacher(nn.Module):
    conditional = True

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.weight = IMAGES, nn.Parameter(torch.ones(100_000))
        self.view = type("View", (), {"sigma": 0.0})()

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x * self.weight[0]


def test_a_teacher_is_not_trained_averaged_or_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: Any = {"name": "flow_matching", "coupling": "distilled"}
    objective, teacher = OBJECTIVES.build(options, IMAGES, model_options(depth=2)), Teacher()
    options = TrainingOptions(steps=4, batch_size=16, warmup=1)
    fit(objective, split(IMAGES), options, tmp_path, trainer=CPU, teacher=teacher, tensorboard=False)
    assert (teacher.weight == 1).all()
    assert teacher.weight.grad is None
    checkpoint = saved(tmp_path)
    for part in ("state_dict", "current_model_state"):
        assert {key.removeprefix("objective.") for key in checkpoint[part]} == set(objective.state_dict())
    size = sum(p.numel() for p in objective.parameters())
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_size < 4 * (4 * size + 50_000)


def build_without_teacher() -> Objective:
    return OBJECTIVES.build({"name": "flow_matching", "coupling": "distilled"}, IMAGES, ModelOptions())


def test_a_missing_teacher_is_known_before_training(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="needs a teacher"):
        train(build_without_teacher(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    options = TrainingOptions(steps=7, batch_size=16, warmup=1, log_every=3)
    fit(
        small(), split(IMAGES), options, tmp_path, trainer=CPU, tensorboard=False,
        report=lambda *news: told.append(news),
    )  # fmt: skip
    assert [(step, steps) for step, steps, _ in told] == [(3, 7), (6, 7), (7, 7)]
    assert all(math.isfinite(loss) for _, _, loss in told)


def test_the_data_are_those_of_the_keyed_batches(tmp_path: Path) -> None:
    objective, seen = small(), []
    loss = objective.loss
    objective.loss = lambda batch, **given: seen.append(batch.index) or loss(batch, **given)  # type: ignore[method-assign]
    train(objective, tmp_path)
    expected = KeyedBatches(split(IMAGES), 16, seed=1, stop=6)
    assert all(torch.equal(a, b.index) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_setup_is_done_on_the_device_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """A cache of codes is as many passes of the teacher as there are rows. No memory is the device here. Weights that
    are shared among devices stay on the CPU."""
    place = torch.device("meta")
    found = SimpleNamespace(strategy=SimpleNamespace(root_device=place))
    monkeypatch.setitem(fit.__globals__, "build_trainer", lambda *arguments: found)
    monkeypatch.setitem(fit.__globals__, "check_sharded", lambda *arguments: None)
    objective, teacher = small(), small("normalizing_flow")
    wanted = place if strategy == "auto" else torch.device("cpu")

    def setup(data: TensorSplit, taught_by: Objective) -> None:
        assert data.x.device == objective.device == taught_by.device == wanted
        raise InterruptedError

    monkeypatch.setattr(objective, "setup", setup)
    trainer = replace(CPU, strategy=strategy)
    with pytest.raises(InterruptedError):
        fit(objective, split(IMAGES), TrainingOptions(), tmp_path, trainer=trainer, teacher=teacher)


def test_more_processes_than_rows_are_refused_before_they_are_waited_for(tmp_path: Path) -> None:
    trainer = replace(CPU, num_nodes=2**62)
    with pytest.raises(GenkitError, match=r"num_nodes is 4611686018427387904, and a batch has \d+ rows"):
        fit(small(), split(IMAGES), TrainingOptions(), tmp_path, trainer=trainer)


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_weights_are_shared_among_gpus_only(
    accelerator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "cpu")
    trainer = TrainerOptions(accelerator, strategy="fsdp")
    with pytest.raises(GenkitError, match="strategy fsdp needs GPUs: take ddp"):
        fit(small(), split(IMAGES), TrainingOptions(), tmp_path, trainer=trainer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be positive, not 0"),
        ({"batch_size": -4}, "batch_size must be positive"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"final_lr": -0.1}, "final_lr must not be negative"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"clip": 0.0}, "clip must be positive or null"),
        ({"clip": math.nan}, "clip must be positive or null"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"batch_size": 10, "accumulate": 4}, "batch_size 10 must be a multiple of accumulate 4"),
        ({"accumulate": 0}, "accumulate must be positive"),
        ({"log_every": 0}, "log_every must be positive"),
        ({"checkpoint_every": 0}, "checkpoint_every must be positive"),
        ({"precision": "fp16"}, "precision must be 'float32' or 'bf16', not 'fp16'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        TrainingOptions(**options)


# files


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def half(error: type[BaseException]) -> Any:
        def write(file: Any) -> None:
            file.write(b"new")
            raise error("disk full")

        return write

    for error in (OSError, RuntimeError):
        with pytest.raises(GenkitError, match="cannot write .*file: disk full"):
            write_atomically(path, half(error))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half(KeyboardInterrupt))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_under_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(GenkitError, match="cannot write .*below"):
        write_atomically(tmp_path / "file" / "below", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_text() == "old"


def test_no_room_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """With a limit on the size of files in the place of a disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(GenkitError, match="cannot write .*last.ckpt: File too large"):
            AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_log_takes_new_columns_and_drops_rows_of_steps_to_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = CsvLog(path)
    log.log_metrics({"loss": 1.0, "epoch": 0}, 0)
    log.log_metrics({"loss": 0.5, "lr": 0.1}, 5)
    assert path.read_text().split() == ["step,loss,lr", "0,1.0,", "5,0.5,0.1"]
    CsvLog(path, start=5).log_metrics({"loss": 0.25, "lr": 0.2}, 5)
    assert path.read_text().split() == ["step,loss,lr", "0,1.0,", "5,0.25,0.2"]
    CsvLog(path)
    assert path.read_text().split() == ["step,loss"]
