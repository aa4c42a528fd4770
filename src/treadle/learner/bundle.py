"""An export on disk: a folder of weights, of JSON that says how to make the rest, and of what both
files must be.

    model.safetensors   parameters and buffers
    bundle.json         registered names and arguments (see `treadle.registry`)
    manifest.json       schema, versions, size and SHA-256 of the two

The hashes find damage. They do not prove who wrote the folder: no file in it has to be trusted,
because none can name more than the program has registered.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle import __version__
from treadle.errors import DataError, UsageError
from treadle.run.durable import (
    Stored,
    flush_folder,
    hidden_folder,
    read_file,
    room_for,
    stored,
    sweep,
    write_file,
)
from treadle.run.exact_json import from_json, to_json
from treadle.run.tensor_file import read_tensors, tensor_file

__all__ = ["read_bundle", "write_bundle"]

SCHEMA = 1
WEIGHTS, PLAN, MANIFEST = "model.safetensors", "bundle.json", "manifest.json"
_MOST_JSON = 64 << 20


def write_bundle(folder: Path, plan: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write the folder, whole or not at all; a bundle that has the name already is replaced.

    Raises:
        UsageError: if something else has the name, or what is to be written cannot be.
        DataError: if the folder cannot be written.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} is there and is no export; give a name that is free.")
    file = tensor_file("model", weights)
    text = to_json({**plan, "tied": file.tied}, "the export")
    with (
        room_for(folder, file.nbytes + len(text)),
        hidden_folder(folder.parent, folder.name) as hidden,
    ):
        files = {
            WEIGHTS: write_file(hidden / WEIGHTS, file.chunks()),
            PLAN: write_file(hidden / PLAN, [text]),
        }
        write_file(hidden / MANIFEST, [_manifest(files)])
        flush_folder(hidden)
        before = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        if folder.exists():
            folder.rename(before)
        hidden.rename(folder)
        flush_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)
    sweep(folder.parent)


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plan and the weights, on the CPU, every byte of them checked.

    Raises:
        DataError: naming the file, if one is missing, is a link, is damaged, or was written in a
            form that this Treadle does not know.
    """
    if not folder.is_dir():
        raise DataError(f"there is no export at {folder}; give the folder that learn.export wrote.")
    files = _read_manifest(folder / MANIFEST)
    plan = from_json(_checked(folder / PLAN, files, _MOST_JSON), str(folder / PLAN))
    if not isinstance(plan, dict) or not isinstance(plan.get("tied"), dict):
        raise DataError(f"{folder / PLAN} holds no plan of an export; export it again.")
    data = _checked(folder / WEIGHTS, files, files[WEIGHTS].size)
    return plan, read_tensors(data, plan.pop("tied"), str(folder / WEIGHTS))


def _manifest(files: dict[str, Stored]) -> bytes:
    plain = {
        "schema": SCHEMA,
        "treadle": __version__,
        "torch": str(torch.__version__),
        "files": {name: {"size": s.size, "sha256": s.sha256} for name, s in files.items()},
    }
    return (json.dumps(plain, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> dict[str, Stored]:
    plain = from_json(read_file(path, 1 << 16), str(path))
    try:
        schema, files = plain["schema"], plain["files"]
        if schema != SCHEMA:
            raise DataError(
                f"{path} has the schema {str(schema)[:40]}, this Treadle reads {SCHEMA}; load it "
                "with the Treadle that wrote it."
            )
        known = {name: Stored(files[name]["size"], files[name]["sha256"]) for name in _PARTS}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no manifest of an export ({error!r}).") from error
    if files.keys() != known.keys() or not all(type(s.size) is int for s in known.values()):
        raise DataError(f"{path} lists other files than {' and '.join(_PARTS)}.")
    return known


_PARTS = (WEIGHTS, PLAN)


def _checked(path: Path, files: dict[str, Stored], most: int) -> bytes:
    data = read_file(path, most)
    if stored(data) != files[path.name]:
        raise DataError(
            f"{path} is not as it was written (its size or SHA-256 differs from {MANIFEST}); copy "
            "the export again."
        )
    return data
