"""Answers to prompts in a report, of data with several tasks: images and sounds with their words."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genkit.compare.evaluate import shown_as
from genkit.compare.figures import samples_file, steps_label, tensors
from genkit.compare.pictures import draw_grid


class Item(NamedTuple):
    """An image (PNG), a sound (WAV), both in Base64, or nothing, with words."""

    text: str
    image: str = ""
    sound: str = ""


class Answered(NamedTuple):
    """The answers of an arm by task, made in some number of steps."""

    arm: str
    steps: str
    tasks: dict[str, list[Item]]


def answered(report: Any, out: Path) -> list[Answered]:
    """What each arm answers with the most steps, of the first seed; empty for data without tasks."""
    found = []
    for arm, content in report["arms"].items():
        run = content["runs"][0]
        held, words = tensors(samples_file(content, out)), run.get("texts") or {}
        point = run["points"][-1]
        name = f"{shown_as(point)}."
        tasks = {
            key.removeprefix(name): items(texts, held, key, report["data"].get("rate"))
            for key, texts in words.items()
            if key.startswith(name) and texts
        }
        found += [Answered(arm, steps_label(point), tasks)] if tasks else []
    return found


def items(texts: list[str], held: Any, key: str, rate: int | None) -> list[Item]:
    images, sounds = held.get(f"{key}.images"), held.get(f"{key}.sounds")
    if images is not None:
        return [Item(text, image=png(x)) for text, x in zip(texts, images, strict=True)]
    if sounds is not None and rate is not None:
        return [Item(text, sound=wav(x, rate)) for text, x in zip(texts, sounds, strict=True)]
    return [Item(text) for text in texts]


def png(x: Any) -> str:
    """An image (C, H, W) in [0, 1] as a PNG file in Base64."""
    buffer = io.BytesIO()
    draw_grid((255 * torch.as_tensor(x)).round()[None], 256, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def wav(x: Any, rate: int) -> str:
    """A sound (T,) as a WAV file in Base64."""
    from genkit.data.audio import write_wav

    buffer = io.BytesIO()
    write_wav(buffer, torch.as_tensor(x), rate)
    return base64.b64encode(buffer.getvalue()).decode()
