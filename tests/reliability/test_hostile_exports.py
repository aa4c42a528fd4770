"""Forty hostile exports and weights, harmless here: each is refused in a sentence, within a second,
and runs, opens and writes nothing. Hostile checkpoints are in `test_checkpoint_damage`.

Each export is whole by its own manifest: the hashes fit what was put in.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import watch
from checkpoint_kit import put as put_in_checkpoint
from checkpoint_kit import write as write_checkpoint
from pickle_kinds import Call, build, zipped
from torch import nn

from treadle.data import (
    CategoryBlock,
    ColReader,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
)
from treadle.errors import TreadleError
from treadle.learner import Learner, load_learner
from treadle.losses import CrossEntropyLossFlat
from treadle.registry import register
from treadle.run.checkpoint import read_checkpoint

WEIGHTS, PLAN, MANIFEST = "model.safetensors", "bundle.json", "manifest.json"


class Victim:
    """An export, the learner that wrote it, a checkpoint, and the file that nothing may make."""

    def __init__(self, folder: Path) -> None:
        self.inside = folder / "inside"
        self.canary = folder / "canary"
        batches = [(torch.zeros(2, 8), torch.zeros(2, dtype=torch.long))]
        dls = DataLoaders(batches, batches, device="cpu")
        loss = CrossEntropyLossFlat()
        self.learn = Learner(dls, tiny(4), loss, path=self.inside)
        self.weights = self.learn.save("w")
        self.export = self.learn.export()
        self.checkpoint = write_checkpoint(self.inside, 1)

    def put(self, name: str, data: bytes) -> None:
        """Put `data` into the export as the file `name`, and its hash into the manifest."""
        (self.export / name).write_bytes(data)
        manifest = json.loads((self.export / MANIFEST).read_text())
        manifest["files"][name] = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (self.export / MANIFEST).write_text(json.dumps(manifest))

    def plan(self, **parts: Any) -> None:
        plan = json.loads((self.export / PLAN).read_text())
        self.put(PLAN, json.dumps({**plan, **parts}).encode())

    def manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        manifest = json.loads((self.export / MANIFEST).read_text())
        change(manifest)
        (self.export / MANIFEST).write_text(json.dumps(manifest))

    def readers(self, everywhere: bool) -> list[Callable[[], object]]:
        """What reads it; `everywhere` if the weights file and the checkpoint are hostile too."""
        reads: list[Callable[[], object]] = [lambda: load_learner(self.export)]
        if everywhere:
            reads += [lambda: self.learn.load("w"), lambda: read_checkpoint(self.checkpoint)]
        return reads


@register(name="reliability.flat")
def flat(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_out))


@register(name="reliability.tiny")
def tiny(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def anywhere(make: Callable[[Path], bytes]) -> Callable[[Victim], bool]:
    """The bytes as weights, as a plan, as a file of weights and as parts of a checkpoint."""

    def spoil(victim: Victim) -> bool:
        data = make(victim.canary)
        victim.weights.write_bytes(data)
        victim.put(WEIGHTS, data)
        victim.put(PLAN, data)
        put_in_checkpoint(victim.checkpoint, "model.safetensors", data)
        put_in_checkpoint(victim.checkpoint, "loop.json", data)
        return True

    return spoil


def only(change: Callable[[Victim], object]) -> Callable[[Victim], bool]:
    def spoil(victim: Victim) -> bool:
        change(victim)
        return False

    return spoil


def gadget(name: str) -> Callable[[Victim], bool]:
    return anywhere(lambda canary: build(canary)[name])


def legacy_tar(canary: Path) -> bytes:
    """The form of torch.save before 0.1.10."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(data := build(canary)["plain pickle"])
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def torchscript(canary: Path) -> bytes:
    code = f"def forward(self):\n  torch.save(1, {str(canary)!r})\n".encode()
    others = {"code/__torch__.py": code, "constants.pkl": build(canary)["plain pickle"]}
    return zipped(build(canary)["plain pickle"], **others)


def object_arrays(canary: Path) -> bytes:
    out = io.BytesIO()
    hostile = np.array([Call(open, str(canary), "w")], dtype=object)
    np.savez(out, w=hostile)
    assert zipfile.is_zipfile(out)
    return out.getvalue()


def yaml(canary: Path) -> bytes:
    return f"!!python/object/apply:os.system ['touch {canary}']\n".encode()


