"""The shape of the code base: imports go one way, the command line is light, the project files agree."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first: a module imports from its own package and from lower layers only.
LAYERS = (
    ("errors", "files", "memory", "processes", "randomness", "streams", "tensors", "types", "registry"),
    (
        *("backbone", "paths", "couplings", "solvers", "guidance"),
        *("inversion", "unmasking", "data", "metrics"),
    ),
    ("objectives",),
    ("particles",),
    ("training",),
    ("recipe",),
    ("compare", "testing"),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


# --- imports go one way -------------------------------------------------------------------------------


def sources(root: Path = ROOT) -> dict[str, str]:
    """Module name -> text, for all modules of genkit; packages are named with a trailing `.__init__`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted((root / "genkit").rglob("*.py"))
    }


def imports(text: str, module: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that `module` imports, at any depth of the file.

    `from a import b` is a.b where that is a module, else a. Also `genkit.b` after `import genkit`, and
    `import_module("a")` with a plain string.
    """
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "genkit" or alias.asname:  # what is taken from plain genkit is seen below
                    yield node.lineno, alias.name
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "genkit"
        ):
            yield node.lineno, f"genkit.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in modules or base == "genkit":
                    yield node.lineno, full
                else:
                    yield node.lineno, base
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if (
                called in ("import_module", "__import__")
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                base = "genkit" if first.value.startswith(".") else ""
                yield node.lineno, base + first.value


def why_wrong(module: str, target: str) -> str | None:
    """Why `module` may not import `target`, or None if it may."""
    here = module.split(".")
    there = target.split(".")
    if there[0] != "genkit" or here[:2] == ["genkit", "__init__"]:
        return None
    if len(there) == 1:
        return "import from the module that defines it, not from genkit"
    own, other = here[1], there[1]
    if re.fullmatch(r"__\w+__", other) and other != "__main__":  # genkit.__version__
        return None
    if own not in RANK:
        return f"genkit.{own} has no layer"
    if other not in RANK:
        return f"genkit.{other} has no layer: import from the module that defines it"
    if own == other or RANK[own] > RANK[other] or RANK[own] == RANK[other] == 0:
        return None
    if RANK[own] < RANK[other]:
        return f"{own} is below {other}"
    if there[2:3] == ["base"]:
        return None
    return f"{own} and {other} are siblings: they share `base` modules only"


def wrong_arrows(texts: dict[str, str]) -> list[str]:
    modules = {name.removesuffix(".__init__") for name in texts}
    return [
        f"{module}:{line} imports {target}: {reason}"
        for module, text in texts.items()
        for line, target in imports(text, module, modules)
        if (reason := why_wrong(module, target))
    ]


def test_imports_go_one_way():
    texts = sources()
    assert len(texts) > 10
    assert not wrong_arrows(texts)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("genkit.couplings.ot", "from genkit.objectives import OBJECTIVES"),
        ("genkit.couplings.ot", "import genkit.objectives.base"),
        ("genkit.couplings.ot", "import torch, genkit.training as t"),
        ("genkit.couplings.ot", "from genkit import recipe"),
        ("genkit.couplings.ot", "from genkit import load"),
        ("genkit.couplings.ot", "import genkit\nrun = genkit.load('x')"),
        ("genkit.couplings.ot", "import genkit.errors\ngenkit.recipe.load('x')"),
        ("genkit.couplings.ot", "import genkit as g\nrun = g.load('x')"),
        ("genkit.couplings.ot", "def f():\n    from genkit.solvers.euler import Euler"),
        ("genkit.couplings.ot", "class A:\n    def f(self):\n        import genkit.solvers"),
        ("genkit.couplings.ot", "if TYPE_CHECKING:\n    from genkit.compare import Arm"),
        ("genkit.couplings.ot", "from ..solvers import euler"),
        ("genkit.couplings.ot", "from ..solvers.euler import Euler"),
        ("genkit.couplings.ot", "from .. import training"),
        ("genkit.couplings.ot", "import importlib\nimportlib.import_module('genkit.training')"),
        ("genkit.couplings.__init__", "from ..recipe import load"),
        ("genkit.couplings.base", "from genkit.data.digits import Digits"),
        ("genkit.couplings.base", "from genkit.data import base, digits"),
        ("genkit.errors", "from genkit.backbone.base import x"),
        ("genkit.types", "from .solvers import base"),
        ("genkit.objectives.base", "from genkit.particles import P"),
        ("genkit.training", "from genkit import recipe"),
        ("genkit.recipe", "from genkit.compare.base import run"),
        ("genkit.compare.figures", "from genkit.testing import laws"),
        ("genkit.testing", "from genkit.__main__ import main"),
        ("genkit.helpers", "from genkit.errors import GenkitError"),
        ("genkit.recipe", "from genkit.helpers import x"),
    ],
)
def test_planted_wrong_arrow_is_caught(module, line):
    texts = sources()
    texts |= {"genkit.solvers.euler": "", "genkit.data.digits": "", "genkit.data.base": ""}
    texts[module] = line
    assert any(found.startswith(f"{module}:") for found in wrong_arrows(texts))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("genkit.couplings.ot", "from genkit.errors import GenkitError\nfrom genkit import types"),
        ("genkit.couplings.ot", "from .base import Coupling\nfrom . import base\nimport genkit.couplings"),
        ("genkit.couplings.ot", "from genkit.data.base import Views\nfrom genkit import randomness"),
        ("genkit.data.digits", "from genkit.paths.base import Path"),
        ("genkit.registry", "from genkit.errors import choose"),
        ("genkit.objectives.energy", "from genkit.solvers import SOLVERS"),
        ("genkit.compare.report", "from genkit import __version__\nfrom ..recipe import load"),
        ("genkit.recipe", "import genkit\nprint(genkit.__version__)"),
        ("genkit.__main__", "import genkit.compare\nfrom genkit.testing import check"),
        ("genkit.__init__", "from genkit.recipe import load"),
        ("genkit.paths.linear", "from __future__ import annotations\nimport torch\nimport genkitlike"),
    ],
)
def test_right_arrow_is_left_alone(module, line):
    texts = sources() | {"genkit.data.base": "", module: line}
    assert not [found for found in wrong_arrows(texts) if found.startswith(f"{module}:")]


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "genkit").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


# --- heavy imports wait -------------------------------------------------------------------------------

HEAVY = ("torch", "lightning", "torchmetrics", "matplotlib", "datasets", "scipy", "sklearn", "ot", "pandas")


def imported_by(*arguments: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter imports on its way through `arguments`."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", done.stderr, flags=re.MULTILINE)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "arguments",
    [("-c", "import genkit"), ("-m", "genkit", "--help"), ("-m", "genkit", "compare", "--help")],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments):
    names = imported_by(*arguments)
    assert "genkit" in names
    assert not names & set(HEAVY)


def test_heavy_imports_would_be_seen():
    assert "safetensors" in imported_by("-c", "import safetensors")


# --- the project files agree with the code ------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNIMPORTED = {
    "tensorboard",  # Lightning's TensorBoard logger asks for it
}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(text: str) -> str:
    return plain(re.split(r"[\s<>=!~\[;]", text, maxsplit=1)[0])


def imported_distributions() -> dict[str, set[str]]:
    """Distribution -> the genkit modules that import it."""
    providers = importlib.metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    texts = sources()
    for module, text in texts.items():
        for _, target in imports(text, module, set(texts)):
            top = target.partition(".")[0]
            if top and top != "genkit" and top not in sys.stdlib_module_names:
                for name in providers.get(top, [f"nothing installed, for {top}"]):
                    found.setdefault(plain(name), set()).add(module)
    return found


def test_imports_are_declared_dependencies():
    """Among all that one may install to use genkit: the dependencies, and the extras but that of developers."""
    extras = [texts for name, texts in PROJECT["optional-dependencies"].items() if name != "dev"]
    declared = {requirement(text) for texts in (PROJECT["dependencies"], *extras) for text in texts}
    undeclared = {name: where for name, where in imported_distributions().items() if name not in declared}
    assert not undeclared


def test_declared_dependencies_are_imported():
    declared = {requirement(text) for text in PROJECT["dependencies"]}
    assert not declared - set(imported_distributions()) - UNIMPORTED


def test_constraints_pin_every_dependency_exactly():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())  # no +cpu, no markers
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert not {requirement(text) for text in asked} - {plain(name) for name in pins}


def test_command_is_the_declared_entry_point():
    assert PROJECT["scripts"] == {"genkit": "genkit.__main__:main"}
    spec = importlib.util.find_spec("genkit.__main__")
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


# --- files say nothing about the machine they were written on -----------------------------------------

# Written in parts, so that this file passes too.
FORBIDDEN = re.compile(
    "|".join(
        (
            r"(?<![\w.~-])/" + r"work/",
            r"\.\./" + r"shared\b",
            r"(?<![\w.~-])/" + r"opt/(pypi|wheels)",
            r"\bpypi\." + r"org\b",
            r"\bpython" + r"hosted\b",
            r"\bdownload\.py" + r"torch\b",
            r"--(extra-)?index" + r"-url\s+\S*:/",
        )
    )
)


def files_of_the_project() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_private_path_or_a_package_host():
    found = []
    for path in files_of_the_project():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and weights
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN.finditer(text)]
    assert not found


@pytest.mark.parametrize("text", ["cd /" + "work/main", "see ../" + "shared/x.md", "https://pypi." + "org/x"])
def test_private_path_would_be_found(text):
    assert FORBIDDEN.search(text)
    assert not FORBIDDEN.search("a frame/" + "work/x, net" + "work/y, ~/" + "work/z")
