"""The services' apps on a given database, and the expected form of their answers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from shared.settings import read_web_settings
from shared.web import access_log
from shared.web.waiting.waiters import end_waits
from support.environ import environment
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from shared.settings import WebSettings

ROOT = Path(__file__).resolve().parents[2]


# For an app whose tested parts need no database.
NO_DATABASE = "postgresql+psycopg2://nobody@127.0.0.1:1/none"


def settings_of(service: str, database_url: str, **environ: str) -> WebSettings:
    """Return the settings of an API with a database, read from these environment variables."""
    with environment({f"{service.upper()}_DATABASE_URL": database_url, **environ}):
        return read_web_settings(service)


@contextmanager
def open_app(service: str, database_url: str, **environ: str) -> Iterator[Flask]:
    """Open a service's app as a worker of gunicorn makes it, but without the logging."""
    settings = settings_of(service, database_url, **environ)
    app: Flask = import_module(f"services.{service}.app").create_app(settings)
    app.testing = True
    yield app
    end_waits(app)
    if "orders-watch" in app.extensions:
        app.extensions["orders-watch"].join()
    app.extensions["settle-sessions"].kw["bind"].dispose()
    # Write the log lines now, so that they do not appear in the output of a later test.
    access_log.writer()._write_all()  # noqa: SLF001


def gunicorn(
    service: str, database_url: str, port: int, log: Path, **environ: str
) -> subprocess.Popen[bytes]:
    """Start a service's API as it is deployed, and do not wait for it.

    Args:
        service: The service.
        database_url: The URL of its database.
        port: The port to listen on.
        log: The file for its output.
        environ: Further settings.
    """
    settings = {
        "PORT": str(port),
        f"{service.upper()}_DATABASE_URL": database_url,
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                *("-m", "gunicorn", "--config", "deploy/gunicorn.conf.py"),
                f"services.{service}.app:create_app()",
            ],
            cwd=ROOT,
            env=os.environ | settings | environ,
            stdout=output,
            stderr=output,
        )


@contextmanager
def serve(service: str, database_url: str, log: Path, **environ: str) -> Iterator[str]:
    """Run a service's API as it is deployed, and yield the API's URL when it answers.

    The arguments are those of `gunicorn`.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = gunicorn(service, database_url, port, log, **environ)
    try:
        wait_until(lambda: _lives(url), timeout_s=60, what=f"gunicorn; see {log}")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def _lives(url: str) -> bool:
    try:
        return requests.get(f"{url}/livez", timeout=30).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def pages(client: FlaskClient, address: str) -> list[list[dict[str, Any]]]:
    """Return every page of a list, read by its `next` links."""
    found = []
    path = address.partition("?")[0]
    following = address
    while True:
        response = client.get(following)
        assert response.status_code == 200, response.text
        found.append(response.get_json())
        link = response.headers.get("Link")
        if link is None:
            return found
        following = link.removeprefix("<").removesuffix('>; rel="next"')
        assert following.partition("?")[0] == f"http://localhost{path}", link


def problem_of(response: TestResponse, *statuses: int) -> dict[str, Any]:
    """Return an answer's problem document, after checking its form and status."""
    assert response.status_code in statuses, response.text
    assert response.content_type == "application/problem+json"
    document: dict[str, Any] = response.get_json(force=True)
    assert document["status"] == response.status_code
    assert document["type"].startswith("/problems/")
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["X-Request-ID"]
    assert document["instance"].endswith(f"#{document['request_id']}")
    return document
