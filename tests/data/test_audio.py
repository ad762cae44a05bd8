"""WAV files come back as they were written, and mu-law is a companding of [-1, 1] into levels."""

import io
import wave

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genkit.data.audio import MU, mu_law_decode, mu_law_encode, read_wav, write_wav
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator


def pcm(path, frames, *, width=2, channels=1, rate=8000):
    """A file of integers `frames` (n, channels), each of `width` bytes."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in frames))
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read(tmp_path, width):
    """Least, silent and largest values, and one between, within the last bit."""
    half = 2 ** (8 * width - 1)
    values = torch.tensor([-half, 0, half - 1, half // 2], dtype=torch.int64)
    path = pcm(tmp_path / "a.wav", values + half * (width == 1), width=width)
    x = read_wav(path, 8000)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, values.double().div(half).float(), rtol=0, atol=1e-7)


def test_channels_are_averaged(tmp_path):
    path = pcm(tmp_path / "a.wav", [16384, 0, -16384, 16384], channels=2)
    assert read_wav(path, 8000).tolist() == [0.25, 0.0]


def test_what_is_written_comes_back(tmp_path):
    x = torch.rand(1000, generator=keyed_generator(0)) * 2 - 1
    write_wav(tmp_path / "new" / "a.wav", x, 8000)
    again = read_wav(tmp_path / "new" / "a.wav", 8000)
    assert (x - again).abs().max() <= 2**-16 + 1e-7
    buffer = io.BytesIO()
    write_wav(buffer, again, 8000)
    assert buffer.getvalue() == (tmp_path / "new" / "a.wav").read_bytes()  # the second time nothing is lost


def test_values_outside_are_clamped(tmp_path):
    write_wav(tmp_path / "a.wav", torch.tensor([2.0, -3.0]), 8000)
    assert read_wav(tmp_path / "a.wav", 8000).tolist() == [1 - 2**-15, -1]


def test_another_rate_says_how_to_convert(tmp_path):
    path = pcm(tmp_path / "a.wav", [1, 2], rate=44100)
    with pytest.raises(GenkitError, match=r"has 44100 samples a second, not 8000: .*`sox .*a.wav -r 8000"):
        read_wav(path, 8000)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(GenkitError, match="cannot read .*none.wav: No such file"):
        read_wav(tmp_path / "none.wav", 8000)
    good = pcm(tmp_path / "a.wav", [1]).read_bytes()
    for name, content in (("text.wav", b"hello, hello"), ("empty.wav", b""), ("cut.wav", good[:20])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GenkitError, match=rf"{name} is not a WAV file of plain PCM .*sox"):
            read_wav(tmp_path / name, 8000)
    with pytest.raises(GenkitError, match="none.wav has no samples"):
        read_wav(pcm(tmp_path / "none.wav", []), 8000)


def test_floating_point_files_are_no_pcm(tmp_path):
    path = pcm(tmp_path / "a.wav", [1, 2, 3])
    content = bytearray(path.read_bytes())
    content[20:22] = (3).to_bytes(2, "little")  # the format: IEEE float
    path.write_bytes(content)
    with pytest.raises(GenkitError, match=r"not a WAV file of plain PCM \(unknown format: 3\)"):
        read_wav(path, 8000)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3), r"floats \(T,\), not torch.float32 of shape \(2, 3\)"),
        (torch.zeros(3).long(), "not torch.int64"),
        (torch.tensor([0.0, float("nan")]), "not finite"),
    ],
)
def test_what_is_no_sound_is_not_written(tmp_path, x, message):
    with pytest.raises(GenkitError, match=message):
        write_wav(tmp_path / "a.wav", x, 8000)
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize("levels", [4, 16, 256])
def test_levels_are_their_own_code(levels):
    torch.set_default_dtype(torch.float64)
    symbols = torch.arange(levels)
    x = mu_law_decode(symbols, levels)
    assert torch.equal(mu_law_encode(x, levels), symbols)
    assert (x.diff() > 0).all()
    assert float(x[0]) == pytest.approx(-1)
    assert x[0] >= -1
    assert x[levels // 2] == 0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_mu_law_is_monotone_and_within_a_step(values):
    torch.set_default_dtype(torch.float64)
    x = torch.tensor(values, dtype=torch.float64).sort().values
    symbols = mu_law_encode(x)
    assert (symbols.diff() >= 0).all()
    assert symbols.min() >= 0
    assert symbols.max() <= 255
    curve = [v.sign() * torch.log1p(MU * v.abs()) / numpy.log1p(MU) for v in (x, mu_law_decode(symbols))]
    assert ((curve[0] - curve[1]).abs() <= 1 / 256 + (x > 0.95) / 256 + 1e-12).all()  # no level for +1


def test_silence_stays_silent_and_loudness_is_clamped():
    assert mu_law_decode(mu_law_encode(torch.zeros(3))).abs().max() == 0
    assert mu_law_encode(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_odd_levels_are_refused():
    for levels in (255, 2):
        with pytest.raises(GenkitError, match=f"even and at least 4, not {levels}"):
            mu_law_encode(torch.zeros(1), levels)
