"""Removes everything that the stack keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from settle.stack.down import stop_all
from settle.stack.embedded.postgres import kept_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle.progress import Tell
    from settle.stack.state import StateFolder


def kept(state: StateFolder) -> list[Path]:
    """What there is to remove: what the stack makes, not what else lies in its folder."""
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


def reset(state: StateFolder, tell: Tell) -> list[Path]:
    """Stop everything, and remove all that is kept.

    Args:
        state: its folder.
        tell: is told when another command has to end first.

    Returns:
        What was removed.
    """
    if not state.home.exists() and not kept(state):
        return []
    with state.locked(tell):
        stop_all(state)
        removed = kept(state)
        for path in removed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in removed:
            _remove_if_empty(path.parent)
        # Last: whoever waits for it now makes it anew.
        state.lock.unlink()
        _remove_if_empty(state.home)
    return removed


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # something else lies in it
        return


def _in_use(folder: Path) -> bool:
    """Whether another stack, of the same checkout, runs programs from a folder."""
    return any(path.is_relative_to(folder) for path in _programs())


def _programs() -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "exe").readlink()
        except OSError:  # ended meanwhile, or someone else's
            continue
