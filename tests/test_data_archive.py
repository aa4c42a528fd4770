"""Unpacking: every format, against what was packed; and hostile archives, each with its end."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.data.archive import Unpacked, unpack
from treadle.data.download import untar_data
from treadle.data.home import NoRoomError, data_home
from treadle.data.unpacking import Limits, Unpacking
from treadle.errors import DataError, TreadleError, UsageError

Member = tuple[tarfile.TarInfo, bytes | None]
TREE = {"toy/a.txt": b"A", "toy/b/c.bin": bytes(range(256)) * 1200, "toy/b/empty": b""}


def file(name: str, body: bytes = b"text") -> Member:
    return tarfile.TarInfo(name), body


def special(name: str, kind: bytes, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def link(name: str, target: str) -> Member:
    return special(name, tarfile.SYMTYPE, target)


def tar_of(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for info, body in members:
            if body is not None:
                info.size = len(body)
            tar.addfile(info, None if body is None else io.BytesIO(body))
    return stream.getvalue()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that declares any size; the data, if any, are the caller's."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def zip_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, body in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = (
                name,
                method,
            )  # as given: the constructor mends names
            archive.writestr(info, body)
    return stream.getvalue()


def zip_with(body: bytes, **fields: int) -> bytes:
    """A zip of `toy/a` and of `toy/b`, whose record in the directory has other `fields`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/a", b"text")
        archive.writestr("toy/b", body)
        for name, value in fields.items():
            setattr(archive.infolist()[1], name, value)
    return stream.getvalue()


def zstd_of(body: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.compress(body)
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(body)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstd_of,
}


def put(folder: Path, body: bytes, limits: Limits | None = None) -> Unpacked:
    """Unpack an archive of these bytes into `folder / "out"`."""
    (folder / "archive").write_bytes(body)
    (folder / "out").mkdir()
    return unpack(folder / "archive", folder / "out", limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# --- what is honest ---


@pytest.mark.parametrize("suffix", [*COMPRESSIONS, ".zip"])
def test_each_format_unpacks_to_what_was_packed(suffix: str, tmp_path: Path) -> None:
    if suffix == ".zip":
        body = zip_of(*TREE.items())
    else:
        body = COMPRESSIONS[suffix](tar_of(*(file(name, data) for name, data in TREE.items())))
    (tmp_path / f"toy{suffix}").write_bytes(body)
    path = untar_data((tmp_path / f"toy{suffix}").as_uri())
    assert path == data_home() / "data" / "toy"
    found = contents(path)
    assert found.pop(".treadle.json")
    assert found == {name.removeprefix("toy/"): data for name, data in TREE.items()}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_in_any_dialect_of_tar(form: int, tmp_path: Path) -> None:
    long = "toy/" + "/".join(["d" * 60] * 2) + "/" + "f" * 90
    names = [long] if form == tarfile.USTAR_FORMAT else [long, "toy/é" + "x" * 200]
    unpacked = put(tmp_path, tar_of(*(file(name) for name in names), form=form))
    assert sorted("toy/" + name for name in unpacked.files) == sorted(names)


def test_what_is_returned_tells_size_and_hash_of_each_file(tmp_path: Path) -> None:
    unpacked = put(tmp_path, zip_of(*TREE.items()))
    assert unpacked.folder == tmp_path / "out" / "toy"
    assert unpacked.files == {
        name.removeprefix("toy/"): (len(data), hashlib.sha256(data).hexdigest())
        for name, data in TREE.items()
    }


def test_repeated_folders_are_fine_and_several_tops_stay_together(tmp_path: Path) -> None:
    folder = special("toy", tarfile.DIRTYPE)
    here = special("./", tarfile.DIRTYPE)
    unpacked = put(tmp_path, tar_of(here, folder, file("./toy/a"), folder, file("other/b")))
    assert unpacked.folder == tmp_path / "out"
    assert unpacked.files.keys() == {"toy/a", "other/b"} == contents(tmp_path / "out").keys()


def test_a_single_file_stays_in_the_folder(tmp_path: Path) -> None:
    assert put(tmp_path, tar_of(file("a.csv"))).folder == tmp_path / "out"


def test_a_folder_in_a_zip(tmp_path: Path) -> None:
    put(tmp_path, zip_of(("toy/", b""), ("toy/empty/", b""), ("toy/a", b"1")))
    assert (tmp_path / "out/toy/empty").is_dir()


@pytest.mark.parametrize("body", [tar_of(), gzip.compress(tar_of()), zip_of()])
def test_an_archive_without_members(body: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        put(tmp_path, body)


def test_without_a_package_for_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    if sys.version_info >= (3, 14):
        pytest.skip("this Python reads zstd by itself")
    (tmp_path / "toy.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd....")
    with pytest.raises(UsageError, match="install the package `zstandard`"):
        untar_data((tmp_path / "toy.tar.zst").as_uri())
    assert (data_home() / "archive" / "toy.tar.zst").is_file()  # it is not the archive's fault


NAMES = st.text("abcé.-_ ", min_size=1, max_size=12).filter(lambda name: name.strip(". ") == name)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=600), min_size=1
)


