"""Real processes: killed, terminated, two in one folder, two that train together."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from genkit.compare.evaluate import EvaluationOptions, evaluate
from genkit.compare.runner import Comparison, compare
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES, Objective
from genkit.processes import complete, locked, rank, together, world
from genkit.randomness import RankGenerator, keyed_generator
from genkit.recipe import Recipe, draw, joined, load, read_environment, train
from genkit.training import TrainerOptions, TrainingOptions, fit
from genkit.training.fsdp import shard
from genkit.types import Batch
from genkit.unmasking import UNMASKERS
from tests.objectives.models import build, data_of, split

STEPS = 250
RECIPE = """
name: moons
data: moons
model: {width: 16, depth: 2, heads: 2, patch: 1}
objective: {name: flow_matching, coupling: {name: ot, scope: global}, times: low_discrepancy}
training:
  {steps: STEPS, batch_size: 64, log_every: 1, ema: 0.9, checkpoint_every: 1, checkpoint_minutes: 60,
   checkpoint_best: loss, on_bad_step: skip, spike: 1000}
trainer: {accelerator: cpu, draws: global}
""".replace("STEPS", str(STEPS))
TWO = ("trainer.devices=2", "trainer.strategy=ddp")
PATIENCE = 240  # seconds until a process counts as hung


SHARDED = ("trainer.devices=2", "trainer.strategy=fsdp", "training.checkpoint_every=50")
ON_CPU = """
from genkit.training import fit
fit.__globals__["check_sharded"] = lambda trainer: None  # it works without GPUs, and saves nothing there
"""


def command(recipe: Path, out: Path, *overrides: str) -> list[str]:
    program = ["-m", "genkit"]
    if overrides == SHARDED:
        file = recipe.with_name("sharded.py")
        file.write_text(f"import sys{ON_CPU}from genkit.__main__ import main\nsys.exit(main(sys.argv[1:]))")
        program = [str(file)]
    return [sys.executable, *program, "train", str(recipe), "--out", str(out), *overrides]


def finish(recipe: Path, out: Path) -> None:
    """The same training, here and to its end."""
    train(Recipe.load(recipe), out)


@contextmanager
def started(recipe: Path, out: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A training that has written the checkpoint of a later step than there was."""
    before = step(out)
    with subprocess.Popen(
        command(recipe, out, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            waited = time.monotonic() + PATIENCE
            while step(out) <= before and process.poll() is None:
                assert time.monotonic() < waited, "no checkpoint was written"
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def step(out: Path) -> int:
    path = out / "checkpoints" / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def losses(out: Path) -> torch.Tensor:
    with (out / "metrics.csv").open(newline="") as file:
        return torch.tensor([float(row["loss"]) for row in csv.DictReader(file)])


def largest_difference(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "moons.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(recipe, out)
    return out


# --- one process --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_stopped_three_times_ends_as_if_never_stopped(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed twice, and terminated. It writes a checkpoint each step, so most of its time is within writing one."""
    out = tmp_path / "parts"
    with started(recipe, out) as process:
        with pytest.raises(GenkitError, match=f"is being written by process {process.pid} on"):
            finish(recipe, out)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    with started(recipe, out) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    with started(recipe, out, "training.checkpoint_every=7") as process:
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert "the same command goes on from there" in err
    assert 0 < step(out) < STEPS
    finish(recipe, out)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert torch.equal(losses(out), losses(whole))
    assert not list(out.rglob("*.tmp"))


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Also when nobody took it back."""
    code = (
        "import os; from pathlib import Path; from genkit.processes import locked\n"
        f"with locked(Path({str(tmp_path)!r})): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".holder.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".holder.json").exists()


STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_ID": "1"}
BATCH = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"}


@pytest.mark.parametrize(
    ("given", "first", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "3", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 3, 4),
        (STEP, 2, 4),
        ({**STEP, "SLURM_JOB_NAME": "train"}, 2, 4),
        ({**STEP, "SLURM_JOB_NAME": "interactive"}, 0, 1),
        ({**STEP, "SLURM_JOB_NAME": "bash", "RANK": "1", "WORLD_SIZE": "2"}, 1, 2),
        (BATCH, 0, 1),  # a batch script without srun
        ({**BATCH, "RANK": "1", "WORLD_SIZE": "8"}, 1, 8),  # torchrun in it
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 1, 1),  # of Lightning, which lets them meet
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1, 1),
    ],
)
def test_who_is_first_and_of_how_many_is_known_before_processes_meet(
    given: dict[str, str], first: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "SLURM_JOB_NAME", *STEP, *BATCH):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world()) == (first, size)


def test_processes_that_would_each_train_for_themselves_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        GenkitError, match=r"2 processes were started, and devices x num_nodes is 1: set .*ddp"
    ):
        train(Recipe.resolve(yaml.safe_load(RECIPE)), tmp_path / "run")


# --- several processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(name: str) -> None:
    """The mean of the losses of two processes is the loss of one."""
    model = build(name, data_of(name)[0])
    data = split(model.spec)

    def loss(rows: slice, generator: torch.Generator) -> torch.Tensor:
        index = torch.arange(16)[rows]
        prepared = model.prepare(Batch(*data.take(index), index), generator=generator)
        return model.loss(prepared, generator=generator)["loss"].detach()

    parts = [
        loss(slice(8 * r, 8 * r + 8), RankGenerator.keyed(0, "train", 5, rank=r, world=2)) for r in range(2)
    ]
    torch.testing.assert_close(sum(parts) / 2, loss(slice(0, 16), keyed_generator(0, "train", 5, 0)))


def in_parts(
    model: Objective, n: int, y: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of one process, and those of three, each of which does its part alone."""

    def drawn() -> torch.Tensor:
        of_rows = {key: value[:n] if key == "given" else value for key, value in options.items()}
        return draw(model, n, None if y is None else y[:n], generator=keyed_generator(1), **of_rows).x

    def own(rows: torch.Tensor, sizes: list[int], index: int) -> torch.Tensor:
        """Of samples those of this process; of figures, one row each, its own for all."""
        return rows.expand(3, -1) if sizes == [1, 1, 1] else rows[: sizes[index]]

    whole, found = drawn(), []
    for index in range(3):
        with monkeypatch.context() as patch:
            patch.setattr("genkit.recipe.joined", partial(own, index=index))
            patch.setattr("genkit.recipe.parts", lambda index=index: (index, 3))
            found.append(drawn())
    return whole, torch.cat(found)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_parts_of_samples_are_those_of_one_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an objective's own sampler, also of a number that does not divide, or is less than that of processes."""
    model = build(name, data_of(name)[0]).eval()
    if not model.generates:
        pytest.skip("it makes no samples")
    y = None if model.classes is None else torch.arange(6) % model.classes
    for n in (5, 2):
        whole, parts = in_parts(model, n, y, monkeypatch)
        torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("autoregressive", {"name": "left_to_right"}),
        ("masked_diffusion", {"name": "ancestral", "steps": 3}),
        ("masked_diffusion", {"name": "confidence", "noise": 1.0, "steps": 3}),
        ("masked_diffusion", {"name": "left_to_right", "top_p": 0.9}),
    ],
)
def test_parts_of_completions_are_those_of_one_process(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one part has more left to draw than another, and goes on when that has done."""
    model = build(name, data_of(name)[0]).eval()
    x, y = split(model.spec).take(torch.arange(5))
    symbols = model.symbols(x.long())
    known = torch.arange(symbols.shape[1]) < torch.arange(5)[:, None]
    given = model.values(symbols.masked_fill(~known, -1))
    whole, parts = in_parts(
        model, 5, y if model.conditional else None, monkeypatch, given=given, sampler=UNMASKERS.build(options)
    )
    assert torch.equal(parts, whole)


def two_processes(code: str) -> list[tuple[str, str]]:
    """What each of two that torchrun would start prints, and its errors, when both have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **given, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def test_of_two_processes_that_work_together_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other, which waits for its rows, says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**given, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code = "import os; from genkit.processes import together\nwith together(): os._exit(0)"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "RANK": "1", "LOCAL_RANK": "1"}
    ) as other:
        try:
            with pytest.raises(GenkitError, match=r"^another of the 2 processes ended \("), together():
                joined(torch.zeros(1, 2), [1, 1])
            with pytest.raises(RuntimeError, match="of our own"), complete(2):
                raise RuntimeError("of our own")
        finally:
            other.kill()
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_processes_sample_and_evaluate_as_one_does(whole: Path, tmp_path: Path) -> None:
    """Numbers that do not divide; each has all samples, and right figures of them; only the first writes and speaks."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    options = ["samples=61", "steps=[2]", "likelihood_rows=8"]
    said = two_processes(
        "import sys; from genkit.__main__ import main; from genkit.compare import runner\n"
        "from genkit.processes import together\n"
        "kept = runner.evaluate\n"
        "def told(*a, **k):\n"
        "    found = kept(*a, **k); point = found[0]['points'][0]\n"
        "    print('FIGURES', {key: point[key] for key in sorted(point) if key != 'seconds'}); return found\n"
        "runner.evaluate = told\n"
        f"run, out = {str(run)!r}, {str(tmp_path / 'two.npy')!r}\n"
        "with together():\n"
        "    sys.exit(main(['sample', run, '-n', '11', '--out', out, '--device', 'cpu'])"
        f" or main(['evaluate', run, '--device', 'cpu', *{options!r}]))"
    )
    figures = [[line for line in out.splitlines() if line.startswith("FIGURES")] for out, _ in said]
    assert figures[0] == figures[1] != []
    assert "11 samples of" in said[0][0]
    assert len(said[1][0].splitlines()) == 1
    one = load(whole)
    torch.testing.assert_close(torch.from_numpy(numpy.load(tmp_path / "two.npy")), one.sample(11).x)
    evaluation = EvaluationOptions(samples=61, steps=[2], likelihood_rows=8)
    expected = evaluate(one, evaluation, evaluation.judge(one.dataset))[0]
    held = json.loads((run / "evaluation.json").read_text())["result"]
    for key, value in expected["points"][0].items():
        assert key == "seconds" or held["points"][0][key] == pytest.approx(value, rel=1e-4)


COMPARISON = """
name: moons
data: moons
model: {width: 8, depth: 1, heads: 1, patch: 1}
training: {steps: 4, batch_size: 32, log_every: 1}
trainer: {accelerator: cpu, draws: global}
arms:
  flow: {objective: {name: normalizing_flow, spans: 1}}
  distilled: {objective: {name: flow_matching, coupling: {name: distilled, teacher: flow}}}
  midpoint: {objective: {name: flow_matching, coupling: {name: distilled, teacher: flow}}, sampling: {solver: midpoint}}
