"""Guidance: Fréchet distance and the judge's accuracy against scale, each guidance at the same cost.

RUN: trained conditional flows, of pairs or normalizing ones, of data with a judge; without one a flow with snapshots is
trained on digits, in runs/benchmarks/guidance. Of a flow of pairs each row has the most Heun steps whose evaluations
of the network, doubled ones twice, are within --budget; of a normalizing flow all cost the same.

python benchmarks/guidance.py [RUN...] [--samples 360 --seeds 3 --scales 1.5 2 3]
"""

from __future__ import annotations

import statistics

import torch
from _timing import arguments, publish

import genkit
from genkit.metrics import METRICS
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, train

CONFIG = {
    "data": "digits",
    "model": {"width": 64, "depth": 3, "heads": 2, "patch": 2},
    "objective": "flow_matching",
    "training": {
        "steps": 800, "batch_size": 64, "lr": 2e-3, "warmup": 50, "ema": 0.99, "snapshots": [50, 200]
    },
}  # fmt: skip
FLOW = {
    "classifier_free": {"name": "classifier_free"},
    "interval 0.25-0.75": {"name": "interval", "start": 0.25, "stop": 0.75},
    "interval 0-0.5": {"name": "interval", "start": 0.0, "stop": 0.5},
    "interval 0.5-1": {"name": "interval", "start": 0.5, "stop": 1.0},
    "rescaled, phi 0.7": {"name": "rescaled", "phi": 0.7},
    "ratio_aware, decay 1": {"name": "ratio_aware", "decay": 1.0},
    "ratio_aware, decay 4": {"name": "ratio_aware", "decay": 4.0},
}
AFFINE = {
    "classifier_free": {"name": "classifier_free"},
    "classifier_free, annealed": {"name": "classifier_free", "annealed": True},
    "corrected": {"name": "corrected"},
    "corrected, annealed": {"name": "corrected", "annealed": True},
}
CHUNK = 120  # samples of a batch


def extend(parser):
    parser.add_argument("runs", nargs="*", help="run folders")
    parser.add_argument("--samples", type=int, default=360)
    parser.add_argument("--seeds", type=int, default=3, help="of the noise")
    parser.add_argument("--scales", type=float, nargs="+", default=(1.5, 2.0, 3.0))
    parser.add_argument("--budget", type=int, default=32, help="evaluations of the flow's network a sample")


def main() -> None:
    options = arguments(__doc__.partition("\n")[0], extend)
    rows = []
    runs = [genkit.load(folder) for folder in options.runs]
    for run in runs or [train(Recipe.resolve(CONFIG), "runs/benchmarks/guidance")]:
        run.to(options.device)
        rows += [measured(run, "none", 1.0, options)]
        for scale in options.scales:
            rows += [measured(run, words, scale, options, **entry) for words, entry in guidances(run).items()]
    publish(
        "guidance",
        f"Guidance, {options.samples} samples, {options.seeds} seeds",
        rows,
        options.json,
    )


def guidances(run):
    if run.objective.predicts != "field":
        return AFFINE
    return FLOW | {
        f"autoguidance, step {n}": {"name": "autoguidance", "checkpoint": n} for n in run.snapshots
    }


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
