"""What a codec of spoken digits keeps: sounds that are still named right after encoding and decoding, and its codes.

python benchmarks/codec.py runs/sound_codec
"""

from __future__ import annotations

import sys

import torch
from _timing import publish

import genkit
from genkit.metrics.extractor import load_extractor

BLOCK = 100


@torch.no_grad()
def main(folder: str) -> None:
    run = genkit.load(folder)
    test = run.dataset.split("test")
    x, y = test.take(torch.arange(len(test)))
    assert y is not None
    codes = torch.cat([run.objective.encode(block) for block in x.split(BLOCK)])
    decoded = torch.cat([run.objective.decode(block) for block in codes.split(BLOCK)])
    extractor = load_extractor(run.spec.name)
    right = [
        float(torch.cat([extractor.predict(b).argmax(1) for b in sounds.split(BLOCK)]).eq(y).float().mean())
        for sounds in (x, decoded)
    ]
    shares = codes.flatten().bincount(minlength=run.objective.codebook) / codes.numel()
    row = {
        "sounds": len(x),
        "named right": right[0],
        "after the codec": right[1],
        "codes in use": int((shares > 0).sum()),
        "of": run.objective.codebook,
        "perplexity": float(torch.special.entr(shares).sum().exp()),
        "share of the most frequent": float(shares.max()),
    }
    publish("codec", "A codec of spoken digits", [row], None)


if __name__ == "__main__":
    main(*sys.argv[1:])
