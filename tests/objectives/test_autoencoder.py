"""The codec: the quantizer is a bijection with a straight-through gradient, the spectrogram has an inverse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import genkit
from genkit.backbone import ModelOptions
from genkit.data import DATASETS, KeyedBatches
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.objectives.autoencoder import Autoencoder, Quantizer, Spectrogram
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, train
from genkit.types import Batch, DataSpec
from tests.objectives.models import randomize

SOUND = DataSpec("sound", (128,), classes=3, rate=4000)
MODEL = ModelOptions(width=24, depth=4, heads=2)


def codec(spec: DataSpec = SOUND, *, scale: float | None = 1.0, **options: object) -> Autoencoder:
    torch.manual_seed(0)
    objective = OBJECTIVES.build(
        {"name": "autoencoder", "frames": 8, "iterations": 4, **options}, spec, MODEL
    )
    assert isinstance(objective, Autoencoder)
    if scale is not None:
        randomize(objective, scale)
    return objective


def sounds(n: int, length: int = 128) -> Tensor:
    """Chirps of different pitch and loudness."""
    generator = keyed_generator(0, "sounds")
    start, rise, loud = torch.rand(3, n, 1, generator=generator)
    s = torch.arange(length) / length
    return (0.2 + 0.7 * loud) * torch.sin(2 * math.pi * (5 + 20 * start + 10 * rise * s) * s)


# --- the quantizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (7,), (4, 4, 4)])
def test_codes_and_values_are_a_bijection(levels):
    quantizer = Quantizer(levels)
    codes = torch.arange(quantizer.size)
    values = quantizer.values(codes)
    assert values.shape == (math.prod(levels), len(levels))
    assert torch.equal(quantizer.codes(values), codes)
    assert len({tuple(row.tolist()) for row in values}) == math.prod(levels)
    assert values.abs().max() <= 1
    for i, n in enumerate(levels):  # as many values in each dimension, equally far apart
        found = values[:, i].unique()
        assert len(found) == n
        torch.testing.assert_close(found.diff(), torch.full((n - 1,), 1 / (n // 2)))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3)])
def test_every_code_is_reached_and_nothing_else(levels):
    """Rounding what is bounded gives values of codes, each of them, however large z is."""
    quantizer = Quantizer(levels)
    z = 3 * torch.randn(200_000, len(levels), generator=keyed_generator(0))
    z = torch.cat((z, torch.tensor([[1e6] * len(levels), [-1e6] * len(levels), [0.0] * len(levels)])))
    values = quantizer(z)
    codes = quantizer.codes(values)
    torch.testing.assert_close(quantizer.values(codes), values)
    assert codes.unique().tolist() == list(range(quantizer.size))
    assert values[-1].tolist() == [0.0] * len(levels)


def test_the_gradient_is_that_of_what_is_bounded():
    torch.set_default_dtype(torch.float64)
    quantizer = Quantizer((8, 5))
    z = torch.randn(50, 2, generator=keyed_generator(0), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(quantizer(z).sum(), z)
    (expected,) = torch.autograd.grad((quantizer.bound(z) / torch.tensor([4, 2])).sum(), z)
    assert torch.allclose(found, expected)
    assert (found > 0).all()


@pytest.mark.parametrize("levels", [(), (8, 1), (0,)])
def test_levels_that_cannot_be(levels):
    with pytest.raises(GenkitError, match="levels must be at least 2 in each dimension"):
        codec(levels=levels)


# --- the spectrogram ----------------------------------------------------------------------------------


def test_the_spectrogram_is_that_of_the_formula():
    torch.set_default_dtype(torch.float64)
    spectrogram = Spectrogram(128, 8, 1)
    x = sounds(3).double()
    window = torch.hann_window(64)
    padded = torch.nn.functional.pad(x, (32, 32))
    for i in range(8):
        magnitude = torch.fft.rfft(window * padded[:, 16 * i : 16 * i + 64]).abs()
        torch.testing.assert_close(spectrogram.split(x)[:, i], torch.log(1 + magnitude / 0.01) / 4 - 1)


def test_a_sound_comes_back_from_its_magnitudes():
    """Up to the phases, and the better the longer they are looked for."""
    x = sounds(4, 1024)
    x[:, 900:] = 0  # what is behind the last frame is taken for silent
    errors = []
    for iterations in (1, 8, 64):
        spectrogram = Spectrogram(1024, 32, iterations)
        seen = spectrogram.split(x)
        again = spectrogram.join(seen)
        assert again.shape == x.shape
        errors.append(float((spectrogram.split(again) - seen).abs().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


def test_a_sound_does_not_depend_on_its_neighbours():
    spectrogram = Spectrogram(128, 8, 4)
    seen = spectrogram.split(sounds(5))
    torch.testing.assert_close(spectrogram.join(seen)[2:3], spectrogram.join(seen[2:3]), rtol=1e-3, atol=1e-4)


# --- the codec ----------------------------------------------------------------------------------------


def test_a_sound_is_64_symbols_or_as_many_as_are_asked_for():
    objective = codec().eval()
    x = sounds(5)
    codes = objective.encode(x)
    assert codes.shape == (5, 8)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < objective.codebook == 1000
    assert len(codes.unique()) > 1
    again = objective.decode(codes)
    assert again.shape == x.shape
    assert again.abs().max() <= 1
    assert torch.equal(again, objective.decode(codes))
    default = OBJECTIVES.build("autoencoder", DataSpec("sound", (5120,), rate=8000), MODEL)
    assert default.tokens.length == 64


def test_gradients_reach_every_parameter():
    objective = codec()
    logs = objective.loss(objective.prepare(Batch(sounds(16))))
    assert 1 <= float(logs["perplexity"]) <= objective.codebook
    assert not logs["perplexity"].requires_grad
    logs["loss"].backward()
    for name, p in objective.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("depth", [2, 3])
def test_the_backbone_is_the_shared_one(depth):
    """All of it, in two halves, with the weights that another objective of that seed starts from."""
    model = ModelOptions(width=24, depth=depth, heads=2)
    backbones = []
    for name in ("autoencoder", "flow_matching"):
        torch.manual_seed(0)
        options = {"frames": 8} if name == "autoencoder" else {}
        backbones.append(OBJECTIVES.build({"name": name, **options}, SOUND, model).backbone)
    one, other = (backbone.state_dict() for backbone in backbones)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    halves = codec().halves
    assert [*range(4)[halves[0]], *range(4)[halves[1]]] == [0, 1, 2, 3]


def test_training_lowers_the_loss():
    objective = codec(scale=None)
    data = DATASETS.build("tones", n_train=200, n_test=10, length=128)
    objective = codec(data.spec, scale=None)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for batch in KeyedBatches(data.train, 32, seed=0, stop=60):
        loss = objective.loss(objective.prepare(batch))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_run_encodes_and_decodes(tmp_path):
    """Trained by a recipe, loaded from its folder."""
    recipe = Recipe.resolve(
        {
            "data": {"name": "tones", "n_train": 32, "n_test": 8},
            "model": {"width": 12, "depth": 2, "heads": 1},
            "objective": {"name": "autoencoder", "frames": 16, "levels": [5, 3], "iterations": 2},
            "training": {"steps": 2, "batch_size": 8, "warmup": 0, "log_every": 1},
        }
    )
    trained = train(recipe, tmp_path / "run").objective
    loaded = genkit.load(tmp_path / "run").objective
    x, _ = recipe.dataset().test.take(torch.arange(8))
    codes = loaded.encode(x)
    assert codes.shape == (8, 16)
    assert codes.max() < loaded.codebook == 15
    assert torch.equal(codes, trained.encode(x))
    assert torch.equal(loaded.decode(codes), trained.decode(codes))
    assert "perplexity" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    with pytest.raises(GenkitError, match="no samples of its own"):
        genkit.load(tmp_path / "run").sample(2)


def test_what_a_codec_does_not_have():
    objective = codec()
    assert objective.likelihood is None
    with pytest.raises(
        GenkitError, match="no samples of its own: .* train a discrete objective on its codes"
    ):
        objective.sample(3)
    with pytest.raises(GenkitError, match="no likelihood"):
        objective.log_prob(sounds(2))
    with pytest.raises(GenkitError, match="went through prepare"):
        objective.loss(Batch(sounds(2)))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 9).long(), r"whole numbers \(B, 8\), not torch.int64 of shape \(2, 9\)"),
        (torch.zeros(8).long(), r"of shape \(8,\)"),
        (torch.zeros(2, 8), "not torch.float32"),
        (torch.full((2, 8), 1000), "from 0 to 999; found 1000 to 1000"),
        (torch.full((2, 8), -1), "found -1"),
    ],
)
def test_codes_that_do_not_exist(codes, message):
    with pytest.raises(GenkitError, match=message):
        codec().decode(codes)


def test_sounds_of_another_length():
    with pytest.raises(GenkitError, match=r"shape \(128,\) expected, not \(100,\)"):
        codec().encode(torch.zeros(2, 100))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (DataSpec("images", (1, 4, 4), levels=5), {}, "codec of real-valued sound .* not of 'images'"),
        (DataSpec("vectors", (128,)), {}, "not of 'vectors'"),
        (DataSpec("tones", (128,), levels=256, rate=4000), {}, "not of 'tones'"),
        (SOUND, {"frames": 7}, "7 frames do not divide a sound of 128 samples"),
        (SOUND, {"frames": 64}, "64 frames"),
        (SOUND, {"frames": 0}, "0 frames"),
        (SOUND, {"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_data_and_options_that_do_not_fit(spec, options, message):
    with pytest.raises(GenkitError, match=message):
        codec(spec, **options)


def test_each_half_needs_a_layer():
    with pytest.raises(GenkitError, match="at least 2"):
        OBJECTIVES.build("autoencoder", SOUND, ModelOptions(width=24, depth=1, heads=2))


def test_codes_are_numbered_with_the_first_dimension_fastest():
    quantizer = Quantizer((3, 2))
    expected = [[a, b] for b, a in itertools.product((-1.0, 0.0), (-1.0, 0.0, 1.0))]
    assert quantizer.values(torch.arange(6)).tolist() == expected
