"""What an embedded server finds in its environment: nothing that is secret."""

from __future__ import annotations

import os

# Where things are and how they are written; and by what `settle` knows a process of its own stack
# (settle/stack/leftovers.py).
NAMES = frozenset(
    (
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "JAVA_HOME"),
        *("SETTLE_HOME", "SUPERVISOR_PROCESS_NAME"),
    )
)


def clean_environment() -> dict[str, str]:
    """Return the environment for a server: these names of this process's, and no other.

    Others may read a server's environment: PostgreSQL's belongs to another user than root's.
    """
    return {name: value for name, value in os.environ.items() if name in NAMES}
