"""Kills one run many times at random moments, and holds it against a run that nothing happened to, bit for bit.

    python -m tests.training.stress --kills 100          # what `make stress` does

Each life of the run is a process of its own, forked from one that has imported everything, and ends by SIGKILL: at a
random time after its start, some steps after its start, or as soon as it has begun to write a checkpoint. Exit status 0
when weights and losses are those of the run that was never killed, and nothing half-written is left.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RECIPE = """
name: stress
data: moons
model: {width: 16, depth: 2, heads: 2, patch: 1, dropout: 0.1}
objective: {name: flow_matching, coupling: ot}
training: {steps: %d, batch_size: 32, log_every: 1, checkpoint_every: 2, checkpoint_best: loss, ema: 0.9}
trainer: {accelerator: cpu}
"""
WAYS = ("in time", "in steps", "in a checkpoint")
PATIENCE = 600.0  # seconds until a process counts as hung


def life(recipe: str, out: str) -> None:
    """One process that trains, silently."""
    import torch

    from genkit.recipe import Recipe, train

    torch.set_num_threads(1)
    train(Recipe.load(recipe), out)


def killed(process: multiprocessing.process.BaseProcess, out: Path, way: str, chance: random.Random) -> bool:
    """Kills the process; False when it came to its end before."""
    checkpoints, seen, left = out / "checkpoints", None, chance.randint(1, 6)
    now = time.monotonic()
    at = now + (chance.uniform(0, 2) if way == "in time" else PATIENCE)
    while process.is_alive() and time.monotonic() < at:
        if way == "in a checkpoint" and any(checkpoints.glob(".last.ckpt.*.tmp")):
            break
        if way == "in steps" and (checkpoints / "last.ckpt").exists():
            inode = (checkpoints / "last.ckpt").stat().st_ino, (checkpoints / "last.ckpt").stat().st_mtime_ns
            left, seen = left - (inode != seen), inode
            if left < 0:
                time.sleep(chance.uniform(0, 0.02))
                break
        time.sleep(0.0005)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def losses(out: Path) -> list[tuple[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def stress(kills: int, seed: int, folder: Path) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genkit.recipe", "lightning.pytorch", "genkit.objectives", "genkit.data"])
    recipe, whole, parts = folder / "recipe.yaml", folder / "whole", folder / "parts"
    recipe.write_text(RECIPE % (30 * kills))
    process = context.Process(target=life, args=(str(recipe), str(whole)))
    process.start()
    process.join()
    chance, count, within = random.Random(seed), Counter[str](), 0
    start = time.monotonic()
    while sum(count.values()) < kills:
        way = WAYS[sum(count.values()) % len(WAYS)]
        process = context.Process(target=life, args=(str(recipe), str(parts)))
        process.start()
        if not killed(process, parts, way, chance):
            break
        count[way] += 1
        within += any(parts.rglob("*.tmp"))
    process = context.Process(target=life, args=(str(recipe), str(parts)))
    process.start()
    process.join()
    files = [(out / "model.safetensors") for out in (whole, parts)]
    equal = all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes()
    equal_losses, left = equal and losses(whole) == losses(parts), [*parts.rglob("*.tmp")]
    print(
        f"{sum(count.values())} kills ({', '.join(f'{n} {way}' for way, n in count.items())}; {within} left a file "
        f"half written) of a run of {30 * kills} steps in {time.monotonic() - start:.0f} s, seed {seed}: weights "
        f"{'equal' if equal else 'NOT equal'}, losses {'equal' if equal_losses else 'NOT equal'}, "
        f"{len(left)} files left over"
    )
    return 0 if equal and equal_losses and not left and sum(count.values()) == kills else 1


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return stress(given.kills, given.seed, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
