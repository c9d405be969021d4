"""Folders must be safe from other users, and files are not opened through links."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from settle.audit.targets import find_settings
from settle.safe_folders import (
    UnsafeFolderError,
    read_small,
    refuse_unsafe,
    take_file,
    take_folder,
    write_private,
)
from settle.stack.definition import DATABASE_URLS
from settle.stack.state import StateError, StateFolder, find_state, open_state
from support.environ import environment

NOBODY = 65534


def check(folder: Path) -> None:
    refuse_unsafe(folder, variable="SETTLE_HOME")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_state_folder_is_not_opened_if_the_environment_names_the_servers(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o777)
    variables = dict.fromkeys(DATABASE_URLS.values(), "postgresql://127.0.0.1:9/none")
    variables |= {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "SETTLE_HOME": str(tmp_path)}

    with environment(variables):
        settings = find_settings()

    assert settings["orders"].kafka_bootstrap_servers == ("127.0.0.1:9",)


@pytest.mark.parametrize("last", [0o700, 0o711, 0o755])
def test_a_folder_that_others_may_not_write_to_is_safe(tmp_path: Path, last: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(last)

    check(home)
    check(home / "to" / "be" / "made")


@pytest.mark.parametrize("end", ["x/..", ".", "x/../."])
def test_the_target_of_a_path_is_checked(tmp_path: Path, end: str) -> None:
    """A sticky folder is refused as the target, even if the path to it ends with a `..`."""
    home = tmp_path / "home"
    (home / "x").mkdir(parents=True)
    home.chmod(0o1777)
    link = tmp_path / "link"
    link.symlink_to(f"home/{end}")

    for path in (Path(f"{home}/{end}"), link):
        with pytest.raises(UnsafeFolderError):
            check(path)


@pytest.mark.parametrize("last", [0o777, 0o1777, 0o757])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, last: int) -> None:
    """This includes a sticky folder: others could create a file in it before `settle` does."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(last)

    with pytest.raises(UnsafeFolderError) as refused:
        check(home)

    assert str(refused.value) == (
        f"{home} cannot be used: other users may write to {home}. "
        f"Run chmod go-w {home}, or set SETTLE_HOME to a folder of your own."
    )


def test_a_parent_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    home = parent / "home"
    home.mkdir(parents=True)
    parent.chmod(0o777)

    with pytest.raises(UnsafeFolderError, match=f"other users may write to {parent}\\."):
        check(home)

    parent.chmod(0o1777)  # like /tmp
    check(home)


def test_a_link_is_safe_only_if_its_folder_and_its_target_are(tmp_path: Path) -> None:
    """A chain of links is only as safe as the folder of each link."""
    target, open_to_all = tmp_path / "target", tmp_path / "open"
    target.mkdir()
    open_to_all.mkdir()
    (open_to_all / "second").symlink_to(target)
    (tmp_path / "first").symlink_to(Path("open", "second"))
    check(tmp_path / "first")

    open_to_all.chmod(0o777)

    with pytest.raises(UnsafeFolderError, match=f"other users may write to {open_to_all}"):
        check(tmp_path / "first")


def test_circular_links_are_reported_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    with pytest.raises(StateError, match="Too many levels of symbolic links"):
        StateFolder(tmp_path / "one").refuse_unsafe()


def test_the_home_that_the_environment_names_is_checked(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with environment({"SETTLE_HOME": str(tmp_path)}):
        assert find_state().home == tmp_path
        with pytest.raises(UnsafeFolderError, match="chmod go-w"):
            open_state()


def test_no_link_is_followed(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("a secret")
    secret.chmod(0o644)
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "hard").hardlink_to(secret)
    os.mkfifo(folder / "pipe")
    (tmp_path / "elsewhere").symlink_to(folder)

    for name in ("link", "hard", "pipe"):
        with pytest.raises(UnsafeFolderError, match=r"[Rr]emove it"):
            read_small(folder, name)
        with pytest.raises(UnsafeFolderError, match=r"[Rr]emove it"):
            take_file(folder / name)
    with pytest.raises(UnsafeFolderError, match="elsewhere is a symbolic link"):
        take_folder(tmp_path / "elsewhere", 0o700)
    with pytest.raises(UnsafeFolderError, match="elsewhere is a symbolic link"):
        read_small(tmp_path / "elsewhere", "link")
    write_private(folder / "link", "mine")

    assert secret.read_text() == "a secret"
    assert mode(secret) == 0o644
    assert read_small(folder, "link") == "mine"
    assert mode(folder / "link") == 0o600


def test_other_users_cannot_read_an_existing_lock_file_or_list_the_folders(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "home")
    state.create()
    state.lock.touch()
    state.lock.chmod(0o644)

    with state.locked(print):
        assert mode(state.lock) == 0o600

    assert mode(state.home) == (0o711 if os.geteuid() == 0 else 0o700)
    assert {mode(path) for path in (state.logs, state.run, state.health)} == {0o700}


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    state = StateFolder(tmp_path / "home")
    state.create()
    state.lock.symlink_to(victim)

    with pytest.raises(StateError, match="symbolic links"), state.locked(print):
        pass

    assert victim.read_text() == "whole"


if os.geteuid() == 0:  # only root can give a file to another user, and act as one

    def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
        os.chown(tmp_path, NOBODY, NOBODY)

        for folder in (tmp_path, tmp_path / "home"):
            with pytest.raises(UnsafeFolderError, match=f"{tmp_path} belongs to the user nobody"):
                check(folder)

    def test_a_link_that_another_user_placed_is_refused(tmp_path: Path) -> None:
        shared, target = tmp_path / "shared", tmp_path / "target"
        target.mkdir()
        shared.mkdir()
        shared.chmod(0o1777)
        (shared / "home").symlink_to(target)
        os.lchown(shared / "home", NOBODY, NOBODY)

        with pytest.raises(UnsafeFolderError, match="shared/home belongs to the user nobody"):
            check(shared / "home")

    def test_a_group_may_write_only_if_it_has_no_other_member(tmp_path: Path) -> None:
        """With umask 0002, as many distributions have, a new folder is writable by its group."""
        home = tmp_path / "home"
        home.mkdir()
        home.chmod(0o775)
        os.chown(home, 0, 0)
        check(home)

        os.chown(home, 0, NOBODY)

        with pytest.raises(UnsafeFolderError, match="other users may write"):
            check(home)

    def test_another_user_cannot_hold_the_lock() -> None:
        """This includes a user that may pass through the folder, such as PostgreSQL's."""
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o711)
            state = StateFolder(Path(name, "home"))
            with state.locked(print):
                pass

            tried = subprocess.run(
                ["flock", "--nonblock", str(state.lock), "true"],
                capture_output=True,
                text=True,
                check=False,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
            )

        assert tried.returncode != 0
        assert "Permission denied" in tried.stderr
