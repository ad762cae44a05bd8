"""What is printed in a terminal."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console
from rich.text import Text

from genkit.errors import printable


class Terminal(Console):
    """Raises BrokenPipeError where the reader of the output has gone; rich would end the program with status 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def shown(text: object) -> Text:
    """As it is: no markup, and nothing that a terminal would obey."""
    return Text(printable(str(text)))