evaluation: {samples: 21, steps: [1], likelihood_rows: 4, likelihood: euler}
"""


@pytest.mark.slow
def test_two_processes_compare_as_one_does(tmp_path: Path) -> None:
    """A teacher, its student, an arm that differs from that in how it is sampled alone, and a folder of another run:
    only the first process arranges the folders, and speaks."""
    path, one, two = tmp_path / "c.yaml", tmp_path / "one", tmp_path / "two"
    path.write_text(COMPARISON.replace("steps: 4", "steps: 1"))
    for out in (one, two):
        train(Comparison.load(path).recipe("flow", 0), out / "flow")
    path.write_text(COMPARISON)
    argv = ["compare", str(path), *TWO, "--out", str(two), "--device", "cpu"]
    said = two_processes(f"import sys; from genkit.__main__ import main; sys.exit(main({argv!r}))")
    assert said[1][0] == ""
    assert "report: " in said[0][0]
    expected = plain(compare(Comparison.load(path), one))
    found = plain(json.loads((two / "report.json").read_text()))
    for name, value in expected.items():
        same = found.pop(name)
        assert same == (pytest.approx(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value), name
    assert not found
    for out in (one, two):
        assert [entry.name[:5] for entry in (out / "stale").iterdir()] == ["flow-"]
        assert read_environment(out / "midpoint") == read_environment(out / "distilled")
    assert read_environment(two / "distilled")["processes"] == 2


def plain(report: Any, name: str = "") -> dict[str, Any]:
    """The values in a report by their places, but for seconds."""
    if isinstance(report, (dict, list)):
        pairs = report.items() if isinstance(report, dict) else enumerate(report)
        return {k: v for key, part in pairs for k, v in plain(part, f"{name}.{key}").items()}
    return {} if "seconds" in name else {name: report}


@pytest.mark.slow
def test_two_processes_of_which_one_dies_learn_what_one_learns(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """The same losses and weights but for rounding: batches, noise, times and an optimal transport over all rows.
    The run goes on with as many processes as before, or another number."""
    out, alone = tmp_path / "run", tmp_path / "alone"
    with started(recipe, out, *TWO) as process:
        (other,) = children(process.pid)
        os.kill(other, signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "another of the 2 processes ended" in err
    assert 0 < step(out) < STEPS
    shutil.copytree(out, alone)
    done = subprocess.run(
        command(recipe, out, *TWO), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{STEPS} steps in") == 1
    finish(recipe, alone)
    for folder in (out, alone):
        torch.testing.assert_close(losses(folder), losses(whole), rtol=1e-3, atol=1e-3)
        assert largest_difference(folder, whole) < 1e-3


@pytest.mark.slow
def test_two_processes_that_share_the_weights_learn_what_one_learns(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """Also their averages, and moments; a stopped run goes on with as many processes, or with one that has them all,
    and that of one process goes on shared."""
    out, alone, shared = (tmp_path / name for name in ("run", "alone", "shared"))

    def cut(step: int, *_: object) -> None:
        if step == STEPS // 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(Recipe.load(recipe), shared, report=cut)
    assert 0 < step(shared) < STEPS
    with started(recipe, out, *SHARDED) as process:
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert 0 < step(out) < STEPS
    shutil.copytree(out, alone)
    for folder in (out, shared):
        argv = command(recipe, folder, *SHARDED)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
    finish(recipe, alone)
    for folder in (out, alone, shared):
        torch.testing.assert_close(losses(folder), losses(whole), rtol=1e-3, atol=1e-3)
        assert largest_difference(folder, whole) < 1e-3


ECONOMIES: list[dict[str, Any]] = [
    {"objective": name} for name in OBJECTIVES.names() if not OBJECTIVES.get(name).second_order
] + [
    {"precision": "bf16", "activation_checkpointing": True, "accumulate": 2},
    {"on_bad_step": "rollback", "spike": 1e6},  # with a checkpoint before the first step
    {"logical_batch": 16, "clip": 0.1},
    {"ema": 0.0, "snapshots": (2,)},
]


def fits(folder: Path, trainer: TrainerOptions) -> list[list[float]]:
    """Of each: the losses, and the sum of the weights' sizes. Of weights that are shared each process holds half."""

    def halved(objective: Objective, *others: Any) -> None:
        whole = sum(p.numel() for p in objective.parameters())
        shard(objective, *others)
        parts = [p.to_local() for p in objective.parameters() if isinstance(p, DTensor)]
        assert 0.45 < sum(p.numel() for p in parts) / whole < 0.55

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genkit.training.module.shard", halved)
        for number, economy in enumerate(ECONOMIES):
            name = economy.get("objective", "flow_matching")
            common = {
                "steps": 3,
                "batch_size": 8,
                "log_every": 1,
                "warmup": 1,
                "ema": 0.9,
                "checkpoint_every": 2,
            }
            options = TrainingOptions(**common | {k: v for k, v in economy.items() if k != "objective"})
            model, out = build(name, data_of(name)[0]), folder / str(number)
            fit(model, split(model.spec), options, out, trainer=trainer, tensorboard=False)
            found.append(
                [*losses(out).tolist(), sum(float(p.detach().abs().sum()) for p in model.parameters())]
            )
    return found


