"""What a checkpoint gives back, what it keeps, and what the training thread pays."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import warnings
from pathlib import Path

import pytest
import torch
from checkpoint_kit import STRANGE, assert_is, assert_whole, tensors_of, values_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from treadle.errors import DataError, UsageError
from treadle.run import durable
from treadle.run.checkpoint import (
    best_checkpoint,
    checkpoints,
    newest_checkpoint,
    read_checkpoint,
    read_newest,
    verify_checkpoint,
    write_checkpoint,
)
from treadle.run.checkpoint_writer import Writer
from treadle.run.durable import DiskFullError
from treadle.run.exact_json import from_json, to_json

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_gives_back_what_went_in(tmp_path):
    path = write(tmp_path, 7)
    assert path == tmp_path / "step-000007"
    assert_is(read_checkpoint(path), 7)
    assert newest_checkpoint(tmp_path) == path
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["versions"].keys() == {"treadle", "torch", "python"}
    assert verify_checkpoint(path).files().keys() == {p.name for p in path.iterdir()} - {
        "manifest.json"
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_bits(tmp_path, dtype):
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (6 * dtype.itemsize,))
    whole = raw.to(torch.uint8).view(dtype).reshape(2, 3)
    tensors = {"all": whole, "none": whole[:0], "number": whole[0, 0].clone(), "turned": whole.T}
    found = read_checkpoint(write_checkpoint(tmp_path, 0, {"model": tensors}, {})).tensors["model"]
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor), name


def test_the_file_is_one_that_safetensors_reads(tmp_path):
    path = write(tmp_path, 3)
    found = load_file(path / "model.safetensors")
    assert found.keys() == {"embed", "bias"}  # tied names are stored once
    assert torch.equal(found["embed"], tensors_of(3)["model"]["embed"])


def test_tied_weights_come_back_tied_and_views_with_their_bits(tmp_path):
    flat = torch.randn(12)
    tensors = {
        "flat": flat,
        "same": flat.view(12),
        "half": flat[:6],
        "other": flat[6:],
        "square": flat.view(3, 4),
        "expanded": flat[:1].expand(5),
        "leaf": torch.nn.Parameter(torch.ones(2)),
    }
    path = write_checkpoint(tmp_path, 0, {"model": tensors}, {})
    found = read_checkpoint(path).tensors["model"]
    assert found["flat"] is found["same"]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    # Names that only overlapped are free of one another.
    found["half"].zero_()
    assert torch.equal(found["flat"], flat)


def test_conjugate_and_negative_views(tmp_path):
    number = torch.randn(3, dtype=torch.complex64)
    tensors = {"conj": number.conj(), "neg": number.conj().imag}
    found = read_checkpoint(write_checkpoint(tmp_path, 0, {"m": tensors}, {})).tensors["m"]
    assert torch.equal(found["conj"], number.conj().resolve_conj())
    assert torch.equal(found["neg"], -number.imag)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(STRANGE),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["$", "$float", "$$"]), inner)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Equal in type and in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


@settings(max_examples=200, deadline=None)
@given(plain)
def test_values_come_back_in_every_bit(value):
    text = to_json(value, "value")
    assert same(from_json(text, "value"), value)
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((1, 2), "a tuple"),
        ({1: 2}, "has the key 1, a int"),
        ({"deep": [torch.ones(1)]}, r"\['deep'\]\[0\] is a Tensor"),
        (b"x", "a bytes"),
        ({1, 2}, "a set"),
        (10**5000, "digits"),
    ],
    ids=["tuple", "key", "tensor", "bytes", "set", "integer"],
)
def test_values_that_would_come_back_otherwise_are_refused(tmp_path, value, said):
    with pytest.raises(UsageError, match=said):
        write_checkpoint(tmp_path, 0, {}, {"loop": value})
    assert not list(tmp_path.iterdir())


def test_depth_is_bounded(tmp_path):
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UsageError, match="deeper than 64"):
        write_checkpoint(tmp_path, 0, {}, {"loop": deep})


@pytest.mark.parametrize(
    ("tensors", "values", "said"),
    [
        ({"../x": {}}, {}, "letters"),
        ({"": {}}, {}, "letters"),
        ({"a/b": {}}, {}, "letters"),
        ({"Model": {}, "model": {}}, {}, "only in case"),
        ({}, {"manifest": 1}, "the checkpoint's own"),
        ({"model": {"w": [1.0]}}, {}, "is a list"),
        ({"model": {3: torch.ones(1)}}, {}, "is a int"),
        ({"model": {"__metadata__": torch.ones(1)}}, {}, "keeps that name"),
        ({"model": {"w": torch.ones(2).to_sparse()}}, {}, "not a dense tensor"),
        ({"model": {"w": torch.ones(2, device="meta")}}, {}, "not a dense tensor"),
        ({"model": {"w": torch.ones(2, dtype=torch.complex128)}}, {}, "complex128"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, tensors, values, said):
    with pytest.raises(UsageError, match=said):
        write_checkpoint(tmp_path, 0, tensors, values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [-1, 1.0, True, None, 10**18])
def test_a_step_is_a_count(tmp_path, step):
    with pytest.raises(UsageError, match="number of updates"):
        write_checkpoint(tmp_path, step, {}, {})


def test_keeps_the_last_and_the_best(tmp_path):
    for step, score in enumerate([0.1, 0.9, math.nan, 0.3, math.inf, 0.2, None, 0.0]):
        write(tmp_path, step, keep_last=2, keep_best=2, score=score)
    assert names(tmp_path) == ["step-000001", "step-000003", "step-000006", "step-000007"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-000001"
    write(tmp_path, 8, keep_last=4, keep_best=2, score=0.9)
    assert best_checkpoint(tmp_path) == tmp_path / "step-000008"
    (tmp_path / "step-000008" / "loop.json").unlink()
    with pytest.warns(UserWarning, match=r"passed over: .*step-000008.loop.json"):
        assert best_checkpoint(tmp_path) == tmp_path / "step-000001"
    with pytest.raises(UsageError, match="keep_last is 0"):
        write(tmp_path, 9, keep_last=0)


def test_after_going_back_the_newest_is_the_one_written_last(tmp_path):
    for step in (100, 200, 300, 150):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-000300", "step-000150"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000150"


def test_a_step_written_again_is_never_absent(tmp_path, monkeypatch):
    write(tmp_path, 5)
    seen = []
    monkeypatch.setattr(
        durable,
        "failpoint",
        lambda name: seen.append([*tmp_path.glob("step-000005*/manifest.json")]),
    )
    write_checkpoint(tmp_path, 5, {}, {"loop": "again"})
    assert all(seen)
    assert names(tmp_path) == ["step-000005.2"]
    assert read_checkpoint(newest_checkpoint(tmp_path)).values == {"loop": "again"}


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-000001.txt").write_text("mine")
    (tmp_path / "step-000000").mkdir()  # empty: damaged, so not counted and not removed
    for step in (1, 2, 3):
        path = write(tmp_path, step)
    (path / "notes.txt").write_text("unknown files are ignored")
    assert_whole(path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {
        "step-notes", "step-000001.txt", "step-000000", "step-000002", "step-000003"
    }  # fmt: skip


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_not(tmp_path):
    (tmp_path / ".step-000001.0123abcd.part").mkdir()
    with durable.hidden_folder(tmp_path, "step-000002") as living:
        write(tmp_path, 3)
        assert living.is_dir()
        assert len(list(tmp_path.glob(".*.part"))) == 1
    write(tmp_path, 4)
    assert not list(tmp_path.glob(".*.part"))


def test_everything_is_flushed_in_order(tmp_path, monkeypatch):
    """Each file, then its folder, then the name, then the folder above; only then an old one."""
    for step in (1, 2):
        write(tmp_path, step)
    log: list[str] = []
    flush, rename = os.fsync, Path.rename

    def fsync(fd: int) -> None:
        log.append(f"flush {Path(f'/proc/self/fd/{fd}').readlink().name}")
        flush(fd)

    def renamed(self: Path, target: Path) -> Path:
        log.append(f"rename {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path, 3)
    files = "model.safetensors optimizer.safetensors loop.json table.json manifest.json".split()
    assert log[:5] == [f"flush {file}" for file in files]
    assert log[5].startswith("flush .step-000003.")
    assert log[6] == "rename step-000003"
    assert log[7] == f"flush {tmp_path.name}"
    assert log[8].startswith("rename .step-000001.")


def test_no_checkpoint_and_no_folder(tmp_path):
    for find in (newest_checkpoint, best_checkpoint, read_newest):
        assert find(tmp_path) is None
        assert find(tmp_path / "absent") is None
    with pytest.raises(DataError, match="not a checkpoint"):
        read_checkpoint(tmp_path)
    with pytest.raises(DataError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "step-000001")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Cannot write .*step-000001"):
        write(tmp_path / "file", 1)


# The writer


def test_writer_writes_what_was_there_at_submit(tmp_path):
    tensors, values = tensors_of(1), values_of(1)
    with Writer(tmp_path) as writer:
        writer.submit(1, tensors, values)
        tensors["model"]["embed"].zero_()
        tensors["optimizer"]["steps"] += 1
        values["loop"]["step"] = None
    assert_is(read_checkpoint(writer.last), 1)


def test_writer_uses_its_memory_again_without_mixing(tmp_path):
    with Writer(tmp_path, keep_last=9) as writer:
        for step in range(6):
            writer.submit(step, tensors_of(step), values_of(step))
    for step, path in enumerate(checkpoints(tmp_path)):
        assert_is(read_checkpoint(path), step)
    with Writer(tmp_path) as writer:  # other shapes and layouts under the same names
        for tensor in (torch.randn(3, 4), torch.randn(4, 3).T, torch.randn(2), torch.arange(2)):
            writer.submit(1, {"model": {"w": tensor}}, {})
            writer.close()
            assert torch.equal(read_checkpoint(writer.last).tensors["model"]["w"], tensor)


def test_writer_makes_its_memory_once(tmp_path, monkeypatch):
    made = []
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: made.append(1) or empty_like(*a, **k))
    with Writer(tmp_path) as writer:
        for step in (2, 3):
            writer.submit(step, tensors_of(step), values_of(step))
    assert len(made) == 4  # of the five tensors two are the same
    assert [assert_whole(path) for path in checkpoints(tmp_path)] == [2, 3]


def test_writer_has_one_write_under_way(tmp_path, monkeypatch):
    go, most = threading.Event(), []

    def slow(name: str) -> None:
        most.append(sum(t.name == "treadle-checkpoint" for t in threading.enumerate()))
        go.wait(0.1)

    monkeypatch.setattr(durable, "failpoint", slow)
    with Writer(tmp_path) as writer:
        assert writer.submit(1, {}, {"loop": 1}) < 1
        assert writer.waited < 0.05
        assert writer.submit(2, {}, {"loop": 2}) > 0.1
        assert writer.waited > 0.1
        go.set()
    assert max(most) == 1
    assert not any(t.name == "treadle-checkpoint" for t in threading.enumerate())


def fail(error: BaseException):
    def at(name: str) -> None:
        raise error

    return at


def test_writer_raises_what_went_wrong(tmp_path, monkeypatch):
    write(tmp_path, 1)
    writer = Writer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "failpoint", fail(OSError(5, "Input/output error")))
        writer.submit(2, {}, {})
        with pytest.raises(DataError, match=r"Cannot write .*step-000002: Input/output error"):
            writer.submit(3, {}, {})
        writer.submit(4, {}, {})
        with pytest.raises(DataError, match="step-000004"):
            writer.close()
        with pytest.raises(ZeroDivisionError) as seen, writer:
            writer.submit(5, {}, {})
            raise ZeroDivisionError
        assert "step-000005" in seen.value.__notes__[0]
    writer.submit(6, {}, {})  # it works again
    writer.close()
    assert names(tmp_path) == ["step-000001", "step-000006"]
    with pytest.raises(UsageError, match="on_full"):
        Writer(tmp_path, on_full="maybe")


def test_writer_on_a_full_disk(tmp_path, monkeypatch):
    write(tmp_path, 1)
    full = fail(OSError(28, "No space left on device"))
    with Writer(tmp_path, on_full="go_on") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(durable, "failpoint", full)
            writer.submit(2, tensors_of(2), {})
            with pytest.warns(UserWarning, match=r"goes on .*step-000002.* needs [\d,]+ bytes, "):
                writer.submit(3, {}, {})
            with pytest.warns(UserWarning, match="step-000003"):
                writer.close()
        assert writer.skipped == 2
        writer.submit(4, {}, {})
    assert names(tmp_path) == ["step-000001", "step-000004"]
    writer = Writer(tmp_path)
    monkeypatch.setattr(durable, "failpoint", full)
    writer.submit(5, {}, {})
    with pytest.raises(DiskFullError, match="step-000005"):
        writer.close()


def test_training_waits_little(tmp_path):
    """A quarter of 100 MB in a quarter of a generous bound: this machine may be busy."""
    tensors = {"model": {f"w{i}": torch.randn(312_500) for i in range(20)}}
    with Writer(tmp_path) as writer:
        held = []
        for step in range(5):
            held.append(writer.submit(step, tensors, {"loop": {"step": step}}))
            assert writer._thread is not None
            writer._thread.join()
    assert min(held) < 0.05, held
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path) is not None
