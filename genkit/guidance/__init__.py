"""Guidance: how the conditional prediction and a weaker one, such as the unconditional, become one."""

from genkit.guidance.base import GUIDANCES, Guidance, Guided, build_guidance, in_effect

__all__ = ["GUIDANCES", "Guidance", "Guided", "build_guidance", "in_effect"]
