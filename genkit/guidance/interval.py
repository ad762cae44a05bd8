"""Guidance in an interval of time."""

from __future__ import annotations

from torch import Tensor

from genkit.errors import GenkitError
from genkit.guidance.base import GUIDANCES
from genkit.guidance.classifier_free import Linear


@GUIDANCES.register("interval")
class Interval(Linear):
    """Classifier-free guidance for start <= t <= stop, and none before and after.

    Outside, flows of pairs and masked diffusion ask for one prediction and not two, wherever times are known on the
    CPU (all solvers, but for adaptive ones on a GPU). Of discrete models t is the share of symbols revealed. Of
    autoregressive models and flows it is the share of tokens done, in each span, and no evaluation is saved, since both
    branches must read every token.
    Kynkäänniemi et al., https://arxiv.org/abs/2404.07724, whose interval is one of noise levels sigma / alpha.
    """

    def __init__(self, scale: float = 2.0, start: float = 0.25, stop: float = 0.75) -> None:
        super().__init__(scale)
        if not 0 <= start < stop <= 1:
            raise GenkitError(
                f"interval: 0 <= start < stop <= 1 is needed, not start {start} and stop {stop}"
            )
        self.start, self.stop = start, stop

    def inside(self, t: Tensor) -> Tensor:
        return (t >= self.start) & (t <= self.stop)

    def excess(self, t: Tensor) -> Tensor:
        return (self.scale - 1) * self.inside(t).to(t.dtype)

    def acts(self, t: Tensor) -> bool:
        return bool(self.inside(t).any())
