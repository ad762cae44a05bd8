"""Small models for the tests of objectives, and what each objective takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from genkit.backbone import ModelOptions
from genkit.data.base import TensorSplit
from genkit.objectives import OBJECTIVES, Objective
from genkit.objectives.discrete import Discrete
from genkit.objectives.flow_matching import FlowMatching
from genkit.randomness import keyed_generator
from genkit.solvers import SOLVERS
from genkit.types import Batch, DataSpec, LogProb
from tests.oracles import GaussianFlow, MixtureFlow

IMAGES = DataSpec("images", (1, 4, 4), levels=5, classes=3, class_names=("a", "b", "c"))
COLOUR = DataSpec("colour", (2, 4, 4), levels=5, classes=3)
VECTORS = DataSpec("vectors", (2,))
LABELLED = DataSpec("labelled", (3,), classes=3)
LETTERS = DataSpec("letters", (6,), levels=4, ordered=False)
WORDS = DataSpec("words", (6,), levels=5, classes=3, ordered=False, fixed=(4,), answer=4)
CLASSES = DataSpec("classes", (24,), levels=5, classes=3)
SOLID = DataSpec("solid", (3,))
SOUND = DataSpec("sound", (64,), rate=8000)
SPECS = (IMAGES, COLOUR, VECTORS, LABELLED)
SYMBOLS = (IMAGES, COLOUR, LETTERS, WORDS)

# What is not as for most; a new objective that needs nothing of its own needs no line here.
DATA_OF: dict[str, tuple[DataSpec, ...]] = {
    "autoencoder": (SOUND,),
    "autoregressive": (IMAGES, LETTERS, WORDS),  # a token is one symbol
}
OPTIONS_OF: dict[str, dict[str, Any]] = {
    "autoencoder": {"frames": 8, "levels": (3, 3), "iterations": 2},
}
MODEL_OF: dict[str, dict[str, Any]] = {"autoregressive": {"patch": 1}}
KIND_OF = {"normalizing_flow": "bound", "autoregressive": "exact"}  # of IMAGES; "estimate" for all others
NO_SAMPLES = {"autoencoder"}
NO_DRAWS = {"normalizing_flow", "autoregressive", "autoencoder"}  # in the loss, dropped labels apart


def discrete(name: str) -> bool:
    return issubclass(OBJECTIVES.get(name), Discrete)


def data_of(name: str) -> tuple[DataSpec, ...]:
    """The data an objective is tested on; the first have levels and classes where it takes such."""
    return DATA_OF.get(name) or (SYMBOLS if discrete(name) else SPECS)


def labelled_of(name: str) -> DataSpec:
    """Data whose samples show the class soon."""
    return CLASSES if discrete(name) else LABELLED


def split(spec: DataSpec, n: int = 64) -> TensorSplit:
    generator = keyed_generator(0, spec.name)
    y = torch.arange(n) % spec.classes if spec.classes else None
    if spec.levels:
        return TensorSplit(torch.randint(spec.levels, (n, *spec.shape), generator=generator), y)
    return TensorSplit(torch.randn(n, *spec.shape, generator=generator), y)


def batch(spec: DataSpec, n: int = 8, key: int = 0) -> Batch:
    index = torch.randint(64, (n,), generator=keyed_generator(key, "rows"))
    return Batch(*split(spec).take(index), index)


def model_options(**options: Any) -> ModelOptions:
    return ModelOptions(**{"width": 24, "depth": 4, "heads": 2, "patch": 2, **options})


def model_of(name: str, **options: Any) -> ModelOptions:
    return model_options(**{**MODEL_OF.get(name, {}), **options})


def build(
    name: str,
    spec: DataSpec,
    *,
    model: ModelOptions | None = None,
    scale: float | None = 1.0,
    teacher: Any = None,
    **options: Any,
) -> Objective:
    """An objective whose zero-initialized weights are random, as after training; scale None: fresh."""
    torch.manual_seed(0)
    options = {"name": name, **OPTIONS_OF.get(name, {}), **options}
    objective = OBJECTIVES.build(options, spec, model or model_of(name))
    objective.setup(split(spec), teacher)
    if scale is not None:
        randomize(objective, scale)
    return objective.eval()


def log_prob(objective: Objective, x: Tensor, y: Tensor | None, key: int = 0) -> LogProb:
    """With few steps where it takes steps: enough for laws that do not depend on their number."""
    takes_steps = "sampler" in inspect.signature(objective.log_prob).parameters
    options = {"sampler": SOLVERS.build("euler", steps=2), "tolerance": None} if takes_steps else {}
    return objective.log_prob(x, y, generator=keyed_generator(key), **options)


def randomize(objective: Objective, scale: float = 1.0) -> None:
    """Fills what starts at zero: modulations, gates, heads, biases."""
    with torch.no_grad():
        for p in objective.parameters():
            if p.abs().max() == 0:
                p.normal_(std=scale * (0.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.1))


def flow(
    spec: DataSpec = VECTORS, oracle: GaussianFlow | MixtureFlow | None = None, **options: Any
) -> FlowMatching:
    """Flow matching; an oracle is its exact field, in float64, in place of the network."""
    objective = build("flow_matching", spec, **options)
    assert isinstance(objective, FlowMatching)
    if oracle is not None:
        torch.set_default_dtype(torch.float64)
        objective = objective.double()
        objective.requires_grad_(False)
        objective.predict = oracle.velocity  # type: ignore[method-assign]
    return objective


def points(n: int = 6, dims: int = 2) -> Tensor:
    return torch.randn(n, dims, generator=keyed_generator(0), dtype=torch.float64)
