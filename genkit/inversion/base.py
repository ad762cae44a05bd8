"""The inversion interface and its registry.

A span of an autoregressive flow is the map z = (x - mu(x)) exp(-a(x)), where a_i and mu_i of token i depend on the
tokens before it. Its inverse is the solution of x = z exp(a(x)) + mu(x), which is triangular: with the tokens before i
known, token i follows from one network call.

    INVERTERS.build("jacobi", tolerance=1e-6).invert(conditioner, z).x
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from genkit.guidance.base import Affine
from genkit.registry import Registry

Conditioner = Callable[[Tensor, int, int], Affine]
"""f(x, start, stop) -> log-scale a and shift mu (B, stop - start, D) of the tokens start .. stop - 1, in one call.

x (B, L, D) holds the tokens so far, or guesses of them; those from `stop` - 1 on are not read. For the tokens before
`start` the keys and values of earlier calls stand: calls go on from where tokens are final, and may go back to
`start` as often as they like.
"""


class Inverted(NamedTuple):
    """x (B, L, D), and the log-scales a (B, L, D) of the last call for each token: log |det dz/dx| = -sum a.

    calls: network calls, one after the other. tokens: tokens that went through the network, of a sample.
    exact: each token was computed when those before it were final; if not, x solves its equation to a tolerance.
    """

    x: Tensor
    a: Tensor
    calls: int
    tokens: int
    exact: bool


class Inverter(abc.ABC):
    """Solves x = z exp(a(x)) + mu(x) for one span."""

    @abc.abstractmethod
    def invert(self, conditioner: Conditioner, z: Tensor) -> Inverted:
        """z (B, L, D), in the order of the span. Raises GenkitError for a tolerance that is not reached."""


INVERTERS = Registry(Inverter, "inverter", "genkit.inversion")
