"""Methods with noise of their own. They need a score: a Gaussian source and independent pairs."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.randomness import sample_like
from genkit.solvers.base import SOLVERS, Grid, Solver, State, time_of
from genkit.solvers.runge_kutta import Heun
from genkit.types import Generator

SCORE = frozenset({"velocity", "data", "noise", "score"})


class Forward(Solver):
    """A method that goes from noise to data only."""

    needs = SCORE

    def check_rising(self, t: Tensor, t_next: Tensor) -> None:
        if t_next < t:
            raise GenkitError(
                f"{SOLVERS.name_of(self)} adds noise and takes it away again: it goes from noise to data only, "
                "so times must rise; euler, heun and the other deterministic methods also go back"
            )


@SOLVERS.register("euler_maruyama")
class EulerMaruyama(Forward):
    """Euler-Maruyama for dx = [v + (g^2 / 2) score] dt + g dW: for any g the marginals are those of the path.

    g^2 = 2 scale sigma^power.
    Weak order 1, one evaluation a step. scale 0 is Euler's method, bit for bit.
    power: 0 for the same diffusion at all times, 1 for one that ends with the noise, where the score's part of the
        drift is -scale E[x0 | x] and stays bounded.
    Song et al., https://arxiv.org/abs/2011.13456; any diffusion on any path: Albergo et al., Stochastic Interpolants,
    https://arxiv.org/abs/2303.08797.
    """

    order = 1

    def __init__(
        self, steps: int = 64, grid: Grid | str = "uniform", scale: float = 1.0, power: float = 1.0
    ) -> None:
        super().__init__(steps, grid)
        if scale < 0 or power < 0:
            raise GenkitError(
                f"euler_maruyama: scale and power must not be negative, not {scale} and {power}"
            )
        self.scale, self.power = scale, power

    def step(
        self, field: Any, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        self.check_rising(t, t_next)
        x, dt = state.x, t_next - t
        if not self.scale:
            return State(x + dt * field(t, x))
        _, sigma, d_alpha, d_sigma = field.coefficients(t)
        data, noise = field.endpoints(t, x)
        half = self.scale * sigma**self.power  # g^2 / 2
        drift = d_alpha * data + d_sigma * noise - (half / sigma) * noise
        return State(x + dt * drift + (2 * half * dt).sqrt() * sample_like(torch.randn, x, generator))


@SOLVERS.register("ancestral")
class Ancestral(Forward):
    """Ancestral sampling of DDPM, or DDIM with noise: x' = alpha' D + sqrt(sigma'^2 - up^2) E + up n.

    up = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2).
    With eta 1 each step is the posterior of DDPM given x1 = D, with eta 0 it is DDIM. One evaluation a step.
    Ho et al., https://arxiv.org/abs/2006.11239; Song et al., https://arxiv.org/abs/2010.02502.
    """

    order = 1

    def __init__(self, steps: int = 64, grid: Grid | str = "uniform", eta: float = 1.0) -> None:
        super().__init__(steps, grid)
        if not 0 <= eta <= 1:
            raise GenkitError(f"ancestral: eta must be from 0 to 1, not {eta}")
        self.eta = eta

    def step(
        self, field: Any, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        self.check_rising(t, t_next)
        alpha, sigma, _, _ = field.coefficients(t)
        alpha_next, sigma_next, _, _ = field.coefficients(t_next)
        data, noise = field.endpoints(t, state.x)
        kept = alpha * sigma_next / (alpha_next * sigma)  # how much of the noise is older than this step
        up = self.eta * sigma_next * (1 - kept**2).clamp_min(0).sqrt()
        x = alpha_next * data + (sigma_next**2 - up**2).clamp_min(0).sqrt() * noise
        return State(x + up * sample_like(torch.randn, x, generator))


@SOLVERS.register("stochastic_heun")
class StochasticHeun(Forward):
    """Heun's method that steps back first: noise lifts r = sigma / alpha to (1 + gamma) r, where the step begins.

    gamma = min(churn / steps, sqrt(2) - 1) where low <= r <= high, else 0; it never goes back before the first time.
    Two evaluations a step; with churn 0 it is Heun's method, of order 2. last: see `heun`; the paper's is "euler".
    inflate: standard deviation of the noise that is added, in units of what would keep the marginals.
    Karras et al., EDM, https://arxiv.org/abs/2206.00364, algorithm 2.
    """

    order = 2

    def __init__(
        self,
        steps: int = 32,
        grid: Grid | str = "uniform",
        churn: float = 5.0,
        low: float = 0.0,
        high: float = math.inf,
        inflate: float = 1.0,
        last: Literal["heun", "euler"] = "heun",
    ) -> None:
        super().__init__(steps, grid)
        if churn < 0 or inflate <= 0 or not 0 <= low <= high:
            raise GenkitError(
                "stochastic_heun: churn must not be negative, inflate positive, and 0 <= low <= high, not "
                f"{churn}, {inflate}, {low}, {high}"
            )
        self.churn, self.low, self.high, self.inflate = churn, low, high, inflate
        self.heun = Heun(steps, grid, last)

    def step(
        self, field: Any, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        self.check_rising(t, t_next)
        x, first = state.x, t if state.memory is None else state.memory
        alpha, sigma, _, _ = field.coefficients(t)
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        if gamma > 0 and t > first and self.low <= sigma / alpha <= self.high:
            t = torch.maximum(first, time_of(field.coefficients, (1 + gamma) * sigma / alpha))
            back, wider, _, _ = field.coefficients(t)
            width = (wider**2 - (back * sigma / alpha) ** 2).clamp_min(0).sqrt()
            x = (back / alpha) * x + (self.inflate * width) * sample_like(torch.randn, x, generator)
        return State(self.heun.step(field, t, t_next, State(x)).x, first)
