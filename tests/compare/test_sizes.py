"""Samples of another size: sampled where a model can do so, resized beside it, judged by data of that size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import genkit
from genkit.__main__ import main
from genkit.compare.evaluate import EvaluationOptions
from genkit.compare.report import size_rows
from genkit.compare.sizes import resized, shown_size
from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import Judge
from genkit.types import DataSpec

TEXT = """
data: {{name: {data}, n_train: 40, n_test: 12, {size}}}
model: {{width: 16, depth: 1, heads: 2}}
training: {{steps: 2, batch_size: 8, warmup: 0, ema: 0.0, snapshots: [1]}}
arms:
  pointwise:
    objective: {{name: ambient, points: 10}}
{more}
evaluation:
  {{samples: 8, steps: [1, 2], sizes: {sizes}, guidance: autoguidance,
    likelihood_rows: 2, likelihood: {{name: euler, steps: 1}}}}
"""
PLAIN = "  plain:\n    objective: flow_matching\n"


def test_images_are_resized_bilinearly() -> None:
    x = torch.tensor([[[[0, 16], [32, 64]]]])
    found = resized(x, DataSpec("x", (1, 4, 4), levels=65))
    assert found.dtype == torch.int64
    assert found[0, 0].tolist() == [[0, 4, 12, 16], [8, 13, 23, 28], [24, 31, 45, 52], [32, 40, 56, 64]]
    again = resized(found, DataSpec("x", (1, 4, 4), levels=65))
    assert torch.equal(again, found)


def test_points_are_taken_again() -> None:
    x = torch.randn(2, 5, 3)
    found = resized(x, DataSpec("x", (12, 3)))
    assert torch.equal(found, torch.cat((x, x, x[:, :2]), dim=1))
    assert torch.equal(resized(x, DataSpec("x", (3, 3))), x[:, :3])


@pytest.mark.parametrize(
    ("data", "size", "sizes", "more", "metric"),
    [
        ("photo_patches", "size: 8", [16], PLAIN, "frechet"),
        ("shapes", "points: 24", [40, 60], "", "cloud_matching"),
    ],
)
def test_a_report_has_each_size(
    data: str, size: str, sizes: list[int], more: str, metric: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "sizes.yaml"
    recipe.write_text(TEXT.format(data=data, size=size, sizes=sizes, more=more))
    assert main(["compare", str(recipe), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for name, arm in report["arms"].items():
        entries = arm["runs"][0]["sizes"]
        assert [entry["size"] for entry in entries] == sizes
        for entry in entries:
            assert entry["sampled"] == (name == "pointwise")
            assert entry["steps"] == 2
            assert min(entry[metric], entry["resized"][metric], entry["floor"][metric]) > 0
            assert (entry[metric] == entry["resized"][metric]) == (name == "plain")
        folder = tmp_path / "out" / arm["runs"][0]["folder"]
        real = load_file(folder / "samples.safetensors")[shown_size(sizes[0], "real")]
        of_classes = Judge(genkit.load(folder).dataset.resized(sizes[0]), 8).reference[0]
        assert torch.equal(real, of_classes)
    rows = size_rows(report)
    assert list(rows) == sizes
    names = ["pointwise, sampled", "pointwise, resized", *(["plain, resized"] if more else []), "real data"]
    assert list(rows[sizes[0]].arms) == names
    assert (tmp_path / "out" / "figures" / "sizes.png").is_file()
    assert "Other sizes" in (tmp_path / "out" / "report.html").read_text()


def test_sizes_that_cannot_be() -> None:
    for sizes in ([0], [4, 4]):
        with pytest.raises(GenkitError, match="sizes must be positive and distinct"):
            EvaluationOptions(sizes=sizes)
    with pytest.raises(GenkitError, match="evaluation: 'digits' has samples of one size only"):
        EvaluationOptions(sizes=[16]).judge(DATASETS.build("digits"))
    with pytest.raises(
        GenkitError, match="evaluation: photo_patches: window 32 must be a multiple of the size 24"
    ):
        EvaluationOptions(sizes=[24]).judge(DATASETS.build("photo_patches"))
