"""Flow matching in ambient space, point by point: any number of points of an image or of a cloud can be sampled.

    context: the noised sample as trained on (an image; K points of a cloud) ── stem ── backbone ── tokens (B, L, W)
    any point (value, place) ── stem ── reads the tokens ── head ── its velocity

    loss = E | v(t, x_t[i], c[i]; context x_t, y) - u_t[i] |^2   over `points` points i of each sample, drawn at random

A point reads the context and no other point: its velocity does not depend on which others are sampled, which may be
more than in training, between its pixels, or none. The backbone's cost, quadratic in the tokens of the context, does
not grow with the points; that of reading is linear in them. Given the context, and their noise, points are
independent: right for those that are drawn from a surface. Between the pixels of an image it would be grain, so there
the noise is that of the pixels about, interpolated to variance 1; detail finer than in training is not to be had.

Wang et al., INRFlow / Coordinate In and Value Out: Training Flow Transformers in Ambient Space,
https://arxiv.org/abs/2412.03791. There points are put into the tokens by attention too; here an image goes in by
patches, as everywhere on this backbone, and of a cloud K points, drawn anew in each step, are the tokens.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.backbone import Cloud, Grid, Head, ModelOptions, PointStem, Reader, Tokens
from genkit.couplings import COUPLINGS, Coupling
from genkit.data.base import Dataset
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.guidance import Guidance
from genkit.objectives.base import OBJECTIVES, weighted_mean
from genkit.objectives.flow_matching import FlowMatching
from genkit.paths import Path, Times
from genkit.randomness import sample_like
from genkit.types import Batch, DataSpec, Field, Generator

CONTEXT, OCTAVES = 64, 6  # of clouds


@OBJECTIVES.register("ambient")
class Ambient(FlowMatching):
    """Flow matching of single points, of images and vectors by place and of clouds (P, D), sampled at any size.

    points: how many of a sample are trained on in a step, drawn anew; null for all. All samples have as many.
    context: of clouds, how many points the backbone reads (null: 64, or all of fewer).
    The other options are those of flow_matching. Clouds have no likelihood, and no coupling that pairs by distance.
    Raises GenkitError for numbers of points that a sample has not.
    """

    any_size = True

    def __init__(
        self,
        spec: DataSpec,
        model: ModelOptions,
        *,
        points: int | None = None,
        context: int | None = None,
        coupling: Coupling | str = "independent",
        path: Path | str = "linear",
        times: Times | str = "uniform",
        prediction: Literal["velocity", "data", "noise"] = "velocity",
        source: Dataset | str | None = None,
        conditional: bool = True,
        label_dropout: float = 0.1,
        noise: Literal["uniform", "gaussian", "none"] | None = None,
        sigma: float = 0.0,
    ) -> None:
        self.context = context
        super().__init__(
            spec,
            model,
            coupling=coupling,
            path=path,
            times=times,
            prediction=prediction,
            source=source,
            conditional=conditional,
            label_dropout=label_dropout,
            noise=noise,
            sigma=sigma,
        )
        self.trained = Cloud(*spec.shape) if spec.cloud else Grid(spec.shape)
        if points is not None and not 1 <= points <= self.trained.length:
            raise GenkitError(
                f"ambient: points must be from 1 to {self.trained.length}, as many as a sample of '{spec.name}' has, "
                f"not {points}"
            )
        if spec.cloud and not self.coupling.independent:
            raise GenkitError(
                f"ambient: the coupling '{COUPLINGS.name_of(self.coupling)}' pairs by the places of values, and points "
                "of a cloud have no order: take 'independent'"
            )
        self.points = points
        # The points of a state, where they are, and which of them make the sample: more than in training if resized.
        self.layout: Cloud | Grid = self.trained
        self.shown, self.window = self.trained, slice(None)
        self.register_buffer("places", self.trained.positions, persistent=False)
        self.places: Tensor
        dim, width = self.trained.dim, model.width
        axes, octaves = self.places.shape[1], max(1, round(math.log2(max(spec.shape[1:], default=spec.dims))))
        if spec.cloud:
            axes, octaves = dim, OCTAVES
            self.stem = PointStem(dim, axes, octaves, width)
        self.point_stem = PointStem(dim, axes, octaves, width)
        self.reader = Reader(model)
        self.head = Head(width, dim)

    def cut(self, spec: DataSpec, model: ModelOptions) -> Tokens:
        if not spec.cloud:
            if self.context is not None:
                raise GenkitError(
                    f"ambient: context is of clouds of points, which '{spec.name}' does not hold"
                )
            return super().cut(spec, model)
        points, dim = spec.shape
        context = min(CONTEXT, points) if self.context is None else self.context
        if not 1 <= context <= points:
            raise GenkitError(
                f"ambient: context must be from 1 to {points}, as many points as a sample of '{spec.name}' has, "
                f"not {context}"
            )
        return Cloud(context, dim)

    def resized(self, size: int) -> Ambient:
        """Images have the trained one beside them as the context, which is the same for all sizes and one seed, and is
        not shown; their noise is its noise, interpolated, so that all sizes are views of one continuous image. Clouds
        begin with the points that they have at the trained size, and the others have noise of their own."""
        spec, cloud = self.spec.resized(size), self.spec.cloud
        if spec.shape == self.spec.shape:
            return self
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # so that `places` below is its own, beside the same weights
        other.spec, other.view = spec, Continuous(spec, noise=self.view.noise, sigma=self.view.sigma)
        if cloud:
            other.shown, other.window = Cloud(*spec.shape), slice(size)
            other.layout = Cloud(max(size, self.tokens.length), self.trained.dim)
            other.places = self.places.new_zeros(other.layout.length, 1)
        else:
            other.shown, other.window = Grid(spec.shape), slice(self.trained.length, None)
            other.layout = Cloud(self.trained.length + other.shown.length, self.trained.dim)
            first = self.places[: self.trained.length]
            other.places = torch.cat((first, other.shown.positions.to(first)))
        return other

    def field(self, y: Tensor | None = None, guidance: Guidance | None = None) -> Field:
        """Of the same points, a weaker model that guides gives its own predictions."""
        if guidance is not None and guidance.guide is not None and guidance.guide.spec != self.spec:
            guidance = copy.copy(guidance)
            guidance.guide = guidance.guide.resized(self.spec.shape[0 if self.spec.cloud else 1])
        return super().field(y, guidance)

    def decode(self, x: Tensor) -> Tensor:
        return self.view.decode(self.shown.join(self.layout.split(x)[:, self.window]))

    def start(self, n: int, *, generator: Generator = None) -> Tensor:
        like, more = self.places.new_empty(n, *self.trained.shape), self.layout.length - self.trained.length
        noise = self.source.sample(like, generator=generator)
        points = self.trained.split(noise)
        if self.spec.cloud and more > 0:
            others = self.source.sample(like.new_empty(n, more, self.trained.dim), generator=generator)
            points = torch.cat((points, others), dim=1)
        elif more > 0:
            points = torch.cat((points, self.shown.split(interpolated(noise, self.spec.shape[1:]))), dim=1)
        return self.layout.join(points[:, : self.layout.length])

    def network(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        values, cond = self.layout.split(x), self.condition(len(x), t=t, y=y)
        return self.layout.join(self.of_points(values, self.places, self.read(values, cond), cond))

    def read(self, values: Tensor, cond: Tensor) -> Tensor:
        """The tokens (B, L, W) of the context, which the points (B, S, D) begin with."""
        if self.spec.cloud:
            first = values[:, : self.tokens.length]
            h = self.stem(first, first)
        else:
            h = self.stem(self.tokens.split(self.trained.join(values[:, : self.trained.length])))
        return self.backbone(h, cond, pos=self.positions)

    def of_points(self, values: Tensor, places: Tensor, tokens: Tensor, cond: Tensor) -> Tensor:
        """What is predicted (B, Q, D) for points of these values (B, Q, D), at places (Q, A) or (B, Q, A)."""
        h = self.point_stem(values, values if self.spec.cloud else places)
        among = (places + 1) / 2 * (self.positions.amax(0) + 1) - 0.5  # in steps from token to token
        return self.head(self.reader(h, tokens, cond, at=among, pos=self.positions), cond)

    def loss(self, batch: Batch, *, generator: Generator = None) -> dict[str, Tensor]:
        pair = batch.paired
        t, x_t, target = self.noised(pair, generator=generator)
        cond = self.condition(len(t), t=t, y=self.drop_label(pair.y, generator=generator))
        x_t, target = self.trained.split(x_t), self.trained.split(target)
        if self.spec.cloud:  # another context in each step
            order = self.drawn(x_t, generator)
            x_t, target = taken(x_t, order), taken(target, order)
        tokens, places = self.read(x_t, cond), self.places
        if self.points is not None:
            chosen = self.drawn(x_t, generator)[:, : self.points]
            x_t, target, places = taken(x_t, chosen), taken(target, chosen), places[chosen]
        predicted = self.of_points(x_t, places, tokens, cond)
        return {**pair.logs, "loss": weighted_mean((predicted - target).square(), pair.weight)}

    @staticmethod
    def drawn(points: Tensor, generator: Generator) -> Tensor:
        """The points (B, S, D) of each sample in a random order: (B, S)."""
        return sample_like(torch.rand, points, generator, tuple(points.shape[:2])).argsort(1)

    @property
    def no_likelihood(self) -> str | None:
        if self.spec.cloud:
            return "clouds of points have no likelihood: points of a surface have no density"
        if self.layout is not self.trained:
            return "samples of another size than the data's have no likelihood"
        return super().no_likelihood


def interpolated(noise: Tensor, size: tuple[int, ...]) -> Tensor:
    """White noise (B, C, h, w) between its pixels, bilinearly, each weight over the root of their sum of squares so
    that the variance is kept: (B, C, H, W)."""
    for axis, n in zip((2, 3), size, strict=True):
        unit = torch.eye(noise.shape[axis], dtype=noise.dtype, device=noise.device)
        weights = F.interpolate(unit[None], size=n, mode="linear")[0]
        noise = (noise.movedim(axis, -1) @ (weights / weights.norm(dim=0))).movedim(-1, axis)
    return noise


def taken(points: Tensor, index: Tensor) -> Tensor:
    """Of points (B, S, D) those of these numbers (B, Q)."""
    return points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))
