"""The yardstick: a bare Flask handler that writes what POST /orders writes, as one CTE.

No validation beyond JSON, no problem documents, no documentation: what is left when everything
but Flask, psycopg2 and the rows is taken away.
"""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime

import psycopg2
from flask import Flask, Response, request
from sqlalchemy.engine import make_url
from uuid_utils.compat import uuid7

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

_local = threading.local()


def _connection() -> psycopg2.extensions.connection:
    if not hasattr(_local, "connection"):
        url = make_url(os.environ["ORDERS_DATABASE_URL"]).set(drivername="postgresql")
        _local.connection = psycopg2.connect(url.render_as_string(hide_password=False))
    return _local.connection


def create_app() -> Flask:
    """Make the app."""
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
        connection = _connection()
        with connection, connection.cursor() as cursor:
            cursor.execute(
                PLACE,
                {
                    "order_id": order_id,
                    "event_id": str(uuid7()),
                    "user_id": body["user_id"],
                    "amount": body["amount"],
                    "description": body["description"],
                    "now": now,
                    "payload": json.dumps(payload).encode(),
                },
            )
        return Response(
            '{"message":"Order accepted"}',
            202,
            {"Location": f"/order/{order_id}"},
            content_type="application/json",
        )

    return app