def is_a_tree(files: dict[str, bytes]) -> bool:
    return not any(a.startswith(b + "/") for a in files for b in files)


@settings(max_examples=60, deadline=None)
@given(TREES.filter(is_a_tree), st.sampled_from(["tar", "tar.gz", "tar.xz", "zip"]))
def test_any_tree_comes_back(tmp_path_factory, files: dict[str, bytes], kind: str) -> None:
    if kind == "zip":
        body = zip_of(*files.items())
    else:
        body = COMPRESSIONS[f".{kind}"](tar_of(*(file(name, data) for name, data in files.items())))
    unpacked = put(tmp_path_factory.mktemp("tree"), body)
    assert contents(unpacked.folder).keys() == unpacked.files.keys()
    top = {name.split("/")[0] for name in files}
    cut = len(next(iter(top))) + 1 if unpacked.folder.name != "out" else 0
    assert contents(unpacked.folder) == {name[cut:]: data for name, data in files.items()}


# --- what is not ---


def bad_checksum() -> bytes:
    body = bytearray(tar_of(file("toy/a"), file("toy/b")))
    body[1024] ^= 1  # in the second header
    return bytes(body)


def pax(records: dict[str, str], *members: Member) -> bytes:
    for info, _ in members:
        info.pax_headers = records
    return tar_of(*members, form=tarfile.PAX_FORMAT)


def long_chain() -> bytes:
    """The shape of CVE-2025-4517: links whose resolved path is longer than the system resolves."""
    part, members, path = "d" * 247, [], ""
    for step in "abcdefghijklmnop":
        members += [special(path + part, tarfile.DIRTYPE), link(path + step, part)]
        path += part + "/"
    return tar_of(*members, link("/".join("abcdefghijklmnop") + "/" + "l" * 254, "../" * 16))


def symlink_bit() -> bytes:
    info = zipfile.ZipInfo("toy/l")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


def overlapping() -> bytes:
    """Two records of the directory that name one and the same kernel of data."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/a", bytes(100_000))
        archive.filelist.append(archive.filelist[0])
    return stream.getvalue()


def quoted() -> bytes:
    """Fifield's bomb: a record whose data are the local header and the data of the next one."""
    kernel = zip_of(("toy/b", bytes(100_000)))
    directory = kernel.index(b"PK\x01\x02")
    local = kernel[:directory]
    head = struct.pack("<5sHH", b"\x00" + struct.pack("<HH", len(local), len(local) ^ 0xFFFF), 0, 0)
    first = head[:5] + local  # a stored deflate block over all of it
    crc = zlib.crc32(local)
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(first), len(local), 5, 0)
    start = b"PK\x03\x04" + fields + b"toy/a"
    second_at = len(start) + 5
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0)
    old = kernel[directory : kernel.index(b"PK\x05\x06")]
    moved = old[:42] + struct.pack("<I", second_at) + old[46:]
    records = entry + b"toy/a" + moved
    at = len(start) + len(first)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(records), at, 0)
    return start + first + records + end


def encrypted() -> bytes:
    body = bytearray(zip_of(("toy/a", b"secret")))
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        body[body.index(magic) + flags] |= 1
    return bytes(body)


def misnamed() -> bytes:
    body = zip_of(("toy/a", b"1"))
    return body.replace(b"toy/a", b"toy/z", 1)  # in the local header only


ZEROS = gzip.compress(bytes(80 << 20), 9)

