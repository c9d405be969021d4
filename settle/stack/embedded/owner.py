"""The user that PostgreSQL runs as. PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from pathlib import Path


class RunAs(TypedDict, total=False):
    """The arguments of `subprocess` that run a child as another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Owner:
    """A user other than root. `switch` is true if it is not the current user."""

    uid: int
    gid: int
    switch: bool

    @property
    def run_as(self) -> RunAs:
        """The arguments of `subprocess` that run a child as this user."""
        if not self.switch:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def become(self) -> None:
        """Switch this process to this user, permanently."""
        if self.switch:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)

    def reaches(self, path: Path) -> bool:
        """Return whether this user may enter the folder or run the file at `path`."""
        # The kernel decides, as that user: modes, ACLs and mounts are hard to compute here.
        command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
        asked = subprocess.run(command, cwd="/", check=False, **self.run_as)
        return asked.returncode == 0


def server_owner() -> Owner:
    """Return the user for server processes: the current user, or `nobody` for root.

    Raises:
        SettleError: the current user is root, and there is no user `nobody`.
    """
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid(), switch=False)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise SettleError(
            "PostgreSQL does not run as root, and there is no user nobody: create that user, or run"
            " settle as an ordinary user."
        ) from error
    return Owner(nobody.pw_uid, nobody.pw_gid, switch=True)
