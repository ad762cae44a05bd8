"""Held-out log-densities of a small normalizing flow, and of scikit-learn's density estimators, on real tables.

python benchmarks/tables.py [--steps 300] [--seeds 3]

Every estimator chooses its one free number (bandwidth, components, steps) on a fifth of the training rows; the flow
keeps the weights of its best step, the others then fit all training rows. The spread is over seeds.
"""

from __future__ import annotations

import statistics
import time

import numpy
import torch
from _timing import arguments, publish
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from genkit.backbone import ModelOptions
from genkit.data import DATASETS
from genkit.objectives import OBJECTIVES
from genkit.types import Batch

TABLES = ("breast_cancer", "wine", "diabetes")


def extend(parser):
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)


def kernel_density(fit, held, rows, test):
    def model(bandwidth):
        return KernelDensity(bandwidth=bandwidth)

    bandwidths = numpy.geomspace(0.1, 2, 20)
    best = max(bandwidths, key=lambda h: model(h).fit(fit).score(held))
    return model(best).fit(rows).score(test) / len(test)


def mixture(fit, held, rows, test, seed, kind):
    def model(components):
        return GaussianMixture(components, covariance_type=kind, reg_covar=1e-3, n_init=3, random_state=seed)

    best = max(range(1, 9), key=lambda n: model(n).fit(fit).score(held))
    return model(best).fit(rows).score(test)


def flow(data, fit, held, test, seed, steps):
    """Test nats at the step with the best validation nats, looked at every tenth step."""
    torch.manual_seed(seed)
    options = ModelOptions(width=32, depth=4, heads=2, dropout=0.1)
    model = OBJECTIVES.build({"name": "normalizing_flow", "spans": 4, "noise": "none"}, data.spec, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    best, found = -numpy.inf, -numpy.inf
    for step in range(steps):
        batch = Batch(fit[torch.randint(len(fit), (64,))], None, None)
        model.train()
        loss = model.loss(model.prepare(batch, generator=None))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9:
            model.eval()
            with torch.no_grad():
                now = float(model.log_density(held).mean())
                if now > best:
                    best, found = now, float(model.log_density(test).mean())
    return found


def main() -> None:
    options = arguments(__doc__.partition("\n")[0], extend)
    torch.set_num_threads(1)
    rows = []
    for name in TABLES:
        data = DATASETS.build(name)
        train, test = data.train.x, data.test.x
        held_out = torch.arange(len(train)) % 5 == 0
        fit, held = train[~held_out], train[held_out]
        plain = [part.double().numpy() for part in (fit, held, train, test)]
        seeds = range(options.seeds)
        start = time.perf_counter()
        flows = [flow(data, fit, held, test, seed, options.steps) for seed in seeds]
        seconds = (time.perf_counter() - start) / options.seeds
        found = {
            "normalizing flow": flows,
            "Gaussian": [mixture_of_one(plain)],
            "Gaussian mixture, full": [mixture(*plain, seed, "full") for seed in seeds],
            "Gaussian mixture, diagonal": [mixture(*plain, seed, "diag") for seed in seeds],
            "kernel density": [kernel_density(*plain)],
        }
        for estimator, values in found.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append(
                {
                    "table": name,
                    "estimator": estimator,
                    "nats": statistics.mean(values),
                    "spread": spread,
                    "seconds": seconds if estimator == "normalizing flow" else None,
                }
            )
    publish("tables", "Held-out nats of real tables", rows, options.json)


def mixture_of_one(plain):
    return GaussianMixture(1, reg_covar=1e-3).fit(plain[2]).score(plain[3])


if __name__ == "__main__":
    main()
