"""Decoded pictures in a file, kept from run to run and shared by processes."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Sequence

from treadle.data.cache.base import Frame, PixelCache, Pixels, checked, in_bytes
from treadle.data.cache.filling import Filling
from treadle.data.cache.folders import (
    LIMIT,
    below_limit,
    cache_root,
    lockable,
    locked,
    make_room,
    remove,
    size_of,
    sweep,
    sync,
)
from treadle.data.cache.stored import Damaged, Stored, key_of
from treadle.errors import DataError, UsageError
from treadle.interrupts import undivided

__all__ = ["DiskCache"]


class DiskCache(PixelCache):
    """`n` pictures in a folder of `cache/` in `data_home()`, mapped into memory.

    The folder is named by the paths, sizes and times of change of `files` and by `recipe`, which
    says all that else decides the pixels (decoder, presize, resampling, versions): what is found
    there is what would be decoded. `expected_bytes` are made free at the start, if removing caches
    that were not used for longest can do so; all together stay below $TREADLE_CACHE_LIMIT (by
    default 20 % of the disk or 50 GB, whichever is less).

    A cache that is not there yet is written beside its place and moved there when every picture is
    done, in a thread that waits for the disk; until then it serves what it has. Processes that fill
    the same one at once each fill their own, and the first to be done stands.

    - A cache that is damaged, half-built or foreign is removed with a warning, and built anew. The
      pixels of each picture are checked when a process reads them for the first time.
    - Where the disk is full a warning says how much is missing, and it goes on without a cache.

    Raises `UsageError` where `files` are not `n`, and on Windows (its locks are not served);
    `DataError` where the folder cannot be made. A file that another program cuts short while it is
    mapped ends the process (SIGBUS): leave the folder to Treadle.
    """

    def __init__(
        self,
        n: int,
        files: Sequence[str | os.PathLike[str]],
        recipe: str,
        expected_bytes: int = 0,
    ) -> None:
        super().__init__(n)
        if len(files) != n:
            raise UsageError(f"DiskCache(n={n}) was given {len(files)} files; expected one each.")
        if not lockable():
            raise UsageError("A cache on the disk needs file locks, which this system lacks.")
        self.folder = cache_root() / key_of(files, recipe)
        self.expected_bytes = expected_bytes
        self._lock = threading.Lock()
        self._finisher: threading.Thread | None = None
        try:
            self._store: Stored | Filling | None = self._open()
        except OSError as error:
            raise DataError(
                f"The cache of pictures {self.folder} cannot be made ({error.strerror}). Set "
                "TREADLE_HOME to a folder that can be written, or give cache='memory'."
            ) from error

    def get(self, index: int) -> tuple[Pixels, Frame] | None:
        store = self._store
        if store is None:
            return None
        try:
            return store.get(index)
        except Damaged as fault:
            self._build_anew(store, fault)
            return None

    @undivided
    def put(self, index: int, pixels: Pixels, frame: Frame) -> Pixels:
        pixels = checked(pixels)
        store = self._store
        if isinstance(store, Filling):
            try:
                try:
                    last = store.put(index, pixels, frame)
                except OSError:
                    if not self._make_more_room(store):
                        raise
                    last = store.put(index, pixels, frame)
                if last:
                    self._start_finishing(store)
            except OSError as error:
                self._give_up(store, error)
        return pixels

    def leave_out(self, index: int) -> None:
        store = self._store
        if isinstance(store, Filling) and store.leave_out(index):
            self._start_finishing(store)

    @property
    def filled(self) -> int:
        store = self._store
        if store is None:
            return 0
        return store.filled if isinstance(store, Filling) else self.n

    @property
    def nbytes(self) -> int:
        store = self._store
        return 0 if store is None else store.nbytes

    def close(self) -> None:
        if self._finisher is not None:
            self._finisher.join()
        with self._lock:
            store, self._store = self._store, None
        if isinstance(store, Filling):
            store.discard()

    def _open(self) -> Stored | Filling:
        """What is there, if it is whole; else the beginning of a new one."""
        root = self.folder.parent
        with locked(root):
            sweep(root)
            stored = self._found()
            if stored is not None:
                return stored
            make_room(root, self.expected_bytes)
            return Filling(root, self.folder.name, self.n, below_limit(root))

    def _found(self) -> Stored | None:
        """The whole cache in its place; a damaged one is removed. Under `locked`."""
        if not os.path.lexists(self.folder):
            return None
        try:
            return Stored(self.folder, self.n)
        except Damaged as fault:
            remove(self.folder)
            self._tell_damage(fault)
            return None

    def _build_anew(self, store: Stored | Filling, fault: Damaged) -> None:
        with self._lock:
            if self._store is not store:
                return  # another thread saw to it
            self._store = None
            try:
                self._drop(store)
                self._store = self._open()
            except OSError as error:
                self._tell_failure(error, self.expected_bytes)
        self._tell_damage(fault)

    def _drop(self, store: Stored | Filling) -> None:
        if isinstance(store, Filling):
            store.discard()
            return
        with locked(self.folder.parent):
            if store.is_there():  # and not one that another process has built since
                remove(self.folder)

    def _make_more_room(self, store: Filling) -> bool:
        """Remove caches that are not in use, if that makes room for the rest of this one."""
        root, needed = self.folder.parent, store.still_needed()
        with locked(root):
            enough = make_room(root, needed) >= needed
            store.most = below_limit(root) + size_of(store.folder)
        return enough

    def _start_finishing(self, store: Filling) -> None:
        # Not a daemon: a program that ends now still keeps its cache.
        self._finisher = threading.Thread(target=self._finish, args=(store,), name="treadle-cache")
        self._finisher.start()

    def _finish(self, store: Filling) -> None:
        root = self.folder.parent
        try:
            store.write_index()
            with locked(root):
                stored = self._found()
                if stored is None:
                    store.folder.rename(self.folder)
                    sync(root)
                    store.hold.share()
                    stored = Stored(self.folder, self.n)
                make_room(root, 0)
        except OSError as error:
            self._give_up(store, error)
            return
        except Damaged as fault:
            self._build_anew(store, fault)
            return
        with self._lock:
            if self._store is store:
                self._store = stored
        store.discard()

    def _give_up(self, store: Filling, error: OSError) -> None:
        with self._lock:
            if self._store is not store:
                return
            self._store = None
        needed = store.still_needed()
        store.discard()
        self._tell_failure(error, needed)

    def _tell_failure(self, error: OSError, needed: int) -> None:
        free = shutil.disk_usage(self.folder.parent).free
        _warn(
            f"The cache of pictures {self.folder} cannot be written ({error.strerror}): about "
            f"{in_bytes(needed)} more are needed, {in_bytes(free)} are free on the disk. It goes "
            "on without a cache and decodes in every epoch. Free disk space, raise "
            f"{LIMIT}, or set TREADLE_HOME to a folder on another disk."
        )

    def _tell_damage(self, fault: Damaged) -> None:
        _warn(
            f"The cache of pictures {self.folder} was damaged: {fault}. It was removed and is "
            "built anew."
        )


def _warn(message: str) -> None:
    # Without a registry, so that it is told each time that it happens.
    warnings.warn_explicit(message, UserWarning, __file__, 0)
