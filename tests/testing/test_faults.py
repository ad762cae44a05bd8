"""Planted faults: each breaks the law that is there for it, and the class without the fault breaks none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from genkit.couplings.independent import Independent
from genkit.couplings.ot import OptimalTransport
from genkit.couplings.weighted import Weighted
from genkit.data.base import Dataset, Shown, TensorSplit
from genkit.guidance.classifier_free import ClassifierFree
from genkit.guidance.corrected import Corrected
from genkit.guidance.interval import Interval
from genkit.inversion.jacobi import Jacobi
from genkit.inversion.sequential import Sequential
from genkit.metrics.base import Mean, TwoSample
from genkit.metrics.energy_distance import EnergyDistance
from genkit.metrics.sample_entropy import SampleEntropy
from genkit.objectives.flow_matching import FlowMatching
from genkit.paths import Schedule
from genkit.paths.bridge import Bridge
from genkit.paths.cosine import Cosine
from genkit.paths.linear import Linear
from genkit.paths.times import UniformTimes
from genkit.randomness import keyed_generator
from genkit.solvers import OneStep, Solver, State
from genkit.solvers.adaptive import Dopri5
from genkit.solvers.grids import Uniform
from genkit.solvers.runge_kutta import Euler, Midpoint
from genkit.testing import KINDS, check, laws_of
from genkit.types import Coefficients, DataSpec, Pair, Rows
from genkit.unmasking.ancestral import Ancestral
from genkit.unmasking.base import Unmasked
from genkit.unmasking.confidence import Confidence

FAULTS: list[tuple[str, type, str]] = []


def breaks(kind: str, law: str) -> Any:
    """Decorator: this class of a kind breaks the law."""

    def plant(cls: type) -> type:
        FAULTS.append((kind, cls, law))
        return cls

    return plant


# couplings


class Sound(Independent):
    """Without a fault; `made` is changed by those with one."""

    def __call__(self, x1, y=None, *, index=None, generator=None):
        return self.made(Pair(self.source.sample(x1, generator=generator), x1, y, index), generator)

    def made(self, pair, generator):
        return pair


@breaks("coupling", "data rows stay in place")
class Reordered(Sound):
    def made(self, pair, generator):
        return replace(pair, x1=pair.x1.flip(0))


@breaks("coupling", "data rows stay in place")
class ReorderedWithAll(Sound):
    def made(self, pair, generator):
        order = torch.arange(len(pair.x1)).roll(1)
        y, index = (None if c is None else c[order] for c in (pair.y, pair.index))
        return Pair(pair.x0, pair.x1[order], y, index)


@breaks("coupling", "data rows stay in place")
class Dropped(Sound):
    def made(self, pair, generator):
        last = slice(max(1, len(pair.x1) - 1))
        y, index = (None if c is None else c[last] for c in (pair.y, pair.index))
        return Pair(pair.x0[last], pair.x1[last], y, index)


@breaks("coupling", "data rows stay in place")
class Duplicated(Sound):
    def made(self, pair, generator):
        return replace(pair, x1=torch.cat((pair.x1[:1], pair.x1[:-1])))


@breaks("coupling", "pairs are aligned rows")
class Doubled(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=pair.x0.double())


@breaks("coupling", "pairs are aligned rows")
class NegativeWeights(Sound):
    def made(self, pair, generator):
        return replace(pair, weight=torch.randn(len(pair.x1), generator=generator))


@breaks("coupling", "classes and row numbers go with the rows")
class WithoutClasses(Sound):
    def made(self, pair, generator):
        return replace(pair, y=None)


@breaks("coupling", "classes and row numbers go with the rows")
class OtherIndex(Sound):
    def made(self, pair, generator):
        return replace(pair, index=torch.arange(len(pair.x1)))


@breaks("coupling", "real valued conditions go with the rows")
class WholeConditions(Sound):
    def made(self, pair, generator):
        return replace(pair, y=None if pair.y is None else pair.y.long())


@breaks("coupling", "unlabelled data stay unlabelled")
class InventedClasses(Sound):
    def made(self, pair, generator):
        return replace(pair, y=torch.zeros(len(pair.x1)).long() if pair.y is None else pair.y)


@breaks("coupling", "the batch is left alone")
class InPlace(Sound):
    def made(self, pair, generator):
        pair.index += 1
        return replace(pair, index=pair.index - 1)


@breaks("coupling", "the generator decides")
class OwnRandomness(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=self.source.sample(pair.x1))


@breaks("coupling", "other generators give other pairs")
class AlwaysTheSame(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=self.source.sample(pair.x1, generator=keyed_generator(0)))


@breaks("coupling", "the marginal of x0 is the source")
class Widened(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=1.1 * pair.x0)


@breaks("coupling", "the marginal of x0 is the source")
class Shifted(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=pair.x0 + 0.1)


@breaks("coupling", "the marginal of x0 is the source")
class OtherShape(Sound):
    def made(self, pair, generator):
        uniform = torch.rand(pair.x1.shape, generator=generator)
        return replace(pair, x0=(2 * uniform - 1) * 3**0.5)  # of the same mean and variance


@breaks("coupling", "the marginal of x0 is the source")
class NormalAlways(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=torch.randn(pair.x1.shape, generator=generator))


@breaks("coupling", "the marginal of x0 is the source")
class WeightedBreaks(Weighted):
    keeps_source = True


@breaks("coupling", "the marginal of x1 is the data")
class Favours(Sound):
    rows = Rows.DRAWN

    def made(self, pair, generator):
        low = (
            self.data.take(torch.arange(len(self.data)))[0]
            .flatten(1)[:, 0]
            .argsort()[: len(self.data) * 9 // 10]
        )
        index = low[torch.randint(len(low), (len(pair.x1),), generator=generator)]
        x1, y = self.data.take(index)
        return Pair(pair.x0, x1.to(pair.x1), y if pair.y is not None else None, index)


@breaks("coupling", "pairs are as independent as declared")
class ClaimsIndependence(OptimalTransport):
    independent = True


@breaks("coupling", "pairs are as independent as declared")
class LeansALittle(Sound):
    """Three in ten noise samples are on the side of the mean on which the data are; the marginal stays."""

    def made(self, pair, generator):
        side = (pair.x1[..., :1] - 1).sign()
        mirrored = torch.where(
            torch.rand(side.shape, generator=generator) < 0.3, pair.x0.abs() * side, pair.x0
        )
        return replace(pair, x0=mirrored)


@breaks("coupling", "the cost is below that of independent pairs")
class ClaimsLowCost(Sound):
    lowers_cost = True


@breaks("coupling", "pairs are aligned rows")
class FailsAtOne(Sound):
    def made(self, pair, generator):
        return replace(pair, x0=(pair.x0 - pair.x0.mean(0)) / pair.x0.std(0))


# solvers


@breaks("solver", "the error falls with the declared order")
class EulerAsTwo(Euler):
    order = 2


@breaks("solver", "the error falls with the declared order")
class WrongTime(OneStep):
    """The midpoint method but for the time of its second stage."""

    order = 2

    def advance(self, field, t, dt, x):
        return x + dt * field(t + dt, x + dt / 2 * field(t, x))


@breaks("solver", "nothing is kept between calls")
class RemembersSlope(OneStep):
    """Adams-Bashforth, whose last slope is the solver's, not the state's."""

    order = 2
    last = None

    def advance(self, field, t, dt, x):
        slope = field(t, x)
        last = slope if self.last is None or self.last.shape != slope.shape else self.last
        self.last = slope
        return x + dt * (1.5 * slope - 0.5 * last)


@breaks("solver", "nothing is kept between calls")
class ResetsInInit(Solver):
    """The same, reset when a solve begins: a solve inside another still disturbs it."""

    order = 1

    def init(self, field, x, *, generator=None):
        self.last = None
        return State(x)

    def step(self, field, t, t_next, state, *, generator=None):
        slope = field(t, state.x)
        last = slope if self.last is None else self.last[: len(slope)]
        self.last = slope
        return State(state.x + (t_next - t) * (1.5 * slope - 0.5 * last))


@breaks("solver", "the generator decides")
class OwnNoise(OneStep):
    order = 1

    def advance(self, field, t, dt, x):
        return x + dt * field(t, x) + 1e-3 * dt * torch.randn_like(x)


@breaks("solver", "samples of a gaussian have its moments")
class TooMuchNoise(Solver):
    """Langevin steps beside the flow, with noise of twice the variance that their drift undoes."""

    order = 1
    needs = frozenset({"velocity", "score"})

    def step(self, field, t, t_next, state, *, generator=None):
        dt, x = t_next - t, state.x
        drift = field(t, x) + (field.score(t, x) if t > 0 else -x)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return State(x + dt * drift + self.scale * dt.sqrt() * noise)

    scale = 2.0


class EulerMaruyama(TooMuchNoise):
    """With as much as it undoes."""

    scale = 2.0**0.5


@breaks("solver", "evaluations are counted")
class Uncounted(OneStep):
    order = 1

    def advance(self, field, t, dt, x):
        return x + dt * field.field(t, x)


@breaks("solver", "the field is asked between the ends only")
class LooksAhead(OneStep):
    order = 1

    def advance(self, field, t, dt, x):
        return x + dt * field(t + 1.5 * dt, x)


@breaks("solver", "back and forth returns")
class ForwardOnly(OneStep):
    order = 1

    def advance(self, field, t, dt, x):
        return x + dt.abs() * field(t, x)


@breaks("solver", "shape dtype and input are left alone")
class WritesToX(OneStep):
    order = 1

    def advance(self, field, t, dt, x):
        return x.add_(dt * field(t, x))


@breaks("solver", "it declares its order and needs")
class WithoutOrder(OneStep):
    def advance(self, field, t, dt, x):
        return x + dt * field(t, x)


@breaks("solver", "an adaptive method reaches its tolerance")
class OneEulerStep(Dopri5):
    def advance(self, field, t, dt, x):
        return x + dt * field(t, x)


@breaks("solver", "the trajectory holds the state at each time")
class WithoutStart(Euler):
    def solve(self, field, x, *, times=None, generator=None, keep=False):
        found = super().solve(field, x, times=times, generator=generator, keep=keep)
        return replace(found, trajectory=found.trajectory[1:])


@breaks("grid", "times are a function of the options")
class Jitters(Uniform):
    def warp(self, u):
        return u ** (1 + torch.rand(()))


@breaks("grid", "times go from 0 to 1")
class StopsEarly(Uniform):
    def warp(self, u):
        return 0.99 * u


@breaks("grid", "times rise")
class Stands(Uniform):
    def warp(self, u):
        return (2 * u).clamp(max=1)


# paths


@breaks("path", "the velocity is the derivative")
class WrongDerivative(Cosine):
    def __call__(self, x0, x1, t, *, generator=None):
        x_t, u_t, _ = super().__call__(x0, x1, t)
        return super().__call__(x0, x1, t)._replace(u_t=u_t + 0.01 * x_t)


@breaks("path", "derivatives of the coefficients are right")
class WrongCoefficients(Cosine):
    def coefficients(self, t):
        return super().coefficients(t)._replace(d_sigma=-torch.pi / 2 * t)


@breaks("path", "points are those of the coefficients")
class OtherPoints(Cosine):
    def __call__(self, x0, x1, t, *, generator=None):
        return Linear()(x0, x1, t)


@breaks("path", "it goes from noise to data")
class Backwards(Linear):
    def coefficients(self, t):
        return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))


@breaks("path", "alpha rises and sigma falls")
class Returns(Linear):
    """t^2 (3 - 2 t) with a wave on it, which has the ends of a path."""

    def coefficients(self, t):
        alpha = t + 0.2 * (4 * torch.pi * t).sin()
        d_alpha = 1 + 0.8 * torch.pi * (4 * torch.pi * t).cos()
        return Coefficients(alpha, 1 - alpha, d_alpha, -d_alpha)


@breaks("path", "each row may have its time")
class OneTime(Linear):
    def __call__(self, x0, x1, t, *, generator=None):
        return super().__call__(x0, x1, t.mean() if t.ndim and t.std() == 0 else t.reshape(-1)[-1:])


@breaks("path", "all is finite in float32")
class Divides(Linear):
    def coefficients(self, t):
        return Coefficients(t, 1 - t, t / t, -torch.ones_like(t))


@breaks("path", "the generator decides")
class HiddenNoise(Linear):
    def __call__(self, x0, x1, t, *, generator=None):
        point = super().__call__(x0, x1, t)
        return point._replace(x_t=point.x_t + 1e-3 * torch.randn_like(x0))


@breaks("path", "the score is that of its noise")
class HalfTheScore(Bridge):
    def __call__(self, x0, x1, t, *, generator=None):
        point = super().__call__(x0, x1, t, generator=generator)
        return point._replace(score=point.score / 2)


@breaks("schedule", "d alpha is the derivative")
class WrongSlope(Schedule):
    def alpha(self, t):
        return t**2

    def d_alpha(self, t):
        return t


@breaks("schedule", "alpha is a probability that rises")
class Falls(Schedule):
    def alpha(self, t):
        return 1 - t

    def d_alpha(self, t):
        return -torch.ones_like(t)


@breaks("schedule", "shapes are kept")
class Flattens(Schedule):
    def alpha(self, t):
        return t.flatten()

    def d_alpha(self, t):
        return torch.ones_like(t).flatten()


@breaks("times", "the generator decides the times")
class OwnTimes(UniformTimes):
    def __call__(self, like, *, generator=None):
        return super().__call__(like)


@breaks("times", "times lie between 0 and 1")
class TooLate(UniformTimes):
    def __call__(self, like, *, generator=None):
        return 1.5 * super().__call__(like, generator=generator)


# guidance


@breaks("guidance", "scale 1 is off bit for bit")
class NeverOff(ClassifierFree):
    def combine(self, conditional, unconditional, t):
        return unconditional + self.scale * (conditional - unconditional)  # rounds


@breaks("guidance", "scale 1 is off bit for bit")
class AlwaysActive(ClassifierFree):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.active = True


@breaks("guidance", "it guides")
class Deaf(ClassifierFree):
    def combine(self, conditional, unconditional, t):
        return conditional


@breaks("guidance", "equal predictions are not changed")
class Amplifies(ClassifierFree):
    def combine(self, conditional, unconditional, t):
        return conditional + (self.scale - 1) * (conditional - 0.9 * unconditional)


@breaks("guidance", "rows are guided one by one")
class OfTheBatch(ClassifierFree):
    def combine(self, conditional, unconditional, t):
        excess = (self.scale - 1) * (conditional - unconditional)
        return conditional + excess / (1 + excess.std())


@breaks("guidance", "shape dtype and inputs are left alone")
class Overwrites(ClassifierFree):
    def combine(self, conditional, unconditional, t):
        unconditional *= 1 - self.scale
        return unconditional.add_(self.scale * conditional)


@breaks("guidance", "where it does not act the conditional stands")
class ActsBeforeItSaysSo(Interval):
    def excess(self, t):
        return self.scale - 1


@breaks("guidance", "scale 1 is off for autoregressive flows too")
class ScalesOfTheUnconditional(Corrected):
    def combine_affine(self, conditional, unconditional, done):
        return unconditional[0], super().combine_affine(conditional, unconditional, done)[1]


@breaks("guidance", "scale 1 is off for autoregressive flows too")
class ForgetsToDivide(Corrected):
    def combine_affine(self, conditional, unconditional, done):
        a, mu = super().combine_affine(conditional, unconditional, done)
        return a, mu * (1 + self.excess(done))


@breaks("guidance", "tokens are guided one by one")
class OfTheCall(ClassifierFree):
    def combine_affine(self, conditional, unconditional, done):
        a, mu = super().combine_affine(conditional, unconditional, done)
        return a, mu * (1 + 1e-3 * (a - conditional[0]).std())


# inverters


@breaks("inverter", "it inverts")
class ForgetsTheScale(Sequential):
    def invert(self, conditioner, z):
        found = super().invert(conditioner, z)
        return found._replace(x=found.x - z * found.a.exp() + z)


@breaks("inverter", "it inverts")
class Sloppy(Jacobi):
    def invert(self, conditioner, z):
        self.tolerance = 1e-2
        return super().invert(conditioner, z)


@breaks("inverter", "log scales are those of x")
class ScalesOfTheFirstPass(Jacobi):
    def invert(self, conditioner, z):
        return super().invert(conditioner, z)._replace(a=conditioner(z, 0, z.shape[1])[0])


@breaks("inverter", "calls and tokens are counted")
class CountsOnePass(Jacobi):
    def invert(self, conditioner, z):
        return super().invert(conditioner, z)._replace(tokens=z.shape[1])


@breaks("inverter", "exact is exact")
class ClaimsExactness(Jacobi):
    def invert(self, conditioner, z):
        return super().invert(conditioner, z)._replace(exact=True)


@breaks("inverter", "one token takes one call")
class AsksTwice(Sequential):
    def invert(self, conditioner, z):
        conditioner(z, 0, z.shape[1])
        return super().invert(conditioner, z)


@breaks("inverter", "rows are inverted one by one")
class OfTheMean(Sequential):
    def invert(self, conditioner, z):
        return super().invert(conditioner, z - z.mean(0))


@breaks("inverter", "the input is left alone and nothing is kept")
class InvertsInPlace(Sequential):
    def invert(self, conditioner, z):
        found = super().invert(conditioner, z)
        z.copy_(found.x)
        return found


@breaks("inverter", "a tolerance that is not reached is refused")
class TakesWhatItGets(Jacobi):
    def invert(self, conditioner, z):
        if self.cap is not None:
            self.tolerance = 0.0
        return super().invert(conditioner, z)


# unmaskers


@breaks("unmasker", "given symbols stay and all others are revealed")
class ChangesGiven(Ancestral):
    def sample(self, predict, x, free, noise, *, generator=None):
        return super().sample(predict, x, torch.ones_like(free), Noisy(noise), generator=generator)


class Noisy(SimpleNamespace):
    """Noise that marks everything."""

    def __init__(self, noise):
        super().__init__(mask=noise.mask, symbols=noise.symbols, draw=noise.draw, marks=lambda x: x == x)


@breaks("unmasker", "given symbols stay and all others are revealed")
class LeavesSome(Ancestral):
    def positions(self, noisy, alpha, target, *, generator=None):
        found = super().positions(noisy, alpha, target, generator=generator)
        found[:, -1] = False
        return found


@breaks("unmasker", "one symbol a step is exact")
class Greedy(Confidence):
    """Draws from sharpened probabilities."""

    def __init__(self, steps: int | None = 32) -> None:
        super().__init__(steps, temperature=0.9)


@breaks("unmasker", "many steps come near the model")
class AllAtOnce(Ancestral):
    def positions(self, noisy, alpha, target, *, generator=None):
        return noisy


@breaks("unmasker", "the generator decides")
class OwnChoice(Confidence):
    def score(self, log_p, alpha, chance):
        return torch.rand(log_p.shape[:2])


@breaks("unmasker", "parts draw what the whole draws")
class OfItsOwnRows(Ancestral):
    def positions(self, noisy, alpha, target, *, generator=None):
        chance = torch.rand(noisy.shape, generator=generator, dtype=torch.float64)
        return noisy & (chance < (target - alpha) / (1 - alpha))


@breaks("unmasker", "calls and passes are counted")
class Miscounts(Confidence):
    def sample(self, predict, x, free, noise, *, generator=None):
        found = super().sample(predict, x, free, noise, generator=generator)
        return Unmasked(found.x, found.nfe // 2, found.passes)


@breaks("unmasker", "nothing to reveal costs nothing")
class AsksAnyway(Confidence):
    def sample(self, predict, x, free, noise, *, generator=None):
        predict(0.0, x, torch.arange(len(x)))
        found = super().sample(predict, x, free, noise, generator=generator)
        return Unmasked(found.x, found.nfe + 1, found.passes + 1)


@breaks("unmasker", "inputs are left alone and nothing is kept")
class Consumes(Confidence):
    def sample(self, predict, x, free, noise, *, generator=None):
        found = super().sample(predict, x, free, noise, generator=generator)
        x.copy_(found.x)
        return found


@breaks("unmasker", "noise that it cannot take away is refused")
class TakesAll(Confidence):
    def check(self, noise):
        pass


# data sets


class Rings(Dataset):
    """Without a fault; rows of a keyed generator."""

    spec = DataSpec("rings", (3,), classes=2)

    def load(self, name):
        return self.draw(name, keyed_generator(0, name))

    def draw(self, name, generator):
        n = 300 if name == "train" else 100
        return TensorSplit(torch.randn(n, 3, generator=generator), torch.arange(n) % 2)


@breaks("dataset", "no test row is a training row")
class Overlapping(Rings):
    def load(self, name):
        rows = super().load("train")
        return rows if name == "train" else TensorSplit(rows.x[-60:], rows.y[-60:])


@breaks("dataset", "the parts are the same each time")
class Unkeyed(Rings):
    def load(self, name):
        return self.draw(name, None)


@breaks("dataset", "rows are what the spec says")
class OtherShapes(Rings):
    spec = DataSpec("rings", (2,), classes=2)


@breaks("dataset", "rows are what the spec says")
class MoreClasses(Rings):
    def draw(self, name, generator):
        rows = super().draw(name, generator)
        return TensorSplit(rows.x, rows.y + 1)


@breaks("dataset", "rows are taken by number")
class Sorted(Rings):
    def draw(self, name, generator):
        class Sorting(TensorSplit):
            def take(self, index):
                return super().take(index.sort().values)

        rows = super().draw(name, generator)
        return Sorting(rows.x, rows.y)


@breaks("dataset", "the parts move to a device")
class Rounds(Rings):
    def draw(self, name, generator):
        class Rounding(TensorSplit):
            def to(self, device):
                return TensorSplit(self.x.half().float(), self.y)

        rows = super().draw(name, generator)
        return Rounding(rows.x, rows.y)


@breaks("dataset", "rows can be shown")
class Repeats(Rings):
    def show(self, x):
        return Shown(texts=["a row"] * 10)


# metrics


class Mine(TwoSample):
    """Without a fault: the difference of means."""

    words = "difference of means"

    def distance(self, x, y):
        return (x.mean(0) - y.mean(0)).norm()


@breaks("metric", "batches do not matter")
class MeanOfMeans(SampleEntropy):
    def add(self, total, count):
        super().add(total / count, 1)


@breaks("metric", "the order of rows does not matter")
class FirstRows(Mine):
    def distance(self, x, y):
        return (x[:20].mean(0) - y[:20].mean(0)).norm()


@breaks("metric", "processes together measure what one would")
class OwnList(Mine):
    """Keeps rows beside its states."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.seen = []

    def update(self, x, real):
        super().update(x, real)
        if not real:
            self.seen.append(x)

    def reset(self):
        super().reset()
        self.seen = []

    def distance(self, x, y):
        return super().distance(torch.cat(self.seen).flatten(1).double(), y)


