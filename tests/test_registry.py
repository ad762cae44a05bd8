"""Registries and the errors they give: a small package on disk plays the part of `genkit.couplings`."""

from __future__ import annotations

import abc
import importlib
import inspect
import itertools
import pkgutil
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from genkit.errors import GenkitError, choose
from genkit.registry import (
    INSTALLED,
    PLUGINS,
    Registry,
    check_options,
    check_value,
    how_to_load,
    load_installed,
    load_plugin,
    plugin_loaded,
    plugins_behind,
)

ROOT = Path(__file__).parent.parent
FILES = {
    "base": """
        import abc
        from genkit.registry import Registry

        class Food(abc.ABC):
            pass

        FOODS = Registry(Food, "food", "{package}")

        class Animal(abc.ABC):
            @abc.abstractmethod
            def noise(self): ...

        ANIMALS = Registry(Animal, "animal", "{package}")
    """,
    "foods": """
        from {package}.base import FOODS, Food

        @FOODS.register("hay")
        class Hay(Food):
            def __init__(self, bales: int = 1) -> None:
                self.bales = bales
    """,
    "animals": """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import Literal
        from {package}.base import ANIMALS, Animal, Food

        @ANIMALS.register("cow")
        class Cow(Animal):
            \"""A large animal.

            It gives milk.
            \"""
            def __init__(
                self,
                legs: int = 4,
                weight: float = 500.0,
                title: str = "Berta",
                awake: bool = True,
                colour: Literal["brown", "white"] = "brown",
                spots: int | None = None,
                yields: list[float] = (),
                size: tuple[int, ...] = (),
                tags: dict[str, str] | None = None,
                food: Food | None = None,
            ) -> None:
                self.legs, self.weight, self.food = legs, weight, food

            def noise(self): return "moo"

        @ANIMALS.register("sheep")
        @dataclass
        class Sheep(Animal):
            wool: float
            fed_with: Food

            def noise(self): return "baa"

        @ANIMALS.register("egg")
        class Egg(Animal):
            def noise(self): return ""
    """,
}
counter = itertools.count()


def refused(registry: Registry, spec: object, message: str) -> None:
    """Both ways in say `message` (a pattern), one after what is built, one after the place in a recipe."""
    kind, name = registry.kind, spec["name"]
    with pytest.raises(GenkitError, match=f"^{kind} '{name}': {message}"):
        registry.build(spec)
    with pytest.raises(GenkitError, match=f"^farm.yaml: arms.a: {message}"):
        registry.check(spec, "farm.yaml: arms.a")


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Iterator[types.SimpleNamespace]:
    """The package above, fresh: its `base` imported, its other modules not yet."""
    package = f"zoo{next(counter)}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    for name, text in FILES.items():
        source = textwrap.dedent(text).replace("{package}", package)
        (tmp_path / package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Registry, "by_base", dict(Registry.by_base))
    base = importlib.import_module(f"{package}.base")
    yield types.SimpleNamespace(
        folder=tmp_path / package,
        package=package,
        animals=base.ANIMALS,
        foods=base.FOODS,
        Animal=base.Animal,
        Food=base.Food,
    )
    for name in [name for name in sys.modules if name.split(".")[0] == package or "genkit_plugin" in name]:
        del sys.modules[name]


# --- errors -------------------------------------------------------------------------------------------


def test_error_is_a_value_error():
    assert issubclass(GenkitError, ValueError)


def test_choose_names_the_nearest_and_lists_all():
    error = choose("mdpoint", ["rk4", "midpoint", "euler"], "solver")
    assert isinstance(error, GenkitError)
    message = "no solver 'mdpoint'; did you mean 'midpoint'? (one of: euler, midpoint, rk4)"
    assert str(error) == message


def test_choose_guesses_only_what_is_near():
    assert str(choose("qqq", ["euler", "rk4"], "solver")) == "no solver 'qqq' (one of: euler, rk4)"


def test_choose_takes_any_name_and_no_names():
    assert str(choose(3, iter(["one"]), "number")) == "no number '3' (one of: one)"
    assert str(choose("x", [], "plug-in")) == "no plug-in 'x' (one of: none)"


# --- names --------------------------------------------------------------------------------------------


