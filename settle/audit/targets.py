"""The databases and the broker that an audit reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from settle.stack.definition import BOOTSTRAP, DATABASE_URLS, running_stack, take_environment
from settle.stack.state import open_state
from settle.stack.supervisor import Supervisor
from settle_outbox.errors import SettleError
from settle_outbox.settings import read_settings

if TYPE_CHECKING:
    from settle_outbox.settings import Settings

VARIABLES = (*DATABASE_URLS.values(), BOOTSTRAP)


def is_environment_set() -> bool:
    """Return whether the environment names the databases and the broker."""
    return all(os.environ.get(name) for name in VARIABLES)


def find_settings() -> dict[str, Settings]:
    """Return the settings of both services: of the environment, or of the stack that runs here.

    If the environment names all servers, the state folder is not opened: another user may own it.

    Raises:
        SettingsError: a variable is wrong.
        SettleError: the variables are not set, and no stack runs here.
    """
    if not is_environment_set():
        state = open_state()
        stack = running_stack(state)
        if stack is None or Supervisor(state.socket).pid() is None:
            raise SettleError(f"No stack runs here. Run settle up, or set {', '.join(VARIABLES)}.")
        take_environment(stack)
    return {service: read_settings(service) for service in DATABASE_URLS}
