"""The processes of a run: which one this is, how they meet, and that only one run at a time writes to a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from genkit.errors import GenkitError
from genkit.files import check_links, check_text, remove_temporaries, write_json

OF_NODE = ("NODE_RANK", "LOCAL_RANK")  # of processes that Lightning starts itself
BY_HAND = ("bash", "interactive")  # names of SLURM jobs whose processes a person starts, as Lightning has it
HOLDER = ".holder.json"  # beside the lock: who has it


def rank() -> int:
    """The number of this process among those of a run: 0 for the one that writes and speaks.

    It is known before processes meet; only whether it is 0 is right everywhere.
    """
    of_all = number("RANK", "SLURM_PROCID")
    return max(number(name) or 0 for name in OF_NODE) if of_all is None else of_all


@contextmanager
def together() -> Iterator[None]:
    """The processes that torchrun or SLURM started meet, for what they do between them (see `parts`); alone where there
    is one. Those that Lightning starts meet when they train. Raises GenkitError when they cannot, or one has ended."""
    size = world()
    if size == 1:
        yield
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    local = number("LOCAL_RANK", "SLURM_LOCALID") or 0
    if local < torch.cuda.device_count():  # another computes on the CPU
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", rank=rank(), world_size=size
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GenkitError(
            f"the {size} processes cannot meet: {reason}; torchrun sets MASTER_ADDR and MASTER_PORT, under SLURM "
            "they are to be exported"
        ) from None
    try:
        with complete(size):
            yield
    finally:
        with suppress(RuntimeError):  # of which one has ended
            distributed.destroy_process_group()


def world() -> int:
    """How many processes torchrun or srun has started."""
    return number("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS") or 1


def alone(command: str) -> None:
    """Raises GenkitError where a command that is for one process was started as several."""
    if world() > 1:
        raise GenkitError(
            f"genkit {command} is for one process, and {world()} were started: leave out torchrun or srun"
        )


def number(*names: str) -> int | None:
    """The first of these variables that a launcher has set; those of SLURM in a process that srun has started as one of
    several. Raises GenkitError for one that is no whole number.

    SLURM_NTASKS is no sign of that: a batch script, which is one process, has it too, as what srun in it would start.
    """
    by_srun = "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in BY_HAND
    for name in names:
        text = os.environ.get(name)
        if not text or (name.startswith("SLURM") and not by_srun):
            continue
        if not text.isdecimal():
            raise GenkitError(
                f"the variable {name}, by which processes are told apart, is no whole number: {text!r}"
            )
        return int(text)
    return None


def parts() -> tuple[int, int]:
    """This process's number among those that have met, and how many: (0, 1) alone."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def meet() -> None:
    """Waits for the other processes that have met, so that they see what one has written. Raises GenkitError where one
    of them has ended."""
    from torch import distributed

    count = parts()[1]
    if count == 1:
        return
    with complete(count):
        distributed.barrier()


@contextmanager
def complete(count: int) -> Iterator[None]:
    """Raises GenkitError where another of `count` processes has ended."""
    try:
        yield
    except RuntimeError as error:
        if not lost(error):
            raise
        reason = str(error).splitlines()[0].split(". ")[0]
        raise GenkitError(f"another of the {count} processes ended ({reason})") from None


def lost(error: Exception) -> bool:
    """Whether torch raises it where a process has ended."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder of a run, or of a comparison, for this process until it ends, however it ends. Only the first
    process of a run takes it.

    Raises GenkitError, which names the holder, when another process has it, for a link out of the folder, and for
    a name that is no UTF-8.
    """
    if rank() > 0:
        yield
        return
    from filelock import FileLock, Timeout

    check_text(folder)
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
        for written in (".", "checkpoints", "snapshots", "figures"):
            remove_temporaries(folder / written)
        yield
    finally:
        with suppress(FileNotFoundError):  # somebody has removed the folder
            (folder / HOLDER).unlink(missing_ok=True)
            # nothing was written, so nothing is left
            if [entry.name for entry in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()
        lock.release()
