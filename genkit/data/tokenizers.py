"""Text as symbols 0..size-1, and back.

    tokenizer = choose_tokenizer("characters", text)
    ids = tokenizer.encode(text)                                   # (n,) int64
    tokenizer_of(tokenizer.serialize()).decode(ids) == text

A tokenizer is stored as one string that holds all of it (`DataSpec.tokenizer`), so that what was trained with
it can be read without the file or the text that it came from.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy

from genkit.errors import GenkitError, choose
from genkit.files import read_bytes

Ids = Sequence[int] | numpy.ndarray
ASCII = "\n" + "".join(map(chr, range(32, 127)))


class Tokenizer(abc.ABC):
    """size: the number of symbols. kind: the first part of what `serialize` gives."""

    kind: ClassVar[str]
    size: int

    @abc.abstractmethod
    def encode(self, text: str, *, line: int = 1) -> numpy.ndarray:
        """The symbols (n,) int64 of a text.

        line: the number of the text's first line, for errors.
        Raises GenkitError for a text with a character that has no symbol, naming the first one and its place.
        """

    @abc.abstractmethod
    def decode(self, ids: Ids) -> str:
        """The text of symbols. Raises GenkitError for a number outside 0..size-1."""

    def serialize(self) -> str:
        """All of the tokenizer as one string, from which `tokenizer_of` makes it again."""
        return self.kind

    def _checked(self, ids: Ids) -> numpy.ndarray:
        ids = numpy.asarray(ids, dtype=numpy.int64)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if len(wrong):
            raise GenkitError(f"{wrong[0]} is none of the {self.size} '{self.kind}' symbols")
        return ids

    def _outside(self, text: str, at: int, line: int) -> GenkitError:
        """The error for the character at `at`, which has no symbol."""
        before = text[:at]
        place = f"line {line + before.count(chr(10))}, column {at - before.rfind(chr(10))}"
        mending = "tokens=bytes takes any text"
        if not isinstance(self, Characters) or self.kind == "ascii":
            mending += ", tokens=characters all characters of the data"
        what = f"{text[at]!r} (U+{ord(text[at]):04X}) in {place}"
        return GenkitError(f"{what} is none of the {self.size} '{self.kind}' symbols; {mending}")


class Characters(Tokenizer):
    """One symbol a character. characters: the vocabulary; its symbols are in the order of code points."""

    kind = "characters"

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.size = len(self.characters)
        self._codes = _codes(self.characters)
        if not self.size:
            raise GenkitError("a vocabulary needs at least one character")

    def encode(self, text: str, *, line: int = 1) -> numpy.ndarray:
        codes = _codes(text)
        ids = numpy.searchsorted(self._codes, codes).clip(max=self.size - 1)
        outside = self._codes[ids] != codes
        if outside.any():
            raise self._outside(text, int(outside.argmax()), line)
        return ids

    def decode(self, ids: Ids) -> str:
        return self._codes[self._checked(ids)].tobytes().decode("utf-32-le", "surrogatepass")

    def serialize(self) -> str:
        return f"{self.kind}:{self.characters}"


class Ascii(Characters):
    """The fixed vocabulary of 96 symbols: newline (0), then the printable characters 32..126 of ASCII (1..95)."""

    kind = "ascii"

    def __init__(self) -> None:
        super().__init__(ASCII)

    def serialize(self) -> str:
        return self.kind


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8. Bytes that are no UTF-8 decode to U+FFFD.

    In a text, a byte that is no UTF-8 stands as Python's `surrogateescape` has it, so any file is a text.
    """

    kind = "bytes"
    size = 256

    def encode(self, text: str, *, line: int = 1) -> numpy.ndarray:
        try:
            content = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise self._outside(text, error.start, line) from error
        return numpy.frombuffer(content, dtype=numpy.uint8).astype(numpy.int64)

    def decode(self, ids: Ids) -> str:
        return self._checked(ids).astype(numpy.uint8).tobytes().decode("utf-8", "replace")


