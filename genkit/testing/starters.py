"""Starter files of plug-ins: what `genkit new KIND NAME` writes. Each passes its check as it is."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from genkit.errors import GenkitError, a, choose
from genkit.files import write_text
from genkit.testing import KINDS, registry_of

STARTERS = {
    "coupling": '''
"""The coupling `NAME`: which noise goes with which data."""

from genkit.couplings import COUPLINGS, Coupling
from genkit.types import Pair


@COUPLINGS.register("NAME")
class CLASS(Coupling):
    """What it pairs, in one line; then its formula, its cost in n and d, and its paper."""

    independent = True  # x0 says nothing of x1: False once it does
    keeps_source = True  # x0 is distributed as the source

    def __call__(self, x1, y=None, *, index=None, generator=None):
        x0 = self.source.sample(x1, generator=generator)  # choose among these, or make others
        return Pair(x0, x1, y, index)
''',
    "solver": '''
"""The solver `NAME`: one method of integrating a field."""

from genkit.solvers import SOLVERS, OneStep


@SOLVERS.register("NAME")
class CLASS(OneStep):
    """What it is, in one line; here Ralston's method, two evaluations a step."""

    order = 2  # the global error falls as h^order

    def advance(self, field, t, dt, x):
        first = field(t, x)
        second = field(t + 2 / 3 * dt, x + 2 / 3 * dt * first)
        return x + dt * (first + 3 * second) / 4
''',
    "grid": '''
"""The time grid `NAME`: where the steps of a solver are."""

from genkit.solvers import GRIDS, Grid


@GRIDS.register("NAME")
class CLASS(Grid):
    """What it does, in one line; here t = u (1 + bend (1 - u)), with smaller steps towards the data."""

    def __init__(self, bend: float = 0.5) -> None:
        self.bend = bend  # from -1 to 1

    def warp(self, u):
        return u * (1 + self.bend * (1 - u))
''',
    "path": '''
"""The path `NAME`: where a pair of noise and data is at time t."""

from genkit.paths import PATHS, Path
from genkit.types import Coefficients


@PATHS.register("NAME")
class CLASS(Path):
    """What it is, in one line; here alpha = t^power, sigma = 1 - t^power."""

    def __init__(self, power: float = 1.5) -> None:
        self.power = power

    def coefficients(self, t):
        alpha, slope = t**self.power, self.power * t ** (self.power - 1)
        return Coefficients(alpha, 1 - alpha, slope, -slope)
''',
    "schedule": '''
"""The schedule `NAME` of discrete diffusion: the share of symbols that are themselves at time t."""

from genkit.paths import SCHEDULES, Schedule


@SCHEDULES.register("NAME")
class CLASS(Schedule):
    """What it is, in one line; here alpha = t^power."""

    def __init__(self, power: float = 1.5) -> None:
        self.power = power

    def alpha(self, t):
        return t**self.power

    def d_alpha(self, t):
        return self.power * t ** (self.power - 1)
''',
    "times": '''
"""The distribution `NAME` of training times."""

import torch

from genkit.paths import TIMES, Times


@TIMES.register("NAME")
class CLASS(Times):
    """What it stresses, in one line; here t = u^power: above 1 the noise end."""

    def __init__(self, power: float = 1.5) -> None:
        self.power = power

    def __call__(self, like, *, generator=None):
        u = torch.rand(len(like), generator=generator, dtype=like.dtype, device=like.device)
        return u**self.power
''',
    "guidance": '''
"""The guidance `NAME`: how the predictions with and without the class become one."""

from genkit.guidance import GUIDANCES, Guidance


@GUIDANCES.register("NAME")
class CLASS(Guidance):
    """What it does, in one line; here v_c + (scale - 1) (v_c - v_u) from a time on."""

    def __init__(self, scale: float = 1.0, start: float = 0.2) -> None:
        self.scale, self.start = scale, start
        self.active = scale != 1

    def combine(self, conditional, unconditional, t):
        excess = (self.scale - 1) * (t >= self.start)
        return conditional + excess * (conditional - unconditional)
