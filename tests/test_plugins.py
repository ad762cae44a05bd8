"""Plug-ins through the command line: the examples, files, installed packages, `genkit check`, and what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import genkit
from genkit.__main__ import main
from genkit.compare.runner import Comparison
from genkit.couplings import COUPLINGS
from genkit.errors import GenkitError
from genkit.registry import INSTALLED, PLUGINS, load_plugin
from genkit.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*_*.py"))  # plug-ins: NAME_KIND.py
GIVEN = [word for path in EXAMPLES for word in ("--plugin", str(path))]
TINY = ["model.width=24", "model.heads=2", "training.steps=6", "training.batch_size=32"]
COUPLING = """
from genkit.couplings import COUPLINGS, Coupling
from genkit.types import Pair

@COUPLINGS.register("{name}")
class Mine(Coupling):
    "Noise as it comes."
    independent = True
    def __call__({signature}):
        return Pair(self.source.sample(x1, generator=generator), x1, y, index)
"""
RIGHT = "self, x1, y=None, *, index=None, generator=None"


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """Plug-ins of a test are gone after it."""
    before = {
        registry: {name: registry.get(name) for name in registry.names()} for registry in (COUPLINGS, SOLVERS)
    }
    yield
    for registry, entries in before.items():
        registry._entries.clear()
        registry._entries.update(entries)
    for module in [*PLUGINS]:
        if module.startswith(("genkit_plugin_", "package_of_")):
            PLUGINS.pop(module)
            INSTALLED.pop(module, None)
            sys.modules.pop(module, None)


def write(folder: Path, name: str = "mine", signature: str = RIGHT, more: str = "") -> Path:
    path = folder / f"{name}_file.py"
    path.write_text(COUPLING.format(name=name, signature=signature) + more)
    return path


def refused(capsys, argv: list[str], *words: str) -> None:
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("genkit: error: ")
    assert len(told.err.splitlines()) == 1
    for word in words:
        assert word in told.err


# the examples


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_keeps_its_laws(path: Path, capsys) -> None:
    assert len(path.read_text().splitlines()) < 30
    name, _, kind = path.stem.rpartition("_")
    assert main(["check", kind, name, "--plugin", str(path)]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_a_recipe_uses_the_examples(tmp_path, capsys) -> None:
    out, recipe = tmp_path / "run", str(ROOT / "examples/recipe.yaml")
    refused(
        capsys,
        ["train", recipe, *TINY, "--out", str(out)],
        "needs the plug-in 'antithetic_coupling'",
        "--plugin",
    )
    assert main(["train", recipe, *TINY, "--out", str(out), *GIVEN]) == 0
    assert main(["sample", str(out), "-n", "4", "--out", str(tmp_path / "x.png"), *GIVEN]) == 0
    assert capsys.readouterr().out.endswith("4 samples of run, 8 network calls in sequence\n")
    config = yaml.safe_load((out / "recipe.yaml").read_text())
    assert config["plugins"] == ["adams_bashforth_solver", "antithetic_coupling"]


def test_an_arm_names_the_plugins_that_it_uses(tmp_path) -> None:
    """Its run needs no others of its comparison's."""
    plugins = [load_plugin(write(tmp_path, name)) for name in ("mine", "other")]
    arms = {name: {"objective": {"name": "flow_matching", "coupling": name}} for name in ("mine", "ot")}
    config = {"data": "digits", "plugins": plugins, "arms": arms}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    made = Comparison.load(tmp_path / "c.yaml")
    assert [made.recipe(arm, 0).config["plugins"] for arm in arms] == [["mine_file"], []]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | {"plugins": "mine_file"}))
    with pytest.raises(GenkitError, match="plugins must be a list of names"):
        Comparison.load(tmp_path / "c.yaml")


# installed packages


@pytest.fixture
def installed(tmp_path, monkeypatch) -> str:
    """A package with a plug-in, as pip would have put it there: its coupling, in a module of its own, and its entry
    point `spare`."""
    site = tmp_path / "site"
    package, info = site / "package_of_mine", site / "package_of_mine-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text("from package_of_mine import couplings\n")
    (package / "couplings.py").write_text(COUPLING.format(name="spare_noise", signature=RIGHT))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: package-of-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[genkit.plugins]\nspare = package_of_mine.plugin\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    return "spare_noise"


def forget_installed() -> None:
    COUPLINGS._entries.pop("spare_noise", None)
    for module in [module for module in sys.modules if module.startswith("package_of_mine")]:
        PLUGINS.pop(module, None)
        INSTALLED.pop(module, None)
        del sys.modules[module]


