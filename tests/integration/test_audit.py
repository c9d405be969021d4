"""The audit reports each kind of inconsistency with the id of what is wrong, and nothing else.

One fixture places orders and runs audits at the same time. Most tests damage a copy of the
databases, and run an audit of the copy.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition
from uuid_utils.compat import uuid7

from settle.audit.rules import CHARGES, FINAL
from settle.progress import Step, Steps
from settle_outbox.kafka.clients import make_admin
from support.audit_data import (
    Settled,
    add_event,
    add_order,
    break_it,
    ids_of,
    run_audit,
    traffic,
    violations_in,
)
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, PAYMENTS, Delivery, Record, headers, order_created

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.broker import Broker
    from support.postgres import PostgresServer

MONEY = "balances equal their transfers, all accounts sum to zero"
EVENTS = {topic: f"{topic}: outbox, topic and inbox agree" for topic in (ORDERS, PAYMENTS)}
ORDER = f"{ORDERS}: first appearances in order"
EFFECTS = {topic: f"{topic}: each applied exactly once" for topic in (ORDERS, PAYMENTS)}

# The first test includes the start of the servers and the traffic of all tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def settled(
    postgres: PostgresServer, databases: Callable[[str], str], shared_broker: Broker
) -> Iterator[Settled]:
    shared_broker.empty()
    urls = {
        service: postgres.create_database(f"audited_{service}", template=databases(service))
        for service in ("payments", "orders")
    }
    here = Settled(postgres, Delivery(urls["payments"], urls["orders"], shared_broker.bootstrap))
    traffic(here)
    # Notifiers keep a connection, but a database in use cannot be copied.
    postgres.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname LIKE 'audited%'"
    )
    yield here
    for service in urls:
        postgres.drop_database(f"audited_{service}")


def test_an_audit_during_traffic_is_clean(settled: Settled) -> None:
    """An open order is no violation while its event waits in the outbox or in the topic."""
    assert all(report.clean for report in settled.meanwhile), [*map(str, settled.meanwhile)]
    unsent, unread, *_ = settled.meanwhile
    assert unsent.check(FINAL).notes["open: order.created pending"] > 0
    assert unread.check(FINAL).notes["open: order.created unread"] > 0
    with settled.copy() as delivery:
        report = run_audit(delivery)
        assert report.clean, report
        orders = sum(delivery.statuses().values())
        assert report.check(FINAL).seen == orders
        assert report.check(CHARGES).seen == 2 * orders  # the orders and their payments
        assert not report.check(FINAL).notes


SECOND_EVENT = uuid7()
# The status of the order to damage, the service and the statements that damage it, and the expected
# findings: check, kind, and which id of the order's `Ids` the finding has.
BROKEN: list[tuple[str, str, str, list[tuple[str, str, str]]]] = [
    (
        "success",
        "orders",
        "UPDATE orders SET status = 'created' WHERE id = '{order}'",
        [(FINAL, "hanging", "order"), (EFFECTS[PAYMENTS], "no effect", "result")],
    ),
    (
        "success",
        "payments",
        "DELETE FROM transfers WHERE order_id = '{order}'",
        [
            (CHARGES, "success without charge", "order"),
            (CHARGES, "payment and charge disagree", "order"),
        ],
    ),
    (
        "failed",
        "payments",
        "DELETE FROM payments WHERE order_id = '{order}'",
        [(CHARGES, "failure without decision", "order"), (EFFECTS[ORDERS], "no effect", "event")],
    ),
    (
        "success",
        "orders",
        "UPDATE orders SET status = 'failed', failure_reason = 'x' WHERE id = '{order}'",
        [
            (CHARGES, "failure with charge", "order"),
            (CHARGES, "failure without decision", "order"),
            (EFFECTS[PAYMENTS], "no effect", "result"),
        ],
    ),
    (
        "success",
        "payments",
        """
        ALTER TABLE transfers DROP CONSTRAINT transfers_order_id_key;
        INSERT INTO transfers (from_account_id, to_account_id, amount, kind, order_id)
        SELECT from_account_id, to_account_id, amount, kind, order_id FROM transfers
        WHERE order_id = '{order}'
        """,
        [(CHARGES, "charged more than once", "order")],
    ),
    (
        "success",
        "payments",
        "UPDATE transfers SET amount = amount + 1 WHERE order_id = '{order}'",
        [(CHARGES, "another amount or user", "order")],
    ),
    (
        "success",
        "orders",
        "UPDATE orders SET user_id = id WHERE id = '{order}'",
        [(CHARGES, "another amount or user", "order")],
    ),
    (
        "success",
        "orders",
        "DELETE FROM orders WHERE id = '{order}'",
        [(CHARGES, "charge without order", "order")],
    ),
    (
        "success",
        "orders",
        "DELETE FROM outbox WHERE id = '{event}'",
        [
            (EVENTS[ORDERS], "no event", "order"),
            (EVENTS[ORDERS], "unknown in the topic", "event"),
            (EVENTS[ORDERS], "unknown in the inbox", "event"),
        ],
    ),
    (
        "failed",
        "payments",
        "DELETE FROM outbox WHERE id = '{result}'",
        [
            (EVENTS[PAYMENTS], "no event", "order"),
            (EVENTS[PAYMENTS], "unknown in the topic", "result"),
            (EVENTS[PAYMENTS], "unknown in the inbox", "result"),
        ],
    ),
    (
        "success",
        "payments",
        "DELETE FROM inbox WHERE id = '{event}'",
        [
            (EVENTS[ORDERS], "not received", "event"),
            (EFFECTS[ORDERS], "effect without event", "order"),
        ],
    ),
    (
        "failed",
        "orders",
        "DELETE FROM inbox WHERE id = '{result}'",
        [
            (EVENTS[PAYMENTS], "not received", "result"),
            (EFFECTS[PAYMENTS], "effect without event", "order"),
        ],
    ),
    (
        "success",
        "payments",
        # The order's id serves as the id of a received event.
        """
        INSERT INTO inbox (id, type, source, topic, partition, "offset", outcome)
        VALUES ('{order}', 'order.created', '/orders', 'orders.events', 0, 0, 'applied')
        """,
        [(EVENTS[ORDERS], "unknown in the inbox", "order")],
    ),
    (
        "success",
        "payments",
        """
        INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
        VALUES ('{order}', 'payments', '{order}', 'payment.succeeded', '')
        """,
        [(EVENTS[PAYMENTS], "more than one event", "order"), (EVENTS[PAYMENTS], "lost", "order")],
    ),
]


def test_each_kind_of_damage_is_reported_with_its_id(settled: Settled) -> None:
    """Each kind of damage is done to a different order. One audit finds all kinds."""
    expected = set()
    with settled.copy() as delivery:
        orders = {status: iter(ids_of(delivery, status)) for status in ("success", "failed")}
        for status, service, statements, reported in BROKEN:
            ids = next(orders[status])
            break_it(delivery, service, statements.format_map(ids))
            expected |= {(check, kind, ids[what]) for check, kind, what in reported}
        # One more kind: an order with two events, which were both applied.
        ids = next(orders["success"])
        break_it(
            delivery,
            "orders",
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
            f" SELECT '{SECOND_EVENT}', aggregatetype, aggregateid, type, payload"
            f" FROM outbox WHERE id = '{ids.event}'",
        )
        break_it(
            delivery,
            "payments",
            f"INSERT INTO inbox SELECT '{SECOND_EVENT}', type, source, topic, partition, 0,"
            f" requestid, outcome FROM inbox WHERE id = '{ids.event}'",
        )
        expected |= {
            (EVENTS[ORDERS], "more than one event", ids["order"]),
            (EFFECTS[ORDERS], "applied more than once", ids["order"]),
        }
        report = run_audit(delivery)
    # Some kinds make balances wrong as well. The next test is about balances.
    assert {each for each in violations_in(report) if each[0] != MONEY} == expected
    assert not report.clean


def test_wrong_balances_are_reported_with_the_account(settled: Settled) -> None:
    with settled.copy() as delivery:
        more, less, correct = (delivery.open_account(100) for _ in range(3))
        break_it(
            delivery,
            "payments",
            f"""
            UPDATE accounts SET balance = 101 WHERE user_id = '{more}';
            ALTER TABLE accounts DROP CONSTRAINT accounts_balance_not_negative;
            UPDATE accounts SET balance = -1 WHERE user_id = '{less}';
            INSERT INTO transfers (from_account_id, to_account_id, amount, kind)
            SELECT world.id, world.id + 1, 1, 'deposit' FROM accounts world WHERE name = 'world';
            """,
        )
        ((transfer,),) = delivery.query("payments", "SELECT max(id) FROM transfers")
        report = run_audit(delivery)
    assert violations_in(report) == {
        (MONEY, "wrong balance", str(more)),
        (MONEY, "wrong balance", str(less)),
        (MONEY, "not zero", "all accounts"),
        (MONEY, "misdirected transfer", f"transfer {transfer}"),
    }
    assert str(correct) not in str(report)


class ActBeforeSecondLook(Steps):
    """Run an action just before the audit checks its suspects again."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(lambda _: None)
        self._act = act

    @contextmanager
    def step(self, doing: str, done: str = "") -> Iterator[Step]:
        if doing == "second look":
            self._act()
        with super().step(doing, done) as step:
            yield step