def test_modules_are_imported_when_first_asked_for(zoo):
    assert f"{zoo.package}.animals" not in sys.modules
    assert zoo.animals.names() == ["cow", "egg", "sheep"]
    assert f"{zoo.package}.animals" in sys.modules
    assert zoo.foods.names() == ["hay"]


def test_get_summary_and_name_of(zoo):
    cow = zoo.animals.get("cow")
    assert cow.__name__ == "Cow"
    assert zoo.animals.summary("cow") == "A large animal."
    assert zoo.animals.name_of(cow()) == "cow"


def test_summary_is_the_class_s_own(zoo):
    assert zoo.animals.summary("egg") == ""  # a base class's docstring would say nothing about it


@pytest.mark.parametrize("name", ["caw", "Cow", 3, None, ("cow",)])
def test_unknown_name(zoo, name):
    with pytest.raises(GenkitError, match=r"no animal .*\(one of: cow, egg, sheep\)"):
        zoo.animals.get(name)


def test_unknown_name_names_the_nearest(zoo):
    for ask in (zoo.animals.get, zoo.animals.build, zoo.animals.check, zoo.animals.summary):
        with pytest.raises(GenkitError, match=r"no animal 'shep'; did you mean 'sheep'\?"):
            ask("shep")


def test_taken_name(zoo):
    zoo.animals.names()
    with pytest.raises(GenkitError, match=r"animal 'cow' is already registered by zoo\d+\.animals"):

        @zoo.animals.register("cow")
        class Other(zoo.Animal): ...

    assert zoo.animals.get("cow").__name__ == "Cow"


def test_module_imported_twice_replaces_itself(zoo):
    old = zoo.animals.get("cow")
    importlib.reload(sys.modules[f"{zoo.package}.animals"])
    assert zoo.animals.get("cow") is not old
    assert zoo.animals.get("cow").__qualname__ == old.__qualname__


@pytest.mark.parametrize("wrong", [dict, "cow", lambda: None])
def test_wrong_base_class(zoo, wrong):
    with pytest.raises(GenkitError, match=r"animal 'x': .* is not a subclass of Animal"):
        zoo.animals.register("x")(wrong)
    assert "x" not in zoo.animals.names()


def test_register_returns_the_class(zoo):
    class Straw(zoo.Food): ...

    assert zoo.foods.register("straw")(Straw) is Straw


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "Mine does not define run"),
        (
            "def run(self, x): ...",
            r"Mine.run\(self, x\) must be callable as Base.run\(self, x, y=None, \*, key=0\): ",
        ),
        ("def run(self, x, y, *, key=0): ...", "missing a required argument: 'y'"),
        ("def run(self, x, y=None, *, key): ...", "missing a required argument: 'key'"),
        ("def run(self, x, y=None, z=1): ...", "got an unexpected keyword argument 'key'"),
        ("run = 3", "must be callable as"),
        (
            "def run(self, x, y=None, *, key=0): ...\n    def __init__(self, spec, **more): ...",
            r"takes \*\*more: name its",
        ),
        (
            "def __init__(self): ...\n    def run(self, x, y=None, *, key=0): ...",
            "Mine must take 1 argument by position",
        ),
    ],
)
def test_a_class_of_another_signature_is_refused(zoo, body, message):
    class Base(abc.ABC):
        def __init__(self, spec):
            self.spec = spec

        @abc.abstractmethod
        def run(self, x, y=None, *, key=0): ...

    registry, names = Registry(Base, "runner", zoo.package, given=1), {"Base": Base}
    exec(f"class Mine(Base):\n    {body}", names)
    with pytest.raises(GenkitError, match=f"^runner 'mine': .*{message}"):
        registry.register("mine")(names["Mine"])
    assert "mine" not in registry.names()


def test_a_class_is_held_to_the_hooks_of_a_class_between(zoo):
    class Base(abc.ABC):
        @abc.abstractmethod
        def run(self): ...

    class Between(Base):
        def run(self):
            return self.score(1, 2)

        @abc.abstractmethod
        def score(self, x, chance): ...

    class Mine(Between):
        def score(self, x, *, generator=None): ...

    with pytest.raises(
        GenkitError, match=r"Mine.score\(.*\) must be callable as Between.score\(self, x, chance\)"
    ):
        Registry(Base, "runner", zoo.package).register("mine")(Mine)


