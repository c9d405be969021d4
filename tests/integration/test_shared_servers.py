"""Several systems on one Kafka cluster, and several services in one database."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text

from settle.audit.flow import FLOWS
from settle.audit.rules import events_check
from settle.audit.run import audit
from settle_outbox.kafka.clients import make_admin
from settle_outbox.settings import read_database_url
from shared.migrations import upgrade
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, PAYMENTS, Delivery, order_created, read_health
from support.doctor import Doctor
from support.environ import environment
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.broker import Broker
    from support.postgres import PostgresServer

pytestmark = pytest.mark.slow

SERVICES = ("payments", "orders")
PREFIX = "staging."
GROUPS = {service: f"staging-{service}" for service in SERVICES}
NAMES = {"TOPIC_PREFIX": PREFIX} | {
    f"{service.upper()}_CONSUMER_GROUP": group for service, group in GROUPS.items()
}
needs_kafka = pytest.mark.skipif(
    chosen_broker().kind != KAFKA,
    reason="the embedded broker supports groups and topics only in part",
)


def settle_one_order(delivery: Delivery, changed: dict[str, dict[str, Any]]) -> None:
    delivery.place(delivery.open_account(100), 7)
    with ExitStack() as running:
        for service in SERVICES:
            running.enter_context(delivery.relay(service, **changed[service]))
            running.enter_context(delivery.consumer(service, **changed[service]))
        wait_until(lambda: delivery.statuses() == {"success": 1}, timeout_s=60)
        wait_until(
            lambda: all(committed(delivery, group) == 1 for group in groups_of(changed)),
            timeout_s=20,
            what="both groups to commit",
        )


def groups_of(changed: dict[str, dict[str, Any]]) -> list[str]:
    return [changed[service].get("consumer_group", service) for service in SERVICES]


def committed(delivery: Delivery, group: str) -> int:
    """Return the sum of the offsets that a group has committed."""
    admin = make_admin(delivery.settings("orders"), "test")
    try:
        offsets = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    return sum(max(0, each.offset) for each in offsets.values())


@needs_kafka
def test_a_system_with_a_prefix_uses_its_own_topics_and_groups(
    delivery: Delivery, tmp_path: Path
) -> None:
    changed = {
        service: {"topic_prefix": PREFIX, "consumer_group": GROUPS[service]} for service in SERVICES
    }

    settle_one_order(delivery, changed)

    admin = make_admin(delivery.settings("orders"), "test")
    topics = set(admin.list_topics())
    groups = {group["group_id"] for group in admin.list_groups()}
    admin.close()
    assert {f"{PREFIX}{ORDERS}", f"{PREFIX}{PAYMENTS}"} <= topics
    assert {ORDERS, PAYMENTS}.isdisjoint(topics)
    assert set(SERVICES).isdisjoint(groups)
    rows = delivery.query("payments", "SELECT topic FROM inbox")
    assert [row.topic for row in rows] == [f"{PREFIX}{ORDERS}"]
    report = audit(
        *(delivery.settings(service, **changed[service]) for service in SERVICES),
        second_look_s=0,
    )
    assert report.clean
    # Outbox, topic and inbox have one event each.
    assert [report.check(events_check(flow)).seen for flow in FLOWS] == [3, 3]
    doctor = Doctor(tmp_path, {"payments": delivery.payments_url}, delivery.bootstrap)
    assert doctor.verdict("payments lag", **NAMES) == ("ok", "none")
    assert f"topic {PREFIX}{ORDERS}" in doctor.seen
    raised = delivery.run("outbox-relay", "topics", "orders", "--partitions", "7", **NAMES)
    assert (raised.returncode, raised.stderr.count("Error")) == (0, 0), raised.stderr
    assert f"Topics of orders: {PREFIX}{ORDERS}" in raised.stdout


@needs_kafka
def test_a_new_group_that_starts_at_the_end_skips_older_events(delivery: Delivery) -> None:
    old, new = (delivery.open_account(100) for _ in range(2))
    delivery.produce(ORDERS, order_created(old, 1), order_created(old, 2))

    with delivery.consumer("payments", new_group_start="latest"):
        wait_until(lambda: is_known(delivery, "payments"), what="the group to have offsets")
        delivery.produce(ORDERS, order_created(new, 5))
        wait_until(lambda: delivery.balance(new) == 95, what="the new order to be charged")

    assert delivery.balance(old) == 100
    assert delivery.inbox("payments") == {"applied": 1}


def is_known(delivery: Delivery, group: str) -> bool:
    admin = make_admin(delivery.settings("orders"), "test")
    try:
        return group in {each["group_id"] for each in admin.list_groups()}
    finally:
        admin.close()


@needs_kafka
def test_a_group_whose_offsets_expired_is_not_new(delivery: Delivery) -> None:
    """Kafka deletes the offsets of an inactive group. The inbox shows that the group is not new."""
    user = delivery.open_account(100)
    with delivery.consumer("payments"):
        delivery.produce(ORDERS, order_created(user, 1))
        wait_until(lambda: delivery.balance(user) == 99)
    admin = make_admin(delivery.settings("payments"), "test")
    wait_until(lambda: admin.delete_groups(["payments"]) == {"payments": "OK"}, timeout_s=20)
    admin.close()
    delivery.produce(ORDERS, order_created(user, 2))

    with delivery.consumer("payments", new_group_start="latest"):
        wait_until(lambda: delivery.balance(user) == 97, what="the unread order to be charged")


@needs_kafka
def test_a_topic_created_later_is_read_from_its_beginning(
    delivery: Delivery, tmp_path: Path
) -> None:
    user = delivery.open_account(100)

    with delivery.consumer("payments", new_group_start="latest", health_dir=str(tmp_path)):
        wait_until(lambda: "not exist yet" in read_health(tmp_path, "inbox-consumer-payments"))
        delivery.produce(ORDERS, order_created(user, 1))
        wait_until(lambda: delivery.balance(user) == 99, timeout_s=20)


@pytest.fixture
def in_one_database(postgres: PostgresServer, broker: Broker) -> Iterator[Delivery]:
    """Put both services into one database, each into a separate schema."""
    url = postgres.create_database("both")
    for service in SERVICES:
        postgres.execute(f"CREATE SCHEMA {service}", database="both")
    variables = {f"{service.upper()}_DATABASE_SCHEMA": service for service in SERVICES}
    variables |= {f"{service.upper()}_DATABASE_URL": url for service in SERVICES}
    with environment(variables):
        urls = {service: read_database_url(service) for service in SERVICES}
    for service in SERVICES:
        upgrade(service, urls[service])
    yield Delivery(urls["payments"], urls["orders"], broker.bootstrap)
    postgres.drop_database("both")


def test_services_share_a_database_with_a_schema_each(in_one_database: Delivery) -> None:
    settle_one_order(in_one_database, {service: {} for service in SERVICES})

    engine = create_engine(in_one_database.payments_url)
    with engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT schemaname, count(*) FILTER (WHERE tablename = 'outbox_pending') AS tables"
                " FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
                " GROUP BY schemaname"
            )
        )
        tables = {row.schemaname: row.tables for row in found}
    assert tables == {"payments": 1, "orders": 1}
    engine.dispose()