# archive, the member that is named (None: none), what is said
REFUSED: dict[str, tuple[Callable[[], bytes], str | None, str]] = {
    "dot-dot": (
        lambda: tar_of(file("toy/a"), file("toy/../../evil")),
        "toy/../../evil",
        "leads out",
    ),
    "dot-dot folder": (lambda: tar_of(special("a/..", tarfile.DIRTYPE)), "a/..", "leads out"),
    "absolute": (lambda: tar_of(file("/etc/evil")), "/etc/evil", "absolute name"),
    "drive": (lambda: tar_of(file("C:evil")), "C:evil", "absolute name"),
    "share": (lambda: tar_of(file(r"\\host\evil")), r"\\host\evil", "absolute name"),
    "backslash": (lambda: tar_of(file(r"toy\evil")), r"toy\evil", "has a backslash"),
    "backslash out": (lambda: tar_of(file(r"toy\..\..\evil")), r"toy\..\..\evil", "leads out"),
    "control": (lambda: tar_of(file("toy/\x1b[31m")), "toy/\x1b[31m", "control character"),
    "nul": (lambda: pax({"path": "toy/a\0b"}, file("t")), "toy/a\0b", "control character"),
    "symlink out": (lambda: tar_of(link("toy/l", "/etc")), "toy/l", "is a link (to '/etc')"),
    "symlink in": (lambda: tar_of(file("toy/a"), link("toy/l", "a")), "toy/l", "is a link"),
    "file through a symlink": (
        lambda: tar_of(link("toy/l", "/tmp"), file("toy/l/evil")),
        "toy/l",
        "is a link",
    ),
    "hard link out": (
        lambda: tar_of(special("toy/h", tarfile.LNKTYPE, "/etc/passwd")),
        "toy/h",
        "is a link (to '/etc/passwd')",
    ),
    "chain": (
        lambda: tar_of(link("a", "."), link("a/b", ".."), file("a/b/evil")),
        "a",
        "is a link",
    ),
    "long chain": (long_chain, "a", "is a link"),
    "device": (lambda: tar_of(special("toy/null", tarfile.CHRTYPE)), "toy/null", "neither a file"),
    "disk": (lambda: tar_of(special("toy/sda", tarfile.BLKTYPE)), "toy/sda", "neither a file"),
    "fifo": (lambda: tar_of(special("toy/pipe", tarfile.FIFOTYPE)), "toy/pipe", "neither a file"),
    "sparse": (lambda: header("toy/s", 0, tarfile.GNUTYPE_SPARSE), "toy/s", "sparse"),
    "sparse by pax": (
        lambda: pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999999999"}, file("toy/s")),
        "toy/s",
        "sparse",
    ),
    "sparse map of no numbers": (
        lambda: pax({"GNU.sparse.map": "0,x"}, file("s")),
        None,
        "damaged",
    ),
    "file named as a folder": (
        lambda: header("toy/") + bytes(1024),
        "toy/",
        "a file with the name of a folder",
    ),
    "bad bz2": (lambda: b"BZh9" + bytes(100), None, "Invalid data stream"),
    "bad xz": (lambda: b"\xfd7zXZ\x00" + bytes(100), None, "damaged"),
    "bad zst": (lambda: zstd_of(tar_of(file("toy/a")))[:40] + bytes(100), None, "damaged"),
    "pax path": (lambda: pax({"path": "../evil"}, file("toy/a")), "../evil", "leads out"),
    "gnu long name": (
        lambda: tar_of(file("../" + "d/" * 80 + "evil")),
        "../" + "d/" * 80 + "evil",
        "leads out",
    ),
    "twice": (
        lambda: tar_of(file("toy/a", b"1"), file("toy/./a", b"2")),
        "toy/./a",
        "appears twice",
    ),
    "below a file": (lambda: tar_of(file("toy/a"), file("toy/a/b")), "toy/a/b", "below a file"),
    "over a folder": (lambda: tar_of(file("toy/a/b"), file("toy/a")), "toy/a", "where a folder is"),
    "folder over a file": (
        lambda: tar_of(file("toy/a"), special("toy/a", tarfile.DIRTYPE)),
        "toy/a",
        "a folder where a file is",
    ),
    "long part": (lambda: tar_of(file("toy/" + "n" * 256)), "toy/" + "n" * 256, "too long"),
    "long path": (lambda: tar_of(file("n/" * 520 + "f")), "n/" * 520 + "f", "too long"),
    "deep": (lambda: tar_of(file("n/" * 70 + "f")), "n/" * 70 + "f", "64 folders deep"),
    "negative size": (lambda: header("toy/a", -512) + bytes(1024), "toy/a", "size of -512 bytes"),
    "huge size": (lambda: header("toy/a", 1 << 60) + bytes(1024), "toy/a", "are allowed"),
    "huge long name": (
        lambda: header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME) + bytes(1 << 16),
        None,
        "8589934592 bytes of names",
    ),
    "negative long name": (
        lambda: header("././@LongLink", -512, tarfile.GNUTYPE_LONGNAME) + bytes(1 << 16),
        None,
        "damaged",
    ),
    "ratio bomb": (
        lambda: gzip.compress(header("toy/z", 80 << 20) + bytes(80 << 20), 9),
        "toy/z",
        "more than 200 times",
    ),
    "xz bomb": (
        lambda: lzma.compress(header("toy/z", 80 << 20) + bytes(80 << 20), preset=0),
        "toy/z",
        "more than 200 times",
    ),
    "bz2 bomb": (
        lambda: bz2.compress(header("toy/z", 80 << 20) + bytes(80 << 20)),
        "toy/z",
        "more than 200 times",
    ),
    "zst bomb": (
        lambda: zstd_of(header("toy/z", 80 << 20) + bytes(80 << 20)),
        "toy/z",
        "more than 200 times",
    ),
    "bomb after the end": (
        lambda: gzip.compress(tar_of(file("toy/a"))) + ZEROS,
        "toy/a",
        "200 times",
    ),
    "truncated": (lambda: tar_of(file("toy/a", bytes(9000)))[:5000], "toy/a", "cut off"),
    "truncated between": (lambda: tar_of(file("toy/a"), file("toy/b"))[:1024], "toy/a", "cut off"),
    "bad checksum": (bad_checksum, "toy/a", "header cannot be read"),
    "concatenated": (
        lambda: tar_of(file("toy/a")) + tar_of(file("toy/evil")),
        "toy/a",
        "data after its end mark",
    ),
    "zip dot-dot": (lambda: zip_of(("toy/../../evil", b"")), "toy/../../evil", "leads out"),
    "zip backslash": (lambda: zip_of((r"toy\..\evil", b"")), r"toy\..\evil", "leads out"),
    "zip absolute": (lambda: zip_of(("/etc/evil", b"")), "/etc/evil", "absolute name"),
    "zip drive": (lambda: zip_of((r"C:\evil", b"")), r"C:\evil", "absolute name"),
    "zip nul": (lambda: zip_of(("toy/a\0.txt", b"")), "toy/a\0.txt", "control character"),
    "zip symlink bit": (symlink_bit, "toy/l", "is a link"),
    "zip fifo": (
        lambda: zip_with(b"", external_attr=0o10644 << 16),
        "toy/b",
        "neither a file nor a folder",
    ),
    "zip encrypted": (encrypted, "toy/a", "is encrypted"),
    "zip method": (
        lambda: zip_of(("toy/a", b"1"), method=zipfile.ZIP_LZMA),
        "toy/a",
        "compressed by method 14",
    ),
    "zip twice": (
        lambda: zip_of(("toy/a", b"1"), ("toy/b", b"2")).replace(b"toy/b", b"toy/a"),
        "toy/a",
        "appears twice",
    ),
    "zip overlapping": (overlapping, "toy/a", "shares bytes"),
    "zip quoted": (quoted, "toy/b", "shares bytes"),
    "zip ratio bomb": (lambda: zip_of(("toy/z", bytes(80 << 20))), "toy/z", "200 times"),
    "zip declares less": (
        lambda: zip_with(b"x" * 9000, file_size=10, CRC=zlib.crc32(b"x" * 10)),
        "toy/b",
        "declares 10 bytes and holds more",
    ),
    "zip declares more": (
        lambda: zip_with(b"x" * 9000, file_size=9001),
        "toy/b",
        "declares 9001 bytes and holds 9000",
    ),
    "zip bad crc": (lambda: zip_with(b"x" * 9000, CRC=1), "toy/b", "Bad CRC-32"),
    "zip misnamed": (misnamed, "toy/a", "differ"),
    "zip far header": (lambda: zip_with(b"x", header_offset=3), None, "not where the directory"),
    "zip cut off": (lambda: zip_of(("toy/a", bytes(9000)))[:-30], None, "not a zip"),
    "a page": (lambda: b"<html>a portal's page</html>" * 50, None, "damaged or not an archive"),
    "nothing": (lambda: b"", None, "damaged or not an archive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_or_damaged_is_refused_by_name_and_nothing_stays(name: str, tmp_path: Path) -> None:
    build, member, said = REFUSED[name]
    (tmp_path / "toy.tar").write_bytes(build())  # what it is its first bytes say
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        untar_data((tmp_path / "toy.tar").as_uri())
    assert time.process_time() - start < 5
    assert said in str(caught.value)
    assert member is None or repr(member) in str(caught.value)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["home", "home/archive", "home/data", "toy.tar"]


def test_too_many_members(tmp_path: Path) -> None:
    body = gzip.compress(b"".join(header(f"toy/{i}") for i in range(1200)) + bytes(1024))
    with pytest.raises(DataError, match=r"'toy/1000' is one more than the 1,000 that are allowed"):
        put(tmp_path, body, Limits(members=1000))


def test_a_million_members_are_a_bomb_long_before_the_last(tmp_path: Path) -> None:
    """By the default limits: a header repeated a million times shrinks to next to nothing."""
    start = time.process_time()
    block = bz2.compress(header("toy/" + "d" * 50, kind=tarfile.DIRTYPE) * 2000)
    with pytest.raises(DataError, match="an archive bomb"):
        put(tmp_path, block * 500)
    assert time.process_time() - start < 10


def test_larger_than_the_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'toy/b/c\.bin' makes it larger than the 0\.1 MB"):
        put(tmp_path, tar_of(*(file(*item) for item in TREE.items())), Limits(size=50_000))
    assert not (tmp_path / "out/toy/b/c.bin").exists()  # refused before it was written


def test_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = (100, 90, 300 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free[2]}))
    body = header("toy/z", 400 << 20) + bytes(1024)
    loose = Limits(ratio=1e9)
    with pytest.raises(NoRoomError, match=r"needs 419\.4 MB, .* has 314\.6 MB free"):
        put(tmp_path, body, loose)


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"x" * 100)
    into = Unpacking(tmp_path / "archive", tmp_path, Limits())

    def body() -> Iterator[bytes]:
        yield b"some"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoRoomError, match="became full while archive was unpacked"):
        into.add_file("toy", body())


