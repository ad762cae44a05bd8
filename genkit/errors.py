"""The one exception that means "the user can mend this", and the words that help them do it."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class GenkitError(ValueError):
    """Bad input: the message says what was wrong and the nearest right thing.

    The command line prints it without a traceback and exits with status 2.
    """


class Terminated(Exception):
    """SIGTERM, or another signal but Ctrl-C, ended a training; says what is left of it. The command line exits with
    status 143."""


def stopped_by(number: int, left: str) -> BaseException:
    """What the signal that ended a training is raised as; left: what it says of what was trained."""
    return KeyboardInterrupt(left) if number == signal.SIGINT else Terminated(left)


@contextmanager
def within(where: str) -> Iterator[None]:
    """A GenkitError raised here says where, before its message."""
    try:
        yield
    except GenkitError as error:
        raise GenkitError(f"{where}: {error}") from None


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[:1].lower() in set("aeiou") else f"a {noun}"


def choose(name: object, names: Iterable[str], what: str) -> GenkitError:
    """The error for an unknown `name`: names the closest valid one and lists all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return GenkitError(f"no {what} '{name}'{hint} (one of: {', '.join(names) or 'none'})")


def too_large(error: Exception) -> bool:
    """Whether an error is that of an allocation; torch raises several kinds."""
    words = (
        *("can't allocate memory", "out of memory"),
        *("calculation overflowed", "Overflow when unpacking", "without overflow"),
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def printable(text: str) -> str:
    """Text of a file that somebody else wrote, for a terminal: no control characters but line breaks."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
