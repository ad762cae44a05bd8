"""Recipes and run folders: what is wrong gets one clear error, what is right is kept exactly."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

import genkit
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.recipe import Recipe, Run, load, override, read_yaml, train
from genkit.registry import load_plugin
from tests.objectives.models import MODEL_OF, OPTIONS_OF, data_of

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "data": {"name": "8gaussians", "n_train": 64, "n_test": 32, "labels": True},
    "model": {"width": 24, "depth": 2, "heads": 2},
    "objective": {"name": "flow_matching"},
    "training": {"steps": 4, "batch_size": 16, "warmup": 1, "log_every": 2},
    "trainer": {"accelerator": "cpu"},
    "sampling": {"solver": {"name": "euler", "steps": 2}},
}
FLOW: dict[str, Any] = {**TINY, "objective": {"name": "normalizing_flow", "spans": 2}, "sampling": {}}


def write(path: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**(config or TINY), **changes}))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained normalizing flow; tests copy it before they harm it."""
    folder = tmp_path_factory.mktemp("runs") / "nf"
    train(Recipe.resolve(FLOW), folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "fm"
    train(Recipe.resolve(TINY), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "fm"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# reading


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainning": {}}, "no section 'trainning'; did you mean 'training'?"),
        ({"training": {"step": 5}}, "training: no option 'step'; did you mean 'steps'?"),
        ({"training": {"steps": "many"}}, "training: steps must be a whole number, not 'many'"),
        ({"training": {"steps": 2.5}}, "training: steps must be a whole number, not 2.5"),
        ({"training": {"steps": True}}, "training: steps must be a whole number, not True"),
        ({"training": {"steps": 0}}, "training: steps must be positive, not 0"),
        ({"training": {"precision": "fp8"}}, "precision must be one of 'float32', 'bf16', not 'fp8'"),
        ({"training": {"lr": None}}, "training: lr must be a number, not None"),
        ({"training": [1, 2]}, "training must be a mapping of options"),
        ({"training": False}, "training must be a mapping of options, not False"),
        ({"model": {"widht": 3}}, "model: no option 'widht'; did you mean 'width'?"),
        ({"model": {"width": 25}}, "width 25 must be a multiple of"),
        ({"model": {"mlp": "relu"}}, "mlp must be one of 'swiglu', 'gelu'"),
        ({"data": "8gausians"}, "no data set '8gausians'; did you mean '8gaussians'?"),
        ({"data": {"name": "8gaussians", "ntrain": 3}}, "no option 'ntrain'; did you mean 'n_train'?"),
        ({"data": {"n_train": 3}}, "a data set is a name or a mapping with `name`"),
        ({"data": None}, "a data set is a name or a mapping with `name`"),
        ({"objective": "flow_maching"}, "no objective 'flow_maching'; did you mean 'flow_matching'?"),
        ({"objective": {"name": "flow_matching", "couplin": "ot"}}, "did you mean 'coupling'?"),
        ({"objective": {"name": "flow_matching", "coupling": "otp"}}, "no coupling 'otp'.*did you mean 'ot'"),
        (
            {"objective": {"name": "flow_matching", "coupling": {"name": "distilled", "nose": 1}}},
            "no option 'nose'; did you mean 'noise'?",
        ),
        (
            {"objective": {"name": "flow_matching", "path": "linaer"}},
            "no path 'linaer'; did you mean 'linear'?",
        ),
        (
            {"objective": {"name": "flow_matching", "label_dropout": "x"}},
            "label_dropout must be a number, not 'x'",
        ),
        (
            {"sampling": {"unmasker": "ancestral"}},
            "sampling: .*'flow_matching' takes no unmasker; its solver is",
        ),
        (
            {"sampling": {"inverter": "jacobi"}},
            "sampling: .*'flow_matching' takes no inverter; its solver is",
        ),
        (
            {"objective": "energy", "sampling": {"unmasker": "entropy"}},
            "'energy' takes no unmasker; its solver",
        ),
        ({"objective": "normalizing_flow"}, "sampling: .*takes no solver; its inverter is one of auto, "),
        ({"sampling": {"unmasker": ""}}, "no unmasker ''"),
        ({"sampling": {"unmasker": {}}}, "an unmasker is a name or a mapping with `name`"),
        ({"objective": {}}, "an objective is a name or a mapping with `name`"),
        ({"sampling": {"solver": "hune"}}, "no solver 'hune'; did you mean 'heun'?"),
        ({"sampling": {"solver": {"name": "heun", "steps": 0}}}, "at least 1 step, not 0"),
        ({**FLOW, "sampling": {"inverter": {"name": "jacobi", "cap": 0}}}, "cap must be at least 1, not 0"),
        ({"sampling": {"guidance": {"name": "clasifier_free"}}}, "did you mean 'classifier_free'?"),
        ({"sampling": {"guidance": float("nan")}}, "scale must be a finite number"),
        ({"sampling": {"guidance": {"name": "interval", "start": 0.8}}}, "start < stop"),
        ({"seed": -1}, "seed must be a whole number from 0 up, not -1"),
        ({"seed": "one"}, "seed must be a whole number"),
        ({"plugins": "mine"}, "plugins must be a list of names"),
        ({"trainer": {"accelerator": "tpuu"}}, "accelerator must be one of"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_thing(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "my.yaml", **changes)
    with pytest.raises(GenkitError, match=message) as error:
        Recipe.load(path)
    assert "my.yaml" in str(error.value)


@pytest.mark.parametrize("missing", ["data", "objective"])
def test_a_missing_section_is_named(missing: str, tmp_path: Path) -> None:
    config = {key: value for key, value in TINY.items() if key != missing}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(GenkitError, match=f"my.yaml: the section '{missing}' is missing"):
        Recipe.load(tmp_path / "my.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not a YAML recipe"),
        (b"\tname: x", "is not a YAML recipe"),
        (b"\xff\xfe\x00binary\x80", "is not a YAML recipe"),
        (b"just words", "no section 'just words'"),
        (b"- 1\n- 2\n", "top level must be named sections"),
        (b"", "section 'data' is missing|not a recipe"),
        (b"3: 4\n", "top level must be named sections"),
        (b"a: ${nowhere}\n", "nowhere"),
        (b"data: !!python/object/apply:os.system ['true']\n", "is not a YAML recipe"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(GenkitError, match=message) as error:
        Recipe.load(path)
    assert "my.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path / "digits.yaml")
    with pytest.raises(GenkitError, match=r"no such recipe: .*digit.yaml \(.*did you mean 'digits.yaml'"):
        read_yaml(tmp_path / "digit.yaml")
    with pytest.raises(GenkitError, match="there is no folder"):
        read_yaml(tmp_path / "nowhere" / "digits.yaml")
    with pytest.raises(GenkitError, match="cannot read the recipe|is not a YAML recipe"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.steps", "an override is key=value, such as training.steps=500, not 'training.steps'"),
        ("=5", "an override is key=value"),
        ("training.steps=ten", "steps must be a whole number, not 'ten'"),
        ("training.stps=10", "no option 'stps'; did you mean 'steps'?"),
        ("trainning.steps=10", "no section 'trainning'"),
        ("training=5", "training must be a mapping|training"),
        ("objective.coupling=otp", "no coupling 'otp'"),
        ("training[0=5", "an override is key=value"),
        ("training..steps=5", "an override is key=value"),
        ("[=5", "an override is key=value"),
        ("training.lr=${oc.env:HOME}", "is no \\${section.key}"),
        ("training.lr=${nowhere}", "my.yaml: .*nowhere"),
        ("training.steps=[", r"the override 'training.steps=\[' cannot be applied"),
    ],
)
def test_overrides_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "my.yaml")
    with pytest.raises(GenkitError, match=message):
        Recipe.load(path, [text])


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    path = write(tmp_path / "my.yaml")
    overrides = [
        "training.steps=7",
        "training.lr=2e-4",
        "training.clip=null",
        "objective.coupling=ot",
        "objective.path={name: variance_preserving, beta_max: 9}",
        "name=other",
        "training.betas=[0.5,0.6]",
    ]
    config = Recipe.load(path, overrides).config
    assert config["training"]["steps"] == 7
    assert config["training"]["lr"] == 2e-4
    assert config["training"]["clip"] is None
    assert config["training"]["betas"] == [0.5, 0.6]
    assert config["objective"]["coupling"] == {"name": "ot", "solver": "auto", "scope": "rank"}
    assert config["objective"]["path"]["beta_max"] == 9
    assert config["name"] == "other"
    assert config["model"]["width"] == 24  # the rest is as in the file


@pytest.mark.parametrize(
    ("overrides", "place", "found"),
    [
        (["a={name: m, x: 1}"], "a", {"name": "m", "x": 1}),
        (["a={x: 1}"], "a", {"name": "n", "old": 0, "x": 1}),
        (["b={c: {name: m, x: 1}}"], "b", {"c": {"name": "m", "x": 1}, "d": "e"}),
        (["b.d.x=1"], "b", {"c": {"name": "n", "old": 0}, "d": {"name": "e", "x": 1}}),
        (["a=m", "a.x=1", "a.y.z=2"], "a", {"name": "m", "x": 1, "y": {"z": 2}}),
        (["f.x=1"], "f", {"name": "e", "x": 1}),
        (["g.x=1"], "g", {"name": "n", "old": 0, "x": 1}),
        (["h={name: m, x: 1}"], "h", {"name": "m", "x": 1}),
    ],
)
def test_an_override_of_what_has_a_name(overrides: list[str], place: str, found: dict[str, Any]) -> None:
    old = {"name": "n", "old": 0}
    config = {"a": old, "b": {"c": old, "d": "e"}, "f": "${b.d}", "g": "${a}"}
    assert override(config, overrides)[place] == found


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = Recipe.resolve({**TINY, "paper": {"title": "t"}, "expected": {"frechet": 1.5}})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.yaml())
    again = Recipe.load(path)
    assert again.config == recipe.config
    assert again.yaml() == recipe.yaml()
    for section in ("model", "training", "trainer"):
        assert again.section(section) == recipe.section(section)


def test_options_that_do_not_fit_the_data_are_known_before_training(tmp_path: Path) -> None:
    recipe = Recipe.resolve({**TINY, "objective": {"name": "flow_matching", "noise": "uniform"}}, "my.yaml")
    with pytest.raises(GenkitError, match="my.yaml: '8gaussians' is real-valued"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_checking_leaves_torch_as_it_was(name: str) -> None:
    """No default device, no weights; and building depends on the recipe's seed only."""
    spec = data_of(name)[0]
    changes = {
        "objective": {"name": name, **OPTIONS_OF.get(name, {})},
        "model": {**TINY["model"], "depth": 4, **MODEL_OF.get(name, {})},
        "sampling": {},
    }
    recipe = Recipe.resolve({**TINY, **changes})
    recipe.check(spec)
    assert torch.empty(1).device.type == "cpu"
    torch.manual_seed(5)
    one = recipe.objective(spec)
    torch.manual_seed(6)
    other = recipe.objective(spec)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    seeded = Recipe.resolve({**TINY, **changes, "seed": 2}).objective(spec)
    assert not all(map(torch.equal, one.state_dict().values(), seeded.state_dict().values()))


# fingerprint


def fingerprint(data: str = "d", teacher: str | None = None, **changes: Any) -> str:
    config = {
        key: {**value, **changes.pop(key)} if isinstance(changes.get(key), dict) else value
        for key, value in TINY.items()
    }
    return Recipe.resolve({**config, **changes}).fingerprint(data, teacher)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"training": {"steps": 5}},
        {"training": {"lr": 0.01}},
        {"training": {"batch_size": 8}},
        {"training": {"ema": 0.9}},
        {"training": {"precision": "bf16"}},
        {"training": {"accumulate": 2}},
        {"model": {"width": 48}},
        {"model": {"mlp": "gelu"}},
        {"objective": {"coupling": "ot"}},
        {"objective": {"path": "cosine"}},
        {"objective": {"label_dropout": 0.2}},
        {"objective": "normalizing_flow", "sampling": None},
        {"data": {"labels": False}},
        {"data": "e"},
        {"teacher": "t"},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_what_the_weights_depend_on(changes: dict[str, Any]) -> None:
    assert fingerprint(**changes) != fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"trainer": {"devices": 2}},
        {"sampling": {"guidance": 2.0}},
        {"sampling": {"solver": "rk4"}},
        {"training": {"log_every": 1}},
        {"training": {"checkpoint_every": 7}},
        {"training": {"snapshots": [1]}},
        {"paper": {"title": "t"}},
        {"expected": {"frechet": 3}},
        {"objective": {"coupling": "independent", "path": {"name": "linear"}}},  # the defaults, said
        {"training": {"lr": 1e-3}},
    ],
    ids=str,
)
def test_the_fingerprint_does_not_change_with_the_rest(changes: dict[str, Any]) -> None:
    assert fingerprint(**changes) == fingerprint()


