"""Stop all programs of supervisord, as on a server or in a container, and stop a single API."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from settle.stack.down import STAGES
from settle.stack.up import STOP_TIMEOUT_S
from support.ports import free_port
from support.waiting import wait_until
from support.web import gunicorn

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sysconfig.get_path("scripts")
SERVICES = ("orders", "payments")
PARTS = {"api": "gunicorn", "relay": "outbox-relay", "consumer": "inbox-consumer"}
STOP_TAKES_S = 2

# Stands for a program whose last request or batch takes a while.
PROGRAM = f"""\
#!/bin/bash
note() {{ date +%s.%N > "$NOTES/$SUPERVISOR_PROCESS_NAME.$1"; }}
trap 'note stopping; sleep {STOP_TAKES_S}; note ended; exit 0' TERM
note started
while :; do sleep 0.05; done
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Return the folder in which each program notes when it was started, signalled, and ended."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def supervisord(tmp_path: Path, notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run both services as on a server, with slow programs in place of the real ones."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in PARTS.values():
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    settings = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "SETTLE_RUN_DIR": str(tmp_path),
        "SETTLE_LOG_DIR": str(tmp_path),
        "SETTLE_SOCKET": f"/tmp/settle-test-{os.getpid()}.sock",
        "SETTLE_AUTOSTART": "true",
        "SETTLE_INCLUDE": " ".join(f"programs/{service}.conf" for service in SERVICES),
        "ORDERS_PORT": str(free_port()),
        "PAYMENTS_PORT": str(free_port()),
    }
    process = subprocess.Popen(
        [f"{SCRIPTS}/supervisord", "--nodaemon", "--configuration", "deploy/supervisord.conf"],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.terminate()
    process.wait(60)


def test_the_programs_of_a_service_stop_at_the_same_time(
    supervisord: subprocess.Popen[bytes], notes: Path
) -> None:
    wait_until(lambda: len(list(notes.glob("*.started"))) == 6, what="all programs to run")

    supervisord.send_signal(signal.SIGTERM)
    assert supervisord.wait(60) == 0

    for service in SERVICES:
        last_signal = max(_times(notes, service, "stopping"))
        first_end = min(_times(notes, service, "ended"))
        assert last_signal < first_end


def test_an_api_that_stops_is_not_ready(database_url: str, tmp_path: Path) -> None:
    """A load balancer sees this on a connection that is still open. New ones are refused."""
    port = free_port()
    server = gunicorn("orders", database_url, port, tmp_path / "log")
    seen: list[tuple[int, str]] = []

    def is_over() -> bool:
        answer = balancer.get(f"http://127.0.0.1:{port}/readyz", timeout=30)
        seen.append((answer.status_code, answer.headers["Connection"]))
        return answer.headers["Connection"] == "close"

    with requests.Session() as balancer:
        wait_until(lambda: _is_ready(balancer, port), timeout_s=60, what="the API")

        server.terminate()
        wait_until(is_over, what="the end of the connection")

    assert server.wait(30) == 0
    assert seen[-1] == (503, "close")


def test_each_grace_period_is_longer_than_what_happens_in_it() -> None:
    graceful_s = float(_value(ROOT / "deploy/gunicorn.conf.py", "graceful_timeout"))
    waits_s = {service: _stop_waits_s(service) for service in SERVICES}
    longest_s = {service: max(waits) for service, waits in waits_s.items()}

    for service in SERVICES:
        assert min(waits_s[service]) > graceful_s
        assert max(waits_s[service]) < STOP_TIMEOUT_S
        assert max(waits_s[service]) < STAGES[0][1]
    container_s = _value(ROOT / "compose.yaml", "  stop_grace_period")
    assert float(container_s.rstrip("s")) > max(longest_s.values())
    systemd_s = _value(ROOT / "deploy/systemd/settle.service", "TimeoutStopSec")
    assert float(systemd_s) > sum(longest_s.values())


def _is_ready(client: requests.Session, port: int) -> bool:
    try:
        return client.get(f"http://127.0.0.1:{port}/readyz", timeout=30).ok
    except requests.ConnectionError:
        return False


def _times(notes: Path, service: str, event: str) -> list[float]:
    return [float((notes / f"{service}-{part}.{event}").read_text()) for part in PARTS]


def _stop_waits_s(service: str) -> list[float]:
    """Return how long supervisord waits for each program of a service before it kills it."""
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / f"deploy/programs/{service}.conf")
    names = parser[f"group:{service}"]["programs"].split(",")
    return [float(parser[f"program:{name}"]["stopwaitsecs"]) for name in names]


def _value(path: Path, name: str) -> str:
    """Return the first value of a setting in a file."""
    lines = path.read_text().splitlines()
    line = next(line for line in lines if line.startswith(name))
    return line.removeprefix(name).lstrip(" :=")
