"""Folders and files that no other user of this machine can replace."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Iterator

LINKS_MAX = 40  # the kernel's limit (path_resolution(7))
SMALL_FILE_BYTES = 64 * 1024


class UnsafeFolderError(SettleError):
    """Another user could replace the content of a folder."""


def refuse_unsafe(folder: Path, *, variable: str) -> None:
    """Refuse a folder in which another user could change, replace or rename the content.

    The rules are similar to OpenSSH's StrictModes:

    - The folder itself belongs to this user, and nobody else may write to it.
    - Each folder and link on the way to it belongs to this user, to root, or to the owner of this
      code. The owner of the code can run anything as this user already.
    - Others may write to a folder on the way only if it is sticky, as /tmp is.

    A folder that does not exist yet is not checked.

    Args:
        folder: the folder.
        variable: the environment variable that sets another folder.

    Raises:
        UnsafeFolderError: the folder is not safe. The message says which folder to change.
        OSError: the folder cannot be reached.
    """
    trusted = {0, os.geteuid(), Path(__file__).stat().st_uid}
    for path, found, is_last in _way_to(folder):
        if found.st_uid not in ({os.geteuid()} if is_last else trusted):
            raise UnsafeFolderError(
                f"{folder} cannot be used: {path} belongs to the user {_user_name(found.st_uid)}. "
                f"Run settle as that user, or set {variable} to a folder of your own."
            )
        is_link = stat.S_ISLNK(found.st_mode)  # the mode of a link has no meaning
        is_sticky = bool(found.st_mode & stat.S_ISVTX) and not is_last
        if not is_link and not is_sticky and _others_may_write(found):
            is_own = found.st_uid == os.geteuid()
            change = "Run" if is_own else f"Ask {_user_name(found.st_uid)} to run"
            raise UnsafeFolderError(
                f"{folder} cannot be used: other users may write to {path}. "
                f"{change} chmod go-w {path}, or set {variable} to a folder of your own."
            )


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """Yield each folder and link on the way to a path, and whether it is the path itself.

    Links are followed one by one, because the folder of each link must be safe, too.
    """
    here, rest, links = Path("/"), list(path.absolute().parts[1:]), 0
    yield here, here.lstat(), False
    while rest:
        name = rest.pop(0)
        if name == "..":
            here = here.parent
            continue
        step = here / name
        try:
            found = step.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISLNK(found.st_mode):
            here = step
            yield here, found, False
            continue
        yield step, found, False
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step.readlink()
        rest = [*target.parts, *rest]
        if target.is_absolute():
            here, rest = Path("/"), rest[1:]
    # Only now is the last folder known: a path, or the target of a link, may end in "..".
    yield here, here.lstat(), True


def _others_may_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_private_group(found)


def _is_private_group(found: os.stat_result) -> bool:
    """Return whether the group is the owner's private one, as useradd makes it."""
    try:
        group, owner = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and set(group.gr_mem) <= {owner.pw_name}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def take_folder(path: Path, mode: int) -> None:
    """Create a folder, or make this user the owner of an existing one. Set its mode.

    The parent folder must be safe.

    Raises:
        UnsafeFolderError: the path is a link.
        OSError: it cannot be created, or another user's cannot be taken over.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    folder = _open_no_link(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _take(folder, mode)
    finally:
        os.close(folder)


def take_file(path: Path) -> None:
    """Make this user the owner and the only reader of a file. The parent folder must be safe.

    Raises:
        UnsafeFolderError: the path is a link.
        OSError: it does not exist, or another user's cannot be taken over.
    """
    file = _open_regular(path.parent, path.name)
    try:
        _take(file, 0o600)
    finally:
        os.close(file)


def give_folder(path: Path, *, uid: int, gid: int) -> None:
    """Create a folder, and give it to another user. The parent folder must be safe.

    Raises:
        OSError: the path exists, or the owner cannot be changed.
    """
    path.mkdir(mode=0o700)
    folder = _open_no_link(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchown(folder, uid, gid)
    finally:
        os.close(folder)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read. An existing file is replaced.

    Raises:
        OSError: it cannot be written.
    """
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
        opened.write(text)


def read_small(folder: Path, name: str) -> str:
    """Read a small file from a folder that another user may write to.

    It follows no link, and does not wait for a pipe.

    Args:
        folder: the folder; its parent must be safe.
        name: the file's name.

    Raises:
        UnsafeFolderError: it is a link, has a second hard link, or is not a regular file.
        OSError: it does not exist, or cannot be read.
    """
    with open(_open_regular(folder, name), "rb") as opened:
        return opened.read(SMALL_FILE_BYTES).decode(errors="replace")


def _take(descriptor: int, mode: int) -> None:
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.fchown(descriptor, os.geteuid(), os.getegid())
    os.fchmod(descriptor, mode)


def _open_regular(folder: Path, name: str) -> int:
    inside = _open_no_link(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = _open_no_link(folder / name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=inside)
    finally:
        os.close(inside)
    found = os.fstat(file)
    # With a second hard link, it may be another user's file in another folder.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise UnsafeFolderError(f"{folder / name} is not a plain file: remove it.")
    return file


def _open_no_link(path: Path, flags: int, *, dir_fd: int | None = None) -> int:
    """Open a file or folder, unless it is a link.

    Args:
        path: the path of the file or folder.
        flags: the flags of `os.open`.
        dir_fd: the opened parent folder, whose path another user might replace.

    Raises:
        UnsafeFolderError: it is a link.
    """
    name = path if dir_fd is None else path.name
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        # For a link in place of a folder, the error is ENOTDIR (open(2)).
        if error.errno in {errno.ELOOP, errno.ENOTDIR} and path.is_symlink():
            raise UnsafeFolderError(
                f"{path} is a symbolic link. Links are not followed here. Remove it."
            ) from error
        raise
