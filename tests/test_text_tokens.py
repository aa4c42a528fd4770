"""Tokenizers, the vocabulary, and reading texts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import DataError, UsageError
from treadle.registry import described, restored
from treadle.text import (
    BPETokenizer,
    Numericalize,
    SpaceTokenizer,
    WordTokenizer,
    get_text_files,
    make_vocab,
)
from treadle.text.files import text_of
from treadle.text.tokenize import SPECIAL
from treadle.text.tokenize_many import tokenize_many

WORDS = WordTokenizer(add_bos=False)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("One two", "xxmaj one two"),
        ("HTML is I a", "xxup html is i a"),
        ("McDonald iPod", "mcdonald ipod"),
        ("a/b#c\\d", "a / b # c \\ d"),
        ("Isn't it? We're, they'll", "xxmaj is n't it ? xxmaj we 're , they 'll"),
        ("didn 't the dog 's", "didn 't the dog 's"),
        ("rock 'n' roll", "rock ' n ' roll"),
        ("soooo good!!!", "s xxrep 4 o good xxrep 3 !"),
        ("no no no no way", "xxwrep 4 no way"),
        ("no no way", "no no way"),
        ("1,000.50 and 10000", "1,000.50 and 10000"),
        ("wait...", "wait …"),
        ("Fish &amp; chips&#39;s <br />", "xxmaj fish & chips 's"),
        ("#39;tis 5 @-@ 6 @.@ 7 <unk>", "' tis 5-6.7 xxunk".replace("5-6.7", "5 - 6.7")),
        ("well-known e.g. x_y", "well - known e . g . x_y"),
        ("Überraschung ÄÖ naïve", "xxmaj überraschung xxup äö naïve"),
        ("日本語 \U0001f600", "日本語 \U0001f600"),
        ("", ""),
        ("  \n ", ""),
    ],
)
def test_words(text, tokens):
    assert WORDS(text) == tokens.split()


def test_line_ends_are_one_token():
    assert WORDS("a\n \n b\nc") == ["a", "\n", "b", "\n", "c"]


def test_beginning_and_end():
    assert WordTokenizer(add_eos=True)("a") == ["xxbos", "a", "xxeos"]
    assert WordTokenizer()("") == ["xxbos"]


def test_letters_can_stay():
    assert WordTokenizer(lower=False, add_bos=False)("One ISN'T") == ["One", "IS", "N'T"]


@settings(deadline=None)
@given(st.text())
def test_any_text_is_tokens_without_space(text):
    tokens = WORDS(text)
    assert all(token == "\n" or not re.search(r"\s", token) for token in tokens)
    assert "" not in tokens


@pytest.mark.parametrize(
    "text",
    [
        "Don't SHOUT: it's well-known!!!! Yes.",
        'He said "Go home" (twice), and left.',
        "So so so so late.\nAnother line (#3).",
        "The dogs' bowls cost $5.50.",
    ],
)
def test_detokenizing_gives_the_text_back(text):
    assert WordTokenizer().detokenize(WordTokenizer()(text)) == text


def test_wikitext_as_it_stands():
    tokenizer = SpaceTokenizer(unk="<unk>", pad=None, eos="<eos>")
    assert tokenizer("\n = A = \n\n b @-@ c\n") == [
        *("<eos>", "=", "A", "=", "<eos>", "<eos>", "b", "@-@", "c", "<eos>")
    ]
    assert tokenizer("") == []
    assert make_vocab({"<eos>": 9, "b": 1}, 1, special=tokenizer.special) == ["<unk>", "<eos>", "b"]
    with pytest.raises(UsageError, match="different ones"):
        SpaceTokenizer(unk="xxpad")


# The vocabulary


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh")), st.integers(1, 4), st.integers(9, 14))
def test_vocab_is_by_frequency_then_by_code_point(tokens, min_freq, max_vocab):
    counts = Counter(tokens)
    vocab = make_vocab(counts, min_freq, max_vocab)
    assert vocab[:9] == list(SPECIAL)
    expected = sorted((-n, t) for t, n in counts.items() if n >= min_freq)
    assert vocab[9:] == [t for _, t in expected][: max_vocab - 9]


def test_special_tokens_of_the_text_keep_their_place():
    assert make_vocab({"xxmaj": 50, "a": 9}) == [*SPECIAL, "a"]


def test_vocab_that_cannot_be():
    with pytest.raises(UsageError, match="twice"):
        Numericalize(["xxunk", "a", "a"])
    with pytest.raises(UsageError, match="has no 'xxunk'"):
        Numericalize(["a", "b"])
    with pytest.raises(UsageError, match="max_vocab=3"):
        make_vocab({}, max_vocab=3)
    with pytest.raises(DataError, match="number 7"):
        Numericalize(["xxunk"]).decode([7])


# Many at once


@settings(deadline=None)
@given(st.lists(st.text("ab \n", max_size=12), max_size=8))
def test_many_are_as_each(texts):
    found = tokenize_many(WORDS, texts)
    lists = [WORDS(text) for text in texts]
    assert [found.words[i] for i in found.codes] == [t for tokens in lists for t in tokens]
    assert np.diff(found.ends, prepend=0).tolist() == [len(tokens) for tokens in lists]
    assert found.counts() == Counter(t for tokens in lists for t in tokens)


def test_processes_change_nothing(monkeypatch):
    monkeypatch.setattr("treadle.text.tokenize_many._PIECE", 50)
    texts = [f"Text {i} of {i % 7} WORDS " * (i % 5) for i in range(40)]
    alone, forked = (tokenize_many(WORDS, texts, workers) for workers in (1, 2))
    assert alone.words == forked.words
    assert (alone.codes == forked.codes).all() and (alone.ends == forked.ends).all()


def test_a_process_passes_on_what_went_wrong(monkeypatch):
    monkeypatch.setattr("treadle.text.tokenize_many._PIECE", 1)
    failing = WordTokenizer(rules=[_fails_on_b])
    with pytest.raises(DataError, match="there is a b"):
        tokenize_many(failing, ["a", "b"], 2)


def _fails_on_b(text: str) -> str:
    if "b" in text:
        raise DataError("there is a b.")
    return text


# Files


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"caf\xc3\xa9 and caf\xe9 again")
    with pytest.raises(DataError, match=rf"{re.escape(str(file))} is not UTF-8: byte 13 \(0xe9\)"):
        text_of(file)
    assert text_of(file, "replace") == "café and caf\ufffd again"


def test_marks_and_line_ends_of_other_systems(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert text_of(file) == "one\ntwo"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "missing"),
        (float("nan"), "missing"),
        (3, "is a int; expected text"),
        (b"abc", "are bytes"),
        ("a\0b", "zero character"),
        ("a\udce9", r"half a character \(at 1\)"),
        (["a"], "is a list"),
        (Path("no such file.txt"), "cannot be read"),
    ],
)
def test_what_is_no_text_is_named(value, said):
    with pytest.raises(DataError, match=said):
        text_of(value)


def test_text_files_are_sorted_and_hidden_ones_skipped(tmp_path):
    for name in ("train/b/2.txt", "train/a/1.TXT", ".git/x.txt", "train/a/no.md", "valid/3.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = [str(file.relative_to(tmp_path)) for file in get_text_files(tmp_path)]
    assert found == ["train/a/1.TXT", "train/b/2.txt", "valid/3.txt"]
    assert len(get_text_files(tmp_path, folders=["train"])) == 2
    with pytest.raises(DataError, match="no folder"):
        get_text_files(tmp_path, folders=["test"])
    with pytest.raises(DataError, match=r"no \.txt files"):
        get_text_files(tmp_path, recurse=False)


# Kept without code


@pytest.mark.parametrize(
    "tokenizer", [WordTokenizer(lower=False, add_eos=True), SpaceTokenizer(eos="<eos>", pad=None)]
)
def test_tokenizers_are_described(tokenizer):
    again = restored(described(tokenizer))
    text = "One, TWO. \n three"
    assert type(again) is type(tokenizer) and again(text) == tokenizer(text)


# BPE

TEXTS = ["the lower the slower", "newer and wider", "lowest of the new"] * 20


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    pytest.importorskip("tokenizers")
    return BPETokenizer(vocab_sz=300).trained(TEXTS)


def test_bpe_learns_and_loses_nothing(bpe):
    assert bpe.vocab is not None and 265 < len(bpe.vocab) <= 300
    assert bpe.vocab[:9] == list(SPECIAL)
    tokens = bpe("the lowest ☃ é")
    assert tokens[0] == "xxbos" and len(tokens) < 20
    assert bpe.detokenize(tokens) == "the lowest ☃ é"
    assert bpe.many(TEXTS[:3]) == [bpe(text) for text in TEXTS[:3]]


def test_bpe_is_kept_without_code(bpe, tmp_path):
    again = restored(described(bpe))
    file = BPETokenizer.from_file(bpe.save(tmp_path / "tokenizer.json"))
    assert again("a newer text") == file("a newer text") == bpe("a newer text")
    assert again.vocab == bpe.vocab == file.vocab
    assert again.trained(["other"]) is again


def test_bpe_that_cannot_be(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(UsageError, match="not learnt"):
        BPETokenizer()("a")
    with pytest.raises(DataError, match="cannot be read"):
        BPETokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(DataError, match="is none"):
        BPETokenizer(json="{}")
