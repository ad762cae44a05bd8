"""Image data through `datasets`, from local parquet and image folders; nothing is fetched."""

import datasets
import numpy
import pytest
import torch
from PIL import Image

from genkit.data import DATASETS
from genkit.errors import GenkitError

LABELS = {"train": [0, 1, 2, 0, 1, 2, 0], "test": [2, 1, 0]}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def pixels(part, shape=(6, 6, 3)):
    draw = numpy.random.default_rng(len(part))
    return [draw.integers(0, 256, shape, dtype=numpy.uint8) for _ in LABELS[part]]


@pytest.fixture
def parquet(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "owl"]),
            "number": datasets.Value("int64"),
            "text": datasets.Value("string"),
        }
    )
    folder = tmp_path / "animals"
    folder.mkdir()
    for part, labels in LABELS.items():
        columns = {
            "image": [Image.fromarray(p) for p in pixels(part)],
            "label": labels,
            "number": labels,
            "text": [str(label) for label in labels],
        }
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{part}-0.parquet")
    return str(folder)


def expected(part):
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pixels(part)]).long()


@pytest.mark.parametrize("memory", [0, 2**20])
def test_parquet_comes_back_pixel_for_pixel(parquet, memory):
    data = DATASETS.build("hub", path=parquet, memory=memory)
    assert data.spec.shape == (3, 6, 6)
    assert data.spec.levels == 256
    assert data.spec.class_names == ("cat", "dog", "owl")
    for part, labels in LABELS.items():
        split = data.split(part)
        index = torch.tensor([2, 0, 2])
        x, y = split.to("cpu").take(index)
        assert x.dtype == torch.int64
        assert torch.equal(x, expected(part)[index])
        assert y.tolist() == [labels[i] for i in index.tolist()]
        assert len(split) == len(labels)
    again = DATASETS.build("hub", path=parquet, memory=memory)
    assert data.hash == again.hash
    other = DATASETS.build("hub", path=parquet, memory=memory, label=None)
    assert other.hash != data.hash


def test_grey_resized_and_limited(parquet):
    data = DATASETS.build("hub", path=parquet, channels=1, size=4, limit=2, label=None)
    assert data.spec.shape == (1, 4, 4)
    assert data.spec.classes is None
    assert (len(data.train), len(data.test)) == (2, 2)
    x, y = data.train.take(torch.arange(2))
    assert y is None
    grey = [Image.fromarray(p).convert("L").resize((4, 4), Image.Resampling.LANCZOS) for p in pixels("train")]
    known = {numpy.asarray(image).tobytes() for image in grey}
    assert {numpy.uint8(image.numpy()).tobytes() for image in x} < known


def test_a_wide_image_is_cropped_about_its_centre(tmp_path):
    wide = numpy.zeros((4, 12, 3), dtype=numpy.uint8)
    wide[:, 4:8] = 200
    for part in ("train", "test"):
        (tmp_path / "w" / part).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / "w" / part / "a.png")
    data = DATASETS.build("hub", path=str(tmp_path / "w"), size=4, label=None)
    assert torch.equal(data.train.take(torch.tensor([0]))[0], torch.full((1, 3, 4, 4), 200))


def test_an_image_folder_has_its_folders_as_classes(tmp_path):
    for part, labels in LABELS.items():
        for i, (values, label) in enumerate(zip(pixels(part), labels, strict=True)):
            folder = tmp_path / "folder" / part / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / f"{i}.png")
    data = DATASETS.build("hub", path=str(tmp_path / "folder"))
    assert data.spec.class_names == ("a", "b", "c")
    x, y = data.train.take(torch.arange(7))
    order = sorted(range(7), key=lambda i: (LABELS["train"][i], i))
    assert torch.equal(x, expected("train")[order])
    assert y.tolist() == sorted(LABELS["train"])


def test_whole_numbers_serve_as_classes_and_slices_as_splits(parquet):
    data = DATASETS.build("hub", path=parquet, label="number", train="train[:5]", test="train[5:]")
    assert data.spec.classes == 3
    assert data.train.take(torch.arange(5))[1].tolist() == LABELS["train"][:5]
    assert torch.equal(data.test.take(torch.arange(2))[0], expected("train")[5:])


