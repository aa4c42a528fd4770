"""Residuals and their figures agree with scikit-learn; pictures show what is true and what is
said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import max_error, mean_absolute_error, r2_score, root_mean_squared_error
from torch import nn

from treadle.all import (
    SGD,
    DataBlock,
    DataLoaders,
    ImageBlock,
    Learner,
    PointBlock,
    RegressionBlock,
    RegressionInterpretation,
    UsageError,
)

NAMES = ["age", "height"]


def flat_learner(n_out=2):
    torch.manual_seed(0)
    x, y = torch.randn(30, 5), torch.randn(30, n_out) * 3 + 1
    model = nn.Linear(5, n_out)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    learn = Learner(DataLoaders(batches, batches, device="cpu"), model, nn.MSELoss(), opt_func=SGD)
    return learn, model(x).detach(), y


def test_the_report_is_scikit_learns(capsys):
    learn, preds, y = flat_learner()
    interp = RegressionInterpretation.from_learner(learn, names=NAMES)
    torch.testing.assert_close(interp.residuals, preds - y)
    report = interp.report()
    for i, name in enumerate(NAMES):
        pair = y[:, i], preds[:, i]
        assert report[name] == pytest.approx(
            {
                "mae": mean_absolute_error(*pair),
                "rmse": root_mean_squared_error(*pair),
                "bias": float((preds - y)[:, i].mean()),
                "max error": max_error(*pair),
                "r2": r2_score(*pair),
            },
            rel=1e-5,
        )
    interp.print_report()
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["mae", "rmse", "bias", "max", "error", "r2"]
    assert [row.split()[0] for row in rows] == NAMES
    assert [float(v) for v in rows[1].split()[1:]] == pytest.approx(
        list(report["height"].values()), rel=1e-3
    )


def test_losses_of_several_numbers_are_one_a_sample():
    learn, preds, y = flat_learner()
    interp = RegressionInterpretation.from_learner(learn)
    torch.testing.assert_close(interp.losses, (preds - y).square().mean(1))
    assert interp.top_losses(1)[1].item() == (preds - y).square().mean(1).argmax()
    assert interp.names == ["value 0", "value 1"]


def test_one_number_a_sample_whatever_the_shapes():
    learn, preds, y = flat_learner(1)
    learn.dls.loaders[1] = [(x, y[:, 0]) for x, y in learn.dls.valid]
    learn.loss_func = lambda p, y, reduction: (p[:, 0] - y).abs()
    interp = RegressionInterpretation.from_learner(learn)
    assert list(interp.report()) == ["value"]
    torch.testing.assert_close(interp.residuals, preds - y)


def test_targets_that_are_not_known_or_all_alike():
    nan = float("nan")
    preds = torch.tensor([[1.0, 2.0, 1.0], [2.0, 5.0, 1.0]])
    targets = torch.tensor([[1.5, 3.0, nan], [nan, 3.0, nan]])
    interp = RegressionInterpretation(preds, targets, torch.zeros(2), ["a", "b", "c"], [0, 1])
    report = interp.report()
    assert report["a"]["mae"] == 0.5
    assert report["b"]["bias"] == 0.5 and np.isnan(report["b"]["r2"])
    assert all(np.isnan(value) for value in report["c"].values())
    interp.plot_residuals()


def test_residuals_are_plotted(tmp_path):
    learn, preds, y = flat_learner()
    figure = RegressionInterpretation.from_learner(
        learn, names=["$age", "x" * 500]
    ).plot_residuals()
    scatter, histogram, *_ = figure.axes
    drawn = scatter.lines[1].get_xydata()
    np.testing.assert_allclose(drawn, torch.stack([y[:, 0], preds[:, 0]], 1), rtol=1e-5)
    assert sum(bar.get_height() for bar in histogram.patches) == 30
    figure.savefig(tmp_path / "residuals.png")


def pictures(n=10, size=12):
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 200, (size, size, 3)).astype(np.uint8), rng.uniform(2, 10, 2))
        for _ in range(n)
    ]


def picture_learner(block, get_y):
    items = pictures()
    dls = DataBlock(
        (ImageBlock, block),
        get_x=lambda i: items[i][0],
        get_y=lambda i: get_y(items[i]),
        splitter=lambda items: (range(4), range(4, 10)),
    ).dataloaders(list(range(10)), bs=4, device="cpu", num_workers=0, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, dls.c))
    return Learner(dls, model, opt_func=SGD), items


def test_the_worst_pictures_have_both_numbers_above_them():
    learn, items = picture_learner(RegressionBlock, lambda item: float(item[1][0]))
    interp = RegressionInterpretation.from_learner(learn)
    figure = interp.plot_top_losses(2)
    for axes, i in zip(figure.axes, interp.top_losses(2)[1].tolist(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), items[4 + i][0])
        true, said = float(items[4 + i][1][0]), float(interp.preds[i])
        assert axes.get_title() == f"is {true:.4g}\nmodel: {said:.4g}\nloss {interp.losses[i]:.3g}"


def test_points_are_drawn_where_they_are():
    learn, items = picture_learner(PointBlock, lambda item: [item[1]])
    interp = RegressionInterpretation.from_learner(learn)
    figure = interp.plot_top_losses(3)
    for axes, i in zip(figure.axes, interp.top_losses(3)[1].tolist(), strict=True):
        true, said = (line.get_xydata() for line in axes.lines)
        # in pixels of the picture, whose first pixel's middle is (0, 0)
        np.testing.assert_allclose(true, [items[4 + i][1] - 0.5], atol=1e-4)
        wanted = (interp.preds[i].numpy() + 1) / 2 * 12 - 0.5
        np.testing.assert_allclose(said, [wanted], atol=1e-4)


def test_what_are_no_numbers_is_sent_elsewhere():
    learn, _, _ = flat_learner()
    x = learn.dls.valid[0][0]
    with pytest.raises(UsageError, match="ClassificationInterpretation is for labels"):
        learn.loss_func = nn.CrossEntropyLoss()
        RegressionInterpretation.from_learner(learn, dl=[(x, torch.zeros(8, dtype=torch.int64))])
    with pytest.raises(UsageError, match="for 2 items of 1 numbers"):
        RegressionInterpretation(
            torch.zeros(2, 1), torch.zeros(2, 2), torch.zeros(2), ["a"], [0, 1]
        )


def test_results_of_numbers_say_both():
    learn, items = picture_learner(RegressionBlock, lambda item: float(item[1][0]))
    said = learn.get_preds()[0].flatten()
    figure = learn.show_results(max_n=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        f"{float(items[4 + i][1][0]):.4g}\nmodel: {float(said[i]):.4g}" for i in range(2)
    ]
