"""Stop the whole stack: first the programs that use a server, then the server."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psutil

from settle.stack.definition import APIS, BROKER, POSTGRES, WORKERS, running_stack
from settle.stack.leftovers import end_leftovers
from settle.stack.supervisor import Supervisor, SupervisorError, wait_for

if TYPE_CHECKING:
    from settle.progress import Say
    from settle.stack.state import StateFolder

# With time-outs in seconds, above each program's stopwaitsecs in deploy/programs. After the
# stopwaitsecs, supervisord kills the program.
STAGES = (((*APIS, *WORKERS), 40.0), ((BROKER,), 40.0), ((POSTGRES,), 70.0))
SHUTDOWN_TIMEOUT_S = 20.0


def take_down(state: StateFolder, say: Say) -> bool:
    """Stop everything, and leave no process behind.

    Args:
        state: the stack's folder.
        say: prints that another command must end first.

    Returns:
        Whether there was anything to stop.
    """
    if not state.home.exists():
        return False
    with state.locked(say):
        return stop_all(state)


def stop_all(state: StateFolder) -> bool:
    """Stop everything. The caller holds the folder's lock."""
    stack = running_stack(state)
    supervisor = Supervisor(state.socket)
    pid = supervisor.pid()
    if pid is not None:
        _stop_by(supervisor, pid)
    # Even if supervisord ran: the workers of a killed gunicorn may run for another moment.
    left = end_leftovers(state, stack.cluster if stack is not None else None)
    state.env.unlink(missing_ok=True)
    return pid is not None or left > 0


def _stop_by(supervisor: Supervisor, pid: int) -> None:
    try:
        for names, timeout_s in STAGES:
            supervisor.stop(names, timeout_s=timeout_s)
        supervisor.shutdown()
    except SupervisorError:
        pass  # it hangs or has died; the caller ends what is left
    if not wait_for(lambda: not psutil.pid_exists(pid), timeout_s=SHUTDOWN_TIMEOUT_S):
        os.kill(pid, signal.SIGKILL)
