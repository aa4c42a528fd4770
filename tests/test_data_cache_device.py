"""Pictures on the device, and filling a cache ahead."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.data.cache import DeviceCache, DiskCache, MemoryCache, PixelCache, fill
from treadle.errors import UsageError

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def filled(n: int, channels: int, left_out: tuple[int, ...] = ()) -> MemoryCache:
    cache, rng = MemoryCache(n), np.random.default_rng(n)
    for index in range(n):
        height, width = (int(side) for side in rng.integers(5, 30, 2))
        shape = (height, width, 3) if channels == 3 else (height, width)
        if index in left_out:
            cache.leave_out(index)
        else:
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            cache.put(index, pixels, (height * 4, width * 4))
    return cache


# ---- the device


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_slices_of_the_pictures(device, channels):
    """The oracle is numpy's slice of each single picture."""

    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def check(data):
        indices = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=9))
        height, width = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        sizes = moved.sizes[indices]
        tops = [data.draw(st.integers(0, int(size) - height)) for size in sizes[:, 0]]
        lefts = [data.draw(st.integers(0, int(size) - width)) for size in sizes[:, 1]]
        windows = moved.windows(indices, tops, lefts, height, width)
        assert windows.dtype == torch.uint8
        assert windows.shape == (len(indices), channels, height, width)
        assert windows.is_contiguous()
        for window, index, top, left in zip(windows.cpu(), indices, tops, lefts, strict=True):
            pixels = cache.get(index)[0].reshape(*moved.sizes[index], channels)
            expected = pixels[top : top + height, left : left + width].transpose(2, 0, 1)
            assert np.array_equal(window.numpy(), expected)

    cache = filled(40, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the arrays of a cache are read-only
        moved = DeviceCache(cache, device)
    assert moved.channels == channels
    assert moved.nbytes == cache.nbytes
    assert repr(moved).startswith(
        f"DeviceCache(40 pictures, {cache.nbytes / 1e3:.1f} kB on {device}"
    )
    assert np.array_equal(moved.frames, moved.sizes * 4)
    check()
    moved.close()
    assert moved.nbytes == 0


def test_chunks_meet_without_a_seam(monkeypatch):
    monkeypatch.setattr("treadle.data.cache.device._CHUNK", 1000)
    cache = filled(40, 3, left_out=(0, 20, 39))
    moved = DeviceCache(cache, "cpu")
    for index in set(range(40)) - {0, 20, 39}:
        pixels = cache.get(index)[0]
        window = moved.windows([index], [0], [0], *pixels.shape[:2])[0]
        assert np.array_equal(window.permute(1, 2, 0).numpy(), pixels)
    assert moved.sizes[[0, 20, 39]].tolist() == [[0, 0]] * 3
    with pytest.raises(UsageError, match="picture 20, which has 0 × 0"):
        moved.windows([1, 20], [0, 0], [0, 0], 2, 2)


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (2, 0), (0, 3)])
def test_a_window_that_leaves_its_picture_is_refused(top, left):
    cache = MemoryCache(1)
    cache.put(0, np.zeros((4, 6), np.uint8), (4, 6))
    moved = DeviceCache(cache, "cpu")
    assert moved.windows([0], [1], [2], 3, 4).shape == (1, 1, 3, 4)
    with pytest.raises(UsageError, match=f"row {top}, column {left} leaves picture 0, .* 4 × 6"):
        moved.windows([0, 0], [1, top], [2, left], 3, 4)


def test_what_cannot_be_moved_is_refused():
    cache = MemoryCache(2)
    cache.put(0, np.zeros((4, 6), np.uint8), (4, 6))
    with pytest.raises(UsageError, match="not complete"):
        DeviceCache(cache, "cpu")
    cache.put(1, np.zeros((4, 6, 3), np.uint8), (4, 6))
    with pytest.raises(UsageError, match="some are grey"):
        DeviceCache(cache, "cpu")


