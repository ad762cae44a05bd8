"""Text as rows: nothing is lost or in both parts, packing keeps order, and bad input says what to do."""

import dataclasses
import json
import re
import sys

import datasets
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.data import DATASETS, TensorSplit
from genkit.data.base import Dataset
from genkit.data.digits import Digits
from genkit.data.text import cut, given_text, python_topics, show_text, to_ascii
from genkit.data.tokenizers import tokenizer_of
from genkit.errors import GenkitError
from genkit.types import DataSpec

BLOCKS = [
    f"Block {i}.\n" + "\n".join(f"{i} times {j} is {i * j}," for j in range(i % 7 + 1)) for i in range(60)
]
STORY = "\n\n".join(BLOCKS) + "\n"
KINDS = ["ascii", "bytes", "characters"]


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return str(path)


@pytest.fixture
def wordpieces(tmp_path):
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    inner.train_from_iterator([STORY], trainer)
    inner.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def build(file=None, **options):
    return DATASETS.build("pydoc", file=file, **{"length": 16, **options})


def rows(data, part):
    split = data.split(part)
    return split.take(torch.arange(len(split)))[0]


def text_of(data, part):
    """All rows of a part as one text."""
    stream = rows(data, part).flatten()
    return tokenizer_of(data.spec.tokenizer).decode(stream.numpy())


def joined(data, part):
    return "".join(document.text for document in data.documents[part])


# --- laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_rows_of_a_stream_are_the_text(story, tokens, share):
    data = build(story, tokens=tokens, test_share=share)
    assert joined(data, "train") + joined(data, "test") == STORY
    for part in ("train", "test"):
        found = text_of(data, part)
        assert joined(data, part).startswith(found)
        assert len(joined(data, part)) - len(found) < data.spec.shape[0]
    assert abs(len(joined(data, "test")) / len(STORY) - share) < share / 2


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab \n", min_size=1), share=st.floats(0.01, 0.99))
def test_a_cut_is_near_its_share(text, share):
    at = cut(text, share)
    assert 0 <= at <= len(text)
    assert abs(at - len(text) * (1 - share)) <= len(text) * min(share, 1 - share) / 2 + 1


@pytest.mark.parametrize("tokens", KINDS)
def test_packing_keeps_every_symbol_in_order(story, tokens):
    data = build(story, tokens=tokens, pack=True)
    tokenizer, boundary = tokenizer_of(data.spec.tokenizer), data.spec.boundary
    assert boundary == tokenizer.size == data.spec.levels - 1
    assert data.spec.fixed == (boundary,)
    texts = []
    for part in ("train", "test"):
        documents = data.documents[part]
        stream = rows(data, part).flatten()
        whole = [symbol for d in documents for symbol in (boundary, *tokenizer.encode(d.text).tolist())]
        assert stream.tolist() == whole[: len(stream)]
        assert len(whole) - len(stream) < 16
        assert data.symbols[part].tolist() == whole
        assert (data.symbols[part] == boundary).sum() == len(documents)
        texts += [d.text for d in documents]
    assert texts == BLOCKS


def test_segments_are_documents(story):
    data = build(story, pack=True)
    x = rows(data, "train")
    segments = (x == data.spec.boundary).cumsum(-1)
    for row, segment in zip(x, segments, strict=True):
        for number in segment.unique():
            piece = row[segment == number]
            text = data.show(piece[piece != data.spec.boundary][None]).texts[0]
            assert any(text in block for block in BLOCKS)


@pytest.mark.parametrize("pack", [False, True])
def test_no_topic_is_in_both_parts(pack):
    data = DATASETS.build("pydoc", pack=pack)
    train, test = ({d.where for d in data.documents[part]} for part in ("train", "test"))
    assert not train & test
    assert train | test == {f"topic '{name}'" for name in python_topics()}
    long = [
        {" ".join(p.split()) for d in data.documents[part] for p in d.text.split("\n\n") if len(p) > 60}
        for part in ("train", "test")
    ]
    assert not long[0] & long[1]
    share = len(joined(data, "test")) / (len(joined(data, "train")) + len(joined(data, "test")))
    assert 0.08 < share < 0.105


