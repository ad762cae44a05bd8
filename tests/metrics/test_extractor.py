"""The pinned extractors: as good as they say, refused when altered, made by deterministic code."""

import hashlib

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
    save_extractor,
    train_extractor,
)


@pytest.mark.parametrize(("name", "least"), [("digits", 0.98), ("fashion_mnist", 0.90)])
def test_the_committed_weights_are_pinned_small_and_good(name, least):
    extractor = load_extractor(name)
    assert extractor.hash == PINNED[name]
    assert extractor.accuracy >= least
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 500_000
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    spec = DATASETS.get(name).spec
    assert (extractor.shape, extractor.levels, extractor.classes) == (spec.shape, spec.levels, spec.classes)


def test_the_accuracy_is_what_it_measures():
    data, extractor = DATASETS.build("digits"), load_extractor("digits")
    x, y = data.test.take(torch.arange(360))
    assert (extractor.predict(x).argmax(1) == y).double().mean().item() == pytest.approx(extractor.accuracy)
    features = extractor(x)
    assert features.shape == (360, 48)
    torch.testing.assert_close(extractor.head(features), extractor.predict(x))
    torch.testing.assert_close(extractor(x[:7]), features[:7], rtol=1e-4, atol=1e-4)  # row by row


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
    with pytest.raises(GenkitError, match="did you mean 'digits'"):
        load_extractor("digit")
    with pytest.raises(GenkitError, match="'moons' are not"):
        train_extractor(DATASETS.build("moons"), 1)


def test_training_is_deterministic_and_saves_what_loads(monkeypatch, tmp_path):
    data = DATASETS.build("digits")
    first, second = (train_extractor(data, 2) for _ in range(2))
    paths = [tmp_path / "digits.safetensors", tmp_path / "again.safetensors"]
    digests = [save_extractor(e, data, path) for e, path in zip((first, second), paths, strict=True)]
    assert digests[0] == digests[1] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    monkeypatch.setitem(PINNED, "digits", digests[0])
    loaded = load_extractor("digits")
    x, _ = data.test.take(torch.arange(10))
    torch.testing.assert_close(loaded.predict(x), first.predict(x))
    assert loaded.accuracy == first.accuracy > 0.5


def test_the_command_trains_and_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(module.EPOCHS, "digits", 1)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        main(["digits", "--out", str(tmp_path / "w.safetensors")])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    digest = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28)])
def test_gradients_reach_every_parameter(shape):
    extractor = Extractor(shape, 256, 4)
    extractor.predict(torch.randint(256, (5, *shape))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in extractor.parameters())
