"""The bar and the table, in a terminal, in a notebook and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from helpers import tiny_learner
from treadle.callbacks import GradientAccumulation, progress
from treadle.callbacks.progress import NotebookDisplay, PlainDisplay, TerminalDisplay
from treadle.data import DataLoaders


class Screen:
    """A display that keeps what it is told."""

    live = True

    def __init__(self) -> None:
        self.rows: list = []
        self.bars: list = []

    def row(self, row) -> None:
        self.rows.append(list(row))

    def bar(self, done, total, text) -> None:
        self.bars.append((done, total, text))

    def close(self) -> None:
        self.bars.append(None)


@pytest.fixture
def screen(monkeypatch):
    made = Screen()
    monkeypatch.setattr(progress, "make_display", lambda: made)
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    return made


@pytest.mark.parametrize("cbs", [[], [GradientAccumulation(16)]])
def test_the_bar_tells_the_smoothed_loss_of_the_recorder(screen, cbs):
    learn = tiny_learner(cbs=cbs)
    learn.fit(2)
    told = [re.search(r"train  loss ([0-9.]+)$", bar[2]) for bar in screen.bars if bar]
    shown = dict.fromkeys(match[1] for match in told if match)
    assert list(shown) == list(dict.fromkeys(f"{loss:.4f}" for loss in learn.recorder.losses))
    assert "epoch 1/2  valid" in [bar[2] for bar in screen.bars if bar]
    assert screen.bars[-1] is None
    assert screen.rows[1:] == learn.recorder.rows


def test_it_moves_a_few_times_a_second_at_most(screen, monkeypatch):
    monkeypatch.undo()
    assert progress.REFRESH_S >= 0.2
    monkeypatch.setattr(progress, "make_display", lambda: screen)
    monkeypatch.setattr(progress, "REFRESH_S", 3600.0)
    tiny_learner().fit(3)
    assert len([bar for bar in screen.bars if bar]) == 1


def test_without_validation(screen):
    learn = tiny_learner()
    learn.dls = DataLoaders(list(learn.dls.train), device="cpu")
    learn.fit(1)
    assert screen.rows[1][2] is None
    assert all("train" in bar[2] for bar in screen.bars if bar)


def test_a_terminal_has_rows_and_a_bar_with_the_time_left():
    out = io.StringIO()
    shown = TerminalDisplay(Console(file=out, force_terminal=True, width=100))
    shown.row(["epoch", "train_loss"])
    for done in (1, 2, 3):
        shown.bar(done, 10, "epoch 1/1  train  loss 0.5000")
    shown.row([0, 0.5])
    shown.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert re.search(r"epoch 1/1  train  loss 0.5000 .* 3/10 +(\d\d:\d\d|--:--)", text)
    assert re.search(r"0 +0.500000", text)


def test_a_notebook_has_a_bar_with_the_time_left(monkeypatch):
    pytest.importorskip("IPython")
    # No kernel, no output to redraw; tests/test_notebook.py runs in one.
    monkeypatch.setattr(NotebookDisplay, "_draw", lambda self: None)
    shown = NotebookDisplay()
    for done in (1, 2, 3):
        shown.bar(done, 10, "epoch 1/1  train")
    assert re.search(r'value="3" max="10".* 3/10 \d\d:\d\d left', shown.status)
    shown.bar(1, 10, "epoch 2/2  train")
    assert "left" not in shown.status
    shown.close()
    assert shown.status == ""


def test_a_pipe_gets_plain_lines(capsys):
    assert isinstance(progress.make_display(), PlainDisplay)
    tiny_learner().fit(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "train_loss", "valid_loss", "time"]
    assert len(lines) == 2