def test_a_block_of_the_test_part_is_not_in_the_train_part(tmp_path):
    (tmp_path / "x.txt").write_text("\n\n".join([*BLOCKS, *BLOCKS[:20]]))
    data = build(str(tmp_path / "x.txt"), pack=True)
    train, test = ([d.text for d in data.documents[part]] for part in ("train", "test"))
    assert test
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(BLOCKS)


def test_python_topics_are_ascii_and_stand_once():
    topics = python_topics()
    assert list(topics) == sorted(topics)
    assert "compound" in topics
    assert "if" not in topics
    assert sum(map(len, topics.values())) > 200_000
    assert re.fullmatch(r"[\n -~]*", "".join(topics.values()))


def test_characters_of_topics_are_mapped_or_dropped():
    assert to_ascii("\tx°\r\u200b日\n“it’s” – a — b … é ß") == '        x\n"it\'s" - a -- b ... e ss'


def test_topics_in_another_form(monkeypatch):
    module = type(sys)("pydoc_data.topics")
    module.topics = {"a": "\n\nOne\n***\n\ntext “a”\n\n", "b": "Two\n"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
    assert python_topics() == {"a": 'One\n***\n\ntext "a"', "b": "Two"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(GenkitError, match="without pydoc_data.topics; give a text with file=PATH"):
        python_topics()


@pytest.mark.parametrize("tokens", KINDS)
@pytest.mark.parametrize("pack", [False, True])
def test_the_spec_survives_json(story, tokens, pack):
    data = build(story, tokens=tokens, pack=pack)
    spec = data.spec
    assert DataSpec.of(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert spec.name == "text:story.txt"
    assert spec.text
    assert not spec.ordered
    assert spec.characters == 1.0
    assert spec.levels == tokenizer_of(spec.tokenizer).size + pack
    assert DATASETS.build("pydoc").spec.name == "pydoc"


@pytest.mark.parametrize("pack", [False, True])
def test_subwords_count_their_characters(story, wordpieces, pack):
    data = build(story, tokens=wordpieces, pack=pack)
    spec = data.spec
    assert DataSpec.of(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert spec.levels == 300 + pack
    symbols = data.symbols["test"]
    assert spec.characters * len(symbols[symbols < 300]) == pytest.approx(len(joined(data, "test")))
    assert spec.characters > 1.5
    assert data.train.x.dtype == torch.int32
    found = "".join(data.show(rows(data, "train")).texts)
    assert joined(data, "train").startswith(found.replace("\n\n", "") if pack else found)


def test_symbols_fit_their_type(story):
    for options, dtype in (({}, torch.uint8), ({"pack": True}, torch.int32)):
        split = build(story, tokens="bytes", **options).train
        assert isinstance(split, TensorSplit)
        assert split.x.dtype == dtype
        assert split.take(torch.tensor([0]))[0].dtype == torch.int64


def test_the_hash_is_of_text_tokens_and_layout(story, wordpieces, tmp_path):
    (tmp_path / "other.txt").write_text(STORY.replace("2", "3", 1))
    made = [
        {"file": story},
        {"file": story, "length": 17},
        {"file": story, "pack": True},
        {"file": story, "test_share": 0.3},
        *({"file": story, "tokens": tokens} for tokens in ("bytes", "characters", wordpieces)),
        {"file": str(tmp_path / "other.txt")},
        {},
    ]
    hashes = [build(**options).hash for options in made]
    assert len(set(hashes)) == len(made)
    assert hashes == [build(**options).hash for options in made]


def test_symbols_of_another_tokenizer_are_other_data():
    class Same(Dataset):
        def __init__(self, **options):
            self.spec = DataSpec("same", (2,), levels=300, **options)

        def load(self, name):
            return TensorSplit(torch.zeros(1, 2, dtype=torch.uint8))

    made = [Same(), Same(tokenizer="ascii"), Same(tokenizer="bytes"), Same(tokenizer="bytes", fixed=(299,))]
    assert len({data.hash for data in made}) == 4
    assert Digits().hash == "8cd19ed6a330a8373ea96fca1b6a1d2b33fb7becb9485202bc36a36a4752eb60"


# --- files --------------------------------------------------------------------------------------------


def test_bytes_take_any_file(tmp_path):
    content = bytes(range(256)) * 4 + b"\r\n"
    (tmp_path / "any.bin").write_bytes(content)
    data = build(str(tmp_path / "any.bin"), tokens="bytes")
    stream = torch.cat([data.symbols["train"], data.symbols["test"]])
    assert bytes(stream.tolist()) == content


def test_line_ends_and_marks_of_other_systems(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + STORY.replace("\n", "\r\n").encode())
    data = build(str(tmp_path / "x.txt"))
    assert joined(data, "train") + joined(data, "test") == STORY


def test_a_text_without_blank_lines_can_be_packed(tmp_path):
    (tmp_path / "x.txt").write_text(STORY.replace("\n\n", "\n"))
    data = build(str(tmp_path / "x.txt"), pack=True)
    assert [len(data.documents[part]) for part in ("train", "test")] == [1, 1]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "is empty"),
        (b" \n\n", {"tokens": "bytes"}, "is empty"),
        (b"abc\nd\xffe" * 9, {}, r"not UTF-8: byte 0xff in line 2 \(offset 5\); tokens=bytes takes any file"),
        ("café\n".encode() * 99, {}, r"bad.txt: 'é' \(U\+00E9\) in line 1, column 4 .*tokens=bytes"),
        (b"cafe\n" * 98 + "café".encode(), {}, "line 99, column 4"),  # in the test part
        (b"a\n\nb\n \n" * 98 + "\n\n\ncafé".encode(), {"pack": True}, "line 396, column 4"),
        (
            b"abcdefgh" * 10,
            {"length": 32},
            "test part .*bad.txt' has 8 symbols, a row 32: length=8 or less fits",
        ),
        (b"abcdefgh", {}, "train part .* has 7 symbols, a row 16: a longer text is needed"),
        (b"abcdefgh" * 10, {"test_share": 0.95}, "train part .* has 4 symbols.*length=4 or less fits"),
    ],
)
@pytest.mark.parametrize("first", ["spec", "train", "hash"])
def test_files_that_do_not_do(tmp_path, content, options, message, first):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(GenkitError, match=message):
        getattr(build(str(tmp_path / "bad.txt"), **options), first)


def test_bad_options(story, tmp_path):
    for options, message in (
        ({"file": story.replace("story", "storey")}, "storey.txt is missing; did you mean .*story.txt"),
        ({"file": str(tmp_path / "a" / "b.txt")}, "is missing: there is no folder"),
        ({"file": str(tmp_path)}, "is a folder"),
        ({"length": 1}, "length must be at least 2"),
        ({"test_share": 0.0}, "test_share must lie between 0 and 1"),
        ({"test_share": 1.0}, "test_share must lie between 0 and 1"),
        ({"tokens": "byte"}, "did you mean 'bytes'"),
        ({"tokens": story}, "story.txt does not parse"),
        ({"fil": story}, "did you mean 'file'"),
        ({"pack": 1}, "pack must be true or false"),
    ):
        with pytest.raises(GenkitError, match=message):
            build(**options)


# --- shown and given ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", KINDS)
def test_rows_are_shown_as_text(story, tokens):
    data = build(story, tokens=tokens)
    x = rows(data, "train")[:3]
    assert "".join(data.show(x).texts) == STORY[:48]
    assert data.show(x) == show_text(data.spec, x)


def test_a_boundary_is_a_blank_line(story):
    data = build(story, pack=True, length=len(BLOCKS[0]) + 8)
    row = rows(data, "train")[:1]
    assert data.show(row).texts == ["\n\n" + BLOCKS[0] + "\n\n" + BLOCKS[1][:6]]
    assert data.show(row[:, 1:3]).texts == [BLOCKS[0][:2]]


def test_a_prompt_is_a_beginning_or_has_gaps(story):
    data = build(story)
    tokenizer = tokenizer_of("ascii")
    for prompt, known in (
        ("2 times", {0: "2 times"}),
        ("", {}),
        ("[[2]]is 4", {2: "is 4"}),
        ("2 [[5]] 3[[2]] 6,", {0: "2 ", 7: " 3", 11: " 6,"}),
        ("[[3]][[13]]", {}),
        ("[[x]]", {0: "[[x]]"}),
        ("a" * 15, {0: "a" * 15}),
        ("a" * 15 + "[[1]]", {0: "a" * 15}),
    ):
        row = torch.full((16,), -1)
        for at, text in known.items():
            row[at : at + len(text)] = torch.from_numpy(tokenizer.encode(text))
        found = data.given(prompt)
        assert found.dtype == torch.int64
        assert torch.equal(found, row), prompt
        assert torch.equal(given_text(data.spec, prompt), row)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a" * 16, "fills all 16 symbols of a row.*write \\[\\[n\\]\\]"),
        ("a" * 16 + "[[0]]", "fills all 16"),
        ("a" * 18, "has 18 symbols, a row 16: shorten it by 3"),
        ("a" * 10 + "[[7]]", "has 17 symbols"),
        ("[[99999999999999999999]]", "has 99999999999999999999 symbols"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "the prompt .*leave it out: .*U\\+00E9.*tokens=bytes"),
    ],
)
def test_prompts_that_do_not_fit(story, prompt, message):
    with pytest.raises(GenkitError, match=message):
        build(story).given(prompt)


