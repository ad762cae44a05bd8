"""How samples move from noise to data under several solvers: a picture of their ways, and an animation.

    genkit train examples/moons.yaml --out runs/moons
    python examples/trajectories.py runs/moons --solvers euler heun dpmpp ancestral --steps 8

works on any flow of two-dimensional data. All solvers start from the same noise.
"""

import argparse
import sys

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from genkit import load
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--solvers", nargs="+", default=["euler", "heun", "dpmpp", "ancestral"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("-n", type=int, default=300, help="samples (default: 300)")
    parser.add_argument("--frames", type=int, default=40, help="of the animation (default: 40)")
    parser.add_argument("--out", default="trajectories", help="OUT.png and OUT.gif (default: trajectories)")
    options = parser.parse_args(argv)
    try:
        ways, data = walk(load(options.run), options.solvers, options.steps, options.n)
    except GenkitError as error:
        sys.exit(f"trajectories: {error}")
    picture(ways, data).savefig(f"{options.out}.png", dpi=150)
    animation(ways, data, options.frames).save(f"{options.out}.gif", writer=PillowWriter(fps=12))
    print(f"{options.out}.png, {options.out}.gif")


def walk(run, solvers, steps, n):
    """{solver: (times (S + 1,), states (S + 1, n, 2))}, and held-out data (N, 2)."""
    if run.spec.shape != (2,):
        raise GenkitError(f"data of two dimensions are needed, not of shape {run.spec.shape}")
    ways = {}
    for name in solvers:
        states, times = run.objective.trajectory(
            n, sampler=SOLVERS.build(name, steps=steps), generator=keyed_generator(0, "trajectories")
        )
        points = torch.stack([run.objective.view.decode(state) for state in states])
        ways[name] = times.numpy(), points.numpy()
    return ways, run.dataset.test.take(torch.arange(min(1000, len(run.dataset.test))))[0].numpy()


def panels(ways, data):
    """A panel for each solver, with the data behind, all of one scale."""
    starts = np.concatenate([points[0] for _, points in ways.values()])
    seen = np.concatenate([data, starts])
    low, high = seen.min(0) - 0.2, seen.max(0) + 0.2
    columns = min(2, len(ways))
    rows = -(-len(ways) // columns)
    height = (high - low)[1] / (high - low)[0]
    fig = Figure(figsize=(4.4 * columns, (4.3 * height + 0.6) * rows + 0.3), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).flat
    for ax in axes[len(ways) :]:
        ax.set_axis_off()
    axes = axes[: len(ways)]
    for ax, name in zip(axes, ways, strict=True):
        ax.scatter(*data.T, s=4, color="#dfe2e6", linewidths=0)
        ax.set(
            title=name, xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[]
        )
    return fig, axes


def picture(ways, data):
    """From noise (hollow) to samples (filled)."""
    fig, axes = panels(ways, data)
    for ax, colour, (times, points) in zip(axes, COLOURS, ways.values(), strict=False):
        ax.add_collection(
            LineCollection(list(points.swapaxes(0, 1)), colors=colour, linewidths=0.5, alpha=0.4)
        )
        ax.scatter(*points[0].T, s=6, facecolors="white", edgecolors="#6a737d", linewidths=0.5, zorder=3)
        ax.scatter(*points[-1].T, s=6, color=colour, linewidths=0, zorder=4)
        ax.set_xlabel(f"{len(times) - 1} steps, from t = 0 (hollow) to 1")
    return fig


def animation(ways, data, frames):
    """The same in time; between two states of a solver points move on a straight line."""
    fig, axes = panels(ways, data)
    dots = [ax.scatter([], [], s=7, color=c, linewidths=0) for ax, c in zip(axes, COLOURS, strict=False)]
    title = fig.suptitle("")
    moments = np.concatenate([np.linspace(0, 1, frames), np.ones(frames // 4)])  # and a rest at the end

    def draw(t):
        for dot, (times, points) in zip(dots, ways.values(), strict=True):
            i = min(int(np.searchsorted(times, t, side="right")) - 1, len(times) - 2)
            share = (t - times[i]) / (times[i + 1] - times[i])
            dot.set_offsets((1 - share) * points[i] + share * points[i + 1])
        title.set_text(f"t = {t:.2f}")
        return [*dots, title]

    return FuncAnimation(fig, draw, frames=moments, blit=False)


if __name__ == "__main__":
    main()