# what does not fit the model is known before it is trained

TEXT: dict[str, Any] = {"data": {"name": "pydoc", "length": 16}, "objective": "masked_diffusion"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"objective": {"name": "flow_matching", "label_dropout": 0.0}}, "trained with label_dropout 0"),
        ({"objective": {"name": "flow_matching", "conditional": False}}, "this one is unconditional"),
        ({"data": "moons"}, "this one is unconditional"),
        ({**FLOW, "guidance": "rescaled"}, "'rescaled' is of field predictions, this model's are affine"),
        ({**TEXT, "objective": "autoregressive"}, "this one is unconditional"),
        ({**TEXT, "guidance": {"name": "ratio_aware"}}, "predictions, this model's are logits"),
    ],
    ids=str,
)
def test_guidance_that_does_not_fit(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    guidance = config.get("guidance", 2.0)
    config = {key: value for key, value in {**TINY, **config}.items() if key != "guidance"}
    recipe = Recipe.resolve({**config, "sampling": {"guidance": guidance}})
    with pytest.raises(GenkitError, match=f"recipe: .*{message}"):
        train(recipe, tmp_path / "run")
    assert not list(tmp_path.glob("run/[!.]*"))
    Recipe.resolve({**config, "sampling": {"guidance": 1.0}}).check(recipe.dataset().spec)  # off


def test_guidance_by_a_prompt_needs_no_classes() -> None:
    recipe = Recipe.resolve({**TINY, **TEXT, "sampling": {"guidance": 2.0}})
    recipe.check(recipe.dataset().spec)


@pytest.mark.parametrize(
    ("objective", "unmasker", "message"),
    [
        ("autoregressive", "ancestral", "from left to right, not by 'ancestral'"),
        ({"name": "discrete_flow_matching", "source": "uniform"}, "entropy", "noise is uniform symbols: use"),
    ],
    ids=["autoregressive", "discrete_flow_matching"],
)
def test_an_unmasker_that_the_model_cannot_take(objective: Any, unmasker: str, message: str) -> None:
    recipe = Recipe.resolve({**TEXT, "objective": objective, "sampling": {"unmasker": unmasker}})
    with pytest.raises(GenkitError, match=message):
        recipe.check(recipe.dataset().spec)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**64, 10**30])
