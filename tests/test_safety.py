"""Nothing that genkit reads by default runs code, lands elsewhere or takes the machine; a damaged file is named.

Each payload is a pickle that would leave a mark: `armed` shows that it does where it is loaded.
"""

from __future__ import annotations

import ast
import gzip
import io
import itertools
import json
import os
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console
from rich.progress import Progress

from genkit.__main__ import Bars, main
from genkit.compare.runner import Comparison, kept_evaluation, result_hash
from genkit.couplings import COUPLINGS
from genkit.data.audio import read_wav, write_wav
from genkit.data.base import Encoded, TensorSplit
from genkit.data.fashion_mnist import FashionMNIST, read_idx
from genkit.data.hub import read_split
from genkit.data.tokenizers import choose_tokenizer
from genkit.data.trimodal import read_picture
from genkit.data.views import Continuous
from genkit.errors import GenkitError
from genkit.files import free_name
from genkit.metrics import extractor
from genkit.processes import locked
from genkit.recipe import load, read_yaml
from genkit.training.callbacks import read_rows
from genkit.training.fit import read_checkpoint
from genkit.types import StandardNormal

ROOT = Path(__file__).parent.parent
POINTS = "{name: 8gaussians, n_train: 64, n_test: 32}"
RECIPE = f"""
data: {POINTS}
objective: flow_matching
model: {{width: 8, depth: 1, heads: 1}}
training: {{steps: 2, batch_size: 8, log_every: 1, checkpoint_every: 1}}
"""
FIGURES = ["samples=32", "steps=[1]", "likelihood_rows=4", "probes=8"]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where a payload would leave its mark: not there, at the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()


def payloads(mark: Path, scratch: Path) -> dict[str, bytes]:
    """The ways in which Python's libraries keep a pickle in a file."""
    torch.save({"state_dict": Touch(mark), "global_step": 1}, scratch / "x.ckpt")
    numpy.save(scratch / "x.npy", numpy.array([Touch(mark)], dtype=object), allow_pickle=True)
    numpy.savez(scratch / "x.npz", x=numpy.array([Touch(mark)], dtype=object))
    files = {path.suffix: path.read_bytes() for path in scratch.glob("x.*")}
    return {"pickle": pickle.dumps(Touch(mark)), "gzip": gzip.compress(pickle.dumps(Touch(mark))), **files}


def test_the_payload_is_armed(tmp_path: Path) -> None:
    for name, content in payloads(tmp_path / "mark", tmp_path).items():
        (tmp_path / "mark").unlink(missing_ok=True)
        (tmp_path / "file").write_bytes(content)
        if name == ".ckpt":
            torch.load(tmp_path / "file", weights_only=False)
        elif name.startswith(".np"):
            found = numpy.load(tmp_path / "file", allow_pickle=True)
            _ = found["x"] if name == ".npz" else found
        else:
            pickle.loads(gzip.decompress(content) if name == "gzip" else content)
        assert (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run."""
    folder = tmp_path_factory.mktemp("safety")
    (folder / "r.yaml").write_text(RECIPE)
    assert main(["train", str(folder / "r.yaml"), "--out", str(folder / "run")]) == 0
    assert main(["evaluate", str(folder / "run"), *FIGURES]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained.parent, tmp_path / "copy")
    return tmp_path / "copy/run"


def unfinished(run: Path) -> None:
    """As after a kill, so that training reads the checkpoint."""
    (run / "model.safetensors").unlink(missing_ok=True)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "finished": False}))


def commands(run: Path) -> list[list[str]]:
    return [
        ["sample", str(run), "-n", "2", "--steps", "1", "--out", str(run.parent / "x.npy")],
        ["evaluate", str(run), *FIGURES],
        ["train", str(run.parent / "r.yaml"), "--out", str(run)],
    ]


def told(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The message of a command that must be refused."""
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.count("genkit: error:") == 1
    assert "Traceback" not in message
    assert "weights_only" not in message  # libraries advise to run what is in the file
    return message


# Files without which a run is the same: they are made again, or not read.
BESIDE = ("metrics.csv", "evaluation.json", "samples.safetensors", ".holder.json")


# --- no code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "checkpoints/last.ckpt", "recipe.yaml", "environment.json", *BESIDE],
)
def test_a_pickle_in_the_place_of_a_file_of_a_run_is_not_run(
    name: str, run: Path, mark: Path, capsys
) -> None:
    for content in payloads(mark, run.parent).values():
        if name.startswith("checkpoints"):
            unfinished(run)
        (run / name).write_bytes(content)
        statuses = [main(argv) for argv in (commands(run)[-1:] if name[0] == "c" else commands(run))]
        assert set(statuses) <= {0, 2}
        assert (2 in statuses) == (name not in BESIDE)
        assert "Traceback" not in capsys.readouterr().err
        assert not mark.exists()


