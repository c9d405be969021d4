"""The embedded PostgreSQL's folder: the server's user has its data, and nothing else of root's."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from settle.embedded.environment import clean_environment
from settle.embedded.postgres import Cluster, EmbeddedPostgresError, open_cluster
from settle.safe_folders import UnsafeFolderError
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
        with pytest.raises(EmbeddedPostgresError, match="password is gone"):
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