def test_a_suspect_that_is_correct_at_the_second_look_is_not_reported(settled: Settled) -> None:
    with settled.copy() as delivery:
        ids, *_ = ids_of(delivery, "success")
        reopen_order = f"UPDATE orders SET status = 'created' WHERE id = '{ids.order}'"
        delete_inbox_row = f"DELETE FROM inbox WHERE id = '{ids.event}' RETURNING *"
        deleted = delivery.query("payments", delete_inbox_row)[0]

        def restore_row() -> None:
            columns = ", ".join(f'"{name}"' for name in deleted._fields)
            values = ", ".join(f":{name}" for name in deleted._fields)
            sql = f"INSERT INTO inbox ({columns}) VALUES ({values})"
            delivery.query("payments", sql, **deleted._asdict())

        reported = violations_in(run_audit(delivery))
        assert (EVENTS[ORDERS], "not received", str(ids.event)) in reported
        # A contradiction inside one database is not checked again: no late event can explain it.
        assert violations_in(run_audit(delivery, steps=ActBeforeSecondLook(restore_row))) == {
            (EFFECTS[ORDERS], "effect without event", str(ids.order))
        }
        break_it(delivery, "orders", reopen_order)
        reported = violations_in(run_audit(delivery))
        assert (FINAL, "hanging", str(ids.order)) in reported


