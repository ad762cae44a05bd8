"""The standard streams: what is said beside the work does not end it."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any, cast


class Aside:
    """A stream for what is said beside the work, such as how far it is: where that cannot be written, it is let go."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except OSError:
            let_go(self.stream)
        return len(text)

    def flush(self) -> None:
        let_go(self.stream)


def let_go(stream: IO[str]) -> None:
    """Writes what a stream still holds; where that cannot be, takes neither it nor anything that follows."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def hung_up(stream: IO[str]) -> bool:
    """Whether it is that of a terminal which is no more."""
    try:
        os.get_terminal_size(stream.fileno())
        return False
    except OSError as error:
        return error.errno == errno.EIO


@contextmanager
def standard() -> Iterator[None]:
    """stdout that can be written to where it was closed, and stderr as an `Aside`; both escape what they cannot
    encode."""
    with ExitStack() as nowhere:
        out, aside = (
            stream or nowhere.enter_context(open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr)
        )
        for stream in (out, aside):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        with redirect_stdout(out), redirect_stderr(cast(IO[str], Aside(aside))):
            yield
