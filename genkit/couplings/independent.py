"""The independent coupling."""

from __future__ import annotations

from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling
from genkit.types import Generator, Pair


@COUPLINGS.register("independent")
class Independent(Coupling):
    """A fresh source sample for each row; cost O(n d).

    Lipman et al., Flow Matching, https://arxiv.org/abs/2210.02747.
    """

    independent = True

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        return Pair(self.source.sample(x1, generator=generator), x1, y, index)