def test_an_open_order_is_explained_by_the_state_of_its_event(settled: Settled) -> None:
    with settled.copy() as delivery:
        paid = iter(ids_of(delivery, "success"))
        user_id = delivery.open_account(10)
        delivery.place(user_id, 1)
        refused, parked, dead = next(paid), next(paid), next(paid)
        reopen = "UPDATE orders SET status = 'created' WHERE id = '{order}';"
        break_it(
            delivery,
            "orders",
            "".join(reopen.format_map(each) for each in (refused, parked, dead))
            + f"""
            UPDATE inbox SET outcome = 'parked' WHERE id = '{parked.result}';
            DELETE FROM inbox WHERE id IN ('{dead.result}', '{refused.result}');
            INSERT INTO dead_letters
                (fingerprint, topic, partition, "offset", headers, reason, detail)
            VALUES ('', 'payments.events', 0, 0, '[["ce_id", "{dead.result}"]]', '', '');
            """,
        )
        break_it(
            delivery,
            "payments",
            "INSERT INTO outbox_refused (seq, id, reason) SELECT seq, id, '' FROM outbox"
            f" WHERE id = '{refused.result}'",
        )
        report = run_audit(delivery)
        assert report.clean, report
        assert report.check(FINAL).notes == {
            "open: order.created pending": 1,
            "open: payment.succeeded refused": 1,
            "open: payment.succeeded parked": 1,
            "open: payment.succeeded dead letter": 1,
        }


