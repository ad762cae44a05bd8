"""Fréchet distance on the features of a pinned extractor."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, DataMetric
from genkit.metrics.extractor import BLOCK, Extractor, load_extractor, pinned
from genkit.types import DataSpec


@METRICS.register("frechet")
class FrechetDistance(DataMetric, FrechetInceptionDistance):
    """Fréchet distance of Gaussians fitted to the features of the data set's pinned classifier.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), by torchmetrics' FrechetInceptionDistance with another network:
    figures are comparable only at an equal `extractor_hash` and equal counts (fewer samples give more).

    update(x, real): x (B, C, H, W) levels; reference rows are real. Statistics are float64.
    spec: chooses the extractor (see PINNED in genkit.metrics.extractor); extractor: another one.

    Heusel et al. 2017 (https://arxiv.org/abs/1706.08500).
    Raises GenkitError where the data have no extractor, and in `compute` for a side with fewer than two rows.
    """

    reads = "samples"
    words = "Fréchet distance"
    priority = 2
    higher_is_better = False

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        """Whether the data have a pinned extractor."""
        return pinned(spec) is not None

    def __init__(self, spec: DataSpec, extractor: Extractor | None = None) -> None:
        extractor = load_extractor(pinned(spec) or spec.name) if extractor is None else extractor
        super().__init__(feature=extractor)
        self.spec, self.extractor_hash = spec, extractor.hash

    def update(self, x: Tensor, real: bool) -> None:
        for block in x.split(BLOCK):
            super().update(block, real)

    def compute(self) -> Tensor:
        for what, count in (
            ("reference rows", self.real_features_num_samples),
            ("samples", self.fake_features_num_samples),
        ):
            if count < 2:
                raise GenkitError(f"a Fréchet distance needs at least two {what}, not {int(count)}")
        return super().compute()
