"""What a likelihood of a flow costs: processor time and peak memory of the divergences, and of the ways to a gradient.

python benchmarks/likelihood.py
python benchmarks/likelihood.py --run runs/nfm_digits/independent      how far few steps are off, of a trained run
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from typing import Any

import torch
from _timing import arguments, publish

from genkit.backbone import ModelOptions
from genkit.data import DATASETS
from genkit.objectives import OBJECTIVES
from genkit.randomness import keyed_generator
from genkit.recipe import load
from genkit.solvers import SOLVERS

STEPS = (4, 16)
CASES: dict[str, dict[str, Any]] = {
    "hutchinson, 1 probe": {"divergence": "hutchinson", "probes": 1},
    "hutchinson, 8 probes": {"divergence": "hutchinson", "probes": 8},
    "exact": {"divergence": "exact"},
    "1 probe, direct gradient": {"divergence": "hutchinson", "probes": 1, "gradient": "direct"},
    "1 probe, recompute": {"divergence": "hutchinson", "probes": 1, "gradient": "recompute"},
    "1 probe, adjoint": {"divergence": "hutchinson", "probes": 1, "gradient": "adjoint"},
}

FEW = [
    *(("heun", steps, grid) for steps in (8, 16, 32) for grid in ("uniform", "cosine")),
    *(("rk4", steps, grid) for steps in (8, 16) for grid in ("uniform", "cosine")),
]


def main() -> None:
    options = arguments(__doc__.partition("\n")[0], more)
    if options.run is not None:
        rows = errors(options.run, options.rows)
        publish("likelihood_steps", f"Error of {options.rows} likelihoods", rows, options.json)
        return
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, case in CASES.items():
        row: dict[str, Any] = {"likelihood": name}
        for steps in STEPS:
            with context.Pool(1) as pool:  # a process for each, since its peak does not go down
                seconds, mebibytes = pool.apply(measured, (case, steps, options.rows, options.repeats))
            row |= {f"{steps} steps, s": seconds, f"{steps} steps, MiB": mebibytes}
        rows.append(row)
    publish("likelihood", f"The likelihood of {options.rows} digits, Heun's method", rows, options.json)


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=8, help="in a batch")
    parser.add_argument("--run", help="the folder of a trained flow of pairs")


def errors(folder: str, count: int) -> list[dict[str, Any]]:
    """bits/dim of test rows by few steps, beside those by 64 of rk4, with the same probe."""
    run = load(folder)
    x, y = run.dataset.split("test").take(torch.arange(count))

    def bits(solver: str, steps: int, grid: str) -> torch.Tensor:
        sampler = SOLVERS.build(solver, steps=steps, grid=grid)
        found = run.log_prob(x, y, sampler=sampler, divergence="hutchinson", probes=1, tolerance=None)
        return -found.value / (run.spec.dims * math.log(2))

    exact, rows = bits("rk4", 64, "cosine"), []
    for solver, steps, grid in FEW:
        found = bits(solver, steps, grid)
        rows.append(
            {
                "solver": f"{solver}, {steps} steps, {grid}",
                "bits/dim": float(found.mean()),
                "off by": float((found - exact).mean()),
                "of a row": float((found - exact).abs().mean()),
            }
        )
    return rows


def measured(case: dict[str, Any], steps: int, rows: int, repeats: int) -> tuple[float, float]:
    """Processor seconds of the fastest of `repeats` runs, and by how many MiB the peak of resident memory rose."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = DATASETS.build("digits")
    model: Any = OBJECTIVES.build({"name": "flow_matching"}, data.spec, ModelOptions()).eval()
    for parameter in model.parameters():  # what starts at zero would be left out
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model.requires_grad_("gradient" in case)
    x, y = data.split("test").take(torch.arange(rows))

    def run(steps: int) -> None:
        solver = {"name": "heun", "steps": steps}
        found = model.log_prob(x, y, sampler=solver, tolerance=None, generator=keyed_generator(0), **case)
        if "gradient" in case:
            found.value.sum().backward()
            model.zero_grad()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run(steps)
        seconds.append(time.process_time() - start)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
