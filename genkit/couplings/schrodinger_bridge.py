"""The entropic coupling of a Schrodinger bridge."""

from __future__ import annotations

from torch import Tensor

from genkit.couplings.base import COUPLINGS
from genkit.couplings.batch import Scope, check_positive
from genkit.couplings.entropic import Entropic


@COUPLINGS.register("schrodinger_bridge")
class SchrodingerBridge(Entropic):
    """Ends of the most likely diffusion of noise to data: x0 from the entropic plan with epsilon = 2 sigma^2.

    With the path `bridge` of the same sigma, whose noise is that of the diffusion, the flow has the marginals of
    the Schrodinger bridge between source and data with the reference sigma dW. As sigma falls it goes to `ot`.
    Unlike in `sinkhorn`, epsilon is in the units of the data. Column error, cost and errors as there.
    Tong et al., https://arxiv.org/abs/2302.00482 (SB-CFM) and https://arxiv.org/abs/2307.03672 ([SF]2M).

    sigma: of the diffusion, the same as the path's.
    tolerance, iterations, scope: as in `sinkhorn`.
    """

    def __init__(
        self,
        sigma: float = 0.5,
        tolerance: float = 1e-3,
        iterations: int = 2000,
        scope: Scope = "rank",
    ) -> None:
        super().__init__(tolerance, iterations, scope)
        check_positive("schrodinger_bridge", sigma=sigma, tolerance=tolerance, iterations=iterations)
        self.sigma = sigma

    def entropy(self, cost: Tensor) -> float:
        return 2 * self.sigma**2
