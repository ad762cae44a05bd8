"""The figures of a comparison, from made-up reports: images and points on the plane, one seed and three."""

from __future__ import annotations

import copy
import io
import math

import matplotlib
import numpy as np
import pytest
from safetensors.numpy import save_file

from genkit.compare import figures
from genkit.compare.evaluate import shown_as
from genkit.compare.figures import looks
from genkit.compare.numbers import by_nfe
from genkit.errors import GenkitError

# --- made-up reports ----------------------------------------------------------------------------------

NFE = [1, 2, 4, 8, 16, 32]
FRECHET = {
    "fm-independent": [2023, 356, 70, 24, 16, 13.5],
    "fm-ot": [370, 66, 21, 15, 13, 12.6],
    "fm-distilled": [55, 53, 42, 37, 36, 35.6],
}
METRICS = [
    {"name": "frechet", "words": "Fréchet distance", "lower": True},
    {"name": "sliced_wasserstein", "words": "sliced Wasserstein distance", "lower": True},
    {"name": "accuracy", "words": "share of samples of the class asked for", "lower": False},
    {"name": "energy_distance", "words": "energy distance", "lower": True},
    {"name": "nearest", "words": "distance to the nearest training sample", "lower": None},
]
CURVATURE = {"fm-independent": 0.32, "fm-ot": 0.11, "fm-distilled": 0.021}
BITS = {"nf": (1.93, "bound"), "fm-independent": (1.88, "estimate"), "fm-ot": (1.90, "estimate")}


def wobble(seed: int, size: float = 0.06) -> float:
    """What a seed changes, as a factor."""
    return 1 + size * (0, 1, -0.8, 0.4)[seed % 4]


def run_of(name: str, seed: int, points: list[dict], *, own: float, teacher: float = 0.0) -> dict:
    steps = np.arange(19, 1500, 20)
    noise = np.random.default_rng(seed).normal(0, 0.02, len(steps))
    low, high = {"nf": (1.0, 2.0), "fm-independent": (0.4, 1.1), "fm-ot": (0.2, 0.7)}.get(name, (0.05, 0.9))
    loss = low + (high - low) * np.exp(-steps / 250) + noise
    value, kind = BITS.get(name, (None, None))
    return {
        "seed": seed,
        "folder": name if seed == 0 else f"{name}-seed{seed}",
        "steps": 1500,
        "parameters": 757_664 if name == "nf" else 712_001,
        "backbone_parameters": 670_080,
        "train": {
            "seconds": own * wobble(seed, 0.02),
            "tokens": 3_072_000,
            "teacher_seconds": teacher * wobble(seed, 0.02),
            "teacher_tokens": 3_072_000 if teacher else 0,
        },
        "curve": [[int(step), float(y)] for step, y in zip(steps, loss, strict=True)],
        "bits_per_dim": None
        if value is None
        else {"value": value * wobble(seed, 0.01), "stderr": 0.02, "kind": kind},
        "curvature": None if name == "nf" else CURVATURE[name] * wobble(seed),
        "transport_cost": None if name == "nf" else 40.1 * wobble(seed, 0.01),
        "points": points,
    }


