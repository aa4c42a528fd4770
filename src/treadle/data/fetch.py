"""Fetch one file from the network: whole, checked, and going on where it was interrupted."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urlsplit

from treadle.data.home import FULL, NoRoomError, ensure_room, hidden, locked, megabytes
from treadle.data.progress import TransferBar
from treadle.errors import DownloadError, UsageError

__all__ = ["MIRROR", "SCHEMES", "fetch", "shown"]

SCHEMES = ("http", "https", "file")
MIRROR = "TREADLE_DATA_MIRROR"
"""The environment variable that names a place to take archives from."""

_TIMEOUT = 30.0  # seconds that the other side may be silent, or all but silent
_SLOWEST = 1024  # bytes a second: what is all but silent brings less
_CHUNK = 1 << 18
_TRIES = 4  # in a row that bring next to nothing
_PROGRESS = 1 << 20  # bytes: a try that brought so many was worth it
_PAUSE = 0.3  # seconds before the second try; doubled each time: without a network 2 s in all
_LONGEST_PAUSE = 60.0
_BUSY = {408, 425, 429, 500, 502, 503, 504}  # the statuses that may be gone in a moment
_MEND = f"Check the address and the connection, or set {MIRROR} to a folder that has the file."


class _Passing(DownloadError):
    """A trouble that may be gone at the next try, after `pause` seconds if the server said."""

    pause: float | None = None


def fetch(
    url: str,
    goal: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    again: bool = False,
) -> Path:
    """Copy the body at `url` (http, https or file) to the file `goal`, whole or not at all.

    A `goal` that is there is taken as it is, unless `again` is true. What arrives is collected in
    the hidden file `.NAME.part` beside it. A connection that breaks or falls silent, and a server
    that is busy (500, 503, ...) are tried up to four times, each going on where the last ended. If
    all fail, the part stays, with the server's ETag or Last-Modified in `.NAME.part.json`, and the
    next call goes on from there; a server that has changed the file since, or cannot send a range,
    sends the whole. Of several processes one fetches and the others wait for it.

    `size` in bytes, `md5` and `sha256` are compared where they are given. Only http(s) is
    followed when the server redirects, and never from https to http.

    Raises `DownloadError` naming `url` where the body does not arrive whole or is another than
    expected, `NoRoomError` before the first byte where the disk is too small, `UsageError` for
    another scheme.
    """
    if urlsplit(shown(url)).scheme not in SCHEMES:
        raise UsageError(f"{shown(url)!r} has a scheme that is not one of {', '.join(SCHEMES)}.")
    with locked(goal):
        if goal.is_file() and not again:
            return goal
        part = _Part(goal, url)
        before, started = part.resumable(), time.perf_counter()
        try:
            with TransferBar(goal.name, size) as bar:
                _get_checked(part, _Expected(size, md5, sha256), bar)
        except BaseException:
            if not part.resumable():
                part.discard()
            raise
        got = part.size()
        part.place()
        if not bar.live:
            kept = f" ({megabytes(before)} of it were here)" if before else ""
            seconds = time.perf_counter() - started
            said = f"Downloaded {goal.name}: {megabytes(got)}{kept} in {seconds:.1f} s"
            print(said, file=sys.stderr)
    return goal


def shown(url: str) -> str:
    """`url` as it may be shown and kept: without a password or a query, which may be a token.

    Raises `UsageError` for what is no address.

    >>> shown("https://me:secret@host/toy.tgz?key=123")
    'https://host/toy.tgz'
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r} is not an address ({error}).") from error
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class _Expected(NamedTuple):
    """What is known of the file beforehand."""

    size: int | None
    md5: str | None
    sha256: str | None

    def trouble(self, path: Path) -> str:
        """What is wrong with the file at `path`, as the end of a sentence; empty if nothing is."""
        got = path.stat().st_size
        if self.size not in (None, got):
            return f"brought {got} bytes; expected {self.size}"
        md5 = partial(hashlib.md5, usedforsecurity=False)  # published for old data sets
        for kind, made, told in (("md5", md5, self.md5), ("sha256", hashlib.sha256, self.sha256)):
            if told is not None:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, made).hexdigest()
                if found != told.lower():
                    return f"has {kind} {found}; expected {told.lower()}"
        return ""


