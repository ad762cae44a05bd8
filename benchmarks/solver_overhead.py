"""Overhead of the solver loop over bare network calls, at a batch of 64 digits.

The bare loop makes the same calls with the same update and nothing else; both run in turn within one process,
and the overhead is the median of the ratios of neighbours.

python benchmarks/solver_overhead.py
"""

from __future__ import annotations

import statistics
import time

import torch
from _timing import arguments, publish

from genkit.backbone import ModelOptions
from genkit.data import DATASETS
from genkit.objectives import OBJECTIVES
from genkit.solvers import SOLVERS

STEPS, BATCH = 16, 64


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    spec = DATASETS.build("digits").spec
    objective = OBJECTIVES.build("flow_matching", spec, ModelOptions()).to(options.device)
    y = torch.arange(BATCH, device=options.device) % 10
    x = torch.randn(BATCH, *spec.shape, device=options.device)
    field = objective.field(y)
    times = torch.linspace(0, 1, STEPS + 1, device=options.device)

    def bare_euler():
        state = x
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            state = state + (t_next - t) * objective.predict(t, state, y)
        return state

    def bare_heun():
        state = x
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            k = objective.predict(t, state, y)
            state = state + (t_next - t) / 2 * (k + objective.predict(t_next, state + (t_next - t) * k, y))
        return state

    rows = []
    for name, bare in (("euler", bare_euler), ("heun", bare_heun)):
        solver = SOLVERS.build(name, steps=STEPS)
        torch.testing.assert_close(solver.solve(field, x).x, bare(), rtol=1e-4, atol=1e-4)
        ratios, seconds = [], []
        for _ in range(options.repeats):
            a = timed(bare)
            b = timed(lambda solver=solver: solver.solve(field, x))
            ratios.append(b / a - 1)
            seconds.append(b)
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "solver": name,
                "steps": STEPS,
                "ms": 1e3 * statistics.median(seconds),
                "overhead, %": 100 * statistics.median(ratios),
                "quartiles, %": f"{100 * low:.1f} to {100 * high:.1f}",
            }
        )
    publish("solver_overhead", f"Solver loop over bare network calls, batch {BATCH}", rows, options.json)


def timed(call):
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
