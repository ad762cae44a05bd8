"""Rewards: what a sample is worth, for fine-tuning (see `tcsm`).

@REWARDS.register("darkness")
class Darkness(Reward):
    def __call__(self, x: Tensor) -> Tensor:
        return -x.flatten(1).float().mean(1)

Reward.of(lambda x: -x.flatten(1).float().mean(1))      # from Python, any function of the samples
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

from genkit.data.tokenizers import tokenizer_of
from genkit.errors import GenkitError
from genkit.registry import Registry
from genkit.types import DataSpec


class Reward(abc.ABC):
    """A number for each sample, as the data set stores them: x (n, *shape) -> (n,). Higher is better."""

    spec: DataSpec

    @abc.abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def setup(self, spec: DataSpec) -> None:
        """Once, with what the samples are. Raises GenkitError for data that it cannot judge."""
        self.spec = spec

    @staticmethod
    def of(function: Callable[[Tensor], Tensor]) -> Reward:
        """Any function of samples as a reward."""
        return Function(function)


REWARDS = Registry(Reward, "reward", "genkit.objectives")


class Function(Reward):
    """A Python function as a reward: what `Reward.of` gives. It has no name, so no recipe can ask for it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


@REWARDS.register("symbol_share")
class SymbolShare(Reward):
    """The share of a sample's symbols that are among those named.

    symbols: their numbers. characters: of text, the characters themselves ("aeiou"), each one a symbol.
    Raises GenkitError for neither, for characters of data that are no text, and for symbols that do not exist.
    """

    def __init__(self, symbols: list[int] | None = None, characters: str | None = None) -> None:
        if not symbols and not characters:
            raise GenkitError("symbol_share: name the symbols or, of text, the characters")
        self.symbols, self.characters = list(symbols or []), characters or ""
        self.wanted = torch.tensor(self.symbols, dtype=torch.long)

    def setup(self, spec: DataSpec) -> None:
        super().setup(spec)
        wanted = list(self.symbols)
        if self.characters and not spec.text:
            raise GenkitError(f"symbol_share: '{spec.name}' is no text: name symbols, not characters")
        for character in self.characters:
            encoded = tokenizer_of(spec.tokenizer).encode(character)
            if len(encoded) != 1:
                raise GenkitError(
                    f"symbol_share: '{character}' is {len(encoded)} symbols of '{spec.name}', not one"
                )
            wanted += encoded.tolist()
        outside = [symbol for symbol in wanted if not 0 <= symbol < (spec.levels or 0)]
        if outside:
            last = (spec.levels or 0) - 1
            raise GenkitError(f"symbol_share: '{spec.name}' has symbols 0 to {last}, not {outside[0]}")
        self.wanted = torch.tensor(wanted)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.isin(x, self.wanted.to(x.device)).flatten(1).float().mean(1)


@REWARDS.register("brightness")
class Brightness(Reward):
    """The mean grey level of an image, from 0 (black) to 1. Raises GenkitError for other data."""

    def setup(self, spec: DataSpec) -> None:
        super().setup(spec)
        if not spec.image or not spec.levels:
            raise GenkitError(f"brightness: '{spec.name}' is not made of images with levels")

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).float().mean(1) / max(1, (self.spec.levels or 1) - 1)
