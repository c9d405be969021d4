"""Remove everything that the stack stores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from settle.stack.down import stop_all
from settle.stack.embedded.postgres import kept_elsewhere

if TYPE_CHECKING:
    from settle.progress import Say
    from settle.stack.state import StateFolder


def kept(state: StateFolder) -> list[Path]:
    """Return what the stack has created, but no other files in its folder."""
    own = (
        state.postgres,
        state.kafka,
        state.logs,
        state.socket,
        state.run,
        state.env,
        state.new_env,
    )
    found = [path for path in (*own, *kept_elsewhere(state.postgres)) if path.exists()]
    return [path for path in found if not _in_use(path)]


def reset(state: StateFolder, say: Say) -> list[Path]:
    """Stop everything, and remove all that is stored.

    Args:
        state: the stack's folder.
        say: prints that another command must end first.

    Returns:
        The paths that were removed.
    """
    if not state.home.exists() and not kept(state):
        return []
    with state.locked(say):
        stop_all(state)
        removed = kept(state)
        for path in removed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in removed:
            _remove_if_empty(path.parent)
        # Remove the lock last: a waiting process creates it again.
        state.lock.unlink()
        _remove_if_empty(state.home)
    return removed


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # it is not empty
        return


def _in_use(folder: Path) -> bool:
    """Return whether another stack of the same checkout runs programs from a folder."""
    # Processes of other users, and those that have ended, have no path here.
    return any(
        Path(process.info["exe"]).is_relative_to(folder)
        for process in psutil.process_iter(["exe"])
        if process.info["exe"]
    )
