"""The warning about a stack that runs as root, and the commands to run it as another user."""

from __future__ import annotations

import shlex
import sys
import sysconfig
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from settle.stack.embedded.owner import server_owner
from settle.stack.embedded.postgres import kept_elsewhere

if TYPE_CHECKING:
    from settle.stack.state import StateFolder

AS_ROOT = "the APIs, relays, consumers and the broker run as root; only PostgreSQL does not"
_LINE_WIDTH = 88


def how_to_leave_root(state: StateFolder) -> list[str]:
    """Return the commands that hand a stack and its data to a new user. Call it as root only.

    If that user could not reach the programs, the result says what to do first, in steps.

    Args:
        state: the stack's folder.

    Returns:
        Lines to print. Joined by spaces, they are still one command, or the steps.
    """
    settle = Path(sysconfig.get_path("scripts"), "settle")
    data = kept_elsewhere(state.postgres)[0]
    kept = [str(state.home), *([str(data)] if data.exists() else [])]
    down, up = (
        shlex.join(["env", f"SETTLE_HOME={state.home}", str(settle), command])
        for command in ("down", "up")
    )
    commands = (
        down,
        "useradd --create-home settle",
        shlex.join(["chown", "--recursive", "settle:", *kept]),
        shlex.join(["su", "-", "settle", "--command", up]),
    )
    needed = (settle, Path(sys.executable).resolve(), state.nearest)
    closed = [str(path) for path in needed if not server_owner().reaches(path)]
    if closed:
        steps = (
            f"Other users cannot read {', '.join(closed)}.",
            f"(1) Stop: {down}.",
            "(2) Install Python and Settle under /srv.",
            "(3) Run settle up there as root, with SETTLE_HOME under /srv: it prints the rest.",
        )
        return [line for step in steps for line in _wrap(step)]
    *first, last = commands
    return [*(f"{command} &&" for command in first), last]


def _wrap(step: str) -> list[str]:
    return wrap(step, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False)
