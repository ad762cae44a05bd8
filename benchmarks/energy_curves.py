"""An energy distilled from a flow, and one trained on the data, at growing budgets; and the curl of their fields.

For each data set one flow is trained, then both energies at each number of steps. Quality is that of samples by 16
steps of Heun: the sliced Wasserstein distance of 2-D data, the Fréchet distance of digits. The curl is |J - J^T| / |J|,
J the Jacobian of the field at noised test data, its mean over t in 0.1 .. 0.9.

python benchmarks/energy_curves.py --figure benchmarks/figures/energy_curves.png
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from _timing import publish
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from genkit.compare.figures import COLOURS, DPI, SOFT, styled
from genkit.metrics import Judge
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, Run, train

RUNS = Path("runs/benchmarks/energy_curves")
FLOW, WAYS = "flow", ("distilled", "direct")
TWO_D = ("8gaussians", "moons", "checkerboard", "spirals", "pinwheel")


def main() -> None:
    options = arguments()
    rows: list[dict[str, Any]] = []
    for data in options.data:
        for seed in range(options.seeds):
            teacher = trained(data, FLOW, options.teacher, seed)
            rows.append(row(data, FLOW, options.teacher, seed, teacher))
            for way in WAYS:
                for steps in options.steps:
                    rows.append(row(data, way, steps, seed, trained(data, way, steps, seed, teacher)))
                    print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    publish("energy_curves", "Energies and their teacher", summary(rows), options.json)
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        figure(rows, options.data).savefig(options.figure, dpi=DPI)
        print(options.figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=[*TWO_D, "digits"])
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 150, 500], help="of the energies")
    parser.add_argument("--teacher", type=int, default=1000, help="steps of the flow")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="where to draw the curves (PNG)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def trained(data: str, way: str, steps: int, seed: int, teacher: Run | None = None) -> Run:
    """The run of these options; one that was finished is not trained again."""
    objective: dict[str, Any] = {"name": "flow_matching" if way == FLOW else "energy"}
    if way == "distilled":
        assert teacher is not None
        objective["teacher"] = str(teacher.folder)
    digits = data == "digits"
    config = {
        "seed": seed,
        "data": data,
        "objective": objective,
        "model": {"width": 96, "depth": 4, "heads": 3} if digits else {"width": 64, "depth": 3, "heads": 2},
        "training": {
            "steps": steps,
            "batch_size": 128,
            "lr": 2e-3,
            "warmup": min(100, steps // 5),
            "ema": 0.99,
        },
    }
    return train(Recipe.resolve(config), RUNS / data / f"{way}-{steps}-seed{seed}", teacher=teacher)


def row(data: str, way: str, steps: int, seed: int, run: Run) -> dict[str, Any]:
    two_d = run.spec.shape == (2,)
    judge = Judge(run.dataset, 2000 if two_d else None)
    y = torch.arange(judge.count) % run.spec.classes if run.spec.classes else None
    sample = run.sample(judge.count, y, solver={"name": "heun", "steps": 16})
    figures = judge.samples(sample.x, y)
    metric = "sliced_wasserstein" if two_d else "frechet"
    return {
        "data": data,
        "model": way,
        "steps": steps,
        "seed": seed,
        "quality": figures[metric],
        "floor": judge.floors()[metric],
        "curl": curl(run) if two_d else math.nan,
    }


def curl(run: Run, rows: int = 32) -> float:
    """The mean of |J - J^T| / |J| over noised test data and times."""
    model: Any = run.objective
    generator = keyed_generator(0, "curl")
    x1 = model.view.encode(run.dataset.split("test").take(torch.arange(rows))[0], generator=generator)
    found = []
    for t in torch.linspace(0.1, 0.9, 5):
        x0 = model.source.sample(x1, generator=generator)
        x = model.path(x0, x1, t).x_t.requires_grad_()
        with torch.enable_grad():
            v = model.predict(t, x)
            j = torch.stack(
                [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0] for i in range(2)], dim=1
            )
        found.append(((j - j.mT).flatten(1).norm(dim=1) / j.flatten(1).norm(dim=1)).mean())
    return float(torch.stack(found).mean())


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each data set and model, over seeds."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in rows:
        groups.setdefault((entry["data"], entry["model"], entry["steps"]), []).append(entry)
    return [
        {
            "data": data,
            "model": model,
            "steps": steps,
            "quality": statistics.mean(entry["quality"] for entry in entries),
            "spread": statistics.stdev(entry["quality"] for entry in entries)
            if len(entries) > 1
            else math.nan,
            "floor": entries[0]["floor"],
            "curl": statistics.mean(entry["curl"] for entry in entries),
        }
        for (data, model, steps), entries in groups.items()
    ]


@styled
def figure(rows: list[dict[str, Any]], names: list[str]) -> Figure:
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    fig = Figure(figsize=(8.6, 0.5 + 2.6 * lines), dpi=DPI, layout="constrained", facecolor="white")
    for i, data in enumerate(names):
        ax = fig.add_subplot(lines, columns, i + 1)
        held = [entry for entry in summary(rows) if entry["data"] == data]
        for way, colour, marker in zip(WAYS, COLOURS, "os", strict=False):
            points = [entry for entry in held if entry["model"] == way]
            x, y = ([entry[key] for entry in points] for key in ("steps", "quality"))
            ax.plot(x, y, color=colour, marker=marker, label=way)
        (teacher,) = (entry["quality"] for entry in held if entry["model"] == FLOW)
        ax.axhline(teacher, color=SOFT, linestyle="--", label="the flow")
        ax.axhline(held[0]["floor"], color=SOFT, linestyle=":", label="real data")
        ax.set(xscale="log", title=data, xlabel="steps of the energy", ylim=(0, None))
        ticks = sorted({entry["steps"] for entry in held if entry["model"] != FLOW})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        if i % columns == 0:
            ax.set_ylabel("distance of samples")
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig


if __name__ == "__main__":
    main()