@pytest.mark.parametrize(
    "body",
    [
        "def run(self, a, b=None, *, key=0): ...",
        "def run(self, *args, **kwargs): ...",
        "def run(self, x, y=None, z=1, *, key=0, more=2): ...",
        "run = lambda self, x, y=None, key=0: x",
    ],
)
def test_what_can_be_called_alike_is_accepted(zoo, body):
    class Base(abc.ABC):
        @abc.abstractmethod
        def run(self, x, y=None, *, key=0): ...

    names = {"Base": Base}
    exec(f"class Mine(Base):\n    {body}", names)
    Registry(Base, "runner", zoo.package).register("mine")(names["Mine"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes an installed package whose entry point is a plug-in; returns its name."""

    def write(text: str, name: str = "goats") -> str:
        module = f"plugin_package_{next(counter)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(text))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[genkit.plugins]\n{name} = {module}\n")
        importlib.invalidate_caches()
        return module

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for module in [module for module in PLUGINS if module.startswith("plugin_package_")]:
        del PLUGINS[module], INSTALLED[module], sys.modules[module]


def test_an_installed_plugin_is_imported_when_it_is_trusted(zoo, package):
    """Its entries are there, a recipe knows it by the name of its entry point, and it has a hash of its own."""
    module = package(f"""
        from {zoo.package}.base import ANIMALS, Animal
        @ANIMALS.register("goat")
        class Goat(Animal):
            def noise(self): return "meh"
    """)
    assert "goat" not in zoo.animals.names()
    assert not plugin_loaded("goats")
    assert "give --trust-plugins" in how_to_load("goats")
    assert module not in sys.modules  # to ask what is installed runs nothing
    assert load_installed() == ["goats"]
    assert zoo.animals.build("goat").noise() == "meh"
    assert plugin_loaded("goats")
    assert list(plugins_behind({"goat"})) == ["goats"]
    assert len(plugins_behind({"goat"})["goats"]) == 64


def test_an_installed_plugin_that_does_not_import_is_named(package):
    module = package("import no_such_module")
    with pytest.raises(
        GenkitError, match=rf"--trust-plugins: the plug-in 'goats' \({module}\) does not import: Mod"
    ):
        load_installed()
    assert "--plugin FILE" in how_to_load("sheep")


def test_plugin_adds_itself(zoo, tmp_path):
    """A user's own file, loaded from anywhere, is one more entry: also before the package was loaded."""
    plugin = tmp_path / "my_animal.py"
    plugin.write_text(
        textwrap.dedent(f"""
            from {zoo.package}.base import ANIMALS, Animal

            @ANIMALS.register("goat")
            class Goat(Animal):
                '''It eats anything.'''
                def __init__(self, horns: int = 2) -> None:
                    self.horns = horns
                def noise(self): return "meh"
        """)
    )
    assert load_plugin(plugin) == "my_animal"
    assert zoo.animals.names() == ["cow", "egg", "goat", "sheep"]
    assert zoo.animals.summary("goat") == "It eats anything."
    assert zoo.animals.build({"name": "goat", "horns": 1}).horns == 1
    with pytest.raises(GenkitError, match=r"no option 'horn'; did you mean 'horns'\?"):
        zoo.animals.build("goat", horn=1)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("none.py", None, "--plugin .*none.py: no such file"),
        ("notes.txt", "x = 1", r"--plugin .*notes.txt: a plug-in is a Python file \(.py\)"),
        ("syntax.py", "def", "--plugin .*syntax.py does not import: SyntaxError: "),
        ("fails.py", "import no_such_module", "--plugin .*fails.py does not import: ModuleNotFoundError: "),
        ("stops.py", "import sys\nsys.exit(0)", "--plugin .*stops.py does not import: SystemExit: 0"),
        ("taken.py", "from genkit.errors import *\nraise GenkitError('taken')", "--plugin .*taken.py: taken"),
    ],
)
def test_plugin_that_does_not_load(tmp_path, file, text, message):
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(GenkitError, match=message):
        load_plugin(tmp_path / file)


