"""Optimal transport between the source itself and the whole data set."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from genkit.couplings.base import COUPLINGS, Coupling, EncodedData
from genkit.errors import GenkitError
from genkit.memory import free_memory
from genkit.randomness import keyed_generator
from genkit.types import Generator, Pair, Rows, Source

SCORES = 2**24  # of noise against data, at most so many at a time
ROUNDS = (2000, 4000, 8000)  # steps of the fit, each going on from the one before, until it is good enough
CHECK = 20  # samples for each data row, on average, by which the fit is judged


@COUPLINGS.register("semidiscrete")
class Semidiscrete(Coupling):
    """Each noise sample with the data row that semidiscrete transport assigns it: j = argmax_j <x0, x1_j> + h_j.

    h (N,) is a dual potential, fitted once to the whole data set such that all rows are equally likely; then no
    batch has a transport problem of its own, nor its bias. The fit ascends the dual
    E_x0[-max_j (<x0, x1_j> + h_j)] + mean_j h_j, whose gradient is 1/N - P(j), by averaged stochastic gradients:
    O(steps batch N d) time in `setup` (in reports: seconds of setup) and again when a run resumes, on the device of
    the data; a batch of n then takes O(n N d). O(N d) memory. Source and classes are kept as such; the data up to
    `imbalance` = N sum_j P(j)^2 - 1 of the fit, estimated without bias.
    Semidiscrete flow matching, https://arxiv.org/abs/2509.25519; averaging: Genevay et al.,
    https://arxiv.org/abs/1605.08527.

    steps, batch: of the fit; about a hundred samples a row are needed in all. null: 2,000 steps and, as long as the
        imbalance is above the tolerance, 4,000 more and 8,000 more.
    tolerance: a larger imbalance after the fit warns.
    conditional: rows of the class of the batch's own row only, so that each class keeps its source.
    Raises GenkitError without a data set, for one that does not fit in memory or is not finite, and for one with real
    numbers in the place of classes if conditional.
    """

    rows = Rows.DRAWN
    lowers_cost = True
    needs_data = True

    def __init__(
        self,
        steps: int | None = None,
        batch: int = 256,
        tolerance: float = 0.02,
        conditional: bool = False,
    ) -> None:
        if (steps is not None and steps < 1) or batch < 1:
            raise GenkitError(f"semidiscrete: steps and batch must be positive, not {steps} and {batch}")
        if tolerance <= 0:
            raise GenkitError(f"semidiscrete: tolerance must be positive, not {tolerance}")
        self.steps, self.batch, self.tolerance = steps, batch, tolerance
        self.conditional, self.skews_classes = conditional, not conditional
        self.points, self.potential = torch.empty(0), torch.empty(0)
        self.classes: Tensor | None = None
        self.imbalance = 0.0

    def setup(self, data: EncodedData | None, source: Source, teacher: object = None) -> None:
        super().setup(data, source, teacher)
        assert data is not None
        generator = keyed_generator(0, "semidiscrete")
        x, y = data.take(torch.arange(len(data)), generator=generator)
        free = free_memory(x.device)
        if free is not None and 16 * x.numel() > free:  # float32, and a copy while it is made
            raise GenkitError(
                f"semidiscrete: {len(x)} rows take {16 * x.numel() / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB "
                "are free: 'ot' and 'sliced_ot' plan for one batch at a time"
            )
        self.classes = y if self.conditional else None
        if self.conditional and y is None:
            raise GenkitError("semidiscrete: conditional=true needs data with classes")
        if self.classes is not None and self.classes.is_floating_point():
            raise GenkitError(
                "semidiscrete: conditional=true is for classes, and the conditions of these data are real numbers: "
                "take 'conditional_ot'"
            )
        self.points = x.flatten(1).float()
        if not bool(torch.isfinite(self.points).all()):
            raise GenkitError("semidiscrete: the data have values that are not finite; look at them")
        self.fit(x[:1], generator)

    def fit(self, like: Tensor, generator: torch.Generator) -> None:
        """Rounds of SGD from the potential that would be right were source and data alike but for a scale.

        A row's potential falls with each sample it gets beyond its share, by the mean gap between the best row of
        a sample and the second best, since a step of that size moves a sample to the next row; times n / batch, what
        a sample is of a row's share, up to 10. Steps fall to zero in a round; later potentials count more in its
        average.
        """
        centred = self.points - self.points.mean(0)
        self.potential = -centred.square().sum(1) / (2 * centred.square().mean().sqrt() + 1e-12)
        rounds = ROUNDS if self.steps is None else (self.steps,)
        for steps in rounds:
            self.ascend(steps, like, generator)
            self.imbalance = self.measure(like, generator)
            if self.imbalance <= self.tolerance:
                return
        warnings.warn(
            f"semidiscrete: some of the {len(self.points)} rows are drawn more often than others (imbalance "
            f"{self.imbalance:.2f}, tolerance {self.tolerance:g}): more steps of the fit than {sum(rounds)}, or a "
            "larger batch, bring it down",
            stacklevel=3,
        )

    def ascend(self, steps: int, like: Tensor, generator: torch.Generator) -> None:
        """One round of the fit."""
        n = len(self.points)
        average, total = torch.zeros_like(self.potential), 0.0
        start = min(10.0, n / self.batch)
        for step in range(steps):
            x0, y = self.noise(self.batch, like, generator)
            index, gap = self.assign(x0, y)
            over = torch.bincount(index, minlength=n) - self.batch / n
            self.potential = self.potential - start * gap * (1 - step / steps) ** 3 * over
            weight = (step + 1.0) ** 4
            total += weight
            average += (self.potential - average) * weight / total
        self.potential = average

    def measure(self, like: Tensor, generator: torch.Generator) -> float:
        """The imbalance, of fresh samples."""
        n = len(self.points)
        counts, drawn = torch.zeros(n, device=self.potential.device), 0
        while drawn < CHECK * n:
            x0, y = self.noise(4096, like, generator)
            counts += torch.bincount(self.assign(x0, y)[0], minlength=n)
            drawn += len(x0)
        return float(n * (counts * (counts - 1)).sum() / (drawn * (drawn - 1.0)) - 1)

    def noise(self, n: int, like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Source samples (n, d) and, if conditional, the classes (n,) of random rows."""
        x0 = self.source.sample(like.expand(n, *like.shape[1:]), generator=generator).flatten(1)
        if self.classes is None:
            return x0.float(), None
        rows = torch.randint(len(self.classes), (n,), generator=generator).to(self.classes.device)
        return x0.float(), self.classes[rows]

    def assign(self, x0: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """For noise (n, d), of the classes y (n,) or any, the data rows (n,), and the mean gap to the second best."""
        found = []
        with torch.autocast(x0.device.type, enabled=False):
            for part in torch.arange(len(x0), device=x0.device).split(max(1, SCORES // len(self.points))):
                scores = torch.addmm(self.potential, x0[part].float(), self.points.T)
                if y is not None and self.classes is not None:
                    scores.masked_fill_(y[part, None].ne(self.classes), -torch.inf)
                found.append(scores.topk(min(2, len(self.points)), 1))
        best, index = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])[:, 0]
        gap = (best[:, 0] - best[:, -1]).clamp_max(3e38)
        finite = torch.isfinite(best[:, -1])
        return index, gap[finite].mean() if bool(finite.any()) else gap.new_zeros(())

    def __call__(
        self, x1: Tensor, y: Tensor | None = None, *, index: Tensor | None = None, generator: Generator = None
    ) -> Pair:
        if self.data is None:
            raise GenkitError(
                "semidiscrete: it pairs noise with the rows of a data set: call setup(data, source)"
            )
        if x1[0].numel() != self.points.shape[1]:
            raise GenkitError(
                f"semidiscrete: rows of {x1[0].numel()} values were given, and set up were {self.points.shape[1]}"
            )
        if self.points.device != x1.device:
            self.points, self.potential = self.points.to(x1.device), self.potential.to(x1.device)
            self.classes = None if self.classes is None else self.classes.to(x1.device)
        if self.classes is not None and (y is None or not bool(torch.isin(y, self.classes).all())):
            raise GenkitError(
                "semidiscrete: conditional=true needs the class of each row, one that the data have"
            )
        x0 = self.source.sample(x1, generator=generator)
        chosen, _ = self.assign(x0.flatten(1), y if self.conditional else None)
        drawn, classes = self.data.take(chosen, generator=generator)
        classes = None if y is None or classes is None else classes.to(x1.device)
        return Pair(x0, drawn.to(x1), classes, chosen)
