"""untar_data and fetch against a real server on localhost that breaks off, lies and misleads."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from treadle.data import URLs, data_home, untar_data
from treadle.data import fetch as fetching
from treadle.data.fetch import fetch, shown
from treadle.data.home import NoRoomError, install, locked, scratch_folder
from treadle.data.known import KNOWN, KnownData
from treadle.data.manifest import verify
from treadle.errors import DataError, DownloadError, UsageError


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


GOOD = tar_of({"toy/a.txt": b"A", "toy/b/c.txt": b"C"})
BIG = os.urandom(3 << 20)
USUAL_PAUSE = fetching._PAUSE


@dataclass
class Answer:
    """What the server does for one path; the lists hold one value a request, the last for ever."""

    body: bytes
    status: list[int] = field(default_factory=lambda: [200])
    cut: list[int | None] = field(default_factory=lambda: [None])  # bytes sent before it hangs up
    length: int | None = None  # the Content-Length told instead of the true one; -1: none told
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    shift: int = 0  # a range that begins so much later than asked
    stall: float = 0.0  # seconds of silence in the middle
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    path: str
    range: str | None
    if_range: str | None
    sent: int = 0


def turn(values: list, n: int):
    return values[min(n, len(values) - 1)]


class Server:
    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                ask = Asked(self.path, self.headers["Range"], self.headers["If-Range"])
                n = sum(asked.path == self.path for asked in outer.asked)
                outer.asked.append(ask)
                outer.answer(self, ask, n)

            def log_message(self, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, ask: Asked, n: int) -> None:
        answer = self.answers.get(ask.path, Answer(b"no", [404]))
        status, body, start = turn(answer.status, n), answer.body, 0
        valid = ask.if_range in (None, answer.etag, answer.modified)
        if status == 200 and ask.range and answer.ranges and valid:
            start = int(ask.range.removeprefix("bytes=").removesuffix("-")) + answer.shift
            status = 206 if start < len(body) else 416
        handler.send_response(status)
        total, body = len(body), body[start:]
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if answer.length != -1:
            told = len(body) if answer.length is None else answer.length
            handler.send_header("Content-Length", str(told))
        for name, value in {"ETag": answer.etag, "Last-Modified": answer.modified}.items():
            if value:
                handler.send_header(name, value)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        body = body[: turn(answer.cut, n)]
        try:
            if answer.stall:
                handler.wfile.write(body[:1000])
                time.sleep(answer.stall)
                body = body[1000:]
            handler.wfile.write(body)
        except OSError:
            pass  # the client had enough
        ask.sent = len(body)

    def serve(self, path: str, body: bytes, **kwargs) -> str:
        self.answers[path] = Answer(body, **kwargs)
        return self.url + path

    def stop(self) -> None:
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TREADLE_DATA_MIRROR", raising=False)
    monkeypatch.setattr("treadle.data.fetch._PAUSE", 0.01)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    return tmp_path / "home"


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- the whole way ---


def test_the_folder_is_unpacked_once_and_the_second_call_needs_no_network(
    server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.serve("/files/toy.tgz", GOOD)
    path = untar_data(url)
    assert path == home / "data" / "toy"
    assert everything_in(home) == [
        *("archive", "archive/toy.tgz", "data"),
        *("data/toy", "data/toy/.treadle.json"),
        *("data/toy/a.txt", "data/toy/b", "data/toy/b/c.txt"),
    ]
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Downloaded toy.tgz: 0.0 MB in ") and err.count("\n") == 1
    server.stop()
    assert untar_data(url) == path
    assert [asked.path for asked in server.asked] == ["/files/toy.tgz"]


def test_the_list_tells_the_source_the_sizes_and_the_hashes(server: Server) -> None:
    path = untar_data(server.serve("/toy.tgz", GOOD))
    assert json.loads((path / ".treadle.json").read_text()) == {
        "version": 1,
        "source": server.url + "/toy.tgz",
        "files": {"a.txt": [1, sha256(b"A")], "b/c.txt": [1, sha256(b"C")]},
    }


def test_the_places_that_can_be_named(server: Server, tmp_path: Path, home: Path) -> None:
    url = server.serve("/toy.tgz", GOOD)
    assert untar_data(url, tmp_path / "packed", tmp_path / "mine") == tmp_path / "mine" / "toy"
    assert everything_in(tmp_path / "packed") == ["toy.tgz"]
    assert untar_data(url, c_key="model", base=tmp_path / "base") == tmp_path / "base/model/toy"
    assert (tmp_path / "base/archive/toy.tgz").is_file()
    assert not home.exists()


def test_on_a_terminal_there_is_a_bar(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    untar_data(server.serve("/toy.tgz", GOOD))
    out, err = capsys.readouterr()
    assert out == "" and "toy.tgz" in err and "Unpacking" in err and "Downloaded" not in err


def test_force_download_replaces_the_folder(server: Server, tmp_path: Path) -> None:
    url = server.serve("/toy.tgz", GOOD)
    path = untar_data(url, data=tmp_path / "mine")
    server.serve("/toy.tgz", tar_of({"toy/new.txt": b"1"}), etag='"v2"')
    assert untar_data(url, data=tmp_path / "mine", force_download=True) == path
    assert everything_in(tmp_path / "mine") == ["toy", "toy/.treadle.json", "toy/new.txt"]


def test_a_failed_replacement_leaves_the_old_folder(server: Server, tmp_path: Path) -> None:
    url = server.serve("/toy.tgz", GOOD)
    path = untar_data(url, data=tmp_path / "mine")
    server.serve("/toy.tgz", GOOD[:80], etag='"v2"')
    with pytest.raises(DataError, match="damaged"):
        untar_data(url, data=tmp_path / "mine", force_download=True)
    assert (path / "a.txt").read_bytes() == b"A"
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["toy"]


@pytest.mark.parametrize(
    "body",
    [b"<html>a portal's page</html>", GOOD[: len(GOOD) // 2], b"", b"\x1f\x8b" + b"garbage" * 99],
    ids=["html", "truncated", "empty", "garbage"],
)
def test_a_damaged_archive_is_named_and_removed(server: Server, home: Path, body: bytes) -> None:
    url = server.serve("/toy.tgz", body)
    with pytest.raises(DataError, match=rf"{home}/archive/toy\.tgz is damaged") as caught:
        untar_data(url)
    assert url in caught.value.__notes__[0]
    assert everything_in(home) == ["archive", "data"]
    server.serve("/toy.tgz", GOOD)
    assert untar_data(url).is_dir()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("ftp://host/toy.tgz", "scheme"),
        ("http://host/toy.rar", r"does not name an archive"),
        ("http://host/", "does not name an archive"),
        ("http://host/.tgz", "does not name an archive"),
        ("http://host/...tgz", "does not name an archive"),
        ("http://host/a%5Cb.tgz", "does not name an archive"),
        ("http://host/a%1Bb.tgz", "does not name an archive"),
        ("http://[::1/toy.tgz", "is not an address"),
        ("http://host:port/toy.tgz", "is not an address that can be asked"),
        ("http://a..b/toy.tgz", "is not an address that can be asked"),
    ],
)
def test_addresses_that_cannot_be_meant(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        untar_data(url)


# --- mirrors, and what is known of a set ---


@pytest.mark.parametrize(
    "mirror",
    [lambda folder, url: str(folder), lambda folder, url: folder.as_uri(), lambda f, url: url],
    ids=["folder", "file", "http"],
)
def test_the_mirror_has_the_file_of_the_same_name(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mirror: Callable[[Path, str], str],
) -> None:
    """And may hold a cut-down one: what is known of the original is not held against it."""
    folder = tmp_path / "a mirror"
    folder.mkdir()
    (folder / "imagenette2-160.tgz").write_bytes(GOOD)
    server.serve("/base/imagenette2-160.tgz", GOOD)
    monkeypatch.setenv("TREADLE_DATA_MIRROR", mirror(folder, server.url + "/base"))
    assert (untar_data(URLs.IMAGENETTE_160) / "b/c.txt").is_file()


@pytest.mark.parametrize("url", ["http://host/my%20sét%23.tgz?a=b", "http://host/my sét%23.tgz"])
def test_names_beyond_ascii(
    url: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve("/my%20s%C3%A9t%23.tgz", GOOD)
    path = untar_data(url.replace("http://host", server.url).partition("?")[0])
    assert path.name == "my sét#"
    (tmp_path / "my sét#.tgz").write_bytes(GOOD)
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(tmp_path))
    assert untar_data(url, data=tmp_path / "mine", force_download=True).name == "my sét#"


def test_a_mirror_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(tmp_path))
    with pytest.raises(DownloadError, match=rf"{tmp_path.as_uri()}/imagenette2\.tgz"):
        untar_data(URLs.IMAGENETTE)


def test_urls_follow_the_public_pattern_and_have_their_facts() -> None:
    assert URLs.IMAGENETTE_160 == ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz")
    assert URLs.PETS.endswith("imageclas/oxford-iiit-pet.tgz")
    names = {name for name in vars(URLs) if name[0] != "_"}
    assert {name.lower().replace("_", "-") for name in names} == set(KNOWN)
    for name in names:
        known = KNOWN[name.lower().replace("_", "-")]
        assert known.url == getattr(URLs, name)
        assert known.size > 0 and (known.md5 is None or len(known.md5) == 32)


def test_a_known_set_must_have_its_size_and_its_checksum(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url + "/toy.tgz"
    good_md5 = hashlib.md5(GOOD).hexdigest()
    monkeypatch.setitem(KNOWN, "toy", KnownData("toy", url, len(GOOD), "", good_md5))
    server.serve("/toy.tgz", GOOD + b"more")
    with pytest.raises(DownloadError, match=f"has {len(GOOD) + 4} bytes; expected {len(GOOD)}"):
        untar_data(url)
    flipped = bytes([*GOOD[:50], GOOD[50] ^ 1, *GOOD[51:]])
    server.serve("/toy.tgz", flipped)
    with pytest.raises(DownloadError, match=f"has md5 [0-9a-f]+; expected {good_md5}"):
        untar_data(url)
    assert everything_in(home) == ["archive", "data"]
    server.serve("/toy.tgz", GOOD)
    assert untar_data(url).is_dir()


def test_a_sha256_is_compared(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG)
    with pytest.raises(DownloadError, match=f"has sha256 {sha256(BIG)}; expected {'0' * 64}"):
        fetch(url, tmp_path / "f", sha256="0" * 64)
    assert len(server.asked) == 1  # it came in one piece: another try would bring the same
    assert fetch(url, tmp_path / "f", sha256=sha256(BIG).upper()).read_bytes() == BIG
    assert everything_in(tmp_path) == ["f"]


# --- breaking off, and going on ---


@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_connection_goes_on_where_it_ended(
    server: Server, tmp_path: Path, tenth: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = len(BIG) * tenth // 10
    url = server.serve("/f", BIG, cut=[cut, None])
    assert fetch(url, tmp_path / "f").read_bytes() == BIG
    first, second = server.asked
    assert second.range == (f"bytes={cut}-" if cut else None)
    assert second.if_range == ('"v1"' if cut else None)
    assert first.sent + second.sent == len(BIG)  # no byte twice
    assert everything_in(tmp_path) == ["f"]
    err = capsys.readouterr().err
    assert f"was cut off: got {cut} of {len(BIG)} bytes. Trying again in 0.0 s." in err


def test_the_next_call_goes_on_too(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As does one in another process, after any end of this one: the part lies on the disk."""
    url = server.serve("/f", BIG, cut=[2_000_000, 10, 10, 10])
    with pytest.raises(DownloadError, match=r"2\.0 MB are kept: call again to go on"):
        fetch(url, tmp_path / "f")
    assert everything_in(tmp_path) == [".f.part", ".f.part.json"]
    assert len(server.asked) == 4
    server.serve("/f", BIG)
    assert fetch(url, tmp_path / "f").read_bytes() == BIG
    assert server.asked[-1].range == "bytes=2000030-"
    assert everything_in(tmp_path) == ["f"]
    assert "3.1 MB (2.0 MB of it were here) in" in capsys.readouterr().err