def test_a_batch_that_no_memory_holds(size: int, tmp_path: Path) -> None:
    """And a smaller one goes on in the same folder."""
    recipe = Recipe.resolve({**TINY, "training": {"steps": 1, "batch_size": size}})
    with pytest.raises(
        GenkitError, match=f"training: batch_size {size}: {size} rows .* free on cpu: .*accumulate"
    ):
        train(recipe, tmp_path / "run")
    train(Recipe.resolve({**TINY, "training": {"steps": 1, "batch_size": 4}}), tmp_path / "run")


def test_a_depth_that_no_memory_holds(run: Path) -> None:
    """Neither of a recipe nor of a run folder that somebody made."""
    recipe = Recipe.resolve({**TINY, "model": {**TINY["model"], "depth": 10**12}})
    with pytest.raises(GenkitError, match="model: 1000000000000 layers take .* GiB, and .* smaller depth"):
        recipe.check(recipe.dataset().spec)
    (run / "recipe.yaml").write_text(recipe.yaml())
    with pytest.raises(GenkitError, match="it has no weights of 1000000000000 layers"):
        load(run)


# run folders


def test_a_run_folder_holds_what_it_should(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} >= {
        "recipe.yaml",
        "model.safetensors",
        "checkpoints",
        "metrics.csv",
        "environment.json",
    }
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["finished"] is True
    assert environment["steps"] == 4
    assert environment["tokens"] == 4 * 16 * 2
    assert environment["seconds"] > 0
    assert environment["setup_seconds"] > 0
    assert environment["setup_tokens"] == 0
    assert environment["torch"] == torch.__version__
    assert Recipe.load(finished / "recipe.yaml").config == Recipe.resolve(TINY).config
    assert not list(finished.rglob("*.tmp"))


