"""Processes of the stack that nobody watches any more, because their supervisord was killed.

Also the workers of a killed gunicorn, which hold its port until they notice.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from settle.stack.definition import APIS, BROKER, POSTGRES, WORKERS
from settle.stack.supervisor import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from settle.stack.embedded.postgres import Cluster
    from settle.stack.state import StateFolder

OURS = frozenset({POSTGRES, BROKER, *APIS, *WORKERS})
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 10.0


def find_leftovers(state: StateFolder) -> list[int]:
    """The pids of the stack's programs, their children, and its supervisord.

    Found by the environment that supervisord gives what it starts, where the system shows it
    (``/proc``).
    """
    home = f"SETTLE_HOME={state.home}"
    names = {f"SUPERVISOR_PROCESS_NAME={name}" for name in OURS}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        environment = _strings(folder / "environ")
        if pid == os.getpid() or home not in environment:
            continue
        if not names.isdisjoint(environment) or _is_supervisor(folder):
            found.append(pid)
    return found


def _is_supervisor(folder: Path) -> bool:
    """By its command, not its pid file: that one may be stale, or not be written yet."""
    command = _strings(folder / "cmdline")
    return any(word.endswith("deploy/supervisord.conf") for word in command)


def _strings(path: Path) -> set[str]:
    try:
        return set(path.read_bytes().decode(errors="surrogateescape").split("\0"))
    except OSError:  # ended meanwhile, or someone else's
        return set()


def end_leftovers(state: StateFolder, cluster: Cluster | None) -> int:
    """End what is left over, the database last; returns how many processes there were.

    Call it only when no supervisord answers: it would start them again.
    """
    database = cluster.running_pid() if cluster is not None else None
    found = [pid for pid in find_leftovers(state) if pid != database]
    _end(found, signal.SIGTERM)
    if database is not None:
        _end([database], signal.SIGINT)
        return len(found) + 1
    return len(found)


def _end(pids: Iterable[int], how: signal.Signals) -> None:
    alive = _signal(pids, how)
    if not wait_for(lambda: not _signal(alive, None), timeout_s=STOP_TIMEOUT_S):
        _signal(alive, signal.SIGKILL)
        wait_for(lambda: not _signal(alive, None), timeout_s=KILL_TIMEOUT_S)


def _signal(pids: Iterable[int], how: signal.Signals | None) -> list[int]:
    """Signal processes, or only ask; returns those that are there."""
    alive = []
    for pid in pids:
        try:
            os.kill(pid, how or 0)
        except ProcessLookupError:
            continue
        alive.append(pid)
    return alive