def image_report(seeds: int = 1) -> dict:
    """Four arms on digits, with the shape of real results."""

    def point(nfe: int, frechet: float, seed: int, steps: int | None) -> dict:
        frechet *= wobble(seed)
        return {
            "nfe": nfe,
            "steps": steps,
            "frechet": frechet,
            "sliced_wasserstein": 0.05 * frechet**0.4,
            "energy_distance": 1e-4 * frechet,
            "accuracy": 1 / (1 + frechet / 900),
            "nearest": 15.2 + frechet / 300,
            "seconds": 0.03 + 0.041 * nfe / (4 if steps is None else 1),
            "tokens": 16.0 if steps is None else 16.0 * nfe,
        }

    arms = {
        "nf": {
            "objective": "normalizing_flow",
            "coupling": None,
            "teacher": None,
            "runs": [run_of("nf", seed, [point(64, 43, seed, None)], own=91.0) for seed in range(seeds)],
        }
    }
    for name, values in FRECHET.items():
        teacher = "nf" if name == "fm-distilled" else None
        arms[name] = {
            "objective": "flow_matching",
            "coupling": name.removeprefix("fm-"),
            "teacher": teacher,
            "runs": [
                run_of(
                    name,
                    seed,
                    [point(nfe, value, seed, nfe) for nfe, value in zip(NFE, values, strict=True)],
                    own=95.0 if teacher else 84.0,
                    teacher=91.0 if teacher else 0.0,
                )
                for seed in range(seeds)
            ],
        }
    return {
        "name": "digits",
        "data": {
            "name": "digits",
            "hash": "5a1f" * 16,
            "shape": [1, 8, 8],
            "levels": 17,
            "classes": 10,
            "class_names": [str(i) for i in range(10)],
            "train": 1437,
            "test": 360,
        },
        "evaluation": {
            "samples": 360,
            "solver": "euler",
            "steps": NFE,
            "guidance": 1.0,
            "seed": 0,
            "extractor": "digits",
            "extractor_hash": "c0de" * 16,
        },
        "floor": {"frechet": 10.2, "sliced_wasserstein": 0.11, "energy_distance": 0.0, "nearest": 15.9},
        "metrics": METRICS,
        "machine": {"device": "x86_64", "threads": 2, "torch": "2.13.0"},
        "arms": arms,
    }


def plane_report(seeds: int = 1) -> dict:
    """Flows from eight gaussians to two moons: no Fréchet distance, no classes, one exact likelihood."""
    report = image_report(seeds)
    report |= {
        "name": "moons",
        "floor": {"sliced_wasserstein": 0.031, "energy_distance": 0.0, "nearest": 0.011},
    }
    report["metrics"] = [entry for entry in METRICS if entry["name"] not in ("frechet", "accuracy")]
    report["data"] |= {"name": "moons", "shape": [2], "levels": None, "classes": None, "class_names": []}
    report["evaluation"] |= {"extractor": None, "extractor_hash": None, "samples": 2000}
    for arm in report["arms"].values():
        for run in arm["runs"]:
            run["bits_per_dim"] = None
            if arm["objective"] == "normalizing_flow":
                run["bits_per_dim"] = {"value": 1.31, "stderr": 0.02, "kind": "exact"}
            for point in run["points"]:
                del point["frechet"], point["accuracy"]
                point["nearest"] = 0.012
    return report


