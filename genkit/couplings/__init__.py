"""Couplings: which noise goes with which data."""

from genkit.couplings.base import COUPLINGS, Coupling

__all__ = ["COUPLINGS", "Coupling"]
