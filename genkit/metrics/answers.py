"""Are the answers to prompts right? Of data with tasks, such as `trimodal`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from genkit.data.base import Dataset, Shown
from genkit.metrics.base import METRICS, Mean
from genkit.metrics.extractor import BLOCK, load_extractor
from genkit.types import DataSpec


class Answers(Mean):
    """The share of prompts whose answer has the right word: write `task`.

    A text must be the word itself; in an image or a sound a pinned classifier must hear or see it (the extractor of
    `digits` or of `spoken_digits`), so that its own mistakes count too: real rows show how many they are.

    update(x, rows, data): samples x (N, *shape) that answer the prompts of the rows (N, *shape) of `data`, in any order
    of tasks. Raises GenkitError for data without the task, and in `compute` where no row was of it.
    """

    reads = "answers"
    needs = "such prompts and answers"
    higher_is_better = True
    task: ClassVar[str]

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return bool(spec.class_names) and {m.name for m in spec.modalities}.issuperset(cls.task.split("-to-"))

    def update(self, x: Tensor, rows: Tensor, data: Dataset) -> None:
        words = data.words(rows, self.task)
        if words:
            said = self.task.endswith("-to-text")
            found = data.words(x, self.task) if said else self.classified(data.pairs(x, self.task)[0])
            self.add(sum(map(str.__eq__, found, words)), len(words))

    def classified(self, shown: Shown) -> list[str]:
        """The word that a classifier finds in each image or sound."""
        name, x = ("digits", shown.images) if shown.images is not None else ("spoken_digits", shown.sounds)
        assert x is not None
        extractor = load_extractor(name)
        classes = torch.cat([extractor.predict(block).argmax(1) for block in x.split(BLOCK)])
        return [self.spec.class_names[i] for i in classes.tolist()]

    def compute(self) -> Tensor:
        return self.mean(f"no rows of the task '{self.task}': more samples are needed")


@METRICS.register("image_to_text")
class ImageToText(Answers):
    """Share of images whose name is given, letter by letter."""

    task = "image-to-text"
    words = "share of images named"


@METRICS.register("sound_to_text")
class SoundToText(Answers):
    """Share of sounds whose name is given, letter by letter."""

    task = "sound-to-text"
    words = "share of sounds named"


@METRICS.register("text_to_image")
class TextToImage(Answers):
    """Share of names for which a classifier sees them in the image that is given."""

    task = "text-to-image"
    words = "share of images of the name asked for"


@METRICS.register("text_to_sound")
class TextToSound(Answers):
    """Share of names for which a classifier hears them in the sound that is given."""

    task = "text-to-sound"
    words = "share of sounds of the name asked for"
