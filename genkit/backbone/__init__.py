"""The shared trunk (`Transformer`) and what stands around it (stems, heads, embeddings)."""

from genkit.backbone.embed import Condition, Head, Stem, SymbolStem, Tokens, tokens_of
from genkit.backbone.transformer import Cache, ModelOptions, Transformer, twice_differentiable

__all__ = [
    "Cache",
    "Condition",
    "Head",
    "ModelOptions",
    "Stem",
    "SymbolStem",
    "Tokens",
    "Transformer",
    "tokens_of",
    "twice_differentiable",
]
