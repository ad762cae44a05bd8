"""How good the default fit of `semidiscrete` is after each of its rounds, and how long it takes.

python benchmarks/semidiscrete_fit.py
"""

from __future__ import annotations

import time
from typing import Any

import torch
from _timing import publish

from genkit.couplings.semidiscrete import Semidiscrete
from genkit.data import DATASETS
from genkit.data.base import Encoded
from genkit.data.views import Continuous
from genkit.types import StandardNormal

FITS: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"name": "digits"}, False),
    ({"name": "digits"}, True),
    ({"name": "moons", "n_train": 4000}, False),
)


class Watched(Semidiscrete):
    """Notes the imbalance after each round, and the seconds of this process until then."""

    seen: list[tuple[float, float]]
    begun: float

    def measure(self, like: torch.Tensor, generator: torch.Generator) -> float:
        found = super().measure(like, generator)
        self.seen.append((found, time.process_time() - self.begun))
        return found


def main() -> None:
    rows = []
    for data, conditional in FITS:
        dataset = DATASETS.build(data)
        coupling = Watched(conditional=conditional)
        coupling.seen, coupling.begun = [], time.process_time()
        coupling.setup(Encoded(dataset.split("train"), Continuous(dataset.spec)), StandardNormal())
        for imbalance, seconds in coupling.seen:
            about = {"data": dataset.spec.name, "rows": len(coupling.points), "conditional": conditional}
            rows.append(about | {"imbalance": imbalance, "seconds": seconds})
    publish("semidiscrete_fit", "Imbalance after each round of the default fit", rows, None)


if __name__ == "__main__":
    main()