def test_a_pickle_in_the_place_of_data_is_not_run(tmp_path: Path, mark: Path) -> None:
    file = tmp_path / "file"
    readers: list[Callable[[Path], Any]] = [
        read_idx,
        read_checkpoint,
        lambda path: read_wav(path, 8000),
        lambda path: read_picture(str(path)),
        lambda path: choose_tokenizer(str(path), ""),
        read_yaml,
    ]
    for content in payloads(mark, tmp_path).values():
        file.write_bytes(content)
        for reader in readers:
            with pytest.raises(GenkitError, match="file"):
                reader(file)


def test_a_pickle_in_the_place_of_the_extractor_is_not_run(tmp_path: Path, mark: Path, monkeypatch) -> None:
    monkeypatch.setattr(extractor, "WEIGHTS", tmp_path)
    for content in payloads(mark, tmp_path).values():
        (tmp_path / "digits.safetensors").write_bytes(content)
        with pytest.raises(GenkitError, match="is not the pinned extractor"):
            extractor.load_extractor("digits")


class Teacher(torch.nn.Linear):
    view = Continuous
    conditional = False

    def encode(self, x: torch.Tensor, y: Any = None) -> torch.Tensor:
        return self(x)


def cached(folder: Path) -> None:
    """Sets a distilled coupling up with a cache of codes in `folder`."""
    from genkit.data import DATASETS

    spec = DATASETS.build(yaml.safe_load(POINTS)).spec
    torch.manual_seed(0)
    data = Encoded(TensorSplit(torch.randn(16, 2)), Continuous(spec))
    coupling = COUPLINGS.build({"name": "distilled", "cache": str(folder), "noise": 0.1})
    coupling.setup(data, StandardNormal(), Teacher(2, 2))


def test_a_cache_of_codes_is_data_alone(tmp_path: Path, mark: Path) -> None:
    cached(tmp_path)
    cached(tmp_path)  # read again
    file = tmp_path / "codes.safetensors"
    whole = file.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    for content in (*payloads(mark, tmp_path).values(), flipped, whole[:-9], b""):
        file.write_bytes(content)
        with pytest.raises(GenkitError, match="is no cache of codes, or corrupt"):
            cached(tmp_path)


def test_hub_reads_no_pickles(tmp_path: Path, mark: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Touch(mark)))
    for path in ("pandas", str(tmp_path)):
        with pytest.raises(GenkitError):
            read_split(path, None, "train")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!python/object/apply:pathlib.Path ['/tmp']",
        "!!binary aGVsbG8=",
        "!!set {a, b}",
        "${oc.env:HOME}",
        "a ${oc.env:HOME}",
        "${oc.decode:'[1]'}",
        "${evil:1}",
        "${${name}:HOME}",
        "${a.${name}}",
        '"a\\0b"',
        "&a [*a]",
    ],
)
def test_recipes_are_plain_data(text: str, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    called = []
    OmegaConf.register_resolver("evil", called.append, replace=True)
    try:
        (tmp_path / "r.yaml").write_text(f"name: oc.env\ndata: digits\nobjective: [{text}]\n")
        with pytest.raises(GenkitError, match="r.yaml") as error:
            read_yaml(tmp_path / "r.yaml")
        assert "\n" not in str(error.value)
        if "\\0" not in text:
            (tmp_path / "r.yaml").write_text("name: oc.env\n")
            with pytest.raises(GenkitError, match="the override"):
                read_yaml(tmp_path / "r.yaml", [f"data={text}"])
    finally:
        OmegaConf.clear_resolver("evil")
    assert not called
    assert os.environ["HOME"] not in str(error.value)


def test_a_value_may_stand_for_another_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "seed: 3\nmodel: {width: 8, depth: [1, 2]}\nname: a${seed}-${model.width}\n"
    )
    assert read_yaml(tmp_path / "r.yaml", ["data=${model.depth[1]}"])["name"] == "a3-8"


