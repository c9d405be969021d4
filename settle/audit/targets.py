"""Which databases and which broker an audit looks at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from settle.stack.definition import BOOTSTRAP, DATABASE_URLS, running_stack, take_environment
from settle.stack.supervisor import Supervisor
from settle_outbox.errors import SettleError
from settle_outbox.settings import read_settings

if TYPE_CHECKING:
    from settle.stack.state import StateFolder
    from settle_outbox.settings import Settings

NAMED = (*DATABASE_URLS.values(), BOOTSTRAP)


def find_settings(state: StateFolder) -> dict[str, Settings]:
    """Settings of both services: those that the environment names, else those of the stack here.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
        SettleError: nothing is named, and nothing runs here.
    """
    if not all(os.environ.get(name) for name in NAMED):
        stack = running_stack(state)
        if stack is None or Supervisor(state.socket).pid() is None:
            raise SettleError(
                f"There is nothing to look at: settle up starts it, or set {', '.join(NAMED)}."
            )
        take_environment(stack)
    return {service: read_settings(service) for service in DATABASE_URLS}
