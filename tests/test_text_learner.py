"""Learners for text, on numbers written as words."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from treadle.callbacks import (
    Every,
    ModelResetter,
    ProgressCallback,
    RNNCallback,
    RNNRegularizer,
)
from treadle.data import DataLoaders
from treadle.errors import DataError, UsageError
from treadle.interpret import ClassificationInterpretation
from treadle.learner import Learner, load_learner
from treadle.loop import Callback
from treadle.optim import Adam
from treadle.text import (
    AWD_LSTM,
    CausalTransformer,
    LMLearner,
    PlainRNN,
    SpaceTokenizer,
    TextDataLoaders,
    TextLearner,
    TokenCrossEntropy,
    get_language_model,
    language_model_learner,
    text_classifier_learner,
)
from treadle.text.generate import choose

WORDS = "xxunk xxpad xxbos one two three four five six".split()
TINY = {"emb_sz": 12, "n_hid": 16, "n_layers": 2}


class Loaders(DataLoaders):
    """With a vocabulary set by hand."""

    vocab = n_inp = loss_func = None
    c = 2


def lm_dls(batches=12, bs=4, length=8, vocab=WORDS):
    """one two ... six one two ..., each row going on from batch to batch."""
    rows = [torch.arange(i, i + batches * length + 1) % 6 + 3 for i in range(bs)]
    text = torch.stack(rows)
    cut = [
        (text[:, i : i + length].contiguous(), text[:, i + 1 : i + length + 1].contiguous())
        for i in range(0, batches * length, length)
    ]
    dls = Loaders(cut[:-2], cut[-2:], device="cpu")
    dls.vocab = vocab
    return dls


def clas_dls():
    """Whether a document holds a "six"."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(12):
        lengths = torch.randint(2, 9, (8,), generator=g)
        x = torch.randint(3, 8, (8, 8), generator=g)
        y = torch.arange(8) % 2
        x[:, 0] = torch.where(y == 1, 8, x[:, 0])
        x[torch.arange(8) >= lengths[:, None]] = 1
        batches.append((x, lengths, y))
    dls = Loaders(batches[:-2], batches[-2:], device="cpu")
    dls.vocab, dls.n_inp, dls.loss_func = [WORDS, ["no", "yes"]], 2, None
    return dls


def quiet(learn):
    learn.logger = lambda row: None
    return learn.remove_cb(ProgressCallback)


def lm(arch=AWD_LSTM, config=TINY, seed=0, dls=None, **kwargs):
    torch.manual_seed(seed)
    return quiet(language_model_learner(dls or lm_dls(), arch, config, drop_mult=0.1, **kwargs))


@pytest.mark.parametrize(
    ("arch", "config"),
    [(AWD_LSTM, TINY), (PlainRNN, {"n_hid": 16}), (CausalTransformer, {"emb_sz": 16})],
)
def test_it_learns_to_count_and_goes_on_counting(arch, config):
    learn = lm(arch, config)
    learn.fit_one_cycle(6, 3e-2)
    assert learn.recorder.metric_names[3:5] == ["accuracy", "perplexity"]
    _, accuracy, perplexity = learn.validate()
    assert accuracy > 0.9
    assert perplexity < 2.0
    said = learn.predict("two three", 7, temperature=0.3, seed=0)
    assert said == "two three four five six one two three four"


def test_the_learner_brings_what_a_recurrent_model_needs():
    learn = lm(alpha=3.0, beta=0.5)
    kinds = [type(cb) for cb in learn.cbs]
    assert {ModelResetter, RNNCallback, RNNRegularizer} < set(kinds)
    assert (learn.rnn_regularizer.alpha, learn.rnn_regularizer.beta) == (3.0, 0.5)
    assert learn.moms == (0.8, 0.7, 0.8)
    assert isinstance(learn.loss_func, TokenCrossEntropy)
    assert isinstance(learn, LMLearner)