def test_installed_plugins_run_when_they_are_trusted(installed, tmp_path, capsys) -> None:
    recipe, out = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(f"data: digits\nobjective: {{name: flow_matching, coupling: {installed}}}\n")
    refused(capsys, ["train", str(recipe), *TINY, "--out", str(out)], "no coupling 'spare_noise'")
    assert main(["list", "couplings", "--trust-plugins"]) == 0
    assert "spare_noise" in capsys.readouterr().out
    assert main(["train", str(recipe), *TINY, "--out", str(out), "--trust-plugins"]) == 0
    assert yaml.safe_load((out / "recipe.yaml").read_text())["plugins"] == ["spare"]
    assert main(["check", "coupling", installed, "--trust-plugins"]) == 0
    capsys.readouterr()

    forget_installed()
    with pytest.raises(GenkitError, match="needs the plug-in 'spare': it is installed: give --trust-plugins"):
        genkit.load(out)
    assert "package_of_mine" not in sys.modules
    refused(
        capsys, ["evaluate", str(out)], "needs the plug-in 'spare': it is installed: give --trust-plugins"
    )
    assert genkit.load(out, trust_plugins=True).sample(2, steps=1).x.shape == (2, 1, 8, 8)
    forget_installed()


def test_an_edited_package_is_another_plugin(installed, tmp_path, capsys) -> None:
    """A change in any of its modules that registers something makes another recipe."""
    recipe, out = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(f"data: digits\nobjective: {{name: flow_matching, coupling: {installed}}}\n")
    argv = ["train", str(recipe), *TINY, "--out", str(out), "--trust-plugins"]
    assert main(argv) == 0
    capsys.readouterr()
    forget_installed()
    file = tmp_path / "site/package_of_mine/couplings.py"
    file.write_text(file.read_text() + "# edited\n")
    refused(capsys, argv, "another run", "plug-ins were others")
    forget_installed()


# check, and what is refused


def test_the_status_of_a_check(tmp_path, capsys) -> None:
    right = write(tmp_path)
    assert main(["check", "coupling", "mine", "--plugin", str(right)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "coupling 'mine' (mine_file.Mine)"
    assert lines[-1] == "10 of 10 laws hold"
    assert any(line.startswith("  passed  data rows stay in place: 0 of 48 rows differ") for line in lines)
    wrong = tmp_path / "wrong_file.py"
    wrong.write_text(COUPLING.format(name="wrong", signature=RIGHT).replace("), x1, y", "), x1.flip(0), y"))
    assert main(["check", "coupling", "wrong", "--plugin", str(wrong)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  FAILED  data rows stay in place: ") for line in lines)
    assert lines[-1] == "7 of 10 laws hold"


def test_options_are_those_of_the_class(capsys) -> None:
    assert main(["check", "path", "bridge", "sigma=0.3"]) == 0
    assert main(["check", "metric", "energy_distance", "data=moons"]) == 0
    capsys.readouterr()
    refused(capsys, ["check", "path", "bridge", "sigmma=0.3"], "no option 'sigmma'; did you mean 'sigma'")
    refused(capsys, ["check", "path", "bridge", "sigma=-1"], "sigma must not be negative")
    refused(capsys, ["check", "dataset", "hub"], "the option 'path' is missing")
    refused(capsys, ["check", "paths", "bridge"], "did you mean 'path'")
    refused(capsys, ["check", "path", "brigde"], "did you mean 'bridge'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", ["does not import: ModuleNotFoundError"]),
        ("def", ["does not import: SyntaxError"]),
        (
            COUPLING.format(name="ot", signature=RIGHT),
            ["coupling 'ot' is already registered by genkit.couplings.ot"],
        ),
        (
            COUPLING.format(name="mine", signature="self, x1, generator=None"),
            [
                "Mine.__call__(self, x1, generator=None) must be callable as Coupling.__call__(self, x1, y=None, *"
            ],
        ),
        (
            COUPLING.format(name="mine", signature=RIGHT).replace("__call__", "call"),
            ["coupling 'mine': Mine does not define __call__"],
        ),
        (
            COUPLING.format(name="mine", signature=RIGHT).replace("(Coupling)", ""),
            ["is not a subclass of Coupling"],
        ),
    ],
)
def test_a_plugin_that_will_not_do(text, words, tmp_path, capsys) -> None:
    path = tmp_path / "bad_file.py"
    path.write_text(text)
    for argv in (
        ["list"],
        ["check", "coupling", "mine"],
        ["train", str(ROOT / "recipes/papers/tarflow/small.yaml")],
    ):
        refused(capsys, [*argv, "--plugin", str(path)], f"--plugin {path}", *words)
