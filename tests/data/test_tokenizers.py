"""Text to symbols and back: nothing is lost, and a tokenizer survives as a string."""

import json

import numpy
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from genkit.data.tokenizers import ASCII, Bytes, Characters, choose_tokenizer, tokenizer_of
from genkit.errors import GenkitError

TEXT = "the cat sat on the mat;\nthe dog sat on the cat.\n" * 3


def byte_level():
    """A byte-level BPE, as GPT-2 has it: it holds any text."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([TEXT], trainer)
    return inner


def words(unknown=None):
    vocabulary = {"the": 0, "cat": 1, "sat": 4} | ({unknown: 2} if unknown else {})
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unknown or "?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return inner


@pytest.fixture(scope="session")
def subwords(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    inner = byte_level()
    inner.enable_truncation(3)  # such settings of a file are not for our use
    inner.enable_padding(length=50)
    inner.save(str(path))
    return choose_tokenizer(str(path), "")


def inverse(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == numpy.int64
    assert ((ids >= 0) & (ids < tokenizer.size)).all()
    assert tokenizer.decode(ids) == text
    again = tokenizer_of(json.loads(json.dumps(tokenizer.serialize())))
    assert again.size == tokenizer.size
    assert again.serialize() == tokenizer.serialize()
    assert again.decode(ids.tolist()) == text


@given(st.text(alphabet=ASCII))
def test_ascii_has_an_inverse(text):
    inverse(choose_tokenizer("ascii", ""), text)


@given(st.text())
def test_bytes_have_an_inverse(text):
    tokenizer = choose_tokenizer("bytes", "")
    inverse(tokenizer, text)
    assert tokenizer.encode(text).tolist() == list(text.encode())


@given(st.text(min_size=1))
def test_characters_have_an_inverse(text):
    tokenizer = choose_tokenizer("characters", text)
    inverse(tokenizer, text)
    assert tokenizer.size == len(set(text))
    assert tokenizer.decode(range(tokenizer.size)) == "".join(sorted(set(text)))


@given(st.text())
def test_byte_level_subwords_have_an_inverse(subwords, text):
    inverse(subwords, text)


def test_subwords_are_longer_than_bytes(subwords):
    assert len(subwords.encode(TEXT)) < len(TEXT) / 2
    assert 256 < subwords.size <= 280


def test_ascii_is_newline_and_the_printable_characters():
    tokenizer = choose_tokenizer("ascii", "")
    assert tokenizer.size == 96
    assert tokenizer.encode("\n ~").tolist() == [0, 1, 95]


def test_bytes_hold_any_file():
    content = bytes(range(256)) * 2
    ids = Bytes().encode(content.decode("utf-8", "surrogateescape"))
    assert bytes(ids.tolist()) == content
    assert Bytes().decode([65, 255, 66]) == "A\N{REPLACEMENT CHARACTER}B"
    assert Bytes().decode([0xE2, 0x82]) == "\N{REPLACEMENT CHARACTER}"  # cut in the middle
    assert Bytes().decode([]) == ""


@pytest.mark.parametrize("text", ["plain\ncafé", "plain\ncafé é\nñ"])
def test_what_is_outside_is_named_with_its_place(text):
    with pytest.raises(GenkitError, match=r"'é' \(U\+00E9\) in line 2, column 4 .*tokens=bytes.*=characters"):
        choose_tokenizer("ascii", "").encode(text)
    with pytest.raises(GenkitError, match=r"'é' .* line 12, column 4 is none of the 8 'characters' symbols"):
        Characters("plain\ncaf").encode(text, line=11)


@pytest.mark.parametrize("text", ["\t", "\r", "\x00", "\x7f", "\N{EURO SIGN}", "\U0001f600"])
def test_the_first_and_last_character_are_checked(text):
    with pytest.raises(GenkitError, match="line 1, column 1"):
        choose_tokenizer("ascii", "").encode(text)
    with pytest.raises(GenkitError, match="line 2, column 3"):
        choose_tokenizer("ascii", "").encode("a\nbc" + text)


def test_half_a_pair_is_no_text():
    with pytest.raises(GenkitError, match=r"U\+D800"):
        Bytes().encode("a\ud800")


@pytest.mark.parametrize("unknown", [None, "[UNK]"])
def test_words_that_a_tokenizer_does_not_hold_are_not_lost_silently(unknown):
    tokenizer = tokenizer_of("subwords:" + words(unknown).to_str())
    assert tokenizer.size == 5
    assert tokenizer.encode("the cat  sat\n").tolist() == [0, 1, 4]
    with pytest.raises(GenkitError, match=r"'d' .*line 4, column 5" if unknown else "from line 3 on"):
        tokenizer.encode("the cat\nthe dog", line=3)


def test_characters_that_bpe_drops_are_named():
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(GenkitError, match=r"'c' .* column 2 is none of the 2 'subwords'"):
        tokenizer_of("subwords:" + inner.to_str()).encode("acb")


@pytest.mark.parametrize("tokens", ["ascii", "bytes", "characters"])
@pytest.mark.parametrize("wrong", [-1, 256])
def test_numbers_that_are_no_symbols_are_refused(tokens, wrong):
    with pytest.raises(GenkitError, match=f"{wrong} is none of"):
        choose_tokenizer(tokens, "abc").decode([0, wrong])


def test_bad_choices(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    (tmp_path / "binary.json").write_bytes(b"\xff")
    (tmp_path / "list.json").write_text("[]")
    for tokens, message in (
        ("ascci", "no tokenizer 'ascci'; did you mean 'ascii'"),
        (str(tmp_path / "tokenizr.json"), "is missing; did you mean .*tokenizer.json"),
        (str(tmp_path / "no" / "a.json"), "no folder"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "tokenizer.json"), "tokenizer.json does not parse"),
        (str(tmp_path / "binary.json"), "binary.json does not parse"),
        (str(tmp_path / "list.json"), "list.json does not parse"),
    ):
        with pytest.raises(GenkitError, match=message):
            choose_tokenizer(tokens, "")
    with pytest.raises(GenkitError, match="no kind of tokenizer 'byte'; did you mean 'bytes'"):
        tokenizer_of("byte")
    with pytest.raises(GenkitError, match="at least one character"):
        choose_tokenizer("characters", "")
