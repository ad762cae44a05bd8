"""Token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.inversion.base import INVERTERS, Conditioner, Inverted, Inverter


@INVERTERS.register("sequential")
class Sequential(Inverter):
    """One token a call, with cached keys and values: exact, the least work, the most calls."""

    def invert(self, conditioner: Conditioner, z: Tensor) -> Inverted:
        x, log_scale, length = torch.zeros_like(z), torch.empty_like(z), z.shape[1]
        for i in range(length):
            one = slice(i, i + 1)
            a, mu = conditioner(x, i, i + 1)
            x[:, one], log_scale[:, one] = z[:, one] * torch.exp(a) + mu, a
        return Inverted(x, log_scale, length, length, exact=True)
