"""The sampler against exact answers: every target, every option, unbiased normalizers, what it costs and refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from genkit.errors import GenkitError
from genkit.particles import (
    MOVES,
    RESAMPLERS,
    TARGETS,
    Density,
    FeynmanKac,
    Model,
    Particles,
    Target,
    log_normalizer,
)
from genkit.particles.sampler import Moment
from genkit.randomness import keyed_generator
from genkit.solvers import GRIDS
from tests.objectives import models
from tests.oracles import GaussianMixture
from tests.particles.problems import END, ONE, PROBLEMS, WIDE, A, B, build, chances, density

UNLIKELY = 1e-4  # p-values below this are a bias
EACH = pytest.mark.parametrize("name", PROBLEMS)
RUNS = 10


def sampler(particles: int = 500, steps: int = 32, **options: Any) -> FeynmanKac:
    return FeynmanKac(particles, steps, **options)


def sample(target: Any = None, key: int = 0, **options: Any) -> Particles:
    target = build("temperature", A, beta=2.0) if target is None else target
    return sampler(**options).sample(target, generator=keyed_generator(key))


# --- exact answers -----------------------------------------------------------------------------------------


@EACH
def test_particles_stand_for_the_target(name: str) -> None:
    """Log Z, mean, covariance and mode weight, over ten runs; the error of one run is bounded too."""
    problem = PROBLEMS[name]
    found = problem.runs(RUNS, sampler(600))
    assert chances(found, problem.exact).min() > UNLIKELY
    assert (found - problem.exact).square().mean(0).sqrt().max() < (0.3 if name == "guidance" else 0.15)


@EACH
def test_summed_scores_without_weights_are_biased(name: str) -> None:
    """Plain guidance: the same problems, 64 steps of the flow of the target's score."""
    problem = PROBLEMS[name]
    p = chances(problem.plain(8)[:, 1:], problem.exact[1:]).min()
    if name == "mixture":  # whose score is that of the mixture at every time, given the normalizers
        assert p > UNLIKELY
    else:
        assert p < UNLIKELY


@pytest.mark.parametrize(
    "options",
    [
        *({"resampler": name} for name in RESAMPLERS.names()),
        *({"move": name} for name in MOVES.names()),
        *({"grid": name} for name in GRIDS.without_options()),
        {"adaptive": 0.97},
        {"adaptive": 0.97, "move": "mala"},
        {"threshold": 1.0},
        {"threshold": 0.0},
        {"spread": 0.1},
        {"start": 0.05, "steps": 20},
        {"kernel": "none", "move": "hmc", "threshold": 0.0},
        {"kernel": "none", "move": {"name": "mala", "moves": 3}},
    ],
    ids=str,
)
def test_every_option_gives_the_same_answer(options: dict[str, Any]) -> None:
    problem = PROBLEMS["low temperature"]
    found = problem.runs(RUNS, sampler(**options))
    assert chances(found, problem.exact).min() > UNLIKELY


@pytest.mark.parametrize("fault", ["no kernels", "no weights", "ancestral, no kernels"])
def test_a_fault_in_the_weights_would_be_seen(fault: str) -> None:
    class Faulty(FeynmanKac):
        def diffuse(
            self, target: Any, cloud: Any, log_w: Tensor, now: Moment, then: Moment, generator: Any
        ) -> Any:
            there, change = super().diffuse(target, cloud, log_w, now, then, generator)
            if fault == "no weights":
                return there, torch.zeros_like(change)
            return there, there.value - cloud.value + 2 * math.log(then.alpha / now.alpha)

    problem = PROBLEMS["low temperature"]
    spread = 0.0 if fault.startswith("ancestral") else None
    p = chances(problem.runs(RUNS, Faulty(500, 32, spread=spread)), problem.exact)
    assert p[0] < UNLIKELY  # log Z
    assert p[1:].min() < UNLIKELY


def test_closed_forms_of_gaussians() -> None:
    """Products and powers of single Gaussians and mixtures, without quadrature."""
    one, a, b = (each.noised(END, 1 - END) for each in (ONE, A, B))
    for target, exact in (
        (build("temperature", ONE, beta=3.0), one**3.0),
        (build("temperature", ONE, beta=0.4), one**0.4),
        (build("product", [A, B]), a * b),
        (build("product", [A, ONE], weights=[1.0, 2.0]), a * one**2.0),
    ):
        run = sample(target, particles=4000)
        assert run.log_normalizer == pytest.approx(exact.log_normalizer, abs=0.1)
        near(run, exact.mean, exact.cov)


