"""What is printed of a run, finished or not, and of a comparison."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest
import torch

from genkit.__main__ import main
from genkit.compare.terminal import Terminal
from genkit.recipe import Recipe, train
from genkit.training.machine import made_with, revision

CONFIG = {
    "data": "moons",
    "seed": 7,
    "model": {"width": 8, "depth": 1, "heads": 1, "patch": 1},
    "objective": "flow_matching",
    "training": {"steps": 4, "batch_size": 8, "checkpoint_every": 2},
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and one that was stopped after its second step."""
    folder = tmp_path_factory.mktemp("info")
    train(Recipe.resolve(CONFIG), folder / "one")

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(
            Recipe.resolve({**CONFIG, "training": {**CONFIG["training"], "log_every": 1}}),
            folder / "two",
            report=stop,
        )
    return folder


def printed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["info", str(folder)]) == 0
    return capsys.readouterr().out


def test_a_run(runs: Path, capsys, monkeypatch) -> None:
    words = printed(runs / "one", capsys, monkeypatch)
    held = json.loads((runs / "one/environment.json").read_text())
    for word in (
        "finished: 4 steps in",
        "flow_matching",
        f"moons ({held['data_hash'][:12]})",
        f"{held['parameters']:,}",
        "float32",
        "cpu (",
        f"torch {torch.__version__}",
        held["fingerprint"][:12],
    ):
        assert word in words
    assert (held["seed"], held["precision"], held["processes"]) == (7, "float32", 1)
    assert held["threads"] == torch.get_num_threads()


def test_a_run_that_is_not_finished(runs: Path, capsys, monkeypatch) -> None:
    assert "not finished: a checkpoint of step 2" in printed(runs / "two", capsys, monkeypatch)


def test_a_comparison(runs: Path, capsys, monkeypatch) -> None:
    lines = printed(runs, capsys, monkeypatch).splitlines()
    (one,) = (line for line in lines if "one" in line)
    (two,) = (line for line in lines if "two" in line)
    assert "finished: 4 steps" in one
    assert "step 2" in two


def test_what_is_no_run(runs: Path, tmp_path: Path, capsys) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert "neither the folder of a run nor of a comparison" in capsys.readouterr().err
    assert main(["info", str(runs / "onne")]) == 2
    assert "did you mean 'one'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"versions": ["torch"]}, "'versions' is no object"),
        ({"teacher": "nf"}, "'teacher' is no object"),
        ({"parameters": "many"}, None),
        ({"teacher": {"folder": "nf"}}, None),
        ({"bad_steps": 2, "finished": False}, None),
    ],
)
def test_a_damaged_environment(
    runs: Path, tmp_path: Path, capsys, monkeypatch, changes: dict[str, object], word: str | None
) -> None:
    held = json.loads((runs / "two/environment.json").read_text())
    (tmp_path / "recipe.yaml").write_text((runs / "two/recipe.yaml").read_text())
    (tmp_path / "environment.json").write_text(json.dumps(held | changes))
    if word is None:
        assert "not finished" in printed(tmp_path, capsys, monkeypatch)
    else:
        assert main(["info", str(tmp_path)]) == 2
        assert word in capsys.readouterr().err


def test_a_terminal_obeys_nothing_in_a_run(runs: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    run = tmp_path / "x[b] \x1b[2J"
    run.mkdir()
    held = json.loads((runs / "two/environment.json").read_text())
    (run / "recipe.yaml").write_text((runs / "two/recipe.yaml").read_text())
    (run / "environment.json").write_text(json.dumps(held | {"command": "a\x1b]0;b\x07\u202ec"}))
    for folder in (run, tmp_path):
        words = printed(folder, capsys, monkeypatch)
        assert "x[b] \\x1b[2J" in words
        assert not set("\x1b\x07\u202e") & set(words)
    assert "a\\x1b]0;b\\x07\\u202ec" in printed(run, capsys, monkeypatch)


def test_a_table_whose_reader_has_gone_is_a_broken_pipe() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Terminal(file=Gone()).print("words")


def test_what_a_run_is_made_with(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["genkit", "train", "my recipe.yaml"])
    assert made_with()["command"] == "genkit train 'my recipe.yaml'"
    assert made_with()["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except OSError:
        pytest.skip("git is not here")
    (tmp_path / "__init__.py").write_text("")
    assert revision(tmp_path) is None  # not tracked
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    found = revision(tmp_path)
    assert found is not None
    assert len(found) == 12
    (tmp_path / "__init__.py").write_text("x = 1")
    assert revision(tmp_path) == f"{found}-dirty"
