"""JSON that gives back exactly what went in, and refuses what would come back as something else.

Floats keep every bit. JSON has no word for those that are not finite: they stand as
`{"$float": "7ff0000000000000"}`, the sixteen hexadecimal digits of the double. A key of the
user's that begins with `$` gets a second one.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from treadle.errors import DataError, UsageError

_DEEPEST = 64


def to_json(value: object, where: str) -> bytes:
    """`value` as JSON; `where` is its name for the error.

    Raises UsageError for what is not None, bool, int, float, str, or a list or a dict with text
    keys of these, and for nesting deeper than 64.

    >>> to_json({"best": float("inf"), "seen": [1, 0.1]}, "tracker")
    b'{"best":{"$float":"7ff0000000000000"},"seen":[1,0.1]}'
    """
    try:
        return json.dumps(_escaped(value, where, 0), separators=(",", ":")).encode()
    except ValueError as error:  # an integer of more digits than Python writes
        raise UsageError(f"{where} cannot be written as JSON: {error}.") from error


def from_json(data: bytes, where: str) -> Any:
    """What `to_json` wrote. Raises DataError, naming `where`, if it is anything else.

    >>> from_json(b'{"seen":[1,0.1]}', "tracker")
    {'seen': [1, 0.1]}
    """
    try:
        return _restored(json.loads(data, parse_constant=_refuse, object_pairs_hook=_dict), 0)
    except (ValueError, RecursionError, struct.error) as error:
        raise DataError(f"{where} is not JSON of a checkpoint ({_said(error)}).") from error


def _escaped(value: object, where: str, depth: int) -> object:
    if depth > _DEEPEST:
        raise UsageError(f"{where} is nested deeper than {_DEEPEST}; keep it flat.")
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"$float": struct.pack(">d", value).hex()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, list):
        return [_escaped(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, dict):
        return {_key(k, where): _escaped(v, f"{where}[{k!r}]", depth + 1) for k, v in value.items()}
    raise UsageError(
        f"{where} is a {type(value).__name__}, which JSON does not give back; give text, numbers, "
        "lists or dictionaries of them, and tensors among the tensors."
    )


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise UsageError(
            f"{where} has the key {key!r}, a {type(key).__name__}; JSON has only text as keys: "
            "give str(key) and turn it back after reading."
        )
    return f"${key}" if key.startswith("$") else key


def _restored(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST}")
    if isinstance(value, list):
        return [_restored(v, depth + 1) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$float"}:
        return struct.unpack(">d", bytes.fromhex(_text(value["$float"])))[0]
    if lone := [key for key in value if key.startswith("$") and not key.startswith("$$")]:
        raise ValueError(f"{lone[0]!r} has no meaning")
    return {key.removeprefix("$"): _restored(v, depth + 1) for key, v in value.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("$float is not text")
    return value


def _dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _said(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
