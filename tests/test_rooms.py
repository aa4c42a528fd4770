"""The shape of the package: who may import whom, what is public, and what an import costs."""

from __future__ import annotations

import ast
import builtins
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import treadle.all

SRC = Path(treadle.all.__file__).parent

FLOOR_1 = {
    *("errors", "interrupts", "native", "registry", "schedule", "shards", "source", "sums", "world")
}
FLOOR_2 = {"losses", "metrics", "plots", "params", "optim", "data", "loop"}
FLOOR_3 = {"callbacks", "distributed", "study", "run"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "interrupts": set(),
    "schedule": {"errors"},
    "shards": set(),
    "sums": {"shards"},
    "world": {"errors"},
    "source": {"errors"},
    "native": set(),
    "registry": {"errors"},
    "params": set(),
    "losses": {"errors", "registry"},
    "metrics": {"errors", "world"},
    "plots": {"errors"},
    "optim": {"errors", "native", "shards", "sums", "world"},
    "data": {"errors", "interrupts", "losses", "native", "plots", "registry", "world"},
    "loop": {"errors", "interrupts", "shards", "world"},
    "callbacks": {
        *("errors", "interrupts", "schedule", "loop", "metrics", "losses", "plots", "run"),
        *("shards", "sums", "world"),
    },
    "study": {"errors", "interrupts", "schedule", "loop", "callbacks", "metrics", "plots", "run"},
    "run": {"errors", "shards", "world"},
    "distributed": {"errors", "interrupts", "loop", "plots", "run", "world"},
    "learner": FLOOR_1 | FLOOR_2 | FLOOR_3 - {"data"},
    "vision": FLOOR_1 | FLOOR_2 | FLOOR_3 | {"learner"},
    "text": FLOOR_1 | FLOOR_2 | FLOOR_3 | {"learner"},
    "interpret": FLOOR_1 | FLOOR_2 | {"callbacks", "run"},
    "report": FLOOR_1 | FLOOR_2 | FLOOR_3 | {"learner", "interpret"},
    "cli": FLOOR_1 | FLOOR_2 | FLOOR_3 | {"learner", "interpret", "text", "vision", "report"},
    "all": FLOOR_1 | FLOOR_2 | FLOOR_3 | {"learner", "interpret", "text", "vision", "report"},
    "__main__": {"cli"},
    "__init__": {"all", "registry"},
}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name and name.split(".")[0] == "treadle"}


def all_files() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", all_files(), ids=lambda path: str(path.relative_to(SRC)))
def test_arrows_run_one_way(path):
    room = path.relative_to(SRC).parts[0].removesuffix(".py")
    for module in imports_of(path):
        target = room_of(module)
        version_only = target == "__init__"  # `from treadle import __version__`
        assert target == room or version_only or target in MAY_IMPORT[room], (
            f"{room} may not import {module}"
        )


def test_every_room_has_its_row():
    rooms = {path.relative_to(SRC).parts[0].removesuffix(".py") for path in all_files()}
    assert rooms == MAY_IMPORT.keys()


def test_callbacks_do_not_import_one_another():
    """But for the bases that trackers, loggers and listeners to layers share, how rows and layers
    are shown, and the search for a number that is none."""
    names = "tracker logger hooks table layer_plots forensic".split()
    shared = {f"treadle.callbacks.{name}" for name in names}
    for path in (SRC / "callbacks").glob("*.py"):
        if path.name != "__init__.py":
            others = {name for name in imports_of(path) if name.startswith("treadle.callbacks")}
            assert others <= shared, path.name


def test_modules_stay_short():
    long = {p.name: n for p in all_files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_the_library_has_no_pickle():
    """But for the one file that reads foreign weights, in a process of its own."""
    converter = SRC / "run" / "convert_child.py"
    assert converter.read_text().count("torch.load(") == 1
    assert "weights_only=True" in converter.read_text()
    for path in all_files():
        text = path.read_text()
        assert "import pickle" not in text, path
        assert path == converter or "torch.load(" not in text, path
        assert "torch.save(" not in text, path


def test_all_is_explicit_and_hides_nothing():
    names = treadle.all.__all__
    assert len(names) == len(set(names)) < 200
    assert all(hasattr(treadle.all, name) for name in names)
    assert not set(names) & set(dir(builtins))
    assert not set(names) & set(sys.stdlib_module_names)
    bound = {name for name in vars(treadle.all) if not name.startswith("_")}
    assert bound - {"annotations"} == set(names)


def test_every_public_list_is_true():
    for path in all_files():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                module = ".".join(["treadle", *path.relative_to(SRC).with_suffix("").parts])
                module = module.removesuffix(".__init__")
                __import__(module)
                for name in ast.literal_eval(node.value):
                    assert hasattr(sys.modules[module], name), f"{module}.{name}"


def test_names_are_found_on_the_package_too():
    assert treadle.Learner is treadle.all.Learner
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = treadle.no_such_name


def test_a_room_is_imported_without_the_others():
    code = "from treadle import schedule; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_import_costs_little_more_than_torch(tmp_path):
    """All of it: `import treadle` alone loads nothing at all."""
    # With compiled files, as after an installation: they may not be kept here.
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=env)
        return time.perf_counter() - start

    # In turns, and the least of each: what else the machine does only ever adds.
    pairs = [(seconds("import torch"), seconds("import torch, treadle.all")) for _ in range(4)]
    torch_alone, with_treadle = map(min, zip(*pairs, strict=True))
    assert with_treadle <= torch_alone + 0.4


@pytest.mark.parametrize("module", ["treadle", "treadle.learner", "treadle.data", "treadle.all"])
def test_slow_libraries_are_imported_late(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    slow = {"torchvision", "matplotlib", "sklearn", "rich", "simplejpeg", "cyclopts", "IPython"}
    assert not slow & set(done.stdout.split())