def test_one_that_turns_out_to_be_damaged_is_not_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    cache = on_disk(3)
    fill(cache, make)
    cache.close()
    path = cache.folder / "pixels.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    cache = on_disk(3)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UsageError, match="complete"):
        DeviceCache(cache, "cpu")
    fill(cache, make)
    assert DeviceCache(cache, "cpu").windows([2], [0], [0], 2, 2).unique().tolist() == [2]
    cache.close()


@gpu
def test_too_much_for_the_gpu_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    with pytest.raises(UsageError, match=r"needs .* on cuda, where 1\.0 kB are free"):
        DeviceCache(filled(40, 3), "cuda")


# ---- filling ahead


def on_disk(n: int) -> DiskCache:
    return DiskCache(n, [f"/pictures/{i}" for i in range(n)], "r")


def make(index: int) -> tuple[np.ndarray, tuple[int, int]]:
    return np.full((5, 7), index % 256, np.uint8), (index, 3)


@pytest.mark.parametrize("workers", [None, 0, 3])
def test_what_is_missing_is_made_once(workers):
    made = []

    def counted(index: int):
        made.append(index)
        return make(index)

    cache = MemoryCache(100)
    cache.put(17, *make(17))
    fill(cache, counted, workers)
    assert sorted(made) == [i for i in range(100) if i != 17]
    assert cache.complete
    assert all(cache.get(i)[0][0, 0] == i for i in range(100))
    fill(cache, counted, workers)
    assert len(made) == 99


def test_what_cannot_be_made_is_left_out():
    cache = MemoryCache(40)
    fill(cache, lambda index: None if index % 10 == 3 else make(index), 2)
    assert cache.complete
    assert [i for i in range(40) if cache.get(i) is None] == [3, 13, 23, 33]


def test_nothing_is_printed_where_there_is_no_terminal(capfd):
    fill(MemoryCache(40), make)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal():
    pty = pytest.importorskip("pty")
    code = (
        "import numpy as np; from treadle.data.cache import MemoryCache, fill\n"
        "fill(MemoryCache(64), lambda i: (np.zeros((2, 2), np.uint8), (2, 2)), 2)\n"
        "fill(MemoryCache(65), lambda i: (np.zeros((2, 2), np.uint8), (2, 2)), 2, bar=False)\n"
    )
    main, side = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=side, check=True, timeout=60)
    os.close(side)
    told = os.read(main, 100_000).decode()
    os.close(main)
    assert "64/64" in told
    assert "/65" not in told


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_exception_ends_it_and_names_the_index(workers):
    made = []

    def fails(index: int):
        made.append(index)
        if index == 5:
            raise OSError("no such picture")
        time.sleep(1e-3)
        return make(index)

    cache, before = MemoryCache(2000), threading.active_count()
    with pytest.raises(OSError, match="no such picture") as caught:
        fill(cache, fails, workers)
    assert caught.value.__notes__ == ["while picture 5 was made for the cache"]
    assert any(frame.name == "fails" for frame in caught.traceback)
    assert threading.active_count() == before
    assert len(made) < 200
    assert cache.filled >= 5


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_ends_it_and_what_is_done_stays(workers):
    def slow(index: int):
        if index == 40:
            _thread.interrupt_main()
        time.sleep(1e-3)
        return make(index)

    cache, before = MemoryCache(5000), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fill(cache, slow, workers)
    assert threading.active_count() == before
    assert 0 < cache.filled < 500
    fill(cache, make)
    assert cache.complete


def test_a_cache_that_gives_up_ends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "500")
    made = []

    def counted(index: int):
        made.append(index)
        return make(index)

    cache: PixelCache = on_disk(5000)
    with pytest.warns(UserWarning, match="limit of all caches"):
        fill(cache, counted, 2)
    assert len(made) < 500
    assert cache.get(0) is None
    cache.close()
