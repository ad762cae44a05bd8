"""Three modalities as rows of one vocabulary: layouts, prompts, shares, and what a model may answer."""

from __future__ import annotations

import dataclasses
import json
import wave

import pytest
import torch
from PIL import Image

from genkit.__main__ import main
from genkit.data import DATASETS
from genkit.data.audio import write_wav
from genkit.data.base import Codec, Dataset
from genkit.data.digits import Digits
from genkit.data.sound import WORDS
from genkit.data.trimodal import PAIRS, sides
from genkit.errors import GenkitError
from genkit.objectives import OBJECTIVES
from genkit.randomness import keyed_generator
from genkit.recipe import Recipe, Run, load, train
from genkit.types import Batch, DataSpec
from tests.objectives.models import model_options, randomize

TONES = {"name": "tones", "n_train": 60, "n_test": 24}
FRAMES, CODES = 8, 20


def codec(**changes) -> Codec:
    """The mean of each frame's loudness, in `CODES` steps; it comes back as a constant."""
    fields = {
        "spec": DATASETS.build("tones").spec,
        "size": CODES,
        "frames": FRAMES,
        "hash": "of the weights",
        "encode": lambda x: (x.view(len(x), FRAMES, -1).abs().mean(2) * (CODES - 1)).round().long(),
        "decode": lambda codes: (codes / (CODES - 1)).repeat_interleave(256 // FRAMES, 1),
    }
    return Codec(**fields | changes)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return DATASETS.build("trimodal", codec=codec(), sounds=TONES)


@pytest.fixture(scope="module")
def silent() -> Dataset:
    """Without sound."""
    return DATASETS.build("trimodal")


def everything(data: Dataset, part: str) -> torch.Tensor:
    split = data.split(part)
    return split.take(torch.arange(len(split)))[0]


def of_task(data: Dataset, part: str, task: str) -> torch.Tensor:
    x = everything(data, part)
    return x[x[:, 0] == data.symbol(task)]


def kind_of(data: Dataset, symbol: int) -> str:
    found = [m.name for m in data.spec.modalities if m.first <= symbol < m.stop]
    return found[0] if found else "layout"


# --- rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*PAIRS, "text"])
def test_a_row_is_laid_out_as_its_task_says(data, task):
    spec, (asked, answered) = data.spec, sides(task)
    marks = {m.name: m.mark for m in spec.modalities}
    sizes = {"image": 64, "sound": FRAMES, "text": 5}
    for row in of_task(data, "test", task)[::7]:
        kinds = [kind_of(data, symbol) for symbol in row.tolist()]
        before = ["layout"] if not asked else ["layout", "layout", *[asked] * sizes[asked]]
        count = spec.shape[0] - 3 if not asked else sizes[answered]
        expected = [*before, "layout", "layout", *[answered] * count]
        assert kinds == expected + ["layout"] * (len(kinds) - len(expected))
        assert row[0] == data.symbol(task)
        assert row[len(before)] == spec.answer
        assert row[len(before) + 1] == marks[answered]
        assert not asked or row[1] == marks[asked]
        assert row[len(expected) :].unique().numel() <= 1  # padding


def test_specials_are_fixed_and_part_no_modality(data):
    spec = data.spec
    assert [m.name for m in spec.modalities] == ["text", "image", "sound"]
    assert [m.stop - m.first for m in spec.modalities] == [96, 17, CODES]
    assert spec.fixed == tuple(range(96 + 17 + CODES, spec.levels))
    assert {spec.answer, *(m.mark for m in spec.modalities), *map(data.symbol, data.tasks)} < set(spec.fixed)
    assert spec.rate == 4000
    assert not spec.text
    again = DataSpec.of(json.loads(json.dumps(dataclasses.asdict(spec))))
    assert again == spec
    assert again.modalities[1].mark == spec.modalities[1].mark


def test_rows_hold_the_images_sounds_and_names_of_their_sources(data):
    for kind, names in (("image", WORDS), ("sound", tuple(DATASETS.build(TONES).spec.class_names))):
        source = data.sources[kind].test
        x, y = source.take(torch.arange(len(source)))
        words = [names[i] for i in y.tolist()]
        there, asked_for = of_task(data, "test", f"text-to-{kind}"), of_task(data, "test", f"{kind}-to-text")
        shown, read = data.pairs(there, f"text-to-{kind}")
        assert read == words
        if kind == "image":
            assert torch.equal(shown.images, x)
            assert (shown.levels, shown.texts, shown.sounds) == (17, None, None)
        else:
            assert torch.equal(shown.sounds, data.codec.decode(data.codec.encode(x)))
            assert (shown.images, shown.texts) == (None, None)
        assert data.show(asked_for).texts == data.pairs(asked_for, f"{kind}-to-text")[1] == words
        assert torch.equal(data.contents(asked_for, f"{kind}-to-text", kind), data.encode(kind, x))


def test_the_layout_does_not_give_the_name_away(data):
    """Names are of unlike length, and their rows have the same fixed symbols at the same places."""
    for kind in ("image", "sound"):
        rows = of_task(data, "train", f"{kind}-to-text")
        fixed = rows >= min(data.spec.fixed)
        assert bool((fixed == fixed[0]).all())
        assert bool((rows[fixed].view(len(rows), -1) == rows[0][fixed[0]]).all())


def test_text_is_that_of_pydoc(silent):
    source = DATASETS.build("pydoc", length=70)
    rows = of_task(silent, "test", "text")
    shown = silent.show(rows)
    expected = source.show(everything(source, "test")).texts
    assert shown.texts == [text.rstrip(" ") for text in expected]
    assert shown.images is None


def test_mixed_rows_are_shown_each_form_in_order(data):
    x = torch.stack([of_task(data, "test", task)[i] for task in (*PAIRS, "text") for i in (0, 1)])
    x = x[torch.randperm(len(x), generator=keyed_generator(0))]
    shown = data.show(x)
    assert (len(shown.images), len(shown.texts), len(shown.sounds)) == (2, 6, 2)
    whole = [data.show(row[None]) for row in x]
    assert torch.equal(shown.images, torch.cat([s.images for s in whole if s.images is not None]))
    assert torch.equal(shown.sounds, torch.cat([s.sounds for s in whole if s.sounds is not None]))
    assert shown.texts == [text for s in whole for text in s.texts or []]
    with pytest.raises(GenkitError, match="begins with a task, not with symbol 3"):
        data.show(torch.full((1, *data.spec.shape), 3))


def test_no_test_row_is_a_train_row(data):
    train, test = ({tuple(row) for row in everything(data, part).tolist()} for part in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    "mix", [None, {"image": 1, "sound": 1, "text": 2}, {"sound": 0.5, "image": 2}, {"text": 3, "sound": 0}]
)
def test_shares_are_kept_and_no_row_is_left_out(mix):
    data = DATASETS.build("trimodal", codec=codec(), sounds=TONES, mix=mix)
    x = everything(data, "train")
    counts = dict.fromkeys(("image", "sound", "text"), 0)
    for task in data.tasks:
        kind = next((kind for kind in ("image", "sound") if kind in sides(task)), "text")
        counts[kind] += int((x[:, 0] == data.symbol(task)).sum())
    shares = mix or {"image": 1, "sound": 1, "text": 1}
    unit = sum(counts.values()) / sum(shares.values())
    for kind, count in counts.items():
        assert count == pytest.approx(shares.get(kind, 0) * unit, abs=2)
    for there, back in (PAIRS[:2], PAIRS[2:]):
        if there in data.tasks:
            assert len(of_task(data, "train", there)) == pytest.approx(
                len(of_task(data, "train", back)), abs=1
            )
    unique = {tuple(row) for row in x.tolist()}
    for kind in data.mix:
        assert {tuple(row) for row in data.rows(kind, "train").tolist()} <= unique
    assert len(everything(data, "test")) == sum(len(data.rows(kind, "test")) for kind in data.mix)


def test_without_a_codec_there_are_images_and_text(silent):
    assert silent.tasks == ("text-to-image", "image-to-text", "text")
    assert silent.spec.shape == (73,)
    assert silent.spec.rate is None
    assert silent.spec.class_names == WORDS


def test_the_hash_is_of_sources_mix_and_codec(data, silent):
    others = [
        DATASETS.build("trimodal", codec=codec(hash="of others"), sounds=TONES),
        DATASETS.build("trimodal", codec=codec(), sounds=TONES | {"seed": 1}),
        DATASETS.build("trimodal", codec=codec(), sounds=TONES, mix={"image": 2, "sound": 1, "text": 1}),
        silent,
    ]
    assert len({data.hash, *(other.hash for other in others)}) == 5
    assert data.hash == DATASETS.build("trimodal", codec=codec(), sounds=TONES).hash
    assert data.pairs(everything(data, "test")[:0], "text-to-sound")[0].sounds.shape == (0, 256)
    reordered = {"text": 1.0, "sound": 1.0, "image": 1.0}
    assert data.hash == DATASETS.build("trimodal", codec=codec(), sounds=TONES, mix=reordered).hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"images": 1}}, "no kind of rows for mix 'images'; did you mean 'image'"),
        ({"mix": {"image": -1}}, "mix.image must be a share from 0 up, not -1"),
        ({"mix": {"image": True}}, "mix.image must be a share"),
        ({"mix": {"image": 0}}, "the shares of mix are all 0"),
        ({"mix": {"sound": 1}}, "mix has sound, which needs a codec"),
        ({"codec": "runs/sound_codec"}, "codec runs/sound_codec is a run folder, which a recipe loads"),
        ({"codec": codec(), "sounds": "tonse"}, "did you mean 'tones'"),
        (
            {"codec": codec(), "sounds": {"name": "tones", "length": 128}},
            r"trained on 'tones'.*256.*\(128,\)",
        ),
        ({"codec": codec(spec=DATASETS.build("moons").spec), "sounds": "moons"}, "classes .*have no names"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(GenkitError, match=message):
        DATASETS.build("trimodal", **options)


# --- prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", PAIRS)
def test_a_prompt_is_a_test_row_without_its_answer(data, task):
    asked, answered = sides(task)
    for i in (0, 5):
        row = of_task(data, "test", task)[i]
        prompt = data.pairs(row[None], task)[1][0] if asked == "text" else f"test:{i}"
        given = data.given(prompt, task)
        free = given < 0
        assert free.sum() == {"image": 64, "sound": FRAMES, "text": 5}[answered]
        assert torch.equal(given[~free], row[~free])
        assert {kind_of(data, symbol) for symbol in row[free].tolist()} == {answered}


def test_names_are_numbers_and_capitals_too(data):
    seven = data.given("seven", "text-to-image")
    assert torch.equal(data.given(" 7", "text-to-image"), seven)
    assert torch.equal(data.given("Seven ", "text-to-image"), seven)
    assert torch.equal(data.given("c4", "text-to-sound"), data.given("0", "text-to-sound"))


def test_text_goes_on_and_is_filled_in(silent):
    source = DATASETS.build("pydoc", length=70)
    for prompt in ("def f", "[[20]] is None", ""):
        row = silent.given(prompt, "text")
        assert torch.equal(row[3:], source.given(prompt))
        assert torch.equal(row[:3], of_task(silent, "test", "text")[0, :3])


def test_a_picture_is_read_from_a_file(data, tmp_path):
    image = data.sources["image"].test.take(torch.tensor([4]))[0][0]
    pixels = (image[0] * (255 / 16)).round().to(torch.uint8)
    small = Image.fromarray(pixels.numpy())
    for name, picture in (("a.png", small), ("b.png", small.convert("RGB").resize((32, 32), 0))):
        picture.save(tmp_path / name)
        assert torch.equal(
            data.given(str(tmp_path / name), "image-to-text"), data.given("test:4", "image-to-text")
        )


def test_a_sound_is_read_from_a_file(data, tmp_path):
    sound = data.sources["sound"].test.take(torch.tensor([3]))[0][0]
    longer = torch.cat((sound, torch.zeros(500)))
    path = tmp_path / "a.wav"
    for x in (sound, longer):
        write_wav(path, x, 4000)
        assert torch.equal(data.given(str(path), "sound-to-text"), data.given("test:3", "sound-to-text"))
    write_wav(path, sound[:32], 4000)
    assert data.given(str(path), "sound-to-text")[3 : 2 + FRAMES].tolist() == [113] * (FRAMES - 1)  # silence


@pytest.mark.parametrize(
    ("prompt", "task", "message"),
    [
        ("seven", None, "several tasks: give one of text-to-image.*--task"),
        ("seven", "text-to-images", "no task 'text-to-images'; did you mean 'text-to-image'"),
        ("seventy", "text-to-image", "no name of an image 'seventy'; did you mean 'seven'"),
        ("10", "text-to-image", "no name of an image '10'"),
        ("", "text-to-sound", "no name of a sound ''"),
        ("", "image-to-text", "is a PNG file, or test:N"),
        ("test:360", "image-to-text", "has the images 0 to 359, not 360"),
        ("test:24", "sound-to-text", "has the sounds 0 to 23, not 24"),
        ("nowhere.png", "image-to-text", "cannot read the picture nowhere.png: No such file"),
        ("{here}/odd.png", "image-to-text", "odd.png is 12x8 pixels: a picture is 8x8"),
        ("{here}/fast.wav", "image-to-text", "fast.wav: it is no picture"),
        ("{here}/odd.png", "sound-to-text", "odd.png is not a WAV file"),
        ("{here}/fast.wav", "sound-to-text", "fast.wav has 8000 samples a second, not 4000"),
        ("{here}/long.wav", "sound-to-text", "long.wav has 0.13 s of sound, a row 0.06 s"),
        ("x" * 80, "text", "the prompt has 80 symbols, a row 70"),
        ("é", "text", "a character that the data do not know"),
    ],
)
def test_prompts_that_do_not_fit(data, tmp_path, prompt, task, message):
    Image.new("L", (12, 8)).save(tmp_path / "odd.png")
    write_wav(tmp_path / "fast.wav", torch.zeros(100), 8000)
    write_wav(tmp_path / "long.wav", torch.ones(512), 4000)
    with pytest.raises(GenkitError, match=message):
        data.given(prompt.format(here=tmp_path), task)


# --- models ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["masked_diffusion", "discrete_flow_matching"])
def model(request, data):
    torch.manual_seed(0)
    objective = OBJECTIVES.build(request.param, data.spec, model_options(width=16, depth=2))
    randomize(objective, 3.0)
    return objective.eval()


def test_masks_never_touch_prompt_or_layout(data, model):
    x = torch.cat([of_task(data, "test", task)[:6] for task in (*PAIRS, "text")])
    x_t, noisy = model.corrupt(x, torch.zeros(len(x)), generator=keyed_generator(0))
    for before, after, task in zip(
        x, x_t, [task for task in (*PAIRS, "text") for _ in range(6)], strict=True
    ):
        answered = sides(task)[1]
        masked = after == model.mask
        assert torch.equal(before[~masked], after[~masked])
        assert {kind_of(data, symbol) for symbol in before[masked].tolist()} == {answered}
        assert masked.sum() == (data.contents(before[None], task, answered).numel())
    assert torch.equal(noisy, x_t == model.mask)


def test_dropped_prompts_are_masked_and_the_layout_stays(data, model):
    x = of_task(data, "test", "image-to-text")[:4]
    model.label_dropout, kept = 1.0, model.label_dropout
    dropped = model.drop_prompt(x, x, generator=keyed_generator(0))
    model.label_dropout = kept
    assert bool((data.contents(dropped, "image-to-text", "image") == model.mask - 96).all())
    changed = dropped != x
    assert changed.sum(1).tolist() == [64] * 4
    loss = model.loss(model.prepare(Batch(everything(data, "test")[::9])), generator=keyed_generator(0))
    assert bool(loss["loss"].isfinite())


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_answers_are_of_their_modality(data, model, guidance):
    rows = torch.cat([of_task(data, "test", task)[:3] for task in (*PAIRS, "text")])
    given = torch.where(model.given(rows), rows, -1)
    asked = None if guidance is None else {"name": "classifier_free", "scale": guidance}
    if asked is not None:
        from genkit.guidance import GUIDANCES

        asked = GUIDANCES.build(asked)
    sampler = {"name": "ancestral", "steps": 3}
    x = model.sample(len(rows), given=given, sampler=sampler, guidance=asked, generator=keyed_generator(0)).x
    assert torch.equal(x[given >= 0], rows[given >= 0])
    kinds = [[kind_of(data, symbol) for symbol in row] for row in x.tolist()]
    assert kinds == [[kind_of(data, symbol) for symbol in row] for row in rows.tolist()]
    logits = model.logits(x)
    p = logits.softmax(-1)
    for m in data.spec.modalities:
        inside = torch.tensor([[kind == m.name for kind in row] for row in kinds])
        torch.testing.assert_close(p[inside][:, m.first : m.stop].sum(-1), torch.ones(int(inside.sum())))


def test_a_uniform_source_is_answered_in_its_modality_too(data):
    torch.manual_seed(0)
    options = {"name": "discrete_flow_matching", "source": "uniform"}
    uniform = OBJECTIVES.build(options, data.spec, model_options(width=16, depth=2)).eval()
    rows = torch.cat([of_task(data, "test", task)[:2] for task in (*PAIRS, "text")])
    given = torch.where(uniform.given(rows), rows, -1)
    x = uniform.sample(len(rows), given=given, sampler="ancestral", generator=keyed_generator(0)).x
    kinds = [[[kind_of(data, symbol) for symbol in row] for row in part.tolist()] for part in (x, rows)]
    assert kinds[0] == kinds[1]


# --- from a recipe to files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A codec of tones and a model of its codes, trained for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    small = {
        "model": {"width": 16, "depth": 2, "heads": 2},
        "training": {"steps": 2, "batch_size": 8, "log_every": 1},
    }
    audio = {"name": "autoencoder", "frames": 16, "levels": [4, 3], "iterations": 2}
    train(Recipe.resolve({"data": TONES, "objective": audio, **small}), folder / "codec")
    rows = {"name": "trimodal", "codec": str(folder / "codec"), "sounds": TONES}
    train(Recipe.resolve({"data": rows, "objective": "masked_diffusion", **small}), folder / "tri")
    return folder


