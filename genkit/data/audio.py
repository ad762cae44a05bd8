"""Sound in and out: WAV files, and mu-law companding. Sound is mono, floats in [-1, 1]."""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from torch import Tensor

from genkit.errors import GenkitError
from genkit.files import write_atomically

MU = 255.0


def read_wav(path: str | Path, rate: int) -> Tensor:
    """A PCM file of 8, 16, 24 or 32 bits as one channel (T,), float32 in [-1, 1]; several are averaged.

    rate: samples a second that the file must have. Raises GenkitError for another one (nothing is resampled
    behind the user's back), and for a file that cannot be read, is no PCM, or is empty.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            if width > 4:
                raise wave.Error(f"{8 * width} bits a sample")
            content = file.readframes(file.getnframes())
    except OSError as error:
        raise GenkitError(f"cannot read {path}: {error.strerror or error}") from None
    except (wave.Error, EOFError, RuntimeError, struct.error) as error:
        convert = f"sox {path} -r {rate} -c 1 -b 16 -e signed-integer converted.wav"
        raise GenkitError(
            f"{path} is not a WAV file of plain PCM ({error or 'it ends early'}); `{convert}` makes one"
        ) from None
    if found != rate:
        raise GenkitError(
            f"{path} has {found} samples a second, not {rate}: convert it with "
            f"`sox {path} -r {rate} converted.wav`"
        )
    whole = len(content) // (width * channels) * width * channels  # a cut file may end within a sample
    if whole == 0:
        raise GenkitError(f"{path} has no samples")
    sound = torch.from_numpy(_pcm(content[:whole], width)).reshape(-1, channels).mean(1)
    return sound.float()


def _pcm(content: bytes, width: int) -> numpy.ndarray:
    """Little-endian samples of `width` bytes as float64 in [-1, 1); only those of one byte are unsigned."""
    values = numpy.frombuffer(content, numpy.uint8).reshape(-1, width)
    if width == 1:
        return (values[:, 0].astype(numpy.float64) - 128) / 128
    wide = numpy.zeros((len(values), 4), numpy.uint8)
    wide[:, 4 - width :] = values  # the high bytes of 32 bits
    return wide.view("<i4")[:, 0] / 2.0**31


def write_wav(target: str | Path | BinaryIO, x: Tensor, rate: int) -> None:
    """Writes x (T,) in [-1, 1], values outside clamped, as 16-bit PCM to a path or an open binary file.

    Raises GenkitError for another shape, for values that are not finite, and when the file cannot be written.
    """
    if x.ndim != 1 or not x.is_floating_point():
        raise GenkitError(f"a sound is floats (T,), not {x.dtype} of shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise GenkitError("a sound with values that are not finite cannot be written")
    values = (x.detach().double().cpu() * 2**15).round().clamp(-(2**15), 2**15 - 1)

    def write(file: BinaryIO) -> None:
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes(values.numpy().astype("<i2").tobytes())

    if isinstance(target, (str, Path)):
        write_atomically(Path(target), write)
    else:
        write(target)


def mu_law_encode(x: Tensor, levels: int = 256) -> Tensor:
    """Sound in [-1, 1] -> levels 0..V-1, int64, finer where it is soft.

    l = round(F(x) V/2) + V/2, clamped, with F(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu), mu = 255 (ITU-T G.711,
    https://www.itu.int/rec/T-REC-G.711, whose curve this is, not its segments). Silence is level V/2.
    """
    half = _half(levels)
    curve = x.sign() * torch.log1p(MU * x.abs().clamp(max=1)) / math.log1p(MU)
    return ((curve * half).round() + half).clamp(0, levels - 1).long()


def mu_law_decode(symbols: Tensor, levels: int = 256) -> Tensor:
    """Levels 0..V-1 -> sound in [-1, 1], of torch's default dtype. encode(decode(l)) == l; V/2 gives 0."""
    half = _half(levels)
    curve = (symbols.to(torch.get_default_dtype()) - half) / half
    return (curve.sign() * torch.expm1(curve.abs() * math.log1p(MU)) / MU).clamp(-1, 1)


def _half(levels: int) -> int:
    if levels < 4 or levels % 2:
        raise GenkitError(f"mu-law levels must be even and at least 4, not {levels}")
    return levels // 2
