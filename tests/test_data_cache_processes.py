"""Disk caches that several processes fill, read, and are killed at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from treadle.data.cache import DiskCache

pytestmark = pytest.mark.skipif(os.name == "nt", reason="disk caches need the locks of Unix")

COMMON = r"""
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import numpy as np
from treadle.data import data_home
from treadle.data.cache import DiskCache

warnings.simplefilter("error")  # no process may find what another did damaged
warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
root = data_home() / "cache"

def opened(n=24, recipe="r"):
    return DiskCache(n, [f"/pictures/{i}" for i in range(n)], recipe)

def picture(i):
    return np.full((20 + i, 30, 3), i, np.uint8)

def use(cache, pause=0.0):
    for i in range(cache.n):
        found = cache.get(i)
        if found is None:
            cache.put(i, picture(i), (i, i + 1))
            found = cache.get(i)
        assert found is None or (np.array_equal(found[0], picture(i)) and found[1] == (i, i + 1))
        time.sleep(pause)

def child(work):
    if (pid := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def complete():
    return [p for p in root.iterdir() if len(p.name) == 64]

def unfinished():
    return [p for p in root.iterdir() if p.name.startswith(".") and p.name != ".lock"]
"""


def run(code: str, home: Path, *args: object) -> str:
    """What a process prints that runs `COMMON`, then `code`; it must end well and silent."""
    environment = {**os.environ, "TREADLE_HOME": str(home)}
    command = [sys.executable, "-c", COMMON + code, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_processes_that_fill_at_once(tmp_path):
    """Each fills its own, the first stands, all end with the same one."""
    run(
        r"""
def work():
    cache = opened()
    use(cache, random.random() * 1e-3)
    assert cache.complete
    use(cache)
    cache._finisher and cache._finisher.join()
    assert type(cache._store).__name__ == "Stored"
    use(cache)
    time.sleep(0.05)  # others come to read while this one reads
    cache.close()

for _ in range(8):
    pids = [child(work) for _ in range(5)]
    assert [ended(pid) for pid in pids] == [0] * 5
    assert (len(complete()), unfinished()) == (1, [])
    cache = opened()
    assert cache.complete
    use(cache)
    cache.close()
    for path in complete()[0].iterdir():
        path.unlink()
    complete()[0].rmdir()
""",
        tmp_path,
    )


def test_kills_at_any_moment(tmp_path):
    """Of a killed process nothing remains, or a whole cache; the next one goes on from there."""
    kinds = run(
        r"""
random.seed(int(sys.argv[1]))

def work():
    cache = opened()
    use(cache)
    cache.close()

def clear():
    for path in complete():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()

def seconds():
    began = time.perf_counter()
    assert ended(child(work)) == 0
    clear()
    return time.perf_counter() - began

longest = min(seconds() for _ in range(4))
kinds = {"nothing": 0, "unfinished": 0, "complete": 0}
for _ in range(int(sys.argv[2])):
    clear()
    pid = child(work)
    time.sleep(random.random() * longest)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    kind = "complete" if complete() else "unfinished" if unfinished() else "nothing"
    kinds[kind] += 1
    cache = opened()  # a warning that it is damaged would be an error here
    assert cache.complete == (kind == "complete"), kind
    assert len(unfinished()) == (kind != "complete")
    use(cache)
    cache.close()
    assert unfinished() == []
    cache = opened()
    assert cache.complete
    use(cache)
    cache.close()
print(json.dumps(kinds))
""",
        tmp_path,
        os.environ.get("TREADLE_TEST_SEED", 0),
        os.environ.get("TREADLE_TEST_KILLS", 30),
    )
    print(kinds)
    assert json.loads(kinds)["unfinished"]


def test_the_living_are_not_taken_for_dead(tmp_path):
    run(
        r"""
def fill_slowly():
    cache = opened()
    use(cache, 0.01)
    assert cache.complete
    cache.close()
    assert opened().complete

pid = child(fill_slowly)
while not (root.exists() and unfinished()):
    time.sleep(0.001)
first = unfinished()
while not complete():
    opened(recipe="another").close()  # sweeps
    assert complete() or unfinished() == first
assert ended(pid) == 0
""",
        tmp_path,
    )


def test_a_forked_child_reads_and_writes_nothing(tmp_path):
    run(
        r"""
def read():
    for i in range(24):
        found = cache.get(i)
        assert (found is not None) == (i < 12)
        assert found is None or np.array_equal(found[0], picture(i))
    for i in range(24):
        assert np.array_equal(cache.put(i, picture(i) + 1, (i, i)), picture(i) + 1)
    cache.leave_out(23)
    cache.close()
    import gc; gc.collect()

cache = opened()
for i in range(12):
    cache.put(i, picture(i), (i, i + 1))
size = (unfinished()[0] / "pixels.bin").stat().st_size
assert ended(child(read)) == 0
assert (unfinished()[0] / "pixels.bin").stat().st_size == size
use(cache)
assert cache.complete
cache.close()
use(opened())
""",
        tmp_path,
    )


def test_a_program_that_just_ends_keeps_what_is_complete_and_leaves_no_rest(tmp_path):
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path)}
    code = (
        "whole = opened(); use(whole); part = opened(recipe='2'); part.put(0, picture(0), (1, 1))"
    )
    command = [sys.executable, "-c", f"{COMMON}\n{code}; print(part.folder.name); 1 / 0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "ZeroDivisionError" in done.stderr
    lock, whole = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert (lock, len(whole)) == (".lock", 64)
    assert whole != done.stdout.strip()


def test_the_pixels_are_shared_pages(tmp_path, monkeypatch):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what a process has mapped")
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    cache = DiskCache(1, ["/x"], "r")
    cache.put(0, np.ones((50, 50), np.uint8), (50, 50))
    cache._finisher.join()
    pixels, _ = cache.get(0)
    line = next(line for line in maps.read_text().splitlines() if str(cache.folder) in line)
    assert line.split()[1] == "r--s"
    first, last = (int(address, 16) for address in line.split()[0].split("-"))
    assert first <= pixels.ctypes.data < last
    cache.close()
    assert pixels.sum() == 2500  # an array keeps what it needs mapped
    del pixels
    assert str(cache.folder) not in maps.read_text()


def test_all_is_on_the_disk_before_the_folder_takes_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    log, fsync, rename = [], os.fsync, Path.rename

    def logged_fsync(file: int) -> None:
        log.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    def logged_rename(path: Path, goal: Path) -> Path:
        log.append("rename")
        return rename(path, goal)

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of open files are asked of /proc")
    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    cache = DiskCache(1, ["/x"], "r")
    unfinished = cache._store.folder.name
    cache.put(0, np.ones((5, 5), np.uint8), (5, 5))
    cache.close()
    assert log == ["pixels.bin", "index.npy", "manifest.json", unfinished, "rename", "cache"]
