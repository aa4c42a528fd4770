"""Hostile `.pth` files, harmless here: each would make a file called `canary`, and none does."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pickle_kinds import build
from torch import nn

from treadle.cli.main import run
from treadle.errors import DataError, UsageError
from treadle.run import convert as convert_module
from treadle.run.convert import convert_weights
from treadle.run.convert_child import Refused, read_tensors

CHILD = Path(convert_module.__file__).with_name("convert_child.py")


def tensor_claiming(numel: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A tensor of 4 bytes that says it has another storage, shape and stride."""
    out = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, out)
    with zipfile.ZipFile(out) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in parts if name.endswith("data.pkl"))

    class Writer(pickle._Pickler):  # writes persistent ids as torch does
        def persistent_id(self, value: Any) -> Any:
            return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            storage = ("storage", torch.FloatStorage, "0", "cpu", numel)
            hooks: Any = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, hooks)

    data = io.BytesIO()
    Writer(data, 2).dump({"w": Rebuilt()})
    parts[name] = data.getvalue()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for other, content in parts.items():
            file.writestr(other, content)
    return made.getvalue()


def bomb() -> bytes:
    """640 MB of zeros that a zip holds in 3 MB."""
    out = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, out)
    made = io.BytesIO()
    with (
        zipfile.ZipFile(out) as file,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for name in file.namelist():
            if name.endswith("data/0"):
                with packed.open(name, "w", force_zip64=True) as part:
                    for _ in range(640):
                        part.write(bytes(1 << 20))
            else:
                packed.writestr(name, file.read(name))
    return made.getvalue()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


LOOP = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import convert_child
answers, tried = {}, []
def note(event, args):
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen") \
            or event.startswith("socket."):
        tried.append(event)
sys.addaudithook(note)
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.pth")):
    try:
        convert_child.read_tensors(str(path))
        answers[path.stem] = "taken"
    except convert_child.Refused as error:
        answers[path.stem] = "refused: " + str(error)
print(json.dumps([answers, tried]))
"""


def test_twenty_hostile_pickles_execute_nothing(tmp_path: Path, canary: Path) -> None:
    """0 of 20, by the reader alone: the fences that the process adds are not up here."""
    files = build(canary)
    assert len(files) == 20
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in files.items():
        (folder / f"{name}.pth").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(CHILD.parent), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    answers, tried = json.loads(done.stdout)
    assert len(answers) == 20
    assert not tried
    assert not canary.exists()
    assert [name for name, answer in answers.items() if not answer.startswith("refused: ")] == []
    assert "asks to run posix.system" in answers["os.system"]
    assert "asks to run eval" in answers["eval"]
    assert not any("weights_only" in answer or "add_safe" in answer for answer in answers.values())


def test_the_whole_way_refuses_in_a_sentence(tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(build(canary)["os.system"])
    with pytest.raises(DataError, match=r"weights.pth was not converted: .*system.*nothing\.$"):
        convert_weights(file)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("what", ["expanded", "bomb"])
def test_what_claims_far_more_than_it_has_meets_the_limit(what: str, tmp_path: Path) -> None:
    size = 10**10
    data = bomb() if what == "bomb" else tensor_claiming(1, (size,), (0,))
    file = tmp_path / "weights.pth"
    file.write_bytes(data)
    with pytest.raises(DataError, match="was not converted"):
        convert_weights(file)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


FENCED = """
import sys
sys.path.insert(0, sys.argv[1])
import convert_child, os, socket, subprocess
convert_child._fence(1 << 28, 60, 1 << 20)
sys.addaudithook(convert_child._hook)
held = []
for attempt in (
    lambda: os.system("touch canary"),
    lambda: subprocess.run(["touch", "canary"]),
    lambda: os.fork(),
    lambda: open("canary", "w"),
    lambda: os.open("canary", os.O_CREAT | os.O_WRONLY),
    lambda: os.mkdir("canary"),
    lambda: os.rename(sys.argv[2], "canary"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: bytearray(1 << 30),
):
    try:
        attempt()
    except (PermissionError, MemoryError) as error:
        held.append(type(error).__name__)
print(len(held))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_the_fences_hold_what_gets_past_the_reader(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    done = subprocess.run(
        [sys.executable, "-c", FENCED, str(CHILD.parent), "there"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "9"
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


# What is well


def test_weights_are_converted_bit_for_bit(tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).half()
    weights = model.state_dict()
    weights["tied"] = weights["0.weight"]
    weights["turned"] = torch.rand(3, 5).T
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "a.pth")
    target = tmp_path / "new" / "b.safetensors"
    status = run(["convert", str(tmp_path / "a.pth"), str(target), "--key", "state_dict"])
    assert status == 0
    assert capsys.readouterr().out.strip() == str(target)
    found = load_file(target)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_checkpoint_of_several_parts_needs_a_say(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, file)
    with pytest.raises(Refused, match="no flat dict of tensors; say key='state_dict'"):
        read_tensors(str(file))
    with pytest.raises(Refused, match=r"has no key 'model'.*\['state_dict'\]"):
        read_tensors(str(file), "model")
    assert read_tensors(str(file), "state_dict")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "content", [torch.ones(2), [torch.ones(2)], {}, {1: torch.ones(2)}, {"w": 3}, {"w": [1.0]}]
)
def test_what_is_no_dict_of_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(Refused, match=r"dict of tensors"):
        read_tensors(str(tmp_path / "a.pth"))


def test_tensors_that_are_not_dense_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(Refused, match="'w' is not a dense tensor"):
        read_tensors(str(tmp_path / "a.pth"))


def test_what_cannot_be_meant_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("started a process"))
    with pytest.raises(DataError, match="there is no file"):
        convert_weights(tmp_path / "none.pth")
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match="written over"):
        convert_weights(tmp_path / "a.pth", tmp_path / "a.pth")


def test_a_time_limit_ends_the_process(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2)}, file)
    with pytest.raises(DataError, match=r"not read within 0.01 seconds"):
        convert_weights(file, timeout=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_secrets_of_the_environment_stay_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    given = {}

    def started(*args: Any, **kwargs: Any) -> Any:
        given.update(kwargs["env"])
        return subprocess.CompletedProcess(args, 0, '{"tensors": 1}', "")

    monkeypatch.setattr(subprocess, "run", started)
    file = tmp_path / "a.pth"
    file.touch()
    convert_weights(file)
    assert "s3cret" not in given.values()
