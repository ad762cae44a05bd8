"""Guidance on digits: Fréchet distance and judge accuracy against scale, each guidance at the same cost.

A conditional flow with snapshots and a normalizing flow are trained in --out, where they are not there yet. Of the
flow each row has the most Heun steps whose evaluations of the network, doubled ones twice, are within --budget. Of
the normalizing flow all rows cost the same, twice the unguided one.

nice -n 15 python benchmarks/guidance.py [--samples 720 --seeds 3 --scales 1.5 2 3 5]
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from _timing import arguments, publish

from genkit.metrics import METRICS
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, train

SNAPSHOTS = (50, 200)
CONFIG = {
    "data": "digits",
    "model": {"width": 64, "depth": 3, "heads": 2, "patch": 2},
    "training": {"steps": 800, "batch_size": 64, "lr": 2e-3, "warmup": 50, "ema": 0.99},
}
FLOW = {
    "classifier_free": {"name": "classifier_free"},
    "interval 0.25-0.75": {"name": "interval", "start": 0.25, "stop": 0.75},
    "interval 0-0.5": {"name": "interval", "start": 0.0, "stop": 0.5},
    "interval 0.5-1": {"name": "interval", "start": 0.5, "stop": 1.0},
    "rescaled, phi 0.7": {"name": "rescaled", "phi": 0.7},
    "ratio_aware, decay 1": {"name": "ratio_aware", "decay": 1.0},
    "ratio_aware, decay 4": {"name": "ratio_aware", "decay": 4.0},
    **{f"autoguidance, step {n}": {"name": "autoguidance", "checkpoint": n} for n in SNAPSHOTS},
}
AFFINE = {
    "classifier_free": {"name": "classifier_free"},
    "classifier_free, annealed": {"name": "classifier_free", "annealed": True},
    "corrected": {"name": "corrected"},
    "corrected, annealed": {"name": "corrected", "annealed": True},
}
CHUNK = 120  # samples of a batch


def extend(parser):
    parser.add_argument("--samples", type=int, default=720)
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    parser.add_argument("--scales", type=float, nargs="+", default=(1.5, 2.0, 3.0, 5.0))
    parser.add_argument("--budget", type=int, default=32, help="evaluations of the flow's network a sample")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/guidance"))


def main() -> None:
    options = arguments(__doc__.partition("\n")[0], extend)
    rows = []
    for name, each in (("flow_matching", FLOW), ("normalizing_flow", AFFINE)):
        training = CONFIG["training"] | ({"snapshots": SNAPSHOTS} if name == "flow_matching" else {})
        model = {"name": name} | ({"spans": 3} if name == "normalizing_flow" else {})
        recipe = Recipe.resolve(CONFIG | {"objective": model, "training": training})
        run = train(recipe, options.out / name).to(options.device)
        rows += [measured(run, "none", 1.0, options)]
        for words, entry in each.items():
            rows += [measured(run, words, scale, options, **entry) for scale in options.scales]
    publish(
        "guidance",
        f"Guidance on digits, {options.samples} samples, {options.seeds} seeds",
        rows,
        options.json,
    )


def measured(run, words, scale, options, **entry):
    guidance = run.guidance({"name": "classifier_free", **entry, "scale": scale})
    sampler = None
    if run.objective.predicts == "field":
        sampler = within(run, guidance, options.budget)
    found = [figures(run, guidance, sampler, seed, options.samples) for seed in range(options.seeds)]
    frechet, accuracy, cost = zip(*found, strict=True)
    return {
        "model": run.name,
        "guidance": words,
        "scale": scale,
        "evaluations": cost[0],
        "Fréchet": statistics.mean(frechet),
        "over seeds": spread(frechet),
        "accuracy": statistics.mean(accuracy),
        "over the seeds": spread(accuracy),
    }


def within(run, guidance, budget):
    """Heun with the most steps that the budget allows."""
    for steps in range(budget // 2, 0, -1):
        sampler = run.sampler(solver="heun", steps=steps)
        if drawn(run, guidance, sampler, 1, 0)[2] <= budget:
            return sampler
    raise SystemExit(f"a budget of {budget} evaluations is less than one step")


def drawn(run, guidance, sampler, count, seed):
    """Samples, the classes asked for, and evaluations of the network a sample."""
    parts, classes = [], torch.arange(count) % run.objective.classes
    for i, y in enumerate(classes.split(CHUNK)):
        generator = keyed_generator(seed, "guidance", i, device=run.objective.device)
        sample = run.objective.sample(
            len(y), y.to(run.objective.device), sampler=sampler, guidance=guidance, generator=generator
        )
        parts.append(sample.x.cpu())
    return torch.cat(parts), classes, sample.tokens / run.objective.tokens.length


def figures(run, guidance, sampler, seed, count):
    x, y, cost = drawn(run, guidance, sampler, count, seed)
    frechet, accuracy = (METRICS.build(name, run.spec) for name in ("frechet", "accuracy"))
    split = run.dataset.split("test")
    frechet.update(split.take(torch.arange(len(split)))[0], real=True)
    frechet.update(x, real=False)
    accuracy.update(x, y)
    return float(frechet.compute()), float(accuracy.compute()), cost


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