@pytest.mark.parametrize("prior", [None, WIDE])
def test_the_closed_form_of_a_negation_of_gaussians(prior: GaussianMixture | None) -> None:
    """precision = precision_a + w (precision_0 - precision_b), and so with precision times mean."""
    other = GaussianMixture.of((1.0, [0.4, 0.2], [[0.6, 0.0], [0.0, 0.9]]))
    powers = [(ONE, 1.0), (other, -0.7)] + ([] if prior is None else [(prior, 0.7)])
    precision = torch.zeros(2, 2, dtype=torch.float64)
    pull = torch.zeros(2, dtype=torch.float64)
    for mixture, power in powers:
        noised = mixture.noised(END, 1 - END)
        inverse = torch.linalg.inv(noised.covs[0])
        precision, pull = precision + power * inverse, pull + power * inverse @ noised.means[0]
    cov = torch.linalg.inv(precision)
    target = build("product", [ONE, other], weights=[1.0, -0.7], prior=prior)
    near(sample(target, particles=4000), cov @ pull, cov)


def near(run: Particles, mean: Tensor, cov: Tensor) -> None:
    """Asserts that the particles have this mean and covariance, those of x_t."""
    x, w = run.x * END, run.log_w.exp()
    torch.testing.assert_close(w @ x, mean, atol=0.06, rtol=0)
    away = x - w @ x
    torch.testing.assert_close(away.T @ (w[:, None] * away), cov, atol=0.06, rtol=0)


def test_in_more_dimensions() -> None:
    """A product of mixtures in 16 dimensions: mode weights and log Z."""
    generator = keyed_generator(3)
    means = 0.6 * torch.randn(3, 16, generator=generator, dtype=torch.float64)
    covs = 0.05 * torch.eye(16, dtype=torch.float64).expand(3, 16, 16)
    mixture = GaussianMixture(torch.tensor([0.5, 0.3, 0.2]).double().log(), means, covs)
    broad = GaussianMixture(torch.zeros(1).double(), 0 * means[:1], 16 * covs[:1])
    parts = [Density(each.density, (16,)) for each in (mixture, broad)]
    exact = mixture.noised(END, 1 - END) * broad.noised(END, 1 - END)
    shares, logs = [], []
    for key in range(RUNS):
        run = FeynmanKac(particles=400, steps=32).sample(build_product(parts), generator=keyed_generator(key))
        near = torch.cdist(run.x, means).argmin(1)
        shares.append(torch.stack([run.log_w.exp()[near == k].sum() for k in range(3)]))
        logs.append(run.log_normalizer)
    assert chances(torch.stack(shares), exact.log_weights.softmax(0)).min() > UNLIKELY
    assert stats.ttest_1samp(logs, exact.log_normalizer).pvalue > UNLIKELY
    assert torch.tensor(logs).std() < 0.3


def build_product(parts: list[Density]) -> Any:
    return TARGETS.build("product", parts)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.6},
        {"spread": 0.02},
        {"move": "mala", "steps": 8},
        {"kernel": "none", "move": "hmc", "threshold": 0.0, "steps": 8},
    ],
    ids=str,
)
def test_the_estimate_of_the_normalizer_has_no_bias_with_few_particles(options: dict[str, Any]) -> None:
    """Of Z itself, not of log Z: also where proposals are fitted to the particles."""
    target, exact = build("temperature", ONE, beta=2.0), (ONE.noised(END, 1 - END) ** 2.0).log_normalizer
    runs = FeynmanKac(**{"particles": 16, "steps": 12, **options})
    generator = keyed_generator(0)
    z = torch.tensor(
        [runs.sample(target, generator=generator).log_normalizer - exact for _ in range(160)]
    ).exp()
    assert 0.05 < z.std() < 2
    assert abs(float(z.mean()) - 1) < 4 * float(z.std()) / 160**0.5


def test_estimated_spread_keeps_more_particles_than_ancestral_sampling() -> None:
    target = density(A)
    ess = {spread: sample(target, spread=spread, threshold=0.0).ess[-1] for spread in (None, 0.0, 0.1)}
    assert ess[None] > 0.6 * 500
    assert ess[0.0] < 0.1 * 500
    assert ess[None] > 0.8 * ess[0.1]  # as good as the right one, given


# --- normalizers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"kernel": "none", "move": "hmc", "threshold": 0.0, "steps": 64}], ids=str
)
def test_log_normalizer_with_an_error_that_covers(options: dict[str, Any]) -> None:
    """A constant of the time, as energies have; by diffusion, and by annealed importance sampling."""
    end = (END, 1 - END)
    cases = [
        (density(A, lambda t: 3 - 5 * t), 3 - 5 * float(END)),
        (build("temperature", ONE, beta=2.5), (ONE.noised(*end) ** 2.5).log_normalizer),
        (build("product", [A, B]), (A.noised(*end) * B.noised(*end)).log_normalizer),
    ]
    away = []
    for target, exact in cases:
        value, error = log_normalizer(target, sampler(200, **options), runs=6, generator=keyed_generator(5))
        assert 0 < error < 0.2
        away.append((value - exact) / error)
    assert max(map(abs, away)) < 6  # t of 5 degrees of freedom
    assert sum(abs(each) < 3 for each in away) >= 2


