"""`treadle train` on texts: numbers written as words."""

from __future__ import annotations

import json
import random

import pytest

from treadle.cli.main import run
from treadle.errors import DataError
from treadle.text.folder import text_dataloaders

WORDS = "one two three four five six seven eight nine ten".split()
SMALL = "--hidden 16 --seq-len 12 --bs 8 --epochs 2 --device cpu --seed 3".split()


def counting(n, start=0):
    return " ".join(WORDS[(start + i) % 10] for i in range(n))


@pytest.fixture
def classes(tmp_path):
    drawn = random.Random(0)
    for label in ("even", "odd"):
        folder = tmp_path / "docs" / label
        folder.mkdir(parents=True)
        words = WORDS[1::2] if label == "even" else WORDS[::2]
        for i in range(30):
            (folder / f"{i}.txt").write_text(" ".join(drawn.choices(words, k=drawn.randint(3, 9))))
    return tmp_path / "docs"


def test_a_language_model_from_one_file(tmp_path, capsys):
    text = tmp_path / "counting.txt"
    text.write_text("\n".join(counting(30, i) for i in range(60)))
    out = tmp_path / "run"
    assert run(["train", str(text), "--task", "lm", "--out", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "tokens to train on" in printed
    assert "perplexity" in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["task"], config["arch"], config["hidden"]) == ("lm", "awd_lstm", 16)
    record = json.loads((out / "record.json").read_text())
    assert len(record["texts"]) == 3
    assert all(len(text.split()) > 20 for text in record["texts"])
    assert record["confusion"] is None
    page = (out / "report.html").read_text("utf-8")
    assert "What it writes" in page
    assert record["texts"][2].split("\n")[0][:20] in page


def test_a_classifier_from_class_folders(classes, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["train", str(classes), "--task", "text-classify", "--arch", "gru", *SMALL]
    assert run([*given, "--out", str(out)]) == 0
    assert "48 texts to train on, 12 to validate on, 2 classes" in capsys.readouterr().out
    record = json.loads((out / "record.json").read_text())
    assert record["confusion"]["vocab"] == record["balance"]["vocab"] == ["even", "odd"]
    assert sum(map(sum, record["confusion"]["matrix"])) == 12
    assert record["worst"][0]["file_name"].endswith(".txt")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--task", "lm"], "--task lm needs the PATH of a .txt file"),
        (["x", "--task", "lm", "--arch", "resnet18"], "unknown for texts; known are awd_lstm"),
        (["x", "--task", "text-classify", "--pretrained"], "no trained weights for text"),
        (["x", "--task", "lm", "--seq-len", "0"], "--seq-len 0 cannot be meant"),
        (["nowhere", "--task", "lm"], "give a .txt file, or a folder of them"),
    ],
)
def test_what_cannot_be_meant(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", *given]) == 2
    assert said in capsys.readouterr().err


def test_where_text_may_lie(tmp_path, classes):
    options = {"bs": 2, "seq_len": 5, "seed": 0, "device": "cpu"}
    (tmp_path / "pair").mkdir()
    for name, n in (("train", 100), ("val", 40)):
        (tmp_path / "pair" / f"{name}.txt").write_text(counting(n))
    pair = text_dataloaders(tmp_path / "pair", True, **options)
    assert [dl.n_tokens for dl in pair] == [101, 41]
    one = tmp_path / "one.txt"
    one.write_text(counting(100))
    assert [dl.n_tokens for dl in text_dataloaders(one, True, **options)] == [91, 11]
    assert len(text_dataloaders(classes, True, **options).train.dataset) == 48
    for part in ("train", "test"):
        (tmp_path / "split").mkdir(exist_ok=True)
        for label in ("even", "odd"):
            folder = tmp_path / "split" / part / label
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}.txt").write_text(counting(5, i))
    split = text_dataloaders(tmp_path / "split", False, **options)
    assert [len(dl.dataset) for dl in split] == [8, 8]
    with pytest.raises(DataError, match=r"give a folder with CLASS/\*\.txt"):
        text_dataloaders(one, False, **options)