def test_plugin_loaded_twice_is_one_entry(zoo, tmp_path):
    plugin = tmp_path / "twice.py"
    plugin.write_text(
        f"from {zoo.package}.base import ANIMALS, Animal\n"
        "@ANIMALS.register('goat')\nclass Goat(Animal):\n    def noise(self): return 'meh'\n"
    )
    assert [load_plugin(plugin), load_plugin(str(plugin))] == ["twice", "twice"]
    assert zoo.animals.names().count("goat") == 1


def test_plugin_that_takes_a_builtin_name_is_told_so(zoo):
    with pytest.raises(GenkitError, match=r"animal 'cow' is already registered by zoo\d+\.animals"):

        @zoo.animals.register("cow")
        class Mine(zoo.Animal): ...

    assert zoo.animals.get("cow").__name__ == "Cow"


def test_a_module_that_fails_to_import_fails_every_time(zoo):
    (zoo.folder / "broken.py").write_text("raise RuntimeError('broken')")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            zoo.animals.names()


# --- building -----------------------------------------------------------------------------------------


def test_build_from_name_mapping_and_instance(zoo):
    cow = zoo.animals.build("cow")
    assert (cow.legs, cow.weight) == (4, 500.0)
    assert zoo.animals.build({"name": "cow", "legs": 3}).legs == 3
    assert zoo.animals.build({"name": "cow", "legs": 3}, legs=5).legs == 5
    assert zoo.animals.build(types.MappingProxyType({"name": "cow", "legs": 3})).legs == 3
    assert zoo.animals.build("cow", 7).legs == 7
    assert zoo.animals.build(cow) is cow


def test_build_leaves_the_mapping_alone(zoo):
    spec = {"name": "cow", "legs": 3}
    zoo.animals.build(spec, weight=1.0)
    assert spec == {"name": "cow", "legs": 3}


def test_options_beside_a_built_object(zoo):
    cow = zoo.animals.build("cow")
    with pytest.raises(GenkitError, match=r"options \['legs'\] given beside a built animal"):
        zoo.animals.build(cow, legs=3)


@pytest.mark.parametrize("spec", [None, 3, ["cow"], {}, {"legs": 3}, {"name": 3}, {"name": None}])
def test_neither_name_nor_mapping(zoo, spec):
    for ask in (zoo.animals.build, zoo.animals.check):
        with pytest.raises(GenkitError, match="an? animal is a name or a mapping with `name`"):
            ask(spec)


def test_instance_of_another_kind(zoo):
    with pytest.raises(GenkitError, match="an? animal is a name or a mapping"):
        zoo.animals.build(zoo.foods.build("hay"))


@pytest.mark.parametrize(
    ("option", "hint"),
    [("leg", "; did you mean 'legs'?"), ("wieght", "; did you mean 'weight'?"), ("qqqq", "")],
)
def test_unknown_option(zoo, option, hint):
    message = re.escape(f"no option '{option}'{hint} (one of: awake, colour, food, legs, ")
    refused(zoo.animals, {"name": "cow", option: 1}, message)


def test_class_without_options(zoo):
    zoo.animals.check("egg")
    refused(zoo.animals, {"name": "egg", "legs": 0}, r"no option 'legs' \(one of: none\)")


def test_argument_given_by_position_is_no_option(zoo):
    """`given` of a registry counts the arguments that its builder passes, such as the data's shape."""
    farms = Registry(zoo.Animal, "farm animal", zoo.package, given=1)

    @farms.register("pig")
    class Pig(zoo.Animal):
        def __init__(self, farm: str, mud: int = 1) -> None:
            self.farm, self.mud = farm, mud

        def noise(self):
            return "oink"

    assert farms.resolve("pig") == {"name": "pig", "mud": 1}
    assert farms.build({"name": "pig", "mud": 2}, "Hillside").farm == "Hillside"
    with pytest.raises(GenkitError, match=r"no option 'farm' \(one of: mud\)"):
        farms.build({"name": "pig", "farm": "Hillside"}, "Hillside")
    with pytest.raises(GenkitError, match=r"no option 'farm' \(one of: mud\)"):
        farms.check({"name": "pig", "farm": "Hillside"})


