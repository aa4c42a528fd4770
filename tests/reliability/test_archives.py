"""Unpacking: every format, against what was packed; and hostile archives, each with its end."""

from __future__ import annotations

import errno
import gzip
import hashlib
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import watch
from archive_kinds import (
    COMPRESSIONS,
    CORPUS,
    INNER,
    REFUSED,
    TREE,
    ZEROS,
    file,
    header,
    special,
    tar_of,
    zip_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.data.archive import Unpacked, unpack
from treadle.data.download import untar_data
from treadle.data.home import NoRoomError, data_home
from treadle.data.unpacking import Limits, Unpacking
from treadle.errors import DataError, TreadleError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))


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


@pytest.mark.parametrize("name", CORPUS)
def test_thirty_hostile_archives(name: str, tmp_path: Path) -> None:
    """Refused by the member's name, or as documented; nothing is written but in the data's home, no
    link is made, and it takes at most 5 seconds and 200 MB."""
    warm = tmp_path / "warm.tgz"
    warm.write_bytes(gzip.compress(tar_of(file("warm/a"))))
    untar_data(warm.as_uri())  # imports
    kind = CORPUS[name]
    build, member, said = REFUSED[kind] if isinstance(kind, str) else (kind[0], None, "")
    (tmp_path / "toy.tar").write_bytes(build())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    start = time.process_time()
    with watch.memory() as peak, watch.over(tmp_path / "home", writable=True) as offences:
        try:
            untar_data((tmp_path / "toy.tar").as_uri())
        except DataError as error:
            refusal = str(error)
        else:
            refusal = ""
    assert not offences
    assert time.process_time() - start < 5 and peak() < 200e6
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    new = {path.relative_to(tmp_path).as_posix() for path in after.keys() - before.keys()}
    if isinstance(kind, str):
        assert said in refusal and (member is None or repr(member) in refusal)
        assert not new
    elif "appears twice" not in refusal:  # of twins one would be lost on some file systems
        assert contents(tmp_path / "home/data/toy").items() > kind[1].items()
        assert not any(path.stat().st_mode & 0o7000 for path in after if "toy" in path.parts)
    outside = {path: time for path, time in after.items() if "home" not in path.parts}
    assert outside.items() <= before.items() and len(CORPUS) == 30


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
    unpacked = put(tmp_path, tar_of(file("toy/inner.tgz", INNER)))
    assert contents(unpacked.folder) == {"inner.tgz": INNER}


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