@pytest.fixture
def in_order(tmp_path):
    """A folder of images in one part, 40 of each of three classes one after the other."""
    for i in range(120):
        folder = tmp_path / "in_order" / "abc"[i // 40]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (i, 0, 0)).save(folder / f"{i:03d}.png")
    return str(tmp_path / "in_order")


def test_one_row_of_five_is_held_out_where_there_is_no_test_part(in_order):
    data = DATASETS.build("hub", path=in_order)
    rows = {name: data.split(name).take(torch.arange(n)) for name, n in (("train", 96), ("test", 24))}
    assert (len(data.train), len(data.test)) == (96, 24)
    seen = torch.cat([x[:, 0, 0, 0] for x, _ in rows.values()])
    assert seen.sort().values.tolist() == [*range(120)]
    for x, y in rows.values():
        assert torch.equal(y, x[:, 0, 0, 0] // 40)
        assert y.unique().tolist() == [0, 1, 2]


def test_a_test_part_without_a_class_is_refused(in_order):
    data = DATASETS.build("hub", path=in_order, train="train[:80%]", test="train[80%:]")
    with pytest.raises(GenkitError, match=r"'train\[80%:\]' .* has no row of class 'a', .* without `test`"):
        data.split("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "images"}, "no column in .* 'images'; did you mean 'image'"),
        ({"label": "labels"}, "did you mean 'label'.*label null"),
        ({"label": "text"}, "column 'text' .* no class numbers"),
        ({"image": "number"}, "column 'number' .* no images"),
        ({"config": "nope"}, "cannot be read.*nope"),
        ({"test": "tests"}, "no split of .* 'tests'; did you mean 'test'"),
        ({"test": "validation[:5]"}, r"no split of .* 'validation\[:5\]'.*one of: test, train"),
        ({"test": "train[7:]"}, r"cannot be read.*train\[7:\].* corresponds to no data"),
    ],
)
def test_what_is_not_in_the_data_names_what_is(parquet, options, message):
    with pytest.raises(GenkitError, match=message):
        DATASETS.build("hub", path=parquet, **options).split("test")


def test_options_out_of_range_are_refused():
    for options, message in (
        ({"size": 0}, "size must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"memory": -1}, "memory must be at least 0"),
        ({"channels": 2}, "channels must be"),
        ({"pathh": "x"}, "did you mean 'path'"),
    ):
        with pytest.raises(GenkitError, match=message):
            DATASETS.build("hub", **{"path": "x", **options})


def test_labels_of_the_test_part_must_be_known(tmp_path):
    (tmp_path / "odd").mkdir()
    for part, labels in (("train", [0, 1]), ("test", [0, None])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        images = [Image.fromarray(p) for p in pixels(part)[:2]]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(tmp_path / "odd" / f"{part}.parquet")
    data = DATASETS.build("hub", path=str(tmp_path / "odd"))
    assert len(data.train) == 2
    with pytest.raises(GenkitError, match=r"split 'test' of .* labels -1..0, not 0..1"):
        data.split("test")


def test_images_of_several_sizes_need_a_size(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "sizes" / part).mkdir(parents=True)
        for size in (8, 9):
            Image.new("RGB", (size, size)).save(tmp_path / "sizes" / part / f"{size}.png")
    with pytest.raises(GenkitError, match=r"several sizes \(9x9 beside 8x8\): give size=8"):
        DATASETS.build("hub", path=str(tmp_path / "sizes"), label=None).split("train")
    assert len(DATASETS.build("hub", path=str(tmp_path / "sizes"), label=None, size=8).train) == 2


def test_damaged_data_are_named(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "bad" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "bad" / part / "a.png")
        (tmp_path / "bad" / part / "b.png").write_bytes(b"no image")
    with pytest.raises(GenkitError, match=r"column 'image' has a damaged image in rows 0..1"):
        DATASETS.build("hub", path=str(tmp_path / "bad"), label=None).split("train")
    (tmp_path / "worse").mkdir()
    for part in ("train", "test"):
        (tmp_path / "worse" / f"{part}.parquet").write_bytes(b"no parquet")
    with pytest.raises(GenkitError, match="worse' cannot be read"):
        DATASETS.build("hub", path=str(tmp_path / "worse")).split("train")


def test_a_missing_image_names_its_row(tmp_path):
    (tmp_path / "gap").mkdir()
    for part in ("train", "test"):
        features = datasets.Features({"image": datasets.Image()})
        images = [Image.fromarray(pixels("train")[0]), None]
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(
            tmp_path / "gap" / f"{part}.parquet"
        )
    with pytest.raises(GenkitError, match="column 'image' has no image in row 1"):
        DATASETS.build("hub", path=str(tmp_path / "gap"), label=None).split("train")


def test_data_that_are_nowhere(tmp_path):
    for path in ("nobody/nothing", str(tmp_path / "none")):
        with pytest.raises(GenkitError, match=rf"data set '{path}' is neither a folder here nor .* hub"):
            DATASETS.build("hub", path=path).split("train")


def test_a_hub_that_is_not_reached_is_asked_once(monkeypatch):
    asked = []

    def unreached(*args, **kwargs):
        asked.append(args)
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreached)
    with pytest.raises(GenkitError, match="is neither a folder here nor .*no network"):
        DATASETS.build("hub", path="nobody/nothing").split("train")
    assert len(asked) == 1
