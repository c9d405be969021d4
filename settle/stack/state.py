"""The state folder of the stack: `.settle` in the checkout, or $SETTLE_HOME."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from settle.safe_folders import refuse_unsafe, take_file, take_folder, write_private
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from settle.progress import Say

CHECKOUT = Path(__file__).resolve().parents[2]
# False for an installed wheel. It can check and audit a system, but not run one.
IS_CHECKOUT = (CHECKOUT / "deploy" / "supervisord.conf").is_file()
LOCK_TIMEOUT_S = 180
LEAST_FREE_MB = 150  # new databases take about 60 MB, and their log grows
# sun_path has 108 bytes with its final NUL; supervisord first binds the name with ".<pid>" added.
SOCKET_PATH_MAX = 107 - len(".4194304")


class StateError(SettleError):
    """The state folder cannot be used."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The paths in a state folder."""

    home: Path

    @property
    def logs(self) -> Path:
        """The folder of the log files, one per process."""
        return self.home / "logs"

    @property
    def logs_for_supervisor(self) -> Path:
        """The folder of the log files, relative to the checkout if possible.

        Supervisor formats the paths of log files twice, so an absolute path with a percent sign
        does not work.
        """
        inside = self.logs.is_relative_to(CHECKOUT)
        return self.logs.relative_to(CHECKOUT) if inside else self.logs

    @property
    def run(self) -> Path:
        """The folder of files that are only needed while the stack runs."""
        return self.home / "run"

    @property
    def health(self) -> Path:
        """The folder of the processes' health files (HEALTH_DIR)."""
        return self.run / "health"

    @property
    def supervisor_pid(self) -> Path:
        """The pid file of supervisord."""
        return self.run / "supervisord.pid"

    @property
    def socket(self) -> Path:
        """The control socket of supervisord."""
        path = self.run / "supervisor.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
            return path
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir(), f"settle-{os.geteuid()}", f"{name}.sock")

    @property
    def env(self) -> Path:
        """The environment of the running stack, for a shell: `. .settle/env`."""
        return self.home / "env"

    @property
    def new_env(self) -> Path:
        """The environment file while it is written; it is left only by an interruption."""
        return self.env.with_suffix(".new")

    @property
    def lock(self) -> Path:
        """The lock file. A command that starts or stops the stack locks it and writes its pid."""
        return self.home / "lock"

    @property
    def postgres(self) -> Path:
        """The folder of the embedded PostgreSQL."""
        return self.home / "postgres"

    @property
    def kafka(self) -> Path:
        """The folder of Apache Kafka's configuration and data."""
        return self.home / "kafka"

    @property
    def nearest(self) -> Path:
        """The folder, or the nearest parent that exists."""
        return next(path for path in (self.home, *self.home.parents) if path.exists())

    def refuse_unsafe(self) -> None:
        """Refuse a folder in which another user could replace its content.

        Raises:
            StateError: the folder cannot be reached.
            UnsafeFolderError: another user could replace its content.
        """
        try:
            refuse_unsafe(self.home, variable="SETTLE_HOME")
            if self.socket.parent != self.run:
                refuse_unsafe(self.socket.parent, variable="TMPDIR")
        except OSError as error:
            raise self._cannot_be_used(error) from error

    def refuse_unusable_paths(self) -> None:
        """Refuse a path that a program of the stack could not use.

        Raises:
            StateError: there is no checkout, or a path contains a character that does not work.
        """
        if not IS_CHECKOUT:
            raise StateError("settle up runs from a checkout: run make up in one.")
        # supervisord reads the files of a glob pattern, and PATH separates folders by colons.
        for path, variable in ((CHECKOUT, None), (self.logs_for_supervisor, "SETTLE_HOME")):
            forbidden = "*?[:\n" if variable is None else "%\n"
            found = next((character for character in forbidden if character in str(path)), None)
            if found is not None:
                remedy = f"set {variable} to another folder" if variable else "move the checkout"
                raise StateError(f"The path {str(path)!r} must not contain {found!r}: {remedy}.")

    def create(self) -> None:
        """Create the missing folders, closed to other users.

        Raises:
            StateError: a folder cannot be created or written to.
            UnsafeFolderError: another user could replace its content.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.refuse_unsafe()
            # If root runs the stack, PostgreSQL's user may pass through the folder, not list it.
            take_folder(self.home.resolve(), 0o711 if os.geteuid() == 0 else 0o700)
            for folder in (self.logs, self.run, self.health):
                take_folder(folder, 0o700)
            if self.socket.parent != self.run:
                self.socket.parent.mkdir(mode=0o700, exist_ok=True)
                self.refuse_unsafe()
        except OSError as error:
            raise self._cannot_be_used(error) from error

    def _cannot_be_used(self, error: OSError) -> StateError:
        where = self.nearest if error.errno == errno.ENOTDIR else error.filename or self.home
        within = f": {where}" if Path(where) != self.home else ""
        remedy = "make it writable"
        if error.errno in {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}:
            remedy = f"move {where} away"
        elif error.errno in {errno.ENOSPC, errno.EDQUOT}:
            remedy = "free some space"
        return StateError(
            f"{self.home} cannot be used ({error.strerror}{within}): {remedy}, "
            "or set SETTLE_HOME to another folder."
        )

    def write_env(self, environment: Mapping[str, str]) -> None:
        """Write the environment of the running stack. It contains passwords."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
        write_private(self.new_env, "\n".join([*lines, ""]))
        self.new_env.rename(self.env)

    def read_env(self) -> dict[str, str]:
        """Read the environment of the running stack; empty if the stack is down."""
        try:
            words = shlex.split(self.env.read_text(encoding="utf-8"))
            return dict(word.split("=", 1) for word in words if word != "export")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, OSError) as error:  # it was edited, or replaced by something else
            raise StateError(
                f"{self.env} cannot be read ({error}): remove it, then run settle down."
            ) from error

    @contextmanager
    def locked(self, say: Say) -> Iterator[None]:
        """Hold the folder's lock against another `settle up`, `down` or `reset`.

        Args:
            say: prints, once, that another command must end first.

        Raises:
            StateError: another command held it for three minutes, or the folder cannot be used.
        """
        lock = FileLock(self.lock, timeout=0, mode=0o600)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        other = ""
        while not self._acquire(lock):
            if not other:
                other = f"another settle up, down or reset{self._holder()}"
                say(f"Waiting for {other} to end.")
            elif time.monotonic() > deadline:
                raise StateError(
                    f"{self.lock} has been held for {LOCK_TIMEOUT_S} s by {other}: end it first."
                )
            time.sleep(0.1)
        try:
            self.lock.write_text(f"{os.getpid()}\n", "ascii")
            yield
        finally:
            lock.release()

    def _holder(self) -> str:
        try:
            pid = self.lock.read_text("ascii", "replace").strip()
        except OSError:  # removed by a reset
            pid = ""
        return f" (pid {pid})" if pid else ""

    def _acquire(self, lock: FileLock) -> bool:
        """Try once to take the lock. A reset may have removed the folder before."""
        self.create()
        try:
            lock.acquire()
            # An earlier version let other users open the file, and so lock it (flock(2)).
            take_file(self.lock)
        except Timeout:
            return False
        except OSError as error:
            raise self._cannot_be_used(error) from error
        return True


def find_state() -> StateFolder:
    """Return the state folder that ``SETTLE_HOME`` names; by default, ``.settle`` in the checkout.

    It may be unsafe: `open_state` checks it.
    """
    parent = CHECKOUT if IS_CHECKOUT else Path.cwd()
    return StateFolder(Path(os.environ.get("SETTLE_HOME") or parent / ".settle").absolute())


def open_state() -> StateFolder:
    """Return the state folder after checking that it is safe to use.

    Raises:
        StateError: the folder cannot be reached.
        UnsafeFolderError: another user could replace the content of the folder.
    """
    state = find_state()
    state.refuse_unsafe()
    return state
