"""Text, images and sound as rows of one vocabulary: digits with their names, spoken digits with their names, text.

    [task] [mark] prompt [answer] [mark] answer [padding] ...      a pair, in both directions
    [text] [answer] [mark] text                                    text alone

The vocabulary is ASCII, grey levels, the codes of a codec of sounds, and the symbols of the layout in brackets, which
are given in every row. A mark says of which modality the symbols behind it are. Names are padded with blanks, which
are modelled, so that a layout says nothing of what stands in it.

After Tri-modal masked diffusion, https://arxiv.org/abs/2602.21472.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.data.audio import read_wav
from genkit.data.base import DATASETS, Codec, Dataset, Shown, TensorSplit
from genkit.data.digits import Digits
from genkit.data.sound import WORDS
from genkit.data.text import PyDoc, given_text
from genkit.data.tokenizers import Ascii
from genkit.errors import GenkitError, a, choose
from genkit.types import DataSpec, Modality

KINDS = ("text", "image", "sound")
PAIRS = ("text-to-image", "image-to-text", "text-to-sound", "sound-to-text")
FILES = {"image": "a PNG file", "sound": "a WAV file"}
SHAPE, LEVELS = Digits.spec.shape, 17
BLOCK = 256  # sounds that are encoded or decoded at once
SILENCE = 0.02  # of a sound's peak, that may be cut off


@DATASETS.register("trimodal")
class Trimodal(Dataset):
    """Handwritten digits and spoken ones, each with its name in both directions, and text, as symbols.

    Tasks: text-to-image, image-to-text, text-to-sound, sound-to-text, and text, to go on with a text. Images are
    `digits`, 64 symbols each, text is `pydoc`; the test part has their test rows, each once.

    codec: the run folder of a codec of sounds; null leaves sound out. (From Python: a `Codec`.)
    sounds: the labelled sounds, those that the codec was trained on. Their names are the classes'.
    mix: shares of image, sound and text in the train part, equal by default, such as {image: 2, text: 1}; a kind that
    is not named has none. No row is left out; those of a kind that has too few for its share come again.

    Raises GenkitError for an unknown kind in `mix`, shares that are none, and a codec that is missing or of other
    sounds.
    """

    def __init__(
        self,
        codec: Codec | str | None = None,
        sounds: Dataset | str = "spoken_digits",
        mix: dict[str, float] | None = None,
    ) -> None:
        if isinstance(codec, str):
            raise GenkitError(f"the codec {codec} is a run folder, which a recipe loads: give a Codec here")
        if mix is None:
            mix = dict.fromkeys(KINDS if codec else KINDS[:2], 1.0)
        for kind, share in mix.items():
            if kind not in KINDS:
                raise choose(kind, KINDS, "kind of rows for mix")
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < math.inf:
                raise GenkitError(f"trimodal: mix.{kind} must be a share from 0 up, not {share!r}")
        self.mix = {kind: mix[kind] for kind in KINDS if mix.get(kind)}
        if not self.mix:
            raise GenkitError("trimodal: the shares of mix are all 0")
        self.codec, self.tokenizer = codec, Ascii()
        self.sources: dict[str, Dataset] = {"image": Digits()} if "image" in self.mix else {}
        self.names: dict[str, tuple[str, ...]] = {"image": WORDS} if "image" in self.mix else {}
        self.lengths = {"image": 64, "text": 0}
        if "sound" in self.mix:
            self.sources["sound"] = source = DATASETS.build(sounds)
            self.names["sound"] = source.spec.class_names
            self.lengths["sound"] = checked(codec, source.spec).frames
        self.lengths["text"] = max((len(name) for names in self.names.values() for name in names), default=0)
        self.length = 4 + self.lengths["text"] + max(self.lengths.values())
        self.text = PyDoc(length=self.length - 3)
        if "text" in self.mix:
            self.sources["text"] = self.text

    # --- the vocabulary and the layout --------------------------------------------------------------------

    @property
    def tasks(self) -> tuple[str, ...]:
        kinds = {"text", *self.sources}
        pairs = (task for task in PAIRS if kinds.issuperset(sides(task)))
        return (*pairs, *(["text"] if "text" in self.sources else []))

    @cached_property
    def spec(self) -> DataSpec:  # type: ignore[override]
        sizes = {"text": self.tokenizer.size}
        if "image" in self.mix:
            sizes["image"] = LEVELS
        if "sound" in self.mix and self.codec is not None:
            sizes["sound"] = self.codec.size
        size = sum(sizes.values())
        ends = [*accumulate(sizes.values())]
        modalities = tuple(
            Modality(kind, size + 2 + i, end - sizes[kind], end)
            for i, (kind, end) in enumerate(zip(sizes, ends, strict=True))
        )
        levels = size + 2 + len(modalities) + len(self.tasks)
        return DataSpec(
            "trimodal",
            (self.length,),
            levels=levels,
            class_names=WORDS if all(names == WORDS for names in self.names.values()) else (),
            ordered=False,
            rate=self.sources["sound"].spec.rate if "sound" in self.mix else None,
            fixed=tuple(range(size, levels)),  # answer, padding, marks, tasks
            answer=size,
            modalities=modalities,
        )

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        return {modality.name: modality for modality in self.spec.modalities}

    def symbol(self, task: str) -> int:
        """What the rows of a task begin with."""
        return self.spec.fixed[2 + len(self.modalities) + self.tasks.index(task)]

    def lay(self, task: str, prompt: Tensor | None, answer: Tensor) -> Tensor:
        """Rows (N, length) of contents (N, n), numbered from 0 in their modality; -1, for what is free, stays."""
        asked, answered = sides(task)

        def marked(kind: str, x: Tensor) -> tuple[Tensor, Tensor]:
            modality = self.modalities[kind]
            return column(modality.mark, x), torch.where(x < 0, -1, x.long() + modality.first)

        end, padding, *_ = self.spec.fixed
        before = () if prompt is None else marked(asked, prompt)
        pieces = (column(self.symbol(task), answer), *before, column(end, answer), *marked(answered, answer))
        row = torch.cat(pieces, dim=1)
        return F.pad(row, (0, self.length - row.shape[1]), value=padding)

    def contents(self, x: Tensor, task: str, kind: str) -> Tensor:
        """The contents (N, n) of a kind in rows (N, length) of a task: the inverse of `lay`."""
        asked, _ = sides(task)
        if not asked:
            start, count = 3, self.text.length
        else:
            start, count = 2 if kind == asked else 4 + self.lengths[asked], self.lengths[kind]
        return x[:, start : start + count] - self.modalities[kind].first

    # --- rows ---------------------------------------------------------------------------------------------

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        parts = {kind: self.rows(kind, name) for kind in self.mix}
        if name == "train":
            unit = max(len(rows) / self.mix[kind] for kind, rows in parts.items())
            counts = {kind: torch.arange(round(unit * share)) for kind, share in self.mix.items()}
            parts = {kind: rows[counts[kind] % len(rows)] for kind, rows in parts.items()}
        return TensorSplit(torch.cat([*parts.values()]).int())

    def rows(self, kind: str, part: Literal["train", "test"]) -> Tensor:
        """All rows (N, length) of a kind: text, or pairs, each in one direction and then in the other."""
        source = self.sources[kind].split(part)
        x, y = source.take(torch.arange(len(source)))
        if y is None:
            return self.lay("text", None, x)
        content, names = self.encode(kind, x), self.spelled(kind)[y]
        there, back = self.lay(f"text-to-{kind}", names, content), self.lay(f"{kind}-to-text", content, names)
        return torch.stack((there, back), dim=1).flatten(0, 1)

    def encode(self, kind: str, x: Tensor) -> Tensor:
        """Images or sounds as their data set has them -> contents (N, n)."""
        if kind == "image":
            return x.flatten(1)
        assert self.codec is not None
        return torch.cat([self.codec.encode(block).cpu() for block in x.split(BLOCK)])

    def spelled(self, kind: str) -> Tensor:
        """The names of the classes as contents (classes, n)."""
        padded = (name.ljust(self.lengths["text"]) for name in self.names[kind])
        return torch.from_numpy(numpy.stack([self.tokenizer.encode(name) for name in padded]))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the sources, the codec's weights, the mix, and what the symbols mean.

        What codes are a function of is in it in their place: they are rounded, and a number at the edge may go
        either way with the number of threads.
        """
        sources = [source.hash for source in self.sources.values()]
        content = (self.spec, self.mix, sources, self.codec.hash if self.codec else None)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    # --- for a person -------------------------------------------------------------------------------------

    def show(self, x: Tensor) -> Shown:
        """The answers of rows x (N, length): all of one form where they are of one task."""
        found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        tasks = {self.symbol(task): task for task in self.tasks}
        for row in x.cpu():
            if int(row[0]) not in tasks:
                raise GenkitError(f"a row of 'trimodal' begins with a task, not with symbol {int(row[0])}")
            task = tasks[int(row[0])]
            found[sides(task)[1]] += self.contents(row[None], task, sides(task)[1])
        return Shown(
            images=torch.stack(found["image"]).view(-1, *SHAPE) if found["image"] else None,
            levels=LEVELS,
            texts=[self.read(symbols) for symbols in found["text"]] or None,
            sounds=self.hear(torch.stack(found["sound"])) if found["sound"] else None,
        )

    def rows_of(self, x: Tensor, task: str) -> Tensor:
        """Those of the rows x (N, length) that are of a task."""
        if task not in self.tasks:
            raise choose(task, self.tasks, "task")
        return x[x[:, 0] == self.symbol(task)].cpu()

    def words(self, x: Tensor, task: str) -> list[str]:
        return [self.read(symbols) for symbols in self.contents(self.rows_of(x, task), task, "text")]

    def pairs(self, x: Tensor, task: str) -> tuple[Shown, list[str]]:
        """Images or sounds with their names; of the task text its texts, twice."""
        rows, texts = self.rows_of(x, task), self.words(x, task)
        kind = next((kind for kind in sides(task) if kind in ("image", "sound")), "text")
        if kind == "text":
            return Shown(texts=texts), texts
        contents = self.contents(rows, task, kind)
        if kind == "image":
            return Shown(images=contents.view(-1, *SHAPE), levels=LEVELS), texts
        return Shown(sounds=self.hear(contents)), texts

    def hear(self, codes: Tensor) -> Tensor:
        """Codes (N, frames) -> sounds (N, T)."""
        assert self.codec is not None
        found = [self.codec.decode(block).cpu() for block in codes.split(BLOCK) if len(block)]
        return torch.cat([torch.zeros(0, *self.codec.spec.shape), *found])

    def read(self, symbols: Tensor) -> str:
        """Contents (n,) as text, without the blanks behind it."""
        return self.tokenizer.decode(symbols.numpy()).rstrip(" ")

    # --- prompts ------------------------------------------------------------------------------------------

    def given(self, prompt: str, task: str | None = None) -> Tensor:
        """A prompt as a row (length,) with -1 in the place of the answer.

        text-to-image, text-to-sound   "seven" or "7": the name of a class, or its number
        image-to-text, sound-to-text   the path of a PNG or WAV file, or "test:12" for a row of the test part
        text                           a text to go on with; [[n]] stands for n unknown symbols

        Raises GenkitError for no task or an unknown one, a name that is none, and a file that does not fit.
        """
        if task is None:
            raise GenkitError(f"'trimodal' has several tasks: give one of {', '.join(self.tasks)} (--task)")
        if task not in self.tasks:
            raise choose(task, self.tasks, "task")
        asked, answered = sides(task)
        if not asked:
            return self.lay(task, None, given_text(self.text.spec, prompt)[None])[0]
        if asked == "text":
            content = self.spelled(answered)[self.named(prompt, answered)]
        else:
            content = self.encode(asked, self.found(prompt, asked)[None])[0]
        free = torch.full((1, self.lengths[answered]), -1)
        return self.lay(task, content[None], free)[0]

    def named(self, prompt: str, kind: str) -> int:
        """The class that a prompt names, or gives the number of."""
        names = [name.lower() for name in self.names[kind]]
        word = prompt.strip().lower()
        if word.isdecimal() and int(word) < len(names):
            return int(word)
        if word not in names:
            raise choose(prompt, names, f"name of {a(kind)}")
        return names.index(word)

    def found(self, prompt: str, kind: str) -> Tensor:
        """The image or sound that a prompt names, as its data set has it: a test row, or a file."""
        source = self.sources[kind]
        row = re.fullmatch(r"test:(\d+)", prompt.strip())
        if row:
            if int(row[1]) >= len(source.test):
                raise GenkitError(f"the test part has the {kind}s 0 to {len(source.test) - 1}, not {row[1]}")
            return source.test.take(torch.tensor([int(row[1])]))[0][0]
        if not prompt.strip():
            raise GenkitError(
                f"the prompt of this task is {FILES[kind]}, or test:N for a row of the test part"
            )
        if kind == "image":
            return read_picture(prompt)
        rate = source.spec.rate
        assert rate is not None
        return cut(read_wav(prompt, rate), source.spec.dims, rate, prompt)


