"""Exponential integrators: the linear part of the flow is solved exactly, only the prediction is approximated.

On a path x = alpha x1 + sigma x0 the flow obeys d(x / sigma) = D d(alpha / sigma), D = E[x1 | x_t], so that

    x' = (sigma' / sigma) x + sigma' int D d(alpha / sigma)         (a prime: at the end of the step)

D is interpolated by a polynomial in some variable z(t) through its last values, and the integral is exact:
x' = (sigma' / sigma) x + sum_j w_j D_j. Where times fall, source and data change places: it is E = E[x0 | x_t] then.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

from torch import Tensor

from genkit.errors import GenkitError
from genkit.solvers.adams_bashforth import integral_weights
from genkit.solvers.base import SOLVERS, Grid, Solver, State
from genkit.types import Generator


class Node(NamedTuple):
    """A time seen in the direction of the solve: a and s are alpha and sigma, or the other way round going back.

    inside: whether it is neither 0 nor 1.
    """

    a: float
    s: float
    inside: bool


class Exponential(Solver):
    """What these methods have in common: a memory of (node, prediction), the last first, and the update."""

    needs = frozenset({"data", "noise"})

    def __init__(self, steps: int = 16, grid: Grid | str = "uniform", order: int = 2) -> None:
        super().__init__(steps, grid)
        if order not in (1, 2, 3):
            raise GenkitError(f"{SOLVERS.name_of(self)}: order must be 1, 2 or 3, not {order}")
        self.points = order

    @abc.abstractmethod
    def place(self, node: Node) -> float:
        """z, in which predictions are interpolated; infinite where they cannot be."""

    @abc.abstractmethod
    def moments(self, now: Node, then: Node, count: int) -> list[float]:
        """s' int (z - z_now)^k d(a / s) from now to then, for k < count."""

    def update(self, x: Tensor, now: Node, then: Node, known: list[tuple[Node, Tensor]]) -> Tensor:
        """x at `now` -> x at `then`, with as many of the known predictions as lie at finite places."""
        here = self.place(now)
        finite = [entry for entry in known if math.isfinite(self.place(entry[0]))]
        if not finite or not math.isfinite(here) or not math.isfinite(self.place(then)):
            finite = known[:1]
        count = len(finite)
        if count == 1:
            weights = [then.a - then.s / now.s * now.a]
        else:
            offsets = [self.place(node) - here for node, _ in finite]
            weights = integral_weights(offsets, self.moments(now, then, count))
        x = (then.s / now.s) * x
        for weight, (_, prediction) in zip(weights, finite, strict=True):
            x = x + weight * prediction
        return x

    def step(
        self, field: Any, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        now, then, prediction = self.look(field, t, t_next, state.x)
        known = [(now, prediction), *(state.memory or ())][: self.points]
        return State(self.update(state.x, now, then, known), known)

    @staticmethod
    def look(field: Any, t: Tensor, t_next: Tensor, x: Tensor) -> tuple[Node, Node, Tensor]:
        """Where the step begins and ends, and the prediction at its beginning."""
        ahead = bool(t_next > t)
        nodes = []
        for time in (t, t_next):
            alpha, sigma = map(float, field.coefficients(time)[:2])
            a, s = (alpha, sigma) if ahead else (sigma, alpha)
            nodes.append(Node(a, s, 0 < float(time) < 1))
        return nodes[0], nodes[1], field.data(t, x) if ahead else field.noise(t, x)


@SOLVERS.register("exponential")
class InterpolatedExponential(Exponential):
    """Exponential integrator: D is a polynomial in z = alpha / (alpha + sigma). One evaluation a step.

    z is the time of the linear path, finite at both ends: the same trajectory whatever the path's own time.
    order: 1 (DDIM), 2 or 3 predictions. The first step is of order 1.
    As the time of DEIS, Zhang & Chen, https://arxiv.org/abs/2204.13902, in data prediction.
    """

    order = 2

    def place(self, node: Node) -> float:
        return node.a / (node.a + node.s)

    def moments(self, now: Node, then: Node, count: int) -> list[float]:
        # a / s = z / (1 - z), so the integrals are those of (z - z_now)^k / (1 - z)^2; size = s' / (1 - z')
        w, w_then = now.s / (now.a + now.s), then.s / (then.a + then.s)
        size = then.a + then.s
        log = then.s * math.log(w / w_then) if w_then > 0 else 0.0
        first = size - then.s / w
        found = [first, size * w - then.s - log]
        if count > 2:
            found.append(size * w**2 - 2 * w * log - then.s * w_then)
        return found[:count]


@SOLVERS.register("ddim")
class DDIM(InterpolatedExponential):
    """Deterministic DDIM: x' = alpha' D + sigma' E, of order 1, one evaluation a step.

    On the linear path it is Euler's method. Song et al., https://arxiv.org/abs/2010.02502.
    """

    order = 1

    def __init__(self, steps: int = 16, grid: Grid | str = "uniform") -> None:
        super().__init__(steps, grid, order=1)


class LogRatio(Exponential):
    """Interpolation in lambda = log(alpha / sigma)."""

    def place(self, node: Node) -> float:
        return math.log(node.a / node.s) if node.inside else math.inf

    def moments(self, now: Node, then: Node, count: int) -> list[float]:
        h = self.place(then) - self.place(now)
        found = [-math.expm1(-h)]  # int_0^h e^(s - h) s^k ds, by parts
        for k in range(1, count):
            found.append(h**k - k * found[-1])
        return [then.a * moment for moment in found]


@SOLVERS.register("dpmpp")
class DPMpp(LogRatio):
    """Multistep DPM-Solver++: D is a polynomial in log(alpha / sigma). One evaluation a step.

    order: how many predictions it goes through, 1 (DDIM), 2 or 3. The logarithm is infinite at the ends, so that on the
    first and the last step the prediction counts as constant: over equal steps from 0 to 1 the error falls about as
    h^2 log(1/h), with 2 and with 3.
    Lu et al., https://arxiv.org/abs/2211.01095.
    """

    order = 2


@SOLVERS.register("unipc")
class UniPC(LogRatio):
    """UniPC: predictor and corrector in log(alpha / sigma). One evaluation a step.

    When D is known at the end of a step, the step is taken again with it, and the next goes on from there.
    order: predictions of the predictor; the corrector goes through one more. Weights are those of exact integration,
    which the paper's B(h) simplifies at order 2. Ends as in `dpmpp`.
    Zhao et al., https://arxiv.org/abs/2302.04867.
    """

    order = 2

    def step(
        self, field: Any, t: Tensor, t_next: Tensor, state: State, *, generator: Generator = None
    ) -> State:
        now, then, prediction = self.look(field, t, t_next, state.x)
        x, before = state.x, []
        if state.memory is not None:
            x_before, before = state.memory
            began = before[0][0]
            if math.isfinite(self.place(began)):
                x = self.update(x_before, began, now, [(now, prediction), *before])
        known = [(now, prediction), *before][: self.points]
        return State(self.update(x, now, then, known), (x, known))
