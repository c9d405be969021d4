"""The services' apps on given databases, and what their answers must look like."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from shared.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask
    from werkzeug.test import TestResponse


@contextmanager
def open_app(service: str, database_url: str) -> Iterator[Flask]:
    """A service's app, as gunicorn's workers make it, but for the logging."""
    environ = {
        f"{service.upper()}_DATABASE_URL": database_url,
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",  # the apps never ask it
    }
    with patch.dict(os.environ, environ):
        settings = read_settings(service)
    app: Flask = import_module(f"services.{service}.app").create_app(settings)
    app.testing = True
    yield app
    app.extensions["settle-sessions"].kw["bind"].dispose()


def problem_of(response: TestResponse, *statuses: int) -> dict[str, Any]:
    """The problem document of an answer, checked for its form and one of the statuses."""
    assert response.status_code in statuses, response.text
    assert response.content_type == "application/problem+json"
    document: dict[str, Any] = response.get_json(force=True)
    assert document["status"] == response.status_code
    assert document["type"] == "about:blank"
    assert document["title"]
    assert document["detail"]
    return document
