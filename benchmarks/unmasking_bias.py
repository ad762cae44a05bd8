"""How far the samples of each unmasker are from the truth, when the model itself is exact.

The data are a Markov chain of six symbols of three kinds. How probably a symbol is as the one before it differs from
place to place, so that some symbols say much of each other and others little. The predictor knows every conditional
exactly: whatever is wrong is the unmasker's doing, for symbols that are revealed in one step are drawn as if
independent. Total variation distance to the truth; the
floor is that of as many exact samples. Neither chain nor unmaskers tell the three kinds apart, so sequences that are
equal but for the names of the kinds are counted as one, which changes no distance and lowers the floor.

python benchmarks/unmasking_bias.py
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from _timing import arguments, publish

from genkit.randomness import keyed_generator
from genkit.unmasking import UNMASKERS, Noise

LENGTH, SYMBOLS = 6, 3
STAY = (0.9, 0.5, 0.95, 0.6, 0.8)
SAMPLES = 100_000
STEPS = (1, 2, 3, 6, 12, 48)
COUNTED = ("confidence", "margin", "blockwise")  # a number of symbols a step: no more steps than symbols
BY_STEPS = {
    "ancestral": {"name": "ancestral"},
    "ancestral, cosine": {"name": "ancestral", "schedule": "cosine"},
    "confidence": {"name": "confidence"},
    "confidence, noise 1": {"name": "confidence", "noise": 1.0},
    "margin": {"name": "margin"},
    "blockwise, blocks of 3": {"name": "blockwise", "block": 3},
    "blockwise, blocks of 2": {"name": "blockwise", "block": 2},
    "remasking, rate 0.05": {"name": "remasking", "rate": 0.05},
    "remasking, rate 0.3": {"name": "remasking", "rate": 0.3},
    "remasking, rate 2 / steps": {"name": "remasking", "rate": 2.0},
    "corrector, strength 1": {"name": "corrector"},
}
UNIFORM = {"ancestral": {"name": "ancestral"}, "corrector, strength 1": {"name": "corrector"}}
BOUNDS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
ONE_BY_ONE = {
    "ancestral": {"name": "ancestral", "steps": None},
    "left_to_right": {"name": "left_to_right"},
    "confidence": {"name": "confidence", "steps": None},
    "margin": {"name": "margin", "steps": None},
    "entropy, bound 0": {"name": "entropy", "bound": 0.0},
    "blockwise": {"name": "blockwise", "steps": None, "block": 3},
}


class Chain:
    """The exact model of a Markov chain: the first symbol is uniform, each next one stays or goes to any other."""

    def __init__(self) -> None:
        self.states, stay = sequences(SYMBOLS), torch.tensor(STAY, dtype=torch.float64)
        moves = torch.where(self.states[:, :-1] == self.states[:, 1:], stay, (1 - stay) / (SYMBOLS - 1))
        self.p = moves.prod(1) / SYMBOLS
        self.hot = F.one_hot(self.states, SYMBOLS).double().flatten(1)
        partial = sequences(SYMBOLS + 1)[:, None]
        self.conditionals = self.posterior(((partial == SYMBOLS) | (partial == self.states)).double().prod(2))
        names = [torch.tensor(order)[self.states] for order in itertools.permutations(range(SYMBOLS))]
        alike = torch.stack([place(each, SYMBOLS) for each in names]).amin(0)
        self.kind = alike.unique(return_inverse=True)[1]  # of each sequence, without the names of its symbols
        self.of_kinds = torch.zeros(int(self.kind.max()) + 1, dtype=torch.float64).index_add(
            0, self.kind, self.p
        )

    def posterior(self, likelihood: torch.Tensor) -> torch.Tensor:
        """log p(x1_i) (R, N, V) given likelihoods (R, S) of all sequences x1."""
        p = ((likelihood * self.p) @ self.hot).reshape(-1, LENGTH, SYMBOLS)
        return (p / p.sum(2, keepdim=True)).log()

    def masked(self, alpha: float, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """log p(x_i | revealed symbols)."""
        return self.conditionals[place(x, SYMBOLS + 1)]

    def uniform(self, alpha: float, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """log p(x1_i | x_t), where x_t is x1's symbol with probability alpha, else uniform."""
        same = (self.states[:, None] == self.states).sum(2)
        keep, change = alpha + (1 - alpha) / SYMBOLS, (1 - alpha) / SYMBOLS
        return self.posterior(keep**same * change ** (LENGTH - same))[place(x, SYMBOLS)]

    def distance(self, x: torch.Tensor) -> float:
        counts = torch.bincount(self.kind[place(x, SYMBOLS)], minlength=len(self.of_kinds))
        return 0.5 * float((counts / len(x) - self.of_kinds).abs().sum())

    def measure(self, recipe: dict, *, uniform: bool = False) -> tuple[float, float]:
        """The distance of SAMPLES samples, and the network calls that a sample took on average."""
        generator, noise = keyed_generator(0), Noise(torch.arange(SYMBOLS), None if uniform else SYMBOLS)
        x = noise.draw(torch.zeros(SAMPLES, LENGTH, dtype=torch.long), generator=generator)
        free, predict = torch.ones_like(x, dtype=torch.bool), self.uniform if uniform else self.masked
        done = UNMASKERS.build(recipe).sample(predict, x, free, noise, generator=generator)
        return self.distance(done.x), done.passes


def sequences(kinds: int) -> torch.Tensor:
    return torch.cartesian_prod(*LENGTH * [torch.arange(kinds)])


def place(x: torch.Tensor, kinds: int) -> torch.Tensor:
    """The row of x (B, N) in `sequences`."""
    return (x * kinds ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def main() -> None:
    options = arguments(__doc__.partition("\n")[0])
    chain, rows = Chain(), []

    def note(source: str, unmasker: str, setting: str, found: tuple[float, float]) -> None:
        names = ("source", "unmasker", "setting", "total variation", "calls a sample")
        rows.append(dict(zip(names, (source, unmasker, setting, *found), strict=True)))

    exact = torch.multinomial(chain.p, SAMPLES, replacement=True, generator=keyed_generator(1))
    note("", "exact samples (floor)", "", (chain.distance(chain.states[exact]), 0.0))
    for unmasker, recipe in ONE_BY_ONE.items():
        note("mask", unmasker, "one symbol a step", chain.measure(recipe))
    for unmasker, recipe in BY_STEPS.items():
        for steps in STEPS:
            if steps > LENGTH and recipe["name"] in COUNTED:
                continue
            if "/ steps" in unmasker:
                recipe = {**recipe, "rate": min(1.0, 2 / steps)}
            note("mask", unmasker, f"{steps} steps", chain.measure({**recipe, "steps": steps}))
    for bound in BOUNDS:
        note("mask", "entropy", f"bound {bound}", chain.measure({"name": "entropy", "bound": bound}))
    for unmasker, recipe in UNIFORM.items():
        for steps in STEPS:
            found = chain.measure({**recipe, "steps": steps}, uniform=True)
            note("uniform", unmasker, f"{steps} steps", found)
    title = f"Bias of unmaskers with an exact model, {SAMPLES:,} samples"
    publish("unmasking_bias", title, rows, options.json)


if __name__ == "__main__":
    main()
