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
    """Return the environment for a server: only these variables of this process.

    Another user may read a server's environment: as root, PostgreSQL runs as another user.
    """
    return {name: value for name, value in os.environ.items() if name in NAMES}