def test_validation_perplexity_is_that_of_all_tokens_whatever_the_batches():
    dls = lm_dls()
    x, y = dls.valid[0]
    dls.loaders[1] = [(x, y), (x[:1, :3], y[:1, :3])]
    learn = lm(dls=dls)
    _, _, perplexity = learn.validate()
    model = learn.model.eval()
    model.reset()
    with torch.no_grad():
        first = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten(), reduction="sum")
        second = F.cross_entropy(model(x[:1, :3])[0][0], y[0, :3], reduction="sum")
    assert perplexity == pytest.approx(math.exp((first + second).item() / 35), rel=1e-5)


# Text that goes on


def test_draws_are_reproducible_by_seed():
    learn = lm()
    said = learn.predict("one", 20, seed=5)
    assert learn.predict("one", 20, seed=5) == said
    assert learn.predict("one", 20, seed=6) != said
    assert 1 < len(said.split()) <= 21  # xxbos and xxpad are not shown
    torch.manual_seed(1)
    state = torch.get_rng_state()
    learn.predict("one", 3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    by_torch = learn.predict("one", 20)
    torch.manual_seed(1)
    assert learn.predict("one", 20) == by_torch


def test_predict_leaves_mode_and_state_as_training_needs_them():
    learn = lm()
    learn.model.train()
    learn.predict("one", 2)
    assert learn.model.training
    assert not learn.model[0].hidden


def test_what_may_be_drawn():
    scores = torch.tensor([5.0, 0.0, 1.0, 2.0])
    many = lambda **kw: {choose(scores, **kw) for _ in range(300)}  # noqa: E731
    torch.manual_seed(0)
    assert many(never=0) == {1, 2, 3}
    assert many(never=0, min_p=0.02) == {3}
    assert many(temperature=0.01) == {0}
    assert many(temperature=50.0) == {0, 1, 2, 3}
    with pytest.warns(UserWarning, match=r"no token has a probability of 0\.999 or more"):
        choose(scores, min_p=0.999)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="give a number above 0"):
            choose(scores, temperature=wrong)


def test_shares_of_draws_are_the_probabilities_at_that_temperature():
    scores, g = torch.tensor([0.0, 1.0, 2.0]), torch.Generator().manual_seed(0)
    drawn = [choose(scores, temperature=2.0, generator=g) for _ in range(3000)]
    shares = torch.bincount(torch.tensor(drawn)) / 3000
    torch.testing.assert_close(shares, (scores / 2).softmax(0), atol=0.03, rtol=0)


def test_text_that_cannot_be_read():
    learn = lm()
    assert learn.predict("one eleven", 0).split() == ["one", "xxunk"]
    with pytest.raises(UsageError, match="give a text of one at least"):
        learn.predict("", 1)
    learn.dls.vocab = [*WORDS[3:], "a", "b", "c"]
    with pytest.raises(UsageError, match="the vocabulary has no 'eleven'"):
        learn.predict("eleven", 1)


# Encoders


def test_an_encoder_goes_from_a_language_model_into_a_classifier(tmp_path):
    first = lm(path=tmp_path)
    first.save_encoder("enc")
    dls = clas_dls()
    dls.vocab = [[*WORDS[:3], "seven", *reversed(WORDS[3:])], ["no", "yes"]]
    learn = quiet(
        text_classifier_learner(dls, config=TINY, loss_func=TokenCrossEntropy(), path=tmp_path)
    )
    assert learn.load_encoder("enc") is learn
    old, new = first.model[0].encoder.weight, learn.model[0].module.encoder.weight
    for row, word in enumerate(dls.vocab[0]):
        expected = old[WORDS.index(word)] if word in WORDS else old.mean(0)
        torch.testing.assert_close(new[row], expected)
    for mine, theirs in zip(learn.model[0].module.rnns, first.model[0].rnns, strict=True):
        assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    trained = [any(p.requires_grad for p in g["params"]) for g in learn.opt.param_groups]
    assert trained == [False, False, False, True]
    learn.freeze_to(-2)
    trained = [any(p.requires_grad for p in g["params"]) for g in learn.opt.param_groups]
    assert trained == [False, False, True, True]