def test_log_normalizer_takes_two_runs() -> None:
    with pytest.raises(GenkitError, match="at least 2 runs, not 1"):
        log_normalizer(density(A), runs=1)


# --- the loop ----------------------------------------------------------------------------------------------


def test_particles_are_resampled_when_few_are_effective() -> None:
    target = build("temperature", A, beta=4.0)
    for threshold in (0.0, 0.5, 0.8):
        run = sample(target, threshold=threshold)
        assert run.resamplings == sum(ess < threshold * 500 for ess in run.ess[1:])
        assert (run.resamplings > 0) == (threshold > 0)
    after = [ess for before, ess in zip(run.ess[:-1], run.ess[1:], strict=True) if before < 0.8 * 500]
    assert min(after) > 0.8 * 500  # full again after a resampling


def test_times_run_from_start_to_end() -> None:
    run = sample(steps=10, start=0.02, end=0.97)
    assert run.times == pytest.approx([0.02 + 0.095 * k for k in range(11)])
    assert len(run.ess) == len(run.log_normalizers) == 11
    assert run.log_normalizers[-1] == run.log_normalizer
    assert run.log_w.logsumexp(0) == pytest.approx(0)
    assert run.log_w.dtype == torch.float64


def test_a_run_ends_where_the_model_stands_for_the_data() -> None:
    def ends(target: Target, **options: Any) -> float:
        return sampler(steps=3, particles=20, **options).sample(target).times[-1]

    assert ends(Density(A.density, (2,))) == pytest.approx(0.99)
    assert ends(Density(A.density, (2,), end=0.8)) == pytest.approx(0.8)
    assert ends(Density(A.density, (2,), end=0.8), end=0.9) == pytest.approx(0.9)
    assert ends(Model(models.build("energy", models.IMAGES))) == pytest.approx(1 / (1 + 2 / 5), abs=1e-3)


