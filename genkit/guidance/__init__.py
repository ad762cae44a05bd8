"""Guidance: how the conditional and the unconditional prediction become one."""

from genkit.guidance.base import GUIDANCES, Guidance, guided

__all__ = ["GUIDANCES", "Guidance", "guided"]
