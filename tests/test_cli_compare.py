"""`treadle compare` as a person uses it: what it writes, what it says, and how it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from treadle.cli.compare import tell
from treadle.cli.main import run
from treadle.cli.optimizers import chapter_rows, read_opts, recipes
from treadle.data import DataLoaders
from treadle.errors import DataError, UsageError
from treadle.learner import Learner
from treadle.metrics import accuracy
from treadle.study import Comparison, compare
from treadle.study.comparison import Row, Run

SMALL = {"size": 32, "presize": 32, "bs": 8, "workers": 0, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with train/<class>/* and val/<class>/*, of two colours."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for side, n in (("train", 12), ("val", 4)):
        for name, channel in (("red", 0), ("blue", 2)):
            (folder / side / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / side / name / f"{i}.png")
    return folder


def asked(images, *more: object, **other: object) -> list[str]:
    """The command on small images and a small network; `other` options go before those."""
    options = {**SMALL, "arch": "squeezenet1_1", **other}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    return ["compare", *map(str, (images, *given, *more))]


def kept(folder) -> dict[str, int]:
    """The runs that are kept, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")}


def read(folder) -> Comparison:
    return Comparison.from_dict(json.loads((folder / "comparison.json").read_text()))


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("treadle: ")
    assert err.count("\n") == 1
    return err


TWO = ["--opt", "sgd", "--opt", "adam:lr=0.001,wd=0.1", "--seeds", "2"]


def test_a_comparison_is_a_table_a_page_and_a_record(images, tmp_path, capsys):
    out = tmp_path / "study"
    assert run(asked(images, *TWO, "--out", out)) == 0
    said = capsys.readouterr().out
    assert "24 images to train on, 8 to validate on" in said
    assert "has the best accuracy" in said
    assert f"report   {out / 'report.html'}" in said.replace("\n", "")
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.json", "config.json", "report.html", "runs",
    ]  # fmt: skip
    found = read(out)
    assert [row.name for row in found.rows] == ["sgd", "adam:lr=0.001,wd=0.1"]
    assert found["sgd"].describe == "weight_decay -> sgd_step, lr=0.03, wd=0; fit_one_cycle"
    assert "lr=0.001" in found["adam:lr=0.001,wd=0.1"].describe
    assert "wd=0.1" in found["adam:lr=0.001,wd=0.1"].describe
    assert found.settings["arch"] == "squeezenet1_1"
    assert found.settings["data"] == str(images)
    assert len(kept(out)) == 4
    assert "adam:lr=0.001,wd=0.1" in (out / "report.html").read_text()