def test_an_event_of_a_type_without_a_subscription_is_not_missing(settled: Settled) -> None:
    with settled.copy() as delivery:
        delivery.query(
            "orders",
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
            f" VALUES ('{uuid7()}', 'orders', 'a', 'order.archived', '{{}}')",
        )

        report = run_audit(delivery)

        assert report.clean, report
        assert report.check(EVENTS[ORDERS]).notes["skipped"] == 1


def test_the_command_reports_as_table_or_json_and_by_exit_code(settled: Settled) -> None:
    with settled.copy() as delivery:
        done = delivery.run("settle", "audit", "--json")
        assert done.returncode == 0, done
        reported = json.loads(done.stdout)
        assert reported["clean"]
        assert [check["wrong"] for check in reported["checks"]] == [0] * 9
        ids, *_ = ids_of(delivery, "success")
        break_it(delivery, "orders", f"DELETE FROM outbox WHERE id = '{ids.event}'")
        done = delivery.run("settle", "audit", "--second-look", "0")
        assert done.returncode == 1, done
        assert f"no event: {ids.order}: The order has no order.created event." in done.stdout
        assert "orders.events: records" in done.stderr
    done = delivery.run("settle", "audit")  # the copies of the databases are dropped now
    assert (done.returncode, done.stdout) == (3, "")
    assert "The database cannot be reached:" in done.stderr


def test_wrong_records_of_a_topic_are_reported(settled: Settled) -> None:
    """The audit reports an event out of order and an unknown event, and counts foreign records.

    A foreign record is invalid, or has another source than the service that owns the topic.
    """
    with settled.copy() as delivery:
        user_id = delivery.open_account(10)
        first, second, later = uuid7(), uuid7(), datetime.now(UTC) + timedelta(hours=1)
        for event_id, created_at in ((first, None), (second, later)):
            order_id = uuid7()
            add_order(delivery, order_id, user_id, 1)
            add_event(
                delivery, event_id, order_id, user_id, 1, pending=False, created_at=created_at
            )
        unknown = order_created(user_id, 1, source="/orders")
        delivery.produce(
            ORDERS,
            *(
                order_created(user_id, 1, id=str(each), source="/orders")
                for each in (second, first)
            ),
            unknown,
            Record(b"null", []),
            Record(None, headers("order.created", source="/orders", id="none")),
            order_created(user_id, 1),
        )
        ((_, unknown_id), *_) = [pair for pair in unknown.headers if pair[0] == "ce_id"]
        report = run_audit(delivery)
        assert violations_in(report) == {
            (ORDER, "too late", str(first)),
            (EVENTS[ORDERS], "unknown in the topic", (unknown_id or b"").decode()),
        }
        # Both orders are open, because no consumer runs.
        assert report.check(FINAL).notes == {"open: order.created unread": 2}
        assert report.check(EVENTS[ORDERS]).notes["foreign in the topic"] == 3


@pytest.mark.skipif(chosen_broker().kind != KAFKA, reason="the embedded broker has no retention")
def test_an_event_deleted_by_retention_is_not_reported_as_lost(settled: Settled) -> None:
    with settled.copy() as delivery:
        records = delivery.records(ORDERS)
        ends = {record.partition: record.offset for record in records}
        known = {str(ids.event) for ids in ids_of(delivery, "success")}
        deleted_event = next(
            event_id
            for record in records
            if (event_id := dict(record.headers).get("ce_id", b"").decode()) in known
            and record.offset < ends[record.partition]
        )
        admin = make_admin(delivery.settings("orders"), "test")
        admin.delete_records({TopicPartition(ORDERS, n): end for n, end in ends.items()})
        admin.close()
        break_it(delivery, "payments", f"DELETE FROM inbox WHERE id = '{deleted_event}'")
        report = run_audit(delivery)
        notes = report.check(EVENTS[ORDERS]).notes
        assert notes["beyond retention"] == 1
        assert not {kind for _, kind, _ in violations_in(report)} & {"lost", "not received"}
