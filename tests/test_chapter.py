"""The book chapter *The Training Process*, its code as a reader types it, on real images.

Only the numbers of pixels, images and the batch size are smaller than in the book.
"""

from __future__ import annotations

import math

import pytest

from treadle.all import *

pytestmark = [
    pytest.mark.filterwarnings("ignore:fp16 was asked for"),
    # torch's word about p.data.add_(-lr, g), the book's spelling
    pytest.mark.filterwarnings("ignore:This overload of add"),
]


@pytest.fixture(autouse=True)
def _mirror(imagenette_mirror, monkeypatch):
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(imagenette_mirror))
    torch.manual_seed(42)


def get_data(url, presize, resize):
    path = untar_data(url)
    return DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=GrandparentSplitter(valid_name="val"),
        get_y=parent_label,
        item_tfms=Resize(presize),
        batch_tfms=[
            *aug_transforms(min_scale=0.5, size=resize),
            Normalize.from_stats(*imagenet_stats),
        ],
    ).dataloaders(path, bs=16)


def get_learner(**kwargs):
    dls = get_data(URLs.IMAGENETTE_160, 64, 32)
    return cnn_learner(dls, resnet34, pretrained=False, metrics=accuracy, **kwargs).to_fp16()


def assert_trained(learn, epochs=3):
    """Every epoch and batch was recorded and is finite, and the weights moved."""
    assert len(learn.recorder.values) == epochs
    assert len(learn.recorder.losses) == epochs * len(learn.dls.train)
    assert all(math.isfinite(value) for row in learn.recorder.values for value in row)
    torch.manual_seed(42)
    assert learn.recorder.metric_names == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]


def test_the_data_are_what_the_chapter_shows():
    dls = get_data(URLs.IMAGENETTE_160, 64, 32)
    x, y = dls.one_batch()
    assert x.shape == (16, 3, 32, 32)
    assert y.shape == (16,)
    assert len(dls.vocab) == dls.c == 10
    assert (dls.train.n, dls.valid.n) == (80, 40)
    figure = dls.show_batch()
    assert len(figure.axes) >= 9