@breaks("metric", "reset forgets")
class NeverForgets(Mine):
    def reset(self):
        kept = list(self.fake)
        super().reset()
        self.fake = kept


@breaks("metric", "nothing to measure is refused")
class ZeroOfNothing(SampleEntropy):
    def compute(self):
        return self.sums[0] / self.sums[1].clamp(min=1)


@breaks("metric", "real rows are better than noise")
class UpsideDown(EnergyDistance):
    higher_is_better = True


@breaks("metric", "it gives numbers")
class Infinite(Mine):
    def distance(self, x, y):
        return super().distance(x, y) / 0


@breaks("metric", "it says what it is")
class Unreduced(Mean):
    reads = "rows"

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.add_state("count", torch.zeros(()), dist_reduce_fx=None)

    def update(self, x):
        self.add(x.double().mean(1).sum() if x.ndim == 2 else x.double().flatten(1).mean(1).sum(), len(x))

    def compute(self):
        return self.mean("nothing")


@breaks("metric", "other data are refused")
class TakesAnything(Mine):
    @classmethod
    def require(cls, spec):
        pass


# objectives


class Plain(FlowMatching):
    """Without a fault: flow matching with a layer more, which is used."""

    def __init__(self, spec, model) -> None:
        super().__init__(spec, model)
        self.more = nn.Linear(1, 1)

    def loss(self, batch, *, generator=None):
        found = super().loss(batch, generator=generator)
        return found | {"loss": found["loss"] + self.more(found["loss"].reshape(1, 1)).mean()}