def test_many_cuts_are_fine_as_long_as_there_is_progress(server: Server, tmp_path: Path) -> None:
    big = os.urandom(8 << 20)
    url = server.serve("/f", big, cut=[(1 << 20) + 10])
    assert fetch(url, tmp_path / "f").read_bytes() == big
    assert len(server.asked) == 8


def test_the_date_of_the_last_change_serves_as_well(server: Server, tmp_path: Path) -> None:
    date = "Sun, 22 Nov 2026 10:00:00 GMT"
    url = server.serve("/f", BIG, cut=[1000, None], etag='W/"weak"', modified=date)
    assert fetch(url, tmp_path / "f").read_bytes() == BIG
    assert (server.asked[1].range, server.asked[1].if_range) == ("bytes=1000-", date)


def test_a_server_that_ignores_ranges_sends_the_whole(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG, cut=[1000, None], ranges=False)
    assert fetch(url, tmp_path / "f").read_bytes() == BIG
    assert server.asked[1].range == "bytes=1000-"


def test_without_a_validator_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG, cut=[1000], etag=None)
    with pytest.raises(DownloadError, match="was cut off: got 1000 of"):
        fetch(url, tmp_path / "f")
    assert {asked.range for asked in server.asked} == {None}
    assert everything_in(tmp_path) == []


