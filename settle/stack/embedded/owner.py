"""The user that PostgreSQL runs as: it refuses to be root."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from pathlib import Path


class RunAs(TypedDict, total=False):
    """What `subprocess` needs to become another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Owner:
    """A user other than root; `switch` says whether it differs from the one running now."""

    uid: int
    gid: int
    switch: bool

    @property
    def run_as(self) -> RunAs:
        """Arguments for `subprocess` that make a child run as this user."""
        if not self.switch:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def become(self) -> None:
        """Make the running process this user's, for good."""
        if self.switch:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)

    def reaches(self, path: Path) -> bool:
        """Whether this user may enter the folder, or run the file, at `path`."""
        # Asked of the kernel as that user: modes, ACLs and mounts are too many to work out here.
        command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
        asked = subprocess.run(command, cwd="/", check=False, **self.run_as)
        return asked.returncode == 0


def server_owner() -> Owner:
    """The user for server processes: the one running now, or `nobody` when that is root."""
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid(), switch=False)
    nobody = pwd.getpwnam("nobody")
    return Owner(nobody.pw_uid, nobody.pw_gid, switch=True)