@pytest.mark.parametrize("form", ["{0}{0}", "['{0}', '{0}']", "{{x: '{0}', y: '{0}'}}"])
def test_references_that_grow_without_end_are_refused(form: str, tmp_path: Path) -> None:
    """Small enough here to be resolved where they are not refused."""
    lines = ["a0: xxxx", *(f"a{i}: {form.format(f'${{a{i - 1}}}')}" for i in range(1, 5))]
    (tmp_path / "r.yaml").write_text("\n".join(lines[:2]))
    assert "xxxx" in str(read_yaml(tmp_path / "r.yaml")["a1"])
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(GenkitError, match=r"r.yaml: \$\{a[123]\} stands for what has a \$\{\} itself"):
        read_yaml(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("\n".join(lines[:2]))
    with pytest.raises(GenkitError, match="the override 'b=.*stands for what has"):
        read_yaml(tmp_path / "r.yaml", ["b=${a1}"])


def test_a_reference_is_a_whole_path(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: {b: 1, c: '${.b}'}\n")
    with pytest.raises(GenkitError, match=r"is no \$\{section.key\}"):
        read_yaml(tmp_path / "r.yaml")


def test_aliases_that_grow_without_end_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(GenkitError, match="not a YAML recipe"):
        read_yaml(tmp_path / "r.yaml")


def test_a_plugin_that_a_recipe_names_is_not_run(tmp_path: Path, mark: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for name in ("mine", "mine.py", "./mine.py", str(tmp_path / "mine.py")):
        recipe = {**yaml.safe_load(RECIPE), "plugins": [name]}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        assert "--plugin FILE" in told(capsys, ["train", "r.yaml"])
        arms = yaml.safe_dump(
            {"data": recipe["data"], "plugins": [name], "arms": {"a": {"objective": "energy"}}}
        )
        (tmp_path / "c.yaml").write_text(arms)
        assert "--plugin FILE" in told(capsys, ["compare", "c.yaml"])
    assert not (tmp_path / "runs").exists()


RUNS_CODE = {
    "exec_module": {"genkit/registry.py"},  # a plug-in, behind its flag
    "exec": set(), "eval": set(), "compile": set(), "__import__": set(), "system": set(), "popen": set(),
    "loads": {"json"}, "Unpickler": set(), "extractall": set(), "unsafe_load": set(), "full_load": set(),
}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "tarfile", "yaml"}


def test_no_source_calls_what_runs_data() -> None:
    """Wherever genkit reads a file, it is not by a function that can run what is in it."""
    wrong = []
    for path in sorted((ROOT / "genkit").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                )
                wrong += [f"{where} imports {n}" for n in names if n.partition(".")[0] in MODULES]
            if not isinstance(node, ast.Call):
                continue
            words = ast.unparse(node.func).split(".")
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if words[-2:] == ["torch", "load"] and keywords.get("weights_only") != "True":
                wrong.append(f"{where} loads with pickle")
            of_numpy = words[-2:] in (["numpy", "load"], ["np", "load"])
            if of_numpy and keywords.get("allow_pickle") != "False":
                wrong.append(f"{where} loads with pickle")
            if keywords.get("shell") == "True":
                wrong.append(f"{where} calls {'.'.join(words)}")
            if len(words) > 1 and words[-1] in ("eval", "compile"):  # a module's, a regular expression's
                continue
            allowed = RUNS_CODE.get(words[-1])
            if allowed is not None and not ({name, words[0]} & allowed):
                wrong.append(f"{where} calls {'.'.join(words)}")
    assert not wrong


# --- no other place -----------------------------------------------------------------------------------

NAMES = [
    "../x",
    "..",
    ".",
    "",
    "/tmp/x",
    "a/b",
    ".hidden",
    "a\nb",
    "a\x7fb",
    "\x1b[31m",
    " a",
    "a ",
    "./a",
    "a/",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    assert not free_name(name)
    recipe = yaml.safe_load(RECIPE)
    arms = {"data": recipe["data"], "arms": {name: {"objective": "flow_matching"}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(arms))
    with pytest.raises(GenkitError, match="cannot be the name of an arm"):
        Comparison.load(tmp_path / "r.yaml")
    if name:  # else it is the file's
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe, "name": name}))
        assert main(["train", str(tmp_path / "r.yaml")]) == 2


def test_a_teacher_elsewhere_is_read_and_nothing_else(run: Path, mark: Path, capsys) -> None:
    torch.save(Touch(mark), run / "model.safetensors")
    (run / "r.yaml").write_text(
        RECIPE.replace(
            "flow_matching", f"{{name: flow_matching, coupling: {{name: reflow, teacher: {run}/../run}}}}"
        )
    )
    assert "corrupt" in told(capsys, ["train", str(run / "r.yaml"), "--out", str(run.parent / "new")])
    (run / "r.yaml").write_text((run / "r.yaml").read_text().replace(str(run), "../../../nowhere"))
    assert "no such run folder" in told(
        capsys, ["train", str(run / "r.yaml"), "--out", str(run.parent / "new")]
    )
    assert not (run.parent / "new").exists()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", ".lock", "metrics.csv", "recipe.yaml"])
def test_a_link_out_of_a_run_folder_is_refused(name: str, run: Path, tmp_path: Path, capsys) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    unfinished(run)
    path = run / name
    folder = path.is_dir()
    shutil.rmtree(path) if folder else path.unlink()
    path.symlink_to(precious if folder else precious / "file")
    message = told(capsys, commands(run)[-1])
    assert f"{name} is a symbolic link out of the folder" in message or "is no recipe" in message
    assert {p.name: p.read_text() for p in precious.iterdir()} == {"file": "mine"}


def test_a_link_in_the_place_of_a_file_is_replaced(run: Path, tmp_path: Path) -> None:
    """Also one in the place of the file that is written first, whose name can be guessed."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("x.npy", f".x.npy.{os.getpid()}.tmp", ".x.npy.probe"):
        (run.parent / name).symlink_to(mine)
    assert main(commands(run)[0]) == 0
    assert mine.read_text() == "mine"
    assert not (run.parent / "x.npy").is_symlink()
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").symlink_to(mine)
    assert main(commands(run)[1]) == 0
    assert mine.read_text() == "mine"


def test_a_name_of_a_folder_commands_no_terminal(run: Path, capsys) -> None:
    named = run.rename(run.parent / "run\x1b]0;mine\x07")
    unfinished(named)
    (named / "evaluation.json").unlink(missing_ok=True)
    for argv in reversed(commands(named)):
        assert main(argv) == 0
    told = capsys.readouterr()
    assert r"run\x1b]0;mine\x07" in told.out
    assert r"run\x1b]0;mine\x07: " in told.err
    assert "\x1b]" not in told.out + told.err


def test_a_bar_commands_no_terminal() -> None:
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True)) as progress:
        Bars(progress, plain=False).message("\x1b]0;mine\x07", "\x1b]0;yours\x07")
    assert "mine" in screen.getvalue()
    assert "\x1b]" not in screen.getvalue()


def test_what_others_have_in_a_run_folder_stays(run: Path, tmp_path: Path) -> None:
    """Of temporaries only those of processes that are no more are removed, and of a link not what it leads to."""
    mine, ended, parent = tmp_path / "mine", 999_999_999, os.getppid()
    mine.mkdir()
    kept = [".notes.tmp", ".thesis.tmp/text", f".x.{parent}.tmp", "mine.12.tmp", f".x.{ended}.tmp.gz"]
    folders = itertools.product((".", "checkpoints", "snapshots", "figures"), (ended, os.getpid()))
    left = [*(f"{folder}/.x.{pid}.tmp" for folder, pid in folders), f".copy.{ended}.tmp/recipe.yaml"]
    for name in (*kept, *left):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (mine / "file").write_text("mine")
    (run / f".link.{ended}.tmp").symlink_to(run / "checkpoints")
    (run / "checkpoints" / f".link.{ended}.tmp").symlink_to(mine)
    with locked(run):
        assert {name for name in kept if (run / name).read_text() == "mine"} == set(kept)
        assert not [path for path in run.rglob(f"*.{ended}.tmp") if path.is_symlink()]
        assert not [name for name in left if (run / name).exists()]
    assert (mine / "file").read_text() == "mine"


def test_a_link_out_of_a_comparison_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "r.yaml").write_text(f"data: {POINTS}\narms: {{a: {{objective: flow_matching}}}}\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").mkdir()
    for name in ("a", "figures", "stale"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
        argv = ["compare", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
        assert "is a symbolic link out of the folder" in told(capsys, argv)
        (tmp_path / "out" / name).unlink()
    assert not list((tmp_path / "precious").iterdir())


# --- no more than the machine has ---------------------------------------------------------------------


def header(content: dict[str, Any], size: int = 0) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def test_sizes_that_a_file_declares_take_no_memory(run: Path, tmp_path: Path, capsys) -> None:
    weights = run / "model.safetensors"
    huge = {"x": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    wrapped = {"x": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}
    for content in (header(huge), header(wrapped), struct.pack("<Q", 2**62), struct.pack("<Q", 2**27)):
        weights.write_bytes(content)
        assert "model.safetensors is corrupt" in told(capsys, commands(run)[0])


def test_layers_without_weights_are_not_built(run: Path, capsys, monkeypatch) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("depth: 1\n", "depth: 100\n"))
    monkeypatch.setattr("genkit.backbone.transformer.Layer", lambda options: pytest.fail("it was built"))
    assert "it has no weights of 100 layers" in told(capsys, commands(run)[0])


def test_data_that_weights_declare_take_no_memory(run: Path, capsys) -> None:
    weights = run / "model.safetensors"
    with safetensors.safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["genkit"])
    state = safetensors.torch.load_file(weights)
    for change in (
        {"shape": [2**40]},
        {"shape": [-1]},
        {"shape": ["a"]},
        {"shape": []},
        {"shape": None},
        {"shape": [2**20, 2**20, 2**20]},
        {"classes": 2**50},
        {"classes": "x"},
        {"modalities": [1]},
        {"evil": 1},
    ):
        plain = {**about, "spec": {**about["spec"], **change}}
        safetensors.torch.save_file(state, weights, metadata={"genkit": json.dumps(plain)})
        assert "model.safetensors" in told(capsys, commands(run)[0])


@pytest.mark.parametrize(
    "override",
    ["model.width=4611686018427387904", "model.mlp_ratio=1e16", "data.n_train=4611686018427387904"],
)
def test_sizes_that_no_machine_has(override: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    argv = ["train", str(tmp_path / "r.yaml"), override, "--out", str(tmp_path / "run")]
    assert "larger than this machine has memory for" in told(capsys, argv)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3, "is damaged"),
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", "is no idx file"),
        (b"\0\0\x08\0x", "is no idx file"),
        (b"\0\0\x08", "is no idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "is no idx file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\2abc"), "is damaged"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\2ab")[:-12], "cannot be read"),
        (b"", "is no idx file"),
    ],
    ids=range(8),
)
def test_idx_files_hold_what_they_declare(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(GenkitError, match=f"x {words}"):
        read_idx(tmp_path / "x")


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("genkit.data.fashion_mnist.LARGEST", 2**16)
    packed = zlib.compressobj(wbits=31)
    (tmp_path / "x").write_bytes(packed.compress(bytes(2**24)) + packed.flush())
    with pytest.raises(GenkitError, match="more than the 65536 bytes"):
        read_idx(tmp_path / "x")


def test_images_without_rows(tmp_path: Path) -> None:
    for stem, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
        head = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape)
        for part in ("train", "t10k"):
            (tmp_path / f"{part}-{stem}-ubyte").write_bytes(head)
    with pytest.raises(GenkitError, match="train-images-idx3-ubyte holds no values"):
        FashionMNIST(str(tmp_path)).split("train")


def test_a_picture_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    picture = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    (tmp_path / "x.png").write_bytes(picture)
    with pytest.raises(GenkitError, match=r"x.png: it is no picture"):
        read_picture(str(tmp_path / "x.png"))


def test_text_from_a_device_has_no_end(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        (tmp_path / "r.yaml").write_text(RECIPE.replace(POINTS, f"{{name: pydoc, file: {path}}}"))
        assert "but a device or a pipe" in told(capsys, ["train", str(tmp_path / "r.yaml")])


def test_a_pipe_in_a_run_is_not_waited_for(tmp_path: Path) -> None:
    pipe, kept = tmp_path / "pipe", tmp_path / "evaluation.json"
    os.mkfifo(pipe)
    kept.write_text('{"key": "1", "hash": "", "result": null}')
    for read in (read_checkpoint, read_rows):
        with pytest.raises(
            GenkitError, match=f"{pipe} cannot be read.*it is no file, but a device or a pipe"
        ):
            read(pipe)
    assert kept_evaluation(pipe, pipe, "1") is kept_evaluation(kept, pipe, "1") is None


# --- damage -------------------------------------------------------------------------------------------


def damages(content: bytes, draws: random.Random, count: int) -> list[bytes]:
    """Truncated files, and files with a bit flipped."""
    cut = [content[: draws.randrange(len(content))] for _ in range(count // 4)]
    places = [draws.randrange(len(content)) for _ in range(count - len(cut))]
    return cut + [
        content[:i] + bytes([content[i] ^ 1 << draws.randrange(8)]) + content[i + 1 :] for i in places
    ]


def refusal(read: Callable[[], Any]) -> str | None:
    """The message with which a file is refused; None where it is read."""
    try:
        read()
    except GenkitError as error:
        return str(error)
    return None


def test_damage_to_a_checkpoint_never_passes_for_another_content(run: Path) -> None:
    """Each flipped bit is refused, or was in a byte that means nothing."""
    path = run / "checkpoints/last.ckpt"
    content, before = path.read_bytes(), read_checkpoint(path)["state_dict"]
    before = {key: value.clone() for key, value in before.items()}
    refused = 0
    for damaged in damages(content, random.Random(0), 60):
        path.write_bytes(damaged)
        if message := refusal(lambda: read_checkpoint(path)):
            assert "cannot be read as a checkpoint" in message
            assert "\n" not in message
            refused += 1
        else:
            after = read_checkpoint(path)["state_dict"]
            assert all(torch.equal(before[key], after[key]) for key in before)
    assert refused > 30


@pytest.mark.parametrize(
    ("name", "count"),
    [("model.safetensors", 24), ("recipe.yaml", 24), ("environment.json", 12), ("evaluation.json", 8)],
)
def test_a_damaged_run_is_named_or_whole(name: str, count: int, run: Path, capsys) -> None:
    content = (run / name).read_bytes()
    _, evaluate, _ = commands(run)
    assert main(evaluate) == 0

    def figures() -> list[list[str]]:
        return [line.split() for line in capsys.readouterr().out.splitlines() if "seconds" not in line]

    expected = figures()
    for damaged in damages(content, random.Random(0), count):
        (run / name).write_bytes(damaged)
        if name == "evaluation.json":  # measured again
            assert main(evaluate) == 0
            assert figures() == expected
            continue
        assert str(run) in (refusal(lambda: load(run)) or str(run))


@pytest.mark.parametrize("points", [None, 1, [1], [{}], [{"nfe": 1, "sliced_wasserstein": "x"}]])
def test_figures_that_evaluation_does_not_write_are_not_kept(points: Any, run: Path) -> None:
    """Also where their hash is right."""
    assert main(commands(run)[1]) == 0
    path = run / "evaluation.json"
    kept = json.loads(path.read_text())
    assert kept_evaluation(path, run / "samples.safetensors", kept["key"]) == kept["result"]
    kept["result"]["points"] = points
    path.write_text(json.dumps({**kept, "hash": result_hash(kept["result"])}))
    assert kept_evaluation(path, run / "samples.safetensors", kept["key"]) is None


def test_a_sound_of_too_many_bits(tmp_path: Path) -> None:
    write_wav(tmp_path / "x", torch.zeros(40), 8000)
    content = bytearray((tmp_path / "x").read_bytes())
    content[32:36] = struct.pack("<HH", 5, 40)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(GenkitError, match="plain PCM .40 bits"):
        read_wav(tmp_path / "x", 8000)


def test_damaged_data_files_are_named(tmp_path: Path) -> None:
    write_wav(tmp_path / "a", torch.zeros(32), 8000)
    (tmp_path / "b").write_bytes(gzip.compress(b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef"))
    draws = random.Random(0)
    file = tmp_path / "x"
    for name, read in (("a", lambda: read_wav(file, 8000)), ("b", lambda: read_idx(file))):
        for damaged in damages((tmp_path / name).read_bytes(), draws, 100):
            file.write_bytes(damaged)
            assert str(file) in (refusal(read) or str(file))
