"""Training an objective: the Lightning module, its options, the EMA, checkpoints, and keyed randomness."""

from genkit.training.fit import check_training, fit
from genkit.training.module import GenerativeModule
from genkit.training.options import TrainerOptions, TrainingOptions

__all__ = ["GenerativeModule", "TrainerOptions", "TrainingOptions", "check_training", "fit"]