def header(plain: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors(made: bytes | Callable[[], bytes]) -> Callable[[Victim], bool]:
    def spoil(victim: Victim) -> bool:
        data = made() if callable(made) else made
        victim.weights.write_bytes(data)
        victim.put(WEIGHTS, data)
        put_in_checkpoint(victim.checkpoint, "model.safetensors", data)
        return True

    return spoil


def text(data: bytes) -> Callable[[Victim], bool]:
    return only(lambda victim: victim.put(PLAN, data))


def linked(victim: Victim) -> None:
    """A manifest that is right about a file elsewhere."""
    secret = victim.canary.with_name("secret")
    secret.write_bytes((victim.export / WEIGHTS).read_bytes())
    (victim.export / WEIGHTS).unlink()
    (victim.export / WEIGHTS).symlink_to(secret)


def model(make: str, *args: object) -> Callable[[Victim], bool]:
    return only(lambda victim: victim.plan(model={"make": make, "args": args, "kwargs": {}}))


WHOLE = {"0.weight": tensor(0, 16, [4])}
HOSTILE: dict[str, Callable[[Victim], bool]] = {
    **{
        f"pickle: {name}": gadget(name)
        for name in (
            "os.system",
            "eval",
            "exec",
            "subprocess",
            "getattr of a tensor's method",
            "import",
            "open for writing",
            "torch.load inside",
            "torch._utils on a path",
            "rebuild with a hook",
            "a key that calls",
            "protocol 0",
        )
    },
    "plain pickle": gadget("plain pickle"),
    "legacy torch.save": gadget("legacy os.system"),
    "legacy tar": anywhere(legacy_tar),
    "TorchScript": anywhere(torchscript),
    "object arrays": anywhere(object_arrays),
    "YAML tags": anywhere(yaml),
    "JSON depth": text(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "JSON size": only(lambda v: v.put(PLAN, b'{"model": "' + b"x" * (65 << 20) + b'"}')),
    "JSON duplicate key": text(b'{"tied": {}, "model": 1, "model": 2}'),
    "JSON NaN": text(b'{"tied": {}, "model": NaN}'),
    "JSON huge integer": text(b'{"tied": {}, "model": ' + b"9" * 100_000 + b"}"),
    "safetensors: length": safetensors(header(WHOLE, length=1 << 60)),
    "safetensors: overlap": safetensors(header({"a": tensor(0, 16, [4]), "b": tensor(0, 16, [4])})),
    "safetensors: hole": safetensors(header({"a": tensor(0, 4, [1]), "b": tensor(8, 16, [2])})),
    "safetensors: overflow": safetensors(header({"a": tensor(0, 16, [1 << 62, 1 << 62])})),
    "safetensors: dtype": safetensors(header({"a": tensor(0, 16, [4], "OBJECT")})),
    "safetensors: name with a path": safetensors(header({"../../canary": tensor(0, 16, [4])})),
    "safetensors: metadata bomb": safetensors(
        lambda: header({**WHOLE, "__metadata__": {"a": "x" * (101 << 20)}})
    ),
    "safetensors: trailing data": safetensors(header(WHOLE, bytes(99))),
    "manifest: traversal": only(
        lambda v: v.manifest(lambda m: m["files"].update({"../canary": m["files"][PLAN]}))
    ),
    "manifest: symlink": only(linked),
    "manifest: wrong hash": only(
        lambda v: v.manifest(lambda m: m["files"][WEIGHTS].update(sha256="0" * 64))
    ),
    "manifest: future version": only(lambda v: v.manifest(lambda m: m.update(schema=2))),
    "manifest: missing file": only(lambda v: (v.export / WEIGHTS).unlink()),
    "config: dotted path": model("os.system", "touch canary"),
    "config: code": model("reliability.tiny", "__import__('os').system('touch canary')"),
    "config: function with arguments": only(
        lambda v: v.plan(loss={"partial": {"name": "eval"}, "args": ["1"], "kwargs": {}})
    ),
    "config: URL": model("https://host.example/model.py"),
}


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    made = Victim(tmp_path)
    for read in made.readers(everywhere=True):
        read()  # sound as it is; and what is imported is
    return made


@pytest.mark.parametrize("kind", HOSTILE)
def test_forty_hostile_files_run_nothing(kind: str, victim: Victim) -> None:
    everywhere = HOSTILE[kind](victim)
    before = sorted(victim.canary.parent.rglob("*"))
    for read in victim.readers(everywhere):
        start = time.process_time()
        with watch.memory() as peak, watch.over(victim.inside) as offences:
            try:
                read()
            except TreadleError as error:
                said = str(error)
            else:
                said = ""
        assert said and len(said) < 1000
        assert not offences
        assert time.process_time() - start < 1 and peak() < 200e6
    assert sorted(victim.canary.parent.rglob("*")) == before


def test_there_are_40() -> None:
    assert len(HOSTILE) == 40


LABELS = ["__import__('os').system('touch canary')", "<script>touch()</script>", "../../canary"]


def test_code_in_a_label_is_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    items = [(np.full((4, 4), index, np.uint8), LABELS[index % 3]) for index in range(6)]
    plan = DataBlock(
        (ImageBlock("L"), CategoryBlock),
        splitter=IndexSplitter([4, 5]),
        get_x=ColReader(0),
        get_y=ColReader(1),
    )
    dls = plan.dataloaders(items, bs=2, num_workers=0, device="cpu")
    export = Learner(dls, flat(16, 3), path=tmp_path / "inside").export()
    load_learner(export)  # imports
    with watch.over(tmp_path / "inside") as offences:
        loaded = load_learner(export)
    assert not offences
    assert loaded.dls.vocab == sorted(LABELS)
    assert loaded.predict(items[0][0])[0] in LABELS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside"]