def test_missing_option_is_found_by_a_check(zoo):
    with pytest.raises(GenkitError, match="^farm.yaml: the option 'fed_with' is missing"):
        zoo.animals.check({"name": "sheep", "wool": 1.0}, "farm.yaml")
    with pytest.raises(GenkitError, match="^farm.yaml: the option 'wool' is missing"):
        zoo.animals.check("sheep", "farm.yaml")


def test_missing_option_is_found_by_build(zoo):
    with pytest.raises(GenkitError, match="^animal 'sheep': the option 'fed_with' is missing"):
        zoo.animals.build({"name": "sheep", "wool": 1.0})


def test_check_without_a_place_names_the_kind(zoo):
    with pytest.raises(GenkitError, match="^animal 'cow': no option 'leg'"):
        zoo.animals.check({"name": "cow", "leg": 4})
    with pytest.raises(GenkitError, match="^animal 'sheep': the option 'wool' is missing"):
        zoo.animals.check("sheep")


def test_check_says_where(zoo):
    with pytest.raises(GenkitError, match="^farm.yaml: arms.a: an? animal is a name or a mapping"):
        zoo.animals.check(3, "farm.yaml: arms.a")
    with pytest.raises(GenkitError, match=r"^farm.yaml: arms.a: no animal 'caw'; did you mean 'cow'\?"):
        zoo.animals.check("caw", "farm.yaml: arms.a")


# --- resolving ----------------------------------------------------------------------------------------


def test_resolve_fills_in_defaults_of_nested_registries_too(zoo):
    resolved = zoo.animals.resolve({"name": "cow", "food": "hay", "spots": 3})
    assert resolved == {
        "name": "cow",
        "legs": 4,
        "weight": 500.0,
        "title": "Berta",
        "awake": True,
        "colour": "brown",
        "spots": 3,
        "yields": [],
        "size": [],
        "tags": None,
        "food": {"name": "hay", "bales": 1},
    }


def test_resolve_again_changes_nothing(zoo):
    once = zoo.animals.resolve({"name": "cow", "food": {"name": "hay", "bales": 2}})
    assert zoo.animals.resolve(once) == once
    assert zoo.animals.build(once).food == once["food"]


def test_resolved_equals_spelled_out(zoo):
    """A recipe that spells a default out is the same recipe: its fingerprint must not change."""
    plain = zoo.animals.resolve("cow")
    assert zoo.animals.resolve({"name": "cow", "legs": 4}) == plain
    assert zoo.animals.resolve({"legs": 4, "food": None, "name": "cow"}) == plain


# --- types of options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("legs", 3),
        ("weight", 1.5),
        ("weight", 2),
        ("title", ""),
        ("awake", False),
        ("colour", "white"),
        ("spots", None),
        ("spots", 7),
        ("yields", []),
        ("yields", [1, 2.5]),
        ("size", [1, 2, 3]),
        ("size", (1,)),
        ("tags", {}),
        ("tags", None),
        ("food", None),
        ("food", "hay"),
        ("food", {"name": "hay", "bales": 3}),
    ],
)
def test_right_type(zoo, option, value):
    zoo.animals.check({"name": "cow", option: value})
    zoo.animals.build("cow", **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("legs", "4", "a whole number"),
        ("legs", 4.0, "a whole number"),
        ("legs", True, "a whole number"),
        ("legs", None, "a whole number"),
        ("legs", [4], "a whole number"),
        ("weight", "heavy", "a number"),
        ("weight", True, "a number"),
        ("title", 3, "text"),
        ("title", None, "text"),
        ("awake", 1, "true or false"),
        ("awake", "yes", "true or false"),
        ("colour", "green", "one of 'brown', 'white'"),
        ("colour", None, "one of 'brown', 'white'"),
        ("spots", "many", "a whole number or null"),
        ("spots", False, "a whole number or null"),
        ("yields", 3.0, r"list\[float\]"),
        ("yields", "3.0", r"list\[float\]"),
        ("yields", [1.0, "2"], r"list\[float\]"),
        ("size", [1.0], r"tuple\[int, \.\.\.\]"),
        ("tags", ["a"], r"dict\[str, str\] or null"),
    ],
)
def test_wrong_type(zoo, option, value, wanted):
    refused(zoo.animals, {"name": "cow", option: value}, f"{option} must be {wanted}, not ")


