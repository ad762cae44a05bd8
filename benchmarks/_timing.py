"""Timing for the benchmarks: medians of repeated calls, a table, and JSON beside the script's name."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def median_seconds(call: Callable[[], Any], *, repeats: int = 20, warmup: int = 3) -> tuple[float, float]:
    """Median and interquartile range of the seconds of a call, on the CPU or a synchronized GPU."""
    seconds = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
    low, _, high = statistics.quantiles(seconds, n=4)
    return statistics.median(seconds), high - low


def arguments(
    description: str, extend: Callable[[argparse.ArgumentParser], Any] | None = None
) -> argparse.Namespace:
    """`extend` adds arguments of a script's own."""
    parser = argparse.ArgumentParser(description=description)
    if extend is not None:
        extend(parser)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--json", type=Path, help="where to write the figures (default: runs/benchmarks/<script>.json)"
    )
    return parser.parse_args()


def publish(name: str, title: str, rows: list[dict[str, Any]], path: Path | None) -> None:
    """Prints the rows as a table and writes them, with the machine, as JSON."""
    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    table = Table(
        title=f"{title} ({machine['device']}, {machine['threads']} threads, torch {machine['torch']})"
    )
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=110).print(table)
    path = path or Path("runs/benchmarks") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"{path}")