def test_a_recipe_gives_the_codec_of_its_run(runs):
    run = load(runs / "tri")
    assert isinstance(run, Run)
    data = run.dataset
    assert (data.codec.size, data.codec.frames) == (12, 16)
    assert data.codec.hash == load(runs / "codec").hash
    assert run.environment["data_hash"] == data.hash
    moved = Recipe.resolve({**run.recipe.config, "data": run.recipe.config["data"] | {"codec": "elsewhere"}})
    assert moved.fingerprint(data.hash) == run.recipe.fingerprint(data.hash)


def test_one_checkpoint_answers_every_task(runs, tmp_path, capsys):
    run = str(runs / "tri")

    def sampled(task, prompt, name, *options):
        out = tmp_path / name
        arguments = [
            "sample",
            run,
            "--task",
            task,
            "--prompt",
            prompt,
            "-n",
            "2",
            "--out",
            str(out),
            *options,
        ]
        assert main(arguments) == 0, capsys.readouterr().err
        return out

    assert Image.open(sampled("text-to-image", "seven", "a.png")).size == (2 * 4 * 8 + 4, 4 * 8)
    with wave.open(str(sampled("text-to-sound", "c4", "b.wav", "--guidance", "2"))) as file:
        assert (file.getframerate(), file.getnframes()) == (4000, 2 * (256 + 1000))
    assert sampled("image-to-text", "test:3", "c.txt").read_text().count("---") == 1
    sampled("sound-to-text", "test:3", "d.txt", "--unmasker", "confidence")
    text = sampled("text", "def [[4]]end", "e.txt").read_text()
    assert text.startswith("def ")
    assert text[8:11] == "end"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "several tasks: give one of"),
        (["--task", "image-to-sound"], "no task 'image-to-sound'"),
        (["--task", "text-to-image", "--prompt", "x"], "no name of an image 'x'"),
        (
            ["--task", "text-to-image", "--prompt", "0", "--out", "x.wav"],
            "samples of 'trimodal' are no sound",
        ),
    ],
)
def test_bad_requests_exit_with_status_2(runs, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(runs / "tri"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("x.wav"))


def test_a_codec_that_is_missing_or_none_is_an_error_with_its_mending(runs):
    rows = {"name": "trimodal", "codec": str(runs / "codex")}
    with pytest.raises(
        GenkitError, match=r"genkit train recipes/papers/trimodal/sound_codec\.yaml --out .*codex"
    ):
        Recipe.resolve({"data": rows, "objective": "masked_diffusion"}).dataset()
    rows["codec"] = str(runs / "tri")
    with pytest.raises(GenkitError, match="is no codec of sounds: its objective is 'masked_diffusion'"):
        Recipe.resolve({"data": rows, "objective": "masked_diffusion"}).dataset()


def test_the_digits_are_the_same_as_alone(silent):
    assert silent.sources["image"].hash == Digits().hash
