"""Text as rows of symbols: Python's own documentation, any file, any text set of the hub.

    text --tokenizer--> symbols --cut--> rows (N, length)

Without `pack`, a part is one stream of symbols, cut into rows. With it, a boundary symbol stands before each
document of the stream, so that `(x == spec.boundary).cumsum(-1)` numbers the documents of a row; a document
may run on into the next row, where no boundary stands before it. Either way rows do not overlap, only the
symbols behind the last whole row are dropped, and no row has text of both parts.
"""

from __future__ import annotations

import abc
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from genkit.data.base import DATASETS, SPLITS, Dataset, Shown, TensorSplit
from genkit.data.hub import limited, read_split
from genkit.data.tokenizers import Subwords, Tokenizer, choose_tokenizer, tokenizer_of
from genkit.errors import GenkitError, choose
from genkit.files import read_bytes
from genkit.randomness import keyed_generator
from genkit.types import DataSpec

BLANK = "\n\n"
ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "ß": "ss"})


class Document(NamedTuple):
    """A piece of text with its place, for errors: what it is a part of, and the line that it begins in."""

    text: str
    where: str
    line: int = 1


class Text(Dataset):
    """Rows of `length` symbols. A new one writes `title` and `read`.

    length: symbols of a row, at least 2.
    tokens: "ascii", "bytes", "characters" or the path of a Hugging Face `tokenizers` file
    (see `genkit.data.tokenizers`).
    pack: whether a boundary symbol, the first after the tokenizer's own, stands before each document.

    Raises GenkitError for a text with a character outside the vocabulary, and for one too short for a row.
    """

    title: str  # the spec's name

    def __init__(self, length: int, tokens: str, pack: bool) -> None:
        if length < 2:
            raise GenkitError(f"length must be at least 2 symbols, not {length}")
        self.length, self.tokens, self.pack = length, tokens, pack
        if tokens != "characters":  # those wait for the text; another wrong one is found at once
            self.tokenizer = choose_tokenizer(tokens, "")

    @abc.abstractmethod
    def read(self) -> dict[str, list[Document]]:
        """The documents of "train" and "test" in order, each with what stands behind it unless `pack`."""

    @cached_property
    def documents(self) -> dict[str, list[Document]]:
        return self.read()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        text = "".join(document.text for part in self.documents.values() for document in part)
        return choose_tokenizer(self.tokens, text)

    @property
    def boundary(self) -> int | None:
        return self.tokenizer.size if self.pack else None

    @cached_property
    def symbols(self) -> dict[str, Tensor]:
        """The stream (n,) of each part, boundaries included, at least one row long."""
        found: dict[str, Tensor] = {name: self._stream(name) for name in SPLITS}
        fits = min(map(len, found.values()))
        for name, stream in found.items():
            if len(stream) < self.length:
                what = f"the {name} part of '{self.title}' has {len(stream)} symbols, a row {self.length}"
                longer = "a longer text is needed, or more of it in this part"
                raise GenkitError(f"{what}: {f'length={fits} or less fits' if fits > 1 else longer}")
        return found

    @cached_property
    def spec(self) -> DataSpec:  # type: ignore[override]
        test, fixed = self.symbols["test"], () if self.boundary is None else (self.boundary,)
        characters = 1.0
        if isinstance(self.tokenizer, Subwords):
            symbols = len(test) - (len(self.documents["test"]) if self.pack else 0)
            characters = sum(len(d.text) for d in self.documents["test"]) / symbols
        return DataSpec(
            self.title,
            (self.length,),
            levels=self.tokenizer.size + len(fixed),
            ordered=False,
            tokenizer=self.tokenizer.serialize(),
            characters=characters,
            fixed=fixed,
            boundary=self.boundary,
        )

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        stream = self.symbols[name]
        return TensorSplit(stream[: len(stream) // self.length * self.length].view(-1, self.length))

    def show(self, x: Tensor) -> Shown:
        return show_text(self.spec, x)

    def given(self, prompt: str, task: str | None = None) -> Tensor:
        return given_text(self.spec, prompt, task)

    def _stream(self, name: str) -> Tensor:
        pieces = []
        for document in self.documents[name]:
            try:
                ids = self.tokenizer.encode(document.text, line=document.line)
            except GenkitError as error:
                raise GenkitError(f"{document.where}: {error}") from error
            pieces += [ids] if self.boundary is None else [numpy.array([self.boundary]), ids]
        stream = torch.from_numpy(numpy.concatenate([numpy.empty(0, dtype=numpy.int64), *pieces]))
        levels = self.tokenizer.size + int(self.pack)
        return stream.to(torch.uint8 if levels <= 256 else torch.int32)


@DATASETS.register("pydoc")
class PyDoc(Text):
    """English text that comes with Python, or any text file: rows of symbols, 96 of them (ASCII) by default.

    The text is `pydoc_data.topics`, the language reference that `help()` shows, about 400,000 characters; it
    changes with Python. Documents are its topics, in alphabetical order. A topic that is a section of another
    is left out, as is a paragraph that stands in a longer topic. Typographic quotes and dashes become ASCII
    ones, "ß" becomes "ss", tabs become blanks; other characters become their ASCII parts (NFKD) or are dropped.
    The test part is whole topics, at most `test_share` of the text and none of them more than a fifth of it,
    chosen by a fixed key.

    file: a text file in its place (UTF-8; "\\r\\n" is read as "\\n"; with tokens "bytes" any file, byte for
    byte). The test part is its end, from the blank line (else the line) on that lies nearest to `test_share` of
    it. With `pack`, documents are blocks between blank lines; a block that also stands in the test part is left
    out of the train part.
    length: symbols of a row.
    tokens: "ascii", "bytes", "characters" (those of the text) or the path of a Hugging Face `tokenizers` file.
    pack: whether a boundary symbol stands before each document.

    Raises GenkitError for a file that is missing, empty, or no UTF-8, for a character outside the vocabulary
    (with its line), and for a text too short for one row in each part (with the length that fits).
    """

    def __init__(
        self,
        file: str | None = None,
        length: int = 128,
        tokens: str = "ascii",
        pack: bool = False,
        test_share: float = 0.1,
    ) -> None:
        super().__init__(length, tokens, pack)
        if not 0 < test_share < 1:
            raise GenkitError(f"test_share must lie between 0 and 1, not {test_share}")
        self.test_share = test_share
        self.file = None if file is None else Path(file).expanduser()
        self.title = "pydoc" if self.file is None else f"text:{self.file.name}"
        self._text = None if self.file is None else read_text(self.file, raw=tokens == "bytes")

    def read(self) -> dict[str, list[Document]]:
        if self._text is not None:
            return self._from_file(self._text)
        topics = python_topics()
        test = held_out({name: len(text) for name, text in topics.items()}, self.test_share)
        end = "" if self.pack else BLANK
        documents = {name: Document(text + end, f"topic '{name}'") for name, text in topics.items()}
        return {
            "train": [document for name, document in documents.items() if name not in test],
            "test": [document for name, document in documents.items() if name in test],
        }

    def _from_file(self, text: str) -> dict[str, list[Document]]:
        at = cut(text, self.test_share)
        train = Document(text[:at], str(self.file))
        test = Document(text[at:], str(self.file), 1 + text.count("\n", 0, at))
        if not self.pack:
            return {"train": [train], "test": [test]}
        held = list(blocks(test))
        known = {block.text for block in held}
        return {"train": [block for block in blocks(train) if block.text not in known], "test": held}


@DATASETS.register("hub_text")
class HubText(Text):
    """Texts of a data set on the hub, or of a local folder that Hugging Face `datasets` can read.

    path: name on the hub ("Salesforce/wikitext"), or a folder. config: name of a subset. column: of texts.
    train, test: names of splits, or slices of them ("train[:90%]"); the parts are the publisher's, their texts
    are not compared.
    limit: at most so many texts of each part, chosen by a fixed key.
    length, tokens, pack: as for `pydoc`; documents are the texts, without blank lines around them.

    Raises GenkitError for data that cannot be reached or read, an unknown column or split (with the nearest), a
    column without text, and as `pydoc` does.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        column: str = "text",
        train: str = "train",
        test: str = "test",
        limit: int | None = None,
        length: int = 128,
        tokens: str = "ascii",
        pack: bool = False,
    ) -> None:
        super().__init__(length, tokens, pack)
        if limit is not None and limit < 1:
            raise GenkitError(f"limit must be at least 1, not {limit}")
        if train == test:
            raise GenkitError(
                f"train and test are both '{train}': give slices of it, such as '{train}[:90%]' and '{train}[90%:]'"
            )
        self.path, self.config, self.column, self.limit = path, config, column, limit
        self.splits = {"train": train, "test": test}
        self.title = f"hub:{path}"

    def read(self) -> dict[str, list[Document]]:
        return {name: list(self._texts(name)) for name in SPLITS}

    def _texts(self, name: str) -> Iterator[Document]:
        rows = read_split(self.path, self.config, self.splits[name])
        if self.column not in rows.column_names:
            raise choose(self.column, rows.column_names, f"column in '{self.path}'")
        if getattr(rows.features[self.column], "dtype", "") not in ("string", "large_string"):
            raise GenkitError(
                f"column '{self.column}' of '{self.path}' holds {rows.features[self.column]}, no text"
            )
        end = "" if self.pack else BLANK
        for i, text in enumerate(limited(rows, self.limit, name)[self.column]):
            if text and not text.isspace():
                where = f"text {i} of split '{self.splits[name]}' of '{self.path}'"
                yield Document(text.replace("\r\n", "\n").strip("\n") + end, where)


def show_text(spec: DataSpec, x: Tensor) -> Shown:
    """Rows x (N, length) of symbols as texts; a fixed symbol (a boundary) is a blank line."""
    tokenizer = tokenizer_of(spec.tokenizer)
    texts = []
    for row in x.cpu().long().numpy():
        ends = numpy.flatnonzero(numpy.isin(row, spec.fixed))
        pieces = numpy.split(row, ends)
        texts.append(BLANK.join(tokenizer.decode(piece[i > 0 :]) for i, piece in enumerate(pieces)))
    return Shown(texts=texts)


def given_text(spec: DataSpec, prompt: str, task: str | None = None) -> Tensor:
    """A prompt as a row (length,) int64: its symbols, then -1 where a model is to fill in.

    `[[n]]` in a prompt stands for n unknown symbols. What is behind the prompt is unknown.

        "To be, or"    a beginning        "[[64]] the question"    infilling

    Raises GenkitError for a prompt that is longer than a row or leaves nothing to fill in, for one with a
    character outside the vocabulary, and for a task: text has none.
    """
    if task is not None:
        raise GenkitError(f"'{spec.name}' has one task, to go on with a text; leave task '{task}' out")
    tokenizer, length = tokenizer_of(spec.tokenizer), spec.shape[0]
    pieces: list[numpy.ndarray] = []
    size = 0
    for i, piece in enumerate(re.split(r"\[\[(\d+)\]\]", prompt)):
        if i % 2:
            n = int(piece)
            pieces.append(numpy.full(min(n, length + 1), -1, dtype=numpy.int64))
        else:
            try:
                pieces.append(tokenizer.encode(piece))
            except GenkitError as error:
                raise GenkitError(
                    f"the prompt has a character that the data do not know, leave it out: {error}"
                ) from error
            n = len(pieces[-1])
        size += n
    if size > length:
        raise GenkitError(
            f"the prompt has {size} symbols, a row {length}: shorten it by {size - length + 1} or more, "
            "or train with a greater length"
        )
    row = torch.full((length,), -1)
    row[:size] = torch.from_numpy(numpy.concatenate(pieces))
    if not (row < 0).any():
        raise GenkitError(
            f"the prompt fills all {length} symbols of a row, nothing is left to fill in: shorten it, or write "
            "[[n]] in place of n symbols"
        )
    return row


def python_topics() -> dict[str, str]:
    """The topics of Python's language reference in ASCII, by name, no paragraph in two of them.

    From the longest on, a topic loses the paragraphs (of more than 40 characters) that a longer one has, and is
    left out if that is half of it or more: "if" is a section of "compound".
    Raises GenkitError for a Python without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise GenkitError(
            "this Python comes without pydoc_data.topics; give a text with file=PATH"
        ) from error
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        text = to_ascii(topics[name]).strip()
        paragraphs = {p: " ".join(p.split()) for p in text.split(BLANK)}
        old = {p for p, words in paragraphs.items() if len(words) > 40 and words in seen}
        if 2 * sum(map(len, old)) < len(text):
            kept[name] = BLANK.join(p for p in text.split(BLANK) if p not in old)
        seen.update(paragraphs.values())
    return dict(sorted(kept.items()))


def held_out(sizes: dict[str, int], share: float) -> set[str]:
    """Names of whole documents that make up at most `share` of all, none of them more than a fifth of that.

    They are taken in an order keyed by their number, each that still fits.
    """
    names, room = list(sizes), share * sum(sizes.values())
    most, found = room / 5, set()
    for i in torch.randperm(len(names), generator=keyed_generator(0, "pydoc", "split")).tolist():
        size = sizes[names[i]]
        if size <= min(room, most):
            room -= size
            found.add(names[i])
    return found


def to_ascii(text: str) -> str:
    """Newlines and printable ASCII alone: see `PyDoc`."""
    text = unicodedata.normalize("NFKD", text.translate(ASCII).expandtabs())
    return re.sub(r"[^\n -~]", "", text)


def read_text(path: Path, *, raw: bool) -> str:
    """The text of a file; raw: byte for byte, what is no UTF-8 as `surrogateescape` has it.

    Raises GenkitError for a file that is missing, empty or, unless `raw`, no UTF-8.
    """
    content = read_bytes(path, "the text file")
    if not content.strip():
        raise GenkitError(f"the text file {path} is empty")
    if raw:
        return content.decode("utf-8", "surrogateescape")
    try:
        return content.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line, byte = 1 + content.count(b"\n", 0, error.start), content[error.start]
        raise GenkitError(
            f"the text file {path} is not UTF-8: byte 0x{byte:02x} in line {line} (offset {error.start}); "
            "tokens=bytes takes any file"
        ) from error


def cut(text: str, share: float) -> int:
    """Where the last `share` of a text begins: behind the nearest blank line or, if none is near, line break.

    Near is at most half of the smaller part away.
    """
    target = round(len(text) * (1 - share))
    reach = len(text) * min(share, 1 - share) / 2
    for mark in (BLANK, "\n"):
        found = (text.rfind(mark, 0, target), text.find(mark, target))
        near = [p + len(mark) for p in found if p >= 0 and abs(p + len(mark) - target) <= reach]
        if near:
            return min(near, key=lambda p: abs(p - target))
    return target


def blocks(document: Document) -> Iterator[Document]:
    """The parts of a document between blank lines."""
    line = document.line
    for piece in re.split(r"(\n(?:[ \t\r]*\n)+)", document.text):
        if piece and not piece.isspace():
            yield Document(piece.rstrip("\n"), document.where, line)
        line += piece.count("\n")
