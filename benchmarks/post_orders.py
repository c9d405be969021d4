"""How much of a bare handler's speed POST /orders reaches: `make bench`.

Both run under the same gunicorn settings on one PostgreSQL, in turn, round after round in one
run; what counts is the ratio of the medians, for the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from load import Load, post  # noqa: E402

from shared.migrations import upgrade  # noqa: E402
from support.ports import free_port  # noqa: E402
from support.postgres import PostgresServer  # noqa: E402
from support.waiting import wait_until  # noqa: E402

USER = "7f1d2c3b-4a59-4c6d-8e7f-90a1b2c3d4e5"
BODY = f'{{"user_id":"{USER}","amount":100,"description":"benchmark"}}'.encode()
APPS = {"bare": "bare:create_app()", "settle": "services.orders.app:create_app()"}


def _serve(app: str, environ: dict[str, str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "gunicorn"),
                *("--config", str(ROOT / "deploy" / "gunicorn.conf.py")),
                app,
            ],
            cwd=ROOT / "benchmarks",
            env={**environ, "PORT": str(port)},
            stdout=output,
            stderr=output,
        )
    return process, port


def _one(port: int) -> bool:
    try:
        return Load(port, post("/orders", BODY), b"202", connections=1, seconds=0.1).rate() > 0
    except RuntimeError:
        return False


def main() -> None:
    """Run the rounds and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()

    server = PostgresServer()
    server.start()
    processes = []
    try:
        url = server.create_database("orders")
        upgrade("orders", url)
        environ = {
            **os.environ,
            "ORDERS_DATABASE_URL": url,
            "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
            "LOG_LEVEL": "INFO",
        }
        log = Path(tempfile.mkdtemp(prefix="settle-bench-")) / "gunicorn.log"
        ports = {}
        for name, app in APPS.items():
            process, ports[name] = _serve(app, environ, log)
            processes.append(process)
        for name, port in ports.items():
            wait_until(lambda port=port: _one(port), timeout_s=30, what=f"{name}; see {log}")
        rates: dict[str, list[float]] = {name: [] for name in APPS}
        for number in range(given.rounds):
            for name, port in ports.items():
                load = Load(port, post("/orders", BODY), b"202", given.connections, given.seconds)
                rates[name].append(load.rate())
            shown = ", ".join(f"{name} {values[-1]:.0f}/s" for name, values in rates.items())
            print(f"round {number + 1}: {shown}")
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"median: bare {medians['bare']:.0f}/s, settle {medians['settle']:.0f}/s")
        print(f"POST /orders: {medians['settle'] / medians['bare']:.2f} of the bare handler")
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)
        server.discard()


if __name__ == "__main__":
    main()
