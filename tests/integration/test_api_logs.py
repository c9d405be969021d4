"""The log of an API in the deployed gunicorn."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import gunicorn
import pytest
import requests

from support.ports import free_port
from support.waiting import wait_until
from support.web import gunicorn as start_gunicorn
from support.web import serve

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SECRET = "hunter2"
USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"


def lines(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log. Each line must be JSON, even a line of gunicorn itself."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def requests_in(log: Path) -> list[dict[str, Any]]:
    return [line for line in lines(log) if line["event"] == "web.request"]


def test_each_request_has_one_log_line(payments_url: str, tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with serve("payments", payments_url, log) as url:
        headers = {"X-Request-ID": "r-1"}
        body = {"user_id": USER}
        requests.post(f"{url}/accounts", json=body, headers=headers, timeout=10)
        balance = requests.get(f"{url}/accounts/balance?user_id={USER}", timeout=10)
        requests.get(f"{url}/nothing", timeout=10)
        requests.delete(f"{url}/accounts", timeout=10)
    # Each worker process writes its lines up to 0.1 s later, so the order varies.
    logged = {(line["method"], line["path"]): line for line in requests_in(log)}
    assert len(logged) == 4
    created = logged["POST", "/accounts"]
    assert 0 < created.pop("ms") < 10_000
    assert created.pop("at").endswith("Z")
    assert created == {
        "event": "web.request",
        "level": "info",
        "method": "POST",
        "path": "/accounts",
        "status": 201,
        "request_id": "r-1",
    }
    balance_line = logged["GET", "/accounts/balance"]  # the path is logged without the query
    assert balance_line["request_id"] == balance.headers["X-Request-ID"]
    assert logged["GET", "/nothing"]["status"] == 404
    assert logged["DELETE", "/accounts"]["status"] == 405
    events = {line["event"].split(":")[0] for line in lines(log)}
    start = f"Starting gunicorn {gunicorn.__version__}"
    assert {start, "Listening at", "Booting worker with pid"} <= events


def test_probes_are_logged_at_debug_only(payments_url: str, tmp_path: Path) -> None:
    seen = {}
    for level in ("INFO", "DEBUG"):
        log = tmp_path / f"{level}.log"
        with serve("payments", payments_url, log, LOG_LEVEL=level) as url:
            requests.get(f"{url}/readyz", timeout=10)
        seen[level] = {line["path"] for line in requests_in(log)}
    assert seen == {"INFO": set(), "DEBUG": {"/livez", "/readyz"}}  # `serve` requests /livez


def test_no_password_and_no_body_is_ever_logged(tmp_path: Path) -> None:
    """The log level is DEBUG, and the requests fail."""
    log = tmp_path / "api.log"
    unreachable = f"postgresql+psycopg2://settle:{SECRET}@127.0.0.1:{free_port()}/orders"
    with serve("orders", unreachable, log, LOG_LEVEL="DEBUG") as url:
        requests.get(f"{url}/readyz", timeout=10)
        body = {"user_id": USER, "amount": 7, "description": "lunch with Eve"}
        assert requests.post(f"{url}/orders", json=body, timeout=10).status_code == 503
        body = {"user_id": "lunch with Eve", "amount": 7}
        assert requests.post(f"{url}/orders", json=body, timeout=10).status_code == 422
    written = log.read_text()
    assert "web.database_unavailable" in written
    assert SECRET not in written
    assert "Eve" not in written
    assert USER not in written


def test_a_defect_is_logged_with_the_request_id_but_without_values(
    payments_url: str, payments_session: Any, tmp_path: Path
) -> None:
    log = tmp_path / "api.log"
    payments_session.connection().exec_driver_sql(
        "ALTER TABLE accounts RENAME COLUMN user_id TO gone"
    )
    payments_session.commit()
    with serve("payments", payments_url, log) as url:
        headers = {"X-Request-ID": "r-2"}
        response = requests.post(
            f"{url}/accounts", json={"user_id": USER}, headers=headers, timeout=10
        )
    assert response.status_code == 500
    (failed,) = [line for line in lines(log) if line["event"] == "web.request_failed"]
    assert failed["request_id"] == "r-2"
    assert "UndefinedColumn" in failed["exception"]
    assert USER not in log.read_text()


def test_a_client_cannot_flood_the_log_with_long_values(payments_url: str, tmp_path: Path) -> None:
    """Log lines stay short, whichever part of a request is long and whether it is valid or not."""
    log = tmp_path / "api.log"
    sent = [
        b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /" + b"%F0%9F%98%80" * 300 + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /" + b"%ff" * 1300 + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /" + b"\xff" * 4000 + b" HTTP/1.1\r\nHost: localhost\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 8000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: " + b"x" * 8000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header" + b"\xff" * 7000 + b": x\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: " + b"x" * 7000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"y" * 7000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: " + b"x" * 7000 + b"\r\n",
        b"GARBAGE" * 500 + b"\r\n",
        b"G" * 3000 + b" / HTTP/1.1\r\nHost: localhost\r\n",
    ]
    with serve("payments", payments_url, log) as url:
        port = int(url.rpartition(":")[2])
        for head in sent:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(head + b"Connection: close\r\n\r\n")
                assert client.recv(4) == b"HTTP"

    logged_lines = lines(log)
    assert len(logged_lines) > len(sent)
    assert (
        max(len(value) for line in logged_lines for value in line.values() if type(value) is str)
        <= 200
    )
    assert max(map(len, log.read_bytes().splitlines())) < 12 * 200 + 400


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT"),
        ({"ORDERS_DATABASE_URL": ""}, "ORDERS_DATABASE_URL"),
        ({"TRUSTED_PROXIES": "many"}, "TRUSTED_PROXIES"),
        ({"ORDERS_DATABASE_URL": f"mysql://settle:{SECRET}@h/x"}, "ORDERS_DATABASE_URL"),
        ({"ORDERS_DATABASE_URL": f"settle:{SECRET}@h/x"}, "ORDERS_DATABASE_URL"),
    ],
)
def test_an_invalid_setting_ends_the_start_with_an_error_that_names_it(
    environ: dict[str, str], variable: str, tmp_path: Path
) -> None:
    log = tmp_path / "api.log"
    url = "postgresql+psycopg2://h/orders"
    server = start_gunicorn("orders", url, free_port(), log, **environ)
    wait_until(lambda: server.poll() is not None, timeout_s=30, what="gunicorn to give up")
    assert server.returncode != 0
    written = log.read_text()
    assert variable in written
    assert "Traceback" not in written
    assert SECRET not in written
