"""What is watched while a run trains: times, samples as the model got them, and what is skipped."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import tiny_learner
from treadle.callbacks import MixUp
from treadle.cli.main import run
from treadle.data import (
    CategoryBlock,
    DataBlock,
    DataLoaders,
    ImageBlock,
    RandomSplitter,
    parent_label,
)
from treadle.learner import Learner
from treadle.loop.events import Callback
from treadle.losses import CrossEntropyLossFlat
from treadle.report import ReportCallback, collect
from treadle.report.html import render
from treadle.run import read_record, write_record

SHADES = {"black": 0, "grey": 128, "white": 255}


@pytest.fixture
def dls(tmp_path) -> DataLoaders:
    """Ten pictures of each of three plain shades, a fifth of them to validate on."""
    for name, shade in SHADES.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            file = tmp_path / "images" / name / f"{i}.png"
            Image.new("RGB", (8, 8), (shade, shade, shade)).save(file)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=lambda path: sorted(path.rglob("*.png")),
        splitter=RandomSplitter(valid_pct=0.2, seed=0),
        get_y=parent_label,
    )
    return block.dataloaders(tmp_path / "images", bs=6, seed=0, num_workers=0, device="cpu")


def learner(dls, *cbs: Callback) -> Learner:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    return Learner(dls, model, CrossEntropyLossFlat(), cbs=[*cbs, ReportCallback()])


def shades(samples) -> list[int]:
    pictures = [Image.open(io.BytesIO(image)).convert("L") for image in samples.images]
    return [int(np.asarray(picture).mean().round()) for picture in pictures]


def test_samples_are_those_that_entered_the_model(dls):
    entered = []

    class Look(Callback):
        order = 99

        def before_batch(self):
            if self.training and self.iter == 0:
                entered.append((self.x.clone(), self.y.clone()))

    learn = learner(dls, Look())
    with learn.no_logging():
        learn.fit(2)
    seen = learn.report.seen()
    assert [samples.epoch for samples in seen] == [0, 1]
    for samples, (x, y) in zip(seen, entered, strict=True):
        assert samples.labels == [dls.vocab[i] for i in y]
        assert shades(samples) == [SHADES[name] for name in samples.labels]
        assert len(x) == len(samples.images)


def test_samples_are_told_as_callbacks_left_them(dls):
    learn = learner(dls, MixUp(0.9))
    torch.manual_seed(1)
    with learn.no_logging():
        learn.fit(2)
    found = {shade for samples in learn.report.seen() for shade in shades(samples)}
    assert found - set(SHADES.values())


def test_of_many_epochs_a_few_and_the_last_are_kept(dls):
    learn = learner(dls)
    with learn.no_logging():
        learn.fit(12)
    epochs = [samples.epoch for samples in learn.report.seen()]
    assert epochs == [0, 4, 8, 11]


def test_the_slow_batch_is_found_with_its_place_and_whose_fault_it_was(dls):
    class Slow(Callback):
        def after_loss(self):
            if self.training and (self.epoch, self.iter) == (1, 2):
                time.sleep(0.15)

    learn = learner(dls, Slow())
    with learn.no_logging():
        learn.fit(3)
    times = learn.report.times
    worst = times.slowest[0]
    assert (worst.epoch, worst.batch) == (1, 2)
    assert worst.seconds >= 0.15 > worst.waiting
    assert times.n == 12 and len(times.slowest) == 8
    assert times.median < 0.15 <= times.total
    assert 0 < times.waiting < times.total
    assert [b.seconds for b in times.slowest] == sorted(b.seconds for b in times.slowest)[::-1]


def test_waiting_for_data_is_told_apart(dls):
    class SlowData:
        def __init__(self, loader):
            self.loader = loader

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            for i, batch in enumerate(self.loader):
                if i == 3:
                    time.sleep(0.15)
                yield batch

        def __getattr__(self, name):
            return getattr(self.loader, name)

    learn = learner(DataLoaders(SlowData(dls.train), dls.valid, device="cpu"))
    with learn.no_logging():
        learn.fit(1)
    worst = learn.report.times.slowest[0]
    assert worst.batch == 3 and worst.waiting >= 0.15


def test_a_learner_of_other_data_is_watched_too():
    learn = tiny_learner(cbs=ReportCallback())
    assert learn.report.times is None
    with learn.no_logging():
        learn.fit(1)
    found = collect(learn, "numbers")
    assert found.seen == [] and found.times.n == 8
    assert found.confusion is None and found.balance is None
    assert "Slowest batches" in render(found)


def test_a_run_is_collected_written_and_read_again(dls, tmp_path):
    learn = learner(dls)
    with learn.no_logging():
        learn.fit(2)
    found = collect(learn, "shades", {"bs": 6})
    assert found.balance.vocab == ["black", "grey", "white"]
    assert [a + b for a, b in zip(found.balance.train, found.balance.valid, strict=True)] == [
        10
    ] * 3
    assert sum(found.balance.train) == 24
    losses = [example.loss for example in found.worst]
    assert losses == sorted(losses, reverse=True) and len(losses) == 6
    assert sum(map(sum, found.confusion.matrix)) == 6
    write_record(tmp_path, found)
    assert render(read_record(tmp_path)) == render(found)


def test_skipped_files_are_told_once(dls, tmp_path):
    victim = next(p for p in sorted(tmp_path.rglob("*.png")) if p in list(dls.train.dataset.items))
    victim.write_bytes(b"no picture")
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=lambda path: sorted(path.rglob("*.png")),
        splitter=RandomSplitter(valid_pct=0.2, seed=0),
        get_y=parent_label,
    )
    again = block.dataloaders(
        tmp_path / "images", bs=6, seed=0, num_workers=0, device="cpu", on_error="skip"
    )
    learn = learner(again)
    with learn.no_logging():
        learn.fit(2)
    ((name, reason),) = collect(learn, "broken").skipped
    assert victim.name in name and reason


# The command


def written(folder, dls, lr: float):
    learn = learner(dls)
    with learn.no_logging():
        learn.fit(1, lr)
    folder.mkdir()
    write_record(folder, collect(learn, folder.name, {"lr": lr}))


def test_the_command_writes_a_report_alone_and_against_another(dls, tmp_path, capsys):
    for name, lr in (("a", 0.1), ("b", 0.01)):
        written(tmp_path / name, dls, lr)
    assert run(["report", str(tmp_path / "a")]) == 0
    alone = (tmp_path / "a" / "report.html").read_text("utf-8")
    assert 'id="against"' not in alone and "<h1>a</h1>" in alone
    assert run(["report", str(tmp_path / "a"), "--against", str(tmp_path / "b")]) == 0
    both = (tmp_path / "a" / "against-b.html").read_text("utf-8")
    assert 'id="against"' in both and "<td>0.1</td><td>0.01</td>" in both
    out = tmp_path / "x.html"
    assert run(["report", str(tmp_path / "a"), "--out", str(out)]) == 0
    assert out.read_text("utf-8") == alone
    assert capsys.readouterr().out.splitlines()[-1] == f"report   {out}"


def test_the_command_says_what_is_missing_in_one_line(tmp_path, capsys):
    assert run(["report", str(tmp_path)]) == 2
    assert "There is no record.json" in capsys.readouterr().err
    (tmp_path / "comparison.json").write_text("{", "utf-8")
    assert run(["report", str(tmp_path)]) == 2
    assert "is not readable JSON" in capsys.readouterr().err
    assert run(["report", str(tmp_path), "--against", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "leave --against out" in err and err.count("\n") == 1


def test_the_command_writes_the_page_of_a_comparison_again(tmp_path):
    from test_report_comparison import comparison
    from treadle.report.comparison import render_comparison
    from treadle.run import write_json

    write_json(tmp_path / "comparison.json", comparison().to_dict())
    assert run(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page == render_comparison(comparison())
