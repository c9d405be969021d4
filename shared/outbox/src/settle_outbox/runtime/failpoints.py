"""Exact places to die, for the tests of what happens then. Off, they cost one look at a dict.

``FAILPOINTS="relay.sent=kill,consumer.applied=stop@3"`` kills the process the first time it gets
to ``relay.sent``, and stops it (SIGSTOP) the third time it gets to ``consumer.applied``.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class FailpointError(SettleError):
    """The variable FAILPOINTS cannot be read."""


def _parse(text: str) -> dict[str, tuple[signal.Signals, int]]:
    armed = {}
    for item in filter(None, text.split(",")):
        name, _, rest = item.partition("=")
        action, _, count = rest.partition("@")
        if action not in _ACTIONS or not (count or "1").isdecimal():
            raise FailpointError(
                f"FAILPOINTS: cannot read {item!r}; expected NAME=kill or NAME=stop, then @COUNT"
            )
        armed[name.strip()] = (_ACTIONS[action], int(count or "1"))
    return armed


_armed: dict[str, tuple[signal.Signals, int]] = {}


def arm(environ: Mapping[str, str]) -> None:
    """Arm the failpoints that the environment names; called once, at start."""
    _armed.update(_parse(environ.get("FAILPOINTS", "")))


def failpoint(name: str) -> None:
    """Die here, if armed to."""
    if not _armed or name not in _armed:
        return
    action, count = _armed[name]
    _armed[name] = (action, count - 1)
    if count == 1:
        os.kill(os.getpid(), action)
