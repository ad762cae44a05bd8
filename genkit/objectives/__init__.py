"""Objectives: what the shared backbone is trained for, and how it is then sampled."""

from genkit.objectives.base import OBJECTIVES, Objective

__all__ = ["OBJECTIVES", "Objective"]
