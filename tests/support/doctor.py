"""The doctor, to see a named check come out well or ill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from settle.doctor.examine import examine
from settle.stack.definition import BOOTSTRAP, DATABASE_URLS, SERVICES
from settle.stack.state import StateFolder
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from settle_outbox.checks.check import Finding

# Where nothing listens, and nothing will: the port of tcpmux.
NOWHERE = "127.0.0.1:1"
# The tests' own server does not wait for its disk (support/postgres.py), and is told so.
UNDURABLE = {f"{service} durability" for service in SERVICES}


@dataclass
class Doctor:
    """What it is given to look at, without a stack of its own.

    Args:
        folder: of a stack that does not run.
        urls: of the databases, by service.
        bootstrap: the broker.
    """

    folder: Path
    urls: Mapping[str, str]
    bootstrap: str = NOWHERE
    seen: dict[str, Finding] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """What names it all to a process."""
        given = {DATABASE_URLS[service]: url for service, url in self.urls.items()}
        return {"SETTLE_HOME": str(self.folder), BOOTSTRAP: self.bootstrap, **given}

    def examine(self, *services: str, **environ: str) -> dict[str, Finding]:
        """Every check, by its name."""
        with environment({**self.environ, **environ}):
            checks = list(
                examine(StateFolder(self.folder), quick=False, services=services or SERVICES)
            )
        self.seen = {check.name: check for check in checks}
        assert len(self.seen) == len(checks), "two checks of one name"
        return self.seen

    def verdict(self, name: str, **environ: str) -> tuple[str, str]:
        """How one check comes out, and what was found; bad ones have to say what to do."""
        check = self.examine(*self.urls, **environ)[name]
        assert (check.verdict == "ok") == (check.remedy == ""), check
        return str(check.verdict), check.found
