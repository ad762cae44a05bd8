"""The shared trunk (`Transformer`) and what stands around it (stems, heads, embeddings)."""

from genkit.backbone.embed import (
    Cloud,
    Condition,
    Grid,
    Head,
    PointStem,
    Reader,
    Stem,
    SymbolStem,
    Tokens,
    tokens_of,
)
from genkit.backbone.transformer import Cache, ModelOptions, Transformer, twice_differentiable

__all__ = [
    "Cache",
    "Cloud",
    "Condition",
    "Grid",
    "Head",
    "ModelOptions",
    "PointStem",
    "Reader",
    "Stem",
    "SymbolStem",
    "Tokens",
    "Transformer",
    "tokens_of",
    "twice_differentiable",
]