def test_samples_are_denoised() -> None:
    """Those of N(0, C) at the end are the posterior means of what the particles are."""
    seen = []

    def kept(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return ONE.density(t, x)

    run = sampler(steps=4, end=0.6, threshold=0.0).sample(Density(kept, (2,)))
    s2, mean, cov = (0.4 / 0.6) ** 2, ONE.means[0], ONE.covs[0]
    gain = cov @ torch.linalg.inv(cov + s2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(run.x, mean + (seen[-1] / 0.6 - mean) @ gain.T)


def test_adaptive_times_are_coarser_where_weights_vary_little() -> None:
    fine, coarse = (sample(adaptive=share, steps=16) for share in (0.999, 0.9))
    assert len(coarse.times) < len(fine.times) <= 8 * 16 + 1
    assert coarse.times[-1] == fine.times[-1] == pytest.approx(0.99)
    assert all(b > a for a, b in zip(fine.times[:-1], fine.times[1:], strict=True))
    # an unattainable share: as fine as steps get
    assert len(sample(adaptive=1 - 1e-8, steps=4, particles=20).times) > 20


def test_evaluations_are_those_of_the_models() -> None:
    a, b = density(A), density(B)
    product = build_product([a, b])
    assert sample(product, steps=10).evaluations == 2 * 11
    assert sample(product, steps=10, move="mala").evaluations == 2 * 21
    assert sample(product, steps=10, move={"name": "hmc", "leaps": 3}).evaluations == 2 * 41
    mixture = PROBLEMS["mixture"].make()
    assert sample(mixture, steps=10).evaluations == 2 * 11 + 2 * 11  # the parts alone first
    assert sample(build_product([a, a]), steps=10).evaluations == 2 * 11
    assert sample(product).acceptance is None
    assert 0.3 < sample(product, move="mala").acceptance < 1


def test_progress_is_told_after_each_step() -> None:
    told = []
    sampler(steps=7).sample(
        density(A), generator=keyed_generator(0), progress=lambda *step: told.append(step)
    )
    assert [(done, steps) for done, steps, _, _ in told] == [(k, 7) for k in range(1, 8)]
    assert all(0 < ess <= 500.001 for _, _, ess, _ in told)
    told.clear()
    sampler(adaptive=0.95).sample(density(A), progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1] == len(told)


def test_a_run_is_a_function_of_its_generator() -> None:
    options = {"move": "mala", "adaptive": 0.97, "threshold": 0.8}
    state = torch.get_rng_state()
    one, same, other = (sample(PROBLEMS["mixture"].make(), key, **options) for key in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.log_w, same.log_w)
    assert one.log_normalizer == same.log_normalizer != other.log_normalizer
    assert torch.equal(one.draw(9, generator=keyed_generator(0)), same.draw(9, generator=keyed_generator(0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_draw_gives_samples_without_weights() -> None:
    run = sample(threshold=0.0, particles=2000)
    drawn = run.draw(20_000, generator=keyed_generator(1))
    assert drawn.shape == (20_000, 2)
    torch.testing.assert_close(drawn.mean(0), run.log_w.exp() @ run.x, atol=0.02, rtol=0)
    rows = torch.cdist(drawn[:200], run.x).argmin(1)
    assert not torch.equal(rows, rows.sort().values)  # in random order
    assert {tuple(x.tolist()) for x in drawn[:100]} <= {tuple(x.tolist()) for x in run.x}


def test_state_is_float64_and_samples_are_of_the_model() -> None:
    seen = set()

    def single(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.update((t.dtype, x.dtype))
        value, gradient = A.density(t.double(), x.double())
        return value.float(), gradient.float()

    run = sample(Density(single, (2,), dtype=torch.float32))
    assert seen == {torch.float32}
    assert run.x.dtype == torch.float32
    assert run.log_w.dtype == torch.float64
    assert run.log_normalizer == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("path", ["cosine", "variance_preserving"])
def test_other_paths(path: str) -> None:
    from genkit.paths import PATHS

    coefficients = PATHS.build(path).coefficients

    def function(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _, _ = coefficients(t)
        return A.noised(alpha, sigma).log_prob(x)

    target = build_product([Density(function, (2,), path), Density(function, (2,), path)])
    alpha, sigma, _, _ = coefficients(END)
    exact = A.noised(alpha, sigma) * A.noised(alpha, sigma)
    run = sample(target, particles=3000)
    assert run.log_normalizer == pytest.approx(exact.log_normalizer, abs=0.1)
    torch.testing.assert_close(run.log_w.exp() @ run.x, exact.mean / alpha, atol=0.06, rtol=0)


# --- what goes wrong ---------------------------------------------------------------------------------------


def broken(bad: float, share: float, since: float = 0.5) -> Density:
    """A model that gives `bad` to a share of the particles from a time on."""

    def function(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = A.density(t, x)
        lost = (torch.arange(len(x)) < share * len(x)) & (t > since)
        return value.masked_fill(lost, bad), gradient.masked_fill(lost[:, None], bad)

    return Density(function, (2,))


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.0}, {"move": "mala"}, {"adaptive": 0.9}], ids=str)
def test_particles_without_a_number_die_and_are_never_drawn(bad: float, options: dict[str, Any]) -> None:
    run = sample(broken(bad, 0.1), **options)
    assert math.isfinite(run.log_normalizer)
    assert (run.log_w > -math.inf).sum() > 100
    assert run.draw(1000).isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("adaptive", [None, 0.9])
def test_when_all_particles_die_the_error_says_when_and_what_to_change(
    bad: float, adaptive: float | None
) -> None:
    with pytest.raises(GenkitError, match=r"lost their weight at t = 0.[56]\d*: lower beta, soften"):
        sample(broken(bad, 1.0), adaptive=adaptive)


def test_a_region_where_nothing_is() -> None:
    with pytest.raises(GenkitError, match=r"lost their weight at t = 0.99: .* soften the constraint"):
        sample(build("bounded", A, low=7.0, softness=1e4))


def test_a_quotient_that_is_no_density_at_the_start() -> None:
    for weight in (1.0, 1.5):
        with pytest.raises(GenkitError, match=r"sum to (0|-0.5), and at t=0 .* or divide the prior out"):
            sample(build("product", [A, B], weights=[1.0, -weight]))
    assert sample(build("product", [A, WIDE], weights=[1.0, -1.5], prior=WIDE)).resamplings >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 1}, "at least 2 particles and 1 step, not 1 and 32"),
        ({"steps": 0}, "at least 2 particles and 1 step"),
        ({"threshold": 1.5}, r"threshold must be a share .* not 1.5"),
        ({"threshold": math.nan}, "threshold"),
        ({"adaptive": 0.0}, r"adaptive must be null or a share"),
        ({"adaptive": 1.0}, r"adaptive must be null or a share"),
        ({"start": 0.0}, r"0 < start < end < 1, not 0.0 and None"),
        ({"start": 0.5, "end": 0.4}, r"0 < start < end < 1"),
        ({"end": 1.0}, r"at 0 and 1 weights are infinite"),
        ({"kernel": "difusion"}, "kernel must be"),
        ({"kernel": "none"}, r"give it a move \(mala or hmc\)"),
        ({"spread": -1.0}, "spread must not be negative"),
        ({"resampler": "sistematic"}, "did you mean 'systematic'"),
        ({"move": "hcm"}, "did you mean 'hmc'"),
        ({"grid": "unifrm"}, "did you mean 'uniform'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        sampler(**options)