def test_baseline(capsys):
    learn = get_learner()
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit_one_cycle(3, 0.003)
    assert_trained(learn)
    assert not any(torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert [line.split()[0] for line in table[1:]] == ["0", "1", "2"]


def test_plain_sgd_with_the_rate_finder():
    learn = get_learner(opt_func=SGD)
    suggested = learn.lr_find()
    assert 1e-7 < suggested.valley < 10
    learn.fit_one_cycle(3, 0.03, moms=(0, 0, 0))
    assert_trained(learn)
    assert max(learn.recorder.lrs) <= 0.03


def test_sgd_as_one_callback():
    def sgd_cb(p, lr, **kwargs):
        p.data.add_(-lr, p.grad.data)

    opt_func = partial(Optimizer, cbs=[sgd_cb])
    learn = get_learner(opt_func=opt_func)
    learn.fit(3, 0.03)
    assert_trained(learn)
    assert set(learn.recorder.lrs) == {0.03}


def test_momentum_defined_by_the_reader():
    def average_grad(p, mom, grad_avg=None, **kwargs):
        if grad_avg is None:
            grad_avg = torch.zeros_like(p.grad.data)
        return {"grad_avg": grad_avg * mom + p.grad.data}

    def momentum_step(p, lr, grad_avg, **kwargs):
        p.data.add_(-lr, grad_avg)

    opt_func = partial(Optimizer, cbs=[average_grad, momentum_step], mom=0.9)
    learn = get_learner(opt_func=opt_func)
    learn.fit_one_cycle(3, 0.03)
    assert_trained(learn)
    moms = learn.recorder.hps["mom"]
    assert moms[0] == pytest.approx(0.95)
    assert min(moms) == pytest.approx(0.85, abs=0.01)
    figure = learn.recorder.plot_sched()
    assert len(figure.axes) == 2  # the rate and the momentum


def test_momentum_of_the_library():
    learn = get_learner(opt_func=partial(Optimizer, cbs=[average_grad, momentum_step], mom=0.9))
    learn.fit_one_cycle(3, 0.03)
    assert_trained(learn)


@pytest.mark.filterwarnings("ignore:This overload of addcdiv")
def test_rms_prop_defined_by_the_reader():
    def average_sqr_grad(p, sqr_mom, sqr_avg=None, **kwargs):
        if sqr_avg is None:
            sqr_avg = torch.zeros_like(p.grad.data)
        return {"sqr_avg": sqr_avg * sqr_mom + p.grad.data**2 * (1 - sqr_mom)}

    def rms_prop_step(p, lr, sqr_avg, eps, grad_avg=None, **kwargs):
        denom = sqr_avg.sqrt().add_(eps)
        p.data.addcdiv_(-lr, p.grad, denom)

    opt_func = partial(Optimizer, cbs=[average_sqr_grad, rms_prop_step], sqr_mom=0.99, eps=1e-7)
    learn = get_learner(opt_func=opt_func)
    learn.fit_one_cycle(3, 0.003)
    assert_trained(learn)


def test_rms_prop_of_the_library():
    opt_func = partial(Optimizer, cbs=[average_sqr_grad, rms_prop_step], sqr_mom=0.99, eps=1e-7)
    learn = get_learner(opt_func=opt_func)
    learn.fit_one_cycle(3, 0.003)
    assert_trained(learn)


def test_adam_built_from_its_steppers_is_adam():
    steppers = [
        weight_decay,
        partial(average_grad, dampening=True),
        average_sqr_grad,
        step_stat,
        adam_step,
    ]
    built = partial(Optimizer, cbs=steppers, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.01)
    torch.manual_seed(1)
    learn = get_learner(opt_func=built)
    learn.fit_one_cycle(3, 0.003)
    assert_trained(learn)
    torch.manual_seed(1)
    again = get_learner(opt_func=Adam)
    again.fit_one_cycle(3, 0.003)
    assert again.recorder.raw_losses == learn.recorder.raw_losses
    assert debias(0.9, 1 - 0.9, 1) == pytest.approx(0.1)


def test_l2_regularisation_as_a_callback():
    learn = get_learner(opt_func=partial(Optimizer, cbs=[l2_reg, sgd_step], wd=0.01))
    learn.fit(3, 0.03)
    assert_trained(learn)


def test_the_chapters_callbacks():
    """`ModelResetter` in the older spelling, and `TerminateOnNaNCallback` with run_before."""
    with pytest.warns(DeprecationWarning, match="before_train"):

        class Resetter(Callback):
            def begin_train(self):
                self.model.reset()

            def before_validate(self):
                self.model.reset()

    class TerminateOnNaN(Callback):
        run_before = Recorder

        def after_batch(self):
            if torch.isinf(self.loss) or torch.isnan(self.loss):
                raise CancelFitException

    learn = get_learner(cbs=[Resetter, TerminateOnNaN])
    resets = []
    learn.model.reset = lambda: resets.append(learn.training)
    learn.fit(1, 0.003)
    assert resets == [True, False]
    order = [type(cb).__name__ for cb in learn.ordered_cbs("after_batch")]
    assert order.index("TerminateOnNaN") < order.index("Recorder")
    learn.fit(1, 1e9)
    assert len(learn.recorder.losses) < len(learn.dls.train)


def test_the_source_of_the_loop_and_of_a_stepper_can_be_printed(capsys):
    print_source(Learner._do_one_batch)
    print_source(adam_step)
    printed = capsys.readouterr().out
    for line in ("self.pred = ", 'self("after_pred")', "self.loss_func(self.pred, *self.yb)"):
        assert line in printed
    assert "def adam_step(" in printed
