"""Metrics (torchmetrics classes). A new metric is one class in one file of this package."""

from genkit.metrics.base import METRICS, DataMetric
from genkit.metrics.judge import Judge, Scorer, in_turn

__all__ = ["METRICS", "DataMetric", "Judge", "Scorer", "in_turn"]