def test_the_same_command_does_nothing_twice_and_another_has_its_own_folder(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(asked(images, "--opt", "sgd", "--seeds", 1)) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    before = kept(folder)
    assert run(asked(images, "--opt", "sgd", "--seeds", 2)) == 0  # more seeds are added
    after = kept(folder)
    assert len(after) == 2
    assert before.items() <= after.items()
    assert run(asked(images, "--opt", "sgd", "--seeds", 2)) == 0
    assert kept(folder) == after
    assert run(asked(images, "--opt", "sgd", "--seeds", 1, bs=4)) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    capsys.readouterr()
    assert run(asked(images, "--out", folder, "--opt", "sgd", bs=4)) == 2
    assert "batch size is 8, not 4; give another folder" in one_line(capsys)
    assert kept(folder) == after


def begun(images, out, *more: object):
    """The command in a process of its own, once it has done a run."""
    command = [sys.executable, "-m", "treadle", *asked(images, "--out", out, *more)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(1200):
        if (out / "runs").is_dir() and kept(out):
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


def test_killed_it_goes_on_where_it_was(images, tmp_path, capsys):
    out = tmp_path / "study"
    many = ["--opt", "sgd", "--opt", "adam", "--seeds", 4]
    with begun(images, out, *many) as process:
        process.send_signal(signal.SIGKILL)
    done = kept(out)
    assert 0 < len(done) < 8
    assert run(asked(images, "--out", out, *many)) == 0
    assert len(kept(out)) == 8
    assert done.items() <= kept(out).items()
    assert read(out).missing == 0


def test_ctrl_c_leaves_a_page_and_says_how_to_go_on(images, tmp_path):
    out = tmp_path / "study"
    with begun(images, out, "--opt", "sgd", "--opt", "adam", "--seeds", 50) as process:
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "treadle: interrupted\n"
    n = len(kept(out))
    assert f"{n} of 100 trainings are done; the same command goes on." in said
    assert read(out).missing == 100 - n
    assert "still to be done" in (out / "report.html").read_text()


def test_each_finds_its_rate(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("treadle.cli.compare.make_learner", lambda args, dls: tiny())
    out = tmp_path / "study"
    given = ["--opt", "sgd", "--seeds", 1, "--each-finds-its-rate", "--out", out]
    assert run(asked(images, *given)) == 0
    assert "rate" in capsys.readouterr().out
    (found,) = read(out)["sgd"].runs
    assert found.finished, found.error
    assert max(found.hypers["lr"]) == pytest.approx(found.rate_found, rel=0.2)


def test_imagenette_by_its_name(imagenette_mirror, tmp_path, monkeypatch, capsys):
    """As at full scale, `--data imagenette-160 --arch resnet34 --size 128`, only smaller."""
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(imagenette_mirror))
    given = ["--data", "imagenette-160", "--size", "32", "--presize", "40", "--epochs", "1"]
    given += ["--arch", "squeezenet1_1", "--opt", "sgd", "--seeds", "1"]
    assert run(["compare", *given, "--out", str(tmp_path / "study")]) == 0
    assert "80 images to train on, 40 to validate on" in capsys.readouterr().out
    found = read(tmp_path / "study")
    assert found.title == "imagenette-160, squeezenet1_1, 1 epoch"
    assert found["sgd"].runs[0].finished


# The chapter's rows


def tiny() -> Learner:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    batches = list(zip(x.split(16), x[:, :4].argmax(1).split(16), strict=True))
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    loaders = DataLoaders(batches, batches, device="cpu")
    return Learner(loaders, net, nn.CrossEntropyLoss(), metrics=accuracy)


def test_the_chapters_rows_are_what_the_chapter_says():
    found = compare(tiny, read_opts([], [], None), seeds=2, epochs=3, progress=False)
    by_name = {row.name: row.runs[0] for row in found.rows}
    assert list(by_name) == list(chapter_rows())
    assert all(run.finished for run in by_name.values())
    assert set(by_name["SGD from one stepper"].hypers["lr"]) == {0.03}
    assert found["SGD from one stepper"].describe == "sgd_step, lr=0.03; fit"
    assert max(by_name["plain SGD"].hypers["lr"]) == pytest.approx(0.03, rel=0.01)
    assert "mom" not in by_name["plain SGD"].hypers
    moms = by_name["momentum"].hypers["mom"]
    assert moms[0] == pytest.approx(0.95)
    assert min(moms) == pytest.approx(0.85, abs=0.01)
    assert set(by_name["RMSProp"].hypers["eps"]) == {1e-7}
    # what is built from steppers is the library's own, to the last bit
    for mine, theirs in zip(
        found["Adam from steppers"].runs, found["baseline Adam"].runs, strict=True
    ):
        assert mine.raw_losses == theirs.raw_losses
    assert "chapter" not in recipes()


# --opt


def test_what_opt_says_is_what_is_trained():
    rows = read_opts(["sgd", "Adam:lr=0.1", "momentum:mom=0.8", "sgd:lr=1e-2,fit=fit"], [], None)
    assert [row["lr"] for row in rows.values()] == [0.03, 0.1, 0.03, 0.01]
    assert rows["momentum:mom=0.8"]["moms"] == (0.8, 0.8, 0.8)
    assert rows["sgd:lr=1e-2,fit=fit"]["fit"] == "fit"
    assert read_opts(["sgd"], [], 0.5)["sgd"]["lr"] == 0.5
    opts = ["momentum:mom=0.8,nesterov=true"]
    (row,) = compare(tiny, read_opts(opts, [], None), seeds=1, progress=False).rows
    assert "nesterov_step" in row.describe
    assert set(row.runs[0].hypers["mom"]) == {0.8}
    both = read_opts(["chapter", "lion"], [], None)
    assert list(both) == [*chapter_rows(), "lion"]


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_optimizer_that_has_a_name_trains(name):
    (row,) = compare(tiny, read_opts([name], [], None), seeds=1, epochs=1, progress=False).rows
    assert row.runs[0].finished, row.runs[0].error


@pytest.mark.parametrize(
    ("opt", "words"),
    [
        ("adamm", "no optimizer adamm; did you mean adam?"),
        ("chaptre", "did you mean chapter?"),
        ("sgd:momentum=0.9", "does not take momentum; known are decouple_wd, fit, lr, mom"),
        ("sgd:lr", "'lr' has no value"),
        ("sgd:lr=high", "'lr=high' is no number"),
        ("sgd:fit=fit_one", "fit=fit_one is unknown; did you mean fit_one_cycle?"),
    ],
)
def test_an_opt_that_cannot_be_meant(opt, words):
    with pytest.raises(UsageError) as refused:
        read_opts([opt], [], None)
    assert words in str(refused.value)


# --opt-file

STEPPERS = '''
"""Steppers of my own."""
import torch
from treadle.optim import Optimizer, SGD


def sign_step(p, lr, **kwargs):
    p.data.sub_(torch.sign(p.grad), alpha=lr)


signs = [sign_step]


def slow(params, lr, factor=0.1):
    return SGD(params, lr * factor)


def broken(params, lr):
    return params.no_such_thing  # line 19


number = 3
'''


@pytest.fixture
def steppers(tmp_path):
    file = tmp_path / "my_steppers.py"
    file.write_text(STEPPERS)
    return file


def test_an_optimizer_from_a_file_of_the_users(images, steppers, tmp_path):
    out = tmp_path / "study"
    files = ["--opt-file", f"{steppers}:signs:lr=0.001", "--opt-file", f"{steppers}:slow:factor=1"]
    assert run(asked(images, *files, "--seeds", 1, "--out", out)) == 0
    found = read(out)
    names = ["my_steppers.py:signs:lr=0.001", "my_steppers.py:slow:factor=1"]
    assert [row.name for row in found.rows] == names
    assert found.rows[0].describe == "sign_step, lr=0.001; fit_one_cycle"
    assert found.rows[0].runs[0].finished
    assert not (tmp_path / "__pycache__").exists()  # nothing is left beside the user's file
    steppers.write_text(STEPPERS.replace("torch.sign(p.grad)", "p.grad"))
    assert run(asked(images, *files, "--seeds", 1, "--out", out)) == 2  # it is another optimizer


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sings", "has no sings; did you mean signs?"),
        ("number", "number of"),
        ("broken", "my_steppers.py, line 19: AttributeError"),
        ("sign_step", "a list of steppers, or a function (params, lr)"),
        ("slow:speed=2", "does not take speed"),
        ("1x", "write it as my_steppers.py:my_recipe"),
    ],
)
def test_a_recipe_that_cannot_be_meant(name, words, steppers):
    with pytest.raises(UsageError) as refused:
        read_opts([], [f"{steppers}:{name}"], None)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = = 2\n", "my.py, line 2: SyntaxError"),
        ("import treadle\n\nraise ValueError('no')\n", "my.py, line 3: ValueError: no"),
        ("import no_such_module\n", "my.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_does_not_run_is_named_with_its_line(text, words, tmp_path):
    (tmp_path / "my.py").write_text(text)
    with pytest.raises(UsageError) as refused:
        read_opts([], [f"{tmp_path / 'my.py'}:x"], None)
    assert words in str(refused.value)


def test_recipes_of_one_name_are_two_rows(steppers, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / steppers.name).write_text(STEPPERS)
    other = f"{tmp_path / 'other' / steppers.name}:signs"
    assert list(read_opts([], [f"{steppers}:signs", other], None)) == [
        "my_steppers.py:signs",
        other,
    ]


def test_where_nothing_gets_to_its_end_the_command_fails(images, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def f(p, lr): raise OSError('no')\n\n\nsteppers = [f]\n")
    given = ["--opt-file", tmp_path / "mine.py:steppers", "--seeds", 1]
    assert run(asked(images, *given, "--out", tmp_path / "study")) == 2
    said = capsys.readouterr()
    assert "OSError: no" in said.out
    assert f"{tmp_path / 'mine.py'}, line 1" in said.out
    assert said.err == "treadle: no training got to its end; the reasons are above.\n"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_opts([], [f"{tmp_path / 'my.py'}:x"], None)


# The rest


def test_the_table_fits_into_80_columns(tmp_path, capsys, monkeypatch):
    epochs = [{"train_loss": 12.3456, "valid_loss": 1234.5, "accuracy": 0.5}]
    times = {"total_seconds": 12345.6, "steps_per_second": 1234.5, "rate_found": 1.2e-3}
    runs = [Run(seed, epochs=epochs, **times) for seed in range(3)]
    rows = [Row(name, "x", runs) for name in chapter_rows()]
    found = Comparison("t", {}, ["train_loss", "valid_loss", "accuracy"], rows, range(3))
    for width in (80, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        tell(found, tmp_path)
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        table = lines[: lines.index(found.verdict()[0])]
        assert max(map(len, table)) <= width
        assert not any("…" in line for line in table)
        assert sum("±" in line for line in table) == len(rows)
        assert any(line.count("12.3456 ± 0.0000") for line in table) == (width == 160)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"seeds": 0}, "--seeds 0 cannot be meant"),
        ({"epochs": 0}, "--epochs 0 cannot be meant"),
        ({"opt": "adamm"}, "did you mean adam?"),
        ({"sedes": 3}, "--sedes"),
        ({"arch": "resnet43"}, "did you mean resnet34"),
    ],
)
def test_a_mistake_is_one_sentence(more, words, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(asked(images, **more)) == 2
    assert words in one_line(capsys)


def test_help_names_the_options(capsys):
    assert run(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in "--opt --opt-file --seeds --epochs --each-finds-its-rate --arch --out".split():
        assert option in shown