def text_report(seeds: int = 1) -> dict:
    """Three arms on text: one from left to right, one with several unmaskers; scored by the first."""
    steps = [8, 32, 128]

    def point(nfe: int, steps: int | None, seed: int, worse: float, setting: str = "") -> dict:
        away = worse * (1 + 8 / nfe)
        return {
            "nfe": nfe,
            "steps": steps,
            "setting": setting,
            "ngrams": min(0.5 * away * wobble(seed, 0.02), 1.0),
            "sample_entropy": 2.8 / away,
            "generative_perplexity": 6.0 * away,
            "seconds": 0.02 * nfe,
            "tokens": 128.0 * nfe,
        }

    def entry(name: str, objective: str, kind: str, points: dict[int, list[dict]], **extra) -> dict:
        runs = []
        for seed in range(seeds):
            run = run_of("nf", seed, points[seed], own=60.0)
            bits = {
                "value": (2.3 if kind == "exact" else 2.5) * wobble(seed, 0.01),
                "stderr": 0.02,
                "kind": kind,
            }
            run |= {"folder": name, "curvature": None, "transport_cost": None, **extra}
            run |= {"bits_per_dim": bits | {"unit": "bits/char"}}
            texts = [f"{name} <i>& co\n", "two", "three", "four"]
            held = {shown_as(p): texts for p in run["points"]}
            runs.append(run | {"texts": held})
        return {"objective": objective, "coupling": None, "teacher": None, "conditional": False, "runs": runs}

    def at(worse: float) -> dict[int, list[dict]]:
        return {seed: [point(n, n, seed, worse) for n in steps] for seed in range(seeds)}

    alone = {seed: [point(128, None, seed, 1.02)] for seed in range(seeds)}
    unmasking = {
        "ancestral": at(1.1)[0],
        "entropy": [point(n, None, 0, 1.05, f"bound {b}") for n, b in ((90, 0.2), (40, 1.0))],
    }
    report = image_report(seeds)
    report |= {
        "name": "text",
        "floor": {"ngrams": 0.49, "sample_entropy": 2.81, "generative_perplexity": 5.9},
        "metrics": [
            {"name": "ngrams", "words": "n-gram divergence", "lower": True},
            {"name": "generative_perplexity", "words": "generative perplexity", "lower": None},
            {"name": "sample_entropy", "words": "sample entropy", "lower": None},
        ],
        "arms": {
            "autoregressive": entry("autoregressive", "autoregressive", "exact", alone),
            "masked": entry("masked", "masked_diffusion", "estimate", at(1.1), unmasking=unmasking),
            "uniform": entry("uniform", "discrete_flow_matching", "estimate", at(1.3)),
        },
    }
    report["data"] |= {"name": "pydoc", "shape": [128], "levels": 96, "classes": None, "class_names": []}
    report["data"] |= {
        "text": "ascii",
        "characters": 1.0,
        "rate": None,
        "texts": ["The real\n  text.", "b", "c", "d"],
    }
    report["evaluation"] |= {
        "steps": steps,
        "solver": None,
        "unmasker": "ancestral",
        "scorer": "autoregressive",
        "extractor": None,
        "extractor_hash": None,
    }
    return report


def sound_report() -> dict:
    """Flows of sounds."""
    report = plane_report()
    report["name"] = "tones"
    report["data"] |= {"name": "tones", "shape": [64], "rate": 4000, "classes": 2, "class_names": ["C", "D"]}
    return report


def save_sounds(report: dict, out) -> None:
    """Three sounds of each arm at each number of steps, and of the test set."""
    sounds = np.sin(np.arange(3 * 64).reshape(3, 64) / 3).astype(np.float32)
    save_file({"test": sounds, "test.sounds": sounds}, out / "data.safetensors")
    for arm in report["arms"].values():
        held = {f"{shown_as(p)}.sounds": sounds * 0.5 for p in arm["runs"][0]["points"]}
        (out / arm["runs"][0]["folder"]).mkdir(exist_ok=True)
        save_file(held, out / arm["runs"][0]["folder"] / "samples.safetensors")


def moons(count: int, generator: np.random.Generator) -> np.ndarray:
    angle, upper = generator.uniform(0, math.pi, count), generator.random(count) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return (np.stack([x, y], 1) * 1.6 + generator.normal(0, 0.1, (count, 2))).astype(np.float32)


def save_samples(report: dict, out, levels: np.ndarray | None = None) -> None:
    """Sample files as the evaluation leaves them; samples sharpen with more steps.

    levels: real images (N, C, H, W) to make them of, class by class; by default random ones.
    """
    generator = np.random.default_rng(0)
    shape = tuple(report["data"]["shape"])
    image = len(shape) == 3
    if image:
        real = generator.integers(0, 17, (80, *shape)) if levels is None else levels
        save_file({"test": real[:40]}, out / "data.safetensors")
    else:
        turn = generator.integers(0, 8, 2000) * math.pi / 4
        source = np.stack([np.cos(turn), np.sin(turn)], 1) * 4 + generator.normal(0, 0.2, (2000, 2))
        source = source.astype(np.float32)
        save_file({"test": moons(2000, generator), "source": source}, out / "data.safetensors")
    for arm in report["arms"].values():
        for run in arm["runs"]:
            held: dict[str, np.ndarray] = {}
            for point in run["points"]:
                blur = 1.0 / point["nfe"]
                if image:
                    x = real[40:80] + generator.normal(0, 6 * blur, (40, *shape))
                    held[shown_as(point)] = np.clip(np.round(x), 0, 16).astype(np.int64)
                else:
                    held[shown_as(point)] = moons(2000, generator) + generator.normal(
                        0, blur, (2000, 2)
                    ).astype(np.float32)
            if not image and arm["objective"] == "flow_matching":
                t = np.linspace(0, 1, 33, dtype=np.float32)[:, None, None]
                bend = np.sin(math.pi * t) * (run["curvature"] or 0)
                held["trajectory"] = (1 - t) * source[:500] + t * moons(500, generator) + bend
            folder = out / run["folder"]
            folder.mkdir(parents=True, exist_ok=True)
            save_file(held, folder / "samples.safetensors")


