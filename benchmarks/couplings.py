"""Time of the couplings that need no teacher against the batch size, on digits.

python benchmarks/couplings.py
"""

from __future__ import annotations

import torch
from _timing import arguments, median_seconds, publish

from genkit.couplings import COUPLINGS

SIZES = (64, 128, 256, 512, 1024, 2048)
DIMS = 64


def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    rows = []
    for name in COUPLINGS.names():
        if COUPLINGS.get(name).needs_teacher:
            continue
        coupling = COUPLINGS.build(name)
        row = {"coupling": name}
        for n in SIZES:
            x1 = torch.randn(n, DIMS, device=options.device)
            seconds, _ = median_seconds(
                lambda x1=x1, coupling=coupling: coupling(x1), repeats=options.repeats
            )
            row[f"n={n}, ms"] = 1e3 * seconds
        rows.append(row)
    publish("couplings", f"Coupling a batch of n rows of {DIMS} dimensions", rows, options.json)


if __name__ == "__main__":
    main()
