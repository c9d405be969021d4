"""Texts of users are neither in the log of the embedded PostgreSQL nor in a service's log."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import text
from structlog.testing import capture_logs

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from sqlalchemy.orm import Session

    from support.postgres import PostgresServer

DESCRIPTION = "a private description"


def test_a_failed_statement_does_not_log_a_description(
    postgres: PostgresServer, orders: FlaskClient, orders_session: Session
) -> None:
    orders_session.execute(text("ALTER TABLE orders ADD CONSTRAINT nothing_fits CHECK (false)"))
    orders_session.commit()
    body = {"user_id": str(uuid4()), "amount": 1, "description": DESCRIPTION}

    with capture_logs() as lines:
        answer = orders.post("/orders", json=body)

    (failed,) = [line for line in lines if line["event"] == "web.request_failed"]
    for log in (postgres.log.read_text(), "".join(traceback.format_exception(failed["exc_info"]))):
        assert 'violates check constraint "nothing_fits"' in log
        assert DESCRIPTION not in log
    assert answer.status_code == 500
