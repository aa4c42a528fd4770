"""The optimizers that `treadle train` and `treadle compare` are told of: by name, in a file of the
user's, the chapter's."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from treadle.errors import DataError, UsageError, nearest
from treadle.study.contestants import FITS

CHAPTER = "chapter"
Rows = dict[str, dict[str, Any]]


def recipes() -> dict[str, Callable[..., Any]]:
    """What makes an optimizer, by the name that `--opt` knows it by."""
    from treadle import optim

    return {
        "adadelta": optim.Adadelta,
        "adagrad": optim.Adagrad,
        "adam": optim.Adam,
        "adamw": optim.AdamW,
        "adan": optim.Adan,
        "lamb": optim.Lamb,
        "larc": optim.Larc,
        "lion": optim.Lion,
        "momentum": partial(optim.SGD, mom=0.9),
        "muon": optim.Muon,
        "nadam": optim.NAdam,
        "qhadam": optim.QHAdam,
        "radam": optim.RAdam,
        "ranger": optim.ranger,
        "rmsprop": optim.RMSProp,
        "schedule_free": optim.ScheduleFreeAdamW,
        "sgd": optim.SGD,
        "soap": optim.SOAP,
    }


def chapter_rows() -> Rows:
    """The experiment of the book chapter *The Training Process*: its optimizers, its rates."""
    from treadle import optim
    from treadle.optim import Optimizer

    momentum = partial(Optimizer, cbs=[optim.average_grad, optim.momentum_step], mom=0.9)
    rms_prop = partial(
        Optimizer, cbs=[optim.average_sqr_grad, optim.rms_prop_step], sqr_mom=0.99, eps=1e-7
    )
    averages = [partial(optim.average_grad, dampening=True), optim.average_sqr_grad]
    adam = partial(
        Optimizer,
        cbs=[optim.weight_decay, *averages, optim.step_stat, optim.adam_step],
        **{"mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.01},
    )
    one_stepper = partial(Optimizer, cbs=[optim.sgd_step])
    return {
        "baseline Adam": {"opt_func": optim.Adam, "lr": 0.003},
        "plain SGD": {"opt_func": optim.SGD, "lr": 0.03, "moms": (0, 0, 0)},
        "SGD from one stepper": {"opt_func": one_stepper, "lr": 0.03, "fit": "fit"},
        "momentum": {"opt_func": momentum, "lr": 0.03},
        "RMSProp": {"opt_func": rms_prop, "lr": 0.003},
        "Adam from steppers": {"opt_func": adam, "lr": 0.003},
    }


def read_opts(opts: Sequence[str], files: Sequence[str], lr: float | None) -> Rows:
    """The rows that `--opt` and `--opt-file` ask for; with neither, the chapter's.

    Raises UsageError or DataError for what cannot be meant, found or run.
    """
    rows: Rows = {}
    for text in opts or ([] if files else [CHAPTER]):
        rows |= chapter_rows() if text == CHAPTER else {text: _read_opt(text, lr)}
    for text in files:
        short = text.replace("\\", "/").rsplit("/", 1)[-1]
        rows[text if short in rows else short] = _read_file(text, lr)
    return rows


def _read_opt(text: str, lr: float | None) -> dict[str, Any]:
    name, _, told = text.partition(":")
    recipe = find_recipe(name, [CHAPTER])
    return _row(f"--opt {text}", recipe, _pairs(f"--opt {text}", told), lr or usual_lr(name))


def find_recipe(name: str, others: Sequence[str] = ()) -> Callable[..., Any]:
    """The recipe that `--opt` names, in any case. Raises UsageError with the nearest, of `others`
    too."""
    known = recipes()
    if name.lower() not in known:
        raise UsageError(f"--opt: no optimizer {name}; {nearest(name, [*known, *others])}")
    return known[name.lower()]


def usual_lr(name: str) -> float:
    """The rate where none is given: the chapter's, or the recipe's own."""
    own = inspect.signature(find_recipe(name)).parameters["lr"].default
    if isinstance(own, float):
        return own
    return 0.03 if name.lower() in ("sgd", "momentum", "larc") else 0.003


def _pairs(where: str, told: str) -> dict[str, Any]:
    """`lr=0.1,mom=0.9` as a dict."""
    found: dict[str, Any] = {}
    for part in filter(None, told.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{where}: {part!r} has no value; write it as lr=0.1,mom=0.9.")
        found[name.strip()] = value.strip() if name.strip() == "fit" else _value(where, part, value)
    return found


def _value(where: str, part: str, value: str) -> Any:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise UsageError(f"{where}: {part!r} is no number; write it as lr=0.1,mom=0.9.")


def _row(where: str, recipe: Callable[..., Any], told: dict[str, Any], lr: float) -> dict[str, Any]:
    """The row of a recipe; `told` goes to it, but for `lr` and `fit`."""
    row: dict[str, Any] = {"lr": told.pop("lr", lr)}
    if "fit" in told:
        row["fit"] = told.pop("fit")
        if row["fit"] not in FITS:
            raise UsageError(f"{where}: fit={row['fit']} is unknown; {nearest(row['fit'], FITS)}")
    parameters = inspect.signature(recipe).parameters
    known = [name for name in parameters if name not in ("params", "lr")]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in told:
        if name not in known and not takes_all:
            raise UsageError(
                f"{where}: the optimizer does not take {name}; "
                f"{nearest(name, ['lr', 'fit', *known])}"
            )
    if "mom" in told and row.get("fit", "fit_one_cycle") == "fit_one_cycle":
        row["moms"] = (told["mom"],) * 3  # else the cycle would move what was asked for
    return {"opt_func": partial(recipe, **told) if told else recipe, **row}


# A file of the user's


def _read_file(text: str, lr: float | None) -> dict[str, Any]:
    where = f"--opt-file {text}"
    match = re.fullmatch(r"(?P<file>.+\.py):(?P<name>[^\W\d]\w*)(?::(?P<told>.*))?", text)
    if match is None:
        raise UsageError(f"{where} cannot be read; write it as my_steppers.py:my_recipe.")
    file = Path(match["file"])
    module = _load(file)
    found = vars(module)
    if match["name"] not in found:
        own = [
            name
            for name, value in found.items()
            if isinstance(value, list) or getattr(value, "__module__", "") == module.__name__
        ]
        raise UsageError(f"{file} has no {match['name']}; {nearest(match['name'], own)}")
    recipe = _as_recipe(file, match["name"], found[match["name"]])
    row = _row(where, recipe, _pairs(where, match["told"] or ""), lr or 0.003)
    _try(file, match["name"], row)
    return row


def file_digests(files: Sequence[str]) -> dict[str, str]:
    """What tells the files of `--opt-file` from changed ones, by their names."""
    paths = {text.partition(".py:")[0] + ".py" for text in files}
    return {p: hashlib.sha256(Path(p).read_bytes()).hexdigest()[:16] for p in sorted(paths)}


def _load(file: Path) -> Any:
    """The module that `file` is. Running it is what the user asked for by naming it."""
    if not file.is_file():
        raise DataError(f"there is no file {file}; give the path of a Python file.")
    name = f"treadle_opt_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing beside their file
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{_place(file, error)}: {_said(error)}") from error
    finally:
        sys.dont_write_bytecode = writes
    return module


def _as_recipe(file: Path, name: str, value: Any) -> Callable[..., Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        from treadle.optim import Optimizer

        return partial(Optimizer, cbs=list(value))
    if not callable(value):
        raise UsageError(
            f"{name} of {file} is {value!r}; it must be a list of steppers, or a function "
            "(params, lr) that returns an optimizer."
        )
    return value  # type: ignore[no-any-return]


def _try(file: Path, name: str, row: Mapping[str, Any]) -> None:
    """Build the optimizer once, on a small stand-in: errors name the line."""
    from torch import nn

    from treadle.errors import ChainError
    from treadle.optim import make_opt

    try:
        make_opt(row["opt_func"], list(nn.Linear(2, 2).parameters()), lr=row["lr"])
    except ChainError as error:
        raise UsageError(f"{name} of {file}: {error}") from error
    except Exception as error:
        raise UsageError(
            f"{_place(file, error)}: {_said(error)}; {name} must be a list of steppers, or a "
            "function (params, lr) that returns an optimizer."
        ) from error


def _place(file: Path, error: Exception) -> str:
    """The file, and the line in it where `error` arose, if it did there."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{file}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    return f"{file}, line {frames[-1].lineno}" if frames else str(file)


def _said(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}".rstrip(".")
