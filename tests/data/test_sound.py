"""Tones sound the note of their class; spoken digits are made once, with no voice in both parts."""

import re
import shutil
import stat

import pytest
import torch

from genkit.data import DATASETS
from genkit.data import sound as module
from genkit.data.audio import mu_law_decode
from genkit.data.sound import NOTES, VOICES, Speaker, fitted
from genkit.errors import GenkitError

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


# --- tones --------------------------------------------------------------------------------------------


def test_a_tone_has_the_pitch_of_its_class():
    """The strongest of the ten fundamentals is the class."""
    data = DATASETS.build("tones", n_train=10, n_test=300)
    x, y = data.test.take(torch.arange(300))
    second = torch.arange(256) / data.spec.rate
    notes = 261.63 * 2 ** (torch.tensor(list(NOTES.values())) / 12)
    waves = torch.exp(2j * torch.pi * notes[:, None] * second)
    power = (x.to(waves.dtype) @ waves.T).abs()
    assert (power.argmax(1) == y).float().mean() > 0.95


def test_tones_are_keyed_and_parts_differ():
    """Also the scale: a peak of 0.5 to 1."""
    one, other = (DATASETS.build("tones", n_train=20, n_test=20) for _ in range(2))
    assert one.hash == other.hash
    assert one.hash != DATASETS.build("tones", n_train=20, n_test=20, seed=1).hash
    assert not torch.equal(one.train.x, one.test.x)
    assert one.train.x.abs().max() <= 1
    assert one.train.x.abs().amax(1).min() > 0.45


def test_mu_law_tones_are_the_same_tones():
    real, levels = (DATASETS.build("tones", n_train=50, n_test=5, mu_law=mu_law) for mu_law in (False, True))
    assert (levels.spec.levels, levels.spec.ordered, real.spec.levels) == (256, True, None)
    x, y = levels.train.take(torch.arange(50))
    assert x.dtype == torch.int64
    assert torch.equal(y, real.train.y)
    assert (mu_law_decode(x) - real.train.x).abs().max() < 0.05
    assert (mu_law_decode(x) - real.train.x).abs().mean() < 0.005


@pytest.mark.parametrize("mu_law", [False, True])
def test_tones_can_be_heard(mu_law):
    data = DATASETS.build("tones", n_train=5, n_test=5, length=64, mu_law=mu_law)
    x, _ = data.train.take(torch.arange(5))
    sounds = data.show(x).sounds
    assert sounds.shape == (5, 64)
    assert sounds.is_floating_point()
    assert data.show(x * (1 if mu_law else 9)).sounds.abs().max() <= 1


@pytest.mark.parametrize("option", ["n_train", "n_test", "length"])
def test_tones_out_of_range(option):
    with pytest.raises(GenkitError, match=f"{option} must be at least"):
        DATASETS.build("tones", **{option: 0})


# --- spoken digits, without the program ---------------------------------------------------------------


