"""What several test files share: the real data, where they are at hand."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported: workers that each take all cores would wait for one another.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max((cores or 1) // int(workers), 1)))

SHARED_DATA = Path(__file__).parents[1] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_data_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the data home of whoever runs it."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path_factory.getbasetemp() / "treadle-home"))
    monkeypatch.delenv("TREADLE_DATA_MIRROR", raising=False)


@pytest.fixture(scope="session")
def imagenette_mirror(tmp_path_factory) -> Path:
    """A folder with `imagenette2-160.tgz`: of each class 8 training and 4 validation images."""
    mini = SHARED_DATA / "imagenette2-160-mini.tgz"
    if not mini.is_file():
        pytest.skip(f"needs real Imagenette images; there is no {mini}")
    folder = tmp_path_factory.mktemp("mirror")
    kept: dict[str, int] = {}
    with tarfile.open(mini) as source, tarfile.open(folder / "imagenette2-160.tgz", "w:gz") as cut:
        for member in source:
            side, name = Path(member.name).parts[-3:-1] if member.isfile() else ("", "")
            wanted = {"train": 8, "val": 4}.get(side, 0)
            if kept.setdefault(f"{side}/{name}", 0) < wanted:
                kept[f"{side}/{name}"] += 1
                member.name = "/".join(["imagenette2-160", *Path(member.name).parts[-3:]])
                cut.addfile(member, source.extractfile(member))
    return folder
