"""Do class-conditional samples look like the class that was asked for?"""

from __future__ import annotations

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric
from genkit.metrics.extractor import BLOCK, Extractor, load_extractor, pinned
from genkit.types import DataSpec


@METRICS.register("accuracy")
class ClassAccuracy(DataMetric, MulticlassAccuracy):
    """Fraction of class-conditional samples that the pinned classifier assigns to the class asked for.

    update(x, y): x (B, C, H, W) levels, y (B,) the classes. The classifier's own accuracy on test data
    (`extractor.accuracy`) is the figure of perfect samples.

    Ravuri and Vinyals 2019 use the same idea the other way round (https://arxiv.org/abs/1905.10887).
    Raises GenkitError where the data have no extractor, or nothing was measured.
    """

    reads = "labels"
    words = "share of samples of the class asked for"
    higher_is_better = True

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        """Whether the data have a pinned extractor."""
        return pinned(spec) is not None

    def __init__(self, spec: DataSpec, extractor: Extractor | None = None) -> None:
        extractor = load_extractor(pinned(spec) or spec.name) if extractor is None else extractor
        super().__init__(num_classes=extractor.classes, average="micro")
        self.spec, self.extractor, self.extractor_hash = spec, extractor, extractor.hash

    def update(self, x: Tensor, y: Tensor) -> None:
        for block, labels in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
            super().update(self.extractor.predict(block).argmax(1), labels)

    def compute(self) -> Tensor:
        if not self.update_called:
            raise GenkitError("no samples to classify")
        return super().compute()
