"""What others have named reaches no page as markup, no terminal as a command, no spreadsheet as a
formula; and what is secret reaches no file."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from treadle.callbacks import CSVLogger, Every
from treadle.callbacks.progress import TerminalDisplay
from treadle.cli.main import run
from treadle.data import CategoryBlock, ColReader, DataBlock, ImageBlock, IndexSplitter
from treadle.interpret import ClassificationInterpretation
from treadle.learner import Learner
from treadle.registry import register
from treadle.report.collect import collect
from treadle.report.html import render

NAMES = {
    "HTML": "<x-evil onload='1'>&amp;",
    "ANSI escape": "\x1b[31mred\x1b]0;title\a",
    "C1 escape": "\x9b31mred",
    "formula": "=HYPERLINK('x')",
    "formula of a minus": "-1+1|cmd",
    "NUL": "a\0b",
    "lines": "two\nlines\rover",
    "turned text": "\u202egpj.exe",
    "half a pair": "caf\udce9",
    "rich markup": "[red]x[/red]",
    "a megabyte": "x" * (1 << 20),
}
TOKEN = "canary-5eb1c9d2"


class Tags(HTMLParser):
    """The names of a page's tags and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}


def assert_for_a_terminal(text: str) -> None:
    assert {c for c in text if not c.isprintable()} <= {"\n"}


def assert_for_a_page(page: str) -> None:
    assert not Tags(page).names & {"x-evil", "onload"}
    assert not set("\0\x1b\x9b\u202e\udce9").intersection(page)


def assert_for_a_spreadsheet(text: str) -> None:
    assert {c for c in text if not c.isprintable()} <= {"\n"}
    for row in csv.reader(io.StringIO(text)):
        for cell in row:
            assert cell[:1] not in ("=", "+", "@") and (cell[:1] != "-" or float(cell) < 0)


def learner(name: str, folder: Path) -> Learner:
    """Of a class and a metric of the name."""

    def metric(preds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (preds.argmax(1) == targets).float().mean()

    metric.__name__ = name
    draw = np.random.default_rng(0)
    items = [(draw.integers(0, 256, (8, 8), np.uint8), (name, "b")[k % 2]) for k in range(20)]
    plan = DataBlock(
        (ImageBlock("L"), CategoryBlock),
        splitter=IndexSplitter(range(10, 20)),
        get_x=ColReader(0),
        get_y=ColReader(1),
    )
    dls = plan.dataloaders(items, bs=5, num_workers=0, device="cpu")
    return Learner(dls, linear(64, 2), metrics=[metric], path=folder)


@register(name="reliability.linear")
def linear(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_out))


@pytest.mark.parametrize("kind", NAMES)
def test_the_name_of_a_class_and_of_a_metric(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = learner(NAMES[kind], tmp_path)
    learn.fit(1, cbs=CSVLogger())
    learn.dls.summary()
    ClassificationInterpretation.from_learner(learn).print_classification_report()
    said = capsys.readouterr()
    assert_for_a_terminal(said.out + said.err)
    assert len(said.out) < 10_000
    assert_for_a_spreadsheet((tmp_path / "history.csv").read_text("utf-8"))
    assert_for_a_page(render(collect(learn, NAMES[kind], {NAMES[kind]: NAMES[kind]})))


@pytest.mark.parametrize("kind", NAMES)
def test_a_terminal_with_a_bar(kind: str) -> None:
    from rich.console import Console

    out = io.StringIO()
    display = TerminalDisplay(Console(file=out, width=100))
    display.row(["epoch", NAMES[kind], "time"])
    display.row([0, 0.5, 1.0])
    display.close()
    assert_for_a_terminal(out.getvalue())


def pictures(folder: Path) -> Path:
    """A folder as it might be unpacked: everything in it has a name that is up to something."""
    draw = np.random.default_rng(0)
    for part in ("train", "valid"):
        for label in ("<x-evil onload='1'>", "=1+1 \x1b[31m"):
            (folder / part / label).mkdir(parents=True)
            for index in range(8):
                file = folder / part / label / f"\x1b]0;t\a<x-evil>\n{index}.png"
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    return folder


def test_a_run_on_hostile_names_keeps_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`treadle train`, `info`, `runs` and errors; and of the environment's secrets none is kept."""
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://me:{TOKEN}@host.example")
    folder, out = pictures(tmp_path / "\x1b[2J<x-evil>"), tmp_path / "runs" / "\x1b[2Jrun"
    small = "--arch resnet18 --epochs 1 --bs 8 --size 32 --workers 0 --device cpu"
    assert run(["train", str(folder), "--out", str(out), *small.split()]) == 0
    for command in (["info", str(out)], ["runs", str(out.parent)]):
        assert run(command) == 0
    assert run(["train", str(tmp_path / "\x1b[31mnone"), "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr()
    assert_for_a_terminal(said.out + said.err)
    assert_for_a_spreadsheet((out / "history.csv").read_text("utf-8"))
    assert_for_a_page((out / "report.html").read_text("utf-8"))
    kept = {path.relative_to(out).as_posix() for path in files_of(out)}
    assert {"config.json", "events.jsonl", "record.json", "report.html"} <= kept
    assert TOKEN not in said.out + said.err and without_token(tmp_path)


def test_checkpoints_and_exports_keep_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    learn = learner("a", tmp_path)
    learn.fit(1, checkpoint=Every(updates=1))
    learn.save("weights")
    learn.export()
    assert len(files_of(tmp_path)) > 8 and without_token(tmp_path)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def without_token(folder: Path) -> bool:
    return not any(TOKEN.encode() in path.read_bytes() for path in files_of(folder))
