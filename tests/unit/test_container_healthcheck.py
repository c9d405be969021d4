"""Containers run deploy/healthcheck, which reports whether their process is healthy."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from settle_outbox.runtime.health import Health
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECK = Path(__file__).resolve().parents[2] / "deploy" / "healthcheck"
RELAY = "outbox-relay-orders"


def _check(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECK, *names],
        env={**os.environ, "HEALTH_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("age_s", "code"), [(0, 0), (25, 0), (35, 1)])
def test_a_process_without_a_heartbeat_for_30_s_is_not_healthy(
    tmp_path: Path, age_s: int, code: int
) -> None:
    Health(str(tmp_path), RELAY).beat("waiting", "no database")
    (file,) = tmp_path.iterdir()
    os.utime(file, (time.time() - age_s,) * 2)

    found = _check(tmp_path, RELAY)

    assert found.returncode == code
    assert (RELAY in found.stdout) == (code == 1)


def test_each_process_must_be_healthy(tmp_path: Path) -> None:
    Health(str(tmp_path), RELAY).beat("ready")

    found = _check(tmp_path, RELAY, "inbox-consumer-orders")

    assert found.returncode == 1
    assert found.stdout == "inbox-consumer-orders has written no heartbeat for 30 s\n"


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[int]:
    """Serve /readyz with a status, and return the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("api", "code"), [(200, 0), (503, 1)], indirect=["api"])
def test_an_api_is_healthy_when_it_is_ready(tmp_path: Path, api: int, code: int) -> None:
    assert _check(tmp_path, str(api)).returncode == code


def test_an_api_that_does_not_listen_is_not_healthy(tmp_path: Path) -> None:
    assert _check(tmp_path, str(free_port())).returncode == 1