@pytest.fixture
def no_program(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a script in the place of espeak-ng."""

    def install(script):
        path = tmp_path / "espeak-ng"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setattr(module.shutil, "which", lambda name: str(path))
        return path

    return install


def test_the_spec_needs_no_clips(no_program, tmp_path):
    spec = DATASETS.build("spoken_digits", root=str(tmp_path)).spec
    assert (spec.shape, spec.rate, spec.levels, spec.classes) == ((5120,), 8000, None, 10)
    assert not list(tmp_path.iterdir())


def test_a_missing_program_says_how_to_get_it(no_program, tmp_path):
    with pytest.raises(GenkitError, match=r"needs espeak-ng: .*apt install espeak-ng.*'tones' is built in"):
        DATASETS.build("spoken_digits", root=str(tmp_path)).load("train")


def test_no_voice_is_in_both_parts():
    data = DATASETS.build("spoken_digits")
    train, test = (list(data.clips(part)) for part in ("train", "test"))
    assert (len(train), len(test)) == (2400, 800)
    assert not {clip.voice for clip in train} & {clip.voice for clip in test}
    assert {clip.voice for clip in [*train, *test]} == set(VOICES)
    assert train == list(data.clips("train"))
    for clips in (train, test):
        assert len({clip.accent for clip in clips}) == len(module.ACCENTS)
        assert min(clip.speed for clip in clips) >= module.SLOW
        assert max(clip.pitch for clip in clips) <= module.HIGH
    few = DATASETS.build("spoken_digits", voices=4, takes=1)
    assert [len(list(few.clips(part))) for part in ("train", "test")] == [30, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voices": 3}, "voices must be from 4 to 40, not 3"),
        ({"voices": 41}, "not 41"),
        ({"takes": 0}, "takes"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(GenkitError, match=message):
        DATASETS.build("spoken_digits", **options)


def test_a_program_that_fails_is_quoted(program, tmp_path):
    data = DATASETS.build("spoken_digits", root=str(tmp_path / "kept"), voices=4, takes=1)
    path = program("echo broken >&2; exit 3")
    with pytest.raises(GenkitError, match=f"{re.escape(str(path))} does not work: broken"):
        data.load("train")
    version = f"eSpeak NG text-to-speech: 1.49  Data at: {tmp_path}"
    program(f"echo '{version}'")
    with pytest.raises(GenkitError, match=r"espeak-ng 1\.49 lacks the voices m1, m2, m3"):
        data.load("train")
    (tmp_path / "voices" / "!v").mkdir(parents=True)
    for voice in VOICES:
        (tmp_path / "voices" / "!v" / voice).touch()
    program(f"[ $1 = --version ] && echo '{version}' || {{ echo no voice >&2; exit 1; }}")
    with pytest.raises(GenkitError, match=r"espeak-ng -v en\S+\+m1 .*--stdout zero` failed: no voice"):
        data.load("train")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("length", [10, 999, 4000, 9000])
def test_a_clip_is_fitted(length):
    x = torch.sin(torch.arange(length) / 3.0).numpy() * 0.01
    clip = fitted(x, 4096)
    assert clip.shape == (4096,)
    assert clip.dtype == torch.int16
    assert not clip[: module.LEAD].any()
    assert clip.abs().max().item() / 2**15 == pytest.approx(module.PEAK, abs=0.02)
    assert abs(int(clip[-1])) < 400  # no click, where it had to be cut


# --- spoken digits, with it ---------------------------------------------------------------------------


@needs_espeak
def test_clips_are_made_once_and_are_the_same(tmp_path):
    first = DATASETS.build("spoken_digits", root=str(tmp_path / "a"), voices=4, takes=1)
    again = DATASETS.build("spoken_digits", root=str(tmp_path / "b"), voices=4, takes=1)
    assert first.hash == again.hash
    x, y = first.train.take(torch.arange(30))
    assert x.shape == (30, 5120)
    assert y.tolist() == [*range(10)] * 3
    assert torch.equal(first.show(x).sounds, x)
    assert x.abs().amax(1).sub(module.PEAK).abs().max() < 1e-3
    assert len({row.numpy().tobytes() for row in x}) == 30
    (kept,) = (tmp_path / "a").glob("train-*")
    before = kept.stat().st_mtime_ns
    assert DATASETS.build("spoken_digits", root=str(tmp_path / "a"), voices=4, takes=1).hash == first.hash
    assert kept.stat().st_mtime_ns == before
    speaker = Speaker.found()
    assert speaker is not None
    assert speaker.version in kept.name


@needs_espeak
def test_kept_clips_need_no_program(tmp_path, monkeypatch):
    made = DATASETS.build("spoken_digits", root=str(tmp_path), voices=4, takes=1)
    digest = made.hash
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    data = DATASETS.build("spoken_digits", root=str(tmp_path), voices=4, takes=1)
    assert data.hash == digest
    with pytest.raises(GenkitError, match="needs espeak-ng"):
        DATASETS.build("spoken_digits", root=str(tmp_path), voices=4, takes=2).load("train")
    (path,) = tmp_path.glob("train-*")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(GenkitError, match=r"train-.* cannot be read .*remove it, to have it made anew"):
        DATASETS.build("spoken_digits", root=str(tmp_path), voices=4, takes=1).load("train")


@needs_espeak
def test_words_differ_more_than_takes_do(tmp_path):
    """espeak-ng says what it was asked to: the nearest spectrum of another take is of the same word."""
    data = DATASETS.build("spoken_digits", root=str(tmp_path), voices=4, takes=2)
    x, y = data.train.take(torch.arange(20))  # two takes of one voice
    window = torch.hann_window(512)
    spectrum = torch.stft(x, 512, 256, window=window, return_complex=True).abs().add(0.1).log()
    bands = spectrum[:, :-1].unflatten(1, (16, -1)).mean(2).flatten(1)
    nearest = torch.cdist(bands[10:], bands[:10]).argmin(1)
    assert (y[:10][nearest] == y[10:]).float().mean() >= 0.5