class _Part:
    """What has arrived of the file `goal`, and the note that says of which version it is."""

    def __init__(self, goal: Path, url: str) -> None:
        self.goal, self.url = goal, url
        self.path, self._note = hidden(goal, "part"), hidden(goal, "part.json")
        self.validator, self.total = self._read_note()
        self.pieces = 1  # answers that the part is made of

    def _read_note(self) -> tuple[str, int | None]:
        try:
            told = json.loads(self._note.read_text(encoding="utf-8"))
            if told["url"] == shown(self.url):
                return str(told["validator"]), told["size"] and int(told["size"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # none, or torn: then nothing is known of the part
        return "", None

    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    def resumable(self) -> int:
        """Bytes after which a download can go on; 0 if the part is of no known version."""
        size = self.size() if self.validator else 0
        return size if self.total is None or size <= self.total else 0

    def begin(self, validator: str, total: int | None) -> None:
        """Empty the part: what follows is of the version that `validator` names."""
        self.discard()
        self.path.touch()
        self.validator, self.total, self.pieces = validator, total, 1
        note = {"url": shown(self.url), "validator": validator, "size": total}
        self._note.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        """Remove part and note; the note first, as a part alone is never trusted."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.validator, self.total = "", None

    def place(self) -> None:
        """Move the part to its goal."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.goal)
        self._note.unlink(missing_ok=True)


def _get_checked(part: _Part, expected: _Expected, bar: TransferBar) -> None:
    """Receive all of it and compare it with what is known."""
    _get_all(part, expected, bar)
    trouble = expected.trouble(part.path)
    if trouble and part.pieces > 1:  # they may be of two versions: once more, in one piece
        part.discard()
        bar.say(f"{part.goal.name} {trouble}; fetching the whole once more.")
        _get_all(part, expected, bar)
        trouble = expected.trouble(part.path)
    if trouble:
        part.discard()
        raise DownloadError(
            f"{shown(part.url)} {trouble}. It was damaged on the way or is another file than "
            f"expected, and was removed. {_MEND}"
        )


def _get_all(part: _Part, expected: _Expected, bar: TransferBar) -> None:
    """Receive until all is there, or until four tries in a row brought next to nothing."""
    failures = 0
    while part.total is None or part.resumable() != part.total:
        before = part.resumable()
        try:
            _receive(part, expected, bar)
            return
        except _Passing as error:
            failures = 1 if part.resumable() - before >= _PROGRESS else failures + 1
            if failures >= _TRIES:
                kept = megabytes(part.resumable())
                more = f" {kept} are kept: call again to go on." if part.resumable() else ""
                raise DownloadError(f"{error}{more}") from error
            pause = min(error.pause or _PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
            bar.say(f"{error} Trying again in {pause:.1f} s.")
            time.sleep(pause)


def _receive(part: _Part, expected: _Expected, bar: TransferBar) -> None:
    """One try: what is missing, or all of it where that cannot be had."""
    offset = part.resumable()
    headers = {"User-Agent": "treadle", "Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": part.validator}
    url = quote(part.url, safe="%:/?#[]@!$&'()*+,;=~")  # spaces and letters beyond ASCII
    with _opened(part, urllib.request.Request(url, headers=headers)) as answer:  # noqa: S310  (fetch)
        total = _total(answer)
        if answer.status == 206:
            _check_range(part, answer, offset)
            part.pieces += 1
        else:
            if total is not None and expected.size not in (None, total):
                raise DownloadError(
                    f"{shown(part.url)} has {total} bytes; expected {expected.size}. It is another "
                    f"file than expected. {_MEND}"
                )
            offset = 0
            part.begin(_validator(answer), total)
        ensure_room(part.goal.parent, (total or 0) - offset, f"Downloading {part.goal.name}")
        most = total if total is not None else expected.size
        try:
            with part.path.open("ab") as file:
                got = _copy(answer, file, offset, most, bar)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise NoRoomError(
                f"The disk of {part.goal.parent} became full after {megabytes(part.size())} of "
                f"{part.goal.name}. Make room, or give a folder elsewhere."
            ) from error
    if total is not None and got < total:
        raise _Passing(f"{shown(part.url)} was cut off: got {got} of {total} bytes.")


def _copy(answer: Any, file: IO[bytes], got: int, most: int | None, bar: TransferBar) -> int:
    """Append the body to `file`, which has `got` bytes; returns how many it has then."""
    bar.at(got, most)
    mark, since = got, time.monotonic()
    while chunk := answer.read1(_CHUNK):
        got += file.write(chunk)
        file.flush()  # a kill loses nothing
        bar.at(got, most)
        if most is not None and got > most:  # of no use, and perhaps endless
            break
        if (seconds := time.monotonic() - since) > _TIMEOUT:
            if got - mark < _SLOWEST * seconds:
                raise TimeoutError(f"only {got - mark} bytes came in {seconds:.0f} s")
            ensure_room(Path(file.name).parent, 0, "A download of unknown size")
            mark, since = got, time.monotonic()
    return got


def _total(answer: Any) -> int | None:
    """The bytes of the whole file, as far as the server says."""
    if answer.status == 206:
        told = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", answer.headers.get("Content-Range", ""))
        return int(told[1]) if told else None
    told = re.fullmatch(r"\s*(\d{1,18})\s*", answer.headers.get("Content-Length", ""))
    return int(told[1]) if told else None


def _check_range(part: _Part, answer: Any, offset: int) -> None:
    """Refuse a range that does not continue the part: another place, or another version."""
    start = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
    validator = _validator(answer)
    same_version = validator in ("", part.validator) and part.total in (None, _total(answer))
    if not offset or start is None or int(start[1]) != offset or not same_version:
        part.discard()
        raise _Passing(f"{shown(part.url)} sent another range than it was asked for.")


def _validator(answer: Any) -> str:
    """What If-Range takes: a strong ETag, else the date of the last change, else nothing."""
    tag = str(answer.headers.get("ETag") or "")
    told = tag if tag.startswith('"') else str(answer.headers.get("Last-Modified") or "")
    return told if told.isascii() and told.isprintable() else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http(s) only, and never out of https: urllib alone would go to ftp as well."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in allowed:
            refusal = f"{msg}, to {shown(newurl)}, which is refused"
            raise urllib.error.HTTPError(req.full_url, code, refusal, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT)
    except (http.client.InvalidURL, ValueError) as error:  # a port that is no number, a long host
        name = shown(request.full_url)
        raise UsageError(f"{name!r} is not an address that can be asked ({error}).") from error


@contextmanager
def _opened(part: _Part, request: urllib.request.Request) -> Iterator[Any]:
    """The open answer; whatever the network does wrong becomes a DownloadError."""
    name = shown(part.url)
    try:
        with _open(request) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(part, error) from error
    except urllib.error.URLError as error:
        kind = _Passing if isinstance(error.reason, OSError) else DownloadError
        if isinstance(error.reason, (ssl.SSLCertVerificationError, FileNotFoundError)):
            kind = DownloadError
        raise kind(f"{name} could not be reached ({error.reason}). {_MEND}") from error
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise _Passing(f"{name} stopped answering ({reason}). {_MEND}") from error


def _refused(part: _Part, error: urllib.error.HTTPError) -> DownloadError:
    """What an HTTP error status means for the download."""
    text = f"{shown(part.url)} answered {error.code} {' '.join(str(error.reason).split())}."
    if error.code == 416 and part.resumable():  # it became shorter: fetch the whole
        part.discard()
        return _Passing(text)
    if error.code not in _BUSY:
        return DownloadError(f"{text} {_MEND}")
    passing = _Passing(f"{text} {_MEND}")
    wait = error.headers.get("Retry-After") or ""
    passing.pause = float(wait) if wait.isdecimal() else None
    return passing
