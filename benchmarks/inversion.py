"""Inverters of normalizing flows: calls, seconds and errors against `sequential`, at each tolerance.

Both run in turn within one process, on the same noise; the speed is the median of the ratios of neighbours. With
--samples, the Fréchet distance to the test rows of as many samples, and the share of levels that differ from those of
`sequential` with the same noise.

python benchmarks/inversion.py RUN... [--batches 1 16 64] [--samples 1000 --seeds 3]
"""

from __future__ import annotations

import statistics
import time

import torch
from _timing import arguments, publish

import genkit
from genkit.inversion import INVERTERS
from genkit.metrics import METRICS
from genkit.randomness import keyed_generator

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
INVERTER = "jacobi", "gauss_seidel_jacobi"
CHUNK = 100  # samples of a batch where quality is measured


def extend(parser):
    parser.add_argument("runs", nargs="+", help="run folders of normalizing flows")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--inverters", nargs="+", default=INVERTER)
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES)
    parser.add_argument(
        "--samples", type=int, default=0, help="of which quality is measured, in place of time"
    )
    parser.add_argument("--seeds", type=int, default=1)


def main() -> None:
    options = arguments(__doc__.partition("\n")[0], extend)
    rows = []
    for folder in options.runs:
        run = genkit.load(folder, device=options.device)
        if options.samples:
            rows += quality(run, options)
        else:
            for batch in options.batches:
                rows += speed(run, batch, options)
    what = "quality" if options.samples else "time"
    publish(f"inversion_{what}", f"Inversion of normalizing flows: {what}", rows, options.json)


def each(options):
    """Name and inverter of all that are measured."""
    for name in options.inverters:
        for tolerance in options.tolerances:
            yield name, tolerance, INVERTERS.build(name, tolerance=tolerance)


def speed(run, batch, options):
    flow = run.objective
    y = torch.arange(batch, device=flow.device) % flow.classes
    like = torch.empty(batch, *run.spec.shape, device=flow.device)
    z = flow.source.sample(like, generator=keyed_generator(0, device=flow.device))
    flow.decode(z, y)
    for name, tolerance, inverter in each(options):
        ratios, seconds = [], []
        for _ in range(options.repeats):
            reference, one = timed(lambda: flow.decode(z, y))
            found, other = timed(lambda inverter=inverter: flow.decode(z, y, inverter=inverter))
            ratios.append(one / other)
            seconds.append((one, other))
        error = (found.x - reference.x).abs()
        yield {
            "run": run.name,
            "tokens": flow.tokens.length,
            "batch": batch,
            "inverter": name,
            "tolerance": tolerance,
            "calls of each span": " ".join(str(part.calls) for part in found.spans),
            "passes' tokens": found.tokens / flow.tokens.length,
            "s": statistics.median(second for _, second in seconds),
            "sequential, s": statistics.median(first for first, _ in seconds),
            "speed": statistics.median(ratios),
            "speeds": f"{min(ratios):.2f}-{max(ratios):.2f}",
            "max error": float(error.max()),
            "rms error": float(error.square().mean().sqrt()),
        }


def quality(run, options):
    found = {}
    for seed in range(options.seeds):
        reference = drawn(run, "sequential", seed, options)
        found.setdefault(("sequential", 0.0), []).append((frechet(run, reference), 0.0))
        for name, tolerance, inverter in each(options):
            x = drawn(run, inverter, seed, options)
            changed = float((x != reference).float().mean())
            found.setdefault((name, tolerance), []).append((frechet(run, x), changed))
    for (name, tolerance), values in found.items():
        distances, changed = zip(*values, strict=True)
        yield {
            "run": run.name,
            "inverter": name,
            "tolerance": tolerance,
            "Fréchet distance": statistics.mean(distances),
            "least": min(distances),
            "largest": max(distances),
            "levels changed, %": 100 * statistics.mean(changed),
        }


def drawn(run, inverter, seed, options):
    parts = []
    for i in range(0, options.samples, CHUNK):
        y = (
            torch.arange(i, min(i + CHUNK, options.samples), device=run.objective.device)
            % run.objective.classes
        )
        generator = keyed_generator(seed, "inversion", i, device=run.objective.device)
        parts.append(run.objective.sample(len(y), y, sampler=inverter, generator=generator).x.cpu())
    return torch.cat(parts)


def frechet(run, x):
    metric = METRICS.build("frechet", run.spec)
    split = run.dataset.split("test")
    metric.update(split.take(torch.arange(len(split)))[0], real=True)
    metric.update(x, real=False)
    return float(metric.compute())


def timed(call):
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
