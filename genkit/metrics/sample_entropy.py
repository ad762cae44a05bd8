"""How varied the symbols within a sample are."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.metrics.base import METRICS, Mean, flat
from genkit.types import DataSpec


@METRICS.register("sample_entropy")
class SampleEntropy(Mean):
    """Entropy of the symbols within a sample, in nats: the mean over samples of -sum_k (L_k / L) log (L_k / L).

    L_k: how often symbol k stands in a sample of L symbols, fixed ones (boundaries) left out. It shows collapse, which
    a generative perplexity hides: samples that repeat themselves are probable, and have a low entropy. Neither end is
    better; real text says where a good model is. It depends on the length of a sample.

    Zheng et al. 2024, Masked Diffusion Models are Secretly Time-Agnostic (https://arxiv.org/abs/2409.02908), section 4.
    Raises GenkitError for data that are no symbols, rows of another shape, and in `compute` for no rows.
    """

    reads = "rows"
    words = "sample entropy"
    needs = "symbols without an order"
    higher_is_better = None

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.levels is not None and not spec.ordered and not spec.modalities

    def update(self, x: Tensor) -> None:
        symbols = flat(x, self.spec).long()
        counts = symbols.new_zeros((len(symbols), self.spec.levels or 0), dtype=torch.float64)
        counts.scatter_add_(1, symbols, torch.ones_like(symbols, dtype=torch.float64))
        counts[:, list(self.spec.fixed)] = 0
        p = counts / counts.sum(1, keepdim=True).clamp(min=1)
        values = -torch.special.xlogy(p, p).sum(1)
        self.add(values.sum(), len(values))

    def compute(self) -> Tensor:
        return self.mean("no samples to take the entropy of")
