"""Every shipped recipe loads, and what it asks for can be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from genkit.compare.runner import Comparison
from genkit.errors import GenkitError
from genkit.recipe import Recipe, read_yaml

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))


def test_there_are_recipes():
    assert "recipes/compare/digits.yaml" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_and_can_be_built(name):
    """All names, options and types are right, and models fit their data; no weights are made.

    A paper's full configuration needs data that is not here, so that it is only read. Nor is a codec, a run of its
    own: data that name one are built without it.
    """
    path = ROOT / name
    data = read_yaml(path).get("data")
    coded = isinstance(data, dict) and "codec" in data
    overrides = ["data.codec=null", "data.mix=null"] if coded else []
    if "arms" in read_yaml(path):
        comparison = Comparison.load(path, overrides)
        if path.stem != "full":
            comparison.check()
        return
    recipe = Recipe.load(path, overrides)
    if path.stem != "full":
        recipe.check(recipe.dataset().spec)


@pytest.mark.parametrize("name", RECIPES)
def test_resolved_recipe_is_its_own_fixed_point(name):
    """What a run folder holds is a recipe too, and the same one: its fingerprint does not change."""
    path = ROOT / name
    if "arms" in read_yaml(path):
        comparison = Comparison.load(path)
        recipes = [comparison.recipe(arm, seed=1) for arm in comparison.arms]
    else:
        recipes = [Recipe.load(path)]
    for recipe in recipes:
        again = Recipe.resolve(recipe.config)
        assert again.config == recipe.config
        assert again.fingerprint("data", "teacher") == recipe.fingerprint("data", "teacher")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("recipes/papers/")])
def test_paper_recipe_says_what_it_claims(name):
    config = read_yaml(ROOT / name)
    assert {"title", "link", "claim"} <= set(config.get("paper", {}))
    if name.endswith("small.yaml"):
        assert config.get("expected")


def test_wrong_recipe_would_be_caught(tmp_path):
    text = (ROOT / "recipes/compare/digits.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("width:", "widht:"))
    with pytest.raises(GenkitError, match=r"wrong\.yaml.*'widht'; did you mean 'width'"):
        Comparison.load(wrong)
