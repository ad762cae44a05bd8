"""Files that are read or named in an error, and written whole or left as they were."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from genkit.errors import GenkitError


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a file that an error calls `what`.

    Raises GenkitError for a file that is missing (naming the nearest one beside it), a folder, a device or pipe, and
    what cannot be read.
    """
    try:
        return ending(path).read_bytes()
    except IsADirectoryError:
        raise GenkitError(f"{what} {path} is a folder; give a file in it") from None
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise GenkitError(f"{what} {path} is missing: there is no folder {path.parent}") from None
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        hint = f"; did you mean '{path.with_name(close[0])}'?" if close else ""
        raise GenkitError(f"{what} {path} is missing{hint}") from None
    except OSError as error:
        raise GenkitError(f"{what} {path} cannot be read: {error.strerror or error}") from error


def ending(path: Path) -> Path:
    """The same path. Raises OSError for a device or a pipe, which may have no end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError("it is no file, but a device or a pipe")
    return path


def temporary_of(path: Path) -> Path:
    """What this process writes before it takes the place of `path`: a file, or a folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Removes what processes that are no more here left of `temporary_of` in a folder; a link, not where it leads."""
    for path in folder.glob(".*.tmp"):
        named = re.fullmatch(r"\..+\.([1-9][0-9]{,8})\.tmp", path.name)
        if named is None or runs(int(named[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def runs(pid: int) -> bool:
    """Whether another process of this number runs on this machine; an earlier one may have had that of this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return pid != os.getpid()


def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Calls `write` with a new binary file, then puts it in the place of `path`, or leaves `path` as it was.

    Raises GenkitError, which says why, such as a full disk.
    """
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # new, so never what a link leads to
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise GenkitError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """Why a file could not be written. torch.save turns a full disk into a RuntimeError, with the cause behind it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error)


def sync_folder(folder: Path) -> None:
    """Makes names in it last through a loss of power, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link_atomically(path: Path, name: Path) -> None:
    """Gives a file a second name in the same folder, in the place of what had it; a copy where there are no links."""
    temporary = temporary_of(name)
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(name)
    except OSError as error:
        raise GenkitError(f"cannot write {name}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def free_name(name: object) -> bool:
    """Whether a folder of that name lies just where it is made."""
    return (
        isinstance(name, str)
        and Path(name).name == name.strip() != ""
        and name.isprintable()
        and name[0] != "."
    )


def check_text(path: Path) -> None:
    """Raises GenkitError for a path that is no UTF-8, which cannot be logged or told."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise GenkitError(f"cannot write {path}: its name is no UTF-8") from None


def check_links(folder: Path) -> None:
    """Raises GenkitError for a symbolic link in `folder` that leads out of it: what is written there would land
    elsewhere."""
    root = folder.resolve()
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise GenkitError(
                f"{path} is a symbolic link out of the folder, to {path.resolve()}: remove it, or choose another --out"
            )
