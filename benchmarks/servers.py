"""Run apps under gunicorn, with the settings of the services."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent

BARE = "bare:create_app()"
BARE_ORM = "bare_orm:create_app()"
ORDERS = "services.orders.app:create_app()"
PAYMENTS = "services.payments.app:create_app()"

_STOP_S = 30


@contextmanager
def served(
    app: str,
    database_url: str,
    log: Path,
    *,
    root: Path = ROOT,
    programs: Path = Path(sys.executable).parent,
) -> Iterator[int]:
    """Serve an app on a database, and yield its port.

    Args:
        app: One of the apps above.
        database_url: The URL of the database.
        log: The file for the log of gunicorn and the app.
        root: The checkout that contains the app.
        programs: The folder of that checkout's commands.
    """
    port = free_port()
    given = ("BENCH_DATABASE_URL", "ORDERS_DATABASE_URL", "PAYMENTS_DATABASE_URL")
    environ = {
        **os.environ,
        **dict.fromkeys(given, database_url),
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "LOG_LEVEL": "INFO",
        "LOG_FORMAT": "json",
        "PORT": str(port),
    }
    command = [
        str(programs / "gunicorn"),
        *("--config", str(root / "deploy" / "gunicorn.conf.py")),
        app,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=root / "benchmarks", env=environ, stdout=output, stderr=output
        )
    try:
        # The port opens before the workers start. A request that is sent now waits for them.
        wait_until(lambda: _listens(port), timeout_s=30, what=f"{app} to listen; see {log}")
        yield port
    finally:
        process.terminate()
        process.wait(_STOP_S)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