@pytest.mark.slow
def test_shared_weights_go_with_all_objectives_and_economies(tmp_path: Path) -> None:
    said = two_processes(
        f"{ON_CPU}\nimport json; from pathlib import Path\n"
        "from genkit.processes import together; from genkit.training import TrainerOptions\n"
        "from tests.training.test_processes import fits\n"
        "with together():\n"
        "    trainer = TrainerOptions('cpu', devices=2, strategy='fsdp', draws='global')\n"
        f"    print('FITS', json.dumps(fits(Path({str(tmp_path / 'two')!r}), trainer)))"
    )
    expected = fits(tmp_path / "one", TrainerOptions("cpu", draws="global"))
    for out, _ in said:
        (line,) = (line for line in out.splitlines() if line.startswith("FITS"))
        for economy, one, two in zip(ECONOMIES, expected, json.loads(line[5:]), strict=True):
            assert two == pytest.approx(one, rel=1e-3), economy
    assert (tmp_path / "two" / str(len(ECONOMIES) - 1) / "snapshots" / "step_2.safetensors").exists()


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("the children of a process are not known here")
    return [int(child) for child in found.read_text().split()]


def test_the_lock_of_a_folder_that_is_gone_is_released(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run"):
            shutil.rmtree(tmp_path / "run")


def test_a_process_without_a_gpu_of_its_own_may_compute_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two on a machine with one."""
    chosen: list[int] = []
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    for local in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local)
        with together():
            pass
    assert chosen == [0]
