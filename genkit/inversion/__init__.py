"""Inversion of autoregressive flows: token by token, or many tokens at once by fixed-point iteration."""

from genkit.inversion.base import INVERTERS, Conditioner, Inverted, Inverter

__all__ = ["INVERTERS", "Conditioner", "Inverted", "Inverter"]
