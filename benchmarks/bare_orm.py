"""The second baseline: bare Flask handlers on the services' ORM models.

They send the same statements as the services, through a Session of SQLAlchemy. Nothing else differs
from [bare.py](bare.py): no validation beyond JSON, no problem documents, no documentation, no log.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from uuid import UUID

from flask import Flask, Response, request
from sqlalchemy import BigInteger, bindparam, create_engine, insert, literal, select, update
from sqlalchemy.orm import sessionmaker
from uuid_utils.compat import uuid7

from services.orders.models import CREATED, Order
from services.payments.models import DEPOSIT, WORLD, Account, Transfer
from settle_outbox.storage.tables import outbox, outbox_pending
from shared.settings import DEFAULT_THREADS

_COLUMNS = ("id", "aggregatetype", "aggregateid", "type", "payload")
_ADDED = (
    insert(outbox)
    .values({name: bindparam(name) for name in _COLUMNS})
    .returning(outbox.c.shard, outbox.c.seq, outbox.c.id)
    .cte("added")
)
ADD_EVENT = insert(outbox_pending).from_select(["shard", "seq", "id"], select(_ADDED))
CREDITED = (
    update(Account.__table__)  # type: ignore[arg-type]  # it is a Table
    .where(Account.user_id == bindparam("owner"))
    .values(balance=Account.balance + bindparam("amount"))
    .returning(Account.id)
    .cte("credited")
)
ADD_DEPOSIT = insert(Transfer.__table__).from_select(  # type: ignore[arg-type]  # it is a Table
    ["from_account_id", "to_account_id", "amount", "kind"],
    select(
        select(Account.id).where(Account.name == WORLD).scalar_subquery(),
        CREDITED.c.id,
        bindparam("amount", type_=BigInteger),
        literal(DEPOSIT),
    ),
)
STATUS = select(Order.status).where(Order.id == bindparam("order_id"))


def create_app() -> Flask:
    """Create the app, on the database of the service whose calls are compared."""
    app = Flask(__name__)
    engine = create_engine(os.environ["BENCH_DATABASE_URL"], pool_size=DEFAULT_THREADS)
    sessions = sessionmaker(engine, expire_on_commit=False)

    @app.post("/orders")
    def place() -> Response:
        body = request.get_json()
        now = datetime.now(UTC)
        order = Order(
            id=uuid7(),
            user_id=UUID(body["user_id"]),
            amount=body["amount"],
            description=body["description"],
            status=CREATED,
            created_at=now,
            updated_at=now,
        )
        payload = {
            "order_id": str(order.id),
            "user_id": body["user_id"],
            "amount": body["amount"],
            "created_at": now.isoformat(),
        }
        event = {
            "id": uuid7(),
            "aggregatetype": "orders",
            "aggregateid": body["user_id"],
            "type": "order.created",
            "payload": json.dumps(payload).encode(),
        }
        with sessions.begin() as session:
            session.add(order)
            session.execute(ADD_EVENT, event)
        location = {"Location": f"/order/{order.id}"}
        answer = '{"message":"Order accepted"}'
        return Response(answer, 202, location, content_type="application/json")

    @app.post("/accounts/<uuid:user_id>/deposit")
    def deposit(user_id: UUID) -> Response:
        amount = request.get_json()["amount"]
        with sessions.begin() as session:
            session.execute(ADD_DEPOSIT, {"owner": user_id, "amount": amount})
        return Response('{"message":"Balance refilled"}', content_type="application/json")

    @app.get("/order/<uuid:order_id>")
    def status(order_id: UUID) -> Response:
        with sessions.begin() as session:
            found = session.scalar(STATUS, {"order_id": order_id})
        answer = json.dumps({"id": str(order_id), "status": found})
        return Response(answer, content_type="application/json")

    return app
