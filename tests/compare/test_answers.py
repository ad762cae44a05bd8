"""A comparison of data with tasks: figures by task, and a report that shows images and plays sounds."""

import base64
import io
import json
import re
import wave

import pytest
import yaml
from PIL import Image

from genkit.__main__ import main
from genkit.compare.numbers import main_measure
from genkit.compare.report import headline
from genkit.recipe import Recipe, train

TONES = {"name": "tones", "n_train": 60, "n_test": 300}  # as many as make all tasks likely
SMALL = {
    "model": {"width": 16, "depth": 2, "heads": 2},
    "training": {"steps": 2, "batch_size": 8, "log_every": 1},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    codec = {"name": "autoencoder", "frames": 16, "levels": [4, 3], "iterations": 2}
    train(Recipe.resolve({"data": TONES, "objective": codec, **SMALL}), folder / "codec")
    recipe = {
        "data": {"name": "trimodal", "codec": str(folder / "codec"), "sounds": TONES},
        **SMALL,
        "arms": {"<model>": {"objective": "masked_diffusion"}},
        "evaluation": {"samples": 150, "steps": [1, 2], "likelihood_rows": 10},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(folder / "recipe.yaml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_the_page_has_images_players_and_words_of_every_task(out):
    page = (out / "report.html").read_text()
    answers = page[page.index('id="answers"') :].partition("</section>")[0]
    tasks = re.findall(r'<div class="steps">([\w-]+)</div>', answers)
    assert tasks == ["text-to-image", "image-to-text", "text-to-sound", "sound-to-text", "text"]
    assert "&lt;model&gt;, 2 steps" in answers
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)">([^<]+)</label>', answers)
    assert len(pictures) >= 8
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0][0]))).size == (32, 32)
    assert pictures[0][1] in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    players = re.findall(r'src="data:audio/wav;base64,([^"]+)"', answers)
    assert len(players) >= 2
    with wave.open(io.BytesIO(base64.b64decode(players[0]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (4000, 256)


def test_what_the_report_knows(out):
    report = json.loads((out / "report.json").read_text())
    (run,) = report["arms"]["<model>"]["runs"]
    assert [point["steps"] for point in run["points"]] == [1, 2]
    assert report["data"]["tasks"] == [
        "text-to-image",
        "image-to-text",
        "text-to-sound",
        "sound-to-text",
        "text",
    ]
    assert set(report["floor"]) == {metric["name"] for metric in report["metrics"]}
    assert set(run["texts"]) == {f"steps_{k}.{task}" for k in (1, 2) for task in report["data"]["tasks"]}


def shares(values):
    """A report of one arm with the figures of two tasks."""
    metrics = [
        {"name": "image_to_text", "words": "share of images named", "lower": False},
        {"name": "sample_entropy", "words": "sample entropy", "lower": None},
        {"name": "text_to_image", "words": "share of images of the name asked for", "lower": False},
    ]
    points = [
        {"nfe": nfe, "steps": nfe, "seconds": 1.0, "tokens": 73.0, "image_to_text": a, "text_to_image": b}
        for nfe, a, b in values
    ]
    run = {"points": points, "bits_per_dim": None}
    return {"arms": {"one": {"runs": [run]}}, "metrics": metrics, "data": {"tasks": ["text"]}, "floor": {}}


def test_one_arm_is_summed_up_by_its_right_answers():
    report = shares([(1, 0.5, 0.75), (8, 0.9, 0.25)])
    assert main_measure(report) == ("image_to_text", "share of images named", False)
    words = headline(report)
    assert words == (
        "one, with 8 network evaluations: share of images named 0.900; "
        "share of images of the name asked for 0.250."
    )
    report["metrics"] = []
    assert headline(report) == "one answers in 1 tasks."
