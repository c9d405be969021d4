"""Processes without an API do not import Flask or gunicorn."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "services.orders.service",
        "services.payments.service",
        "shared.web.idempotency.migrations",
        "shared.web.idempotency.tables",
    ],
)
def test_relays_consumers_and_migrations_import_no_flask_and_no_gunicorn(module: str) -> None:
    """Flask and gunicorn would need memory and start-up time in each process."""
    script = f"import sys, {module}; print({{'flask', 'gunicorn'}} & set(sys.modules))"

    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )

    assert ran.stdout == "set()\n"