@pytest.mark.parametrize("config", [TINY, FLOW], ids=["flow_matching", "normalizing_flow"])
def test_a_loaded_run_samples_as_the_trained_one(config: dict[str, Any], tmp_path: Path) -> None:
    trained = train(Recipe.resolve(config), tmp_path / "run")
    loaded = genkit.load(tmp_path / "run")
    assert torch.equal(trained.sample(5, seed=3).x, loaded.sample(5, seed=3).x)
    x = trained.dataset.test.take(torch.arange(4))
    assert torch.equal(trained.log_prob(*x).value, loaded.log_prob(*x).value)
    assert not loaded.objective.training
    assert not any(p.requires_grad for p in loaded.objective.parameters())
    assert loaded.environment == trained.environment


def test_the_weights_kept_are_the_averaged_ones(finished: Path) -> None:
    kept = safetensors.torch.load_file(finished / "model.safetensors")
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(
        torch.equal(value, checkpoint["state_dict"][f"objective.{key}"]) for key, value in kept.items()
    )


def test_a_finished_run_is_not_trained_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)
    monkeypatch.setattr("genkit.recipe.fit", lambda *_, **__: pytest.fail("trained again"))
    renamed = Recipe.resolve({**TINY, "name": "other", "sampling": {"guidance": 2.0}})
    assert train(renamed, run).environment["finished"]
    assert (run / "recipe.yaml").read_text() == renamed.yaml()  # it is sampled as is asked for now
    assert {**contents(run), "recipe.yaml": before["recipe.yaml"]} == before


