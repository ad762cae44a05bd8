"""What is known of a run folder, or of the runs of a comparison, read from its files without building a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from genkit.compare.terminal import Terminal, shown
from genkit.errors import GenkitError, choose
from genkit.recipe import read_environment, read_yaml
from genkit.training.weights import kept_weights, read_checkpoint


def print_info(folder: Path, *, console: Console | None = None) -> None:
    """A run as a table of words and values, a comparison as a table of its runs. Raises GenkitError for neither."""
    console = console or Terminal()
    if (folder / "recipe.yaml").is_file():
        table = Table(title=shown(folder), title_justify="left", show_header=False, box=None)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for word, value in facts(folder):
            table.add_row(word, shown(value))
        console.print(table)
        return
    runs = sorted(path.parent for path in folder.glob("*/recipe.yaml"))
    if not runs:
        beside = sorted(path.parent.name for path in folder.parent.glob("*/recipe.yaml"))
        hint = f"; {choose(folder.name, beside, 'run')}" if beside and not folder.exists() else ""
        raise GenkitError(f"{folder} is neither the folder of a run nor of a comparison{hint}")
    table = Table(title=shown(folder), title_justify="left")
    heads = ("run", "state", "objective", "seed", "parameters", "device")
    for head in heads:
        table.add_column(head, justify="right" if head == "parameters" else "left")
    for run in runs:
        of_run = dict(facts(run))
        table.add_row(shown(run.name), *(shown(of_run.get(head, "")) for head in heads[1:]))
    console.print(table)


def facts(folder: Path) -> Iterator[tuple[str, str]]:
    """Words and values of one run, as far as its files have them."""
    recipe, held = read_yaml(folder / "recipe.yaml"), read_environment(folder)
    training: Mapping[str, Any] = recipe.get("training") or {}
    yield "state", state(folder, held, training)
    if kept := kept_weights(folder):
        yield "checkpoints", ", ".join(kept)
    yield "objective", name_of(recipe.get("objective"))
    yield "data", f"{name_of(recipe.get('data'))} ({shortened(held.get('data_hash'))})"
    if teacher := held.get("teacher"):
        yield "teacher", f"{teacher.get('folder')} ({shortened(teacher.get('hash'))})"
    yield "seed", str(recipe.get("seed", 0))
    if isinstance(held.get("parameters"), int):
        yield "parameters", f"{held['parameters']:,}"
    yield "batch", f"{training.get('batch_size')} rows a step"
    yield "precision", str(training.get("precision"))
    for word in ("device", "threads", "processes"):
        if held.get(word) is not None:
            yield word, str(held[word])
    if held.get("bad_steps") or held.get("rollbacks"):
        yield (
            "bad steps",
            f"{held.get('bad_steps', 0)}, {held.get('rollbacks', 0)} times back to a checkpoint",
        )
    versions = {key: held[key] for key in ("genkit", "python", "torch") if key in held} | held.get(
        "versions", {}
    )
    yield "versions", ", ".join(f"{key} {value}" for key, value in versions.items())
    for word in ("system", "command", "code"):
        if held.get(word) is not None:
            yield word, str(held[word])
    yield "fingerprint", shortened(held.get("fingerprint"))


def state(folder: Path, held: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if held.get("finished"):
        return f"finished: {held['steps']:,} steps in {held['seconds']:.0f} s, {held['tokens']:,} tokens"
    last = folder / "checkpoints" / "last.ckpt"
    step = int(read_checkpoint(last)["global_step"]) if last.is_file() else 0
    return (
        f"not finished: a checkpoint of step {step:,}"
        if step
        else f"not finished: no checkpoint of {training.get('steps')} steps"
    )


def name_of(section: Any) -> str:
    return str(section.get("name")) if isinstance(section, Mapping) else str(section)


def shortened(digest: Any) -> str:
    return str(digest)[:12] if digest else "unknown"
