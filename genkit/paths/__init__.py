"""Paths between coupled samples, schedules of discrete diffusion, and the distributions of training times."""

from genkit.paths.base import PATHS, SCHEDULES, Path, Schedule
from genkit.paths.times import TIMES, Times

__all__ = ["PATHS", "SCHEDULES", "TIMES", "Path", "Schedule", "Times"]
