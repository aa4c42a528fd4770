"""Archives that nobody should unpack, made here, and harmless: how each is built, which member its
refusal names and what it says. `CORPUS` has the thirty kinds whose count is told in the docs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import pytest

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


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstd_of,
}


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


def set_uid() -> bytes:
    info, body = file("toy/a")
    info.mode = 0o6777
    return tar_of((info, body))


def million() -> bytes:
    """A header repeated a million times shrinks to next to nothing."""
    return bz2.compress(header("toy/" + "d" * 50, kind=tarfile.DIRTYPE) * 2000) * 500


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
    "million": (million, "toy/" + "d" * 50, "an archive bomb"),
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

INNER = gzip.compress(tar_of(file("../evil")))
CORPUS: dict[str, str | tuple[Callable[[], bytes], dict[str, bytes]]] = {
    "tar dot-dot": "dot-dot",
    "tar absolute": "absolute",
    "tar symlink out": "symlink out",
    "tar file through a symlink": "file through a symlink",
    "tar hard link out": "hard link out",
    "tar chain": "chain",
    "tar long-path chain": "long chain",
    "tar device": "device",
    "tar FIFO": "fifo",
    "tar set-uid": (set_uid, {"a": b"text"}),
    "tar sparse": "sparse",
    "tar PAX path override": "pax path",
    "tar GNU long name": "gnu long name",
    "tar duplicate": "twice",
    "tar case twins": (
        lambda: tar_of(file("toy/name", b"1"), file("toy/NAME", b"2")),
        {"name": b"1", "NAME": b"2"},
    ),
    "tar Unicode twins": (
        lambda: tar_of(file("toy/\u00e9", b"1"), file("toy/e\u0301", b"2")),
        {"\u00e9": b"1", "e\u0301": b"2"},
    ),
    "tar negative or huge size": "huge size",
    "tar million members": "million",
    "tar ratio bomb": "ratio bomb",
    "tar nested": (lambda: tar_of(file("toy/inner.tgz", INNER)), {"inner.tgz": INNER}),
    "tar truncated": "truncated",
    "tar bad checksum": "bad checksum",
    "tar concatenated": "concatenated",
    "zip dot-dot": "zip dot-dot",
    "zip backslash": "zip backslash",
    "zip absolute": "zip absolute",
    "zip symlink bit": "zip symlink bit",
    "zip encrypted": "zip encrypted",
    "zip overlapping entries": "zip overlapping",
    "zip ratio bomb": "zip ratio bomb",
}
"""Each kind's entry in `REFUSED`; or, of those that come in harmlessly, how it is built and what it
unpacks to."""
