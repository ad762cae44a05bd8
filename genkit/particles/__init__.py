"""Particles: weighted samples along the way from noise to data, for targets that no model was trained on."""

from genkit.particles.base import TARGETS, Density, Model, Target, differentiated
from genkit.particles.likelihood import log_normalizer, log_prob
from genkit.particles.moves import MOVES, Move
from genkit.particles.resamplers import RESAMPLERS, Resampler
from genkit.particles.sampler import FeynmanKac, Particles

__all__ = [
    "MOVES",
    "RESAMPLERS",
    "TARGETS",
    "Density",
    "FeynmanKac",
    "Model",
    "Move",
    "Particles",
    "Resampler",
    "Target",
    "differentiated",
    "log_normalizer",
    "log_prob",
]
