"""`treadle doctor`: whether this machine has what Treadle needs, and what to do where not."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from treadle.cli.processes import launched, processes
from treadle.cli.runs import megabytes
from treadle.cli.terminal import print_table
from treadle.errors import printable

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Verdict = Literal["ok", "slow", "none", "broken"]

_STYLES = {"ok": "green", "slow": "yellow", "none": "dim", "broken": "bold red"}
_NEEDED = "torch torchvision numpy pillow simplejpeg safetensors rich matplotlib filelock".split()
_EXTRAS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow-skinny": "mlflow",
    "onnx": "onnx",
    "zstandard": "zstd",
    "tokenizers": "bpe",
}
_LEAST_FREE = 1e9  # bytes: a checkpoint or two, or the smallest of the public data sets
_KERNEL = """
void run(void *address) { double *x = address; for (int i = 0; i < 3; i++) x[i] = 2 * x[i] + 1; }
"""


@dataclass(frozen=True)
class Finding:
    """One line of what was looked at; `mend` says what to do if it is not as it should be."""

    name: str
    verdict: Verdict
    told: str
    mend: str = ""


def doctor(*, debug: Flag = False) -> None:
    """Check this machine: versions, compiler, devices, processes, memory, disk, image decoder,
    extras.

    Each line says ok, slow (it works, and could be faster), none (an optional part that is not
    there) or broken, and what to do. The exit status is 1 if something is broken.

    Args:
        debug: Show the full traceback of an error.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    found = list(findings())
    for finding in found:
        told = Text(printable(finding.told))
        if finding.mend:
            told.append(f"\n{printable(finding.mend)}", "italic")
        verdict = Text(finding.verdict, _STYLES[finding.verdict])
        table.add_row(verdict, Text(finding.name), told)
    print_table(table)
    broken = [finding.name for finding in found if finding.verdict == "broken"]
    print(f"Broken: {', '.join(broken)}." if broken else "Nothing is broken.")
    if broken:
        raise SystemExit(1)


def findings() -> Iterator[Finding]:
    """All that is looked at, one after the other."""
    from treadle import __version__
    from treadle.data import data_home

    yield Finding("treadle", "ok", f"{__version__}, Python {platform.python_version()}")
    for name in _NEEDED:
        yield package(name)
    yield compiler()
    yield from devices()
    yield backends()
    yield launch()
    yield memory()
    for name, folder in (("cache", data_home()), ("here", Path.cwd())):
        yield disk(name, folder)
    yield jpeg()
    for name, extra in _EXTRAS.items():
        yield optional(name, extra)


def package(name: str) -> Finding:
    """A package that Treadle cannot do without: its version, and whether it can be imported."""
    try:
        told = version(name)
        importlib.import_module("PIL.Image" if name == "pillow" else name)
    except Exception as error:  # a library that does not fit the machine may raise anything
        why = "not installed" if isinstance(error, PackageNotFoundError) else f"{error}"
        mend = f"pip install --force-reinstall {name}"
        return Finding(name, "broken", why.splitlines()[0] if why else type(error).__name__, mend)
    return Finding(name, "ok", told)


def optional(name: str, extra: str) -> Finding:
    """A package of one of Treadle's extras."""
    try:
        return Finding(extra, "ok", version(name))
    except PackageNotFoundError:
        return Finding(extra, "none", "optional", f"pip install 'treadle[{extra}]' brings it")


def compiler() -> Finding:
    """Whether optimizer kernels can be compiled, kept and run."""
    import ctypes

    from treadle.data import data_home
    from treadle.native import NoCompiler, build

    folder = data_home() / "kernels"
    numbers = (ctypes.c_double * 3)(1, 2, 3)
    try:
        build(_KERNEL).short(ctypes.addressof(numbers))
    except (NoCompiler, OSError) as error:
        mend = "install gcc or clang; until then optimizers run in plain torch"
        return Finding("compiler", "slow", str(error), mend)
    if list(numbers) != [3, 5, 7]:
        return Finding("compiler", "broken", "it compiles wrongly", "install another one; set CC")
    if not any(folder.glob("*.so")):
        mend = f"let {folder} belong to you alone (chmod 700), or set TREADLE_HOME"
        return Finding("compiler", "slow", "works; kernels are compiled anew each time", mend)
    return Finding("compiler", "ok", f"works; kernels are kept in {folder}")


def devices() -> Iterator[Finding]:
    """The processor and the accelerators."""
    import torch

    from treadle.run import environment

    found = environment("cpu")
    yield Finding("cpu", "ok", f"{found['device']}, {found['cpu_count']} cores for this process")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            told = torch.cuda.get_device_properties(i)
            yield Finding(f"cuda:{i}", "ok", f"{told.name}, {megabytes(told.total_memory)}")
    elif shutil.which("nvidia-smi"):
        mend = "there seems to be a GPU; install a torch built for its driver"
        yield Finding("cuda", "slow", "torch sees no GPU", mend)
    elif torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    else:
        yield Finding("gpu", "none", "training runs on the CPU")


def backends() -> Finding:
    """What several processes can talk through: gloo between CPUs, nccl between GPUs."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        return Finding("backends", "none", "this torch runs in one process only")
    found = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    gpus = torch.cuda.device_count()
    told = f"{', '.join(name for name in found if found[name])}; {gpus} GPU{'s' * (gpus != 1)}"
    if not found["gloo"]:
        return Finding("backends", "broken", told, "install a torch that was built with gloo")
    if gpus > 1 and not found["nccl"]:
        return Finding("backends", "slow", told, "install a torch that was built with nccl")
    return Finding("backends", "ok", told)


def launch() -> Finding:
    """Whether torchrun started this process."""
    n = processes()
    if not launched():
        return Finding("torchrun", "none", "this is one process; torchrun starts several")
    return Finding("torchrun", "ok", f"it started {n} process{'es' * (n != 1)}, of which this is 0")


def memory() -> Finding:
    """The memory of the machine."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "none", "the system does not say")
    return Finding("memory", "ok", megabytes(size))


def disk(name: str, folder: Path) -> Finding:
    """Whether a folder, or the nearest one above it that is there, can be written to and has
    room."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    told = f"{folder}, {megabytes(shutil.disk_usage(place).free)} free"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        mend = "set TREADLE_HOME to a folder that you may write to"
        if name == "here":
            mend = "go to a folder that you may write to, or give --out"
        return Finding(name, "broken", f"{told}, not writable", mend)
    if shutil.disk_usage(place).free < _LEAST_FREE:
        return Finding(name, "slow", told, "make room: checkpoints and data sets need some GB")
    return Finding(name, "ok", told)


def jpeg() -> Finding:
    """Whether libjpeg-turbo decodes what it encodes."""
    mend = "pip install --force-reinstall simplejpeg"
    try:
        import numpy as np
        import simplejpeg

        grey = np.full((8, 8, 3), 128, np.uint8)
        back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey))
    except Exception as error:  # a library that does not fit the machine may raise anything
        return Finding("jpeg", "broken", f"{type(error).__name__}: {error}", mend)
    if abs(back.astype(int) - 128).max() > 2:
        return Finding("jpeg", "broken", "libjpeg-turbo decodes wrongly", mend)
    return Finding("jpeg", "ok", "libjpeg-turbo decodes")
