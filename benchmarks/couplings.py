"""Time of the couplings against the batch size, of the exact solvers, and of `ot` within a train step on digits.

python benchmarks/couplings.py

A size is left out (nan) where by the cube of the size it would take more than LONGEST seconds.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings

import torch
from _timing import arguments, publish

from genkit.backbone import ModelOptions
from genkit.couplings import COUPLINGS
from genkit.data import DATASETS
from genkit.data.base import Encoded, TensorSplit
from genkit.data.views import Continuous
from genkit.objectives import OBJECTIVES
from genkit.types import Batch, DataSpec, StandardNormal

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
ROWS = 2000  # of the data set of `semidiscrete`
LONGEST = 10.0


def times(call, sizes, repeats):
    """Median seconds for each size; nan from where one would take longer than LONGEST by the cube of the size."""
    found = {}
    last = 0.0
    for n in sizes:
        if 8 * last > LONGEST:
            found[n] = math.nan
            last *= 8
            continue
        seconds = []
        while len(seconds) < repeats + 1 and sum(seconds) < LONGEST / 4:
            start = time.perf_counter()
            call(n)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        found[n] = last = statistics.median(seconds[1:] or seconds)  # the first may import a library
    return found


def table(name, title, contestants, device, repeats, path):
    rows = []
    for (label, coupling), d in contestants:
        given = {n: (torch.randn(n, d, device=device), torch.arange(n, device=device) % 10) for n in SIZES}
        found = times(lambda n, coupling=coupling, given=given: coupling(*given[n]), SIZES, repeats)
        rows.append({"coupling": label, "d": d} | {f"{n}": round(1e3 * found[n], 2) for n in SIZES})
    publish(name, title, rows, path)


def built(name, d, **options):
    coupling = COUPLINGS.build(name, **options)
    if coupling.needs_data:
        data = Encoded(TensorSplit(torch.randn(ROWS, d)), Continuous(DataSpec("rows", (d,))))
        coupling.setup(data, StandardNormal())
    return coupling


def share(options):
    """`ot` in a train step on digits, batch 256: seconds of both, alternately, and their ratio."""
    data = DATASETS.build("digits")
    split = data.train.to(options.device)
    objective = OBJECTIVES.build(
        {"name": "flow_matching", "coupling": "ot"},
        data.spec,
        ModelOptions(width=96, depth=4, heads=3, patch=2),
    ).to(options.device)
    objective.setup(split)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    pairs, whole = [], []
    for _ in range(max(10, options.repeats)):
        index = torch.randint(len(split), (256,))
        x, y = split.take(index)
        start = time.perf_counter()
        batch = objective.prepare(Batch(x, y, index))
        pairs.append(time.perf_counter() - start)
        optimizer.zero_grad()
        float(objective.loss(batch)["loss"].backward() or 0)
        optimizer.step()
        whole.append(time.perf_counter() - start)
    pair, step = statistics.median(pairs[2:]), statistics.median(whole[2:])
    row = {"batch": 256, "pairs, ms": 1e3 * pair, "whole step, ms": 1e3 * step, "share, %": 100 * pair / step}
    publish("couplings_share", "Pairs by ot within a train step on digits", [row], None)


def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    warnings.simplefilter("ignore")
    solvers = [
        ((f"ot, {solver}", built("ot", d, solver=solver)), d)
        for d in (2, 64)
        for solver in ("scipy", "pot", "torch")
    ]
    table(
        "couplings_solvers",
        "Milliseconds of exact transport, by n",
        solvers,
        options.device,
        options.repeats,
        options.json,
    )
    names = [name for name in COUPLINGS.names() if not COUPLINGS.get(name).needs_teacher]
    couplings = [((name, built(name, 64)), 64) for name in names]
    table(
        "couplings", "Milliseconds of a batch, by n", couplings, options.device, options.repeats, options.json
    )
    share(options)


if __name__ == "__main__":
    main()
