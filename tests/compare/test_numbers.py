"""The numbers of a report: over seeds, by evaluations, best or level with the best."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genkit.compare.numbers import (
    Stat,
    best,
    by_nfe,
    by_unmasker,
    likelihood,
    main_measure,
    measures,
    one_shot,
    spent,
    stat,
    unit,
)
from tests.compare.test_figures import NFE, image_report, plane_report, text_report, wobble


def test_stat_is_mean_and_sample_deviation_of_finite_values():
    assert stat([1.0, 2.0, 3.0]) == Stat(2.0, 1.0, 3)
    assert stat([4.0]) == Stat(4.0, None, 1)
    assert stat([4.0, None, math.nan]) == Stat(4.0, None, 1)
    assert stat([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Stat(2031.2, 109.4, 3), "2,031 ± 109"),
        (Stat(55.24, 2.96, 3), "55.2 ± 3.0"),
        (Stat(55.24, 0.004, 3), "55.2 ± 0.004"),
        (Stat(0.14, 0.0, 3), "0.140 ± 0.000"),
        (Stat(0.1, None, 1), "0.100"),
    ],
)
def test_stat_reads_well(value, text):
    assert str(value) == text


def test_level_means_within_spreads_in_quadrature():
    assert Stat(10, 3, 3).level(Stat(14.9, 4, 3))
    assert not Stat(10, 3, 3).level(Stat(15.1, 4, 3))


def test_one_seed_does_not_decide_five_percent():
    assert Stat(10, None, 1).level(Stat(10.5, None, 1))
    assert not Stat(10, None, 1).level(Stat(10.6, None, 1))
    assert not Stat(10, 0.1, 3).level(Stat(-10, None, 1))


def test_points_are_collected_over_seeds():
    report = image_report(3)
    values = by_nfe(report["arms"]["fm-ot"], "frechet")
    assert list(values) == NFE
    assert values[4].seeds == 3
    assert values[4].mean == pytest.approx(np.mean([21 * wobble(seed) for seed in range(3)]))
    assert by_nfe(report["arms"]["fm-ot"], "unheard_of") == {}


def test_teacher_is_counted_to_its_student():
    report = image_report()
    own, setup, teacher, total = spent(report["arms"]["fm-distilled"], "tokens")
    assert (own.mean, setup.mean, teacher.mean, total.mean) == (3_072_000, 0, 3_072_000, 6_144_000)
    report["arms"]["fm-distilled"]["runs"][0]["train"] |= {"setup_tokens": 1000, "setup_seconds": 2.5}
    assert [value.mean for value in spent(report["arms"]["fm-distilled"], "tokens")[1:]] == [
        1000,
        3_072_000,
        6_145_000,
    ]
    assert spent(report["arms"]["fm-distilled"], "seconds").setup.mean == 2.5
    assert spent(image_report()["arms"]["fm-ot"], "seconds").teacher.mean == 0


def test_main_measure_is_what_the_data_have():
    assert main_measure(image_report()).key == "frechet"
    assert main_measure(plane_report()).key == "sliced_wasserstein"


def test_a_plugin_may_judge_where_nothing_before_it_does():
    report = plane_report()
    report["metrics"] = [{"name": "mine", "words": "my distance", "lower": True}]
    for arm in report["arms"].values():
        for run in arm["runs"]:
            for point in run["points"]:
                point["mine"] = point["sliced_wasserstein"]
    assert main_measure(report) == ("mine", "my distance", True)


def test_metrics_that_no_arm_has_are_left_out():
    report = image_report()
    report["metrics"] = [*report["metrics"], {"name": "unheard_of", "words": "?", "lower": True}]
    assert [measure.key for measure in measures(report)][:2] == ["frechet", "sliced_wasserstein"]
    assert "unheard_of" not in [measure.key for measure in measures(report)]
    assert main_measure({"metrics": [], "arms": {}}).lower


def test_points_of_adaptive_solvers_are_one_over_seeds():
    points = [[{"nfe": 14, "steps": 1, "d": 4.0}], [{"nfe": 20, "steps": 1, "d": 6.0}]]
    values = by_nfe({"runs": [{"points": of_run} for of_run in points]}, "d")
    assert values == {17: Stat(5.0, math.sqrt(2), 2)}


def test_points_of_equal_steps_and_other_settings_are_not_one():
    points = [{"nfe": n, "steps": None, "setting": s, "d": d} for n, s, d in ((9, "a", 1.0), (5, "b", 2.0))]
    assert by_nfe({"runs": [{"points": points}]}, "d") == {5: Stat(2.0, None, 1), 9: Stat(1.0, None, 1)}
    assert not one_shot({"runs": [{"points": points}]})
    assert one_shot({"runs": [{"points": points[:1]}]})


def test_an_arm_by_its_unmaskers():
    report = text_report()
    found = by_unmasker(report["arms"]["masked"])
    assert [*found] == ["ancestral", "entropy"]
    assert [*by_nfe(found["entropy"], "ngrams")] == [40, 90]
    assert by_unmasker(report["arms"]["uniform"]) == {}
    del report["arms"]["masked"]["runs"][0]["unmasking"]["entropy"]
    assert by_unmasker(report["arms"]["masked"]) == {}  # one alone compares nothing


def test_likelihoods_say_what_they_are_counted_in():
    assert unit(text_report()) == "bits/char"
    assert unit(image_report()) == "bits/dim"


def test_two_points_of_one_run_are_not_two_seeds():
    points = [{"nfe": 14, "steps": 1, "d": 4.0}, {"nfe": 14, "steps": 2, "d": 6.0}]
    assert by_nfe({"runs": [{"points": points}]}, "d") == {14: Stat(4.0, None, 1)}


def test_best_and_what_is_level_with_it():
    values = {"a": Stat(10, 1, 3), "b": Stat(9, 1, 3), "c": Stat(2, 0.1, 3)}
    assert best(values, lower=True) == ["c"]
    assert best(values, lower=False) == ["a", "b"]
    assert best(values, lower=None) == []
    assert best({"a": Stat(10, 1, 3)}, lower=True) == []


def test_error_of_a_likelihood():
    """The spread over seeds, or the standard error of one run."""
    arms = image_report()["arms"]
    assert likelihood(arms["nf"]) == (1.93, 0.02, "bound")
    assert likelihood(arms["fm-distilled"]) is None
    arms["nf"]["runs"][0]["bits_per_dim"]["given"] = "y"
    assert likelihood(arms["nf"]) == (1.93, 0.02, "bound, given y")
    _, error, _ = likelihood(image_report(3)["arms"]["nf"])
    assert error == pytest.approx(np.std([1.93 * wobble(seed, 0.01) for seed in range(3)], ddof=1))