def test_a_file_that_changed_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG, cut=[1000])
    with pytest.raises(DownloadError):
        fetch(url, tmp_path / "f")
    new = BIG[::-1]
    server.serve("/f", new, etag='"v2"')
    assert fetch(url, tmp_path / "f").read_bytes() == new


@pytest.mark.parametrize(
    "liar", [{"etag": '"v2"'}, {"shift": 5}, {"body": BIG + b"more"}], ids=["tag", "start", "total"]
)
def test_a_range_of_another_version_or_place_is_thrown_away(
    server: Server, tmp_path: Path, liar: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers 206 in spite of If-Range."""
    url = server.serve("/f", BIG, cut=[1000])
    with pytest.raises(DownloadError):
        fetch(url, tmp_path / "f")
    note = tmp_path / ".f.part.json"
    server.serve("/f", **{"body": BIG, **liar})
    if "etag" in liar:  # the range is honoured without regard to the condition
        server.answers["/f"].modified = '"v1"'
    assert fetch(url, tmp_path / "f").read_bytes() == liar.get("body", BIG)
    assert server.asked[-2].range is not None and server.asked[-1].range is None
    assert not note.exists()


def test_halves_of_two_versions_under_one_tag_are_found_by_the_hash(
    server: Server, tmp_path: Path
) -> None:
    new = BIG[::-1]
    url = server.serve("/f", BIG, cut=[1000])
    with pytest.raises(DownloadError):
        fetch(url, tmp_path / "f")
    server.serve("/f", new)
    assert fetch(url, tmp_path / "f", sha256=sha256(new)).read_bytes() == new
    assert [asked.range for asked in server.asked[-2:]] == ["bytes=4000-", None]


def test_a_part_that_is_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    """416, range not satisfiable: the whole is fetched."""
    url = server.serve("/f", BIG, cut=[2000], length=-1)
    assert fetch(url, tmp_path / "f").read_bytes() == BIG[:2000]  # no length told: it cannot know
    (tmp_path / "f").rename(tmp_path / ".f.part")
    note = {"url": url, "validator": '"v1"', "size": None}
    (tmp_path / ".f.part.json").write_text(json.dumps(note))
    server.serve("/f", BIG[:1500])
    assert fetch(url, tmp_path / "f").read_bytes() == BIG[:1500]


def test_a_whole_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    """As after a kill between the last byte and the renaming."""
    (tmp_path / ".f.part").write_bytes(BIG)
    note = {"url": server.url + "/f", "validator": '"v1"', "size": len(BIG)}
    (tmp_path / ".f.part.json").write_text(json.dumps(note))
    assert fetch(server.url + "/f", tmp_path / "f").read_bytes() == BIG
    assert server.asked == []


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": "http://elsewhere/f"}', "[" * 9000])
def test_a_part_without_a_true_note_is_not_used(server: Server, tmp_path: Path, note: str) -> None:
    (tmp_path / ".f.part").write_bytes(b"x" * 100)
    (tmp_path / ".f.part.json").write_text(note)
    assert fetch(server.serve("/f", BIG), tmp_path / "f").read_bytes() == BIG
    assert server.asked[0].range is None
    assert everything_in(tmp_path) == ["f"]


@pytest.mark.parametrize("cut", [0, 2])
def test_chunks_without_a_length(
    server: Server, tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP/1.1 marks their end, so a cut is seen, and gone on from."""
    answer = server.answer

    def chunked(handler: BaseHTTPRequestHandler, ask: Asked, n: int) -> None:
        if n:
            answer(handler, ask, n)
            return
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        pieces = [BIG[:5000], BIG[5000:9000], BIG[9000:]]
        for piece in pieces[: cut or None]:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"" if cut else b"0\r\n\r\n")

    url = server.serve("/f", BIG)
    monkeypatch.setattr(server, "answer", chunked)
    assert fetch(url, tmp_path / "f").read_bytes() == BIG
    assert [ask.range for ask in server.asked[1:]] == (["bytes=9000-"] if cut else [])


