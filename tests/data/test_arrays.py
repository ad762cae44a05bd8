"""Rows of one's own: what a file of arrays or a table becomes, and what is said of one that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from genkit.__main__ import main
from genkit.data.base import DATASETS
from genkit.errors import GenkitError
from genkit.testing import check

N = 20


def saved(folder: Path, form: str, **arrays: Any) -> Path:
    path = folder / f"rows.{form}"
    if form == "npz":
        numpy.savez(path, **arrays)
    elif form == "npy":
        numpy.save(path, arrays["x"])
    elif form == "safetensors":
        save_file({key: numpy.ascontiguousarray(value) for key, value in arrays.items()}, path)
    else:
        names = [*(f"c{i}" for i in range(arrays["x"].shape[1])), *(["y"] if "y" in arrays else [])]
        columns = [*arrays["x"].T, *([arrays["y"]] if "y" in arrays else [])]
        lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def vectors(*shape: int) -> Any:
    return numpy.random.default_rng(0).normal(size=shape or (N, 3)).astype(numpy.float32)


def joined(data: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All rows, those to train on first."""
    parts = [data.split(name) for name in ("train", "test")]
    y = None if parts[0].y is None else torch.cat([part.y for part in parts])
    return torch.cat([part.x for part in parts]), y


def same_rows(x: torch.Tensor, expected: Any) -> bool:
    rows, wanted = (torch.as_tensor(values).reshape(len(values), -1).double() for values in (x, expected))
    return bool((torch.cdist(rows, wanted) < 1e-6).any(1).all()) and len(rows) == len(wanted)


@pytest.mark.parametrize("form", ["csv", "npy", "npz", "safetensors"])
def test_each_form_gives_the_rows_of_the_file(form: str, tmp_path: Path) -> None:
    x, y = vectors(), numpy.arange(N) % 3
    file = str(saved(tmp_path, form, x=x, y=y))
    data = DATASETS.build({"name": "arrays", "file": file})
    rows, classes = joined(data)
    assert (len(data.train), len(data.test), data.spec.shape, data.spec.levels) == (16, 4, (3,), None)
    assert same_rows(rows, x)
    if form == "npy":
        assert data.spec.classes is classes is None
    else:
        assert (data.spec.classes, data.spec.class_names) == (3, ("0", "1", "2"))
        assert same_rows(torch.cat((rows, classes[:, None]), 1), numpy.c_[x, y])  # each with its own class
    assert DATASETS.build({"name": "arrays", "file": file, "y": None}).spec.classes is None
    assert check("dataset", "arrays", file=file)


