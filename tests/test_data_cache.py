"""Caches of pictures in memory and on the disk: what was put is what is got, whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treadle.data.cache import DiskCache, MemoryCache, PixelCache
from treadle.data.cache.stored import key_of
from treadle.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    return tmp_path


def picture(index: int, seed: int = 0) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture that only this index has: RGB, but every third is grey."""
    rng = np.random.default_rng([seed, index])
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    shape = (height, width) if index % 3 == 2 else (height, width, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), (10 * height, 10 * width + 1)


def fill_all(cache: PixelCache, seed: int = 0) -> None:
    for index in range(cache.n):
        cache.put(index, *picture(index, seed))


def check_all(cache: PixelCache, seed: int = 0) -> None:
    for index in range(cache.n):
        found = cache.get(index)
        assert found is not None
        pixels, frame = picture(index, seed)
        assert found[0].dtype == np.uint8
        assert found[0].flags.c_contiguous
        assert np.array_equal(found[0], pixels)
        assert found[1] == frame


def on_disk(n: int, recipe: str = "squish 32", **kwargs: int) -> DiskCache:
    return DiskCache(n, [f"/pictures/{i}.png" for i in range(n)], recipe, **kwargs)


def stored(n: int) -> Path:
    """The folder of a complete cache that nobody has open."""
    cache = on_disk(n)
    fill_all(cache)
    cache.close()
    assert sorted(p.name for p in cache.folder.iterdir()) == [
        "index.npy",
        "lock",
        "manifest.json",
        "pixels.bin",
    ]
    return cache.folder


@pytest.fixture(params=[MemoryCache, on_disk])
def make_cache(request: pytest.FixtureRequest):
    return request.param


# ---- any cache


def test_what_was_put_is_got(make_cache):
    cache = make_cache(20)
    assert cache.get(7) is None
    assert (cache.filled, cache.complete, cache.nbytes) == (0, False, 0)
    for index in range(20):
        pixels, frame = picture(index)
        assert np.array_equal(cache.put(index, pixels.copy(), frame), pixels)
        assert cache.filled == index + 1
        assert cache.complete == (index == 19)
    check_all(cache)
    assert cache.nbytes == sum(picture(i)[0].nbytes for i in range(20))
    assert repr(cache) == f"{type(cache).__name__}(20 of 20 pictures, {cache.nbytes / 1e3:.1f} kB)"
    cache.close()
    assert cache.get(3) is None
    assert np.array_equal(cache.put(3, *picture(3)), picture(3)[0])
    assert (cache.get(3), cache.filled, cache.nbytes) == (None, 0, 0)
    cache.close()


def test_the_first_picture_of_an_index_stands(make_cache):
    cache = make_cache(2)
    cache.put(0, *picture(0))
    cache.put(0, *picture(0, seed=1))
    assert np.array_equal(cache.get(0)[0], picture(0)[0])
    assert cache.filled == 1
    cache.close()


def test_a_picture_without_its_own_memory_is_copied(make_cache):
    cache = make_cache(2)
    base = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    view = base[::2, 1:7]
    told = cache.put(0, view, (6, 8))
    assert told.flags.c_contiguous
    base[:] = 0
    again, _ = cache.get(0)
    assert again.sum() > 0
    assert np.array_equal(told, again)
    cache.close()


def test_what_is_kept_cannot_be_changed(make_cache):
    cache = make_cache(1)
    cache.put(0, *picture(0))
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0)[0][:] = 0
    cache.close()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 3)), np.zeros((3, 3, 4), np.uint8), np.zeros((0, 3), np.uint8), [[1]]],
    ids=["float", "four channels", "empty", "list"],
)
def test_what_is_no_picture_is_refused(make_cache, wrong):
    cache = make_cache(1)
    with pytest.raises(UsageError, match="expected a numpy array of uint8"):
        cache.put(0, wrong, (3, 3))
    cache.close()