def test_a_folder_with_another_run_is_refused_and_left_alone(run: Path) -> None:
    before = contents(run)
    with pytest.raises(
        GenkitError, match=r"fm holds another run \(seed was 1, not 2\): choose another --out"
    ):
        train(Recipe.resolve({**TINY, "seed": 2}), run)
    assert contents(run) == before


def test_a_run_cut_short_before_its_weights_were_written_gives_the_same_ones(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"finished": False}))
    train(Recipe.resolve(TINY), run)
    assert (run / "model.safetensors").read_bytes() == before


def test_a_run_cut_short_at_its_first_file_begins_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two files that it begins with."""
    run = tmp_path / "run"
    for file in ("write_json", "write_text", "fit"):
        with monkeypatch.context() as patch:
            patch.setattr(f"genkit.recipe.{file}", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
            with pytest.raises(InterruptedError):
                train(Recipe.resolve(TINY), run)
    train(Recipe.resolve(TINY), run)
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_run_goes_on_without_its_environment(run: Path) -> None:
    """A checkpoint says itself what it was made from; weights do not."""
    before = (run / "model.safetensors").read_bytes()
    (run / "environment.json").unlink()
    with pytest.raises(GenkitError, match="has weights, and no environment.json that says of what"):
        train(Recipe.resolve(TINY), run)
    (run / "model.safetensors").unlink()
    with pytest.raises(GenkitError, match="trained with another recipe"):
        train(Recipe.resolve({**TINY, "seed": 2}), run)
    (run / "environment.json").unlink()
    train(Recipe.resolve(TINY), run)
    assert (run / "model.safetensors").read_bytes() == before


def test_a_run_of_a_comparison_that_kept_the_sampler_of_other_arms_loads(run: Path) -> None:
    config = yaml.safe_load((run / "recipe.yaml").read_text())
    config["sampling"]["unmasker"] = "ancestral"
    (run / "recipe.yaml").write_text(yaml.safe_dump(config))
    assert load(run).sample(2).x.shape[0] == 2


@pytest.mark.parametrize(
    ("checkpoint", "training", "message"),
    [
        ("bset", {"checkpoint_best": "loss"}, "no checkpoint 'bset'; did you mean 'best'"),
        ("best", {}, "no checkpoint 'best'.*one of: last"),
        ("3", {"snapshots": [2]}, "the snapshot of step 3, and training.snapshots keeps 2"),
        ("last", {}, None),
        ("best", {"checkpoint_best": "loss"}, None),
        ("other.safetensors", {}, None),
    ],
)
def test_a_guide_that_training_does_not_keep_is_refused_before_it(
    checkpoint: str, training: dict[str, Any], message: str | None
) -> None:
    guidance = {"name": "autoguidance", "scale": 2.0, "checkpoint": checkpoint}
    config = {**TINY, "training": {**TINY["training"], **training}, "sampling": {"guidance": guidance}}
    if message is None:
        Recipe.resolve(config)
        return
    with pytest.raises(GenkitError, match=message):
        Recipe.resolve(config)


def test_ctrl_c_under_a_logical_batch_leaves_the_run_unfinished(tmp_path: Path) -> None:
    """A physical batch of half the logical one takes twice the steps: at `steps` of them it is not over."""
    import signal

    given = {**TINY["training"], "log_every": 1}
    steps, batch = given["steps"], given["batch_size"]
    training = {**given, "logical_batch": 2 * batch}
    recipe, folder = Recipe.resolve({**TINY, "training": training}), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            recipe,
            folder,
            report=lambda step, *_: signal.raise_signal(signal.SIGINT) if step == steps else None,
        )
    assert not (folder / "model.safetensors").exists()
    assert train(recipe, folder).environment["steps"] == 2 * steps


def test_ctrl_c_leaves_a_checkpoint_and_the_run_goes_on(finished: Path, tmp_path: Path) -> None:
    import signal

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            Recipe.resolve({**TINY, "training": {**TINY["training"], "log_every": 1}}),
            folder,
            report=lambda step, *_: signal.raise_signal(signal.SIGINT) if step == 2 else None,
        )
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    with pytest.raises(
        GenkitError, match="no weights .*training has not finished; run the same `genkit train`"
    ):
        load(folder)
    train(Recipe.resolve(TINY), folder)
    kept = [safetensors.torch.load_file(f / "model.safetensors") for f in (folder, finished)]
    assert all(torch.equal(value, kept[1][key]) for key, value in kept[0].items())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(GenkitError, match="cannot write .*file/run"):
        train(Recipe.resolve(TINY), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "old"


# loading what is not right


def test_a_missing_run_names_the_nearest_one(run: Path) -> None:
    with pytest.raises(GenkitError, match=r"no such run folder: .*fn \(.*did you mean 'fm'"):
        load(run.parent / "fn")
    with pytest.raises(GenkitError, match="is not a run folder: it has no recipe.yaml; it holds the runs fm"):
        load(run.parent)
    with pytest.raises(GenkitError, match="no such run folder"):
        load(run / "recipe.yaml")


def test_a_run_without_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(GenkitError, match="has no weights .*run the same `genkit train` again to resume"):
        load(run)


def test_where_a_run_was_trained_is_no_part_of_it(run: Path) -> None:
    """A way of training that is not offered any more, or a machine that is not here."""
    recipe = run / "recipe.yaml"
    before = load(run).sample(2).x
    held = recipe.read_text()
    assert "strategy: auto" in held
    recipe.write_text(held.replace("strategy: auto", "strategy: ddp_fork"))
    assert torch.equal(load(run).sample(2).x, before)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_header(content: bytes) -> bytes:
    return content[:20] + bytes([content[20] ^ 0xFF]) + content[21:]


def flip_weight(content: bytes) -> bytes:
    return content[:-1000] + bytes([content[-1000] ^ 0x01]) + content[-999:]


@pytest.mark.parametrize(
    "harm",
    [truncate, flip_header, flip_weight, lambda _: b"", lambda _: b"\x00" * 1000, lambda _: b"no weights"],
    ids=["truncated", "header", "one bit", "empty", "zeros", "text"],
)
def test_corrupt_weights_are_refused(harm: Callable[[bytes], bytes], run: Path) -> None:
    file = run / "model.safetensors"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(GenkitError, match="model.safetensors is corrupt"):
        load(run)


def test_weights_of_another_tool_are_refused(run: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(3)}, run / "model.safetensors")
    with pytest.raises(GenkitError, match="model.safetensors is corrupt, or was not written by genkit"):
        load(run)


def test_weights_of_another_model_are_refused(run: Path, teacher: Path) -> None:
    shutil.copy(teacher / "model.safetensors", run / "model.safetensors")
    with pytest.raises(GenkitError, match="model.safetensors does not fit .*recipe.yaml|is corrupt"):
        load(run)


def test_loading_runs_no_code(run: Path, tmp_path: Path) -> None:
    """A pickle in the place of the weights is not read as one, and YAML makes no objects."""
    mark = tmp_path / "mark"

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    (run / "model.safetensors").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(GenkitError, match="corrupt"):
        load(run)
    torch.save({"x": Touch()}, run / "model.safetensors")
    with pytest.raises(GenkitError, match="corrupt"):
        load(run)
    (run / "recipe.yaml").write_text(f"data: !!python/object/apply:pathlib.Path.touch ['{mark}']\n")
    with pytest.raises(GenkitError, match="not a YAML recipe"):
        load(run)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch()))  # and it would have
    assert mark.exists()


@pytest.mark.parametrize("content", ["{", "[1]", "null"])
def test_a_corrupt_environment_is_named(content: str, run: Path) -> None:
    (run / "environment.json").write_text(content)
    with pytest.raises(GenkitError, match="environment.json is corrupt"):
        load(run)
    with pytest.raises(GenkitError, match="environment.json is corrupt"):
        train(Recipe.resolve(TINY), run)


# plug-ins

PLUGIN = """
from genkit.couplings import COUPLINGS, Coupling
from genkit.types import Pair