def test_words_are_classes_in_the_order_of_the_alphabet(tmp_path: Path) -> None:
    file = saved(tmp_path, "csv", x=vectors(), y=numpy.array(["pear", "apple"] * (N // 2)))
    data = DATASETS.build({"name": "arrays", "file": str(file)})
    assert data.spec.class_names == ("apple", "pear")
    assert joined(data)[1].unique(return_counts=True)[1].tolist() == [10, 10]


def test_real_numbers_are_conditions(tmp_path: Path) -> None:
    x = vectors()
    data = DATASETS.build(
        {"name": "arrays", "file": str(saved(tmp_path, "npz", x=x, angle=x[:, 0])), "y": "angle"}
    )
    rows, y = joined(data)
    assert data.spec.condition == 1
    assert torch.equal(rows[:, :1], y)


def test_images_of_bytes_have_levels_and_others_are_real(tmp_path: Path) -> None:
    pixels = (vectors(N, 1, 4, 4) * 50 + 128).astype(numpy.uint8)
    file = saved(tmp_path, "npz", x=pixels)
    data = DATASETS.build({"name": "arrays", "file": str(file)})
    assert (data.spec.shape, data.spec.levels, data.spec.image) == ((1, 4, 4), 256, True)
    assert same_rows(joined(data)[0], pixels)
    few = DATASETS.build({"name": "arrays", "file": str(saved(tmp_path, "npy", x=pixels // 64)), "levels": 4})
    assert few.spec.levels == 4
    real = DATASETS.build({"name": "arrays", "file": str(saved(tmp_path, "npz", x=vectors(N, 2, 4, 4)))})
    assert real.spec.levels is None


@pytest.mark.parametrize("shape", [(N, 3), (N, 5, 3), (N, 3, 4, 4)])
def test_columns_coordinates_and_channels_are_standardized(shape: tuple[int, ...], tmp_path: Path) -> None:
    scale = numpy.array([1, 10, 100]).reshape((3, 1, 1) if len(shape) == 4 else (3,))
    file = str(saved(tmp_path, "npy", x=(vectors(*shape) + 3) * scale))
    data = DATASETS.build({"name": "arrays", "file": file, "standardize": True})
    x = data.train.x.movedim(1, -1) if len(shape) == 4 else data.train.x
    std, mean = torch.std_mean(x.reshape(-1, 3), 0, correction=0)
    assert torch.allclose(std, torch.ones(3), atol=1e-5)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5)
    with pytest.warns(UserWarning, match=r"rows.npy are of size 1\d\d, and models expect about 1"):
        raw = DATASETS.build({"name": "arrays", "file": file}).train.x
    assert float(raw.std()) > 20


def test_what_is_held_out_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    train, test = vectors(), vectors(6, 3) + 1
    files = [str(saved(tmp_path / place, "npy", x=x)) for place, x in ((".", train), ("other", test))]
    data = DATASETS.build({"name": "arrays", "file": files[0], "test": files[1]})
    assert torch.equal(data.train.x, torch.from_numpy(train))
    assert torch.equal(data.test.x, torch.from_numpy(test))


def test_other_rows_are_other_data(tmp_path: Path) -> None:
    x = vectors()
    before = DATASETS.build({"name": "arrays", "file": str(saved(tmp_path, "npy", x=x))}).hash
    x[0, 0] += 1
    assert DATASETS.build({"name": "arrays", "file": str(saved(tmp_path, "npy", x=x))}).hash != before


def test_real_valued_images_are_shown_from_black_to_white(tmp_path: Path) -> None:
    x = numpy.linspace(-2, 2, N * 2 * 4).reshape(N, 2, 2, 2).astype(numpy.float32)
    shown = DATASETS.build({"name": "arrays", "file": str(saved(tmp_path, "npy", x=x))}).show(
        torch.from_numpy(x)
    )
    assert shown.images is not None
    assert shown.images.shape == (N, 1, 2, 2)
    assert (int(shown.images.min()), int(shown.images.max()), shown.levels) == (0, 255, 256)
    assert shown.images[10, 0, 0, 0] == round(127.5 * (1 + float(x[10, 0, 0, 0])))


def test_a_table_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path, "csv", x=vectors(), y=numpy.array(["pear", "apple"] * (N // 2)))
    Path("r.yaml").write_text(
        f"data: {{name: arrays, file: {file.name}}}\nobjective: {{name: normalizing_flow, spans: 1}}\n"
        "model: {width: 8, depth: 1, heads: 1}\ntraining: {steps: 2, batch_size: 4}\ntrainer: {accelerator: cpu}\n"
    )
    assert main(["train", "r.yaml", "--out", "run"]) == 0
    assert main(["sample", "run", "-n", "3", "--class", "1"]) == 0
    assert numpy.load("samples.npy").shape == (3, 3)
    assert main(["sample", "run", "--out", "x.png"]) == 2
    assert "samples of 'rows' are no pictures: write .npy or .safetensors" in capsys.readouterr().err
    file.write_text("c0,c1,c2,y\n1,2,3\n")  # data that this process has seen otherwise
    assert main(["train", "r.yaml", "--out", "other"]) == 2
    assert "line 2 has no value in the column 'y'" in capsys.readouterr().err


WRONG: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "another name": ("npz", {"x": vectors(), "labels": 0}, {"y": "label"}, "did you mean 'labels'"),
    "no x": ("npz", {"X": vectors()}, {}, r"no array 'x' \(one of: X\)"),
    "a gap": ("npz", {"x": vectors(), "y": numpy.arange(N) + 1}, {}, "classes go from 0 on without gaps"),
    "fewer labels": ("npz", {"x": vectors(), "y": numpy.arange(3)}, {}, "x has 20 rows, and y 3"),
    "a hole": ("npy", {"x": numpy.where(vectors() > 1, numpy.nan, 0.0)}, {}, "row 2 of x has a value"),
    "words two by two": ("npz", {"x": vectors(), "y": numpy.full((N, 2), "a")}, {}, "classes are"),
    "complex": ("npz", {"x": vectors(), "y": vectors(N) * 1j}, {}, "y is complex"),
    "nothing": ("npy", {"x": vectors(N, 0)}, {}, "rows are numbers"),
    "words": ("npy", {"x": numpy.array([["a"]])}, {}, "rows are numbers"),
    "flat": ("npy", {"x": vectors(N)}, {}, r"x is float32 of shape \(20,\)"),
    "channels last": ("npy", {"x": vectors(N, 8, 6, 3)}, {}, "channels come first"),
    "levels": ("npy", {"x": numpy.arange(N).reshape(-1, 1)}, {"levels": 7}, "from 0 to 6; x is int64, 0 to 19"),
    "real levels": ("npy", {"x": vectors()}, {"levels": 7}, "levels are whole numbers"),
    "constant": ("npy", {"x": numpy.ones((N, 2))}, {"standardize": True}, "column 0 has one value only"),
    "pickles": ("npy", {"x": numpy.array([[object()]])}, {}, "Object arrays cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "arrays", "options", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(
    form: str, arrays: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, form, **arrays)
    with pytest.raises(GenkitError, match=f"rows.{form}: .*{message}"):
        DATASETS.build({"name": "arrays", "file": str(file), **options}).spec


def test_what_is_likely_to_be_y_is_told_of(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("a,Label\n" + "\n".join(f"{i % 3}.5,{i % 2}" for i in range(N)) + "\n")
    for file in (table, saved(tmp_path, "npz", x=vectors(), labels=numpy.arange(N) % 3)):
        name = "Label" if file == table else "labels"
        assert DATASETS.build({"name": "arrays", "file": str(file), "y": name}).spec.classes
        assert DATASETS.build({"name": "arrays", "file": str(file), "y": None}).spec.classes is None
        assert not recwarn.list
        with pytest.warns(UserWarning, match=f"y={name} says that it goes with each row"):
            assert DATASETS.build({"name": "arrays", "file": str(file)}).spec.classes is None
        recwarn.clear()


def test_latents_of_few_pixels_are_images(tmp_path: Path) -> None:
    file = saved(tmp_path, "npy", x=vectors(N, 16, 4, 4))
    assert DATASETS.build({"name": "arrays", "file": str(file)}).spec.shape == (16, 4, 4)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for content, name, message in (
        ("c0,c1\n1,x\n", "a.csv", "the column 'c1' is not of numbers: leave it out, or name it as y"),
        ("c0,c1\n1,2\n3,\n", "b.csv", "line 3 has no value in the column 'c1'"),
        ("", "c.csv", "it cannot be read"),
        (",a\n0,2\n1,3\n", "h.csv", "a column has no name: write the table without its index"),
        ("0.5,2.5\n1,2\n", "g.csv", "the first line of a table has the names"),
        ("no arrays", "d.npz", "it cannot be read"),
        ("no arrays", "e.safetensors", "it cannot be read"),
        ("1 2 3", "f.txt", "no form of a file of arrays, '.txt'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(GenkitError, match=f"{name}: {message}"):
            DATASETS.build({"name": "arrays", "file": str(tmp_path / name)}).spec
    with pytest.raises(GenkitError, match=r"rows.npy is missing: there is no folder"):
        DATASETS.build({"name": "arrays", "file": str(tmp_path / "no" / "rows.npy")}).spec