# --- figures ------------------------------------------------------------------------------------------


def test_global_style_is_left_alone():
    style = dict(matplotlib.rcParams)
    figures.curves(image_report()).savefig(io.BytesIO(), format="png", dpi=40)
    assert dict(matplotlib.rcParams) == style


def test_arm_keeps_its_colour_over_all_figures(tmp_path):
    report = image_report()
    look = looks(report)
    assert len({arm.colour for arm in look.values()}) == len(look)
    for figure in (figures.quality(report), figures.curves(report)):
        for handle in figure.legends[0].get_lines():
            if handle.get_label() in look:
                assert handle.get_color() == look[handle.get_label()].colour


def test_quality_draws_each_arm_logarithmically_with_the_floor():
    report = image_report(3)
    ax = figures.quality(report).axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    drawn = [list(line.get_ydata()) for line in ax.lines]
    for name, arm in report["arms"].items():
        assert [value.mean for value in by_nfe(arm, "frechet").values()] in drawn, name
    nf = by_nfe(report["arms"]["nf"], "frechet")[64].mean
    assert [nf, nf] in drawn  # across
    assert [10.2, 10.2] in drawn
    assert len(ax.collections) >= 3  # bands


def test_quality_leaves_out_what_a_logarithm_cannot_show():
    report = plane_report()
    report["floor"]["sliced_wasserstein"] = 0.0
    report["arms"]["fm-ot"]["runs"][0]["points"][-1]["sliced_wasserstein"] = -0.001
    ax = figures.quality(report).axes[0]
    assert all(min(line.get_ydata(), default=1) > 0 for line in ax.lines)


def test_figures_that_hardly_differ_stand_on_a_linear_axis():
    ax = figures.quality(text_report()).axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")


def test_labels_of_evaluations_stand_apart():
    """Powers of two come first."""
    assert figures._apart([8, 9, 16, 31, 32, 90, 128]) == [8, 16, 32, 90, 128]


def test_perplexity_never_stands_without_the_entropy_of_the_samples():
    report = text_report(3)
    left, right = figures.perplexity(report).axes
    assert (left.get_title("left"), right.get_title("left")) == ("Generative perplexity", "Sample entropy")
    for ax, key in ((left, "generative_perplexity"), (right, "sample_entropy")):
        drawn = [list(line.get_ydata()) for line in ax.lines]
        for arm in report["arms"].values():
            assert [value.mean for value in by_nfe(arm, key).values()] in drawn
        assert [report["floor"][key]] * 2 in drawn
    for arm in report["arms"].values():
        for run in arm["runs"]:
            for point in run["points"]:
                del point["sample_entropy"]
    assert figures.perplexity(report) is None
    assert figures.perplexity(image_report()) is None


def test_unmaskers_have_a_panel_for_each_arm_that_has_several():
    report = text_report()
    figure = figures.unmasking(report)
    (ax,) = figure.axes
    assert ax.get_title("left") == "masked"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ancestral", "entropy", "floor: real data"]
    places = [list(line.get_xdata()) for line in ax.lines]
    assert [8, 32, 128] in places
    assert [40, 90] in places
    assert figures.unmasking(image_report()) is None


def test_bits_of_text_are_per_character():
    (ax,) = figures.bits_per_dim(text_report()).axes
    assert ax.get_xlabel() == "bits/char of the discrete test data (lower is better)"


