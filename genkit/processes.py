"""The processes of a run: which one this is, and that only one run at a time writes to a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from genkit.errors import GenkitError
from genkit.files import check_links, write_json

OF_ALL = (
    "RANK",
    "SLURM_PROCID",
)  # of torchrun and SLURM; else Lightning starts processes, and numbers them by
OF_NODE = ("NODE_RANK", "LOCAL_RANK")
HOLDER = ".holder.json"  # beside the lock: who has it


def rank() -> int:
    """The number of this process among those of a run: 0 for the one that writes and speaks.

    It is known before processes meet; only whether it is 0 is right everywhere.
    """
    for name in OF_ALL:
        if name in os.environ and (name != "SLURM_PROCID" or "SLURM_JOB_ID" in os.environ):
            return int(os.environ[name])
    return max(int(os.environ.get(name, "0")) for name in OF_NODE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder for this process until it ends, however it ends. Only the first process of a run takes it.

    Raises GenkitError, which names the holder, when another process has it, and for a link out of the folder.
    """
    if rank() > 0:
        yield
        return
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_links(folder)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        try:
            who = "process {pid} on {host}, since {since}".format_map(
                json.loads((folder / HOLDER).read_text())
            )
        except (OSError, ValueError, KeyError, TypeError):  # it has taken the lock just now
            who = "another process"
        raise GenkitError(
            f"{folder} is being written by {who}: wait until it ends, or choose another --out"
        ) from None
    except OSError as error:
        raise GenkitError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        for left in (
            *folder.glob(".*.tmp"),
            *folder.glob("checkpoints/.*.tmp"),
        ):  # of a process that was killed
            left.unlink(missing_ok=True)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        if [entry.name for entry in folder.iterdir()] == [".lock"]:  # nothing was written, so nothing is left
            (folder / ".lock").unlink()
            folder.rmdir()
        lock.release()
