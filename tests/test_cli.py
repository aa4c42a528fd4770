"""`treadle train` as a person uses it: what it writes, what it says, and how it ends."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from treadle.cli.main import explain, run
from treadle.cli.optimizers import recipes
from treadle.errors import DataError

TINY = "--size 32 --presize 32 --bs 8".split()
SMALL = [*TINY, "--epochs", "1", "--workers", "0"]


def write_images(folder: Path, n: int, seed: int = 0) -> None:
    """`n` noisy images of each of two classes, told apart by their colour."""
    rng = np.random.default_rng(seed)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 100, (40, 48, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{i}.{'png' if i % 2 else 'jpg'}")


@pytest.fixture
def images(tmp_path):
    """A folder with train/<class>/* and val/<class>/*."""
    write_images(tmp_path / "images" / "train", 12)
    write_images(tmp_path / "images" / "val", 4, seed=1)
    return tmp_path / "images"


def treadle(*args, **kwargs):
    command = [sys.executable, "-m", "treadle", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, **kwargs)


def one_line(capsys) -> str:
    """What stands on stderr, which must be one line without a traceback."""
    err = capsys.readouterr().err
    assert err.startswith("treadle: ")
    assert err.count("\n") == 1
    return err


def test_the_default_trains_on_digits_to_95_percent(tmp_path):
    """No argument but the place, offline, on the CPU: the README's first command."""
    done = treadle("train", "--out", tmp_path / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "1442 images to train on, 355 to validate on, 10 classes" in lines[0]
    assert lines[1].split() == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    accuracy = float(re.search(r"accuracy (\S+) after 5 epochs", done.stdout).group(1))
    assert accuracy >= 0.95
    assert lines[-1].split() == ["report", str(tmp_path / "run" / "report.html")]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "events.jsonl",
        "history.csv",
        "model.safetensors",
        "record.json",
        "report.html",
    }


def test_a_folder_of_images_becomes_a_run(images, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        run(["train", str(images), "--out", str(out), "--seed", "7", "--opt", "sgd", *SMALL]) == 0
    )
    said = capsys.readouterr().out
    assert "24 images to train on, 8 to validate on, 2 classes" in said
    config = json.loads((out / "config.json").read_text())
    assert config["path"] == str(images)
    assert (config["seed"], config["opt"], config["bs"], config["size"]) == (7, "sgd", 8, 32)
    assert config["classes"] == ["blue", "red"]
    assert config["environment"]["torch"]
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert 0 <= float(rows[0]["accuracy"]) <= 1
    weights = load_file(out / "model.safetensors")
    assert sum(w.size for name, w in weights.items() if "running" not in name and w.ndim)
    assert "red" in (out / "report.html").read_text()


def test_a_folder_of_classes_is_split_by_the_seed(tmp_path, capsys):
    write_images(tmp_path / "all", 10)
    assert run(["train", str(tmp_path / "all"), "--out", str(tmp_path / "a"), *SMALL]) == 0
    assert "16 images to train on, 4 to validate on" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_run(images, tmp_path):
    histories = []
    for name, workers in (("a", "0"), ("b", "2")):
        args = ["train", str(images), "--out", str(tmp_path / name), *TINY, "-e", "2"]
        assert run([*args, "--workers", workers]) == 0
        with (tmp_path / name / "history.csv").open() as file:
            histories.append([{**row, "time": ""} for row in csv.DictReader(file)])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("opt", sorted(recipes()))
def test_every_optimizer_trains(opt, images, tmp_path):
    """All that `treadle compare` knows."""
    small = ["--arch", "shufflenet_v2_x0_5", *SMALL]
    assert run(["train", str(images), "--out", str(tmp_path / "run"), "--opt", opt, *small]) == 0


def test_the_help_names_every_optimizer(capsys):
    assert run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in recipes() if not re.search(rf"\b{name}\b", shown)] == []


def test_a_disk_without_room_for_two_checkpoints_is_told_before_training(
    images, tmp_path, capsys, monkeypatch
):
    usage = type("usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert run(["train", str(images), "--out", str(tmp_path / "run"), *SMALL]) == 2
    assert re.search(
        r"no room for .*run.checkpoints: it needs \d{2,3},\d{3},\d{3} bytes, 10,000 are "
        "free",
        one_line(capsys),
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("over", ["file", "http"])
def test_imagenette_by_its_name(over, imagenette_mirror, tmp_path, monkeypatch, capsys):
    """Real photographs, from a mirror folder and from a real HTTP server; the second run does not
    fetch them again."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    args = ["train", "imagenette-160", "--size", "32", "--presize", "40", "--epochs", "1"]
    with serving(imagenette_mirror) as url:
        mirror = url if over == "http" else imagenette_mirror.as_uri()
        monkeypatch.setenv("TREADLE_DATA_MIRROR", mirror)
        assert run([*args, "--out", str(tmp_path / "first")]) == 0
    assert "80 images to train on, 40 to validate on, 10 classes" in capsys.readouterr().out
    monkeypatch.setenv("TREADLE_DATA_MIRROR", "http://127.0.0.1:9/nobody-listens")
    assert run([*args, "--out", str(tmp_path / "second")]) == 0
    assert "n01440764" in (tmp_path / "first" / "report.html").read_text()


@contextmanager
def serving(folder):
    """An HTTP server on localhost for the files of `folder`; gives its address."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Nothing."""


def test_precision_bf16(images, tmp_path):
    args = ["train", str(images), "--out", str(tmp_path / "run"), *SMALL, "--precision", "bf16"]
    assert run(args) == 0


def empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    return ["train", str(tmp_path / "empty")]


def one_class(tmp_path):
    write_images(tmp_path / "one", 8)
    for file in (tmp_path / "one" / "blue").iterdir():
        file.unlink()
    return ["train", str(tmp_path / "one")]


def no_validation(tmp_path):
    write_images(tmp_path / "half" / "train", 4)
    return ["train", str(tmp_path / "half")]


def not_an_image(tmp_path):
    write_images(tmp_path / "bad", 8)
    for file in (tmp_path / "bad").rglob("*.png"):
        file.write_bytes(b"this is no image")
    return ["train", str(tmp_path / "bad"), *SMALL]


def cut_jpeg(tmp_path):
    write_images(tmp_path / "cut", 8)
    for file in (tmp_path / "cut").rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:200])
    return ["train", str(tmp_path / "cut"), *SMALL]


def loose_image(tmp_path):
    write_images(tmp_path / "loose", 4)
    (tmp_path / "loose" / "red" / "0.jpg").rename(tmp_path / "loose" / "0.jpg")
    return ["train", str(tmp_path / "loose")]


def taken_folder(tmp_path):
    write_images(tmp_path / "ok", 4)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    return ["train", str(tmp_path / "ok"), "--out", str(tmp_path / "taken")]


def arch(name):
    def args(tmp_path):
        write_images(tmp_path / "ok", 4)
        return ["train", str(tmp_path / "ok"), "--arch", name]

    return args


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp: ["train", str(tmp / "absent")], ["absent", "give a folder"]),
        (empty_folder, ["empty", "no images"]),
        (one_class, ["red", "one class", "two"]),
        (no_validation, ["train", "valid, val, test"]),
        (not_an_image, [".png", "bad"]),
        (cut_jpeg, [".jpg", "cut"]),
        (loose_image, ["0.jpg", "folder of its class"]),
        (taken_folder, ["taken", "notes.txt", "empty folder"]),
        (arch("resnet43"), ["resnet43", "did you mean resnet34"]),
        (lambda _: ["train", "--epochs", "0"], ["--epochs 0", "above 0"]),
        (lambda _: ["train", "--epochs", "many"], ["--epochs", "many"]),
        (lambda _: ["train", "--lr", "-1"], ["--lr", "above 0"]),
        (lambda _: ["train", "--workers", "-2"], ["--workers -2", "0 or more"]),
        (lambda _: ["train", "--device", "abacus"], ["--device abacus", "cpu"]),
        (lambda _: ["train", "--opt", "adamm"], ["--opt", "did you mean adam?"]),
        (lambda _: ["train", "--checkpoint-every", "0"], ["--checkpoint-every 0", "above 0"]),
        (lambda _: ["train", "--max-time", "soon"], ["--max-time soon", "90s, 30m, 2h"]),
        (lambda tmp: ["resume", str(tmp / "none")], ["config.json", "none", "folder of a run"]),
        (lambda tmp: ["info", str(tmp / "none")], ["config.json", "none", "folder of a run"]),
        (lambda tmp: ["runs", str(tmp / "none")], ["none", "treadle train makes"]),
        (lambda _: ["train", "--epoch", "3"], ["--epoch", "--epochs"]),
        (lambda _: ["trian"], ["trian", "train"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(make, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where runs/ would be made
    args = make(tmp_path)
    capsys.readouterr()
    assert run(args) == 2
    said = one_line(capsys)
    for word in words:
        assert word in said


def test_an_unforeseen_error_is_exit_status_1_and_debug_shows_where(tmp_path, capsys):
    assert explain(MemoryError("no room")) == 1
    assert one_line(capsys) == "treadle: MemoryError: no room (--debug shows where)\n"
    assert explain(DataError("the disk is full")) == 2
    capsys.readouterr()
    assert run(["train", str(tmp_path / "absent"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_keeps_what_was_trained(images, tmp_path):
    args = ["train", images, "--out", tmp_path / "run", *TINY, "--epochs", "10000"]
    command = [sys.executable, "-m", "treadle", *map(str, args)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:  # the table: wait for a whole epoch
            if re.match(r"\s*1 ", line):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == f"treadle: Ctrl-C ended the run; go on with: treadle resume {tmp_path / 'run'}\n"
    assert "accuracy" in out
    with (tmp_path / "run" / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 2
    assert (tmp_path / "run" / "report.html").is_file()
    assert load_file(tmp_path / "run" / "model.safetensors")


def test_help_and_version(capsys):
    assert run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (
        "--arch --epochs --lr --bs --size --presize --opt --seed --workers --precision "
        "--device --out --checkpoint-every --max-time --debug"
    ).split():
        assert option in shown
    assert run(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert run([]) == 0
    assert "train" in capsys.readouterr().out