def test_option_of_another_registry(zoo):
    """Its name and options are checked as deep as they go, and the message says where."""
    hay = zoo.foods.build("hay")
    assert zoo.animals.build("cow", food=hay).food is hay
    for food, message in [
        ("hey", "food: no food 'hey'; did you mean 'hay'"),
        ({"name": "hay", "bale": 1}, "food: no option 'bale'; did you mean 'bales'"),
        ({"name": "hay", "bales": "two"}, "food: bales must be a whole number, not 'two'"),
        ({"bales": 2}, "food: an? food is a name or a mapping"),
        (3, "food must be Food or null, not 3"),
        (zoo.animals.build("egg"), "food must be Food or null, not "),
    ]:
        refused(zoo.animals, {"name": "cow", "food": food}, message)


def test_option_of_another_registry_that_must_be_given(zoo):
    zoo.animals.check({"name": "sheep", "wool": 1, "fed_with": "hay"})
    refused(zoo.animals, {"name": "sheep", "wool": 1, "fed_with": None}, "fed_with must be Food, not None")


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (typing.Any, object()),
        (typing.Optional[int], None),  # noqa: UP045  (both spellings)
        (typing.Union[int, str], "a"),  # noqa: UP007
        (int | str | None, None),
        (typing.Literal["auto"] | int, "auto"),
        (typing.Literal["auto"] | int, 3),
        (tuple[int, str], [1, "a"]),
        (dict[str, int], {"a": 1}),
        (Path, Path()),
    ],
)
def test_value_that_fits(hint, value):
    check_value(hint, value, "x")


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (typing.Literal["auto"] | int, "auot", "x must be one of 'auto' or a whole number, not 'auot'"),
        (typing.Optional[float], "a", "x must be a number or null, not 'a'"),  # noqa: UP045
        (Path, 3, "x must be Path, not 3"),
        (int | bool, "a", "x must be a whole number or true or false, not 'a'"),
    ],
)
def test_value_that_does_not_fit(hint, value, message):
    with pytest.raises(GenkitError) as caught:
        check_value(hint, value, "x")
    assert str(caught.value) == message


def test_boolean_is_no_literal_number():
    with pytest.raises(GenkitError):
        check_value(typing.Literal[1, 2], True, "x")


def test_tuple_of_fixed_length():
    check_value(tuple[int, int], (1, 2), "x")
    for value in [(1,), (1, 2, 3)]:
        with pytest.raises(GenkitError):
            check_value(tuple[int, int], value, "x")


def test_options_without_a_hint_and_of_functions_are_accepted():
    class Free:
        def __init__(self, anything, *, other=None):
            pass

    check_options(Free, {"anything": object(), "other": 1}, "free")
    with pytest.raises(GenkitError, match=r"free: no option 'self' \(one of: anything, other\)"):
        check_options(Free, {"self": 1}, "free")


# --- every registry of genkit -------------------------------------------------------------------------


def registries() -> list[Registry]:
    for module in pkgutil.walk_packages([str(ROOT / "genkit")], "genkit."):
        if module.name != "genkit.__main__":
            importlib.import_module(module.name)
    return [found for found in Registry.by_base.values() if found.package.startswith("genkit.")]


def test_every_entry_can_be_listed_and_checked():
    """A docstring of its own to list, no **kwargs that could swallow a typo, a type for every option."""
    found = registries()
    assert {"coupling", "path", "solver"} <= {registry.kind for registry in found}
    wrong = []
    for registry in found:
        for name in registry.names():
            cls = registry.get(name)
            if not (cls.__dict__.get("__doc__") or "").strip():
                wrong.append(f"{registry.kind} '{name}' has no docstring")
            hints = typing.get_type_hints(cls.__init__)
            for parameter in inspect.signature(cls).parameters.values():
                if parameter.name == "name":
                    wrong.append(f"{registry.kind} '{name}': an option `name` cannot be set from a recipe")
                elif parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    wrong.append(f"{registry.kind} '{name}' takes {parameter}")
                elif parameter.name not in hints:
                    wrong.append(f"{registry.kind} '{name}': option {parameter.name} has no type")
    assert not wrong
