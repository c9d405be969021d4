"""Where the stack keeps what it keeps: one folder, `.settle` in the checkout or $SETTLE_HOME."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shlex
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from settle.safe_folders import refuse_unsafe, take_folder, write_private
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TextIO

CHECKOUT = Path(__file__).resolve().parents[2]
DEPLOY = CHECKOUT / "deploy"
LOCK_TIMEOUT_S = 180
LEAST_FREE_MB = 150  # new databases take about 60 MB, and their log grows
# sun_path holds 108 bytes with its end; supervisord first binds a name with ".<pid>" behind it.
LONGEST_SOCKET_PATH = 107 - len(".4194304")


class StateError(SettleError):
    """The state folder cannot be used."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The paths within one state folder."""

    home: Path

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.home / "logs"

    @property
    def run(self) -> Path:
        """What matters only while the stack runs."""
        return self.home / "run"

    @property
    def health(self) -> Path:
        """Where relays and consumers say how they are."""
        return self.run / "health"

    @property
    def supervisor_pid(self) -> Path:
        """Written by supervisord."""
        return self.run / "supervisord.pid"

    @property
    def socket(self) -> Path:
        """The control socket of supervisord."""
        path = self.run / "supervisor.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir(), f"settle-{os.geteuid()}", f"{name}.sock")

    @property
    def env(self) -> Path:
        """The environment of the running stack, as a shell reads it: `. .settle/env`."""
        return self.home / "env"

    @property
    def new_env(self) -> Path:
        """The environment while it is written; there later only after an interruption."""
        return self.env.with_suffix(".new")

    @property
    def lock(self) -> Path:
        """The lock file. Whatever starts or stops the stack locks it, and writes its pid there."""
        return self.home / "lock"

    @property
    def postgres(self) -> Path:
        """The embedded PostgreSQL."""
        return self.home / "postgres"

    @property
    def kafka(self) -> Path:
        """Apache Kafka's configuration and data."""
        return self.home / "kafka"

    @property
    def nearest(self) -> Path:
        """The folder, or where it would be made."""
        return next(path for path in (self.home, *self.home.parents) if path.exists())

    @property
    def free_mb(self) -> int:
        """How much room there is."""
        return shutil.disk_usage(self.nearest).free // 1024**2

    def refuse_unsafe(self) -> None:
        """Refuse a folder in which another user could replace what lies there.

        Raises:
            StateError: the folder cannot be reached.
            UnsafeFolderError: naming the folder at fault, and what to do.
        """
        try:
            refuse_unsafe(self.home, variable="SETTLE_HOME")
            if self.socket.parent != self.run:
                refuse_unsafe(self.socket.parent, variable="TMPDIR")
        except OSError as error:
            raise self._cannot_be_used(error) from error

    def make(self) -> None:
        """Make the folders that are missing, closed to others.

        Raises:
            StateError: it cannot be made or written to.
            UnsafeFolderError: another user could replace what lies there.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.refuse_unsafe()
            # Run by root, PostgreSQL is another user: it may pass through, and see nothing else.
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
            "or have SETTLE_HOME name another folder."
        )

    def write_env(self, environment: Mapping[str, str]) -> None:
        """Keep the environment of the running stack; it holds passwords."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
        write_private(self.new_env, "\n".join([*lines, ""]))
        self.new_env.rename(self.env)

    def read_env(self) -> dict[str, str]:
        """The environment that was kept; empty when the stack is down."""
        try:
            words = shlex.split(self.env.read_text(encoding="utf-8"))
            return dict(word.split("=", 1) for word in words if word != "export")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, OSError) as error:  # someone has edited it, or put something there
            raise StateError(
                f"{self.env} cannot be read ({error}): remove it, then run settle down."
            ) from error

    @contextmanager
    def locked(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Hold the folder against another `settle up`, `down` or `reset`.

        Args:
            tell: is told once when another one holds it, before waiting.

        Raises:
            StateError: another one held it for three minutes, or the folder cannot be used.
        """
        is_told = False
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            self.make()
            with self._open_lock() as lock:
                if self._take(lock):
                    lock.truncate()
                    lock.write(f"{os.getpid()}\n")
                    lock.flush()
                    yield
                    return
                pid = lock.read().strip()  # empty for a moment, or of an earlier version
                other = f"another settle up, down or reset{f' (pid {pid})' if pid else ''}"
            if time.monotonic() > deadline:
                raise StateError(
                    f"{self.lock} has been held for {LOCK_TIMEOUT_S} s by {other}: end it first."
                )
            if not is_told:
                tell(f"Waiting for {other} to end.")
                is_told = True
            time.sleep(0.1)

    def _open_lock(self) -> TextIO:
        """Open the lock file, closed to others: who can open a file can lock it (flock(2)).

        Raises:
            StateError: something else is in its place.
        """
        try:
            file = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._cannot_be_used(error) from error
        os.fchmod(file, 0o600)  # an earlier version made it readable
        return open(file, "r+", encoding="ascii", errors="replace")  # noqa: PTH123 - a descriptor

    def _take(self, lock: TextIO) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # A reset removes the file that it holds: a lock on that one is worth nothing.
        try:
            return os.fstat(lock.fileno()).st_ino == self.lock.stat().st_ino
        except FileNotFoundError:
            return False


def find_state() -> StateFolder:
    """The state folder of this checkout, or the one that ``SETTLE_HOME`` names; it may be unsafe.

    Raises:
        StateError: this is not a checkout.
    """
    if not (DEPLOY / "supervisord.conf").exists():
        raise StateError(f"settle runs from a checkout, and {CHECKOUT} has no deploy folder.")
    given = os.environ.get("SETTLE_HOME")
    return StateFolder(Path(given).absolute() if given else CHECKOUT / ".settle")


def open_state() -> StateFolder:
    """The state folder, safe to read and to write.

    Raises:
        StateError: this is not a checkout.
        UnsafeFolderError: another user could replace what lies in the folder.
    """
    state = find_state()
    state.refuse_unsafe()
    return state
