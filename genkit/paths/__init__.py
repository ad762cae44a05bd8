"""Paths between source and data: x_t = alpha_t x1 + sigma_t x0."""

from genkit.paths.base import PATHS, Path
from genkit.paths.times import TIMES, Times

__all__ = ["PATHS", "TIMES", "Path", "Times"]
