"""untar_data against a real server on localhost, real archives, and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from treadle.data import URLs, data_home, untar_data
from treadle.data.archive import unpack
from treadle.errors import DataError, DownloadError, UsageError


def tar_of(*members: tuple[tarfile.TarInfo, bytes | None]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for info, body in members:
            if body is not None:
                info.size = len(body)
            tar.addfile(info, None if body is None else io.BytesIO(body))
    return stream.getvalue()


def file(name: str, body: bytes = b"text") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), body


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, None]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


GOOD = tar_of(special("toy", tarfile.DIRTYPE), file("toy/a.txt", b"A"), file("toy/b/c.txt", b"C"))


class Server:
    """Serves `answers`: path -> (status, body, declared length)."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes, int]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, body, length = outer.answers.get(self.path, (404, b"no", 2))
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def serve(self, path: str, body: bytes, status: int = 200, length: int | None = None) -> str:
        self.answers[path] = (status, body, len(body) if length is None else length)
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
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    return tmp_path / "home"


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_is_unpacked_once_and_the_second_call_needs_no_network(
    server: Server, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.serve("/files/toy.tgz", GOOD)
    path = untar_data(url)
    assert path == home / "data" / "toy"
    assert everything_in(path) == ["a.txt", "b", "b/c.txt"]
    assert everything_in(home) == [
        *("archive", "archive/toy.tgz", "data"),
        *("data/toy", "data/toy/a.txt", "data/toy/b", "data/toy/b/c.txt"),
    ]
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Downloaded toy.tgz: 0.0 MB in ") and err.count("\n") == 1
    server.stop()
    assert untar_data(url) == path
    assert server.asked == ["/files/toy.tgz"]


def test_on_a_terminal_there_is_a_bar(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    untar_data(server.serve("/toy.tgz", GOOD))
    out, err = capsys.readouterr()
    assert out == "" and "toy.tgz" in err and "Downloaded" not in err


def test_force_download_replaces_the_folder(server: Server, tmp_path: Path) -> None:
    url = server.serve("/toy.tgz", GOOD)
    path = untar_data(url, data=tmp_path / "mine")
    assert path == tmp_path / "mine" / "toy"
    server.serve("/toy.tgz", tar_of(file("toy/new.txt")))
    assert untar_data(url, data=tmp_path / "mine", force_download=True) == path
    assert everything_in(path) == ["new.txt"]
    assert everything_in(tmp_path / "mine") == ["toy", "toy/new.txt"]


def test_a_short_body_leaves_nothing(server: Server, home: Path) -> None:
    url = server.serve("/toy.tgz", GOOD[:100], length=len(GOOD))
    with pytest.raises(DownloadError, match=f"{url} was cut off: got 100 of {len(GOOD)} bytes"):
        untar_data(url)
    assert everything_in(home) == ["archive"]


def test_an_error_status_names_url_status_and_mend(server: Server, home: Path) -> None:
    with pytest.raises(DownloadError, match=r"toy\.tgz answered 404 .*TREADLE_DATA_MIRROR"):
        untar_data(server.url + "/toy.tgz")
    assert everything_in(home) == ["archive"]


def test_a_refused_connection(server: Server, home: Path) -> None:
    url = server.url + "/toy.tgz"
    server.stop()
    with pytest.raises(DownloadError, match=r"could not be reached.*TREADLE_DATA_MIRROR"):
        untar_data(url)
    assert everything_in(home) == ["archive"]


def test_a_server_that_falls_silent(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr("treadle.data.download._TIMEOUT", 0.2)
    release = threading.Event()

    def hang(self: BaseHTTPRequestHandler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x")
        self.wfile.flush()
        release.wait(5)

    monkeypatch.setattr(server.http.RequestHandlerClass, "do_GET", hang, raising=False)
    try:
        with pytest.raises(DownloadError, match=r"stopped answering \(timed out\)"):
            untar_data(server.url + "/toy.tgz")
    finally:
        release.set()


@pytest.mark.parametrize(
    "body",
    [b"<html>a portal's page</html>", GOOD[: len(GOOD) // 2], b""],
    ids=["html", "truncated", "empty"],
)
def test_a_damaged_archive_is_named_and_removed(server: Server, home: Path, body: bytes) -> None:
    url = server.serve("/toy.tgz", body)
    archive = home / "archive" / "toy.tgz"
    with pytest.raises(DataError, match=f"{archive} is damaged") as caught:
        untar_data(url)
    assert url in caught.value.__notes__[0]
    assert everything_in(home) == ["archive", "data"]
    server.serve("/toy.tgz", GOOD)
    assert untar_data(url).is_dir()


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    plain = bytearray(gzip.decompress(tar_of(file("toy/a", b"Q" * 3000))))
    body = bytearray(gzip.compress(bytes(plain), compresslevel=0))
    body[body.index(b"QQQQ") + 50] ^= 1
    (tmp_path / "toy.tgz").write_bytes(body)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "toy.tgz", tmp_path / "out")


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
    folder = tmp_path / "a mirror"
    folder.mkdir()
    (folder / "imagenette2-160.tgz").write_bytes(GOOD)
    server.serve("/base/imagenette2-160.tgz", GOOD)
    monkeypatch.setenv("TREADLE_DATA_MIRROR", mirror(folder, server.url + "/base"))
    assert everything_in(untar_data(URLs.IMAGENETTE_160)) == ["a.txt", "b", "b/c.txt"]


def test_a_mirror_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(tmp_path))
    with pytest.raises(DownloadError, match=rf"{tmp_path.as_uri()}/imagenette2\.tgz"):
        untar_data(URLs.IMAGENETTE)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("ftp://host/toy.tgz", "scheme"),
        ("http://host/toy.zip", r"does not name a tar archive"),
        ("http://host/", "does not name a tar archive"),
        ("http://host/.tgz", "does not name a tar archive"),
    ],
)
def test_addresses_that_cannot_be_meant(url: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        untar_data(url)


def test_urls_follow_the_public_pattern() -> None:
    assert URLs.IMAGENETTE_160 == ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz")
    assert URLs.IMAGEWOOF_160.endswith("/imagewoof2-160.tgz")


ATTACKS = {
    "absolute": ([file("/etc/evil")], "absolute name"),
    "drive": ([file("C:evil")], "absolute name"),
    "dot-dot": ([file("toy/a"), file("toy/../../evil")], "leads out"),
    "dot-dot folder": ([special("toy/..", tarfile.DIRTYPE)], "leads out"),
    "symlink out": ([special("toy/l", tarfile.SYMTYPE, "/etc")], "is a link"),
    "symlink in": ([file("toy/a"), special("toy/l", tarfile.SYMTYPE, "a")], "is a link"),
    "hard link": ([file("toy/a"), special("toy/l", tarfile.LNKTYPE, "toy/a")], "is a link"),
    "device": ([special("toy/null", tarfile.CHRTYPE)], "neither a file nor a folder"),
    "fifo": ([special("toy/pipe", tarfile.FIFOTYPE)], "neither a file nor a folder"),
    "twice": ([file("toy/a", b"1"), file("toy/./a", b"2")], "appears twice"),
    "below a file": ([file("toy/a"), file("toy/a/b")], "cannot be unpacked"),
    "over a folder": ([file("toy/a/b"), file("toy/a")], "cannot be unpacked"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_member_is_named_and_nothing_stays(
    server: Server, home: Path, tmp_path: Path, name: str
) -> None:
    members, match = ATTACKS[name]
    url = server.serve("/toy.tgz", tar_of(*members))
    with pytest.raises(DataError, match=match) as caught:
        untar_data(url)
    assert repr(members[-1][0].name) in str(caught.value)
    assert everything_in(tmp_path) == ["home", "home/archive", "home/data"]


def test_set_uid_bits_are_dropped(tmp_path: Path) -> None:
    info, body = file("toy/a")
    info.mode = 0o6777
    (tmp_path / "t.tgz").write_bytes(tar_of((info, body)))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "t.tgz", tmp_path / "out")
    assert (tmp_path / "out/toy/a").stat().st_mode & 0o7000 == 0


def test_repeated_folders_are_fine_and_several_tops_stay_together(tmp_path: Path) -> None:
    folder = special("toy", tarfile.DIRTYPE)
    (tmp_path / "t.tgz").write_bytes(tar_of(folder, file("toy/a"), folder, file("other/b")))
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "t.tgz", tmp_path / "out") == tmp_path / "out"
    assert everything_in(tmp_path / "out") == ["other", "other/b", "toy", "toy/a"]


def test_an_archive_without_members(tmp_path: Path) -> None:
    (tmp_path / "t.tgz").write_bytes(tar_of())
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="is empty"):
        unpack(tmp_path / "t.tgz", tmp_path / "out")


def test_processes_that_race_all_succeed(server: Server, home: Path) -> None:
    many = [file(f"toy/{i}.txt", bytes(1000)) for i in range(200)]
    url = server.serve("/toy.tgz", tar_of(*many))
    code = (
        "import sys, treadle.data as d; print('ready', flush=True); sys.stdin.readline();"
        f"p = d.untar_data({url!r}); print(len(list(p.iterdir())))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[0] == "200\n"
        assert process.returncode == 0
    assert sorted(path.name for path in (home / "data").iterdir()) == ["toy"]
    assert sorted(path.name for path in (home / "archive").iterdir()) == ["toy.tgz"]


def test_the_data_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_home() == tmp_path / "home"
    monkeypatch.delenv("TREADLE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_home() == tmp_path / "cache" / "treadle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert data_home() == tmp_path / "me" / ".cache" / "treadle"
