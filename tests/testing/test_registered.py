"""Every registered entry of every kind that has laws keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genkit.data import DATASETS
from genkit.data.base import Codec, Dataset
from genkit.errors import GenkitError
from genkit.testing import KINDS, check, registry_of

# What has more to keep with options of its own, and what the defaults do not show.
MORE: list[tuple[str, str, dict[str, Any]]] = [
    ("coupling", "distilled", {"noise": 0.1, "spread": 0.5}),
    ("grid", "edm", {"rho": 1.0, "low": 0.01}),
    ("grid", "logit_normal", {"mean": -8.0, "std": 8.0}),
    ("grid", "power", {"exponent": 0.5}),
    ("grid", "shifted", {"m": 16, "n": 4096}),
    ("grid", "u_shaped", {"strength": 40.0}),
    ("guidance", "classifier_free", {"scale": 3.0, "annealed": True}),
    ("guidance", "corrected", {"annealed": True}),
    ("guidance", "interval", {"start": 0.0, "stop": 1.0}),
    ("guidance", "rescaled", {"phi": 1.0}),
    ("inverter", "gauss_seidel_jacobi", {"block": 3}),
    ("inverter", "jacobi", {"tolerance": 0.0}),
    ("objective", "flow_matching", {"coupling": "ot", "path": "cosine"}),
    ("objective", "discrete_flow_matching", {"source": "uniform"}),
    ("path", "bridge", {"sigma": 0.0}),
    ("unmasker", "blockwise", {"block": 2, "within": "ancestral"}),
    ("unmasker", "confidence", {"noise": 2.0}),
    ("unmasker", "corrector", {"strength": 3.0}),
    ("unmasker", "entropy", {"bound": 0.0}),
]
# Those need files, or a program; the metrics need sounds; power has no exponent but those above.
ELSEWHERE = {
    "dataset": {"arrays", "hub", "hub_text", "fashion_mnist"},
    "grid": {"fitted", "power"},
    "metric": {"sound_to_text", "text_to_sound"},
}
EACH = [
    (kind, name, {})
    for kind in KINDS
    for name in registry_of(kind).names()
    if name not in ELSEWHERE.get(kind, ()) and (name != "spoken_digits" or shutil.which("espeak-ng"))
]


@pytest.mark.parametrize(("kind", "name", "options"), EACH + MORE, ids=str)
def test_its_laws_hold(kind: str, name: str, options: dict[str, Any]) -> None:
    assert check(kind, name, **options)


@pytest.mark.parametrize("name", ["hub", "hub_text"])
def test_data_that_are_elsewhere_cannot_be_checked(name: str) -> None:
    with pytest.raises(GenkitError, match="the option 'path' is missing"):
        check("dataset", name)


def test_a_grid_of_a_file_keeps_its_laws(tmp_path: Path) -> None:
    file = tmp_path / "grid.json"
    file.write_text('{"times": [0, 0.1, 0.5, 1]}')
    assert check("grid", "fitted", file=str(file))


@pytest.fixture(scope="module")
def spoken() -> Dataset:
    """Prompts for spoken digits, and a codec that knows these by heart: a code is a number, in digits of base 20."""
    if not shutil.which("espeak-ng"):
        pytest.skip("spoken digits need espeak-ng")
    data = DATASETS.build("spoken_digits")
    sounds = torch.cat([split.take(torch.arange(len(split)))[0] for split in (data.train, data.test)])
    base = 20 ** torch.arange(8)

    def encode(x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, sounds).argmin(1)[:, None] // base % 20

    codec = Codec(data.spec, 20, 8, "by heart", encode, lambda codes: sounds[(codes * base).sum(1)])
    return DATASETS.build("trimodal", codec=codec, sounds=data, mix={"sound": 1.0, "text": 1.0})


@pytest.mark.parametrize("name", sorted(ELSEWHERE["metric"]))
def test_metrics_of_sounds_keep_theirs_on_data_with_sounds(name: str, spoken: Dataset) -> None:
    assert check("metric", name, data=spoken)
