"""Data sets, their views, and keyed batches. A new data set is one class in one file of this package."""

from genkit.data.base import DATASETS, Dataset, Encoded, KeyedBatches, Split, TensorSplit
from genkit.data.views import Continuous, Symbols

__all__ = [
    "DATASETS",
    "Continuous",
    "Dataset",
    "Encoded",
    "KeyedBatches",
    "Split",
    "Symbols",
    "TensorSplit",
]
