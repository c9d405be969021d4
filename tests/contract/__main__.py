"""Many requests of schemathesis's making against both services: ``make fuzz``.

    make fuzz ARGS="--max-examples 1000 --seed 7"

The arguments are those of ``schemathesis run``. At the end: how many requests there were, and their
answers. Exit code 1 when a check failed, or an answer was 5xx.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from contract.runs import run, statuses
from shared.migrations import upgrade
from support.openapi import SERVICES
from support.postgres import PostgresServer
from support.web import serve


def main(options: list[str]) -> int:
    """Run both, one after the other."""
    failed = False
    folder = Path(tempfile.mkdtemp(prefix="settle-fuzz-"))
    with PostgresServer() as server:
        for service in SERVICES:
            url = server.create_database(service)
            upgrade(service, url)
            log = folder / f"{service}.log"
            with serve(service, url, log, LOG_FORMAT="json", LOG_LEVEL="INFO") as api:
                found = run(api, *options)
            click.echo(found.stdout)
            seen = statuses(log)
            told = ", ".join(f"{status}: {count}" for status, count in sorted(seen.items()))
            click.echo(f"{service}: {seen.total()} requests; {told}; log: {log}")
            failed |= found.returncode != 0 or any(status >= 500 for status in seen)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