def test_a_long_header_costs_no_memory(tmp_path: Path) -> None:
    body = gzip.compress(header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME)) + ZEROS
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            put(tmp_path, body)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


# --- what is odd, and comes in harmlessly ---


def test_set_uid_bits_are_dropped(tmp_path: Path) -> None:
    info, body = file("toy/a")
    info.mode = 0o6777
    put(tmp_path, tar_of((info, body)))
    assert (tmp_path / "out/toy/a").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("twin", [("toy/name", "toy/NAME"), ("toy/é", "toy/e\u0301")])
def test_twins_by_case_or_by_spelling_are_two_files_or_refused(
    twin: tuple[str, str], tmp_path: Path
) -> None:
    """Two where the file system tells them apart, as here; refused where one would be lost."""
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / twin[0].split("/")[1]).touch()
    same = (tmp_path / "probe" / twin[1].split("/")[1]).exists()
    body = tar_of(file(twin[0], b"1"), file(twin[1], b"2"))
    if same:
        with pytest.raises(DataError, match="appears twice"):
            put(tmp_path, body)
    else:
        assert contents(put(tmp_path, body).folder) == {
            twin[0].removeprefix("toy/"): b"1",
            twin[1].removeprefix("toy/"): b"2",
        }


def test_an_archive_in_an_archive_stays_packed(tmp_path: Path) -> None:
    """So a quine (an archive that holds itself) unpacks once, to itself."""
    inner = gzip.compress(tar_of(file("../evil")))
    unpacked = put(tmp_path, tar_of(file("toy/inner.tgz", inner)))
    assert contents(unpacked.folder) == {"inner.tgz": inner}


