"""The quickest inverter for the size at hand."""

from __future__ import annotations

from torch import Tensor

from genkit.inversion.base import INVERTERS, Conditioner, Inverted, Inverter
from genkit.inversion.jacobi import GaussSeidelJacobi
from genkit.inversion.sequential import Sequential

CPU_BATCH, CPU_TOKENS, BLOCK = 4, 256, 64


@INVERTERS.register("auto")
class Auto(Inverter):
    """Iterates where calls are what takes the time, on a CPU for batches up to 4; token by token otherwise.

    On a CPU a call with few tokens costs as much as its overhead, and the work beyond that: up to 4 samples,
    `gauss_seidel_jacobi` in blocks of 256 tokens of all samples is quicker, from 8 on `sequential` is (measured in
    benchmarks/README.md). On other devices it iterates in blocks of 64 tokens, which is not measured.
    tolerance: as there; the default leaves errors far below the levels of an image.
    """

    def __init__(self, tolerance: float = 1e-8) -> None:
        self.iterative = GaussSeidelJacobi(BLOCK, tolerance)

    def choose(self, batch: int, device: str) -> Inverter:
        if device != "cpu":
            return self.iterative
        if batch > CPU_BATCH:
            return Sequential()
        return GaussSeidelJacobi(CPU_TOKENS // batch, self.iterative.tolerance)

    def invert(self, conditioner: Conditioner, z: Tensor) -> Inverted:
        return self.choose(len(z), z.device.type).invert(conditioner, z)