def test_curves_have_a_panel_for_each_objective():
    figure = figures.curves(image_report())
    assert [ax.get_title("left") for ax in figure.axes] == [
        "Training loss: normalizing flow",
        "Training loss: flow matching",
    ]


def test_report_with_hardly_anything_has_no_figures(tmp_path):
    report = image_report()
    for arm in report["arms"].values():
        for run in arm["runs"]:
            run |= {"bits_per_dim": None, "curve": [], "points": []}
    assert figures.save_figures(report, tmp_path) == {}


def test_losses_and_distances_that_are_not_finite_are_left_out():
    report = image_report()
    run = report["arms"]["fm-ot"]["runs"][0]
    run["curve"][3][1] = math.nan
    run["points"][0]["frechet"] = math.inf
    for figure in (figures.quality(report), figures.curves(report)):
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_samples_show_pixels_as_they_are():
    images = np.array([[[[0, 16], [8, 16]]], [[[16, 16], [16, 16]]]])
    row = figures._mosaic(images, 17, scale=3, gap=2)
    assert row.shape == (6, 6 + 2 + 6, 3)
    assert (row[:3, :3] == 1).all()  # level 0 is paper
    assert (row[:3, 3:6] == 0).all()  # the highest level is ink
    assert (row[3:, :3] == 0.5).all()
    assert (row[:, 6:8] == 1).all()
    colours = np.zeros((1, 3, 2, 2), dtype=np.int64)
    colours[:, 0] = 255
    assert (figures._mosaic(colours, 256, 1, 0)[..., 0] == 1).all()


def test_shown_steps_are_the_doubling_ones_or_else_those_there_are():
    arm = copy.deepcopy(image_report()["arms"]["fm-ot"])
    held = {f"steps_{steps}": np.zeros(1) for steps in NFE}
    captions = [caption for caption, _ in figures._shown(arm, held)]
    assert captions == ["1 step", "2 steps", "4 steps", "8 steps", "32 steps"]
    arm["runs"][0]["points"] = [{"nfe": 6, "steps": 3}, {"nfe": 10, "steps": 5}]
    captions = [
        caption for caption, _ in figures._shown(arm, {"steps_3": np.zeros(1), "steps_5": np.zeros(1)})
    ]
    assert captions == ["3 steps (6 evaluations)", "5 steps (10 evaluations)"]


def test_any_name_can_be_drawn(tmp_path):
    names = ["$x_{", "_hidden", "<b>&", "a\nb", "long" * 40, "%s {0}"]
    report = image_report()
    report["arms"] = dict.fromkeys(names, report["arms"]["fm-ot"])
    report["data"]["class_names"] = names
    save_samples(report, tmp_path)
    for figure in (figures.quality(report), figures.bits_per_dim(report), figures.samples(report, tmp_path)):
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    shown = [text.get_text().strip() for text in figures.quality(report).legends[0].get_texts()]
    assert shown[:4] == ["$x_{", "_hidden", "<b>&", "a b"]
    assert len(shown) == len(names) + 1  # and the floor


def test_corrupt_samples_are_named(tmp_path):
    report = image_report()
    save_samples(report, tmp_path)
    (tmp_path / "fm-ot" / "samples.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(GenkitError, match="fm-ot/samples.safetensors is corrupt"):
        figures.samples(report, tmp_path)


def test_figures_of_an_earlier_report_are_removed(tmp_path):
    report = image_report()
    (tmp_path / "figures").mkdir()
    for name in ("density", "quality", "mine"):
        (tmp_path / "figures" / f"{name}.png").write_text("earlier")
    written = figures.save_figures(report, tmp_path)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {*written, "mine"}
    assert "density" not in written
    assert written["quality"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("made", "kind"), [(image_report, "discrete"), (plane_report, "real-valued")])
def test_bits_per_dim_say_of_what_data(made, kind):
    (ax,) = figures.bits_per_dim(made()).axes
    assert f"of the {kind} test data" in ax.get_xlabel()
