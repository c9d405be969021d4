"""The connection to supervisord, which keeps every process of the stack alive."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import time
import xmlrpc.client
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

from settle.stack.definition import inherited_environment
from settle.stack.state import CHECKOUT
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from settle.stack.definition import Stack

CALL_TIMEOUT_S = 10.0
START_TIMEOUT_S = 20.0
POLL_S = 0.05
STOPPED = frozenset({"STOPPED", "EXITED", "FATAL", "UNKNOWN"})
SHUTTING_DOWN, ALREADY_STARTED, NOT_RUNNING = 6, 60, 70  # supervisor.xmlrpc.Faults


class SupervisorError(SettleError):
    """Supervisord does not answer, or refuses a request."""


@dataclass(frozen=True, slots=True)
class Process:
    """A program as supervisord reports it.

    Args:
        name: the program's name.
        group: the name of the group of programs that supervisord stops together.
        state: RUNNING, STARTING, BACKOFF, STOPPED, ...
        pid: None without a process.
        uptime_s: None without a process.
    """

    name: str
    group: str
    state: str
    pid: int | None
    uptime_s: int | None

    @property
    def stopped(self) -> bool:
        """Whether supervisord neither runs nor restarts it."""
        return self.state in STOPPED


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CALL_TIMEOUT_S)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> HTTPConnection:
        connection = self._connection[1]
        if connection is None:
            connection = _Connection(self._path)
            self._connection = host, connection  # the base class closes it
        return connection


class Supervisor:
    """A supervisord, reached through its control socket."""

    def __init__(self, path: Path) -> None:
        """Prepare the connection. Nothing is sent yet.

        Args:
            path: the control socket.
        """
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(path))

    def close(self) -> None:
        """Close the connection."""
        self._proxy("close")()

    def _call(self, name: str, *arguments: object) -> Any:
        try:
            return getattr(self._proxy.supervisor, name)(*arguments)
        except (OSError, HTTPException) as error:
            raise SupervisorError(
                f"supervisord does not answer ({error}): run settle down, then settle up."
            ) from error
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != SHUTTING_DOWN:
                raise
            raise SupervisorError("supervisord is shutting down: run settle up again.") from fault

    def pid(self) -> int | None:
        """Return the pid of the supervisord; None if none answers."""
        try:
            return int(self._call("getPID"))
        except SupervisorError:
            return None

    def processes(self) -> dict[str, Process]:
        """Return all programs by name.

        Raises:
            SupervisorError: it does not answer.
        """
        return {
            info["name"]: Process(
                name=info["name"],
                group=info["group"],
                state=info["statename"],
                pid=info["pid"] or None,
                uptime_s=max(info["now"] - info["start"], 0) if info["pid"] else None,
            )
            for info in self._call("getAllProcessInfo")
        }

    def start(self, names: Iterable[str]) -> None:
        """Start programs, and do not wait for them.

        Raises:
            SupervisorError: it does not answer, or cannot start one.
        """
        found = self.processes()
        for name in names:
            self._start_or_stop("startProcess", found[name], already=ALREADY_STARTED)

    def stop(self, names: Iterable[str], *, timeout_s: float) -> None:
        """Stop programs at the same time, and wait until they have ended.

        Args:
            names: the programs' names; unknown names are ignored.
            timeout_s: the time limit, longer than each program's `stopwaitsecs`.

        Raises:
            SupervisorError: it does not answer, or a program has not ended in time.
        """
        found = self.processes()
        wanted = [name for name in names if name in found]
        for name in wanted:
            if not found[name].stopped:
                self._start_or_stop("stopProcess", found[name], already=NOT_RUNNING)

        def all_stopped() -> bool:
            now = self.processes()
            return all(now[name].stopped for name in wanted)

        if not wait_for(all_stopped, timeout_s=timeout_s):
            raise SupervisorError(
                f"{', '.join(wanted)} did not all stop within {timeout_s:.0f} s: settle down ends "
                "them."
            )

    def _start_or_stop(self, call: str, process: Process, *, already: int) -> None:
        name = f"{process.group}:{process.name}"
        try:
            self._call(call, name, False)  # noqa: FBT003 - wait=False; the protocol has no names
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != already:
                raise SupervisorError(
                    f"supervisord refuses to {call.removesuffix('Process')} {name} "
                    f"({fault.faultString}): see settle logs supervisord."
                ) from fault

    def shutdown(self) -> None:
        """Stop supervisord, and all programs that still run.

        Raises:
            SupervisorError: it does not answer.
        """
        self._call("shutdown")


def wait_for(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Poll a condition until it is true. Return whether it was in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def start_supervisor(stack: Stack) -> Supervisor:
    """Start supervisord, detached, without any program.

    Raises:
        SupervisorError: it did not start. The message contains its output.
    """
    scripts = sysconfig.get_path("scripts")
    environment = {**inherited_environment(), **stack.environment}
    environment["PATH"] = f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        [f"{scripts}/supervisord", "--configuration", "deploy/supervisord.conf"],
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C goes only to settle, which stops supervisord in order
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    supervisor = Supervisor(stack.state.socket)
    if done.returncode != 0 or not wait_for(
        lambda: supervisor.pid() is not None, timeout_s=START_TIMEOUT_S
    ):
        raise SupervisorError(
            f"supervisord did not start: {done.stdout.strip() or 'no output'} "
            f"(see {stack.state.logs / 'supervisord.log'})"
        )
    return supervisor
