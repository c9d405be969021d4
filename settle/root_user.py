"""What is said where root runs the stack: why it should not, and how to run it as another user."""

from __future__ import annotations

import shlex
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from settle.embedded.owner import server_owner
from settle.embedded.postgres import kept_elsewhere

if TYPE_CHECKING:
    from settle.state import StateFolder

AS_ROOT = "the APIs, relays, consumers and the broker run as root; only PostgreSQL does not"


def how_to_leave_root(state: StateFolder) -> str:
    """Give the commands that hand a stack to a new user, with what it keeps.

    Only for root.

    Args:
        state: its folder.
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
        return (
            f"other users cannot reach {', '.join(closed)}: first set up a checkout, Python and "
            f"SETTLE_HOME where they can, such as in /srv; then there, {'; '.join(commands)}"
        )
    return "; ".join(commands)
