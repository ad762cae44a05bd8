"""Memory that is free, and the error of what does not fit in it."""

from __future__ import annotations

from pathlib import Path

import torch

from genkit.errors import GenkitError


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system does not say."""
    if device.type == "cuda":  # torch keeps what it has freed, and takes from that first
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def check_memory(what: str, needed: float, device: torch.device, cure: str) -> None:
    """Raises GenkitError, before anything is built, when `what` needs more bytes than are free on a device."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise GenkitError(
            f"{what} take {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free on {device}: {cure}"
        )
