"""`treadle data` as a person uses it: what it says, what it writes, and how it ends."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from treadle.cli.main import run
from treadle.data.known import KNOWN


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data home, and a mirror that has a cut-down imagenette-160 and another archive."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(tmp_path))
    for name in ("imagenette2-160", "toy"):
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as tar:
            for file, body in {"train/a.txt": b"A", "train/b.txt": b"B", "valid/c": b"C"}.items():
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return tmp_path / "home"


def ok(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What `treadle data` says on stdout when all is well."""
    capsys.readouterr()
    assert run(["data", *args]) == 0
    return capsys.readouterr().out


def mistake(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one sentence on stderr when it is not."""
    capsys.readouterr()
    assert run(["data", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("treadle: ") and err.count("\n") == 1
    return err


def test_list_shows_every_set_its_size_and_whether_it_is_here(home, capsys) -> None:
    rows = {line.split()[0]: line for line in ok(capsys, "list").splitlines()}
    assert KNOWN.keys() | {"digits"} <= rows.keys()
    assert re.search(r"99\.0 MB  -     imagenette, 160 px$", rows["imagenette-160"])
    assert str(home / "data") in rows["They"]
    ok(capsys, "get", "imagenette-160")
    assert "99.0 MB  yes " in ok(capsys, "list")
    assert all(len(row) <= 80 for name, row in rows.items() if name != "They")


def test_get_and_path_print_the_folder_and_nothing_else(home, capsys) -> None:
    folder = home / "data" / "imagenette2-160"
    for spelling in ("imagenette-160", "IMAGENETTE_160"):
        assert ok(capsys, "get", spelling) == f"{folder}\n"
        assert ok(capsys, "path", spelling) == f"{folder}\n"
    assert (folder / "train" / "a.txt").read_bytes() == b"A"


def test_get_an_address_to_a_folder(tmp_path, capsys) -> None:
    url = "https://host/sets/toy.tgz"
    folder = tmp_path / "mine" / "toy"
    assert ok(capsys, "get", url, "--to", str(tmp_path / "mine")) == f"{folder}\n"
    assert "3 files, 0.0 MB, all as unpacked" in ok(capsys, "verify", str(folder))
    (folder / "train" / "a.txt").write_bytes(b"X")
    ok(capsys, "get", url, "--to", str(tmp_path / "mine"))
    assert (folder / "train" / "a.txt").read_bytes() == b"X"  # it is here: nothing is done
    ok(capsys, "get", url, "--to", str(tmp_path / "mine"), "--force")
    assert (folder / "train" / "a.txt").read_bytes() == b"A"


def test_the_digits_need_no_download(home, tmp_path, capsys) -> None:
    assert ok(capsys, "get", "digits") == f"{home / 'data' / 'digits'}\n"
    assert ok(capsys, "path", "digits") == f"{home / 'data' / 'digits'}\n"
    assert ok(capsys, "get", "digits", "--to", str(tmp_path)) == f"{tmp_path / 'digits'}\n"
    assert "yes" in ok(capsys, "list").splitlines()[1]


def test_verify_names_what_is_missing_extra_and_changed(home, capsys) -> None:
    ok(capsys, "get", "imagenette-160")
    folder = home / "data" / "imagenette2-160"
    said = ok(capsys, "verify", "imagenette-160")
    assert said == f"{folder}: 3 files, 0.0 MB, all as unpacked\n"
    (folder / "train" / "a.txt").unlink()
    (folder / "train" / "b.txt").write_bytes(b"X")  # of the same size: the hash tells
    (folder / "valid" / "c").write_bytes(b"longer")
    (folder / "new\x1b[31m").touch()
    (folder / "link").symlink_to("/")  # not entered
    assert run(["data", "verify", "imagenette-160"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "missing  train/a.txt",
        "extra    link",
        "extra    'new\\x1b[31m'",
        "changed  train/b.txt",
        "changed  valid/c",
    ]
    assert "1 missing, 2 extra, 2 changed" in err and err.count("\n") == 1
    assert KNOWN["imagenette-160"].url in err


def test_a_folder_that_was_moved_is_verified_where_it_is(home, tmp_path, capsys) -> None:
    ok(capsys, "get", "imagenette-160")
    shutil.move(home / "data" / "imagenette2-160", tmp_path / "elsewhere")
    assert "all as unpacked" in ok(capsys, "verify", str(tmp_path / "elsewhere"))
    assert "is not here" in mistake(capsys, "path", "imagenette-160")


def test_a_file_that_became_a_folder_or_a_link_is_not_as_it_was(home, capsys) -> None:
    ok(capsys, "get", "imagenette-160")
    folder = home / "data" / "imagenette2-160"
    (folder / "train" / "a.txt").unlink()
    (folder / "train" / "a.txt").mkdir()
    (folder / "valid" / "c").unlink()
    (folder / "valid" / "c").symlink_to("nowhere")
    assert "1 missing, 0 extra, 1 changed" in mistake(capsys, "verify", "imagenette-160")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "é", "[" * 99999, '{"version": 1}'),
        '{"version": 1, "source": "", "files": [1]}',
        '{"version": 1, "source": "", "files": {"a": [1]}}',
    ],
)
def test_a_list_that_cannot_be_read(text, tmp_path, capsys) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".treadle.json").write_text(text)
    assert "cannot be read" in mistake(capsys, "verify", str(tmp_path / "set"))


def test_a_list_of_another_version(tmp_path, capsys) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".treadle.json").write_text(json.dumps({"version": 2}))
    assert "is of version 2" in mistake(capsys, "verify", str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["get", "imagenette-16"], ["imagenette-16", "did you mean imagenette-160"]),
        (["get", "https://host/page.html"], ["page.html", ".tar.gz"]),
        (["get", "https://host/absent.tgz"], ["absent.tgz", "could not be reached"]),
        (["path", "pets"], ["pets is not here", "`treadle data get pets`"]),
        (["verify", "pets"], ["no folder", "oxford-iiit-pet"]),
        (["verify", "/"], ["no list of what was unpacked"]),
        (["get"], ["--help"]),
        (["fetch", "pets"], ["fetch"]),
    ],
)
def test_a_mistake_is_one_sentence(args, words, capsys) -> None:
    said = mistake(capsys, *args)
    for word in words:
        assert word in said


def test_help(capsys) -> None:
    shown = ok(capsys)
    assert all(verb in shown for verb in ("list", "get", "path", "verify"))
    shown = ok(capsys, "get", "--help")
    assert "--to" in shown and "--force" in shown
