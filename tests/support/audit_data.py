"""Create settled orders that the tests of the audit read and damage."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from uuid_utils.compat import uuid7

from settle.audit.run import audit
from settle_outbox.storage.partition_maintenance import maintain
from settle_outbox.storage.partitions import DAY, outbox_partitions
from settle_outbox.uuid7 import lowest_id
from support.delivery import Delivery
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from settle.audit.report import Report
    from settle.progress import Steps
    from support.postgres import PostgresServer

LONG_AGO = datetime.now(UTC) - 20 * DAY

# The clients wait while this many orders are open. Without this limit, they would place orders
# faster than consumers settle them on a slow machine.
MAX_OPEN_ORDERS = 60

_copies = count(1)


def run_audit(
    delivery: Delivery, *, second_look_s: float = 0, steps: Steps | None = None
) -> Report:
    return audit(
        delivery.settings("payments"),
        delivery.settings("orders"),
        second_look_s=second_look_s,
        steps=steps,
    )


def violations_in(report: Report) -> set[tuple[str, str, str]]:
    """Return the check, the kind and the id of each violation."""
    return {
        (check.name, each.kind, each.id) for check in report.checks for each in check.violations
    }


@dataclass
class Settled:
    """Both services after some traffic, and the reports of the audits that ran during it."""

    postgres: PostgresServer
    delivery: Delivery
    meanwhile: list[Report] = field(default_factory=list)

    @contextmanager
    def copy(self) -> Iterator[Delivery]:
        """Copy both databases, so that a test can damage the copies. The topics are shared."""
        number = next(_copies)
        urls = {}
        for service in ("payments", "orders"):
            name = f"audited_{service}_{number}"
            urls[service] = self.postgres.create_database(name, template=f"audited_{service}")
        try:
            yield Delivery(urls["payments"], urls["orders"], self.delivery.bootstrap)
        finally:
            for service in urls:
                self.postgres.drop_database(f"audited_{service}_{number}")


def traffic(settled: Settled) -> None:
    """Place orders of a rich and a poor user, and one old order. Run audits meanwhile."""
    delivery = settled.delivery
    users = [delivery.open_account(10**9), delivery.open_account(100)]
    place_old_order(delivery, users[0])
    enough = threading.Event()

    def place() -> None:
        while not enough.is_set():
            if delivery.statuses().get("created", 0) < MAX_OPEN_ORDERS:
                for user_id in users:
                    delivery.place(user_id, 7)

    placing = [threading.Thread(target=place) for _ in range(2)]
    for each in placing:
        each.start()
    try:
        with ExitStack() as engine:
            # The first audit runs without relays, the second without consumers, and the others with
            # both.
            settled.meanwhile.append(run_audit(delivery, second_look_s=30))
            for service in ("orders", "payments"):
                engine.enter_context(delivery.relay(service))
            wait_until(lambda: is_first_event_sent(delivery), timeout_s=60)
            settled.meanwhile.append(run_audit(delivery, second_look_s=30))
            for service in ("orders", "payments"):
                engine.enter_context(delivery.consumer(service))
            wait_until(lambda: delivery.statuses().get("failed", 0) > 0, timeout_s=60)
            for _ in range(3):
                settled.meanwhile.append(run_audit(delivery, second_look_s=30))
            enough.set()
            wait_until(lambda: "created" not in delivery.statuses(), timeout_s=60)
    finally:
        enough.set()
        for each in placing:
            each.join(30)
    # Drop the partition of the old order's day from the outbox.
    engine_of_orders = create_engine(delivery.orders_url)
    maintain(engine_of_orders, outbox_partitions(int(DAY.total_seconds())))
    engine_of_orders.dispose()


def is_first_event_sent(delivery: Delivery) -> bool:
    sql = "SELECT (SELECT count(*) FROM outbox) > (SELECT count(*) FROM outbox_pending)"
    return bool(delivery.query("orders", sql)[0][0])


def place_old_order(delivery: Delivery, user_id: UUID) -> None:
    """Place an order with an old date, in an outbox that has a partition of that day."""
    engine = create_engine(delivery.orders_url)
    maintain(engine, outbox_partitions(int(DAY.total_seconds())), now=LONG_AGO)
    engine.dispose()
    order_id, event_id = (make_id_at(LONG_AGO), make_id_at(LONG_AGO))
    add_order(delivery, order_id, user_id, 7)
    add_event(delivery, event_id, order_id, user_id, 7, pending=True)


def make_id_at(moment: datetime) -> UUID:
    """Return a new UUIDv7 whose time is this moment."""
    made, begin = uuid7(), lowest_id(moment)
    return type(begin)(int=begin.int | (made.int & ((1 << 80) - 1)))


def add_order(delivery: Delivery, order_id: UUID, user_id: UUID, amount: int) -> None:
    delivery.query(
        "orders",
        "INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)"
        " VALUES (:id, :user_id, :amount, '', 'created', now(), now())",
        id=order_id,
        user_id=user_id,
        amount=amount,
    )


def add_event(
    delivery: Delivery,
    event_id: UUID,
    order_id: UUID,
    user_id: UUID,
    amount: int,
    *,
    pending: bool,
    created_at: datetime | None = None,
) -> int:
    """Insert an order.created event into the outbox, and return its sequence number.

    The event counts as sent unless `pending` is set.
    """
    data = {"order_id": str(order_id), "user_id": str(user_id), "amount": amount}
    ((seq, shard),) = delivery.query(
        "orders",
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, created_at)"
        " VALUES (:id, 'orders', :key, 'order.created', :payload, coalesce(:created_at, now()))"
        " RETURNING seq, shard",
        id=event_id,
        key=str(user_id),
        payload=json.dumps(data).encode(),
        created_at=created_at,
    )
    if pending:
        delivery.query(
            "orders",
            "INSERT INTO outbox_pending VALUES (:shard, :seq, :id)",
            shard=shard,
            seq=seq,
            id=event_id,
        )
    return int(seq)


@dataclass(frozen=True)
class Ids:
    """The ids that belong to one order."""

    order: UUID
    event: UUID
    result: UUID
    user: UUID

    def __getitem__(self, name: str) -> str:
        return str(getattr(self, name))


def ids_of(delivery: Delivery, status: str) -> list[Ids]:
    """Return the ids of all orders with this status, except those of `place_old_order`."""
    orders = delivery.query(
        "orders", "SELECT id, user_id FROM orders WHERE status = :status", status=status
    )
    # An event of orders names the order in its payload. The key of a result is the order's id.
    events = {
        json.loads(bytes(payload))["order_id"]: id_
        for id_, payload in delivery.query("orders", "SELECT id, payload FROM outbox")
    }
    results = dict(delivery.query("payments", "SELECT aggregateid, id FROM outbox"))
    return [
        Ids(order, events[str(order)], results[str(order)], user)
        for order, user in orders
        if str(order) in events
    ]


def break_it(delivery: Delivery, service: str, statements: str) -> None:
    """Run statements with triggers and foreign keys disabled, which no code of Settle does."""
    engine = create_engine(delivery.url(service))
    with engine.begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))
        connection.exec_driver_sql(statements)
        connection.execute(text("SET session_replication_role = DEFAULT"))
    engine.dispose()
