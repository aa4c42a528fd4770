"""Language models against plain nn.LSTM in float64, their dropouts, and their state."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from treadle.errors import UsageError
from treadle.text import (
    AWD_LSTM,
    CausalTransformer,
    EmbeddingDropout,
    PlainRNN,
    RNNDropout,
    TokenCrossEntropy,
    WeightDropLSTM,
    awd_lstm_clas_config,
    awd_lstm_lm_config,
    get_language_model,
)
from treadle.text import scores as scores_module
from treadle.text.decoder import split_lm

VOCAB = 11
SMALL = {"emb_sz": 5, "n_hid": 7, "n_layers": 3}
RECURRENT = [
    (AWD_LSTM, SMALL),
    (PlainRNN, {"n_hid": 6}),
    (PlainRNN, {"n_hid": 6, "kind": "GRU"}),
]


def tokens(bs=3, length=8, seed=0):
    return torch.randint(VOCAB, (bs, length), generator=torch.Generator().manual_seed(seed))


def model_of(arch, config, drop_mult=0.0, seed=1):
    torch.manual_seed(seed)
    return get_language_model(arch, VOCAB, config, drop_mult).double()


class ByHand(nn.Module):
    """The same stack, of plain parts."""

    def __init__(self, model):
        super().__init__()
        encoder = model[0]
        self.embedding = nn.Embedding.from_pretrained(
            encoder.encoder.weight.detach().clone(), freeze=False, padding_idx=1
        )
        self.lstms = nn.ModuleList()
        for rnn in encoder.rnns:
            lstm = nn.LSTM(rnn.input_size, rnn.hidden_size, batch_first=True).double()
            lstm.load_state_dict(rnn.state_dict())
            self.lstms.append(lstm)
        self.bias = nn.Parameter(model[1].decoder.bias.detach().clone())

    def forward(self, x):
        x = self.embedding(x)
        for lstm in self.lstms:
            x, _ = lstm(x)
        return F.linear(x, self.embedding.weight, self.bias), x


def test_without_dropout_it_is_a_stack_of_lstms_with_the_gradients_too():
    model = model_of(AWD_LSTM, SMALL).train()
    twin, x, y = ByHand(model), tokens(), tokens(seed=1)
    decoded, [raw], [out] = model(x)
    expected, expected_raw = twin(x)
    assert torch.equal(raw, out)
    torch.testing.assert_close(decoded, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(raw, expected_raw, rtol=1e-12, atol=1e-14)
    F.cross_entropy(decoded.flatten(0, 1), y.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), y.flatten()).backward()
    theirs = [twin.embedding, *twin.lstms]
    for mine, plain in zip(model[0].groups(), theirs, strict=True):
        for (name, p), q in zip(mine.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-14, msg=name)
    torch.testing.assert_close(model[1].decoder.bias.grad, twin.bias.grad)


@pytest.mark.parametrize(("arch", "config"), RECURRENT)
def test_two_windows_are_one_long_pass(arch, config):
    model, x = model_of(arch, config).eval(), tokens(length=9)
    whole = model(x)[0]
    model.reset()
    parts = torch.cat([model(x[:, :4])[0], model(x[:, 4:])[0]], dim=1)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)
    model.reset()
    afresh = torch.cat([model(x[:, :4])[0]] + [model(x[:, 4:])[0] for _ in (model.reset(),)], 1)
    assert torch.allclose(afresh[:, :4], whole[:, :4])
    assert not torch.allclose(afresh[:, 4:], whole[:, 4:])


@pytest.mark.parametrize(("arch", "config"), RECURRENT)
def test_gradients_end_at_the_edge_of_a_batch(arch, config):
    model, x = model_of(arch, config), tokens()
    for _ in range(2):  # the second backward would fail, were the first batch's graph part of it
        model(x)[0].sum().backward()
    hidden = model[0].hidden
    states = [t for part in hidden for t in (part if isinstance(part, tuple) else (part,))]
    assert states
    assert not any(t.requires_grad for t in states)


@pytest.mark.parametrize(("arch", "config"), RECURRENT)
def test_a_batch_of_another_size_goes_on_with_the_rows_that_it_has(arch, config):
    model, x = model_of(arch, config).eval(), tokens(bs=3)
    model(x)
    fewer = model(x[:2])[0]
    model.reset()
    model(x[:2])
    torch.testing.assert_close(fewer, model(x[:2])[0])
    more = model(x)[0]
    model.reset()
    torch.testing.assert_close(more[2:], model(x[2:])[0])


def test_the_transformer_sees_what_came_before_and_nothing_else():
    model, x = model_of(CausalTransformer, {"emb_sz": 16}).eval(), tokens()
    before = model(x)[0]
    changed = x.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    after = model(changed)[0]
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().amax((0, 2)).min() > 1e-6
    with pytest.raises(UsageError, match="give a multiple of 8"):
        CausalTransformer(VOCAB, emb_sz=12)


def test_tied_weights_are_one_and_learn_from_both_sides():
    model = model_of(AWD_LSTM, SMALL)
    assert model[1].decoder.weight is model[0].encoder.weight
    assert len(list(model.parameters())) == 1 + 3 * 4 + 1
    free = model_of(AWD_LSTM, {**SMALL, "tie_weights": False, "out_bias": False})
    assert free[1].decoder.weight is not free[0].encoder.weight
    assert free[1].decoder.bias is None


# Dropout


def test_weight_drop_draws_one_mask_a_call_and_trains_the_weights_as_stored():
    torch.manual_seed(0)
    lstm = WeightDropLSTM(4, 5, weight_p=0.4).double()
    x, state = torch.randn(2, 6, 4).double(), (torch.zeros(1, 2, 5).double(),) * 2
    raw = lstm.weight_hh_l0.detach().clone()
    torch.manual_seed(7)
    out, _ = lstm(x, state)
    torch.manual_seed(7)
    mask = F.dropout(torch.ones_like(raw), 0.4)
    assert 0 < (mask == 0).double().mean() < 1
    assert torch.equal(lstm.weight_hh_l0, raw)
    plain = nn.LSTM(4, 5, batch_first=True).double()
    plain.load_state_dict(lstm.state_dict())
    with torch.no_grad():
        plain.weight_hh_l0 *= mask
    expected, _ = plain(x, state)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(lstm.weight_hh_l0.grad, plain.weight_hh_l0.grad * mask)
    torch.testing.assert_close(lstm.weight_ih_l0.grad, plain.weight_ih_l0.grad)
    assert not torch.equal(lstm(x, state)[0], out)  # another mask
    lstm.eval()
    assert torch.equal(lstm(x, state)[0], lstm(x, state)[0])


def test_locked_dropout_and_word_dropout():
    torch.manual_seed(0)
    x = torch.ones(20, 5, 30)
    out = RNNDropout(0.3)(x)
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (out == 0).float().mean() == pytest.approx(0.3, abs=0.05)
    embedding = nn.Embedding(50, 4)
    words = torch.randint(50, (10, 30))
    dropped = EmbeddingDropout(embedding, 0.5)(words)
    ratio = (dropped / embedding(words)).detach()
    for word in words.unique():
        of_word = ratio[words == word].unique()
        assert len(of_word) == 1 or torch.allclose(of_word, of_word[0])
    assert set(ratio.round().unique().tolist()) == {0.0, 2.0}
    for layer in (RNNDropout(0.5).eval(), RNNDropout(0.0)):
        assert layer(x) is x


def test_validation_draws_nothing():
    model = model_of(AWD_LSTM, SMALL, drop_mult=1.0).eval()
    state = torch.get_rng_state()
    model(tokens())
    assert torch.equal(torch.get_rng_state(), state)


# How they are made


def test_the_numbers_of_the_paper_family_are_the_defaults():
    sizes = {"emb_sz": 400, "n_hid": 1152, "n_layers": 3, "pad_token": 1}
    assert awd_lstm_lm_config == {
        **sizes,
        **{"output_p": 0.1, "hidden_p": 0.15, "input_p": 0.25, "embed_p": 0.02, "weight_p": 0.2},
        **{"tie_weights": True, "out_bias": True},
    }
    assert awd_lstm_clas_config == {
        **sizes,
        **{"output_p": 0.4, "hidden_p": 0.3, "input_p": 0.4, "embed_p": 0.05, "weight_p": 0.5},
    }
    model = get_language_model(AWD_LSTM, VOCAB, SMALL, drop_mult=0.5)
    assert model[0].input_dp.p == 0.125
    assert model[0].rnns[2].weight_p == 0.1
    assert model[1].output_dp.p == 0.05
    assert awd_lstm_lm_config["input_p"] == 0.25


def test_groups_hold_every_parameter_once():
    for arch, config in [*RECURRENT, (CausalTransformer, {"emb_sz": 16})]:
        model = model_of(arch, config)
        grouped = [p for group in split_lm(model) for p in group]
        assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))


def test_settings_that_cannot_be_meant():
    with pytest.raises(UsageError, match="config has 'n_hidd', which AWD_LSTM lacks; did you mean"):
        get_language_model(AWD_LSTM, VOCAB, {"n_hidd": 3})
    with pytest.raises(UsageError, match="arch='Linear' has no lm_config; give AWD_LSTM"):
        get_language_model(nn.Linear, VOCAB)
    with pytest.raises(UsageError, match='kind=\'RNN\' is unknown; give "LSTM" or "GRU"'):
        PlainRNN(VOCAB, kind="RNN")


# Scores and their cross entropy, as they are computed where they are many


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(scores_module, "_LARGE", 0)
    monkeypatch.setattr(scores_module, "_ROWS", 4)


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_the_fast_path_is_the_plain_one(bias, factor):
    torch.manual_seed(0)
    x, y = torch.randn(3, 7, 5), torch.randint(VOCAB, (3, 7))
    weight, b = torch.randn(VOCAB, 5), torch.randn(VOCAB) if bias else None
    y[0, :3] = -100
    fast = [t.clone().requires_grad_() if t is not None else None for t in (x, weight, b)]
    slow = [t.double().requires_grad_() if t is not None else None for t in (x, weight, b)]
    loss = TokenCrossEntropy()(scores_module.scores(*fast), y)
    plain = F.cross_entropy(F.linear(*slow).view(-1, VOCAB), y.view(-1))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    (loss * factor).backward()
    (plain * factor).backward()
    for mine, theirs in zip(fast, slow, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("all_are_large")
def test_the_fast_path_with_frozen_parts_and_without_gradients():
    x, weight, b = torch.randn(3, 7, 5), torch.randn(VOCAB, 5), torch.randn(VOCAB)
    frozen = x.clone().requires_grad_()
    scores_module.scores(frozen, weight, b).sum().backward()
    torch.testing.assert_close(frozen.grad, weight.sum(0).expand_as(x))
    head = b.clone().requires_grad_()
    scores_module.scores(x, weight, head).sum().backward()
    torch.testing.assert_close(head.grad, torch.full_like(b, 21.0))
    with torch.no_grad():
        torch.testing.assert_close(scores_module.scores(x, weight, b), F.linear(x, weight, b))


@pytest.mark.usefixtures("all_are_large")
def test_improbable_tokens_cost_what_they_cost():
    x = torch.tensor([[0.0, 300.0, 0.0], [0.0, 80.0, 0.0]], requires_grad=True)
    loss = TokenCrossEntropy()(x, torch.tensor([0, 2]))
    assert loss.item() == 190.0
    loss.backward()
    torch.testing.assert_close(x.grad, torch.tensor([[-0.5, 0.5, 0.0], [0.0, 0.5, -0.5]]))


@pytest.mark.usefixtures("all_are_large")
def test_memory_is_not_used_twice_at_once():
    weight, kept = torch.randn(VOCAB, 5), []
    for _ in range(6):
        x = torch.randn(2, 3, 5)
        kept.append((scores_module.scores(x, weight, None), F.linear(x, weight)))
    for mine, theirs in kept:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.usefixtures("all_are_large")
def test_the_gradient_is_let_go_of_and_may_be_kept():
    x = torch.randn(6, VOCAB, requires_grad=True)
    loss = TokenCrossEntropy()(x, torch.randint(VOCAB, (6,)))
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_other_losses_go_torchs_way():
    x, y = torch.randn(2, 3, VOCAB), torch.randint(VOCAB, (2, 3))
    flat = x.view(-1, VOCAB), y.view(-1)
    for kwargs in ({"reduction": "none"}, {"label_smoothing": 0.1}, {"weight": torch.rand(VOCAB)}):
        mine = TokenCrossEntropy(**kwargs)(x, y)
        torch.testing.assert_close(mine, F.cross_entropy(*flat, **kwargs))
    with pytest.raises(UsageError, match=r"a tuple of several parts.*RNNCallback"):
        TokenCrossEntropy()((x, x, x), y)


def test_a_copy_of_a_model_has_a_state_of_its_own():
    model = model_of(AWD_LSTM, SMALL).eval()
    twin = copy.deepcopy(model)
    model(tokens())
    assert not twin[0].hidden
