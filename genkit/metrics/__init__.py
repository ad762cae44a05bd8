"""Metrics (torchmetrics classes). A new metric is one class in one file of this package."""

from genkit.metrics.base import METRICS, DataMetric, floor

__all__ = ["METRICS", "DataMetric", "floor"]
