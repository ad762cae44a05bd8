"""One logical batch trained at several physical ones, with the rule for the batch size and without it.

Every run of a seed starts from the same weights and sees the same samples in the same order. With the rule, options
are turned into those of the physical batch (`TrainingOptions.physical`); without it lr, betas, eps, weight_decay and
ema stay as they are, and only steps and warm-up are counted in samples.

python benchmarks/batch_size.py --figure benchmarks/figures/batch_size.png
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

import torch
from _timing import publish
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from genkit.compare.figures import COLOURS, DPI, SOFT, styled
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, Run, train
from genkit.types import Batch

RUNS = Path("runs/benchmarks/batch_size")
RULES = ("with the rule", "without")


def main() -> None:
    options = arguments()
    found: dict[tuple[str, int], list[tuple[float, str]]] = {}
    for seed in range(options.seeds):
        for batch in options.batches:
            for rule in RULES:
                run = trained(options, batch, seed, rule)
                measured = held_out_loss(run, options.draws), clipped(run)
                found.setdefault((rule, batch), []).append(measured)
                print(f"seed {seed}, batch {batch}, {rule}: {measured[0]:.5f}", flush=True)
    losses = {key: [loss for loss, _ in runs] for key, runs in found.items()}
    rows = []
    for rule in RULES:
        for batch in options.batches:
            base, values = losses[rule, options.logical], losses[rule, batch]
            ratios = [value / one for value, one in zip(values, base, strict=True)]
            rows.append(
                {
                    "rule": rule,
                    "batch": batch,
                    "loss": statistics.mean(values),
                    "spread": spread(values),
                    "ratio": f"{statistics.mean(ratios):.4f}",
                    "its spread": spread(ratios),
                    "clipped": found[rule, batch][0][1],
                }
            )
    title = f"Held-out loss of {options.objective} on digits, logical batch {options.logical}"
    publish("batch_size", title, rows, options.json)
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        figure(losses, options).savefig(options.figure)
        print(options.figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--objective", default="flow_matching")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--logical", type=int, default=128, help="the logical batch, one of --batches")
    parser.add_argument("--steps", type=int, default=1000, help="of the logical batch")
    parser.add_argument("--warmup", type=int, default=100, help="steps of the logical batch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=64, help="of noise for each held-out image")
    parser.add_argument("--set", nargs="*", default=[], help="more options of training, such as lr=1e-3")
    parser.add_argument("--figure", type=Path, help="where to draw the losses (PNG)")
    parser.add_argument(
        "--json", type=Path, help="where to write the figures (default: runs/benchmarks/batch_size.json)"
    )
    options = parser.parse_args()
    if options.logical not in options.batches:
        parser.error("--logical must be one of --batches")
    return options


def trained(options: argparse.Namespace, batch: int, seed: int, rule: str) -> Run:
    """The run of these options; one that was finished is not trained again."""
    whole = {"lr": 2e-3, "ema": 0.99} | dict(text.split("=", 1) for text in options.set)
    training: dict[str, Any] = {name: float(value) for name, value in whole.items()}
    training |= {"batch_size": batch, "steps": options.steps, "warmup": options.warmup}
    kappa = batch / options.logical
    if rule == "without" and kappa != 1:
        training |= {"steps": round(options.steps / kappa), "warmup": round(options.warmup / kappa)}
    else:  # at the logical batch the rule changes nothing
        training |= {"logical_batch": options.logical}
    rarely = {"log_every": max(1, round(options.steps / kappa) // 10), "checkpoint_every": 10**9}
    recipe = Recipe.resolve(
        {
            "seed": seed,
            "data": "digits",
            "objective": options.objective,
            "model": {"width": 64, "depth": 3, "heads": 2, "patch": 4},
            "training": training | rarely,
            "trainer": {"accelerator": "cpu"},
        }
    )
    return train(recipe, RUNS / recipe.fingerprint(recipe.dataset().hash)[:16])


@torch.no_grad()
def held_out_loss(run: Run, draws: int) -> float:
    """The mean loss of the averaged weights over the test part, under the same noise for all runs."""
    index = torch.arange(len(run.dataset.test))
    x, y = run.dataset.test.take(index)
    generator = keyed_generator(0, "held-out")
    losses = [
        run.objective.loss(
            run.objective.prepare(Batch(x, y, index), generator=generator), generator=generator
        )
        for _ in range(draws)
    ]
    return float(torch.stack([loss["loss"] for loss in losses]).double().mean())


def clipped(run: Run) -> str:
    """The share of steps whose gradient was clipped, where it was logged."""
    with (run.folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return f"{float(last['clipped']):.1%}" if "clipped" in last else ""


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


@styled
def figure(losses: dict[tuple[str, int], list[float]], options: argparse.Namespace) -> Figure:
    """Mean loss against the physical batch; bars of ± one spread over seeds, dots for the seeds."""
    fig = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained", facecolor="white")
    ax = fig.add_subplot()
    for rule, colour, marker, shift in zip(RULES, COLOURS, "os", (0.985, 1.015), strict=False):
        values = [losses[rule, batch] for batch in options.batches]
        at = [batch * shift for batch in options.batches]
        mean = [statistics.mean(v) for v in values]
        ax.errorbar(at, mean, [spread(v) for v in values], color=colour, marker=marker, capsize=3, label=rule)
    ax.axvline(options.logical, color=SOFT, linewidth=1.0, linestyle=(0, (5, 4)), label="logical batch")
    ax.set_xscale("log", base=2)
    ax.set_xticks(options.batches, [str(batch) for batch in options.batches])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("physical batch: samples of an optimizer step")
    ax.set_ylabel(f"held-out loss of {options.objective}")
    ax.set_title("Equal samples, one logical batch")
    fig.legend(loc="outside lower left", ncols=3)
    return fig


if __name__ == "__main__":
    main()
