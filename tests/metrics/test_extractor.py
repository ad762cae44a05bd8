"""The pinned extractors: as good as they say, refused when altered, made by deterministic code."""

import hashlib
import shutil

import pytest
import torch

from genkit.data import DATASETS
from genkit.errors import GenkitError
from genkit.metrics import extractor as module
from genkit.metrics.extractor import (
    PINNED,
    WEIGHTS,
    Extractor,
    load_extractor,
    main,
    pinned,
    save_extractor,
    train_extractor,
)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("digits", 0.98),
        ("fashion_mnist", 0.90),
        ("photo_patches_1_16_16", 0.97),
        ("photo_patches_1_32_32", 0.97),
        ("spoken_digits", 0.97),
    ],
)
def test_the_committed_weights_are_pinned_small_and_good(name, least):
    extractor = load_extractor(name)
    assert extractor.hash == PINNED[name].hash
    assert extractor.accuracy >= least
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 500_000
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    data = PINNED[name].data
    spec = DATASETS.get(name).spec if data == {"name": name} else DATASETS.build(data).spec
    assert pinned(spec) == name
    assert (extractor.shape, extractor.levels, extractor.classes) == (spec.shape, spec.levels, spec.classes)


def test_the_accuracy_is_what_it_measures():
    data, extractor = DATASETS.build("digits"), load_extractor("digits")
    x, y = data.test.take(torch.arange(360))
    assert (extractor.predict(x).argmax(1) == y).double().mean().item() == pytest.approx(extractor.accuracy)
    features = extractor(x)
    assert features.shape == (360, 48)
    torch.testing.assert_close(extractor.head(features), extractor.predict(x))
    torch.testing.assert_close(extractor(x[:7]), features[:7], rtol=1e-4, atol=1e-4)  # row by row


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_accuracy_on_spoken_digits_is_what_it_measures(tmp_path):
    """Of voices that it was not trained on; another version of espeak-ng may speak a little differently."""
    data, extractor = DATASETS.build("spoken_digits", root=str(tmp_path)), load_extractor("spoken_digits")
    x, y = data.test.take(torch.arange(800))
    found = (extractor.predict(x).argmax(1) == y).double().mean().item()
    assert found == pytest.approx(extractor.accuracy, abs=0.01)


def test_altered_or_missing_weights_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(GenkitError, match="'digits' cannot be read"):
        load_extractor("digits")
    content = bytearray((WEIGHTS / "digits.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(content)
    with pytest.raises(GenkitError, match=r"digits.safetensors is not the pinned extractor: SHA-256"):
        load_extractor("digits")


def test_another_shape_and_another_name_are_refused():
    with pytest.raises(GenkitError, match=r"reads images \(1, 8, 8\), not \(1, 9, 9\)"):
        load_extractor("digits")(torch.zeros(2, 1, 9, 9))
    with pytest.raises(GenkitError, match=r"reads sounds \(5120,\), not \(4000,\)"):
        load_extractor("spoken_digits")(torch.zeros(2, 4000))
    with pytest.raises(GenkitError, match="did you mean 'digits'"):
        load_extractor("digit")
    for name, options in (("moons", {"labels": True}), ("tones", {"mu_law": True})):
        with pytest.raises(GenkitError, match=f"'{name}' are not"):
            train_extractor(DATASETS.build(name, **options), 1)


def test_training_is_deterministic_and_saves_what_loads(monkeypatch, tmp_path):
    data = DATASETS.build("digits")
    first, second = (train_extractor(data, 2) for _ in range(2))
    paths = [tmp_path / "digits.safetensors", tmp_path / "again.safetensors"]
    digests = [save_extractor(e, data, path) for e, path in zip((first, second), paths, strict=True)]
    assert digests[0] == digests[1] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    monkeypatch.setitem(PINNED, "digits", PINNED["digits"]._replace(hash=digests[0]))
    loaded = load_extractor("digits")
    x, _ = data.test.take(torch.arange(10))
    torch.testing.assert_close(loaded.predict(x), first.predict(x))
    assert loaded.accuracy == first.accuracy > 0.5


def test_the_command_trains_and_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PINNED, "digits", PINNED["digits"]._replace(epochs=1))
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        main(["digits", "--out", str(tmp_path / "w.safetensors")])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    digest = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out


def test_any_sounds_are_learned():
    extractor = train_extractor(DATASETS.build("tones", n_train=600, n_test=100, length=512), 6)
    assert extractor.accuracy > 0.3  # a band holds more than one note


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 8, 8), 256), ((3, 16, 16), 256), ((1, 28, 28), 256), ((2000,), None)]
)
def test_gradients_reach_every_parameter(shape, levels):
    extractor = Extractor(shape, levels, 4)
    x = torch.randint(256, (5, *shape)) if levels else torch.rand(5, *shape) * 2 - 1
    extractor.predict(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in extractor.parameters())
