"""The coupling of a trained, invertible flow."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling, EncodedData
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator, sample_like
from genkit.tensors import read_tensors, tensors_hash, write_tensors
from genkit.types import Generator, Pair, Source, StandardNormal

ROWS = 4096  # at most so many rows are encoded to measure the scale of the codes


@COUPLINGS.register("distilled")
class Distilled(Coupling):
    """Each data row with the noise that a trained normalizing flow maps to it: x0 = f(x1 + noise eps, y) / s.

    A student trained on it takes straighter paths than one of independent pairs. s is one scalar for the
    whole data set, with s^2 = E[f(.)^2], so that x0 has the source's second moment.
    The teacher sees the true class. Cost: one pass of the teacher; with a cache, `copies` passes of the data set in
    all, and none in training.
    "NFM", https://arxiv.org/abs/2603.09014.

    teacher: a run folder, or the name of an arm of the same comparison.
    noise: standard deviation of eps; null for the teacher's own augmentation (a teacher of dequantized data
        needs none: the data are dequantized already).
    endpoint: the student is led to the clean data (`clean`) or to what the teacher saw (`noised`).
    rescale: divide by s.
    spread: share r of fresh noise in the code, x0 = sqrt(1 - r^2) f(.) / s + r n with n ~ N(0, I): it brings
        the marginal of x0 nearer to the source where the teacher misses it, and makes the pairs looser; at 0
        the paper's coupling, at 1 the independent one. Our addition.
    cache: a folder in which codes are kept, to make them once for several runs; null to make them as rows come.
        It belongs to one teacher, data set and way to read it.
    copies: codes that the cache keeps of each row, of fresh noise each, among which a batch chooses; with each
        it keeps the data as they were read for it, and a batch is paired with those.
    Raises GenkitError for a teacher that gives no code, a cache of another teacher or other data, and one that
    cannot be read.
    """

    keeps_source = False
    needs_teacher = True

    def __init__(
        self,
        teacher: str | None = None,
        noise: float | None = None,
        endpoint: Literal["clean", "noised"] = "clean",
        rescale: bool = True,
        spread: float = 0.0,
        cache: str | None = None,
        copies: int = 1,
    ) -> None:
        if noise is not None and noise < 0:
            raise GenkitError(f"distilled: noise must not be negative, not {noise}")
        if not 0 <= spread <= 1:
            raise GenkitError(f"distilled: spread must be from 0 to 1, not {spread}")
        self.noise, self.endpoint, self.rescale = noise, endpoint, rescale
        if copies < 1 or (copies > 1 and cache is None):
            raise GenkitError(f"distilled: copies are those that a cache keeps, at least 1, not {copies}")
        self.spread, self.cache, self.copies = spread, cache, copies
        self.stored: dict[str, Tensor] | None = None
        self.passes = 1.0 if cache is None else 0.0
        self.sigma, self.scale = noise or 0.0, 1.0

    def check_teacher(self, teacher: Any) -> None:
        super().check_teacher(teacher)
        if not hasattr(teacher, "encode"):
            raise GenkitError(
                "distilled: the teacher must give data a code, as a normalizing flow does; "
                f"{type(teacher).__name__} does not"
            )

    def setup(self, data: EncodedData | None, source: Source, teacher: Any = None) -> None:
        super().setup(data, source, teacher)
        if self.noise is None:
            self.sigma = float(teacher.view.sigma)
        self.skews_classes = not teacher.conditional  # its codes are normal over all classes, not in each
        self.scale, self.stored, self.setup_rows = 1.0, None, 0
        if self.cache is not None:
            if data is None:
                raise GenkitError("distilled: a cache is of a data set: give setup(data, source, teacher)")
            self.stored = self._cached(Path(self.cache) / "codes.safetensors", data)
            self.setup_rows = self.copies * len(data)  # also where an earlier run made them
        if self.rescale and data is not None:
            rows = data.some(ROWS)
            codes = self._codes(data, rows, 0)["x0"] if self.stored is None else self.stored["x0"][rows]
            self.setup_rows += len(rows) if self.stored is None else 0
            self.scale = float(codes.square().mean().sqrt())

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        if self.stored is None:
            code, noised = self._code(x1, y, generator)
            end = noised if self.endpoint == "noised" else x1
        else:
            if index is None:
                raise GenkitError("distilled: a cache is looked up by row numbers: give `index`")
            copy = sample_like(partial(torch.randint, self.copies), index.cpu(), generator)
            code, end = (self.stored[key][index.cpu(), copy].to(x1) for key in ("x0", "x1"))
        x0 = code / self.scale
        if self.spread:
            x0 = (1 - self.spread**2) ** 0.5 * x0 + self.spread * self.source.sample(x0, generator=generator)
        return Pair(x0, end, y, index)

    def _codes(self, data: EncodedData, rows: Tensor, copy: int) -> dict[str, Tensor]:
        """The codes of rows and the ends that go with them, on the CPU."""
        generator = keyed_generator(0, "distilled", *([copy] if copy else []))
        codes, ends = [], []
        for part in rows.split(256):
            x1, y = data.take(part, generator=generator)
            code, noised = self._code(x1, y, generator)
            codes.append(code.cpu())
            ends.append((noised if self.endpoint == "noised" else x1).cpu())
        return {"x0": torch.cat(codes), "x1": torch.cat(ends)}

    def _cached(self, path: Path, data: EncodedData) -> dict[str, Tensor]:
        """The codes (N, copies, ...) in a file, or made and written there. Raises GenkitError for those of others."""
        read, _ = data.take(torch.arange(min(len(data), 64)), generator=keyed_generator(0, "distilled"))
        ours = {
            "teacher": tensors_hash(self.teacher.state_dict()),
            "data": tensors_hash({"encoded": read}) + data.hash,
            "options": json.dumps([self.sigma, self.endpoint, self.copies]),
        }
        if not path.exists():
            copies = [self._codes(data, torch.arange(len(data)), copy) for copy in range(self.copies)]
            found = {key: torch.stack([c[key] for c in copies], 1) for key in ("x0", "x1")}
            write_tensors(path, found, ours)
            return found
        try:
            found, theirs = read_tensors(path)
            if "hash" not in theirs or found.keys() != {"x0", "x1"}:
                raise GenkitError("it does not hold what `distilled` writes")
        except GenkitError as error:
            raise GenkitError(f"{path} is no cache of codes, or corrupt: {error}; remove it") from None
        for key, what in (
            ("teacher", "teacher"),
            ("data", "data set"),
            ("options", "noise, endpoint or copies"),
        ):
            if theirs.get(key) != ours[key]:
                raise GenkitError(
                    f"distilled: the cache {path} belongs to another {what}: choose another `cache`, or remove it"
                )
        return found

    @torch.no_grad()
    def _code(self, x1: Tensor, y: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor]:
        noised = x1
        if self.sigma:
            noised = x1 + self.sigma * StandardNormal().sample(x1, generator=generator)
        if next(self.teacher.parameters()).device != x1.device:
            self.teacher.to(x1.device)
        with torch.autocast(x1.device.type, enabled=False):
            return self.teacher.encode(noised, y), noised
