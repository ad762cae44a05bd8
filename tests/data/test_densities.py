"""Each density against what its formula implies: supports, moments, symmetry, closed forms."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from genkit.data import DATASETS
from genkit.data.densities import Density, DensitySource
from genkit.errors import GenkitError
from genkit.randomness import keyed_generator

NAMES = [name for name in DATASETS.names() if issubclass(DATASETS.get(name), Density)]


def draw(name: str, n: int = 100_000) -> tuple[Tensor, Tensor]:
    density = DATASETS.build(name, labels=True)
    assert isinstance(density, Density)
    x, y = density.sample(n, generator=keyed_generator(0, name))
    assert y is not None
    return x.double(), y


@pytest.mark.parametrize("name", NAMES)
def test_modes_are_equally_likely(name: str) -> None:
    x, y = draw(name)
    modes = DATASETS.build(name, labels=True).spec.classes
    assert x.shape == (100_000, 2)
    assert x.isfinite().all()
    assert y.bincount().tolist() == pytest.approx([100_000 / modes] * modes, rel=0.03)  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_keyed_and_parts_differ(name: str) -> None:
    density = DATASETS.build(name, n_train=50, n_test=50)
    assert isinstance(density, Density)
    assert torch.equal(
        density.sample(9, generator=keyed_generator(1))[0], density.sample(9, generator=keyed_generator(1))[0]
    )
    index = torch.arange(50)
    train, labels = density.train.take(index)
    assert labels is None
    assert density.spec.classes is None
    assert not torch.equal(train, density.test.take(index)[0])
    assert not torch.equal(train, DATASETS.build(name, n_train=50, seed=1).train.take(index)[0])
    labelled = DATASETS.build(name, n_train=50, labels=True).train.take(index)
    assert torch.equal(train, labelled[0])
    assert labelled[1] is not None


@pytest.mark.parametrize("condition", ["x", "y", "direction"])
def test_a_condition_is_of_the_point(condition: str) -> None:
    plain, data = (
        DATASETS.build("moons", n_train=50),
        DATASETS.build("moons", n_train=50, condition=condition),
    )
    x, y = data.train.take(torch.arange(50))
    assert torch.equal(x, plain.train.take(torch.arange(50))[0])
    assert data.hash != plain.hash
    wanted = {"x": x[:, :1], "y": x[:, 1:], "direction": x / x.norm(dim=1, keepdim=True)}[condition]
    assert y is not None
    assert torch.allclose(y, wanted)
    assert y.shape[1] == data.spec.condition
    assert data.spec.classes is None


def test_labels_beside_a_condition_are_refused() -> None:
    with pytest.raises(GenkitError, match="classes or real-valued conditions, not both"):
        DATASETS.build("moons", labels=True, condition="x")
    with pytest.raises(GenkitError, match="condition must be one of 'x', 'y', 'direction' or null, not 'z'"):
        DATASETS.build("moons", condition="z")


def test_eight_gaussians_have_their_means_and_covariances() -> None:
    x, y = draw("8gaussians")
    for k in range(8):
        mean, cov = x[y == k].mean(0), x[y == k].T.cov()
        angle = 2 * math.pi * k / 8
        torch.testing.assert_close(
            mean, 5 * torch.tensor([math.cos(angle), math.sin(angle)]).double(), atol=0.03, rtol=0
        )
        torch.testing.assert_close(cov, math.sqrt(0.1) * torch.eye(2).double(), atol=0.02, rtol=0)


def test_eight_gaussians_log_prob_is_the_mixture() -> None:
    x = 4 * torch.randn(50, 2, dtype=torch.float64, generator=keyed_generator(0))
    angles = [2 * math.pi * k / 8 for k in range(8)]
    modes = [multivariate_normal([5 * math.cos(a), 5 * math.sin(a)], math.sqrt(0.1)) for a in angles]
    expected = torch.tensor(sum(mode.pdf(x.numpy()) for mode in modes) / 8).log()
    torch.testing.assert_close(DensitySource("8gaussians").log_prob(x), expected)  # type: ignore[arg-type]


def test_moons_lie_on_their_half_circles() -> None:
    x, y = draw("moons")
    moon = (x + 1) / 3  # undo scale; the smear is along (1, 1), so the difference of coordinates is exact
    centre = torch.tensor([[0.0, 0.0], [1.0, 0.5]]).double()[y]
    sign = 1 - 2 * y.double()
    local = sign[:, None] * (moon - centre)  # on the upper unit half circle, plus s (1, 1) with |s| <= 0.2
    difference = local[:, 0] - local[:, 1]
    # c - s = d on the circle with s >= 0: c = (d + sqrt(2 - d^2)) / 2 or (d - sqrt(2 - d^2)) / 2
    root = (2 - difference.square()).clamp(min=0).sqrt()
    smears = [local[:, 0] - (difference + side * root) / 2 for side in (1, -1)]
    least = torch.stack([torch.where(sign > 0, s, -s) for s in smears])
    on_arc = (least > -1e-3) & (least < 0.2 + 1e-3)
    assert on_arc.any(0).all()
    mean = x[y == 0].mean(0)  # E (cos a, sin a) = (0, 2/pi), E smear = 0.1
    torch.testing.assert_close(
        mean, torch.tensor([-0.7, 3 * (2 / math.pi + 0.1) - 1]).double(), atol=0.03, rtol=0
    )
    mean = x[y == 1].mean(0)
    expected = torch.tensor([3 * 1.1 - 1, 3 * (0.6 - 2 / math.pi) - 1]).double()
    torch.testing.assert_close(mean, expected, atol=0.03, rtol=0)


def test_checkerboard_fills_the_dark_cells() -> None:
    x, _ = draw("checkerboard")
    cell = ((x + 4) / 2).floor().long()
    assert cell.min() == 0
    assert cell.max() == 3
    assert (cell.sum(1) % 2 == 0).all()
    counts = (4 * cell[:, 0] + cell[:, 1]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    place = (x + 4) / 2 - cell
    assert place.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert place.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.01)


def test_spirals_are_each_other_negated_and_follow_the_arm() -> None:
    x, y = draw("spirals")
    arm = (1 - 2 * y.double())[:, None] * x
    for part in (arm[y == 0], arm[y == 1]):
        torch.testing.assert_close(part.mean(0), arm.mean(0), atol=0.05, rtol=0)
    turn = torch.linspace(0, 3 * math.pi, 2000).double()
    curve = torch.stack([-turn * turn.cos(), turn * turn.sin()], 1) / 3 + 1 / 12  # mean of u' / 2 / 3
    distance = torch.cdist(arm[:5000], curve).min(1).values
    assert distance.quantile(0.99) < 0.35
    squares = (
        (arm - 1 / 12).square().sum(1)
    )  # E r^2 / 9 = pi^2 / 2, plus the variances of u' / 6 and the noise
    assert squares.mean() == pytest.approx(math.pi**2 / 2 + 2 / 432 + 2 * 0.01, rel=0.01)


def test_pinwheel_blades_are_rotations_of_one() -> None:
    x, y = draw("pinwheel")
    radius = x.norm(dim=1)
    assert radius.square().mean() == pytest.approx(4 * (1 + 0.3**2 + 0.1**2), rel=0.01)
    z = torch.view_as_complex(x) * torch.exp(1j * y * (2 * math.pi / 5))  # clockwise turns undone
    means = torch.stack([z[y == k].mean() for k in range(5)])
    torch.testing.assert_close(means, means.mean().expand(5), atol=0.03, rtol=0)
    straight = z * torch.exp(1j * (z.abs() / 2).exp() / 4)  # |f| is f_1 but for the thin direction
    assert straight.angle().std() == pytest.approx(0.1, abs=0.05)


def test_a_density_is_a_source() -> None:
    source = DensitySource(DATASETS.build("moons"))
    like = torch.empty(7, 2, dtype=torch.float64)
    x = source.sample(like, generator=keyed_generator(0))
    assert x.shape == like.shape
    assert x.dtype == like.dtype
    assert not source.gaussian
    with pytest.raises(GenkitError, match=r"'moons' has no closed-form density; '8gaussians' has"):
        source.log_prob(x)
    with pytest.raises(GenkitError, match=r"points \(B, 2\), not \(7, 3\)"):
        source.sample(torch.empty(7, 3))


def test_bad_options_are_refused() -> None:
    with pytest.raises(GenkitError, match="n_train must be at least 1, not 0"):
        DATASETS.build("moons", n_train=0)
    with pytest.raises(GenkitError, match="did you mean 'n_train'"):
        DATASETS.build("moons", ntrain=5)
    with pytest.raises(GenkitError, match=r"'digits' is no density.*moons"):
        DensitySource("digits")  # type: ignore[arg-type]
    with pytest.raises(GenkitError, match="did you mean 'checkerboard'"):
        DensitySource("checkboard")  # type: ignore[arg-type]