def test_encoders_that_do_not_fit(tmp_path):
    learn = lm(path=tmp_path)
    file = learn.save_encoder("enc")
    wider = lm(path=tmp_path, config={**TINY, "n_hid": 20})
    with pytest.raises(DataError, match=r"does not fit the encoder \(rnns\.0\.bias_hh_l0 \(64,\)"):
        wider.load_encoder("enc")
    with pytest.raises(DataError, match="there is no encoder at"):
        learn.load_encoder("other")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="is not a readable safetensors file"):
        learn.load_encoder("enc")
    learn.save("weights")
    with pytest.raises(DataError, match="write it by save_encoder"):
        learn.load_encoder("weights")


def test_a_classifier_learns_and_unfreezes_by_and_by(tmp_path):
    torch.manual_seed(0)
    learn = text_classifier_learner(
        clas_dls(), config=TINY, drop_mult=0.1, loss_func=TokenCrossEntropy(), path=tmp_path
    )
    quiet(learn)
    for last in (-1, -2):
        learn.freeze_to(last)
        learn.fit_one_cycle(1, 1e-2)
    learn.unfreeze()
    learn.fit_one_cycle(6, 2e-2)
    assert learn.validate()[1] > 0.9
    preds, _ = learn.get_preds()
    assert preds.shape == (16, 2)
    torch.testing.assert_close(preds.sum(1), torch.ones(16))
    assert isinstance(learn, TextLearner)


# What cannot be meant


def test_there_are_no_trained_weights():
    for make, dls in ((language_model_learner, lm_dls()), (text_classifier_learner, clas_dls())):
        with pytest.raises(UsageError, match=r"no trained weights .*save_encoder\(name\)"):
            make(dls, pretrained=True)


def test_loaders_that_say_too_little():
    dls = lm_dls(vocab=None)
    with pytest.raises(UsageError, match="the loaders have no vocab"):
        language_model_learner(dls)
    dls = clas_dls()
    dls.c = None
    with pytest.raises(UsageError, match="how many classes there are; give n_out="):
        text_classifier_learner(dls)


def test_three_parts_without_rnn_callback_say_what_to_add():
    model = get_language_model(AWD_LSTM, len(WORDS), TINY)
    learn = quiet(Learner(lm_dls(), model, TokenCrossEntropy()))
    with pytest.raises(UsageError, match=r"add RNNCallback\(\), or cbs=rnn_cbs"):
        learn.fit(1)


# Interrupted in the middle of an epoch, and the book's spellings


class Interrupted(Exception):
    pass


def stop(cb):
    if cb.training and (cb.epoch, cb.iter) == (1, 4):
        raise Interrupted


@pytest.mark.parametrize(
    ("arch", "config"), [(AWD_LSTM, TINY), (PlainRNN, {"n_hid": 8, "kind": "GRU"})]
)
def test_a_fit_resumed_within_an_epoch_has_the_state_that_it_had(arch, config, tmp_path):
    whole = lm(arch, config)
    whole.fit_one_cycle(2, 1e-2)
    broken = lm(arch, config, path=tmp_path)
    with pytest.raises(Interrupted):
        broken.fit_one_cycle(2, 1e-2, cbs=Callback(after_batch=stop), checkpoint=Every(updates=3))
    resumed = lm(arch, config, seed=9, path=tmp_path)
    resumed.resume()
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert whole.recorder.values == resumed.recorder.values