def sides(task: str) -> tuple[str, str]:
    """What is asked and what is answered: "image-to-text" -> image, text; "text" -> nothing, text."""
    asked, _, answered = task.rpartition("-to-")
    return asked, answered


def column(symbol: int, like: Tensor) -> Tensor:
    return torch.full((len(like), 1), symbol)


def checked(codec: Codec | None, sounds: DataSpec) -> Codec:
    """The codec, if it is there and of such sounds."""
    if codec is None:
        raise GenkitError("trimodal: mix has sound, which needs a codec: the run folder of an autoencoder")
    ours, theirs = ((spec.shape, spec.levels, spec.rate) for spec in (sounds, codec.spec))
    if ours != theirs:
        raise GenkitError(
            f"trimodal: the codec was trained on '{codec.spec.name}', whose (shape, levels, rate) are {theirs}; "
            f"those of '{sounds.name}' are {ours}"
        )
    if not sounds.class_names:
        raise GenkitError(f"trimodal: the classes of '{sounds.name}' have no names")
    return codec


def read_picture(path: str) -> Tensor:
    """A picture file as levels (1, 8, 8), bright on dark; of a larger square one the means of its blocks.

    Raises GenkitError for a file that is no picture, or no square of a multiple of 8 pixels.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            grey = numpy.array(picture.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all are Pillow's
        reason = getattr(error, "strerror", None) or "it is no picture, or damaged"
        raise GenkitError(f"cannot read the picture {path}: {reason}") from None
    (height, width), size = grey.shape, SHAPE[1]
    if height != width or height % size:
        raise GenkitError(
            f"{path} is {width}x{height} pixels: a picture is {size}x{size}, or a multiple of it such as "
            f"{4 * size}x{4 * size}"
        )
    blocks = torch.from_numpy(grey).double().view(size, height // size, size, height // size)
    return (blocks.mean((1, 3)) * ((LEVELS - 1) / 255)).round().long()[None]


def cut(sound: Tensor, length: int, rate: int, path: str) -> Tensor:
    """A sound (n,) of `length` samples: silence is added, or cut off. Raises GenkitError for more than silence."""
    if bool((sound[length:].abs() > SILENCE * sound.abs().max()).any()):
        raise GenkitError(
            f"{path} has {len(sound) / rate:.2f} s of sound, a row {length / rate:.2f} s: cut it, such as with "
            f"`sox {path} cut.wav trim 0 {length / rate:.2f}`"
        )
    return F.pad(sound[:length], (0, max(0, length - len(sound))))
