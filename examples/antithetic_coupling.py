"""A coupling of one's own: pairs of data rows share a noise sample and its negative.

genkit compare recipes/compare/digits.yaml --plugin examples/antithetic_coupling.py \
    "arms.fm-ot.objective.coupling=antithetic"
"""

import torch

from genkit.couplings import COUPLINGS, Coupling
from genkit.types import Pair


@COUPLINGS.register("antithetic")
class Antithetic(Coupling):
    """Rows 2i and 2i + 1 get a noise sample and its negative: the noise of a batch has mean zero."""

    independent = True  # each x0 is independent of its own x1; only the rows of a batch are related

    def __call__(self, x1, y=None, *, index=None, generator=None):
        x0 = self.source.sample(x1[: (len(x1) + 1) // 2], generator=generator)
        x0 = torch.stack((x0, -x0), dim=1).flatten(0, 1)[: len(x1)]
        return Pair(x0, x1, y, index)
