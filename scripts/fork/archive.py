"""A release archive, checked before it is unpacked, and unpacked without trusting it."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from fork.errors import ForkError


# Ten times what a release of transformers holds today (5,400 files, 80 MB).
MAX_FILES = 50_000
MAX_BYTES = 800_000_000

NEXT = "make apply SOURCE=git, or remove the archive and run the command again to fetch it anew"


def check_sha256(archive: Path, expected: str) -> None:
    """Refuse an archive that is not, byte for byte, the one that the pin names."""
    came = hashlib.sha256(archive.read_bytes()).hexdigest()
    if came != expected:
        raise ForkError(
            f"{archive.name} ({archive.stat().st_size} bytes) has sha256\n  {came}, expected\n"
            f"  {expected}; nothing in it was unpacked or run",
            next=NEXT,
        )


def unpack(archive: Path, into: Path, top: str) -> Path:
    """Unpack the archive's one folder `top` below `into`, as the current user's plain files and folders."""
    files = size = 0
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                path = _checked(member, top, archive.name)
                files, size = files + 1, size + member.size
                if files > MAX_FILES or size > MAX_BYTES:
                    raise _refused(archive.name, f"more than {MAX_FILES} files or {MAX_BYTES} bytes", "fewer")
                _write(tar, member, into / path)
    except (EOFError, tarfile.ReadError, zlib.error) as problem:
        raise _refused(archive.name, f"a truncated or broken stream ({problem})", "a whole .tar.gz") from None
    except FileExistsError as problem:
        raise _refused(archive.name, f"{problem.filename} twice", "each path once") from None
    return into / top


def _checked(member: tarfile.TarInfo, top: str, archive: str) -> PurePosixPath:
    """The member's path, if it may be unpacked."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not path.parts:
        raise _refused(archive, f"the path {member.name!r}, which escapes its folder", "paths inside it")
    if path.parts[0] != top:
        raise _refused(archive, f"the path {member.name!r}", f"paths below {top}/")
    if any(part.lower() == ".git" for part in path.parts):
        raise _refused(archive, f"the path {member.name!r}, a git repository's own", "source files")
    if member.issym() or member.islnk():
        raise _refused(archive, f"the link {member.name!r} -> {member.linkname!r}", "no links")
    if not member.isreg() and not member.isdir():
        raise _refused(archive, f"the device or special file {member.name!r}", "files and folders")
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write one member: only its bytes and its executable bit come from the archive."""
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    with content, path.open("xb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _refused(archive: str, came: str, expected: str) -> ForkError:
    return ForkError(f"{archive} holds {came}; expected {expected}. It was not used", next=NEXT)