# --- what servers do wrong ---


def test_a_length_that_is_too_large(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG, length=len(BIG) + 10, etag=None)
    with pytest.raises(
        DownloadError, match=f"{url} was cut off: got {len(BIG)} of {len(BIG) + 10}"
    ):
        fetch(url, tmp_path / "f")
    assert everything_in(tmp_path) == []


def test_a_length_that_is_too_small(server: Server, home: Path) -> None:
    """HTTP cannot see it; the checksum or the archive can."""
    url = server.serve("/toy.tgz", GOOD, length=100)
    with pytest.raises(DownloadError, match="brought 100 bytes; expected"):
        fetch(server.serve("/f", GOOD, length=-1, cut=[100]), home / "f", size=len(GOOD))
    with pytest.raises(DataError, match="damaged"):
        untar_data(url)


def test_more_than_is_expected_is_not_read_to_its_end(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG, length=-1)
    with pytest.raises(DownloadError, match=r"brought \d+ bytes; expected 1000"):
        fetch(url, tmp_path / "f", size=1000)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_an_error_status_is_final(server: Server, home: Path, status: int) -> None:
    url = server.serve("/toy.tgz", b"no", status=[status])
    with pytest.raises(DownloadError, match=rf"toy\.tgz answered {status} .*TREADLE_DATA_MIRROR"):
        untar_data(url)
    assert len(server.asked) == 1
    assert everything_in(home) == ["archive", "data"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", BIG, status=[503, 500, 429, 200])
    assert fetch(url, tmp_path / "f").read_bytes() == BIG


def test_but_not_for_ever(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="answered 503 Service Unavailable"):
        fetch(server.serve("/f", BIG, status=[503]), tmp_path / "f")
    assert len(server.asked) == 4
    assert everything_in(tmp_path) == []


def test_the_pauses_grow_and_the_server_may_name_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("treadle.data.fetch._PAUSE", 0.4)
    monkeypatch.setattr("treadle.data.fetch.time.sleep", pauses.append)
    with pytest.raises(DownloadError):
        fetch(server.serve("/f", BIG, status=[503]), tmp_path / "f")
    assert pauses == [0.4, 0.8, 1.6]
    server.serve("/g", BIG, status=[429, 200], headers={"Retry-After": "7"})
    fetch(server.url + "/g", tmp_path / "g")
    assert pauses[3:] == [7.0]
    server.serve("/h", BIG, status=[429, 200], headers={"Retry-After": "86400"})
    fetch(server.url + "/h", tmp_path / "h")
    assert pauses[4:] == [60.0]


def test_a_refused_connection(server: Server, home: Path) -> None:
    url = server.url + "/toy.tgz"
    server.stop()
    with pytest.raises(DownloadError, match=r"could not be reached.*TREADLE_DATA_MIRROR"):
        untar_data(url)
    assert everything_in(home) == ["archive", "data"]


def test_without_a_network(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is here works; what is not is told within 3 seconds, with the way to do without."""
    monkeypatch.setattr("treadle.data.fetch._PAUSE", USUAL_PAUSE)
    url = server.serve("/toy.tgz", GOOD)
    here = untar_data(url)

    def no_names(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    assert untar_data(url) == here
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        untar_data("http://host.example/other.tgz")
    assert time.monotonic() - start < 3
    assert re.fullmatch(
        r"http://host\.example/other\.tgz could not be reached \(.*name resolution\)\. Check the "
        "address and the connection, or set TREADLE_DATA_MIRROR to a folder that has the file.",
        str(caught.value),
    )
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "other.tgz").write_bytes(GOOD)
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(tmp_path / "mirror"))
    assert (untar_data("http://host.example/other.tgz") / "a.txt").read_bytes() == b"A"


def test_a_server_that_falls_silent_is_asked_to_go_on(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    monkeypatch.setattr("treadle.data.fetch._TIMEOUT", 0.2)
    url = server.serve("/f", BIG, stall=1.0)
    with pytest.raises(DownloadError, match=r"stopped answering \((The read operation )?timed out"):
        fetch(url, tmp_path / "f")
    assert [asked.range for asked in server.asked] == [None, *(f"bytes={n}000-" for n in (1, 2, 3))]


def test_a_trickle_is_as_good_as_silence(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    """No single wait is long, but at this rate it would never end."""
    monkeypatch.setattr("treadle.data.fetch._TIMEOUT", 0.3)
    url = server.serve("/f", BIG)

    def trickle(handler: BaseHTTPRequestHandler, ask: Asked, n: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        with suppress(OSError):  # the client leaves
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)

    monkeypatch.setattr(server, "answer", trickle)
    monkeypatch.setattr("treadle.data.fetch._TRIES", 1)
    with pytest.raises(DownloadError, match=r"only \d+ bytes came in 0 s"):
        fetch(url, tmp_path / "f")


def test_a_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    server.serve("/f", BIG)
    url = server.serve("/old", b"", status=[302], headers={"Location": "/f"})
    assert fetch(url, tmp_path / "f").read_bytes() == BIG


@pytest.mark.parametrize("goal", ["file:///etc/hostname", "ftp://host/f", "data:,x"])
def test_a_redirect_out_of_http_is_refused(server: Server, tmp_path: Path, goal: str) -> None:
    url = server.serve("/f", b"", status=[302], headers={"Location": goal})
    with pytest.raises(DownloadError, match=r"answered 302 .*(refused|not allowed)"):
        fetch(url, tmp_path / "f")
    assert everything_in(tmp_path) == []


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = fetching.urllib.request.Request("https://host/f")
    with pytest.raises(fetching.urllib.error.HTTPError, match="to http://host/f, which is refused"):
        fetching._Redirects().redirect_request(request, None, 302, "Found", {}, "http://host/f?a=1")


def test_a_redirect_in_a_circle(server: Server, tmp_path: Path) -> None:
    url = server.serve("/f", b"", status=[302], headers={"Location": "/f"})
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch(url, tmp_path / "f")


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 257 << 20}))
    url = server.serve("/f", BIG)
    with pytest.raises(NoRoomError, match=r"Downloading f needs 3\.1 MB, .* has 269\.5 MB free"):
        fetch(url, tmp_path / "f")


def test_a_disk_that_becomes_full(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("treadle.data.fetch._copy", full)
    with pytest.raises(NoRoomError, match=r"became full after 0\.0 MB of f\. Make room"):
        fetch(server.serve("/f", BIG), tmp_path / "f")
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("tag", ['"a\r\n b"', '"\xe9"', "W/x"])
def test_a_tag_that_cannot_be_sent_back_is_not_used(
    server: Server, tmp_path: Path, tag: str
) -> None:
    url = server.serve("/f", BIG, cut=[1000, None], etag=tag)
    assert fetch(url, tmp_path / "f").read_bytes() == BIG
    assert server.asked[1].range is None


@pytest.mark.parametrize("length", ["9" * 5000, "-5", "many"])
def test_a_length_that_is_no_number_is_not_used(
    server: Server, tmp_path: Path, length: str
) -> None:
    url = server.serve("/f", BIG, length=-1, headers={"Content-Length": length})
    assert fetch(url, tmp_path / "f").read_bytes() == BIG


def test_a_home_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/data cannot be written to \(Not a directory\)"):
        untar_data(server.serve("/toy.tgz", GOOD), base=tmp_path / "file")


def test_no_password_and_no_token_is_shown_or_kept(server: Server, home: Path) -> None:
    url = server.url + "/toy.tgz?token=abc123"
    server.answers["/toy.tgz?token=abc123"] = Answer(GOOD, cut=[50, 0])
    with pytest.raises(DownloadError) as caught:
        untar_data(url)
    assert "abc123" not in str(caught.value)
    assert "abc123" not in (home / "archive/.toy.tgz.part.json").read_text()
    server.answers["/toy.tgz?token=abc123"].cut = [None]
    assert "abc123" not in (untar_data(url) / ".treadle.json").read_text()
    assert shown("https://me:secret@host:8/a?b#c") == "https://host:8/a"


# --- several processes, and killed ones ---

READY = "import sys; import treadle.data as d; print('ready', flush=True); sys.stdin.readline();"


def start(code: str) -> subprocess.Popen[str]:
    """A Python that has imported us and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", READY + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_processes_that_race_fetch_once_and_all_succeed(server: Server, home: Path) -> None:
    url = server.serve("/toy.tgz", tar_of({f"toy/{i}.txt": bytes(1000) for i in range(200)}))
    code = f"print(len(list(d.untar_data({url!r}).iterdir())))"
    processes = [start(code) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("201\n", 0), err
    assert len(server.asked) == 1
    assert [path.name for path in (home / "data").iterdir()] == ["toy"]
    assert [path.name for path in (home / "archive").iterdir()] == ["toy.tgz"]


@pytest.mark.parametrize("when", ["downloading", "unpacking"])
def test_after_a_kill_the_next_call_succeeds(server: Server, home: Path, when: str) -> None:
    """The lock dies with its process, the part is gone on with, the half folder is cleared."""
    body = tar_of({f"toy/{i}.txt": os.urandom(200) for i in range(3000)})
    url = server.serve("/toy.tgz", body, stall=30 if when == "downloading" else 0)
    process = start(f"d.untar_data({url!r})")
    part, scratch = home / "archive/.toy.tgz.part", home / "data/.toy.part"
    try:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            if when == "downloading" and part.exists() and part.stat().st_size >= 1000:
                break
            if when == "unpacking" and (scratch / "toy/5.txt").exists():
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (home / "data/toy").exists()
    server.answers["/toy.tgz"].stall = 0
    path = untar_data(url)
    assert len(list(path.iterdir())) == 3001
    assert everything_in(home)[:3] == ["archive", "archive/toy.tgz", "data"]
    assert [path.name for path in (home / "data").iterdir()] == ["toy"]
    assert [ask.range for ask in server.asked[1:]] == (
        ["bytes=1000-"] if when == "downloading" else []
    )


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from treadle.data import untar_data
url, goal = sys.argv[1], Path(sys.argv[2])
untar_data(url, force_download=True)  # imports, and tells how long it takes
start = time.perf_counter()
untar_data(url, force_download=True)
whole, usual = 0, time.perf_counter() - start
goal.rename(goal.parent.parent / "first")
for kill in range(50):
    child = os.fork()
    if not child:
        untar_data(url)
        os._exit(0)
    time.sleep(random.Random(kill).uniform(0, 1.5) * usual)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if goal.exists():  # then it is complete
        assert len(list(goal.iterdir())) == 201, kill
        whole += 1
        goal.rename(goal.parent.parent / str(kill))
        if kill % 2:
            (goal.parent.parent / "archive" / "toy.tgz").unlink()
untar_data(url)
print(whole)
"""


def test_fifty_kills_at_any_moment(server: Server, home: Path) -> None:
    """The folder is never seen half, and in the end nothing but the data is left."""
    url = server.serve("/toy.tgz", tar_of({f"toy/{i}.txt": os.urandom(200) for i in range(200)}))
    goal = home / "data" / "toy"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url, str(goal)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 50  # some were killed, some were not
    manifest, differences = verify(goal)
    assert len(manifest.files) == 200 and not any(differences)
    assert everything_in(home / "archive") == ["toy.tgz"]
    assert [path.name for path in (home / "data").iterdir()] == ["toy"]


def test_who_waits_is_told(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("treadle.data.home._PATIENCE", 0.05)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / "toy"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    threading.Timer(0.3, leave.set).start()
    with locked(tmp_path / "toy"):
        assert leave.is_set()
    thread.join()
    assert capsys.readouterr().err == (
        f"Waiting for another process that is at work on {tmp_path / 'toy'}.\n"
    )
    assert everything_in(tmp_path) == []


def test_one_at_a_time_though_the_lock_file_comes_and_goes(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(15):
            with scratch_folder(tmp_path / "toy"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert everything_in(tmp_path) == []


def test_a_folder_that_is_there_stands_unless_it_is_replaced(tmp_path: Path) -> None:
    for name in ("goal", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert install(tmp_path / "new", tmp_path / "goal") == tmp_path / "goal"
    assert everything_in(tmp_path / "goal") == ["goal"]
    install(tmp_path / "new", tmp_path / "goal", replace=True)
    assert everything_in(tmp_path) == ["goal", "goal/new"]
    assert install(tmp_path / "absent", tmp_path / "goal", replace=True) == tmp_path / "goal"
    assert everything_in(tmp_path) == ["goal", "goal/new"]  # put back
    with pytest.raises(FileNotFoundError):
        install(tmp_path / "absent", tmp_path / "other")


def test_the_data_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_home() == tmp_path / "home"
    monkeypatch.delenv("TREADLE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_home() == tmp_path / "cache" / "treadle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert data_home() == tmp_path / "me" / ".cache" / "treadle"
