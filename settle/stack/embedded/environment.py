"""The environment of an embedded server, without secrets."""

from __future__ import annotations

import os

# Paths and locale, and the variables by which settle/stack/leftovers.py finds the processes.
NAMES = frozenset(
    (
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "JAVA_HOME"),
        *("SETTLE_HOME", "SUPERVISOR_PROCESS_NAME"),
    )
)


def clean_environment() -> dict[str, str]:
    """Return the environment for a server: only the variables `NAMES` of this process.

    If root runs the stack, PostgreSQL runs as another user, who can read its environment.
    """
    return {name: value for name, value in os.environ.items() if name in NAMES}