def test_a_bad_file_does_not_keep_a_cache_from_being_complete(make_cache):
    cache = make_cache(3)
    cache.put(0, *picture(0))
    cache.leave_out(1)
    cache.leave_out(1)
    assert (cache.filled, cache.complete) == (2, False)
    cache.put(2, *picture(2))
    assert cache.complete
    assert cache.get(1) is None
    assert np.array_equal(cache.get(2)[0], picture(2)[0])
    cache.close()


def test_threads_may_put_the_same_pictures(make_cache):
    n, cache = 60, make_cache(60)
    start, faults = threading.Barrier(6), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        for index in [*rng.permutation(n), *rng.permutation(n)]:
            found = cache.get(index)
            pixels, frame = picture(index)
            if found is None:
                found = cache.put(index, pixels.copy(), frame), frame
            if not np.array_equal(found[0], pixels) or found[1] != frame:
                faults.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert cache.filled == n
    assert cache.nbytes == sum(picture(i)[0].nbytes for i in range(n))
    check_all(cache)
    cache.close()


# ---- memory


def test_memory_keeps_an_array_that_owns_its_data():
    cache = MemoryCache(1)
    pixels = np.zeros((4, 4), np.uint8)
    assert cache.put(0, pixels, (4, 4)) is pixels
    assert cache.get(0)[0] is pixels
    assert cache.put(0, pixels.copy(), (4, 4)) is pixels


def test_memory_is_quick():
    """The least of many rounds: whatever else the machine does only ever adds."""
    n, rounds = 500, 40
    pixels = [np.zeros((2, 2), np.uint8) for _ in range(n)]
    puts, gets = [], []
    for _ in range(rounds):
        cache = MemoryCache(n)
        start = time.perf_counter()
        for index in range(n):
            cache.put(index, pixels[index], (2, 2))
        middle = time.perf_counter()
        for index in range(n):
            cache.get(index)
        gets.append(time.perf_counter() - middle)
        puts.append(middle - start)
    assert min(puts) / n < 5e-6  # 1.2 microseconds
    assert min(gets) / n < 0.5e-6  # 0.05


# ---- the disk


def test_another_run_finds_it():
    stored(12)
    cache = on_disk(12)
    assert cache.complete
    check_all(cache)
    assert cache.put(3, *picture(3, seed=1)).size
    assert np.array_equal(cache.get(3)[0], picture(3)[0])
    cache.close()


def test_all_left_out_is_a_cache_too():
    cache = on_disk(2)
    cache.leave_out(0)
    cache.leave_out(1)
    cache.close()
    cache = on_disk(2)
    assert cache.complete
    assert (cache.get(0), cache.nbytes) == (None, 0)
    cache.close()


def test_an_unfinished_one_leaves_nothing(home):
    cache = on_disk(4)
    cache.put(0, *picture(0))
    assert len(list((home / "cache").glob(".*.*"))) == 1
    cache.close()
    assert [p.name for p in (home / "cache").iterdir()] == [".lock"]
    cache = on_disk(4)
    del cache  # never closed
    assert [p.name for p in (home / "cache").iterdir()] == [".lock"]


def test_the_key_is_files_and_recipe(tmp_path, monkeypatch):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.write_bytes(b"12")
    b.write_bytes(b"12")
    os.utime(a, ns=(5, 10**9))
    os.utime(b, ns=(5, 10**9))
    key = key_of([a, b], "r")
    assert key == key_of([str(a), str(b)], "r")
    monkeypatch.chdir(tmp_path)
    assert key == key_of(["a.png", Path("b.png")], "r")
    others = [key_of([b, a], "r"), key_of([a], "r"), key_of([a, b], "r2")]
    os.utime(a, ns=(5, 10**9 + 1))
    others.append(key_of([a, b], "r"))
    a.write_bytes(b"123")
    os.utime(a, ns=(5, 10**9))
    others.append(key_of([a, b], "r"))
    a.unlink()
    others.append(key_of([a, b], "r"))
    assert len({key, *others}) == 7


def test_files_must_be_as_many():
    with pytest.raises(UsageError, match="2 files"):
        DiskCache(3, ["a", "b"], "")


