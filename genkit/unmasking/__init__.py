"""Unmasking: in which order, and how many at a time, a discrete model's symbols are revealed."""

from genkit.unmasking.base import UNMASKERS, Noise, Stepwise, Unmasked, Unmasker

__all__ = ["UNMASKERS", "Noise", "Stepwise", "Unmasked", "Unmasker"]