def test_text_has_no_tasks(story):
    with pytest.raises(GenkitError, match="leave task 'text-to-image' out"):
        build(story).given("a", task="text-to-image")


# --- through `datasets` -------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "stories"
    folder.mkdir()
    for part, texts in (("train", ["", *BLOCKS[:50], None]), ("test", [f"{b}\n\n" for b in BLOCKS[50:]])):
        columns = {"text": texts, "number": list(range(len(texts)))}
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{part}.parquet")
    return str(folder)


def hub(path, **options):
    return DATASETS.build("hub_text", path=path, **{"length": 16, **options})


def test_texts_of_a_hub_set_are_documents(parquet):
    data = hub(parquet)
    assert joined(data, "train") == "".join(f"{b}\n\n" for b in BLOCKS[:50])
    assert joined(data, "test") == "".join(f"{b}\n\n" for b in BLOCKS[50:])
    assert joined(data, "train").startswith(text_of(data, "train"))
    packed = hub(parquet, pack=True, tokens="characters")
    assert [d.text for d in packed.documents["test"]] == BLOCKS[50:]
    assert (packed.symbols["test"] == packed.spec.boundary).sum() == 10
    assert data.hash == hub(parquet).hash != packed.hash
    assert data.spec.name == f"hub:{parquet}"
    limited = hub(parquet, limit=20, pack=True)
    assert len(limited.documents["train"]) in (18, 19, 20)  # among 52 there are two without text
    assert len(limited.documents["test"]) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "txt"}, "no column in .* 'txt'; did you mean 'text'"),
        ({"column": "number"}, "column 'number' .* no text"),
        ({"test": "tests"}, "no split of .* 'tests'; did you mean 'test'"),
        ({"train": "test"}, r"both 'test': give slices.*'test\[:90%\]'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"train": "train[:1]"}, "train part .* has 0 symbols"),
        ({"length": 10_000}, "length=[0-9]+ or less fits"),
        ({"length": 0}, "length must be at least 2"),
    ],
)
def test_hub_sets_that_do_not_do(parquet, options, message):
    with pytest.raises(GenkitError, match=message):
        hub(parquet, **options).spec


def test_a_character_outside_names_its_text(tmp_path, parquet):
    for part in ("train", "test"):
        columns = {"text": [*BLOCKS, "one\ncaf\N{LATIN SMALL LETTER E WITH ACUTE}"]}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "stories" / f"{part}.parquet")
    with pytest.raises(GenkitError, match=r"text 60 of split 'train' of .*line 2, column 4"):
        hub(parquet).spec


def test_a_set_that_is_nowhere(parquet):
    with pytest.raises(GenkitError, match="neither a folder here nor"):
        hub("nobody/nothing").spec
