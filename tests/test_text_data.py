"""Loaders of text: the stream of a language model, sorted documents, and what makes them."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from treadle.callbacks import Every
from treadle.data import CategoryBlock, DataBlock, IndexSplitter, RegressionBlock, Table
from treadle.errors import DataError, UsageError
from treadle.learner import Learner, load_learner
from treadle.loop import Callback
from treadle.registry import register
from treadle.text import (
    BPETokenizer,
    LMLoader,
    SortedLoader,
    SpaceTokenizer,
    TextBlock,
    TextDataLoaders,
)
from treadle.text.sorted_loader import Sortish

TEXTS = [" ".join(f"w{i % 5}" for i in range(n)) for n in range(1, 41)]
LABELS = ["odd" if n % 2 else "even" for n in range(1, 41)]


def lm(docs=None, bs=3, seq_len=4, **kwargs):
    docs = [np.arange(100, 117), np.arange(200, 203), np.arange(300, 330)] if docs is None else docs
    return LMLoader(docs, bs, seq_len, seed=7, device="cpu", **kwargs)


def classifier(**kwargs):
    options = {"seed": 3, "bs": 4, "min_freq": 1, "device": "cpu", **kwargs}
    return TextDataLoaders.from_lists(TEXTS, LABELS, **options)


# The stream


def by_hand(tokens, bs, seq_len):
    """The batches, by the definition: whole rows one after the other, cut into windows."""
    row = (len(tokens) - 1) // bs
    for at in range(0, row, seq_len):
        n = min(seq_len, row - at)
        starts = [r * row + at for r in range(bs)]
        yield [tokens[s : s + n] for s in starts], [tokens[s + 1 : s + n + 1] for s in starts]


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(1, 6), st.integers(1, 9))
def test_batches_are_those_of_the_definition(n, bs, seq_len):
    tokens = list(range(n))
    if n <= bs:
        with pytest.raises(DataError, match=f"{n} tokens; expected {bs + 1} or more"):
            lm(np.array(tokens), bs, seq_len)
        return
    loader = lm(np.array(tokens), bs, seq_len)
    batches = [(x.tolist(), y.tolist()) for x, y in loader]
    assert batches == list(by_hand(tokens, bs, seq_len))
    assert len(loader) == len(batches) and loader.n == len(batches) * bs


def test_rows_go_on_through_shuffled_documents():
    loader = lm(shuffle=True)
    epochs = []
    for _ in range(3):
        xs, ys = zip(*loader, strict=True)
        x, y = torch.cat(xs, 1), torch.cat(ys, 1)
        assert (x[:, 1:] == y[:, :-1]).all() and (y[:-1, -1] == x[1:, 0]).all()
        assert x.dtype == torch.int64
        stream = x.flatten().tolist()
        heads = [t // 100 for i, t in enumerate(stream) if t % 100 == 0]
        epochs.append(heads)
        for a, b in pairwise(stream):
            assert b == a + 1 or b % 100 == 0  # documents are whole
    assert len({tuple(heads) for heads in epochs}) > 1


def test_seek_comes_to_any_batch_of_any_epoch():
    loader, other = lm(shuffle=True), lm(shuffle=True)
    for _ in range(2):
        list(loader)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    assert state == {"seed": 7, "epoch": 2, "batch": 1, "total_bs": 3, "n": loader.n, "seq_len": 4}
    other.load_state_dict(state)
    left, again = list(batches), list(other)
    assert len(left) == len(again) == len(loader) - 1
    assert all(
        torch.equal(a, b) for a, b in zip(map(torch.cat, left), map(torch.cat, again), strict=True)
    )
    assert other.epoch == 3
    with pytest.raises(UsageError, match="seq_len=4"):
        lm(seq_len=5).load_state_dict(state)
    with pytest.raises(UsageError, match="does not fit"):
        lm(bs=2).load_state_dict(state)


def test_a_look_changes_nothing():
    loader, other = lm(shuffle=True), lm(shuffle=True)
    seen = []
    for batch in loader:
        seen.append(batch)
        assert not torch.equal(loader.one_batch()[0], batch[0])  # of the epoch to come
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen, other, strict=True))


def test_indices_are_the_documents_of_the_rows():
    loader = lm()
    for x, _ in loader:
        assert loader.indices.tolist() == [int(row[0]) // 100 - 1 for row in x]


def test_what_a_stream_is_not():
    with pytest.raises(UsageError, match="takes no sampler"):
        lm(sampler="any")
    with pytest.raises(UsageError, match="not samples"):
        lm().batch_of([0], 0)
    with pytest.raises(UsageError, match="float64"):
        lm([[0.5, 1.5]])
    with pytest.raises(UsageError, match="vocab has 2 tokens"):
        lm([[0, 1, 2]], vocab=["a", "b"])
    with pytest.raises(UsageError, match="seq_len=0"):
        lm(seq_len=0)
    assert len(lm([])) == 0 and list(lm([])) == []


# Documents for a classifier


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 5))
def test_sortish_is_every_document_once(lengths, bs):
    orders = [Sortish(lengths, bs).order(1, epoch, len(lengths)) for epoch in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(lengths)))
        assert max(lengths[i] for i in order[:bs]) == max(lengths)


def test_training_batches_are_of_about_one_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 500, 2000)
    first, second = (Sortish(lengths, 10).order(0, epoch, 2000) for epoch in (0, 1))
    assert (first != second).any()
    waste = [1 - n.sum() / (10 * n.max()) for n in lengths[first].reshape(-1, 10)]
    assert np.mean(waste) < 0.05
    steps = np.abs(np.diff(lengths[first].reshape(-1, 10).mean(1)))
    assert steps.mean() > 50  # the batches themselves are shuffled


def test_documents_are_padded_at_the_end():
    dls = classifier()
    assert dls.n_inp == 2 and dls.c == 2
    for dl in dls:
        for x, lengths, y in dl:
            assert x.shape == (len(y), lengths.max()) and lengths.dtype == x.dtype == torch.int64
            assert (lengths == (x != 1).sum(1)).all()
            real = torch.arange(x.shape[1]) < lengths[:, None]
            assert (x[~real] == 1).all() and (x[real] != 1).all()
            for row, length, label in zip(x, lengths, y, strict=True):
                text = dls.detokenize(row)
                assert len(text.split()) == length - 1  # without xxbos
                assert LABELS[TEXTS.index(text)] == dls.vocab[1][label]
    sizes = [int(n) for _, lengths, _ in dls.valid for n in lengths]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 8


def test_new_texts_stay_in_their_order():
    dls = classifier()
    x, lengths = dls.test_dl(["w1", "w1 w2 w3", "w4 unknown"]).one_batch()
    assert lengths.tolist() == [2, 4, 3] and x[2].tolist()[2:] == [0, 1]
    (batch,) = dls.test_dl(Table(["text", "label"], [("w1", "odd")]), with_labels=True)
    assert batch[2].tolist() == [1]


def test_num_workers_change_nothing():
    for a, b in zip(classifier().train, classifier(num_workers=2).train, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_a_vocab_without_padding_cannot_classify():
    with pytest.raises(UsageError, match="fill up"):
        classifier(tok_tfm=SpaceTokenizer(pad=None))


# From sources to loaders


def test_vocab_goes_from_language_model_to_classifier():
    stream = TextDataLoaders.from_lists(TEXTS, seed=3, bs=4, seq_len=8, device="cpu")
    assert len(stream.vocab) == stream.c and type(stream.train) is LMLoader
    dls = classifier(text_vocab=stream.vocab)
    assert dls.vocab == [stream.vocab, ["even", "odd"]] and type(dls.train) is SortedLoader
    assert dls.numericalize("w1 other") == stream.numericalize("w1 other")
    assert dls.detokenize(dls.numericalize("W1")) == "W1"


def test_bpe_under_both_kinds_of_loaders():
    pytest.importorskip("tokenizers")
    model = TextDataLoaders.from_lists(TEXTS, tok_tfm=BPETokenizer(270), bs=2, device="cpu")
    learned = model.text_block.tokenizer
    dls = classifier(text_vocab=model.vocab, tok_tfm=learned)
    assert dls.vocab[0] == model.vocab == learned.vocab
    assert dls.detokenize(dls.numericalize("w1 ☃")) == "w1 ☃"
    assert [n for n, _ in model.text_block.unknown.values()] == [0, 0]
    with pytest.raises(UsageError, match="not learnt"):
        classifier(text_vocab=model.vocab, tok_tfm=BPETokenizer())


def test_unknown_tokens_are_counted():
    dls = classifier(text_vocab=["xxunk", "xxpad", "xxbos", "w0", "w1"])
    parts = dls.text_block.unknown
    total = sum(map(len, map(str.split, TEXTS)))
    unknown = sum(word not in ("w0", "w1") for text in TEXTS for word in text.split())
    assert sum(n for n, _ in parts.values()) == unknown
    assert sum(n for _, n in parts.values()) == total + len(TEXTS)
    dls = TextDataLoaders.from_lists(["a b", "b a", "a c"], valid_texts=["c a"], bs=1, device="cpu")
    assert dls.text_block.unknown == {"training": (3, 9), "validation": (1, 3)}


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def test_folder(tmp_path):
    files = {
        f"{part}/{c}/{i}.txt": f"{c} film {i}"
        for part in ("train", "valid")
        for c in ("bad", "good")
        for i in range(3)
    }
    write(tmp_path, files)
    dls = TextDataLoaders.from_folder(tmp_path, bs=2, device="cpu", min_freq=1)
    assert dls.vocab[1] == ["bad", "good"] and dls.valid.n == 6
    assert {"bad", "film", "2"} <= {*dls.vocab[0]}
    model = TextDataLoaders.from_folder(tmp_path, is_lm=True, bs=2, seq_len=3, device="cpu")
    assert model.train.n_tokens == 6 * 4
    part = TextDataLoaders.from_folder(tmp_path, valid_pct=0.5, seed=1, bs=2, device="cpu")
    assert part.train.n == part.valid.n == 6


def test_a_damaged_file_is_named_or_skipped(tmp_path):
    files = {f"train/{c}/{i}.txt": f"{c} {i}" for c in "ab" for i in range(3)}
    write(tmp_path, {**files, "train/a/bad.txt": b"\xff\xfe", "valid/a/1.txt": "a"})
    for is_lm in (False, True):
        arguments = {"path": tmp_path, "is_lm": is_lm, "bs": 1, "device": "cpu"}
        with pytest.raises(DataError, match=r"bad\.txt is not UTF-8: byte 0"):
            TextDataLoaders.from_folder(**arguments)
        dls = TextDataLoaders.from_folder(**arguments, on_error="skip")
        assert [s.item.endswith("bad.txt") for s in dls.train.skipped] == [True]
        assert sum(1 for _ in dls.train) > 0
        assert TextDataLoaders.from_folder(**arguments, errors="replace").train.skipped == []


def test_table_with_several_columns(tmp_path):
    table = Table(
        ["title", "body", "kind", "v"], [("On cats", "They purr", "a", i > 3) for i in range(6)]
    )
    dls = TextDataLoaders.from_df(
        table,
        text_col=["title", "body"],
        label_col="kind",
        valid_col="v",
        vocab=["a", "b"],
        bs=2,
        device="cpu",
    )
    words = dls.text_block.tokenizer("xxfld 1 On cats xxfld 2 They purr")
    assert words == "xxbos xxfld 1 xxmaj on cats xxfld 2 xxmaj they purr".split()
    assert dls.train.one_batch()[1].tolist() == [len(words)] * 2 and dls.valid.n == 2
    with pytest.raises(DataError, match="did you mean 'body'"):
        TextDataLoaders.from_df(table, text_col="boddy", label_col="kind", device="cpu")
    write(tmp_path, {"labels.csv": "name,label\n" + "one two,x\nthree,y\n" * 5})
    dls = TextDataLoaders.from_csv(tmp_path, seed=1, bs=2, device="cpu", min_freq=1)
    assert dls.vocab[1] == ["x", "y"]


def test_a_missing_text_is_named():
    table = Table(["text", "label"], [("a", "x"), (None, "y"), ("c", "x")] * 4)
    with pytest.raises(DataError, match=r"missing \(None\)") as caught:
        TextDataLoaders.from_df(table, seed=1, bs=2, device="cpu")
    assert "Row(text=None, label='y')" in " ".join(caught.value.__notes__)


def test_other_targets():
    numbers = [float(len(text)) for text in TEXTS]
    dls = TextDataLoaders.from_lists(TEXTS, numbers, y_block=RegressionBlock, bs=4, device="cpu")
    assert dls.c == 1 and dls.one_batch()[2].dtype == torch.float32
    with pytest.raises(UsageError, match="3 texts and 1 labels"):
        TextDataLoaders.from_lists(["a"] * 3, ["x"])


def test_empty_documents_are_told_of():
    with pytest.warns(UserWarning, match="2 of 6 documents are empty, for example ' '"):
        dls = TextDataLoaders.from_lists(
            ["a", " ", "b", "c"], list("xyxy"), ["", "d"], list("xy"), bs=2, device="cpu"
        )
    assert min(int(n) for _, lengths, _ in dls.valid for n in lengths) == 1
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match="no token"):
        TextDataLoaders.from_lists(
            ["a", ""], list("xy"), ["b"], ["x"], tok_tfm=SpaceTokenizer(), bs=1, device="cpu"
        )
    stream = TextDataLoaders.from_lists(
        ["a b", "", "c"], valid_texts=["a b"], bs=1, device="cpu", tok_tfm=SpaceTokenizer()
    )
    assert stream.train.n_tokens == 3


def test_backwards():
    forth, back = (classifier(backwards=b, text_vocab=classifier().vocab[0]) for b in (False, True))
    x, lengths, _ = forth.valid.one_batch()
    z, _, _ = back.valid.one_batch()
    for row, other, n in zip(x, z, lengths, strict=True):
        assert row[:n].tolist() == other[:n].flip(0).tolist()
    assert back.detokenize(back.numericalize("w1 w2")) == "w1 w2"


def test_datablock_of_texts_makes_text_loaders():
    plan = DataBlock(TextBlock(is_lm=True, seq_len=5), splitter=IndexSplitter([39]))
    dls = plan.dataloaders(TEXTS, bs=2, device="cpu")
    assert repr(dls.text_block) == "TextBlock(of a language model, WordTokenizer, 14 tokens)"
    assert type(dls) is TextDataLoaders and dls.one_batch()[0].shape == (2, 5)
    with pytest.raises(UsageError, match="expected a tokenizer"):
        TextBlock(str.split)


def test_summary_and_batches_are_shown(capsys):
    plan = DataBlock(
        (TextBlock(min_freq=1), CategoryBlock),
        get_x=lambda item: item[0],
        get_y=lambda item: item[1],
    )
    plan.summary(list(zip(TEXTS, LABELS, strict=True)))
    said = capsys.readouterr().out
    assert "vocab of 14 (TextBlock)" in said and "x: Tensor (4," in said
    classifier().show_batch(max_n=2, trunc_at=5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["text", "|", "category"]
    assert lines[2].startswith("xxbos w0 w1 w2 w3 ") and len(lines) == 5
    TextDataLoaders.from_lists(TEXTS, bs=4, seq_len=3, device="cpu").show_batch(1)
    assert capsys.readouterr().out.splitlines()[0].split() == ["text", "|", "text_"]


# Under a learner


@register(name="tests.text.Bag")
class Bag(nn.Module):
    """The mean of the embeddings of a document's tokens, and a linear layer."""

    def __init__(self, vocab_sz: int, n_out: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_sz, 8), nn.Linear(8, n_out)

    def forward(self, x, lengths=None):
        if lengths is None:  # a language model
            return self.head(self.embed(x))
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        return self.head((self.embed(x) * mask[..., None]).sum(1) / lengths[:, None])


