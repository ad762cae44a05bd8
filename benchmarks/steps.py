"""Time of a train step and of sampling for each arm of the digits comparison.

python benchmarks/steps.py
"""

from __future__ import annotations

from functools import partial

import torch
from _timing import arguments, median_seconds, publish

from genkit.backbone import ModelOptions
from genkit.data import DATASETS
from genkit.objectives import OBJECTIVES
from genkit.types import Batch

ARMS = {
    "nf": {"name": "normalizing_flow"},
    "fm-independent": {"name": "flow_matching"},
    "fm-ot": {"name": "flow_matching", "coupling": "ot"},
    "fm-distilled": {"name": "flow_matching", "coupling": {"name": "distilled", "teacher": "nf"}},
    "masked": {"name": "masked_diffusion"},
    "autoregressive": {"name": "autoregressive"},  # one pixel a token: four times the tokens of the others
}
SAMPLERS = {
    "solver": [{"name": "euler", "steps": 1}, {"name": "heun", "steps": 8}],
    "unmasker": [{"name": "ancestral", "steps": 1}, {"name": "confidence", "steps": 8}],
    "inverter": [{"name": "sequential"}],
}
BATCH, SAMPLES = 128, 64


def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    data = DATASETS.build("digits")
    split = data.split("train").to(options.device)
    x, y = split.take(torch.arange(BATCH))
    rows, teacher = [], None
    for arm, recipe in ARMS.items():
        model = ModelOptions(patch=1 if arm == "autoregressive" else 2)
        objective = OBJECTIVES.build(recipe, data.spec, model).to(options.device)
        objective.setup(split, teacher if arm == "fm-distilled" else None)
        teacher = teacher or objective.requires_grad_(True)
        optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

        def prepare(objective=objective):
            return objective.prepare(Batch(x, y, torch.arange(BATCH)))

        def step(objective=objective, optimizer=optimizer, prepare=prepare):
            optimizer.zero_grad()
            objective.loss(prepare())["loss"].backward()
            optimizer.step()

        labels = torch.arange(SAMPLES, device=options.device) % 10
        samplers = SAMPLERS[objective.samplers.kind] if objective.samplers else [None]
        samplers = [s for s in samplers if s is None or objective.takes(objective.samplers.build(s))] or [
            None
        ]
        train, spread = median_seconds(step, repeats=options.repeats)
        prepared, _ = median_seconds(prepare, repeats=options.repeats)
        for sampler in samplers:
            sampling, _ = median_seconds(
                partial(objective.sample, SAMPLES, labels, sampler=sampler),
                repeats=max(5, options.repeats // 4),
            )
            rows.append(
                {
                    "arm": arm,
                    "train step, ms": 1e3 * train,
                    "iqr, ms": 1e3 * spread,
                    "of it pairs, %": 100 * prepared / train,
                    "sampler": " x".join(map(str, sampler.values())) if sampler else "token by token",
                    f"sampling {SAMPLES}, ms": 1e3 * sampling,
                }
            )
    publish("steps", f"Train step (batch {BATCH}) and sampling, digits 8x8", rows, options.json)


if __name__ == "__main__":
    main()