@breaks("objective", "gradients reach every parameter")
class Detached(Plain):
    def loss(self, batch, *, generator=None):
        found = FlowMatching.loss(self, batch, generator=generator)
        return found | {"loss": found["loss"] + self.more(found["loss"].reshape(1, 1)).mean().detach()}


@breaks("objective", "gradients reach every parameter")
class Unused(Plain):
    def loss(self, batch, *, generator=None):
        return FlowMatching.loss(self, batch, generator=generator)


@breaks("objective", "the backbone is shared")
class OwnBackbone(Plain):
    def __init__(self, spec, model) -> None:
        super().__init__(spec, model)
        self.backbone.extra = nn.Linear(1, 1)

    def loss(self, batch, *, generator=None):
        found = super().loss(batch, generator=generator)
        return found | {"loss": found["loss"] + self.backbone.extra(found["loss"].reshape(1, 1)).mean()}


@breaks("objective", "the loss is a number")
class InfiniteLog(Plain):
    def loss(self, batch, *, generator=None):
        return super().loss(batch, generator=generator) | {"ratio": torch.tensor(torch.inf)}


@breaks("objective", "the generator decides the loss")
class OwnDropout(Plain):
    def loss(self, batch, *, generator=None):
        found = super().loss(batch, generator=generator)
        return found | {"loss": found["loss"] * (1 + 0.01 * torch.rand(()))}


