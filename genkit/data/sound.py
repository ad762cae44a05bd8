"""Sounds: English digits spoken by espeak-ng in many voices, and built-in tones that need nothing."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from genkit.data.audio import mu_law_decode, mu_law_encode
from genkit.data.base import DATASETS, Dataset, Shown, TensorSplit
from genkit.errors import GenkitError
from genkit.files import write_atomically
from genkit.randomness import keyed_generator
from genkit.types import DataSpec, Generator

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-029")
# Variants of espeak-ng that sound like different people, not like machines.
VOICES = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "adam"),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "boris", "caleb"),
    *("david", "Denis", "Diogo", "ed", "Gene", "Henrique", "iven", "Jacky", "john", "Lee"),
    *("linda", "max", "michel", "norbert", "pablo", "paul"),
)
SLOW, FAST = 150, 210  # words a minute
LOW, HIGH = 20, 80  # espeak-ng's pitch, of 0..99
EVERY = 4  # one voice of so many is held out
LEAD = 80  # samples of silence before a word
PEAK = 0.9
FORM = 1  # of the stored clips: a new one makes old caches void
MENDING = "install it (apt install espeak-ng); the data set 'tones' is built in and needs nothing"


class Sounds(Dataset):
    """Sound (T,): real numbers in [-1, 1], or mu-law levels."""

    def show(self, x: Tensor) -> Shown:
        """Rows x (N, T), as stored or as sampled -> sounds (N, T) in [-1, 1]."""
        levels = self.spec.levels
        return Shown(sounds=x.clamp(-1, 1) if levels is None else mu_law_decode(x, levels))


class Clip(NamedTuple):
    """What espeak-ng is asked to say, and how."""

    word: str
    voice: str
    accent: str
    speed: int
    pitch: int


@DATASETS.register("spoken_digits")
class SpokenDigits(Sounds):
    """English digits spoken by espeak-ng in many voices: 0.64 s at 8 kHz, real-valued, 10 classes.

    Each of `voices` voices says each digit `takes` times, each time in an accent, at a speed (150 to 210 words
    a minute) and at a pitch that are a function of voice, take and digit. Every fourth voice is test, the
    others are train: no voice is in both. With the defaults 2,400 clips to train and 800 to test. A clip
    begins with the word (10 ms before it), has a peak of 0.9, and ends in silence; what is too long is faded out.

    root: folder that keeps the clips, a file for each part, set of options and version of espeak-ng. What is
    there is read without espeak-ng; else it is made, in less than a minute.

    Raises GenkitError when clips must be made and espeak-ng is missing, fails, or lacks a voice; and for numbers
    out of range.
    """

    spec = DataSpec("spoken_digits", (5120,), classes=10, class_names=WORDS, rate=8000)

    def __init__(self, root: str = "data/spoken-digits", voices: int = 40, takes: int = 8) -> None:
        if not EVERY <= voices <= len(VOICES):
            raise GenkitError(f"voices must be from {EVERY} to {len(VOICES)}, not {voices}")
        if takes < 1:
            raise GenkitError(f"takes must be at least 1, not {takes}")
        self.root, self.voices, self.takes = Path(root), voices, takes

    def clips(self, name: Literal["train", "test"]) -> Iterator[Clip]:
        """What is said in one part, in the order of its rows: voice by voice, the ten digits of each take."""
        test = range(EVERY - 1, self.voices, EVERY)
        for voice in (v for i, v in enumerate(VOICES[: self.voices]) if (i in test) == (name == "test")):
            generator = keyed_generator(0, "spoken_digits", voice)
            for _ in range(self.takes):
                for word in WORDS:
                    accent, speed, pitch = (
                        int(torch.randint(low, high, (), generator=generator))
                        for low, high in ((0, len(ACCENTS)), (SLOW, FAST + 1), (LOW, HIGH + 1))
                    )
                    yield Clip(word, voice, ACCENTS[accent], speed, pitch)

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        clips = list(self.clips(name))
        key = hashlib.sha256(repr((FORM, self.spec, clips)).encode()).hexdigest()[:12]
        speaker = Speaker.found()
        kept = sorted(self.root.glob(f"{name}-{key}-*.safetensors"))
        if speaker is not None:
            path = self.root / f"{name}-{key}-espeak-ng-{speaker.version}.safetensors"
        elif kept:
            path = kept[-1]
        else:
            raise GenkitError(f"the data set 'spoken_digits' needs espeak-ng: {MENDING}")
        if speaker is not None and not path.is_file():
            speaker.check(clip.voice for clip in clips)
            return self._split(self._make(speaker, clips, path), clips)
        return self._split(self._read(path, len(clips)), clips)

    def _make(self, speaker: Speaker, clips: list[Clip], path: Path) -> Tensor:
        from rich.console import Console
        from rich.progress import track
        from safetensors.torch import save

        rate, length = self.spec.rate or 0, self.spec.dims
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            spoken = pool.map(lambda clip: fitted(speaker.say(clip, rate), length), clips)
            shown = track(spoken, "speaking", len(clips), console=Console(stderr=True), transient=True)
            x = torch.stack(list(shown))
        write_atomically(path, lambda file: file.write(save({"x": x})))
        return x

    def _read(self, path: Path, rows: int) -> Tensor:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            x = load(path.read_bytes())["x"]
        except (OSError, SafetensorError, KeyError) as error:
            raise GenkitError(f"{path} cannot be read ({error}): remove it, to have it made anew") from error
        if x.shape != (rows, *self.spec.shape) or x.dtype != torch.int16:
            raise GenkitError(f"{path} does not hold {rows} clips: remove it, to have it made anew")
        return x

    @staticmethod
    def _split(x: Tensor, clips: list[Clip]) -> TensorSplit:
        return TensorSplit(x.float() / 2**15, torch.tensor([WORDS.index(clip.word) for clip in clips]))


class Speaker(NamedTuple):
    """The program espeak-ng: its path, its version, the folder of its voices."""

    program: str
    version: str
    voices: Path

    @classmethod
    def found(cls) -> Speaker | None:
        """None where it is not installed. Raises GenkitError for one that does not say what it is."""
        program = shutil.which("espeak-ng")
        if program is None:
            return None
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        said = re.search(r"text-to-speech: ([\w.-]+).*Data at: (.+)", done.stdout)
        if said is None:
            raise GenkitError(f"{program} does not work: {(done.stderr or done.stdout).strip()}")
        return cls(program, said[1], Path(said[2].strip()) / "voices" / "!v")

    def check(self, voices: Iterator[str]) -> None:
        """Raises GenkitError for a voice that is not there: espeak-ng would take another without a word."""
        missing = sorted({voice for voice in voices if not (self.voices / voice).is_file()})
        if missing:
            raise GenkitError(
                f"espeak-ng {self.version} lacks the voices {', '.join(missing)}: it needs version 1.50 or later"
            )

    def say(self, clip: Clip, rate: int) -> numpy.ndarray:
        """The sound of a clip at `rate`, trimmed of silence (below a fiftieth of the peak)."""
        from scipy.signal import resample_poly

        voice = f"{clip.accent}+{clip.voice}"
        command = [self.program, "-v", voice, "-s", str(clip.speed), "-p", str(clip.pitch), "--stdout"]
        done = subprocess.run([*command, clip.word], capture_output=True, check=False)
        header, content = done.stdout[:44], done.stdout[44:]  # of a stream, so that its sizes mean nothing
        if done.returncode or not content:
            reason = done.stderr.decode(errors="replace").strip() or "no sound"
            raise GenkitError(f"`{' '.join(command)} {clip.word}` failed: {reason}")
        x = numpy.frombuffer(content[: len(content) // 2 * 2], "<i2") / 2**15
        had = int.from_bytes(header[24:28], "little")
        x = resample_poly(x, rate // math.gcd(rate, had), had // math.gcd(rate, had))
        (loud,) = numpy.nonzero(abs(x) > 0.02 * abs(x).max())
        return x[loud[0] : loud[-1] + 1] if len(loud) else x


def fitted(x: numpy.ndarray, length: int) -> Tensor:
    """A sound (n,) as 16-bit integers (length,): its peak at 0.9, a lead of silence, faded out or padded."""
    x = x[: length - LEAD] * (PEAK / max(abs(x).max(), 1e-9))
    if len(x) == length - LEAD:
        x = x * numpy.minimum(1, numpy.arange(len(x))[::-1] / LEAD)
    x = numpy.pad(x, (LEAD, length - LEAD - len(x)))
    return torch.from_numpy((x * 2**15).round().astype(numpy.int16))


NOTES = {"C4": 0, "D4": 2, "E4": 4, "F4": 5, "G4": 7, "A4": 9, "B4": 11, "C5": 12, "D5": 14, "E5": 16}


@DATASETS.register("tones")
class Tones(Sounds):
    """Ten notes, C4 to E5, each in a timbre, an envelope and a noise of its own: 64 ms at 4 kHz, 10 classes.

    x(s) = g e(s) sum_h a_h sin(2 pi h f (1 + d) s + p_h) + noise, at s seconds, with harmonics h = 1, 2, 3 of
    the note's frequency f, d ~ N(0, 0.003^2) (a twentieth of a semitone), a_1 = 1, a_2, a_3 ~ U(0, 1/2), phases
    uniform, e an attack of up to 10 ms and an exponential decay, a peak g ~ U(1/2, 1), and noise 0.005 N(0, 1).

    n_train, n_test: rows of the two parts. seed: of both. length: samples a row.
    mu_law: 256 ordered levels instead of real numbers, for discrete objectives and dequantized flows.
    Raises GenkitError for a part without rows or a row of fewer than 16 samples.
    """

    rate = 4000

    def __init__(
        self,
        n_train: int = 4000,
        n_test: int = 1000,
        seed: int = 0,
        length: int = 256,
        mu_law: bool = False,
    ) -> None:
        for key, n, least in (("n_train", n_train, 1), ("n_test", n_test, 1), ("length", length, 16)):
            if n < least:
                raise GenkitError(f"{key} must be at least {least}, not {n}")
        self.sizes, self.seed = {"train": n_train, "test": n_test}, seed
        levels = 256 if mu_law else None
        self.spec = DataSpec(
            "tones", (length,), levels=levels, classes=len(NOTES), class_names=tuple(NOTES), rate=self.rate
        )

    def load(self, name: Literal["train", "test"]) -> TensorSplit:
        generator = keyed_generator(self.seed, "tones", name)
        y = torch.randint(len(NOTES), (self.sizes[name],), generator=generator)
        x = self.draw(y, generator)
        return TensorSplit(x if self.spec.levels is None else mu_law_encode(x).to(torch.uint8), y)

    def draw(self, y: Tensor, generator: Generator = None) -> Tensor:
        """Sounds (n, T) in [-1, 1], float32, of the notes y (n,)."""
        n, length = len(y), self.spec.dims

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator)

        second = torch.arange(length) / self.rate
        semitones = torch.tensor(list(NOTES.values()))[y]
        detune = 1 + 0.003 * torch.randn(n, generator=generator)
        frequency = 261.63 * 2 ** (semitones / 12) * detune
        harmonic = torch.arange(1, 4)
        phase = 2 * math.pi * uniform(3)
        amplitude = torch.cat((torch.ones(n, 1), uniform(2) / 2), 1)
        angle = 2 * math.pi * frequency[:, None, None] * harmonic[:, None] * second + phase[..., None]
        x = (amplitude[..., None] * angle.sin()).sum(1)
        attack, decay = 0.001 + 0.009 * uniform(1), 0.02 + 0.08 * uniform(1)
        x = x * (second / attack).clamp(max=1) * torch.exp(-second / decay)
        x = x / x.abs().amax(1, keepdim=True) * (0.5 + 0.5 * uniform(1))
        return (x + 0.005 * torch.randn(n, length, generator=generator)).clamp(-1, 1)
