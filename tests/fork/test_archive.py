"""Release archives that must not be unpacked."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_upstream import SDIST_ONLY, UPSTREAM, VERSION, Tiny, git, pack

from fork import archive
from fork.errors import ForkError


TOP = f"transformers-{VERSION}"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, len(content)
    return made


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member(f"{TOP}/README.md", content=b"hello"), io.BytesIO(b"hello"))
        for each in members:
            tar.addfile(each, io.BytesIO(b"x" * each.size))
    return path


BAD = {
    "escapes upwards": ([member(f"{TOP}/../../out")], "escapes its folder"),
    "absolute": ([member("/tmp/out")], "escapes its folder"),
    "beside its folder": ([member("elsewhere/out")], f"expected paths below {TOP}/"),
    "a git repository": ([member(f"{TOP}/.git/config")], "a git repository's own"),
    "a git repository, elsewhere spelled": ([member(f"{TOP}/src/.GIT/hooks/x")], "a git repository's own"),
    "symbolic link out": ([member(f"{TOP}/out", tarfile.SYMTYPE, "../../..")], "the link .* -> '../../..'"),
    "hard link out": ([member(f"{TOP}/out", tarfile.LNKTYPE, "../../etc/passwd")], "the link"),
    "through a link": (
        [member(f"{TOP}/out", tarfile.SYMTYPE, "/tmp"), member(f"{TOP}/out/file")],
        "the link",
    ),
    "device": ([member(f"{TOP}/null", tarfile.CHRTYPE)], "the device or special file"),
    "fifo": ([member(f"{TOP}/pipe", tarfile.FIFOTYPE)], "the device or special file"),
    "twice": ([member(f"{TOP}/README.md")], "twice"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_escapes_is_refused_and_writes_nothing_outside(tmp_path: Path, bad: str) -> None:
    members, message = BAD[bad]
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(ForkError, match=message):
        archive.unpack(tar_of(tmp_path / "bad.tar.gz", *members), into, TOP)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"bad.tar.gz", f"deep/into/{TOP}/README.md"}


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    bad = tar_of(tmp_path / "bad.tar.gz", *(member(f"{TOP}/{number}") for number in range(3)))
    with pytest.raises(ForkError, match="more than 3 files"):
        archive.unpack(bad, tmp_path, TOP)


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000_000)
    bad = tar_of(tmp_path / "bad.tar.gz", member(f"{TOP}/bomb", content=b"x" * 1_000_001))
    with pytest.raises(ForkError, match="or 1000000 bytes"):
        archive.unpack(bad, tmp_path / "into", TOP)
    assert not (tmp_path / "into" / TOP / "bomb").exists()


@pytest.mark.parametrize("keep", [10, 60, 90])
def test_a_truncated_stream_is_refused(tmp_path: Path, keep: int) -> None:
    bad = tar_of(tmp_path / "bad.tar.gz")
    bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(ForkError, match="truncated or broken"):
        archive.unpack(bad, tmp_path, TOP)


def test_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(gzip.compress(b"<html>not found</html>" * 100))
    with pytest.raises(ForkError, match="truncated or broken"):
        archive.unpack(bad, tmp_path, TOP)


def test_only_content_and_executable_bit_are_taken(tmp_path: Path) -> None:
    odd = member(f"{TOP}/run.sh", content=b"x")
    odd.mode, odd.uid, odd.gid, odd.mtime = 0o6777, 1001, 1001, 1
    tree = archive.unpack(tar_of(tmp_path / "good.tar.gz", odd), tmp_path, TOP)
    told = (tree / "run.sh").stat()
    assert told.st_mode & 0o7777 == 0o755
    assert told.st_uid == os.getuid()
    assert (tree / "README.md").read_text() == "hello"


# Through the command, as pip brings it.


def replace_sdist(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheelhouse of this test's own, to spoil."""
    wheelhouse = tmp_path / "wheelhouse"
    shutil.copytree(tiny.release.wheelhouse, wheelhouse)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    return wheelhouse / f"{TOP}.tar.gz"


def tamper(sdist: Path) -> None:
    data = bytearray(sdist.read_bytes())
    data[-1] ^= 1
    sdist.write_bytes(data)


def truncate(sdist: Path) -> None:
    sdist.write_bytes(sdist.read_bytes()[:200])


@pytest.mark.parametrize("spoil", [tamper, truncate])
def test_another_archive_than_the_pins_is_refused_with_both_hashes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    sdist = replace_sdist(tiny, tmp_path, monkeypatch)
    spoil(sdist)
    came = subprocess.check_output(["sha256sum", str(sdist)], text=True).split()[0]
    said = tiny.fails("apply", "--source", "sdist")
    assert came in said
    assert tiny.release.pin.sdist_sha256 in said
    assert not tiny.checkout.exists()


def test_nothing_in_the_archive_is_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when its hash is right: pip would run setup.py to learn the metadata."""
    marker = tmp_path / "poisoned"
    poison = f"open({str(marker)!r}, 'w')\n"
    project = "[build-system]\nrequires = []\nbuild-backend = 'setuptools.build_meta'\n"
    for files in ({"setup.py": poison}, {"setup.py": poison, "pyproject.toml": project}):
        sdist = replace_sdist(tiny, tmp_path / str(len(files)), monkeypatch)
        sha256 = pack(sdist, UPSTREAM | SDIST_ONLY | files)
        pin = tiny.series / "pin.cfg"
        pin.write_text(pin.read_text().replace(tiny.release.pin.sdist_sha256, sha256))
        shutil.rmtree(tiny.checkout, ignore_errors=True)
        tiny.ok("apply", "--source", "sdist")
        assert not marker.exists()
        pin.write_text(pin.read_text().replace(sha256, tiny.release.pin.sdist_sha256))


def test_no_sdist_in_the_wheelhouse_is_said(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_sdist(tiny, tmp_path, monkeypatch).unlink()
    said = tiny.fails("apply", "--source", "sdist")
    assert f"pip found no {TOP}.tar.gz" in said
    assert not tiny.checkout.exists()


def test_the_builders_files_are_left_out(tiny: Tiny) -> None:
    tiny.ok("apply", "--source", "sdist")
    base = git(tiny.checkout, "ls-tree", "-r", "--name-only", "refs/fork/base").splitlines()
    assert sorted(base) == sorted(UPSTREAM)