def test_the_books_own_callbacks_train_alike():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        class ModelReseter(Callback):
            def begin_train(self):
                self.model.reset()

            def begin_validate(self):
                self.model.reset()

        class RNNRegularizerOfTheBook(Callback):
            def __init__(self, alpha=0.0, beta=0.0):
                self.alpha, self.beta = alpha, beta

            def after_pred(self):
                self.raw_out, self.out = self.pred[1], self.pred[2]
                self.learn.pred = self.pred[0]

            def after_loss(self):
                if not self.training:
                    return
                if self.alpha != 0.0:
                    self.learn.loss += self.alpha * self.out[-1].float().pow(2).mean()
                if self.beta != 0.0:
                    h = self.raw_out[-1]
                    if len(h) > 1:
                        steps = h[:, 1:] - h[:, :-1]
                        self.learn.loss += self.beta * steps.float().pow(2).mean()

    told = " ".join(str(one.message) for one in caught)
    assert "before_train" in told
    assert "before_validate" in told

    mine = lm(alpha=2.0, beta=1.0, opt_func=Adam)
    torch.manual_seed(0)
    model = get_language_model(AWD_LSTM, len(WORDS), TINY, 0.1)
    book = quiet(
        Learner(
            lm_dls(),
            model,
            TokenCrossEntropy(),
            cbs=[ModelReseter(), RNNRegularizerOfTheBook(2.0, 1.0)],
        )
    )
    for learn in (mine, book):
        torch.manual_seed(1)
        learn.fit(2, 1e-2)
    for p, q in zip(mine.model.parameters(), book.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


# Files


def test_an_exported_model_gives_the_same_bits(tmp_path):
    learn = lm(path=tmp_path)
    learn.fit(1, 1e-2)
    folder = learn.export()
    assert json.loads((folder / "bundle.json").read_text())["learner"] == {"name": "LMLearner"}
    loaded = load_learner(folder)
    assert isinstance(loaded, LMLearner)
    x = learn.dls.valid[0][0]
    learn.model.eval()
    loaded.model.eval()
    learn.model.reset()
    assert torch.equal(learn.model(x)[0], loaded.model(x)[0])
    assert loaded.model[1].decoder.weight is loaded.model[0].encoder.weight


def counting(n, start):
    return "Now " + " ".join(WORDS[3 + (start + i) % 6] for i in range(n)) + "."


def test_exports_of_both_kinds_answer_with_the_same_bits(tmp_path):
    texts = [counting(12, i) for i in range(40)]
    dls = TextDataLoaders.from_lists(texts, bs=4, seq_len=8, seed=0, path=tmp_path, device="cpu")
    learn = lm(dls=dls)
    learn.fit(1, 1e-2)
    said = learn.predict("Now two three", 10, seed=3)
    assert said.startswith("Now two three")
    assert load_learner(learn.export("lm")).predict("Now two three", 10, seed=3) == said
    assert len(learn.sample_texts(2, 5)) == 2
    assert learn.sample_texts(2, 5) == learn.sample_texts(2, 5)
    learn.save_encoder("enc")

    labels = ["long" if i % 2 else "short" for i in range(40)]
    texts = [counting(9 if i % 2 else 3, i) for i in range(40)]
    dls = TextDataLoaders.from_lists(
        texts, labels, bs=8, seed=0, text_vocab=learn.dls.vocab, path=tmp_path, device="cpu"
    )
    torch.manual_seed(0)
    learn = quiet(text_classifier_learner(dls, config=TINY, drop_mult=0.1)).load_encoder("enc")
    learn.fit(1, 2e-2)
    label, index, probs = learn.predict(counting(9, 2))
    assert label == dls.vocab[1][int(index)] == ["long", "short"][int(probs.argmax())]
    assert probs.sum().item() == pytest.approx(1)
    loaded = load_learner(learn.export("clas"))
    assert torch.equal(loaded.predict(counting(9, 2))[2], probs)
    found = ClassificationInterpretation.from_learner(learn)
    assert found.vocab == ["long", "short"]
    assert found.confusion_matrix().sum() == 8


def test_where_there_is_no_padding_every_word_is_learnt():
    tokenizer = SpaceTokenizer(pad=None)
    texts = ["one two three four"] * 20
    dls = TextDataLoaders.from_lists(texts, tok_tfm=tokenizer, bs=2, seq_len=4, device="cpu")
    assert lm(dls=dls).model[0].encoder.padding_idx is None
    dls = TextDataLoaders.from_lists(texts, bs=2, seq_len=4, device="cpu")
    assert lm(dls=dls).model[0].encoder.padding_idx == 1
    assert lm(dls=dls, config={**TINY, "pad_token": 3}).model[0].encoder.padding_idx == 3


def test_bf16_is_near():
    exact, mixed = lm(), lm(precision="bf16")
    for learn in (exact, mixed):
        torch.manual_seed(1)
        learn.fit(2, 1e-2)
    assert mixed.recorder.values[-1][1] == pytest.approx(exact.recorder.values[-1][1], rel=0.05)
