"""Exact minibatch optimal transport."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling
from genkit.errors import GenkitError
from genkit.types import Generator, Pair


@COUPLINGS.register("ot")
class OptimalTransport(Coupling):
    """Exact optimal transport within the batch: the permutation p that minimizes sum_i |x1_i - x0_p(i)|^2.

    Every source sample is used once, so both marginals are kept. Cost O(n^3 + n^2 d), on the CPU, by SciPy's
    linear assignment. With classes, the source that each class sees is skewed.
    Tong et al., https://arxiv.org/abs/2302.00482; Pooladian et al., https://arxiv.org/abs/2304.14772.
    """

    lowers_cost = True

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        from scipy.optimize import linear_sum_assignment

        x0 = self.source.sample(x1, generator=generator)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b: only the last term depends on who goes with whom. In float64,
        # which autocast leaves alone: rounding must not decide the permutation.
        a, b = (x.detach().flatten(1).cpu().double() for x in (x1, x0))
        cost = -a @ b.T
        if not bool(torch.isfinite(cost).all()):
            raise GenkitError("ot: the cost matrix has values that are not finite; look at the data")
        _, order = linear_sum_assignment(cost.numpy())
        return Pair(x0[torch.from_numpy(order).to(x0.device)], x1, y, index)