def learner(dls, **kwargs):
    torch.manual_seed(5)
    words = dls.vocab if isinstance(dls.vocab[0], str) else dls.vocab[0]
    return Learner(dls, Bag(len(words), dls.c), lr=0.05, **kwargs)


def stream(**kwargs):
    return TextDataLoaders.from_lists(
        TEXTS, seed=3, bs=4, seq_len=8, min_freq=1, device="cpu", **kwargs
    )


class Interrupted(Exception):
    pass


def interrupt_at(epoch: int, batch: int) -> Callback:
    def after_batch(cb):
        if cb.training and (cb.epoch, cb.iter) == (epoch, batch):
            raise Interrupted

    return Callback(after_batch=after_batch)


@pytest.mark.parametrize("make", [stream, classifier])
def test_a_resumed_run_is_bit_equal(make, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    whole, broken, resumed = (learner(make(path=tmp_path / name)) for name in "abb")
    with whole.no_logging(), broken.no_logging(), resumed.no_logging():
        whole.fit(3)
        with pytest.raises(Interrupted):
            broken.fit(3, cbs=interrupt_at(1, 3), checkpoint=Every(updates=1))
        resumed.resume()
    assert resumed.recorder.losses == whole.recorder.losses
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name])


def test_lr_find_leaves_no_trace():
    dls = stream()
    learn = learner(dls)
    before = dls.train.state_dict()
    with learn.no_logging():
        learn.lr_find(num_it=20, show_plot=False)
    assert dls.train.state_dict() == before and dls.train.epoch == before["epoch"]


def test_an_export_predicts_the_same(tmp_path):
    learn = learner(classifier(path=tmp_path))
    with learn.no_logging():
        learn.fit(1)
        expected = learn.predict("W1 w2 w3 unknown")
        again = load_learner(learn.export("out"), device="cpu")
        found = again.predict("W1 w2 w3 unknown")
    assert found[0] == expected[0] and torch.equal(found[2], expected[2])
    assert again.dls.vocab == learn.dls.vocab and type(again.dls) is TextDataLoaders
    assert again.dls.detokenize(again.dls.numericalize("w3")) == "w3"
    model = learner(stream(path=tmp_path))
    model = load_learner(model.export("lm"), device="cpu")
    assert model.dls.numericalize("w1 w2") == learn.dls.numericalize("w1 w2")
