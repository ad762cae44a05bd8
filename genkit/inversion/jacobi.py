"""Fixed-point iteration of many tokens at once: of all of them, or of one block after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.inversion.base import INVERTERS, Conditioner, Inverted, Inverter


@INVERTERS.register("gauss_seidel_jacobi")
class GaussSeidelJacobi(Inverter):
    """Blocks of tokens one after the other, the tokens of a block all at once: x <- z exp(a(x)) + mu(x), from x = z.

    block: tokens of a block; null for all. tolerance: a block is done when sum dx^2 / sum x^2 of each sample (so also
    of all together) is at most that; the test waits for the device, and tolerance 0 makes none. cap: passes a block
    gets at most; null for as many as it has tokens, after which the result is exact, since each pass makes one more
    token final (and later passes leave it out).

    Song et al., Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving,
    https://arxiv.org/abs/2002.03629; Gu et al., STARFlow-V, https://arxiv.org/abs/2511.20462 (tolerance 1e-3, cap 32).
    """

    def __init__(self, block: int | None = 32, tolerance: float = 1e-6, cap: int | None = None) -> None:
        if not 0 <= tolerance < math.inf:
            raise GenkitError(f"tolerance must be a number from 0 up, not {tolerance}")
        for name, value in (("block", block), ("cap", cap)):
            if value is not None and value < 1:
                raise GenkitError(f"{name} must be at least 1, not {value}")
        self.block, self.tolerance, self.cap = block, tolerance, cap

    def invert(self, conditioner: Conditioner, z: Tensor) -> Inverted:
        x, log_scale, length = z.clone(), torch.empty_like(z), z.shape[1]
        calls, tokens, exact = 0, 0, True
        for first in range(0, length, self.block or length):
            stop = min(first + (self.block or length), length)
            passes, n = self.solve(conditioner, z, x, log_scale, first, stop), stop - first
            calls, tokens = calls + passes, tokens + sum(range(n - passes + 1, n + 1))
            exact = exact and passes == n
        return Inverted(x, log_scale, calls, tokens, exact)

    def solve(
        self, conditioner: Conditioner, z: Tensor, x: Tensor, log_scale: Tensor, first: int, stop: int
    ) -> int:
        """Fills the tokens first .. stop - 1 of x and log_scale, and says how many passes it took."""
        n = stop - first
        cap = n if self.cap is None else min(n, self.cap)
        for start in range(first, first + cap):  # the tokens before it are final
            part = slice(start, stop)
            a, mu = conditioner(x, start, stop)
            new = z[:, part] * torch.exp(a) + mu
            change = (new - x[:, part]).square().sum((1, 2))
            x[:, part], log_scale[:, part] = new, a
            residual = (change / x[:, first:stop].square().sum((1, 2))).max()
            if start + 1 == stop or (self.tolerance > 0 and bool(residual <= self.tolerance)):
                return start + 1 - first
        if self.tolerance > 0:
            passes = "1 pass" if cap == 1 else f"{cap} passes"
            raise GenkitError(
                f"the inversion has not converged: after {passes} over {n} tokens, sum dx^2 / sum x^2 of the worst "
                f"sample is {float(residual):.2g}, above the tolerance {self.tolerance:g}; raise cap ({n} is always "
                "enough), or use the inverter sequential"
            )
        return cap


@INVERTERS.register("jacobi")
class Jacobi(GaussSeidelJacobi):
    """All tokens at once: x <- z exp(a(x)) + mu(x), from x = z; `gauss_seidel_jacobi` with one block of all tokens.

    tolerance: done when sum dx^2 / sum x^2 of each sample is at most that; 0 for `cap` passes without a test. cap:
    passes at most; null for as many as there are tokens, after which the result is exact.
    """

    def __init__(self, tolerance: float = 1e-6, cap: int | None = None) -> None:
        super().__init__(None, tolerance, cap)
