"""What an energy costs beside a plain velocity network: time of a train step and of a field evaluation, and memory.

python benchmarks/energy_cost.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _timing import arguments, publish

from genkit.backbone import ModelOptions
from genkit.data import DATASETS
from genkit.objectives import OBJECTIVES, Objective
from genkit.types import Batch

MODELS: dict[str, dict[str, Any]] = {
    "flow_matching": {"name": "flow_matching"},
    "energy, inner_product": {"name": "energy"},
    "energy, squared_residual": {"name": "energy", "parameterization": "squared_residual"},
    "energy, pooled": {"name": "energy", "parameterization": "pooled"},
    "energy, distilled": {"name": "energy", "teacher": "flow_matching"},
}
BATCH, SAMPLES = 128, 64


def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    data = DATASETS.build("digits")
    split = data.split("train").to(options.device)
    objectives: dict[str, Objective] = {}
    for name, recipe in MODELS.items():
        objectives[name] = OBJECTIVES.build(recipe, data.spec, ModelOptions()).to(options.device)
        objectives[name].setup(split, objectives["flow_matching"] if "teacher" in recipe else None)
    x, y = split.take(torch.arange(BATCH))
    steps = {name: train_step(objective, Batch(x, y)) for name, objective in objectives.items()}
    calls = {name: field_call(objective, SAMPLES) for name, objective in objectives.items()}
    trained, called = ratios(steps, options.repeats), ratios(calls, options.repeats)
    kept = {name: kept_for_backward(objective, Batch(x, y)) for name, objective in objectives.items()}
    rows = [
        {
            "model": name,
            "train step, ms": 1e3 * trained[name][0],
            "ratio": trained[name][1],
            f"field of {SAMPLES}, ms": 1e3 * called[name][0],
            "its ratio": called[name][1],
            "kept, MiB": kept[name] / 2**20,
            "ratio of it": kept[name] / kept["flow_matching"],
        }
        for name in MODELS
    ]
    publish("energy_cost", f"An energy beside a velocity (batch {BATCH}), digits 8x8", rows, options.json)


def train_step(objective: Objective, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        objective.loss(objective.prepare(batch))["loss"].backward()
        optimizer.step()

    return step


def field_call(objective: Any, n: int) -> Callable[[], None]:
    x = objective.start(n)
    y = torch.arange(n, device=x.device) % 10
    t = torch.tensor(0.5, device=x.device)
    return torch.no_grad()(lambda: objective.predict(t, x, y))


def ratios(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each call, and the median of its ratio to the first one, which runs beside it each time."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        name: (median(values), median(a / b for a, b in zip(values, first, strict=True)))
        for name, values in seconds.items()
    }


def kept_for_backward(objective: Objective, batch: Batch) -> int:
    """Bytes that the graph of a loss keeps, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective.loss(objective.prepare(batch))["loss"]
    del loss
    return sum(held.values())


if __name__ == "__main__":
    main()
