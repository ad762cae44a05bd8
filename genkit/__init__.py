"""genkit: generative models with interchangeable objectives on one shared transformer, side by side.

import genkit
run = genkit.load("runs/digits/fm-ot")
images = run.sample(64, steps=4, solver="heun").x
run = genkit.train(genkit.Recipe.load("recipe.yaml"), "runs/mine")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genkit.recipe import Recipe, Run, load, train

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "load", "train"]


def __getattr__(name: str) -> Any:  # torch and the rest are imported when they are needed
    if name in __all__:
        from genkit import recipe

        return getattr(recipe, name)
    raise AttributeError(f"module 'genkit' has no attribute '{name}'")
