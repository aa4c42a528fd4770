"""The manifest of a checkpoint: what its files must be, sealed so that no byte of it can change.

It holds no path: the name of a file follows from the name of its part, and that may have only
letters, digits, hyphens and underscores. So no manifest can lead out of its folder.

Where several processes wrote the checkpoint, each has files of its own, `model.0.safetensors` and
`model.1.safetensors`, and `layout.json` says which of them has what (schema 2).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from treadle.errors import DataError, UsageError
from treadle.run.durable import Stored

MANIFEST = "manifest.json"
LAYOUT = "layout.json"
SCHEMA = 1
SHARED_SCHEMA = 2  # of a checkpoint of several processes
MOST_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OF_RANK = re.compile(r"([A-Za-z0-9_-]{1,64})\.(0|[1-9]\d{0,8})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint.

    `serial` counts the checkpoints of a folder in the order of writing, which is not that of their
    steps once training has gone back. `created` is a time in UTC, ISO 8601. `score` is larger for a
    better checkpoint. `tied` says by part which name stands for which other one. `processes` is how
    many wrote it; of several, `tensors` and `values` are by part and rank, as in `model.0`.
    """

    step: int
    serial: int
    created: str
    score: float | None
    versions: dict[str, str]
    tensors: dict[str, Stored]
    values: dict[str, Stored]
    tied: dict[str, dict[str, str]]
    processes: int = 1
    layout: Stored | None = None

    def files(self) -> dict[str, Stored]:
        """The files that belong to the checkpoint, by name, without the manifest itself."""
        parts = {tensor_name(name): stored for name, stored in self.tensors.items()}
        parts |= {value_name(name): stored for name, stored in self.values.items()}
        return parts if self.layout is None else parts | {LAYOUT: self.layout}


def tensor_name(part: str) -> str:
    """The file of a part's tensors."""
    return f"{part}.safetensors"


def value_name(name: str) -> str:
    """The file of a value."""
    return f"{name}.json"


def check_names(names: list[str], what: str) -> None:
    """Raises UsageError unless each name can be a file's on every system."""
    for name in names:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise UsageError(
                f"{what} cannot be named {name!r}; give up to 64 letters, digits, '_' and '-'."
            )
    lower = [name.lower() for name in names]
    if len(set(lower)) < len(lower):
        raise UsageError(f"{what}: {', '.join(names)} differ only in case; rename one.")
    if value_name("manifest") == MANIFEST and "manifest" in lower:
        raise UsageError(f"{what} cannot be named 'manifest': that file is the checkpoint's own.")


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as a file."""
    plain: dict[str, Any] = {"schema": SHARED_SCHEMA, **asdict(manifest)}
    if manifest.layout is None:
        plain["schema"] = SCHEMA
        del plain["processes"], plain["layout"]
    return _text({**plain, "seal": _seal(plain)})


def from_bytes(data: bytes, where: str) -> Manifest:
    """The manifest in a file. Raises DataError, naming `where`, if a byte of it is not as written,
    or another version of Treadle wrote it in a form that this one does not know."""
    try:
        plain = json.loads(data)
        schema = plain["schema"]
        if type(schema) is not int or schema not in (SCHEMA, SHARED_SCHEMA):
            raise DataError(
                f"{where} has the schema {str(schema)[:40]}, this Treadle reads {SCHEMA} and "
                f"{SHARED_SCHEMA}; read it with the Treadle that wrote it."
            )
        if _text(plain) != data or _seal(plain) != plain["seal"]:
            raise ValueError("its seal is broken")
        return _manifest(plain)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where} is damaged or no manifest ({type(error).__name__}: {str(error)[:200]})."
        ) from error


def _text(plain: dict[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def _seal(plain: dict[str, Any]) -> str:
    return hashlib.sha256(_text({k: v for k, v in plain.items() if k != "seal"})).hexdigest()


def _manifest(plain: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        step=_count(plain["step"]),
        serial=_count(plain["serial"]),
        created=_str(plain["created"]),
        score=_score(plain["score"]),
        versions={_str(k): _str(v) for k, v in plain["versions"].items()},
        tensors={name: _stored(stored) for name, stored in plain["tensors"].items()},
        values={name: _stored(stored) for name, stored in plain["values"].items()},
        tied={
            part: {_str(k): _str(v) for k, v in names.items()}
            for part, names in plain["tied"].items()
        },
        **_of_several(plain),
    )
    for names, what in ((manifest.tensors, "a part"), (manifest.values, "a value")):
        own = list(names) if manifest.layout is None else _without_ranks(names, manifest.processes)
        check_names(own, what)
    if not manifest.tied.keys() <= manifest.tensors.keys():
        raise ValueError("names are tied in a part that is not there")
    return manifest


def _of_several(plain: dict[str, Any]) -> dict[str, Any]:
    if plain["schema"] == SCHEMA:
        return {}
    return {"processes": _count(plain["processes"]), "layout": _stored(plain["layout"])}


def _without_ranks(names: Iterable[str], processes: int) -> list[str]:
    """The names of parts, each once, in the names of the files' parts of so many processes."""
    found = {name: _OF_RANK.fullmatch(name) for name in names}
    wrong = [name for name, parts in found.items() if not parts or int(parts[2]) >= processes]
    if wrong:
        raise ValueError(f"{wrong[0][:80]!r} names no rank of {processes}")
    return list(dict.fromkeys(parts[1] for parts in found.values() if parts))


def _stored(plain: dict[str, Any]) -> Stored:
    if not _SHA256.fullmatch(plain["sha256"]):
        raise ValueError("a SHA-256 is not 64 hexadecimal digits")
    return Stored(_count(plain["size"]), plain["sha256"])


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:40]} is not a count")
    return value


def _score(value: object) -> float | None:
    if value is not None and type(value) is not float:
        raise ValueError(f"the score {str(value)[:40]} is no number")
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]} is not text")
    return value
