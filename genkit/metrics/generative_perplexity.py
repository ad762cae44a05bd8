"""How probable samples are to another model."""

from __future__ import annotations

from torch import Tensor

from genkit.errors import GenkitError, a
from genkit.metrics.base import METRICS, Mean, nats_and_counts
from genkit.types import DataSpec, LogProb


@METRICS.register("generative_perplexity")
class GenerativePerplexity(Mean):
    """Perplexity of samples under a scorer, a model with an exact likelihood: exp(-sum log p(x) / symbols).

    update(log_prob): LogProb of samples under the scorer, of kind "exact". A scorer likes what is frequent, so samples
    that repeat themselves score better than real text: read it beside `sample_entropy`, and against the figures of
    real text. Neither end is better. Figures of one scorer are comparable, and no others.

    Zheng et al. 2024, Masked Diffusion Models are Secretly Time-Agnostic (https://arxiv.org/abs/2409.02908), section 4.
    Raises GenkitError for data that are no symbols, a likelihood that is not exact, and nothing to average.
    """

    reads = "scored"
    words = "generative perplexity"
    needs = "symbols without an order"
    higher_is_better = None

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.levels is not None and not spec.ordered

    def update(self, log_prob: LogProb) -> None:
        if log_prob.kind != "exact":
            raise GenkitError(f"a generative perplexity needs an exact likelihood, not {a(log_prob.kind)}")
        nats, symbols = nats_and_counts(log_prob, self.spec)
        self.add(nats.sum(), symbols.sum())

    def compute(self) -> Tensor:
        return self.mean("no samples for a generative perplexity").exp()
