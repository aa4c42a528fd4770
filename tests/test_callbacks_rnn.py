"""The callbacks of recurrent models, on a tiny GRU in float64, against sums written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers import copied_params, same_params, tiny_learner
from treadle.callbacks import ModelResetter, RNNCallback, RNNRegularizer, rnn_cbs
from treadle.data import DataLoaders
from treadle.errors import CallbackError
from treadle.loop import Callback
from treadle.losses import CrossEntropyLossFlat

VOCAB, HIDDEN, BATCH, TIME = 5, 6, 3, 4


class TinyGRU(nn.Module):
    """A stateful language model: (batch, time) indices to scores, raw and dropped-out outputs."""

    def __init__(self, as_lists=False):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.decoder = nn.Linear(HIDDEN, VOCAB)
        self.as_lists, self.calls = as_lists, []
        self.reset()
        self.calls.clear()
        self.double()

    def reset(self):
        self.calls.append("reset")
        self.hidden = None

    def forward(self, x):
        self.calls.append("train" if self.training else "valid")
        raw, hidden = self.gru(self.embedding(x), self.hidden)
        self.hidden = hidden.detach()
        out = self.drop(raw)
        decoded = self.decoder(out)
        self.last = raw.detach(), out.detach()
        return (decoded, [out * 7, raw], [raw * 7, out]) if self.as_lists else (decoded, raw, out)


def rnn_learner(cbs, time=TIME, batch=BATCH, **kwargs):
    torch.manual_seed(3)
    text = torch.randint(VOCAB, (4, batch, time + 1))
    batches = [(rows[:, :-1], rows[:, 1:]) for rows in text]
    dls = DataLoaders(batches[:3], batches[3:], device="cpu")
    return tiny_learner(dls=dls, model=TinyGRU(**kwargs), cbs=cbs)


class Watch(Callback):
    """What each training batch was charged, and for which outputs."""

    order = 50
    run_valid = False

    def before_fit(self):
        self.charges, self.outs, self.raws, self.reported = [], [], [], []

    def before_backward(self):
        self.charges.append((self.loss_grad - self.loss).item())
        self.reported.append((self.loss.item(), self.loss_func(self.pred, *self.yb).item()))
        assert torch.equal(self.rnn.raw_out, self.model.last[0])
        assert torch.equal(self.rnn.out, self.model.last[1])
        self.raws.append(self.model.last[0])
        self.outs.append(self.model.last[1])


def activation_by_hand(out):
    numbers = out.flatten().tolist()
    return sum(h * h for h in numbers) / len(numbers)


def temporal_by_hand(raw):
    total, count = 0.0, 0
    for sequence in raw.tolist():
        for now, later in pairwise(sequence):
            for a, b in zip(now, later, strict=True):
                total += (b - a) ** 2
                count += 1
    return total / count


@pytest.mark.parametrize("as_lists", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.0, 1.0), (2.0, 0.7)])
def test_the_two_penalties(alpha, beta, as_lists):
    watch = Watch()
    learn = rnn_learner([*rnn_cbs(alpha, beta), watch], as_lists=as_lists)
    learn.fit(2)
    assert len(watch.charges) == 6
    for charge, out, raw in zip(watch.charges, watch.outs, watch.raws, strict=True):
        assert raw.shape == (BATCH, TIME, HIDDEN)
        assert not torch.equal(out, raw)  # dropout is between them
        by_hand = alpha * activation_by_hand(out) + beta * temporal_by_hand(raw)
        assert charge == pytest.approx(by_hand, rel=1e-12)
    assert all(reported == plain for reported, plain in watch.reported)


def test_the_penalties_are_differentiated():
    learn = rnn_learner(rnn_cbs(2.0, 0.7))
    grads = []
    watch = Callback(before_step=lambda cb: grads.append(cb.model.gru.weight_hh_l0.grad.clone()))
    learn.model.drop.p = 0.0
    twin = TinyGRU()
    twin.load_state_dict(learn.model.state_dict())
    twin.drop.p = 0.0
    learn.fit(1, cbs=watch)
    x, y = learn.dls.train[0]
    decoded, raw, out = twin(x)
    loss = CrossEntropyLossFlat()(decoded, y) + 2.0 * (out**2).mean()
    (loss + 0.7 * ((raw[:, 1:] - raw[:, :-1]) ** 2).mean()).backward()
    torch.testing.assert_close(grads[0], twin.gru.weight_hh_l0.grad, rtol=1e-10, atol=1e-14)


def test_one_sample_is_charged_and_one_step_of_time_has_no_differences():
    for batch, time in [(1, TIME), (BATCH, 1)]:
        watch = Watch()
        rnn_learner([*rnn_cbs(beta=1.0), watch], time=time, batch=batch).fit(1)
        by_hand = temporal_by_hand(watch.raws[0]) if time > 1 else 0.0
        assert watch.charges[0] == pytest.approx(by_hand, rel=1e-12)
        assert (by_hand > 0) == (time > 1)


def test_validation_is_not_charged():
    learn, charges = rnn_learner(rnn_cbs(2.0, 1.0)), []
    late = type("Late", (Callback,), {"order": 50})
    learn.add_cb(late(after_loss=lambda cb: charges.append((cb.loss_grad - cb.loss).item())))
    learn.validate()
    assert charges == [0.0]


def test_predictions_are_the_decoded_part():
    learn = rnn_learner(rnn_cbs())
    preds, targets = learn.get_preds()
    assert preds.shape == (BATCH, TIME, VOCAB)
    assert targets.shape == (BATCH, TIME)


def test_the_state_is_reset_before_each_pass_and_at_the_end():
    learn = rnn_learner(rnn_cbs())
    learn.fit(2)
    one = ["reset", "train", "train", "train", "reset", "valid"]
    assert learn.model.calls == [*one, *one, "reset"]


def test_the_regularizer_alone_says_what_to_add():
    learn = rnn_learner(RNNRegularizer(2.0, 1.0))
    before = copied_params(learn.model)
    with pytest.raises(CallbackError, match=r"add RNNCallback\(\) too, or .*rnn_cbs\(alpha, beta"):
        learn.fit(1)
    assert same_params(learn.model, before)


def test_models_that_do_not_suit_are_refused_in_sentences():
    with pytest.raises(CallbackError, match="got one part instead of three; return"):
        tiny_learner(cbs=RNNCallback()).fit(1)
    with pytest.raises(CallbackError, match=r"model\.reset\(\), which Sequential lacks"):
        tiny_learner(cbs=ModelResetter()).fit(1)


def test_rnn_cbs_has_a_regularizer_only_if_it_has_a_weight():
    assert [cb.name for cb in rnn_cbs()] == ["model_resetter", "rnn"]
    assert [cb.name for cb in rnn_cbs(beta=1)] == ["model_resetter", "rnn", "rnn_regularizer"]