@breaks("objective", "preparing takes no gradients")
class Prepares(Plain):
    def prepare(self, batch, *, generator=None):
        batch = super().prepare(batch, generator=generator)
        batch.pair.x0 = batch.pair.x0 * self.more.weight.mean()
        return batch


@breaks("objective", "samples look like the data")
class Undecoded(Plain):
    def sample(self, n, y=None, **options):
        found = super().sample(n, y, **options)
        return replace(found, x=found.x.float())


@breaks("objective", "the state is all of it")
class HiddenState(Plain):
    def __init__(self, spec, model) -> None:
        super().__init__(spec, model)
        self.scale = float(torch.rand(()))

    def loss(self, batch, *, generator=None):
        found = super().loss(batch, generator=generator)
        return found | {"loss": found["loss"] * (1 + self.scale)}


@breaks("objective", "the generator decides the samples")
class OwnSamples(Plain):
    def sample(self, n, y=None, *, generator=None, **options):
        return super().sample(n, y, **options)


@breaks("objective", "guidance of scale 1 is off")
class TakesAllGuidance(Plain):
    def sample(self, n, y=None, *, guidance=None, **options):
        found = super().sample(n, y, **options)
        return found if guidance is None else replace(found, tokens=2 * found.tokens)


@breaks("objective", "log probabilities have a row a sample and a kind")
class MeanLogProb(Plain):
    def log_prob(self, x, y=None, *, generator=None, sampler=None):
        found = super().log_prob(x, y, generator=generator, sampler=sampler)
        return replace(found, value=found.value.mean())


