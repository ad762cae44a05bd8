"""Sampling a discrete run through the command line and from Python: prompts, infilling, unmaskers, kinds of files."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import numpy
import pytest
import torch

import genkit
from genkit.__main__ import main
from genkit.errors import GenkitError
from genkit.unmasking import UNMASKERS

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box quietly under a jade sphinx "
LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked diffusion trained for a few steps on a text file of its own, through the command line."""
    place = tmp_path_factory.mktemp("text")
    (place / "words.txt").write_text((WORDS + "\n") * 40)
    recipe = place / "recipe.yaml"
    recipe.write_text(
        f"data: {{name: pydoc, file: {place / 'words.txt'}, length: {LENGTH}}}\n"
        "objective: masked_diffusion\n"
        "model: {width: 24, depth: 1, heads: 2}\n"
        "training: {steps: 6, batch_size: 8, lr: 1.0e-2, warmup: 0, ema: 0.0}\n"
        "sampling: {unmasker: {name: confidence, steps: 3}}\n"
    )
    assert main(["train", str(recipe), "--out", str(place / "run")]) == 0
    return place / "run"


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *words: str) -> None:
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("genkit: error:")
    assert error.count("\n") == 1
    for word in words:
        assert word in error, error


def texts(path: Path) -> list[str]:
    return path.read_text().split("\n\n---\n\n")


def test_text_is_written_by_default(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(folder), "-n", "3"]) == 0
    found = texts(tmp_path / "samples.txt")
    assert [len(text) for text in found] == [LENGTH] * 3
    assert all(re.fullmatch(r"[\n -~]*", text) for text in found)


@pytest.mark.parametrize("unmasker", UNMASKERS.names())
def test_a_prompt_stays_as_it_is_under_every_unmasker(folder: Path, tmp_path: Path, unmasker: str) -> None:
    out = tmp_path / "x.txt"
    argv = ["sample", str(folder), "-n", "2", "--prompt", "the quick", "--out", str(out)]
    assert main([*argv, "--unmasker", unmasker]) == 0
    assert all(text.startswith("the quick") and len(text) == LENGTH for text in texts(out))


def test_infilling(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.txt"
    prompt = "the [[5]] brown fox"
    assert (
        main(["sample", str(folder), "-n", "4", "--prompt", prompt, "--out", str(out), "--top-p", "0.9"]) == 0
    )
    for text in texts(out):
        assert text.startswith("the ")
        assert text[9:19] == " brown fox"


def test_temperature_zero_is_the_most_probable(folder: Path) -> None:
    run = genkit.load(folder)
    options = {"unmasker": "left_to_right", "temperature": 0.0, "prompt": "seven"}
    first, second = (run.sample(2, seed=seed, **options).x for seed in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[1])


def test_the_recipes_unmasker_is_the_default(folder: Path) -> None:
    run = genkit.load(folder)
    assert run.sample(2).nfe == 3
    assert run.sample(2, steps=5).nfe == 5
    assert run.sample(2, unmasker={"name": "margin", "steps": 2}).nfe == 2
    assert run.sample(2, unmasker=UNMASKERS.build("margin", steps=4)).nfe == 4


def test_guidance_of_a_prompt_costs_twice_the_tokens_and_scale_1_is_off(folder: Path) -> None:
    run = genkit.load(folder)
    plain, off, twice = (
        run.sample(2, prompt="seven wizards", guidance=scale) for scale in (None, 1.0, 100.0)
    )
    assert torch.equal(plain.x, off.x)
    assert twice.tokens == 2 * plain.tokens
    assert not torch.equal(plain.x, twice.x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--solver", "heun"], ["takes no solver", "unmasker", "confidence"]),
        (["--unmasker", "confidense"], ["did you mean 'confidence'"]),
        (["--unmasker", "entropy", "--steps", "4"], ["entropy", "'steps'"]),
        (["--steps", "0"], ["at least 1 step"]),
        (["--temperature", "-1"], ["temperature"]),
        (["--temperature", "nan"], ["temperature"]),
        (["--top-p", "0"], ["top_p"]),
        (["--prompt", "x" * LENGTH], [f"{LENGTH}"]),
        (["--prompt", "x" * (LENGTH + 1)], [f"{LENGTH + 1}"]),
        (["--prompt", "na\u00efve"], ["\u00ef"]),
        (["--task", "text-to-image"], ["task"]),
        (["--unmasker", "0"], ["a name or a mapping", "0.0"]),
        (["--class", "1"], ["unconditional"]),
        (["--out", "x.png"], ["no pictures", ".txt"]),
        (["--out", "x.wav"], ["no sound", ".txt"]),
    ],
)
def test_wrong_requests(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["sample", str(folder), *arguments], *words)
    assert not list(tmp_path.iterdir())


