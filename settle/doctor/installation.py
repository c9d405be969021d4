"""The Python version, and the installed packages and programs."""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.metadata import distributions, requires, version
from pathlib import Path
from re import match
from typing import TYPE_CHECKING

from settle_outbox.checks.check import fail, ok

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle_outbox.checks.check import Finding

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
PROGRAMS = ("supervisord", "gunicorn", "outbox-relay", "inbox-consumer")
INSTALL = "run make install"


def check_python() -> Iterator[Finding]:
    """Check the Python version, and that every needed package and program is installed."""
    found = sys.version.split()[0]
    if sys.version_info[:2] in PYTHONS:
        yield ok("python", found)
    else:
        yield fail("python", found, "install 3.11 to 3.14, and run make install PYTHON=/path/to/it")
    missing = [name for name in _required() if not any(distributions(name=name))]
    scripts = Path(sysconfig.get_path("scripts"))
    missing += [name for name in PROGRAMS if not os.access(scripts / name, os.X_OK)]
    if missing:
        yield fail("packages", f"not installed: {', '.join(missing)}", INSTALL)
    else:
        yield ok("packages", f"all that settle {version('settle')} needs are installed")


def _required() -> Iterator[str]:
    for requirement in requires("settle") or ():
        name = match(r"[\w.-]+", requirement)
        if name and ";" not in requirement:  # a package of an extra is optional
            yield name[0]