''',
    "inverter": '''
"""The inverter `NAME` of autoregressive flows: which tokens are solved for at once."""

from genkit.inversion import INVERTERS, Inverted, Inverter


@INVERTERS.register("NAME")
class CLASS(Inverter):
    """What it does, in one line; here all tokens at once, as many times as there are tokens."""

    def invert(self, conditioner, z):
        x, length = z.clone(), z.shape[1]
        for _ in range(length):
            a, mu = conditioner(x, 0, length)
            x = z * a.exp() + mu
        return Inverted(x, a, calls=length, tokens=length**2, exact=True)
''',
    "unmasker": '''
"""The unmasker `NAME`: which symbols of a discrete model are revealed first."""

from genkit.unmasking import UNMASKERS
from genkit.unmasking.base import Looking


@UNMASKERS.register("NAME")
class CLASS(Looking):
    """What it reveals first, in one line; here where the predictions are the least spread."""

    def score(self, log_p, alpha, chance):
        return log_p.exp().square().sum(-1)
''',
    "dataset": '''
"""The data set `NAME`."""

import torch

from genkit.data import DATASETS, TensorSplit
from genkit.data.base import Dataset
from genkit.randomness import keyed_generator
from genkit.types import DataSpec


@DATASETS.register("NAME")
class CLASS(Dataset):
    """What it holds, in one line; here points on two labelled rings in the plane."""

    spec = DataSpec("NAME", (2,), classes=2)

    def load(self, name):
        generator = keyed_generator(0, "NAME", name)  # the same rows in each process
        n = 4000 if name == "train" else 1000
        y = torch.randint(2, (n,), generator=generator)
        angle = 2 * torch.pi * torch.rand(n, generator=generator)
        radius = 1 + y + 0.1 * torch.randn(n, generator=generator)
        return TensorSplit(radius[:, None] * torch.stack((angle.cos(), angle.sin()), 1), y)
''',
    "metric": '''
"""The metric `NAME`."""

from genkit.metrics import METRICS
from genkit.metrics.base import TwoSample
from genkit.types import DataSpec


@METRICS.register("NAME")
class CLASS(TwoSample):
    """What it measures, in one line; here the distance between the means of samples and of reference rows."""

    words = "distance of means"  # in tables

    def __init__(self, spec: DataSpec, power: float = 2.0) -> None:
        super().__init__(spec)
        self.power = power

    def distance(self, x, y):
        return (x.mean(0) - y.mean(0)).norm(p=self.power)
''',
}


def starter(kind: str, name: str) -> str:
    """The text of a starter file. Raises GenkitError for a kind without one, and a name that is taken or no name."""
    if kind not in STARTERS:
        if kind in KINDS:
            raise GenkitError(
                f"there is no starter file of the kind {kind}: begin with a copy of one of genkit's own, "
                f"and hold it against `genkit check {kind}`"
            )
        raise choose(kind, STARTERS, "kind of starter file")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise GenkitError(f"'{name}' is no name: lower-case letters, digits and _, a letter first")
    if name in registry_of(kind).names():
        raise GenkitError(f"the name '{name}' is taken: genkit has such {a(kind)} (see `genkit list`)")
    camel = "".join(part.capitalize() for part in name.split("_"))
    return STARTERS[kind].lstrip().replace("NAME", name).replace("CLASS", camel)


def write_starter(kind: str, name: str, folder: Path) -> Path:
    """Writes `folder`/NAME.py. Raises GenkitError where there is such a file, for a name that Python knows as another
    module, and what `starter` raises."""
    text, path = starter(kind, name), folder / f"{name}.py"
    if path.exists():
        raise GenkitError(f"{path.name} is there already, and is not written over: choose another name")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise GenkitError(f"{path.name} would hide the module '{name}' from Python: choose another name")
    write_text(path, text)
    return path
