"""Where pictures are kept: as asked, or as memory, disk and the limit of all caches allow."""

from __future__ import annotations

import errno
import os
import re
import shutil
import weakref
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from treadle.data.cache import DiskCache, MemoryCache, choose, folders, memory, open_cache
from treadle.data.cache.free import free_memory
from treadle.errors import DataError, UsageError

GB = 10**9
FILES = [f"/pictures/{i}.png" for i in range(4)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    monkeypatch.setattr(memory, "_living", weakref.WeakSet())  # those of other tests do not count
    return tmp_path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Sets how much memory and disk this machine seems to have free."""

    def set_to(memory: int, disk: int = 100 * GB, total: int = 1000 * GB) -> None:
        usage = namedtuple("usage", "total used free")(total, total - disk, disk)
        monkeypatch.setattr(choose, "free_memory", lambda: memory)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return set_to


def whole(recipe: str, side: int = 100, used: int = 0) -> Path:
    """A complete cache of one picture of side × side bytes, last used `used` seconds after 1970."""
    cache = DiskCache(1, ["/x"], recipe)
    cache.put(0, np.ones((side, side), np.uint8), (side, side))
    cache.close()
    os.utime(cache.folder / "lock", (used, used))
    return cache.folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# ---- the choice


def test_none_and_what_is_asked_for(machine):
    machine(memory=0)
    assert open_cache(None, 4, FILES, "r", GB) is None
    assert isinstance(open_cache("memory", 4, None, "", GB), MemoryCache)
    cache = open_cache("disk", 4, FILES, "r", GB)
    assert isinstance(cache, DiskCache)
    cache.close()


@pytest.mark.parametrize("kind", ["auto", "device"])
def test_auto_is_memory_then_disk_then_none(machine, kind):
    machine(memory=2 * GB)
    assert isinstance(open_cache(kind, 4, FILES, "r", GB), MemoryCache)
    cache = open_cache(kind, 4, FILES, "r", GB + 1)
    assert isinstance(cache, DiskCache)
    cache.close()
    machine(memory=2 * GB, disk=4 * GB)
    with pytest.warns(UserWarning, match="not kept") as seen:
        assert open_cache(kind, 4, FILES, "r", 3 * GB) is None
    (told,) = seen
    for said in ["about 3.0 GB", "2.0 GB of memory", "at most 1.0 GB", "where 2.0 GB may"]:
        assert said in str(told.message)
    assert told.filename == __file__
    assert list((Path(os.environ["TREADLE_HOME"]) / "cache").iterdir()) != []


def test_auto_without_files_is_memory_or_none(machine):
    machine(memory=2 * GB)
    assert isinstance(open_cache("auto", 4, None, "", GB), MemoryCache)
    with pytest.warns(UserWarning, match=r"not kept.*need.* items that are files"):
        assert open_cache("auto", 4, None, "", 2 * GB) is None


def test_what_other_caches_have_yet_to_fill_is_not_free(machine):
    machine(memory=2 * GB)
    first = MemoryCache(2, 3 * GB // 2)
    cache = open_cache("auto", 4, FILES, "r", GB)
    assert isinstance(cache, DiskCache)
    cache.close()
    first.put(0, np.zeros((2, 2), np.uint8), (2, 2))
    first.leave_out(1)  # complete: it will not take more
    second = open_cache("auto", 4, FILES, "r", GB)
    assert isinstance(second, MemoryCache)
    assert isinstance(open_cache("auto", 4, None, "r", GB // 2), MemoryCache)
    third = MemoryCache(2, GB)
    third.close()
    del second
    assert isinstance(open_cache("auto", 4, None, "r", GB), MemoryCache)


def test_a_complete_one_needs_no_room(machine):
    cache = DiskCache(4, FILES, "r")
    for index in range(4):
        cache.put(index, np.ones((2, 2), np.uint8), (2, 2))
    cache.close()
    machine(memory=0, disk=0)
    for kind in ("auto", "disk"):
        cache = open_cache(kind, 4, FILES, "r", GB)
        assert cache.complete
        cache.close()


def test_what_cannot_be_is_a_sentence(machine, home):
    machine(memory=0, disk=2 * GB)
    with pytest.raises(UsageError, match="did you mean memory"):
        open_cache("memry", 4, FILES, "r", GB)
    with pytest.raises(UsageError, match=r"items that are files.*cache='memory'"):
        open_cache("disk", 4, None, "r", GB)
    with pytest.raises(UsageError, match=r"about 3\.0 GB in .*cache, where 2\.0 GB may"):
        open_cache("disk", 4, FILES, "r", 3 * GB)
    assert [path.name for path in (home / "cache").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made(machine, home):
    machine(memory=0)
    (home / "cache").write_text("in the way")
    with pytest.raises(DataError, match="cannot be made"):
        open_cache("disk", 4, FILES, "r", GB)
    with pytest.warns(UserWarning, match=r"not kept.*cannot be made"):
        assert open_cache("auto", 4, FILES, "r", GB) is None


def test_a_system_without_locks(machine, monkeypatch):
    machine(memory=0)
    monkeypatch.setattr(folders, "fcntl", None)
    with pytest.raises(UsageError, match="needs file locks"):
        open_cache("disk", 4, FILES, "r", GB)
    with pytest.warns(UserWarning, match="needs file locks"):
        assert open_cache("auto", 4, FILES, "r", GB) is None


# ---- the limit


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("80GB", 80 * GB),
        ("1.5 TB", 1500 * GB),
        ("12mb", 12 * 10**6),
        ("3kB", 3000),
        ("7", 7),
        ("7 B", 7),
        ("0", 0),
        (" 30% ", 300 * GB),
        ("", 50 * GB),
    ],
)
def test_the_limit_as_it_is_written(machine, home, monkeypatch, asked, expected):
    machine(memory=0)
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", asked)
    assert folders.limit(home) == expected


def test_the_limit_of_a_small_disk(machine, home, monkeypatch):
    monkeypatch.delenv("TREADLE_CACHE_LIMIT", raising=False)
    machine(memory=0, total=100 * GB)
    assert folders.limit(home) == 20 * GB


@pytest.mark.parametrize("asked", ["much", "-5GB", "5 XB", "%", "1e9", "GB"])
def test_a_limit_that_is_none(home, monkeypatch, asked):
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", asked)
    with pytest.raises(UsageError, match=f"TREADLE_CACHE_LIMIT={re.escape(repr(asked))}"):
        folders.limit(home)


def test_the_least_recently_used_go_first(monkeypatch):
    old, middle, new = whole("a", used=10), whole("b", used=30), whole("c", used=20)
    one = size_of(old)
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", str(int(3.5 * one)))
    fourth = whole("d", used=40)
    assert [path.exists() for path in (old, middle, new, fourth)] == [False, True, True, True]
    DiskCache(1, ["/x"], "c").close()  # used now
    fifth = whole("e", used=50)
    assert [path.exists() for path in (middle, new, fourth, fifth)] == [False, True, True, True]


def test_what_would_not_help_is_not_removed(monkeypatch, home):
    old = [whole(str(i), used=i) for i in range(2)]
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", str(int(2.5 * size_of(old[0]))))
    cache = DiskCache(3, ["/x", "/y", "/z"], "r")
    with pytest.warns(UserWarning, match=r"limit of all caches.* about 30\.1 kB more are needed"):
        cache.put(0, np.ones((100, 100), np.uint8), (2, 2))
    assert [path.exists() for path in old] == [True, True]


def test_a_full_disk_takes_the_room_of_what_is_not_used(monkeypatch):
    old = whole("old", used=10)
    cache, pwrite, attempts = DiskCache(1, ["/x"], "r"), os.pwrite, []

    def on_a_full_disk(file: int, data: memoryview, offset: int) -> int:
        attempts.append(offset)
        if len(attempts) == 1:
            usage = namedtuple("usage", "total used free")(GB, GB, 0)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", on_a_full_disk)
    cache.put(0, np.ones((100, 100), np.uint8), (2, 2))
    assert not old.exists()
    cache.close()
    assert DiskCache(1, ["/x"], "r").get(0)[0].sum() == 100 * 100


def test_one_in_use_is_never_removed(monkeypatch):
    old, new = whole("a", used=10), whole("b", used=20)
    reader = DiskCache(1, ["/x"], "a")
    os.utime(old / "lock", (10, 10))
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", str(int(2.5 * size_of(old))))
    third = whole("c", used=30)
    assert [path.exists() for path in (old, new, third)] == [True, False, True]
    assert reader.get(0)[0].sum() == 100 * 100
    reader.close()
    whole("d", used=40)
    assert not old.exists()


def test_room_is_made_before_it_is_filled(monkeypatch, home):
    caches = [whole(str(i), used=i) for i in range(4)]
    one = size_of(caches[0])
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", str(4 * one))
    DiskCache(1, ["/x"], "new", expected_bytes=2 * one - 500).close()
    assert [path.exists() for path in caches] == [False, False, True, True]
    with folders.locked(home / "cache"):  # what cannot be had costs nothing
        assert folders.make_room(home / "cache", 5 * one) == 2 * one
    assert [path.exists() for path in caches] == [False, False, True, True]


def test_other_things_in_the_folder_are_left_alone(monkeypatch, home):
    (home / "cache" / "mine").mkdir(parents=True)
    (home / "cache" / "mine" / "a.txt").write_text("mine")
    (home / "cache" / ".hidden.thing").write_text("mine")
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "0")
    cache = DiskCache(1, ["/x"], "r")
    with pytest.warns(UserWarning, match="limit of all caches"):
        cache.put(0, np.ones((2, 2), np.uint8), (2, 2))
    names = sorted(path.name for path in (home / "cache").iterdir())
    assert names == [".hidden.thing", ".lock", "mine"]


# ---- free memory


def system(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


MEMINFO = "MemTotal:       16000000 kB\nMemFree: 100 kB\nMemAvailable:    8000000 kB\n"


def test_the_machine_itself(tmp_path):
    assert free_memory(system(tmp_path, {"proc/meminfo": MEMINFO})) == 8_192_000_000


def test_a_group_of_version_2(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/memory.current": "5000\n",
        "sys/fs/cgroup/user/memory.max": "9000\n",
        "sys/fs/cgroup/user/memory.current": "6000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 1\ninactive_file 700\nactive_file 50\nfile 800\n",
    }
    assert free_memory(system(tmp_path, files)) == 9000 - 6000 + 750


def test_a_container_whose_group_is_the_root_it_sees(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "9000\n",
        "sys/fs/cgroup/memory.current": "9500\n",
    }
    assert free_memory(system(tmp_path, files)) == 0


def test_a_group_of_version_1_under_the_path_of_the_host(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=x:/a:b\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "8000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
    }
    assert free_memory(system(tmp_path, files)) == 2500


def test_no_limit_of_version_1_is_a_large_number(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000\n",
    }
    assert free_memory(system(tmp_path, files)) == 8_192_000_000


def test_a_system_without_proc(tmp_path, monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 300}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert free_memory(tmp_path) == 300 * 4096
    monkeypatch.setattr(os, "sysconf_names", {"SC_PHYS_PAGES": 1})
    assert free_memory(tmp_path) == 500 * 4096
    monkeypatch.setattr(os, "sysconf_names", {})
    assert free_memory(tmp_path) == 0


def test_this_machine_agrees_with_psutil():
    psutil = pytest.importorskip("psutil")
    assert 0 < free_memory() <= psutil.virtual_memory().total