class Subwords(Tokenizer):
    """What a JSON file of Hugging Face `tokenizers` describes (https://huggingface.co/docs/tokenizers).

    content: of the file. Its padding, truncation and the special tokens it would add are left out. A tokenizer
    may normalize (a lower-case one does); what it cannot hold at all is an error.
    Raises GenkitError for a content that is no tokenizer.
    """

    kind = "subwords"

    def __init__(self, content: str) -> None:
        import tokenizers

        try:
            self._inner = tokenizers.Tokenizer.from_str(content)
            model = json.loads(content)["model"]
        except Exception as error:  # what the library raises has no class of its own
            raise GenkitError(f"no tokenizer of Hugging Face `tokenizers`: {error}") from error
        self.content = content
        self._inner.no_padding()
        self._inner.no_truncation()
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise GenkitError("a tokenizer without a vocabulary")
        self.size = max(vocabulary.values()) + 1
        unknown = model.get("unk_id")  # a number in some models, a token in others
        self._unknown = vocabulary.get(model.get("unk_token"), -1) if unknown is None else unknown

    def encode(self, text: str, *, line: int = 1) -> numpy.ndarray:
        try:
            found = self._inner.encode(text, add_special_tokens=False)
        except Exception as error:  # as above
            raise GenkitError(f"the tokenizer cannot read the text from line {line} on: {error}") from error
        ids = numpy.array(found.ids, dtype=numpy.int64)
        spans = numpy.array(found.offsets, dtype=numpy.int64).reshape(-1, 2)  # of characters, one a symbol
        unknown = spans[ids == self._unknown]
        if len(unknown):
            raise self._outside(text, int(unknown[0, 0]), line)
        depth = numpy.zeros(len(text) + 1, dtype=numpy.int64)
        numpy.add.at(depth, spans[:, 0], 1)
        numpy.add.at(depth, spans[:, 1], -1)
        bare = [int(at) for at in numpy.flatnonzero(depth.cumsum()[:-1] == 0) if not text[at].isspace()]
        if bare:  # characters were dropped, and spans behind them are out of place
            dropped = (
                text.index(c)
                for c in dict.fromkeys(text)
                if not (c.isspace() or self._inner.encode(c, add_special_tokens=False).ids)
            )
            raise self._outside(text, next(dropped, bare[0]), line)
        return ids

    def decode(self, ids: Ids) -> str:
        return self._inner.decode(self._checked(ids).tolist(), skip_special_tokens=False)

    def serialize(self) -> str:
        return f"{self.kind}:{self.content}"


def choose_tokenizer(tokens: str, text: str) -> Tokenizer:
    """The tokenizer that an option names.

    tokens: "ascii", "bytes", "characters" (those of `text`), or the path of a JSON file of Hugging Face
    `tokenizers`. Raises GenkitError for a file that is missing or is no tokenizer.
    """
    if tokens == "characters":
        return Characters(text)
    if tokens in ("ascii", "bytes"):
        return tokenizer_of(tokens)
    path = Path(tokens).expanduser()
    if path.name == tokens and not path.suffix and not path.exists():  # a name rather than a path
        raise choose(tokens, ("ascii", "bytes", "characters", "the path of a tokenizer file"), "tokenizer")
    content = read_bytes(path, "the tokenizer")
    try:
        return Subwords(content.decode())
    except (UnicodeDecodeError, GenkitError) as error:
        raise GenkitError(f"the tokenizer {path} does not parse: {error}") from error


@lru_cache(maxsize=8)
def tokenizer_of(text: str) -> Tokenizer:
    """The tokenizer that `serialize` gave `text` for. Raises GenkitError for a text of no tokenizer."""
    kind, _, content = text.partition(":")
    if kind == "ascii":
        return Ascii()
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        return Characters(content)
    if kind == "subwords":
        return Subwords(content)
    raise choose(kind, ("ascii", "bytes", "characters", "subwords"), "kind of tokenizer")


def _codes(text: str) -> numpy.ndarray:
    return numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