def test_a_list_that_is_in_the_archive_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "toy.tar").write_bytes(tar_of(file("toy/a"), file("toy/.treadle.json", b"old")))
    path = untar_data((tmp_path / "toy.tar").as_uri())
    assert (path / ".treadle.json").read_bytes() != b"old"


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    plain = tar_of(file("toy/a", b"Q" * 3000))
    body = bytearray(gzip.compress(plain, compresslevel=0))
    body[body.index(b"QQQQ") + 50] ^= 1
    with pytest.raises(DataError, match="damaged"):
        put(tmp_path, bytes(body))


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip"])
def test_a_cut_is_found_wherever_it_is(suffix: str, tmp_path_factory) -> None:
    members = [(f"toy/{i}", hashlib.sha256(bytes([i])).digest() * 20) for i in range(40)]
    if suffix == ".zip":
        whole = zip_of(*members)
    else:
        whole = COMPRESSIONS[suffix](tar_of(*(file(*member) for member in members)))
    for tenth in range(10):
        with pytest.raises(DataError):
            put(tmp_path_factory.mktemp("cut"), whole[: len(whole) * tenth // 10])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_ends_in_a_sentence_and_stays_inside(tmp_path_factory, data) -> None:
    kind = data.draw(st.sampled_from(["tar", "pax", "zip"]))
    if kind == "zip":
        body = bytearray(zip_of(*TREE.items()))
    else:
        form = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT
        info, text = file("toy/" + "é" * 80)
        body = bytearray(tar_of((info, text), file("toy/a"), file("toy/b/c"), form=form))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damage")
    try:
        put(folder, bytes(body))
    except TreadleError as error:
        assert str(folder) in str(error)
    assert {path.name for path in folder.iterdir()} == {"archive", "out"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