def test_arms_are_of_comparisons(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused(capsys, ["evaluate", str(folder), "unmaskers_on=[a]"], "unmaskers_on", "comparison")


def test_a_log_probability_of_a_sample_is_refused(folder: Path) -> None:
    with pytest.raises(GenkitError, match="ask log_prob"):
        genkit.load(folder).sample(2, return_log_prob=True)


def test_data_of_another_vocabulary(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    """The recipe beside the weights was changed by hand: the weights know what they were trained on."""
    other = tmp_path / "run"
    other.mkdir()
    for name in ("model.safetensors", "environment.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    recipe = (folder / "recipe.yaml").read_text()
    assert "tokens: ascii" in recipe
    (other / "recipe.yaml").write_text(recipe.replace("tokens: ascii", "tokens: characters"))
    refused(capsys, ["evaluate", str(other)], "another vocabulary", "recipe.yaml")


def test_figures_of_data_that_have_changed(folder: Path, tmp_path: Path) -> None:
    """It is told, and the run can be sampled."""
    run, text = tmp_path / "run", folder.parent / "words.txt"
    shutil.copytree(folder, run)
    options = ["samples=4", "steps=[1]", "likelihood_rows=0"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the data of")
        assert main(["evaluate", str(run), *options]) == 0
        (tmp_path / "words.txt").write_text(text.read_text().replace("a", "b"))
        config = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(config.replace(str(text), str(tmp_path / "words.txt")))
        assert main(["sample", str(run), "-n", "1", "--steps", "1", "--out", str(tmp_path / "x.txt")]) == 0
    with pytest.warns(UserWarning, match=r"the data of .*recipe.yaml have changed since run was trained"):
        assert main(["evaluate", str(run), *options]) == 0


def test_continuous_objectives_refuse_symbols_without_order(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    data = folder.parent / "words.txt"
    for name in ("flow_matching", "normalizing_flow"):
        recipe.write_text(f"data: {{name: pydoc, file: {data}}}\nobjective: {name}\n")
        refused(
            capsys, ["train", str(recipe), "--out", str(tmp_path / "run")], "no order", "masked_diffusion"
        )

    recipe.write_text("data: moons\nobjective: masked_diffusion\n")
    refused(capsys, ["train", str(recipe), "--out", str(tmp_path / "run")], "real-valued", "flow_matching")


# --- models of points --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["photo_patches", "shapes"])
def pointwise(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8x8, or clouds of 24 points, trained point by point for two steps."""
    place = tmp_path_factory.mktemp("points")
    size = "size: 8" if request.param == "photo_patches" else "points: 24"
    (place / "recipe.yaml").write_text(
        f"data: {{name: {request.param}, n_train: 64, n_test: 16, {size}}}\n"
        "objective: {name: ambient, points: 10}\n"
        "model: {width: 16, depth: 1, heads: 2}\n"
        "training: {steps: 2, batch_size: 8, warmup: 0, ema: 0.0}\n"
    )
    assert main(["train", str(place / "recipe.yaml"), "--out", str(place / "run")]) == 0
    return place / "run"


def test_points_are_sampled_at_another_size(
    pointwise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = genkit.load(pointwise)
    cloud = run.spec.cloud
    size = ["--points", "40"] if cloud else ["--resolution", "12"]
    argv = ["sample", str(pointwise), "-n", "3", "--steps", "1"]
    assert main([*argv, *size, "--out", str(tmp_path / "x.npy")]) == 0
    shape = (3, 40, 3) if cloud else (3, 1, 12, 12)
    assert numpy.load(tmp_path / "x.npy").shape == shape
    assert main([*argv, *size, "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    other = "--resolution" if cloud else "--points"
    refused(
        capsys, [*argv, other, "12"], f"{other[2:]} is not for '{run.spec.name}'", "images have a resolution"
    )
    refused(capsys, [*argv, size[0], "0"], "at least 1, not 0")
    refused(capsys, [*argv, size[0], "12", "--beta", "2"], f"{size[0]} is not for particles")


def test_other_models_have_one_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["sample", str(folder), "--resolution", "32"], "resolution is not for 'text:words.txt'")
