"""How far the n-grams of samples are from those of real text."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.metrics.base import METRICS, TwoSample
from genkit.types import DataSpec


@METRICS.register("ngrams")
class NGramDivergence(TwoSample):
    """Jensen-Shannon divergence between the n-grams of samples and those of test text, in bits.

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, from 0 (equal) to 1 (nothing in common): what one n-gram says,
    on average, of where it comes from. p and q are the shares of all sequences of `order` symbols within a row; one
    with a fixed symbol (a boundary) does not count. Shorter n-grams are in the longer ones, whose divergence is no
    smaller.

    Finite samples of equal distributions differ as well, and the more so the fewer they are: compare at equal counts,
    and with the floor. Of Python's documentation in 64 rows of 128 characters, real text reaches 0.49, a Markov chain
    of order 2 reaches 0.60, of order 1 0.85, each with a standard deviation of about 0.015.

    order: n. Lin 1991, Divergence measures based on the Shannon entropy (https://doi.org/10.1109/18.61115).
    Raises GenkitError for an order below 1, and what TwoSample raises.
    """

    words = "n-gram divergence"
    needs = "text"
    priority = 1

    @classmethod
    def applies(cls, spec: DataSpec) -> bool:
        return spec.text

    def __init__(self, spec: DataSpec, order: int = 4) -> None:
        super().__init__(spec)
        if order < 1:
            raise GenkitError(f"the order of n-grams must be at least 1, not {order}")
        self.order = min(order, spec.dims)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        symbols = torch.cat((x, y)).long()
        codes = ngrams(symbols, self.order)
        fixed = torch.isin(symbols, symbols.new_tensor(self.spec.fixed))
        kept = ~fixed.unfold(1, self.order, 1).any(-1)
        sides = (codes[: len(x)][kept[: len(x)]], codes[len(x) :][kept[len(x) :]])
        counts = (side.bincount(minlength=int(codes.max()) + 1).double() for side in sides)
        p, q = (count / count.sum() for count in counts)
        return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2) / torch.tensor(2.0).double().log()


def ngrams(symbols: Tensor, order: int) -> Tensor:
    """(N, L) int64 -> (N, L - order + 1): numbers from 0 up, equal for equal n-grams."""
    codes, size = symbols, int(symbols.max()) + 1
    for k in range(1, order):
        joined = codes[:, :-1] * size + symbols[:, k:]
        codes = joined.unique(return_inverse=True)[1]  # small again, so that the next does not overflow
    return codes


def entropy(p: Tensor) -> Tensor:
    """Of probabilities (..., K), in nats (...)."""
    return -torch.special.xlogy(p, p).sum(-1)
