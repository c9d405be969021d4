"""The baseline: bare Flask handlers that read or write the rows of a call with one statement.

They check only that a body is JSON. They have no problem documents, no documentation and no log.
Only Flask, psycopg2 and the rows are left.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg2
from flask import Flask, Response, request
from sqlalchemy.engine import make_url
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = """
WITH placed AS (
    INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
    VALUES (%(order_id)s, %(user_id)s, %(amount)s, %(description)s, 'created', %(now)s, %(now)s)
), added AS (
    INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
    VALUES (%(event_id)s, 'orders', %(user_id)s, 'order.created', %(payload)s)
    RETURNING shard, seq, id
)
INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM added
"""

DEPOSIT = """
WITH credited AS (
    UPDATE accounts SET balance = balance + %(amount)s WHERE user_id = %(user_id)s RETURNING id
)
INSERT INTO transfers (from_account_id, to_account_id, amount, kind)
SELECT world.id, credited.id, %(amount)s, 'deposit'
FROM credited, accounts AS world
WHERE world.name = 'world'
"""

STATUS = "SELECT status FROM orders WHERE id = %s"

_local = threading.local()


@contextmanager
def _transaction() -> Iterator[psycopg2.extensions.cursor]:
    """Open a transaction on the thread's connection."""
    if not hasattr(_local, "connection"):
        url = make_url(os.environ["BENCH_DATABASE_URL"]).set(drivername="postgresql")
        _local.connection = psycopg2.connect(url.render_as_string(hide_password=False))
    with _local.connection, _local.connection.cursor() as cursor:
        yield cursor


def create_app() -> Flask:
    """Create the app, on the database of the service whose calls are compared."""
    app = Flask(__name__)

    @app.post("/orders")
    def place() -> Response:
        body = request.get_json()
        order_id, now = str(uuid7()), datetime.now(UTC)
        payload = {
            "order_id": order_id,
            "user_id": body["user_id"],
            "amount": body["amount"],
            "created_at": now.isoformat(),
        }
        parameters = {
            "order_id": order_id,
            "event_id": str(uuid7()),
            "user_id": body["user_id"],
            "amount": body["amount"],
            "description": body["description"],
            "now": now,
            "payload": json.dumps(payload).encode(),
        }
        with _transaction() as cursor:
            cursor.execute(PLACE, parameters)
        answer = '{"message":"Order accepted"}'
        location = {"Location": f"/order/{order_id}"}
        return Response(answer, 202, location, content_type="application/json")

    @app.post("/accounts/<user_id>/deposit")
    def deposit(user_id: str) -> Response:
        body = request.get_json()
        with _transaction() as cursor:
            cursor.execute(DEPOSIT, {"user_id": user_id, "amount": body["amount"]})
        return Response('{"message":"Balance refilled"}', content_type="application/json")

    @app.get("/order/<order_id>")
    def status(order_id: str) -> Response:
        with _transaction() as cursor:
            cursor.execute(STATUS, (order_id,))
            (found,) = cursor.fetchone()  # type: ignore[misc]  # the order exists
        answer = json.dumps({"id": order_id, "status": found})
        return Response(answer, content_type="application/json")

    return app
