"""What a run is made with: versions, machine, command and code."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import genkit

PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "scipy", "scikit-learn", "safetensors")


def made_with() -> dict[str, Any]:
    """Plain data for environment.json. `code` is the revision that git has of this package, null without one."""
    versions = {name: found for name in PACKAGES if (found := version_of(name)) is not None}
    return {
        "genkit": genkit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "versions": versions | ({"cuda": torch.version.cuda} if torch.version.cuda else {}),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
        "code": revision(Path(genkit.__file__).parent),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


@cache
def sources() -> str:
    """SHA-256 (hex) of this package's modules."""
    folder, found = Path(genkit.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def revision(folder: Path) -> str | None:
    """The commit of a folder that git tracks, with `-dirty` where files have changed; None for another."""
    call = ["git", "-C", str(folder)]
    try:
        tracked = subprocess.run(
            [*call, "ls-files", "__init__.py"], capture_output=True, timeout=10, check=True
        )
        if not tracked.stdout:
            return None
        call += ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
