"""`genkit new`: each starter file passes its check, and nothing of the user's is written over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genkit.__main__ import main
from genkit.errors import GenkitError
from genkit.registry import PLUGINS
from genkit.testing import KINDS, registry_of
from genkit.testing.starters import STARTERS, starter


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """In a folder of its own; what plug-ins registered is gone after it."""
    monkeypatch.chdir(tmp_path)
    known = {kind: set(registry_of(kind).names()) for kind in KINDS}
    yield tmp_path
    for kind, names in known.items():
        for name in set(registry_of(kind).names()) - names:
            module = registry_of(kind)._entries.pop(name).__module__
            PLUGINS.pop(module, None)
            sys.modules.pop(module, None)


@pytest.mark.parametrize("kind", STARTERS)
def test_a_starter_passes_its_check(kind, capsys):
    assert main(["new", kind, "brand_new"]) == 0
    assert capsys.readouterr().out == (
        f"brand_new.py: try: genkit check {kind} brand_new --plugin brand_new.py\n"
    )
    assert main(["check", kind, "brand_new", "--plugin", "brand_new.py"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{registry_of(kind).kind} 'brand_new' (brand_new.BrandNew)\n  passed  ")
    assert "FAILED" not in out


def test_starters_are_well_formatted():
    for kind in STARTERS:
        Path(f"{kind}_.py").write_text(starter(kind, "brand_new"))
    for command in (["check", "--select", "E,F,W,UP,B"], ["format", "--check"]):
        tool = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "110", "."]
        done = subprocess.run(tool, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_file_that_is_there_is_not_written_over(capsys):
    Path("mine.py").write_text("x = 1\n")
    assert main(["new", "coupling", "mine"]) == 2
    assert "mine.py is there already, and is not written over" in capsys.readouterr().err
    assert Path("mine.py").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("cuopling", "mine", "no kind of starter file 'cuopling'; did you mean 'coupling'"),
        ("objective", "mine", "no starter file of the kind objective: begin with a copy"),
        ("coupling", "ot", "the name 'ot' is taken"),
        ("coupling", "Mine", "'Mine' is no name"),
        ("coupling", "../mine", "is no name"),
        ("coupling", "torch", "torch.py would hide the module 'torch' from Python"),
        ("coupling", "random", "would hide the module"),
    ],
)
def test_names_and_kinds_that_will_not_do(kind, name, message, capsys, here):
    assert main(["new", kind, name]) == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())


def test_a_starter_of_no_kind():
    with pytest.raises(GenkitError, match="no kind of starter file"):
        starter("nothing", "mine")
