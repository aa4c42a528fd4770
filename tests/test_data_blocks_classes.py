"""Blocks of classes and numbers: one label, several, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from treadle.data import (
    Block,
    CategoryBlock,
    DataBlock,
    DataLoaders,
    ImageBlock,
    MultiCategoryBlock,
    RegressionBlock,
)
from treadle.errors import DataError, UsageError
from treadle.losses import BCEWithLogitsLossFlat

PICTURE = np.zeros((4, 4, 3), np.uint8)


def setup(block: Block, train: list[Any], valid: tuple[Any, ...] = ()) -> Any:
    return block.setup([(v, f"t{i}") for i, v in enumerate(train)], [(v, "v0") for v in valid])


def test_categories() -> None:
    block = setup(CategoryBlock(), ["b", "a", "b", "c"], ("c",))
    assert block.vocab == ["a", "b", "c"] and block.n_out == 3
    assert [block.encode(label) for label in "abc"] == [0, 1, 2]
    assert block.decode(torch.tensor(2)) == "c"
    assert setup(CategoryBlock(sort=False), ["b", "a", "b", "c"]).vocab == ["b", "a", "c"]
    assert setup(CategoryBlock(), [3, 1, 10]).vocab == [1, 3, 10]


def test_add_na_gives_the_missing_and_the_unknown_a_class() -> None:
    block = setup(CategoryBlock(add_na=True), ["b", None, "a", float("nan"), ""], ("x",))
    assert block.vocab == ["#na#", "a", "b"]
    assert [block.encode(v) for v in ("a", None, float("nan"), "stranger")] == [1, 0, 0, 0]
    given = setup(CategoryBlock(["b", "a"], add_na=True), ["b", "z"])
    assert given.vocab == ["#na#", "b", "a"] and given.encode("z") == 0
    assert given.setup([("a", 0), ("b", 1)], []).vocab == ["#na#", "b", "a"]


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), ""])
def test_a_missing_label_is_named(missing: Any) -> None:
    with pytest.raises(DataError, match=r"training item t1: its label is missing .*add_na=True"):
        setup(CategoryBlock(), ["a", missing, "b"])
    with pytest.raises(DataError, match="validation item v0: its label is missing"):
        setup(CategoryBlock(), ["a", "b"], (missing,))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["a", 1, "b"], r"type int, str cannot be sorted.*1, 'a'.*CategoryBlock\(vocab"),
        (["a", ["b"], "c"], r"label \['b'\] is a list; .*MultiCategoryBlock"),
        (["a", "a"], "one class, 'a'"),
        ([np.zeros(2), "a"], "is a ndarray; expected one label"),
    ],
)
def test_labels_that_make_no_classes(labels: list[Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        setup(CategoryBlock(), labels)


def test_several_labels() -> None:
    block = setup(MultiCategoryBlock(), [["sun", "sea"], [], ["sea"]], (("sun",),))
    assert block.vocab == ["sea", "sun"] and block.n_out == 2
    encoded = block.encode(["sun"])
    assert encoded.dtype == np.float32 and encoded.tolist() == [0, 1]
    assert block.encode([]).tolist() == [0, 0] and block.encode({"sea", "sun"}).tolist() == [1, 1]
    assert block.decode(torch.tensor([True, False])) == ["sea"]
    assert block.decode(torch.tensor([0.2, 0.7])) == ["sun"]
    na = setup(MultiCategoryBlock(add_na=True), [["a"], ["b"]], (["x", "a"],))
    assert na.vocab == ["#na#", "a", "b"] and na.encode(["x", "a"]).tolist() == [1, 1, 0]


def test_several_labels_as_zeros_and_ones() -> None:
    block = setup(MultiCategoryBlock(True, ["a", "b", "c"]), [[1, 0, 1], [0, 0, 0]], ([1, 1, 1],))
    assert block.encode([1, 0, 1]).tolist() == [1, 0, 1] and block.encode([1, 0, 1]).dtype == "f4"
    assert block.encode(("0", "1", "0")).tolist() == [0, 1, 0]
    assert block.decode(block.encode([1, 0, 1])) == ["a", "c"]
    with pytest.raises(DataError, match=r"item t1: \[1, 0\] is not 3 zeros and ones"):
        setup(block, [[1, 0, 1], [1, 0]])
    with pytest.raises(DataError, match=r"validation item v0: \[2, 0, 0\] is not"):
        setup(block, [[1, 0, 1]], ([2, 0, 0],))
    with pytest.raises(DataError, match="is no list of zeros and ones"):
        block.encode(["a"])
    with pytest.raises(UsageError, match="needs vocab"):
        MultiCategoryBlock(encoded=True)
    with pytest.raises(UsageError, match="leave out add_na"):
        MultiCategoryBlock(True, ["a"], add_na=True)


@pytest.mark.parametrize(
    ("labels", "valid", "match"),
    [
        (["sun sea", "sun"], (), r"item t0: The labels 'sun sea' are a str; .*label_delim"),
        ([["a"], 3], (), "item t1: The labels 3 are a int"),
        ([[], []], (), "None of 2 training items has a label"),
        ([["a"], ["b"]], (["c"],), "validation item v0: its label 'c' is not among the 2 classes"),
        ([["a", None]], (), "item t0: its label is missing"),
        ([["a"], [["b"]]], (), "is a list; expected one label"),
    ],
)
def test_labels_that_are_no_lists_of_labels(
    labels: list[Any], valid: tuple[Any, ...], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        setup(MultiCategoryBlock(), labels, valid)


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True), min_size=1))
def test_several_labels_come_back(labels: list[list[str]]) -> None:
    if not any(labels):
        return
    block = setup(MultiCategoryBlock(), labels)
    assert block.vocab == sorted({label for row in labels for label in row})
    for row in labels:
        assert block.decode(block.encode(row)) == sorted(row)


def test_the_loss_of_several_labels_is_binary_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets = (torch.rand(5, 3, generator=generator) > 0.5).float()
    loss = BCEWithLogitsLossFlat()
    p = scores.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert torch.allclose(loss(scores, targets), by_hand)
    assert torch.allclose(loss(scores, targets.bool()), by_hand)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    weighted = F.binary_cross_entropy_with_logits(scores, targets.double(), pos_weight=weight)
    assert torch.allclose(BCEWithLogitsLossFlat(pos_weight=weight)(scores, targets), weighted)
    assert torch.equal(BCEWithLogitsLossFlat(thresh=0.7).decodes(scores), p > 0.7)
    assert torch.equal(loss.activation(scores), p)


def test_numbers() -> None:
    one = setup(RegressionBlock(), [1, 2.5, "3"], (4,))
    assert one.n_out == 1 and one.encode("2.5").shape == () and one.encode(1).dtype == np.float32
    several = setup(RegressionBlock(), [[1, 2], (3, 4.5)])
    assert several.n_out == 2 and several.encode(torch.tensor([1, 2])).tolist() == [1, 2]
    assert several.decode(torch.tensor([1.0, 2.5])) == [1.0, 2.5]
    again = setup(several, [[5, 6]])
    assert again.n_out == 2


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([1, None], r"training item t1: The value None is missing"),
        ([1, float("nan")], "t1: The value nan is missing"),
        ([1, float("inf")], "t1: The value inf is not a finite number"),
        ([1, "many"], "t1: The value 'many' is not a finite number"),
        ([1, [1, 2]], r"t1: The value \[1, 2\] has the shape \(2,\); expected one number"),
        ([[1, 2], [1]], r"t1: The value \[1\] has the shape \(1,\); expected 2 numbers"),
        ([[1, 2], [1, [2]]], "t1: The value .* is not a finite number"),
        ([[[1, 2]]], r"t0: .* has the shape \(1, 2\)"),
    ],
)
def test_what_is_no_number_is_named(values: list[Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        setup(RegressionBlock(), values)


def test_targets_from_item_to_batch() -> None:
    items = [{"labels": ["a", "b"][: i % 3], "x": i, "xy": (i, -i)} for i in range(12)]
    plan = DataBlock(
        blocks=(ImageBlock, MultiCategoryBlock, RegressionBlock, RegressionBlock),
        n_inp=1,
        get_x=lambda item: PICTURE,
        get_y=[lambda item: item["labels"], lambda item: item["x"], lambda item: item["xy"]],
        splitter=lambda items: (range(8), range(8, 12)),
    )
    dls = plan.dataloaders(items, bs=8, shuffle_train=False, device="cpu")
    _, labels, number, pair = dls.one_batch()
    assert labels.tolist() == [[i % 3 > 0, i % 3 > 1] for i in range(8)]
    assert number.tolist() == list(range(8)) and pair.tolist() == [[i, -i] for i in range(8)]
    assert {t.dtype for t in (labels, number, pair)} == {torch.float32}
    assert dls.vocab == ["a", "b"] and dls.loss_func is None
    with pytest.raises(AttributeError, match="several"):
        _ = dls.c


@pytest.mark.parametrize(
    ("block", "get_y", "c", "loss", "decoded"),
    [
        (CategoryBlock, lambda i: "ab"[i % 2], 2, "CrossEntropyLossFlat", "b"),
        (MultiCategoryBlock, lambda i: ["ab"[i % 2]], 2, "BCEWithLogitsLossFlat", ["b"]),
        (RegressionBlock, lambda i: float(i), 1, "MSELossFlat", 1.0),
        (RegressionBlock, lambda i: [i, 2], 2, "MSELossFlat", [1.0, 2.0]),
    ],
)
def test_what_a_learner_is_told(block: Any, get_y: Any, c: int, loss: str, decoded: Any) -> None:
    plan = DataBlock((ImageBlock, block), get_x=lambda i: PICTURE, get_y=get_y)
    dls = plan.dataloaders(range(10), bs=4, device="cpu", seed=0)
    assert dls.c == c and type(dls.loss_func).__name__ == loss
    assert dls.decode_target(torch.as_tensor(dls.train_ds.element(0, 1))) == plan.blocks[1].setup(
        [(get_y(i), i) for i in range(10)], []
    ).decode(torch.as_tensor(dls.train_ds.element(0, 1)))
    y = dls.train_ds.blocks[1].encode(get_y(1))
    assert dls.decode_target(torch.as_tensor(y)) == decoded
    out = torch.zeros(4, c)
    assert dls.loss_func(out, dls.one_batch()[1]).isfinite()


def test_two_vocabs(tmp_path: Path) -> None:
    plan = DataBlock(
        (ImageBlock, CategoryBlock, CategoryBlock),
        n_inp=1,
        get_x=lambda i: PICTURE,
        get_y=[lambda i: "ab"[i % 2], lambda i: "xyz"[i % 3]],
        splitter=lambda items: (range(8), range(8, 10)),
    )
    dls = plan.dataloaders(range(10), bs=4, device="cpu")
    assert dls.vocab == [["a", "b"], ["x", "y", "z"]]
    assert not hasattr(dls, "c")


def test_data_sets_of_others_may_name_their_classes() -> None:
    data: Any = TensorDataset(torch.zeros(6, 2), torch.arange(6) % 2)
    dls = DataLoaders.from_dsets(data, data, bs=2, device="cpu")
    assert not hasattr(dls, "c") and dls.decode_target(torch.tensor(1)) == 1
    data.vocab = ["no", "yes"]
    dls = DataLoaders.from_dsets(data, data, bs=2, device="cpu")
    assert dls.c == 2 and dls.decode_target(torch.tensor(1)) == "yes"