@breaks("objective", "real valued conditions are heard")
class HearsClassesOnly(Plain):
    def sample(self, n, y=None, **options):
        return super().sample(n, y if self.classes else None, **options)


@breaks("objective", "real valued conditions are heard")
class TakesAnyWidth(Plain):
    def sample(self, n, y=None, **options):
        width = self.condition_dims
        return super().sample(n, y if y is None or not width else y[:, :1].expand(-1, width), **options)


@breaks("objective", "classes that do not exist are refused")
class TakesAnyClass(Plain):
    def sample(self, n, y=None, **options):
        return super().sample(n, None if y is None else y % self.classes, **options)


SOUND: list[tuple[str, type]] = [
    ("coupling", Sound),
    ("solver", Midpoint),
    ("solver", EulerMaruyama),
    ("dataset", Rings),
    ("metric", Mine),
    ("objective", Plain),
]


@pytest.mark.parametrize(("kind", "cls", "law"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_fault_breaks_its_law(kind: str, cls: type, law: str) -> None:
    laws = laws_of(kind)
    (result,) = replace(laws, laws=[each for each in laws.laws if each.name == law]).examine(cls, {}).results
    assert not result.passed, result.numbers


@pytest.mark.parametrize(("kind", "cls"), SOUND, ids=lambda value: getattr(value, "__name__", value))
def test_the_class_without_a_fault_breaks_none(kind: str, cls: type) -> None:
    check(kind, cls)


@pytest.mark.parametrize("kind", KINDS)
def test_every_law_has_a_fault_that_breaks_it(kind: str) -> None:
    assert {law for of, _, law in FAULTS if of == kind} == {law.name for law in laws_of(kind).laws}
