"""The start of an API with the deployed gunicorn configuration, without supervisord."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.ports import free_port
from support.waiting import wait_until
from support.web import NO_DATABASE, ROOT, gunicorn, open_app, serve

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def start(**environ: str) -> subprocess.CompletedProcess[str]:
    """Start the orders API with settings that make it end, and wait for its end."""
    return subprocess.run(
        [
            sys.executable,
            *("-m", "gunicorn", "--config", "deploy/gunicorn.conf.py"),
            "services.orders.app:create_app()",
        ],
        cwd=ROOT,
        env=os.environ | {"ORDERS_DATABASE_URL": NO_DATABASE} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("health_dir", ["", "/nonexistent"])
def test_an_api_starts_without_supervisord(tmp_path: Path, health_dir: str) -> None:
    """An API that supervisord does not run ignores HEALTH_DIR."""
    with serve("orders", NO_DATABASE, tmp_path / "log", HEALTH_DIR=health_dir):
        log = (tmp_path / "log").read_text()

    assert "Traceback" not in log


def test_workers_and_threads_are_settings() -> None:
    """A worker has a database connection for each thread, and two more."""
    size = {"API_WORKERS": "3", "API_THREADS": "5"}

    printed = start(GUNICORN_CMD_ARGS="--print-config", **size).stdout
    with open_app("orders", NO_DATABASE, **size) as app:
        pool_size = app.extensions["settle-sessions"].kw["bind"].pool.size()

    lines = [line.split() for line in printed.splitlines()]
    assert ["workers", "=", "3"] in lines
    assert ["threads", "=", "5"] in lines
    assert pool_size == 7


def test_a_bind_option_may_replace_the_port(tmp_path: Path) -> None:
    """An empty PORT counts as unset."""
    port, log = free_port(), tmp_path / "log"
    bind = f"--bind 127.0.0.1:{port}"

    server = gunicorn("orders", NO_DATABASE, port, log, PORT="", GUNICORN_CMD_ARGS=bind)

    try:
        wait_until(
            lambda: f"Listening at: http://127.0.0.1:{port} " in log.read_text(), timeout_s=30
        )
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_an_invalid_port_ends_the_start_with_one_sentence() -> None:
    ended = start(PORT="eighty")

    assert ended.returncode == 1
    assert ended.stderr == "PORT is 'eighty': expected a whole number from 1 to 65535\n"


def test_a_health_dir_that_is_not_writable_ends_the_start_with_one_sentence() -> None:
    ended = start(
        PORT=str(free_port()), HEALTH_DIR="/nonexistent", SUPERVISOR_PROCESS_NAME="orders-api"
    )

    assert ended.returncode == 1
    assert "HEALTH_DIR is '/nonexistent': cannot write to it (No such file or directory)" in (
        ended.stderr
    )
    assert "Traceback" not in ended.stderr