@COUPLINGS.register("{name}")
class Mirrored(Coupling):
    "The data themselves, mirrored."
    keeps_source = False
    def __call__(self, x1, y=None, *, index=None, generator=None):
        return Pair(-x1, x1, y, index)
"""


def test_plugins_are_named_by_a_recipe_and_run_only_when_given(tmp_path: Path) -> None:
    plugin = tmp_path / "mirror_for_test.py"
    plugin.write_text(PLUGIN.format(name="mirrored_for_test"))
    config = {
        **TINY,
        "objective": {"name": "flow_matching", "coupling": "mirrored_for_test"},
        "plugins": ["mirror_for_test"],
    }
    with pytest.raises(GenkitError, match="no coupling 'mirrored_for_test'"):
        Recipe.resolve(config)
    assert load_plugin(plugin) == "mirror_for_test"
    folder = tmp_path / "run"
    train(Recipe.resolve(config), folder)
    train(Recipe.resolve(config), folder)  # finished: loaded, by a process that has run the plug-in
    assert load(folder, plugins=[plugin]).recipe.config["plugins"] == ["mirror_for_test"]


def test_a_plugin_that_was_not_given_is_named(run: Path) -> None:
    config = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(config | {"plugins": ["never_given"]}))
    with pytest.raises(GenkitError, match="needs the plug-in 'never_given': give --plugin FILE"):
        load(run)


def test_a_plugin_file_that_is_missing(run: Path) -> None:
    with pytest.raises(GenkitError, match="nowhere.py: no such file"):
        load(run, plugins=["nowhere.py"])


# teachers


def student(teacher: Path | str, **changes: Any) -> Recipe:
    coupling = {"name": "distilled", "teacher": str(teacher)}
    return Recipe.resolve({**TINY, "objective": {"name": "flow_matching", "coupling": coupling}, **changes})


def test_a_student_keeps_its_teacher_apart(teacher: Path, tmp_path: Path) -> None:
    recipe = student(teacher)
    assert recipe.teacher == str(teacher)
    before = contents(teacher)
    trained = train(recipe, tmp_path / "run")
    assert contents(teacher) == before
    assert trained.environment["teacher"]["hash"] == load(teacher).hash
    assert not any(
        "teacher" in key for key in safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    )
    shutil.move(teacher, teacher.parent / "moved")  # a student samples without its teacher
    try:
        assert torch.equal(load(tmp_path / "run").sample(3).x, trained.sample(3).x)
    finally:
        shutil.move(teacher.parent / "moved", teacher)


def test_a_teacher_of_other_data_is_refused(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GenkitError, match=r"teacher was trained on data of shape \(2,\); these have \(1, 8, 8\)"
    ):
        train(student(teacher, data="digits"), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="no such run folder: .*nowhere"):
        train(student(tmp_path / "nowhere"), tmp_path / "run")
    with pytest.raises(GenkitError, match="needs a teacher: set teacher=RUN_FOLDER"):
        train(
            Recipe.resolve({**TINY, "objective": {"name": "flow_matching", "coupling": "distilled"}}),
            tmp_path / "run",
        )


def test_a_teacher_without_codes_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="must give data a code, as a normalizing flow does"):
        train(student(finished), tmp_path / "run")


def test_another_teacher_is_another_run(teacher: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(teacher, tmp_path / "nf"))
    train(student(copied), tmp_path / "run")
    shutil.rmtree(copied)
    train(Recipe.resolve({**FLOW, "seed": 7}), copied)
    with pytest.raises(GenkitError, match=r"holds another run \(it had another teacher\)"):
        train(student(copied), tmp_path / "run")


# sampling a run


def test_equal_weights_have_equal_hashes(finished: Path, teacher: Path, tmp_path: Path) -> None:
    """A teacher trained again is the same teacher."""
    again = [train(Recipe.resolve(TINY), tmp_path / str(i)) for i in range(3)]
    assert {run.hash for run in again} == {load(finished).hash}
    assert load(teacher).hash != load(finished).hash


def test_what_is_asked_for_comes_before_the_recipe(run: Path) -> None:
    loaded = load(run)
    assert loaded.sample(3).nfe == 2
    assert loaded.sample(3, steps=5).nfe == 5
    assert loaded.sample(3, solver="heun", steps=4).nfe == 8
    assert loaded.sample(3, solver={"name": "rk4", "steps": 2}).nfe == 8


def test_classes_may_be_one_each_or_all_in_turn(run: Path) -> None:
    loaded = load(run)
    seen: list[Tensor] = []
    velocity = loaded.objective.predict
    loaded.objective.predict = lambda t, x, y: seen.append(y) or velocity(t, x, y)  # type: ignore[operator]
    for y, expected in (
        (None, [0, 1, 2]),
        (5, [5, 5, 5]),
        ([7, 0, 3], [7, 0, 3]),
        (torch.tensor([1, 2, 3]), [1, 2, 3]),
    ):
        loaded.sample(3, y)
        assert seen[-1].tolist() == expected


def test_samples_depend_on_the_seed_only(run: Path) -> None:
    loaded = load(run)
    torch.manual_seed(1)
    first = loaded.sample(4).x
    torch.manual_seed(2)
    assert torch.equal(first, loaded.sample(4).x)
    assert not torch.equal(first, loaded.sample(4, seed=1).x)
    state = torch.get_rng_state()
    loaded.sample(4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "number of samples must be at least 1, not 0"),
        ({"n": -3}, "number of samples must be at least 1, not -3"),
        ({"n": -3, "y": 1}, "number of samples must be at least 1, not -3"),
        ({"n": 2, "y": 8}, "class 8 is out of range: '8gaussians' has classes 0 to 7"),
        ({"n": 2, "y": -5}, "class -5 is out of range"),
        ({"n": 2, "y": [1, 2, 3]}, r"shape \(2,\), not \(3,\)"),
        ({"n": 2, "steps": 0}, "at least 1 step, not 0"),
        ({"n": 2, "steps": -1}, "at least 1 step, not -1"),
        ({"n": 2, "solver": "hune"}, "no solver 'hune'; did you mean 'heun'?"),
        ({"n": 2, "solver": {"name": "heun", "stps": 3}}, "no option 'stps'; did you mean 'steps'?"),
        ({"n": 2, "guidance": {"name": "clasifier_free"}}, "did you mean 'classifier_free'?"),
    ],
    ids=str,
)
def test_samples_that_cannot_be(options: dict[str, Any], message: str, run: Path) -> None:
    with pytest.raises(GenkitError, match=message):
        load(run).sample(**options)


def test_a_normalizing_flow_takes_no_solver(teacher: Path) -> None:
    for options, message in (
        ({"solver": "heun"}, "'normalizing_flow' takes no solver; its inverter is one of .*jacobi"),
        ({"solver": "heun", "unmasker": "ancestral"}, "takes no solver and no unmasker"),
        ({"steps": 4}, "no option 'steps'"),
        ({"inverter": "jacobbi"}, "no inverter 'jacobbi'; did you mean 'jacobi'"),
        ({"inverter": {"name": "jacobi", "tolerance": -1}}, "tolerance must be a number from 0 up, not -1"),
    ):
        with pytest.raises(GenkitError, match=message):
            load(teacher).sample(2, **options)  # type: ignore[arg-type]


def test_a_flow_of_pairs_takes_no_unmasker(run: Path) -> None:
    with pytest.raises(GenkitError, match="takes no unmasker; its solver is one of .*heun"):
        load(run).sample(2, unmasker="ancestral")
    with pytest.raises(GenkitError, match="no option 'temperature'"):
        load(run).sample(2, temperature=0.5)


def test_the_likelihood_of_a_flow_takes_its_solver_and_steps(run: Path, teacher: Path) -> None:
    loaded = load(run)
    x, _ = loaded.dataset.test.take(torch.arange(4))
    found = loaded.log_prob(x, solver="heun", steps=3, divergence="hutchinson", probes=2, tolerance=None)
    heun = {"name": "heun", "steps": 3}
    other = loaded.log_prob(x, sampler=heun, divergence="hutchinson", probes=2, tolerance=None)
    assert torch.equal(found.value, other.value)
    assert torch.equal(loaded.log_prob(x).value, loaded.log_prob(x, solver="rk4", steps=32).value)
    assert torch.equal(loaded.log_prob(x).value, loaded.log_prob(x, steps=32).value)
    with pytest.raises(GenkitError, match="did you mean 'heun'"):
        loaded.log_prob(x, solver="hun")
    with pytest.raises(GenkitError, match="without noise"):
        loaded.log_prob(x, solver="ancestral")
    with pytest.raises(GenkitError, match="'normalizing_flow' takes no steps"):
        load(teacher).log_prob(x, steps=4)
    assert genkit.train is train


def test_log_prob_of_a_run(teacher: Path) -> None:
    loaded = load(teacher)
    assert isinstance(loaded, Run)
    x, y = loaded.dataset.test.take(torch.arange(6))
    found = loaded.log_prob(x, y)
    assert found.kind == "exact"
    assert torch.allclose(found.value, loaded.objective.log_density(x, y), atol=1e-5)  # type: ignore[operator]


def test_a_name_set_alone_leaves_the_options_beside_it() -> None:
    """Those of the recipe and of overrides before it, whatever the order."""
    held = {"objective": {"name": "flow_matching", "prediction": "noise"}}
    for words in (["objective.prediction=data", "objective.name=flow_matching"],):
        for order in (words, words[::-1]):
            assert override(held, order) == {"objective": {"name": "flow_matching", "prediction": "data"}}
    assert override(held, ["objective={name: energy}"]) == {"objective": {"name": "energy"}}