def test_a_folder_that_cannot_be_made_is_named(home, monkeypatch):
    (home / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cache/[0-9a-f]{64} cannot be made .* TREADLE_HOME"):
        on_disk(1)


def test_two_of_one_process_do_not_disturb_each_other():
    first, second = on_disk(5), on_disk(5)
    fill_all(first)
    for index in range(3):
        second.put(index, *picture(index))
    first.close()
    check_all_of(second, 3)
    for index in range(3, 5):
        second.put(index, *picture(index))
    second._finisher.join()
    check_all(second)
    second.close()


def check_all_of(cache: PixelCache, n: int) -> None:
    for index in range(n):
        assert np.array_equal(cache.get(index)[0], picture(index)[0])


# ---- damage


@contextmanager
def told_damage(folder: Path) -> Iterator[None]:
    """The block gives one warning at least, and each of its warnings names the folder."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    messages = [str(w.message) for w in seen]
    assert messages
    for message in messages:
        assert message.startswith(f"The cache of pictures {folder} was damaged: ")
        assert message.endswith("It was removed and is built anew.")


def use(cache: DiskCache) -> None:
    """As the pipeline does: what is not there is decoded."""
    for index in range(cache.n):
        pixels, frame = picture(index)
        if (found := cache.get(index)) is None:
            cache.put(index, pixels, frame)
        else:
            assert np.array_equal(found[0], pixels)
            assert found[1] == frame


def check_mended() -> None:
    cache = on_disk(9)
    use(cache)
    use(cache)
    assert cache.complete
    cache.close()
    cache = on_disk(9)
    assert cache.complete
    check_all(cache)
    cache.close()


def damage(folder: Path, name: str, offset: int, kind: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    at = offset % len(data)
    if kind == "flip":
        data[at] ^= 1 << offset % 8
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[:at])
    else:
        path.write_bytes(data + bytes(at + 1))


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["pixels.bin", "index.npy", "manifest.json"]),
    offset=st.integers(0, 2**20),
    kind=st.sampled_from(["flip", "cut", "more"]),
)
def test_damage_anywhere_is_noticed_and_mended(home, name, offset, kind):
    shutil.rmtree(home / "cache", ignore_errors=True)
    if not (home / "good").exists():
        stored(9).parent.rename(home / "good")
    shutil.copytree(home / "good", home / "cache")
    (folder,) = (home / "cache").glob("[0-9a-f]*")
    damage(folder, name, offset, kind)
    with told_damage(folder):
        cache = on_disk(9)
        use(cache)
        cache.close()
    check_mended()


@pytest.mark.parametrize("name", ["pixels.bin", "index.npy", "manifest.json"])
def test_a_missing_file_is_noticed_and_mended(name):
    folder = stored(9)
    (folder / name).unlink()
    with told_damage(folder):
        on_disk(9).close()
    check_mended()


def foreign_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def foreign_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent.parent / "elsewhere")


def foreign_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "diary.txt").write_text("something else")


def other_number(folder: Path) -> None:
    _change_manifest(folder, n=8)


def other_key(folder: Path) -> None:
    _change_manifest(folder, key="0" * 64)


def later_schema(folder: Path) -> None:
    _change_manifest(folder, schema=2)


def list_for_table(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1]")


def deep_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def pickled_index(folder: Path) -> None:
    """An .npy file that would run code if anything unpickled it."""
    with (folder / "index.npy").open("wb") as file:
        np.save(file, np.array([print], object), allow_pickle=True)
    _sign_index(folder)


def pixels_beyond_the_end(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["offset"][4] = folder.joinpath("pixels.bin").stat().st_size
    np.save(folder / "index.npy", index)
    _sign_index(folder)


def enormous_picture(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["height"][4] = index["width"][4] = 2**31 - 1
    np.save(folder / "index.npy", index)
    _sign_index(folder)


def _change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def _sign_index(folder: Path) -> None:
    data = (folder / "index.npy").read_bytes()
    _change_manifest(folder, index=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "spoil",
    [
        foreign_file,
        foreign_link,
        foreign_folder,
        other_number,
        other_key,
        later_schema,
        list_for_table,
        deep_json,
        pickled_index,
        pixels_beyond_the_end,
        enormous_picture,
    ],
)
def test_a_foreign_one_is_refused_and_mended(home, spoil):
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("kept")
    folder = stored(9)
    spoil(folder)
    with told_damage(folder):
        on_disk(9).close()
    check_mended()
    assert [path.name for path in elsewhere.iterdir()] == ["mine.txt"]


def test_damage_that_is_met_in_the_middle_spares_what_others_built(home):
    """Two have the damaged file open. One rebuilds; the other must not remove the new one."""
    folder = stored(9)
    damage(folder, "pixels.bin", 0, "flip")
    first, second = on_disk(9), on_disk(9)
    with told_damage(folder):
        use(first)
        use(first)
    first.close()
    rebuilt = (folder / "manifest.json").stat().st_ino
    with told_damage(folder):
        use(second)
    assert (folder / "manifest.json").stat().st_ino == rebuilt
    assert second.complete
    check_all(second)
    second.close()


def test_threads_meet_damage_at_once():
    folder = stored(60)
    for offset in range(0, (folder / "pixels.bin").stat().st_size, 500):
        damage(folder, "pixels.bin", offset, "flip")
    cache = on_disk(60)
    with told_damage(folder):
        threads = [threading.Thread(target=use, args=(cache,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    use(cache)
    check_all(cache)
    cache.close()


# ---- the disk is full


FULL = r"""
import json, os, resource, sys, warnings
from pathlib import Path
import numpy as np
from treadle.data.cache import DiskCache

n = 40
pixels = [np.full((50, 40, 3), i, np.uint8) for i in range(n)]
for limit in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        cache = DiskCache(n, [f"/x/{i}" for i in range(n)], "full")
        for i in range(n):
            assert cache.put(i, pixels[i].copy(), (50, 40))[0, 0, 0] == i
            found = cache.get(i // 2)
            assert found is None or found[0][0, 0, 0] == i // 2
        cache.close()
    assert len(seen) <= 1, [str(w.message) for w in seen]
    left = sorted(path.name for path in cache.folder.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps([limit, str(cache.folder), left, *(str(w.message) for w in seen)]))
"""


def test_a_full_disk_is_told_once_and_nothing_is_left(home):
    """The size that a file may have stands for the disk, at 20 levels; the index is the last."""
    limits = [0, 1, 100, *range(1000, 15_000, 1000), 5999, 6001, 239_999]
    done = python(FULL, json.dumps([*limits, 240_000]), home=home).splitlines()
    for line in done[:-1]:
        limit, folder, left, told = json.loads(line)
        assert told.startswith(f"The cache of pictures {folder} cannot be written (File too large)")
        needed = float(re.search(r"about ([\d.]+) kB more are needed, ", told)[1])
        assert needed == pytest.approx(240 - limit // 6000 * 6, abs=2)  # kB; and the index
        assert re.search(r" [\d.]+ .B are free on the disk\. .* TREADLE_HOME", told)
        assert left == [".lock"]
    assert len(done) == len(limits) + 1
    limit, folder, left = json.loads(done[-1])  # it just suffices
    assert left == [".lock", Path(folder).name]


def test_the_limit_is_a_full_disk_too(home, monkeypatch):
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "10KB")
    cache = on_disk(40)
    with pytest.warns(
        UserWarning, match=r"limit of all caches .* about [\d.]+ kB more are"
    ) as seen:
        fill_all(cache)
    assert len(seen) == 1
    assert cache.get(0) is None
    assert cache.filled == 0
    cache.close()
    assert [p.name for p in (home / "cache").iterdir()] == [".lock"]


def test_an_interrupted_put_can_be_made_again(monkeypatch):
    cache = on_disk(1)

    def interrupted(*args: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.put(0, *picture(0))
    assert cache.get(0) is None
    cache.put(0, *picture(0))
    assert cache.complete
    check_all(cache)
    cache.close()


def python(code: str, *args: object, home: Path) -> str:
    """What a new process prints; it must end well and say nothing on stderr."""
    environment = {**os.environ, "TREADLE_HOME": str(home)}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
