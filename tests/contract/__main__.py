"""Send many generated requests to both services with schemathesis: ``make fuzz``.

    make fuzz ARGS="--max-examples 1000 --seed 7"

The arguments are those of ``schemathesis run``. At the end, the command prints for each service the
number of requests and the statuses of the answers. The exit code is 1 if a check failed or an
answer was 5xx.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import click

from contract.runs import run, statuses
from shared.migrations import upgrade
from support.openapi import SERVICES
from support.postgres import PostgresServer
from support.web import serve


def main(options: list[str]) -> int:
    """Run both services at once, each on a separate database."""
    folder = Path(tempfile.mkdtemp(prefix="settle-fuzz-"))
    with PostgresServer() as server, ThreadPoolExecutor(len(SERVICES)) as pool:
        urls = {service: server.create_database(service) for service in SERVICES}
        for service, url in urls.items():  # one after the other, because Alembic has global state
            upgrade(service, url)
        runs = [
            pool.submit(_fuzz, service, url, folder / f"{service}.log", options)
            for service, url in urls.items()
        ]
        failed = [done.result() for done in as_completed(runs)]
    return int(any(failed))


def _fuzz(service: str, url: str, log: Path, options: list[str]) -> bool:
    """Test one service, and print the result.

    Returns:
        Whether a check failed or an answer was 5xx.
    """
    with serve(service, url, log, LOG_FORMAT="json", LOG_LEVEL="INFO") as api:
        found = run(api, *options)
    seen = statuses(log)
    summary = ", ".join(f"{status}: {count}" for status, count in sorted(seen.items()))
    click.echo(f"{found.stdout}\n{service}: {seen.total()} requests; {summary}; log: {log}")
    return found.returncode != 0 or any(status >= 500 for status in seen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
