"""Damaged checkpoints are found and passed over; hostile ones run, write and open nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import watch
from checkpoint_faults import assert_refused, cuts, flips
from checkpoint_kit import assert_whole, change, put, write

from treadle.errors import DataError
from treadle.run.checkpoint import newest_checkpoint, read_checkpoint

FLIPS = 1000
CUTS = 200


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    return tmp_path


def test_every_flipped_bit_is_found(tmp_path):
    tried = flips(tmp_path, FLIPS)
    assert tried.wrong == []
    assert tried.count == FLIPS


def test_every_cut_is_found(tmp_path):
    tried = cuts(tmp_path, CUTS)
    assert tried.wrong == []
    assert tried.count == CUTS


def test_a_file_with_a_byte_more_is_found(two):
    with (two / "step-000002" / "loop.json").open("ab") as file:
        file.write(b" ")
    assert_refused(two / "step-000002", "loop.json")


@pytest.mark.parametrize(
    "file", "manifest.json model.safetensors optimizer.safetensors loop.json".split()
)
def test_missing_and_swapped_files_are_found(two, file):
    path, other = two / "step-000002", two / "step-000001"
    shutil.copy(other / file, path / file)
    assert_refused(path, file)
    (path / file).unlink()
    assert_refused(path, file)


def test_a_whole_checkpoint_under_the_name_of_another_is_found(two):
    shutil.rmtree(two / "step-000002")
    shutil.copytree(two / "step-000001", two / "step-000002")
    assert_refused(two / "step-000002", "manifest.json")


def test_if_all_are_damaged_there_is_none(two):
    for path in two.iterdir():
        (path / "loop.json").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-00000[12]/loop.json") as told:
        assert newest_checkpoint(two) is None
    assert len(told) == 2


# Hostile ones. Each is sealed and hashed as the writer would: only what it says is wrong.


def rename_part(path: Path, name: object) -> None:
    change(path, lambda plain: plain["tensors"].update({name: plain["tensors"].pop("model")}))


def safetensors(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def link(path: Path, file: str, outside: Path) -> None:
    secret = outside / "secret"
    secret.write_bytes((path / file).read_bytes())
    (path / file).unlink()
    (path / file).symlink_to(secret)


def fifo(path: Path, file: str) -> None:
    (path / file).unlink()
    os.mkfifo(path / file)


def folder(path: Path, file: str) -> None:
    (path / file).unlink()
    (path / file).mkdir()


def raw(data: bytes) -> Callable[[Path, Path], None]:
    def make(path: Path, outside: Path) -> None:
        (path / "manifest.json").write_bytes(data)

    return make


def edit(old: bytes, new: bytes) -> Callable[[Path, Path], None]:
    """Changes the bytes of the manifest, not its seal."""

    def make(path: Path, outside: Path) -> None:
        before = (path / "manifest.json").read_bytes()
        assert old in before
        (path / "manifest.json").write_bytes(before.replace(old, new, 1))

    return make


def said(how: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    return lambda path, outside: change(path, how)


def model(data: bytes) -> Callable[[Path, Path], None]:
    return lambda path, outside: put(path, "model.safetensors", data)


def value(data: bytes) -> Callable[[Path, Path], None]:
    return lambda path, outside: put(path, "loop.json", data)


PICKLE = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
HOSTILE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "part leads up": (lambda p, o: rename_part(p, "../outside/secret"), "cannot be named"),
    "part is absolute": (lambda p, o: rename_part(p, "/etc/passwd"), "cannot be named"),
    "part with a backslash": (lambda p, o: rename_part(p, "..\\secret"), "cannot be named"),
    "part with NUL": (lambda p, o: rename_part(p, "a\0b"), "cannot be named"),
    "part is a thousand letters": (lambda p, o: rename_part(p, "a" * 1000), "cannot be named"),
    "manifest as a value": (
        said(lambda m: m["values"].update(manifest=m["values"]["loop"])),
        "cannot be named 'manifest'",
    ),
    "a link to outside": (lambda p, o: link(p, "model.safetensors", o), "it is a link"),
    "manifest a link": (lambda p, o: link(p, "manifest.json", o), "it is a link"),
    "a pipe that blocks": (lambda p, o: fifo(p, "loop.json"), "not a plain file"),
    "a folder as a file": (lambda p, o: folder(p, "loop.json"), "not a plain file"),
    "a huge declared size": (
        said(lambda m: m["tensors"]["model"].update(size=1 << 60)),
        "was cut or changed",
    ),
    "a size below zero": (said(lambda m: m["tensors"]["model"].update(size=-1)), "not a count"),
    "a size of text": (said(lambda m: m["tensors"]["model"].update(size="1")), "not a count"),
    "no hash": (said(lambda m: m["tensors"]["model"].pop("sha256")), "sha256"),
    "an empty hash": (said(lambda m: m["tensors"]["model"].update(sha256="")), "64 hexadecimal"),
    "a schema to come": (said(lambda m: m.update(schema=3)), "has the schema 3"),
    "a schema of truth": (said(lambda m: m.update(schema=True)), "has the schema True"),
    "step of another": (said(lambda m: m.update(step=9)), "swapped with another"),
    "score not a number": (edit(b'"score": null', b'"score": NaN'), "damaged or no manifest"),
    "score a huge integer": (said(lambda m: m.update(score=10**400)), "no number"),
    "tensors a list": (said(lambda m: m.update(tensors=[])), "damaged or no manifest"),
    "tied to nothing": (
        said(lambda m: m["tied"]["model"].update(evil="nothing")),
        "does not fit the file",
    ),
    "tied over a stored one": (
        said(lambda m: m["tied"]["model"].update(embed="bias")),
        "does not fit the file",
    ),
    "tied in no part": (said(lambda m: m["tied"].update(other={})), "not there"),
    "manifest nested deep": (raw(b"[" * 100_000), "damaged or no manifest"),
    "manifest not text": (raw(b"\xff\xfe\xff"), "damaged or no manifest"),
    "manifest a list": (raw(b"[]"), "damaged or no manifest"),
    "manifest with a key twice": (
        edit(b'"step": 2,', b'"step": 9, "step": 2,'),
        "its seal is broken",
    ),
    "manifest with a space more": (edit(b"{", b"{ "), "its seal is broken"),
    "manifest with a huge integer": (raw(b'{"schema": 1' + b"0" * 5000 + b"}"), "no manifest"),
    "pickle as tensors": (model(PICKLE), "not a safetensors file"),
    "pickle as a value": (value(PICKLE), "not JSON"),
    "a header longer than the file": (
        model(safetensors({}, length=1 << 40)),
        "not a safetensors file",
    ),
    "a header that is no JSON": (model(safetensors(b"{")), "not a safetensors file"),
    "tensors that overlap": (
        model(safetensors({"a": tensor(0, 16, [4]), "b": tensor(0, 16, [4])})),
        "not a safetensors file",
    ),
    "a hole between tensors": (
        model(safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 16, [2])})),
        "not a safetensors file",
    ),
    "a shape that overflows": (
        model(safetensors({"a": tensor(0, 16, [1 << 62, 1 << 62])})),
        "not a safetensors file",
    ),
    "offsets past the end": (
        model(safetensors({"a": tensor(0, 1 << 40, [1 << 38])})),
        "not a safetensors file",
    ),
    "a dtype of fancy": (
        model(safetensors({"a": tensor(0, 16, [1], "PICKLE")})),
        "not a safetensors file",
    ),
    "data behind the end": (
        model(safetensors({"a": tensor(0, 16, [4])}, b"\0" * 99)),
        "not a safetensors file",
    ),
    "value nested deep": (value(b"[" * 100_000), "nested too deep"),
    "value nested beyond ours": (value(b"[" * 70 + b"]" * 70), "nested deeper than 64"),
    "value with NaN": (value(b'{"lr": NaN}'), "NaN is not JSON"),
    "value with a key twice": (value(b'{"a": 1, "a": 2}'), "twice"),
    "value with a huge integer": (value(b"1" + b"0" * 5000), "not JSON"),
    "value with a strange mark": (value(b'{"$call": "os.system"}'), "no meaning"),
    "value with a float of lies": (value(b'{"$float": "00"}'), "not JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_refused_and_does_nothing(two, tmp_path_factory, kind):
    make, why = HOSTILE[kind]
    path, outside = two / "step-000002", tmp_path_factory.mktemp("outside")
    make(path, outside)
    start = time.perf_counter()
    with watch.over(two) as offences, pytest.raises(DataError, match=re.escape(why)):
        read_checkpoint(path)
    assert not offences
    assert time.perf_counter() - start < 5  # its own measure is 1 s, on a quiet machine


def test_the_watch_sees_what_it_should(tmp_path):
    with watch.over(tmp_path) as offences:
        (tmp_path / "inside").touch()
        compile("1", "x", "eval")
        (Path(__file__)).read_bytes()
    assert [line.split()[0] for line in offences] == ["open", "compile", "open"]
    with watch.over(tmp_path) as offences:
        (tmp_path / "inside").read_bytes()
    assert not offences
    with watch.over(tmp_path, writable=True) as offences:
        (tmp_path / "inside").write_bytes(Path(__file__).read_bytes())
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "link").symlink_to("..")
        (tmp_path.parent / "outside").touch()
    assert [line.split()[0] for line in offences] == ["os.symlink", "open"]


def test_a_checkpoint_that_is_a_link_is_passed_over(two, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write(outside, 3)
    (two / "step-000003").symlink_to(outside / "step-000003")
    assert assert_whole(newest_checkpoint(two)) == 2
    for step in (4, 5, 6):
        write(two, step)  # and is not followed when older ones go
    assert assert_whole(outside / "step-000003") == 3
