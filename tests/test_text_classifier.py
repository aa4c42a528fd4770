"""The text classifier: what it reads of a document, whatever the batch and its padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import UsageError
from treadle.text import (
    AWD_LSTM,
    CausalTransformer,
    PlainRNN,
    PoolingLinearClassifier,
    SentenceEncoder,
    get_text_classifier,
)
from treadle.text.classifier import masked_concat_pool, split_clas

VOCAB, BPTT = 9, 4
ARCHS = [
    (AWD_LSTM, {"emb_sz": 4, "n_hid": 5, "n_layers": 2}),
    (PlainRNN, {"n_hid": 4}),
    (CausalTransformer, {"emb_sz": 8}),
]


def classifier(arch, config, **kwargs):
    torch.manual_seed(0)
    model = get_text_classifier(arch, VOCAB, 3, BPTT, config, lin_ftrs=(6,), **kwargs)
    return model.double().eval()


MODELS = [
    classifier(arch, config, max_len=max_len) for arch, config in ARCHS for max_len in (None, 6)
]


def padded(documents, more=0):
    lengths = torch.tensor([len(d) for d in documents])
    batch = torch.full((len(documents), int(lengths.max()) + more), 1)
    for row, document in zip(batch, documents, strict=True):
        row[: len(document)] = torch.tensor(document)
    return batch, lengths


documents = st.lists(
    st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=13), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(documents, st.integers(0, 9), st.sampled_from(MODELS))
def test_neither_padding_nor_company_changes_a_document(texts, more, model):
    together = model(*padded(texts, more))[0]
    for text, row in zip(texts, together, strict=True):
        alone = model(*padded([text]))[0][0]
        torch.testing.assert_close(row, alone, rtol=1e-10, atol=1e-12)


def test_windows_are_one_long_pass():
    model = MODELS[0]
    encoder = model[0]
    text = torch.tensor([[2, 5, 3, 4, 8, 7, 2, 6, 3, 5]])
    features, counts = encoder(text, torch.tensor([10]))
    whole = encoder.module(text)
    encoder.reset()
    torch.testing.assert_close(features, whole, rtol=1e-12, atol=1e-14)
    assert counts.all()


def test_without_lengths_the_padding_says_them():
    batch, lengths = padded([[2, 3, 4], [5], [6, 7, 8, 2, 3]], more=2)
    torch.testing.assert_close(MODELS[0](batch)[0], MODELS[0](batch, lengths)[0])


def test_of_a_long_document_the_end_counts_and_learns():
    model = classifier(*ARCHS[0], max_len=4)
    text = torch.tensor([[2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6]])
    features, counts = model[0](text, torch.tensor([12]))
    assert counts.tolist() == [[False] * 8 + [True] * 4]
    features[:, 8:].sum().backward()
    learnt = model[0].module.encoder.weight.grad.abs().sum(1) > 0
    assert learnt.nonzero().flatten().tolist() == [3, 4, 5, 6]  # of the last window alone


def test_pooling_by_hand():
    features = torch.tensor([[[1.0, -2.0], [5.0, -4.0], [3.0, -9.0]], [[7.0, 7.0], [8, 8], [9, 9]]])
    counts = torch.tensor([[True, True, False], [True, False, False]])
    expected = [[5.0, -4.0, 5.0, -2.0, 3.0, -3.0], [7.0] * 6]
    assert masked_concat_pool(features, counts).tolist() == expected


def test_an_empty_document_is_one_token_of_padding():
    scores = MODELS[0](torch.tensor([[1, 1], [2, 3]]), torch.tensor([0, 2]))[0]
    assert scores.isfinite().all()


def test_groups_hold_every_parameter_once():
    for model in MODELS:
        grouped = [p for group in split_clas(model) for p in group]
        assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))


def test_the_state_ends_with_the_document():
    model = MODELS[0]
    batch, lengths = padded([[2, 3, 4, 5, 6]])
    assert torch.equal(model(batch, lengths)[0], model(batch, lengths)[0])
    assert not model[0].module.hidden


def test_layers_and_dropouts_must_agree():
    with pytest.raises(UsageError, match="the head has 2 layers and got 3 dropouts"):
        PoolingLinearClassifier([6, 5, 2], [0.1, 0.1, 0.1])
    assert isinstance(MODELS[0][0], SentenceEncoder)
