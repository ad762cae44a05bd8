"""The command line: every arm trains, bad input ends with status 2 and one message, nothing made is damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import genkit
from genkit.__main__ import COMMANDS, REGISTRIES, main, parser

ROOT = Path(__file__).parent.parent
TINY = [
    "model.width=24",
    "model.heads=2",
    "training.steps=12",
    "training.batch_size=32",
    "training.log_every=4",
]
QUICK = [*TINY, "training.checkpoint_every=6", "evaluation.samples=40", "evaluation.steps=[1,2]"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """A comparison of the demo's five arms, trained for a few steps through the command line."""
    out = tmp_path_factory.mktemp("compare") / "digits"
    assert main(["compare", str(ROOT / "recipes/compare/digits.yaml"), *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Plug-ins of a test are gone after it."""
    from genkit.couplings import COUPLINGS

    names = COUPLINGS.names()
    yield
    for name in set(COUPLINGS.names()) - set(names):
        del COUPLINGS._entries[name]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(capsys, argv: list[str], *words: str) -> str:
    """Runs a command line that must end with status 2 and a single message holding `words`; returns it."""
    assert main(argv) == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    assert message.count("genkit: error:") == 1
    for word in words:
        assert word in message
    return message


# --- the main job ---------------------------------------------------------------------------------------


def test_five_arms_and_a_report(compared):
    report = json.loads((compared / "report.json").read_text())
    assert list(report["arms"]) == ["nf", "fm-independent", "fm-ot", "fm-distilled", "masked"]
    for arm, content in report["arms"].items():
        (run,) = content["runs"]
        assert [point["nfe"] for point in run["points"]] == ([64] if arm == "nf" else [1, 2])
        assert all(point["frechet"] > 0 for point in run["points"])
        assert run["bits_per_dim"]["kind"] == ("bound" if arm == "nf" else "estimate")
        for file in (
            "recipe.yaml",
            "model.safetensors",
            "checkpoints/last.ckpt",
            "metrics.csv",
            "environment.json",
        ):
            assert (compared / arm / file).is_file()
    backbones = {run["backbone_parameters"] for arm in report["arms"].values() for run in arm["runs"]}
    assert len(backbones) == 1
    distilled = report["arms"]["fm-distilled"]["runs"][0]["train"]
    assert distilled["teacher_tokens"] == report["arms"]["nf"]["runs"][0]["train"]["tokens"] > 0
    assert "<img" in (compared / "report.html").read_text()
    assert "fm-distilled" in (compared / "table.md").read_text()


def test_again_it_trains_and_measures_nothing(compared, capsys):
    before = hashes(compared)
    assert main(["compare", str(ROOT / "recipes/compare/digits.yaml"), *QUICK, "--out", str(compared)]) == 0
    assert hashes(compared) == before
    assert capsys.readouterr().err.count("already trained") == 5


def test_a_changed_arm_is_trained_again_and_the_old_one_put_aside(compared, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(compared, out)
    before = hashes(out)
    change = "arms.fm-ot.objective.path=cosine"
    assert (
        main(["compare", str(ROOT / "recipes/compare/digits.yaml"), *QUICK, change, "--out", str(out)]) == 0
    )
    after = hashes(out)
    weights = {arm: after[f"{arm}/model.safetensors"] for arm in ("nf", "fm-ot", "fm-distilled")}
    assert weights["fm-ot"] != before["fm-ot/model.safetensors"]
    assert weights["nf"] == before["nf/model.safetensors"]
    assert weights["fm-distilled"] == before["fm-distilled/model.safetensors"]
    (aside,) = (out / "stale").iterdir()
    assert hashes(aside)["model.safetensors"] == before["fm-ot/model.safetensors"]


def test_plugin_of_the_readme(tmp_path, unregistered):
    """The README's own coupling, cut out of it, trains an arm."""
    text = (ROOT / "README.md").read_text()
    code = next(part for part in text.split("```python\n") if "@COUPLINGS.register" in part).split("```")[0]
    plugin = tmp_path / "antithetic.py"
    plugin.write_text(code)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: digits\nobjective: {name: flow_matching, coupling: antithetic}\nplugins: [antithetic]\n"
    )
    out = tmp_path / "run"
    assert main(["train", str(recipe), *TINY, "--out", str(out), "--plugin", str(plugin)]) == 0
    assert genkit.load(out, plugins=[plugin]).sample(4, steps=1).x.shape == (4, 1, 8, 8)


def test_example_coupling_can_be_listed(capsys, unregistered):
    assert main(["list", "couplings", "--plugin", str(ROOT / "examples/antithetic_coupling.py")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {"antithetic", "independent", "ot", "distilled"}
    assert all(len(line.split()) > 3 for line in lines)


def test_two_dimensional_data(tmp_path):
    out = tmp_path / "moons"
    small = [*QUICK, "evaluation.samples=200", "data={name: moons, n_train: 500, n_test: 200}"]
    assert main(["compare", str(ROOT / "recipes/compare/moons.yaml"), *small, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["arms"]["nf"]["runs"][0]["bits_per_dim"]["kind"] == "exact"
    assert all("sliced_wasserstein" in p for p in report["arms"]["fm-ot"]["runs"][0]["points"])
    assert main(["sample", str(out / "fm-ot"), "-n", "50", "--out", str(out / "points.png")]) == 0
    assert (out / "points.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".png", ".npy", ".safetensors"])
def test_sample(compared, tmp_path, suffix):
    out = tmp_path / f"new/grid{suffix}"
    argv = [
        "sample",
        str(compared / "fm-ot"),
        "-n",
        "6",
        "--solver",
        "heun",
        "--steps",
        "4",
        "--guidance",
        "1.5",
    ]
    assert main([*argv, "--class", "3", "--out", str(out)]) == 0
    assert out.stat().st_size > 100


def test_samples_depend_on_the_seed_alone(compared):
    run = genkit.load(compared / "fm-independent")
    a, b, c = (run.sample(5, steps=2, solver="euler", seed=seed).x for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_evaluate_prints_the_figures(compared, capsys):
    assert main(["evaluate", str(compared / "fm-ot"), "samples=40", "steps=[1,4]"]) == 0
    printed = capsys.readouterr().out
    assert "bits/dim" in printed
    assert "4" in printed


def test_evaluate_prints_the_figures_that_cannot_be_kept(compared, tmp_path, capsys):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(compared / "fm-ot", run, ignore=shutil.ignore_patterns("evaluation.json"))
    (run / "evaluation.json").mkdir()  # nothing can be put in its place
    assert main(["evaluate", str(run), "samples=20", "steps=[1]", "likelihood_rows=0"]) == 0
    printed = capsys.readouterr()
    assert "frechet" in printed.out
    assert f"the result is not kept: cannot write {run}/evaluation.json: Is a directory" in printed.err


def test_several_seeds_share_data_and_differ_in_the_rest(tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text("data: digits\narms: {fm: {objective: flow_matching}}\n")
    out = tmp_path / "out"
    assert main(["compare", str(recipe), *QUICK, "--seeds", "2", "--out", str(out)]) == 0
    runs = json.loads((out / "report.json").read_text())["arms"]["fm"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[0]["points"][0]["frechet"] != runs[1]["points"][0]["frechet"]


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stepz=5", ["stepz", "did you mean 'steps'"]),
        ("training.steps=many", ["training: steps", "whole number", "many"]),
        ("training.steps=0", ["steps", "positive", "0"]),
        ("arms.nf.objective=normalising_flow", ["did you mean 'normalizing_flow'"]),
        ("arms.fm-ot.objective.coupling=optimal", ["coupling 'optimal'", "ot"]),
        ("arms.fm-ot.objective.pth=linear", ["pth", "did you mean 'path'"]),
        ("arms.fm-distilled.objective.coupling.teacher=nff", ["nff", "did you mean 'nf'"]),
        ("data=digit", ["did you mean 'digits'"]),
        ("model.patch=3", ["patch 3", "8x8"]),
        ("model.width=25", ["width 25"]),
        ("evaluation.steps=[0]", ["steps", "positive"]),
        ("evaluation.solver=heunn", ["did you mean 'heun'"]),
        ("evaluations.steps=[1]", ["did you mean 'evaluation'"]),
        ("seed=-1", ["seed", "-1"]),
        ("arms.nf=3", ["arms.nf", "mapping"]),
        ("plugins=[mine]", ["mine", "--plugin"]),
        ("nonsense", ["key=value", "nonsense"]),
    ],
)
def test_wrong_comparison_is_refused_before_any_work(capsys, tmp_path, override, words):
    out = tmp_path / "out"
    refused(
        capsys, ["compare", str(ROOT / "recipes/compare/digits.yaml"), override, "--out", str(out)], *words
    )
    assert not list(out.rglob("*.*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", ["not a YAML recipe"]),
        ("- 1\n- 2\n", ["top level"]),
        ("\x00\x01\x02", ["not a YAML recipe"]),
        ("objective: flow_matching\n", ["'data' is missing"]),
        ("data: digits\nobjective: !!python/object/apply:os.system ['true']\n", ["not a YAML recipe"]),
    ],
)
def test_what_is_no_recipe(capsys, tmp_path, text, words):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    refused(capsys, ["train", str(recipe), "--out", str(tmp_path / "run")], str(recipe), *words)


def test_missing_files(capsys, tmp_path, compared):
    refused(capsys, ["train", str(ROOT / "recipes/compare/digit.yaml")], "no such recipe", "digits.yaml")
    refused(capsys, ["sample", str(compared / "fm-to")], "no such run folder", "fm-ot")
    refused(capsys, ["sample", str(compared)], "not a run folder", "fm-ot")
    refused(capsys, ["list", "solverz"], "did you mean 'solvers'")
    refused(capsys, ["list", "--plugin", str(tmp_path / "no.py")], "no such file")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--class", "10"], ["class 10", "0 to 9"]),
        (["--class", "-1"], ["class -1", "0 to 9"]),
        (["--guidance", "nan"], ["scale", "finite"]),
        (["--steps", "0"], ["1 step", "0"]),
        (["--steps", "-3"], ["1 step", "-3"]),
        (["-n", "0"], ["at least 1"]),
        (["--solver", "huen"], ["did you mean 'heun'"]),
        (["--solver", "{name: heun, grid: edn}"], ["did you mean 'edm'"]),
        (["--solver", "{name: dopri5, max_evaluations: 20}"], ["dopri5 has used 20 evaluations", "rk4"]),
        (["--device", "tpu9"], ["tpu9"]),
        (["--out", "x.jpg"], [".png"]),
        (["--out", "."], [".png"]),
    ],
)
def test_wrong_sampling(capsys, compared, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    before = hashes(compared)
    refused(capsys, ["sample", str(compared / "fm-ot"), *arguments], *words)
    assert hashes(compared) == before
    assert not list(tmp_path.iterdir())


def test_a_flow_takes_an_inverter(capsys, compared, tmp_path):
    nf = ["sample", str(compared / "nf"), "-n", "4", "--out", str(tmp_path / "x.npy")]
    refused(capsys, [*nf, "--steps", "4"], "no option 'steps'")
    refused(capsys, [*nf, "--solver", "heun"], "takes no solver; its inverter is one of auto, ")
    cap = "{name: jacobi, tolerance: 1e-12, cap: 1}"
    refused(capsys, [*nf, "--inverter", cap], "has not converged: after 1 pass over", "inverter sequential")
    assert not list(tmp_path.iterdir())
    assert main([*nf, "--inverter", "{name: jacobi, tolerance: 1e-6}"]) == 0
    assert "network calls in sequence" in capsys.readouterr().out


def test_samples_with_their_log_probability(capsys, compared, tmp_path):
    out = tmp_path / "x.safetensors"
    fm = ["sample", str(compared / "fm-ot"), "-n", "3", "--out", str(out)]
    refused(capsys, [*fm, "--log-prob", "--solver", "ancestral"], "without noise", "can be used", "dpmpp")
    refused(capsys, [*fm, "--log-prob", "--divergence", "exat"], "did you mean 'exact'")
    refused(capsys, [*fm, "--probes", "3"], "probes", "--log-prob")
    nf = ["sample", str(compared / "nf"), "--log-prob", "--out", str(out)]
    refused(capsys, [*nf, "--probes", "3"], "'normalizing_flow' takes no probes")
    assert not out.exists()
    assert main([*fm, "--log-prob", "--probes", "3", "--solver", "dpmpp"]) == 0
    told = capsys.readouterr().out
    assert "log-probability of the samples as encoded" in told
    assert "nats on average" in told
    held = load_file(out)
    assert held["log_prob"].shape == held["log_prob_stderr"].shape == (3,)


def test_options_of_a_likelihood_that_is_not_integrated(capsys, compared):
    refused(
        capsys, ["evaluate", str(compared / "nf"), "divergence=exact"], "divergence", "'normalizing_flow'"
    )
    refused(capsys, ["evaluate", str(compared / "masked"), "likelihood=rk4"], "'masked_diffusion'")
    refused(capsys, ["evaluate", str(compared / "nf"), "solver=heun"], "evaluate: ", "takes no solver")
    refused(capsys, ["evaluate", str(compared / "fm-ot"), "likelihood=ancestral"], "without noise of its own")
    masked = ["sample", str(compared / "masked"), "--log-prob"]
    refused(capsys, masked, "unmasking gives no log-probability", "ask log_prob")


def test_a_model_of_noised_data_has_no_likelihood(capsys, tmp_path):
    recipe = tmp_path / "noised.yaml"
    recipe.write_text(
        "data: moons\nmodel: {width: 8, depth: 1, heads: 2}\ntraining: {steps: 2}\n"
        "objective: {name: flow_matching, noise: gaussian, sigma: 0.1}\n"
    )
    run = str(tmp_path / "run")
    assert main(["train", str(recipe), "--out", run]) == 0
    refused(capsys, ["evaluate", run, "likelihood_rows=8"], "trained on noised", "noise='uniform'")
    refused(capsys, ["sample", run, "--log-prob"], "trained on noised", "noise='uniform'")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("smaple RUN", ["no command 'smaple'; did you mean 'sample'?"]),
        ("sample RUN --sovler heun --steps 4", ["no option '--sovler'; did you mean '--solver'?"]),
        ("sample RUN --n 8", ["no option '--n'; did you mean '-n'?"]),
        ("sample RUN --stesp=8", ["no option '--stesp'; did you mean '--steps'?"]),
        ("fit-grid RUN --sovler heun", ["no option '--sovler'; did you mean '--solver'?"]),
        ("benchmark sampler RUN", ["no choice 'sampler'; did you mean 'samplers'?"]),
        ("--verison", ["no option '--verison'; did you mean '--version'?"]),
        ("train r.yaml --training.steps 5", ["no option '--training.steps'", "without dashes, by key=value"]),
        ("list solvers heun more", ["unrecognized arguments: more"]),
    ],
)
def test_a_mistyped_option_or_command_names_the_nearest(argv, words, capsys):
    assert main(argv.split()) == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1
    assert all(word in message for word in words), message


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_each_command_names_the_nearest_option(command, capsys):
    assert main([command, "--hepl"]) == 2
    assert "no option '--hepl'; did you mean '--help'?" in capsys.readouterr().err


def test_numbers_below_zero_and_what_follows_two_dashes_are_no_options():
    arguments = parser().parse_args(["sample", "RUN", "--beta", "-0.5", "-n8", "--prompt", "--a b"])
    assert (arguments.beta, arguments.n, arguments.prompt) == (-0.5, 8, "--a b")
    assert parser().parse_args(["sample", "--", "--sovler"]).run == "--sovler"


@pytest.mark.parametrize("flag", ["solver", "unmasker", "inverter", "guidance", "task", "resampler", "out"])
@pytest.mark.parametrize("text", ["", " "])
def test_nothing_is_not_taken_for_the_default(flag, text, capsys):
    assert main(["sample", "RUN", f"--{flag}", text]) == 2
    assert f"--{flag}: must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["solver", "unmasker", "inverter", "guidance"])
@pytest.mark.parametrize("text", ["null", "~"])
def test_a_null_is_not_taken_for_the_default(flag, text, capsys, compared):
    refused(capsys, ["sample", str(compared / "nf"), f"--{flag}", text], f"--{flag} {text} names none")


@pytest.mark.parametrize("flag", ["-n", "--steps", "--class"])
def test_numbers_that_no_machine_counts_to(flag, capsys, compared):
    refused(capsys, ["sample", str(compared / "fm-ot"), flag, str(2**63)], "larger than this machine has")


def test_output_under_a_regular_file(capsys, compared, tmp_path):
    (tmp_path / "file").write_text("mine")
    below = str(tmp_path / "file" / "x.png")
    refused(capsys, ["sample", str(compared / "fm-ot"), "--out", below], "cannot write", below)
    recipe = str(ROOT / "recipes/compare/digits.yaml")
    refused(capsys, ["compare", recipe, "--out", str(tmp_path / "file" / "out")], "cannot write")
    assert (tmp_path / "file").read_text() == "mine"


def test_teacher_of_another_shape(capsys, compared, tmp_path):
    recipe = tmp_path / "r.yaml"
    coupling = f"{{name: distilled, teacher: {compared / 'nf'}}}"
    recipe.write_text(f"data: moons\nobjective: {{name: flow_matching, coupling: {coupling}}}\n")
    refused(capsys, ["train", str(recipe), "--out", str(tmp_path / "run")], "(1, 8, 8)", "(2,)")


@pytest.mark.parametrize("command", ["train", "compare", "sample"])
def test_a_name_that_is_no_utf8_is_refused_before_any_work(capsys, tmp_path, command):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    recipes = {"train": "examples/moons.yaml", "compare": "recipes/compare/moons.yaml"}
    refused(capsys, [command, str(ROOT / recipes.get(command, "")), "--out", out], "its name is no UTF-8")
    assert not list(tmp_path.iterdir())


def test_corrupt_and_missing_weights(capsys, compared, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(compared / "fm-ot", run)
    weights = run / "model.safetensors"
    content = weights.read_bytes()
    for damage in (content[: len(content) // 2], b"\xff" * 64 + content[64:], b""):
        weights.write_bytes(damage)
        refused(capsys, ["sample", str(run), "--out", str(tmp_path / "x.png")], str(weights), "corrupt")
    weights.unlink()
    refused(capsys, ["sample", str(run), "--out", str(tmp_path / "x.png")], "no weights", "genkit train")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.devices=0",
        "trainer.devices=abc",
        "trainer.strategy=foo",
        "trainer.strategy=ddp_spawn",
        "trainer.num_nodes=2",
        "training.compile=onnxrt",
    ],
)
def test_a_trainer_that_cannot_be_had_leaves_nothing(capsys, tmp_path, override):
    recipe, out = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text("data: digits\nobjective: flow_matching\n")
    word = override.partition("=")[0].rpartition(".")[2]
    refused(capsys, ["train", str(recipe), *TINY, override, "--out", str(out)], word)
    assert not out.exists()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_a_variable_of_a_launcher_that_is_no_number(capsys, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "abc")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: digits\nobjective: flow_matching\n")
    argv = ["train", str(recipe), *TINY, "--out", str(tmp_path / "run")]
    refused(capsys, argv, f"the variable {name}", "'abc'")
    assert not (tmp_path / "run").exists()


def printing(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command line with the buffer that Python's output usually has."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    argv = [sys.executable, "-m", "genkit", *words]
    return subprocess.run(
        argv, env=environment, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options
    )


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_output_that_nobody_reads(words):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        done = printing(words, stdout=output)
    assert (done.returncode, done.stderr) == (0, "")
    full = Path("/dev/full")
    if full.exists():
        with full.open("w") as output:
            done = printing(words, stdout=output)
        assert (done.returncode, done.stderr) == (
            2,
            "genkit: error: cannot read or write: No space left on device\n",
        )
    terminal, output = os.openpty()
    os.close(terminal)  # it has hung up
    done = printing(words, stdout=output)
    os.close(output)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_read_is_no_lost_terminal(monkeypatch, capsys):
    def fails(arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(COMMANDS, "info", COMMANDS["info"]._replace(run=fails))
    refused(capsys, ["info", "x"], "cannot read or write: Input/output error")


def test_output_in_ascii(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = printing(["list", "metrics"], stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fr\\xe9chet distance" in done.stdout


def test_a_value_that_begins_with_a_dash(capsys):
    assert main(["sample", "run", "--prompt", "-x"]) == 2
    assert "a value that begins with a dash is given as --prompt=-x" in capsys.readouterr().err
    assert main(["train", "r.yaml", "--out", "--training.steps=5"]) == 2
    assert "no option '--training.steps'" in capsys.readouterr().err


def test_a_recipe_of_the_users_is_not_written_over(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: digits\nobjective: flow_matching\n")
    refused(capsys, ["train", str(recipe), *TINY, "--out", str(tmp_path)], "recipe.yaml", "--out")
    assert recipe.read_text() == "data: digits\nobjective: flow_matching\n"


def test_an_edited_plugin_is_another_recipe(tmp_path, unregistered, capsys):
    """Its old run is not taken for the new one; and a run says which plug-in it needs."""
    from genkit.couplings import COUPLINGS

    plugin, out = tmp_path / "mine.py", tmp_path / "run"
    code = (ROOT / "examples/antithetic_coupling.py").read_text().replace('"antithetic"', '"mine"')
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: digits\nobjective: {name: flow_matching, coupling: mine}\n")
    argv = ["train", str(recipe), *TINY, "--out", str(out), "--plugin", str(plugin)]
    plugin.write_text(code)
    assert main(argv) == 0
    plugin.write_text(code + "# edited\n")
    refused(capsys, argv, "another run", "plug-ins were others")
    del COUPLINGS._entries["mine"]
    sys.modules.pop("genkit_plugin_mine")
    refused(capsys, ["sample", str(out), "--out", str(tmp_path / "x.png")], "plug-in 'mine'", "--plugin")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_line_of_the_list_is_a_whole_sentence(kind, capsys):
    assert main(["list", kind]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.endswith((".", ":"))] == []


def test_list_shows_the_options_of_an_entry(capsys):
    assert main(["list", "solvers", "heun"]) == 0
    assert "steps: 'int' = 16" in capsys.readouterr().out
    refused(capsys, ["list", "solvers", "huen"], "did you mean 'heun'")
    assert main(["list", "solver", "heun"]) == 0
    assert "steps: 'int' = 16" in capsys.readouterr().out


def cli(*argv: str, **kwargs) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "genkit", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("progress", ["pipe that nobody reads", "full disk", "closed"])
def test_progress_that_nobody_can_read_does_not_end_training(progress, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: moons\nobjective: flow_matching\n")
    argv = [sys.executable, "-m", "genkit", "train", str(recipe), *TINY, "--out", str(tmp_path / "run")]
    if progress == "closed":
        done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *argv], capture_output=True, timeout=60)
    elif progress == "full disk":
        with open("/dev/full", "w") as output:
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=output, timeout=60)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as output:
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=output, timeout=60)
    assert done.returncode == 0
    assert b"12 steps" in done.stdout
    assert (tmp_path / "run/model.safetensors").is_file()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed(closed):
    """An answer and an error go to their own stream or nowhere, and the status is the same."""
    out, err = closed == "2>&-", closed == ">&-"  # which is open
    for words, status, told in (["list", "solvers"], 0, (out, False)), (["list", "nosuch"], 2, (False, err)):
        argv = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "genkit", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert (done.returncode, bool(done.stdout), bool(done.stderr)) == (status, *told)


@pytest.mark.slow
def test_full_disk(tmp_path):
    """A limit on the size of files stands for the disk: the run stops with a message, its checkpoint whole."""
    recipe, run = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text("data: digits\nobjective: flow_matching\n")
    assert main(["train", str(recipe), *TINY, "training.steps=6", "--out", str(run)]) == 0
    before = (run / "checkpoints/last.ckpt").read_bytes()

    other = tmp_path / "other"
    process = cli(
        *["train", str(recipe), *TINY, "training.checkpoint_every=5", "--out", str(other)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    _, message = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in message
    assert "cannot write" in message
    assert "last.ckpt" in message
    assert not list(other.rglob("*.tmp"))
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_interrupt_saves_and_the_same_command_goes_on(tmp_path):
    """Ctrl-C ends with status 130 and a checkpoint; the resumed run has the weights of one left alone."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: digits\nobjective: flow_matching\n")
    argv = ["train", str(recipe), *TINY, "training.steps=300", "training.log_every=1", "--out"]
    process = cli(*argv, str(tmp_path / "stopped"))
    metrics = tmp_path / "stopped/metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert process.returncode == 130
    assert message.splitlines()[-1].startswith("genkit: stopped; the last good checkpoint is ")
    assert "Traceback" not in message
    assert (tmp_path / "stopped/checkpoints/last.ckpt").is_file()
    assert not (tmp_path / "stopped/model.safetensors").exists()

    for name in ("stopped", "alone"):
        assert main([*argv, str(tmp_path / name)]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stopped", "alone")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "argv", [("benchmark", "samplers", "run"), ("fit-grid", "run", "--solver", "heun", "--steps", "2")]
)
def test_commands_for_one_process_say_so_before_they_touch_anything(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(argv) == 2
    assert f"genkit {argv[0]} is for one process, and 2 were started" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
