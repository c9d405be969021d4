"""Named places in the code at which a test can kill or stop the process.

``FAILPOINTS="relay.sent=kill,consumer.applied=stop@3"`` kills the process when it first reaches
``relay.sent``, and stops it (SIGSTOP) when it reaches ``consumer.applied`` for the third time.
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
    """The variable FAILPOINTS is invalid."""


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
    """Activate the failpoints that the environment names. Call it once, at the start."""
    _armed.update(_parse(environ.get("FAILPOINTS", "")))


def failpoint(name: str) -> None:
    """Kill or stop the process if this failpoint is active."""
    if not _armed or name not in _armed:
        return
    action, count = _armed[name]
    _armed[name] = (action, count - 1)
    if count == 1:
        os.kill(os.getpid(), action)
