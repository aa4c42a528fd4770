"""Figures hold the numbers they were given, and a notebook shows each of them once."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import treadle.plots as plots
from treadle.errors import UsageError


def data_of(line):
    return list(line.get_xdata()), list(line.get_ydata())


def draw(figure):
    figure.canvas.draw_idle()
    return plots._png(figure)


def test_plot_loss_skips_the_start_and_places_epochs_at_their_updates():
    losses = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    figure = plots.plot_loss(losses, iters=[4, 8], valid_losses=[5.5, 2.5])
    train, valid = figure.axes[0].lines
    assert data_of(train) == ([5, 6, 7], [4.0, 3.0, 2.0])
    assert data_of(valid) == ([8], [2.5])  # the first epoch ended within the skipped updates
    assert figure.axes[0].get_xlabel() == "updates"


def test_plot_loss_of_a_run_shorter_than_the_skip_shows_it_whole():
    (line,) = plots.plot_loss([2.0, 1.0]).axes[0].lines
    assert data_of(line) == ([0, 1], [2.0, 1.0])


def test_plot_loss_draws_on_the_axes_it_is_given():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    assert plots.plot_loss([3.0, 2.0], ax=axes) is figure
    assert len(axes.lines) == 1


def test_plot_loss_refuses_losses_that_fit_no_epoch():
    with pytest.raises(UsageError, match="iters has 1 entries and valid_losses has 2"):
        plots.plot_loss([1.0] * 9, iters=[4], valid_losses=[1.0, 2.0])


def test_plot_sched_draws_each_hyper_and_keys_choose():
    hps = {"lr": [0.1, 0.2], "mom": [0.9, 0.8], "wd": [0.01, 0.01]}
    figure = plots.plot_sched(hps)
    assert [axes.get_ylabel() for axes in figure.axes] == ["lr", "mom", "wd"]
    assert [list(axes.lines[0].get_ydata()) for axes in figure.axes] == list(hps.values())
    (only,) = plots.plot_sched(hps, keys=["mom"]).axes
    assert list(only.lines[0].get_ydata()) == [0.9, 0.8]


def test_plot_sched_names_the_nearest_key_and_refuses_nothing():
    with pytest.raises(UsageError, match=r"'mum'.*did you mean mom"):
        plots.plot_sched({"lr": [0.1], "mom": [0.9]}, keys=["mum"])
    with pytest.raises(UsageError, match="Train first"):
        plots.plot_sched({})


def test_plot_lr_find_is_logarithmic_and_marks_the_suggestions():
    figure = plots.plot_lr_find([1e-4, 1e-3, 1e-2], [2.0, 1.5, 3.0], {"valley": (1e-3, 1.5)})
    axes = figure.axes[0]
    curve, mark = axes.lines
    assert axes.get_xscale() == "log"
    assert data_of(curve) == ([1e-4, 1e-3, 1e-2], [2.0, 1.5, 3.0])
    assert data_of(mark) == ([1e-3], [1.5])
    assert mark.get_label() == "valley: 1.00e-03"


def test_plot_metrics_takes_epoch_and_time_for_what_they_are():
    names = ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    rows = [[3, 1.0, 1.2, 0.5, "0:04"], [4, 0.8, None, 0.6, "0:04"]]
    figure = plots.plot_metrics(names, rows)
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train", "valid"]
    assert data_of(loss.lines[0]) == ([3, 4], [1.0, 0.8])
    assert data_of(accuracy.lines[0]) == ([3, 4], [0.5, 0.6])
    draw(figure)


def test_plot_metrics_refuses_ragged_and_empty_tables():
    with pytest.raises(UsageError, match="Row 0 of the table has 1 values for 2 names"):
        plots.plot_metrics(["train_loss", "accuracy"], [[1.0]])
    with pytest.raises(UsageError, match="Train first"):
        plots.plot_metrics(["train_loss"], [])


def test_plot_confusion_matrix_shades_by_row_and_writes_counts():
    cm = np.array([[30, 10], [1, 3]])
    axes = plots.plot_confusion_matrix(cm, ["cat", "$dog"]).axes[0]
    shades = axes.images[0].get_array()
    np.testing.assert_allclose(shades, [[0.75, 0.25], [0.25, 0.75]])
    assert [text.get_text() for text in axes.texts] == ["30", "10", "1", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$dog"]


def test_plot_confusion_matrix_of_many_classes_has_no_numbers_and_checks_its_shape():
    axes = plots.plot_confusion_matrix(np.eye(31, dtype=int), list(range(31))).axes[0]
    assert not axes.texts
    with pytest.raises(UsageError, match=r"shape \(2, 3\) for 2 classes"):
        plots.plot_confusion_matrix(np.zeros((2, 3), int), ["a", "b"])


def test_show_images_takes_what_data_comes_in():
    rgb = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    images = [
        Image.fromarray(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
        rgb,
        np.full((1, 4, 4), 0.5),
        torch.full((3, 4, 4), 1.5),
    ]
    figure = plots.show_images(images, ["a_$x^", "b", "c", "d", "e"], ncols=3)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    for pixels in shown[:3]:
        np.testing.assert_array_equal(pixels, rgb)
    assert shown[3].shape == (4, 4)
    assert shown[4].max() == 1.0  # floats are clipped, not wrapped
    assert figure.axes[0].get_title() == "a_$x^"
    draw(figure)  # a dollar sign in a title is no mathematics


def test_show_images_refuses_what_cannot_be_shown():
    with pytest.raises(UsageError, match="list is empty"):
        plots.show_images([])
    with pytest.raises(UsageError, match="images has 1 entries and titles has 2"):
        plots.show_images([np.zeros((2, 2))], ["a", "b"])
    with pytest.raises(UsageError, match=r"shape \(5,\)"):
        plots.show_images([np.zeros(5)])


class Shell:
    """The three things of a notebook's shell that showing uses, and what the display hook does."""

    def __init__(self) -> None:
        self.kernel = object()
        self.execution_count = 1
        self.published: list[dict[str, str]] = []
        self.display_pub = SimpleNamespace(
            publish=lambda data, metadata: self.published.append(data)
        )

    def echo(self, value: object) -> None:
        """What happens to the value of a cell's last line."""
        value._ipython_display_()


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    return shell


def test_a_figure_shown_and_then_echoed_appears_once(shell):
    figure = plots.show(plots.plot_loss([3.0, 2.0]))
    shell.echo(figure)
    assert len(shell.published) == 1
    assert shell.published[0]["image/png"].startswith("iVBORw0KGgo")  # base64 of PNG's signature


def test_a_figure_appears_again_in_another_cell_or_after_a_change(shell):
    figure = plots.show(plots.plot_loss([3.0, 2.0]))
    shell.execution_count = 2
    shell.echo(figure)
    assert len(shell.published) == 2
    figure.axes[0].set_ylim(0, 9)
    shell.echo(figure)
    assert len(shell.published) == 3
    assert shell.published[1]["image/png"] != shell.published[2]["image/png"]


def test_outside_a_notebook_show_only_returns_the_figure(shell):
    del shell.kernel  # IPython in a terminal
    figure = plots.plot_loss([3.0, 2.0])
    assert plots.show(figure) is figure
    assert not shell.published


def test_plots_leave_pyplot_and_the_settings_alone():
    program = (
        "import sys; import treadle.plots as plots\n"
        "assert 'matplotlib' not in sys.modules, 'imported too early'\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        "plots.show(plots.plot_loss([3.0, 2.0]))\n"
        "plots.show_images([[[0.0, 1.0]]])\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'IPython' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
