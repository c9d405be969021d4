"""Heartbeats: each relay and consumer writes a file, and the health checks read these files.

Ages are measured with CLOCK_MONOTONIC. All processes of one boot share it, and nobody can set it.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from settle_outbox.errors import SettleError

HEARTBEAT_INTERVAL_S = 1.0
# After this time without a heartbeat, a process in another container counts as ended. Until then it
# counts as alive, and is reported as stuck if its heartbeat is too old.
UNSEEN_ENDED_S = 3600.0

log = structlog.get_logger(__name__)


class StuckError(SettleError):
    """A process writes no heartbeat, or does not run at all."""


@dataclass(frozen=True)
class Heartbeat:
    """The content of a process's health file.

    Args:
        pid: of the process, in its PID namespace.
        started: start time of the process, from /proc. Unlike the pid, it is never used again.
        pid_namespace: the namespace of the pid; each container has its own.
        boot: the id of the machine's boot, in which `monotonic` is valid.
        monotonic: CLOCK_MONOTONIC at the heartbeat, in seconds.
        at: Unix time at the heartbeat, for people.
        state: ``starting``, ``ready``, ``waiting`` or ``stopped``.
        detail: the reason for the state, or a problem in the state ready.
    """

    pid: int
    started: str
    pid_namespace: str
    boot: str
    monotonic: float
    at: float
    state: str
    detail: str

    @property
    def age_s(self) -> float:
        """Age of the heartbeat in seconds. It is valid only for the current boot."""
        return max(0.0, time.monotonic() - self.monotonic)

    @property
    def is_local(self) -> bool:
        """Whether /proc can show the process: it has the same boot and PID namespace."""
        return self.boot == _boot() and self.pid_namespace == _pid_namespace()

    @property
    def has_ended(self) -> bool:
        """Whether the process ended without removing its file."""
        if self.is_local:
            return _started(self.pid) != self.started
        return self.boot != _boot() or self.age_s > UNSEEN_ENDED_S


class Health:
    """Writes the heartbeats of a process to its health file, about once a second.

    Args:
        directory: the folder of the file, or None to write no file.
        process: the kind of process, such as ``outbox-relay-orders``. Several processes of one kind
            may run.
    """

    def __init__(self, directory: str | None, process: str) -> None:
        self._directory = directory
        self._process = process
        self._path = (
            Path(directory, f"{process}.{socket.gethostname()}.{os.getpid()}.json")
            if directory
            else None
        )
        # Needed because another thread writes heartbeats while a handler runs.
        self._lock = threading.RLock()
        self._last: tuple[str, str] | None = None
        self._next_at = 0.0
        self._is_failing = False

    def beat(self, state: str, detail: str = "") -> None:
        """Write a heartbeat with the state.

        Args:
            state: ``starting``, ``ready``, ``waiting`` for the database, Kafka or an event, or
                ``stopped`` until an operator acts.
            detail: the reason for the state, or a problem in the state ready.
        """
        with self._lock:
            self._write(state, detail)

    def beat_again(self) -> None:
        """Write a heartbeat with the last state, in the middle of long work."""
        with self._lock:
            if self._last is not None:
                self._write(*self._last)

    def _write(self, state: str, detail: str) -> None:
        now = time.monotonic()
        is_new = self._is_failing or self._last != (state, detail)
        if self._path is None or (not is_new and now < self._next_at):
            return
        if self._last is None and self._directory is not None:
            _remove_ended(self._directory, self._process)
        self._last, self._next_at = (state, detail), now + HEARTBEAT_INTERVAL_S
        content = Heartbeat(
            pid=os.getpid(),
            started=_started(os.getpid()),
            pid_namespace=_pid_namespace(),
            boot=_boot(),
            monotonic=now,
            at=time.time(),
            state=state,
            detail=detail,
        )
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(content)), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            # A full disk must not stop delivery. The supervisor sees the old file.
            if not self._is_failing:
                log.warning("health.not_written", path=str(self._path), error=str(error))
            self._is_failing = True
        else:
            self._is_failing = False

    def remove(self) -> None:
        """Remove the file, because the process ends as requested."""
        if self._path is not None:
            _unlink(self._path)


def read_heartbeats(directory: str | Path, process: str) -> dict[Path, Heartbeat | None]:
    """Return the heartbeats of all processes of a kind by file. An unreadable file has None."""
    return {path: _read(path) for path in sorted(Path(directory).glob(f"{process}.*.json"))}


def check_health(directory: str | None, process: str, max_age_s: float) -> str:
    """Check that the main loop of each process of a kind runs.

    A killed process leaves its file. This file counts only if no process of the kind is alive,
    because a supervisor replaces a killed process. Processes of other containers that share the
    directory count only if no process of the kind is alive in this container.

    Args:
        directory: the setting HEALTH_DIR.
        process: the kind of process, such as ``outbox-relay-orders``.
        max_age_s: maximum age of the last heartbeat, in seconds.

    Returns:
        A line for each process, with its state.

    Raises:
        StuckError: no process is alive, or one of them writes no heartbeats.
    """
    if directory is None:
        raise StuckError("HEALTH_DIR is not set. Set it to the folder that the processes write to.")
    heartbeats = read_heartbeats(directory, process)
    alive = [beat for beat in heartbeats.values() if beat is not None and not beat.has_ended]
    # A restart of this container would not help a process in another container.
    alive = [beat for beat in alive if beat.is_local] or alive
    stuck = [beat for beat in alive if beat.age_s > max_age_s]
    if stuck:
        raise StuckError(
            " ".join(
                f"{process} (pid {beat.pid}) is alive but stuck."
                f" Its last heartbeat is {beat.age_s:.0f} s old."
                for beat in sorted(stuck, key=lambda beat: -beat.age_s)
            )
        )
    if not alive:
        raise StuckError(_no_process_reason(directory, process, heartbeats))
    return "\n".join(
        f"{process} (pid {beat.pid}) is {beat.state}{f', {beat.detail}' if beat.detail else ''};"
        f" seen {beat.age_s:.1f} s ago."
        for beat in sorted(alive, key=lambda beat: (beat.state == "ready", beat.pid))
    )


def _no_process_reason(
    directory: str, process: str, heartbeats: dict[Path, Heartbeat | None]
) -> str:
    if not heartbeats:
        return (
            f"{process} has written no heartbeat: it has no file in {directory}. Start it, with the"
            " same HEALTH_DIR."
        )
    path, beat = next(iter(heartbeats.items()))
    if beat is None:
        return f"{path} cannot be read, and no other {process} runs."
    return f"{process} (pid {beat.pid}) has ended; its file {path} is still there."


def _read(path: Path) -> Heartbeat | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Heartbeat(
            pid=int(content["pid"]),
            started=str(content["started"]),
            pid_namespace=str(content["pid_namespace"]),
            boot=str(content["boot"]),
            monotonic=_finite(content["monotonic"]),
            at=_finite(content["at"]),
            state=str(content["state"]),
            detail=str(content["detail"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _finite(value: object) -> float:
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a time")
    return number


def _remove_ended(directory: str, process: str) -> None:
    """Remove unreadable files, and the files of processes that were killed."""
    for path, beat in read_heartbeats(directory, process).items():
        if beat is None or beat.has_ended:
            _unlink(path)
            _unlink(path.with_suffix(".tmp"))


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("health.not_removed", path=str(path), error=str(error))


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, or "" if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return "" if state in "ZX" else started


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
