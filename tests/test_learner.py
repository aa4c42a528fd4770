"""The verbs of a learner: fits and their schedules, predictions, weights, freezing."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from helpers import tiny_learner
from treadle.all import (
    SGD,
    Callback,
    CancelStepException,
    DataError,
    DataLoaders,
    Learner,
    Optimizer,
    ScheduleFreeAdamW,
    UsageError,
    accuracy,
    combined_cos,
    error_rate,
    sgd_step,
)
from treadle.run.weights import load_weights, save_weights


def test_fit_lowers_the_loss_and_records_it():
    learn = tiny_learner()
    start = learn.validate()[0]
    learn.fit(5, 0.01)
    assert learn.recorder.values[-1][1] < start
    assert learn.recorder.iters == [len(learn.dls.train) * (i + 1) for i in range(5)]
    assert learn.validate() == pytest.approx(learn.recorder.values[-1][1:])


def test_smoothed_losses_are_the_debiased_average():
    learn = tiny_learner()
    learn.fit(2)
    average, expected = 0.0, []
    for i, loss in enumerate(learn.recorder.raw_losses, 1):
        average = 0.98 * average + 0.02 * loss
        expected.append(average / (1 - 0.98**i))
    assert learn.recorder.losses == pytest.approx(expected)


def test_validation_does_not_depend_on_the_batch_size():
    learn = tiny_learner(metrics=[accuracy, error_rate])
    whole = tuple(torch.cat(parts) for parts in zip(*learn.dls.valid, strict=True))
    ragged = learn.validate()
    at_once = learn.validate(dl=[whole])
    assert ragged == pytest.approx(at_once)
    assert ragged[1] + ragged[2] == pytest.approx(1)


def test_one_cycle_moves_rate_and_momentum():
    learn = tiny_learner(opt_func=partial(SGD, mom=0.9))
    learn.fit_one_cycle(4, 0.1)
    n = 4 * len(learn.dls.train)
    lrs, moms = learn.recorder.lrs, learn.recorder.hps["mom"]
    assert len(lrs) == n
    assert lrs[0] == pytest.approx(0.1 / 25)
    assert max(lrs) == pytest.approx(0.1, rel=0.02)
    expected = [combined_cos(0.25, 0.1 / 25, 0.1, 0.1 / 1e5)(i / n) for i in range(n)]
    assert lrs == pytest.approx(expected)
    assert moms == pytest.approx([combined_cos(0.25, 0.95, 0.85, 0.95)(i / n) for i in range(n)])


def test_one_cycle_without_momentum_in_the_chain():
    learn = tiny_learner()
    learn.fit_one_cycle(1, 0.1)
    learn.fit_one_cycle(1, 0.1, moms=(0, 0, 0))
    assert "mom" not in learn.recorder.hps
    with pytest.raises(UsageError, match=r"moms=\(0.95, 0.85, 0.95\)"):
        learn.fit_one_cycle(1, 0.1, moms=(0.95, 0.85, 0.95))


def test_a_skipped_step_does_not_move_the_schedule():
    class SkipFirst(Callback):
        def before_step(self):
            if self.epoch == 0:
                raise CancelStepException

    learn = tiny_learner()
    learn.fit_one_cycle(2, 0.1, cbs=SkipFirst)
    n = len(learn.dls.train)
    assert len(set(learn.recorder.lrs[: n + 1])) == 1
    assert learn.recorder.lrs[n + 1] > learn.recorder.lrs[n]


def test_flat_cos_and_sgdr():
    learn = tiny_learner()
    learn.fit_flat_cos(4, 0.1)
    n = 4 * len(learn.dls.train)
    assert learn.recorder.lrs[: int(0.75 * n)] == pytest.approx([0.1] * int(0.75 * n))
    assert learn.recorder.lrs[-1] < 0.01
    learn.fit_sgdr(2, 1, 0.1)
    assert len(learn.recorder.values) == 3
    n = len(learn.dls.train)
    assert learn.recorder.lrs[0] == learn.recorder.lrs[n] == pytest.approx(0.1)


def two_groups(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


def test_fine_tune_trains_the_head_first_then_all_at_two_rates():
    learn = tiny_learner(splitter=two_groups)
    frozen = []
    watch = Callback(
        before_batch=lambda cb: frozen.append(not cb.model[0].weight.requires_grad),
    )
    learn.fine_tune(2, 0.01, cbs=watch)
    steps = len(learn.dls.train) + len(learn.dls.valid)
    assert frozen == [True] * steps + [False] * 2 * steps
    first, last = (hypers["lr"] for hypers in learn.opt.hypers)
    assert last / first == pytest.approx(100)


def test_norms_and_biases_do_not_decay_unless_asked():
    def decayed(**kwargs):
        learn = tiny_learner(lr=1.0, opt_func=partial(SGD, wd=0.1), **kwargs)
        learn.model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        nn.init.ones_(learn.model[0].bias)
        zero = Callback(after_backward=lambda cb: [p.grad.zero_() for p in cb.model.parameters()])
        before = {name: p.clone() for name, p in learn.model.named_parameters()}
        learn.fit(1, cbs=zero)
        return {n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])}

    assert decayed() == {"0.weight"}
    assert decayed(wd_bn_bias=True) == {"0.weight", "0.bias", "1.weight"}  # 1.bias is zero


def test_a_norm_that_the_splitter_leaves_out_stays_as_it_is():
    learn = tiny_learner()
    learn.model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    learn.model[1].weight.requires_grad_(False)
    learn.fit(1)
    assert torch.equal(learn.model[1].weight, torch.ones(4))


@pytest.mark.parametrize(
    "opt_func", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9), torch.optim.RMSprop]
)
def test_torchs_own_optimizers_train(opt_func):
    learn = tiny_learner(opt_func=opt_func)
    start = learn.validate()[0]
    learn.fit_one_cycle(3, 0.01)
    assert learn.validate()[0] < start
    assert max(learn.recorder.lrs) == pytest.approx(0.01, rel=0.1)


def test_schedule_free_weights_are_judged_in_evaluation_mode():
    learn = tiny_learner(opt_func=ScheduleFreeAdamW)
    seen = {}

    def keep(name):
        return lambda cb: seen.setdefault(name, []).append(cb.model[0].weight.detach().clone())

    watch = Callback(after_train=keep("trained"), after_validate=keep("judged"))
    learn.fit(2, 0.01, cbs=watch)
    assert len(seen["trained"]) == 2
    for trained, judged in zip(seen["trained"], seen["judged"], strict=True):
        assert not torch.equal(trained, judged)


def test_gradients_left_over_do_not_leak_into_a_fit():
    results = []
    for leftover in (False, True):
        learn = tiny_learner()
        if leftover:
            for p in learn.model.parameters():
                p.grad = torch.full_like(p, 1e3)
        learn.fit(1)
        results.append(learn.recorder.raw_losses)
    assert results[0] == results[1]


def test_get_preds_gives_probabilities_targets_inputs_answers_and_losses():
    learn = tiny_learner()
    x, y = (torch.cat(parts) for parts in zip(*learn.dls.valid, strict=True))
    with torch.no_grad():
        out = learn.model.eval()(x)
    inputs, probs, targets, decoded, losses = learn.get_preds(
        with_input=True, with_decoded=True, with_loss=True
    )
    torch.testing.assert_close(probs, out.softmax(1))
    assert torch.equal(inputs, x)
    assert torch.equal(targets, y)
    assert torch.equal(decoded, out.argmax(1))
    torch.testing.assert_close(losses, nn.functional.cross_entropy(out, y, reduction="none"))
    assert learn.loss_func.reduction == "mean"


def test_losses_by_sample_of_a_plain_function():
    learn = tiny_learner(loss_func=nn.functional.cross_entropy)
    _, _, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (sum(len(y) for _, y in learn.dls.valid),)
    assert learn.loss_func is nn.functional.cross_entropy


def test_save_and_load_give_the_same_bits(tmp_path):
    learn = tiny_learner(path=tmp_path)
    learn.fit(1)
    file = learn.save("one")
    assert file == tmp_path / "models" / "one.safetensors"
    other = tiny_learner(path=tmp_path)
    other.load("one")
    for a, b in zip(learn.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_weights(nn.Sequential(nn.Linear(2, 3)), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"another shape: .*0.weight \(3, 2\) for \(4, 2\)"):
        load_weights(nn.Sequential(nn.Linear(2, 4)), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"missing: 1.weight, 1.bias"):
        load_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"there are no weights at"):
        load_weights(nn.Linear(2, 3), tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(DataError, match=r"bad.safetensors is not a readable"):
        load_weights(nn.Linear(2, 3), tmp_path / "bad.safetensors")


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model, again = tied(), tied()
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    assert torch.equal(again[0].weight, model[0].weight)
    assert again[1].weight is again[0].weight


def test_no_bar_and_no_logging(capsys):
    learn = tiny_learner()
    with learn.no_bar():
        learn.fit(1)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == "epoch"
    assert len(table) == 2
    with learn.no_logging():
        learn.fit(1)
    assert capsys.readouterr().out == ""
    learn.fit(1)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_learner_without_a_loss_says_what_to_give():
    learn = tiny_learner()
    with pytest.raises(UsageError, match="loss_func="):
        Learner(learn.dls, learn.model)


def test_an_empty_loader_is_refused():
    learn = tiny_learner()
    learn.dls = DataLoaders([], [], device="cpu")
    with pytest.raises(UsageError, match="no batches"):
        learn.fit(1)


def test_a_weight_decay_that_no_stepper_uses_is_refused():
    learn = tiny_learner(opt_func=partial(Optimizer, cbs=[sgd_step]))
    with pytest.raises(UsageError, match="wd"):
        learn.fit(1, wd=0.1)


def test_training_is_reproducible_from_the_seed():
    runs = []
    for _ in range(2):
        learn = tiny_learner()
        learn.fit_one_cycle(2, 0.01)
        runs.append(learn.recorder.raw_losses)
    assert runs[0] == runs[1]
    assert all(math.isfinite(loss) for loss in runs[0])
