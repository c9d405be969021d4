"""Run the doctor, and read the result of a check by its name."""

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

# A port where nothing ever listens: tcpmux.
NOWHERE = "127.0.0.1:1"
# The names of the checks that warn about the PostgreSQL of the tests, because it does not wait for
# its disk (support/postgres.py). Tests ignore these warnings.
UNDURABLE = {f"{service} durability" for service in SERVICES}


@dataclass
class Doctor:
    """Runs the doctor on databases and a broker, without a running stack.

    Args:
        folder: The folder of a stack that does not run.
        urls: The database URLs, by service.
        bootstrap: The broker's address.
    """

    folder: Path
    urls: Mapping[str, str]
    bootstrap: str = NOWHERE
    seen: dict[str, Finding] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment variables that name the databases and the broker."""
        given = {DATABASE_URLS[service]: url for service, url in self.urls.items()}
        return {"SETTLE_HOME": str(self.folder), BOOTSTRAP: self.bootstrap, **given}

    def examine(self, *services: str, **environ: str) -> dict[str, Finding]:
        """Run all checks, and return the findings by name."""
        with environment({**self.environ, **environ}):
            checks = list(
                examine(StateFolder(self.folder), quick=False, services=services or SERVICES)
            )
        self.seen = {check.name: check for check in checks}
        assert len(self.seen) == len(checks), "two checks have the same name"
        return self.seen

    def verdict(self, name: str, **environ: str) -> tuple[str, str]:
        """Return the verdict and the finding of one check. A bad finding must name a remedy."""
        check = self.examine(*self.urls, **environ)[name]
        assert (check.verdict == "ok") == (check.remedy == ""), check
        return str(check.verdict), check.found
