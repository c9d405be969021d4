"""Processes of the stack that are not supervised any more, because their supervisord was killed.

Also the workers of a killed gunicorn, which hold its port until they notice.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psutil

from settle.stack.definition import APIS, BROKER, POSTGRES, WORKERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from settle.stack.embedded.postgres import Cluster
    from settle.stack.state import StateFolder

PROGRAMS = frozenset({POSTGRES, BROKER, *APIS, *WORKERS})
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 10.0


def find_leftovers(state: StateFolder) -> list[psutil.Process]:
    """Return the processes of the stack's programs, their children, and its supervisord.

    They are found by the environment that supervisord gives them.
    """
    return [process for process in psutil.process_iter() if _is_of_stack(process, state)]


def _is_of_stack(process: psutil.Process, state: StateFolder) -> bool:
    try:
        environment = process.environ()
        if process.pid == os.getpid() or environment.get("SETTLE_HOME") != str(state.home):
            return False
        # supervisord by its command: its pid file may be stale, or not be written yet.
        return environment.get("SUPERVISOR_PROCESS_NAME") in PROGRAMS or any(
            word.endswith("deploy/supervisord.conf") for word in process.cmdline()
        )
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return False


def end_leftovers(state: StateFolder, cluster: Cluster | None) -> int:
    """End the leftover processes, the database last. Return how many there were.

    Call it only while supervisord does not run: it would start them again.
    """
    # PostgreSQL overwrites its environment, so it is found by its data directory.
    database_pid = cluster.running_pid() if cluster is not None else None
    programs = [process for process in find_leftovers(state) if process.pid != database_pid]
    database = [psutil.Process(database_pid)] if database_pid is not None else []
    _end(programs, signal.SIGTERM)
    _end(database, signal.SIGINT)
    return len(programs) + len(database)


def _end(processes: Sequence[psutil.Process], how: signal.Signals) -> None:
    for process in processes:
        _send(process, how)
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=KILL_TIMEOUT_S)


def _send(process: psutil.Process, how: signal.Signals) -> None:
    try:
        process.send_signal(how)
    except psutil.NoSuchProcess:
        return
