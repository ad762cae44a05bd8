"""Overhead of the solver loop over bare network calls, at a batch of 64 digits.

Each method solves a field that costs nothing (it returns what it was given before): what is left is the loop with its
updates, which is held against as many bare calls of the network. On a CPU the seconds are those of the process, so that
others on the machine do not count.

python benchmarks/solver_overhead.py [--run FOLDER]
"""

from __future__ import annotations

import statistics
import time

import torch
from _timing import arguments, publish

from genkit.backbone import ModelOptions
from genkit.data import DATASETS
from genkit.objectives import OBJECTIVES
from genkit.recipe import load
from genkit.solvers import SOLVERS
from genkit.types import Field

STEPS, BATCH = 16, 64


@torch.no_grad()
def main() -> None:
    options = arguments(
        __doc__.partition("\n")[0],
        lambda parser: parser.add_argument(
            "--run", help="a trained flow (default: the demo's model of digits)"
        ),
    )
    if options.run is None:
        spec = DATASETS.build("digits").spec
        objective = OBJECTIVES.build("flow_matching", spec, ModelOptions()).to(options.device)
    else:
        objective = load(options.run, device=options.device).objective
    classes = objective.classes
    y = torch.arange(BATCH, device=options.device) % classes if classes else None
    x = torch.randn(BATCH, *objective.spec.shape, device=options.device)
    network, answer = objective.field(y), torch.randn_like(x)
    field = Field(lambda t, x: answer, objective.path.coefficients, None)

    t = torch.tensor(0.5, dtype=torch.float64)
    call = statistics.median(timed(lambda: network(t, x), options.repeats))
    rows = []
    for name in SOLVERS.names():
        fixed = "rtol" not in SOLVERS.resolve(name)
        solver = SOLVERS.build(name, steps=STEPS if fixed else 1)
        nfe = solver.solve(field, x).nfe
        loops = [
            1e6 * seconds / nfe for seconds in timed(lambda s=solver: s.solve(field, x), options.repeats)
        ]
        low, middle, high = statistics.quantiles(loops, n=4)
        rows.append(
            {
                "solver": name,
                "evaluations": nfe,
                "us a call": middle,
                "quartiles": f"{low:.0f} to {high:.0f}",
                "of a network call, %": 100 * middle / (1e6 * call),
            }
        )
    title = f"Solver loop beside network calls of {1e3 * call:.1f} ms, batch {BATCH}"
    publish("solver_overhead", title, rows, options.json)


def timed(call, repeats):
    """Seconds of each of so many calls, after three that warm up."""
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    seconds = []
    for i in range(3 + repeats):
        start = clock()
        call()
        if cuda:
            torch.cuda.synchronize()
        if i >= 3:
            seconds.append(clock() - start)
    return seconds


if __name__ == "__main__":
    main()
