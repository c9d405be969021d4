"""The relay sends all committed events to the broker, in order."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker
from uuid_utils.compat import uuid7

import settle_outbox as outbox
from settle_outbox import Event, notify_after_commit
from settle_outbox.publish.outbox import KEY_MAX_LENGTH, PAYLOAD_MAX_BYTES, EventTooLargeError
from settle_outbox.publish.pending import BATCH_MAX_BYTES, lock_shards, read_pending
from settle_outbox.runtime.health import StuckError, check_health
from settle_outbox.trace import Trace
from settle_outbox.uuid7 import lowest_id
from support.delivery import ORDERS, Delivery, first_appearances, header
from support.peak_memory import PEAK_MAX_MB, peak_mb
from support.waiting import wait_until
from support.writers import Writers

if TYPE_CHECKING:
    from pathlib import Path

    from support.broker import Broker
    from support.postgres import PostgresServer


def test_an_event_arrives_as_a_cloudevent(delivery: Delivery) -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    trace = Trace("request-1", traceparent)
    event = Event("orders", "käy", "order.created", {"amount": 1, "text": "grün"}, trace=trace)
    plain = Event("orders", "käy", "order.created", {})
    with delivery.session("orders") as session:
        outbox.add_all(session, [event, plain])
    with delivery.relay("orders"):
        delivery.wait_sent("orders")

    rows = delivery.query("orders", "SELECT id, seq, created_at FROM outbox ORDER BY seq")
    first, second = delivery.records(ORDERS)
    assert (first.key, first.value) == ("käy".encode(), '{"amount":1,"text":"grün"}'.encode())
    assert dict(first.headers) == {
        "ce_id": str(event.id).encode(),
        "ce_type": b"order.created",
        "ce_source": b"/orders",
        "ce_specversion": b"1.0",
        "ce_time": rows[0].created_at.isoformat().replace("+00:00", "Z").encode(),
        "ce_sequence": str(rows[0].seq).encode(),
        "ce_requestid": b"request-1",
        "content-type": b"application/json",
        "traceparent": traceparent.encode(),
    }
    assert len(first.headers) == 9
    assert UUID(header(first, "ce_id")).version == 7
    assert not {"ce_requestid", "traceparent"} & dict(second.headers).keys()


def test_a_failing_cleanup_job_does_not_stop_events(delivery: Delivery) -> None:
    """Here, the setting of one cleanup job is invalid."""
    delivery.add("a", 1)

    with delivery.process("outbox-relay", "run", "orders", IDEMPOTENCY_RETENTION_S="59") as relay:
        delivery.wait_sent("orders")
        relay.wait_logged("relay.cleanup_down")

    (line,) = relay.logged("relay.cleanup_down")
    assert "IDEMPOTENCY_RETENTION_S" in line["error"]


def test_only_committed_events_are_sent_even_if_they_commit_late(delivery: Delivery) -> None:
    engine = create_engine(delivery.orders_url)
    with delivery.relay("orders"), Session(engine) as late, Session(engine) as undone:
        outbox.add(late, Event("orders", "a", "order.created", {"n": "late"}))
        outbox.add(undone, Event("orders", "a", "order.created", {"n": "undone"}))
        undone.rollback()
        delivery.add("a", {"n": "early"})
        delivery.wait_sent("orders")  # the committed events
        assert len(delivery.records(ORDERS)) == 1
        late.commit()
        delivery.wait_sent("orders")
        records = delivery.records(ORDERS)
    engine.dispose()
    assert first_appearances(records) == {"a": [{"n": "early"}, {"n": "late"}]}
    # The late event has the lower number. A relay that looks only for higher numbers would miss it.
    assert int(header(records[0], "ce_sequence")) > int(header(records[1], "ce_sequence"))


@pytest.mark.parametrize("relays", [2, 3])
def test_several_relays_keep_the_order_of_each_key_during_concurrent_adds(
    delivery: Delivery, relays: int
) -> None:
    writers = Writers(delivery.orders_url, keys=4, threads=4, each=150)
    with ExitStack() as running:
        for _ in range(relays):
            running.enter_context(delivery.relay("orders", relay_batch=20, relay_poll_s=0.05))
        writers.run()
        delivery.wait_sent("orders")
    records = delivery.records(ORDERS)
    writers.check(records)
    assert len(records) == writers.count  # without failures, no event is sent twice


def test_sigterm_ends_the_relay_after_its_batch_with_exit_code_0(delivery: Delivery) -> None:
    delivery.add("a", *range(300))

    # The relay is frozen in its third batch when the signal arrives.
    environ = {"RELAY_BATCH": "50", "FAILPOINTS": "relay.sent=stop@3"}
    with delivery.process("outbox-relay", "run", "orders", **environ) as relay:
        wait_until(lambda: relay.stopped, what="the third batch")
        relay.signal(signal.SIGTERM)
        relay.signal(signal.SIGCONT)
        code = relay.wait()

    assert code == 0
    assert relay.logged("relay.stopped")
    # The relay finished its third batch and started no other.
    assert delivery.pending("orders") == 150
    assert len(delivery.records(ORDERS)) == 150


def test_a_refused_login_is_logged_with_its_reason(delivery: Delivery) -> None:
    url = make_url(delivery.orders_url).set(username="missing_role")
    environ = {"ORDERS_DATABASE_URL": url.render_as_string(hide_password=False)}

    with delivery.process("outbox-relay", "run", "orders", **environ) as relay:
        relay.wait_logged("relay.database_refused")
        (line,) = relay.logged("relay.database_refused")

    assert line["reason"] == "login"
    assert "missing_role" in line["error"]


@pytest.mark.slow
def test_a_broker_outage_is_logged_once_and_waited_for(
    own_delivery: Delivery, own_broker: Broker
) -> None:
    delivery = own_delivery
    own_broker.kill()
    delivery.add("a", 1)
    with delivery.process("outbox-relay", "run", "orders") as relay:
        relay.wait_logged("relay.broker_down")
        own_broker.start()
        delivery.wait_sent("orders")
        relay.wait_logged("relay.broker_up")

        own_broker.kill()
        delivery.add("a", 2)
        wait_until(lambda: len(relay.logged("relay.broker_down")) == 2, what="the second outage")
        lines_before = len(relay.lines)
        own_broker.start()
        wait_until(lambda: len(relay.logged("relay.broker_up")) == 2, what="the end of the outage")
        delivery.wait_sent("orders")
        assert len(relay.lines) - lines_before < 10
        assert len(relay.logged("relay.broker_down")) == len(relay.logged("relay.broker_up")) == 2
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 0
    assert first_appearances(delivery.records(ORDERS)) == {"a": [1, 2]}


@pytest.mark.slow
def test_all_events_are_sent_again_to_a_broker_that_lost_its_data(
    own_delivery: Delivery, own_broker: Broker
) -> None:
    lose_and_restore(own_delivery, own_broker)


def test_all_events_are_sent_again_to_an_embedded_broker_that_lost_its_data(
    embedded_delivery: Delivery, own_embedded_broker: Broker
) -> None:
    """This broker is back within milliseconds, before a client notices the outage."""
    lose_and_restore(embedded_delivery, own_embedded_broker)


def lose_and_restore(delivery: Delivery, broker: Broker) -> None:
    with delivery.process("outbox-relay", "run", "orders") as relay:
        for n in range(50):
            delivery.add(f"key{n % 3}", n)
        delivery.wait_sent("orders")
        broker.kill()
        broker.delete_data()
        for n in range(50, 80):
            delivery.add(f"key{n % 3}", n)
        broker.start()
        relay.wait_logged("relay.topic_lost")
        delivery.wait_sent("orders")
        assert relay.logged("relay.topic_lost")[0]["queued_again"] == 50
        # The relay created the topic again. The broker did not create it for a producer that was
        # still connected.
        assert relay.logged("topic.created")[-1]["partitions"] == 6
        assert len(relay.logged("topic.created")) == 2
    found = first_appearances(delivery.records(ORDERS))
    assert found == {f"key{k}": list(range(k, 80, 3)) for k in range(3)}


def test_a_replay_sends_published_events_again(delivery: Delivery) -> None:
    delivery.add("a", 1, 2)
    old = Event("orders", "a", "order.created", {}, id=UUID("01900000-0000-7000-8000-000000000000"))
    with delivery.session("orders") as session:
        outbox.add(session, old)
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
        before = delivery.records(ORDERS)
        done = delivery.run("outbox-relay", "replay", "orders", "--since", "1h")
        assert (done.returncode, done.stdout) == (
            0,
            "2 events of orders are queued to be sent again.\n",
        )
        delivery.wait_sent("orders")
    after = delivery.records(ORDERS)
    # The older event is not sent again.
    assert [header(each, "ce_id") for each in after[len(before) :]] == [
        header(each, "ce_id") for each in before[:2]
    ]


def test_a_relay_without_its_listener_polls(delivery: Delivery, postgres: PostgresServer) -> None:
    with delivery.process("outbox-relay", "run", "orders", RELAY_POLL_S="0.2") as relay:
        delivery.add("a", 1)
        delivery.wait_sent("orders")
        ended = delivery.query(
            "orders",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'outbox-listener' AND datname = current_database()",
        )
        assert ended == [(True,)]
        relay.wait_logged("relay.listener_lost")
        delivery.add("a", 2)
        delivery.wait_sent("orders")
        assert not relay.logged("relay.listener_back")  # so polling found the event
        relay.wait_logged("relay.listener_back")
        assert len(relay.logged("relay.listener_lost")) == 1
        assert not relay.logged("relay.database_down")


def test_a_notification_wakes_the_relay_long_before_its_poll(delivery: Delivery) -> None:
    engine = create_engine(delivery.orders_url)
    sessions = sessionmaker(engine)
    notify_after_commit(sessions, delivery.orders_url)
    with delivery.process("outbox-relay", "run", "orders", RELAY_POLL_S="60") as relay:
        delivery.add("a", 0)
        relay.wait_logged("relay.sent")
        for n in range(1, 4):
            with sessions.begin() as session:
                outbox.add(session, Event("orders", "a", "order.created", {"n": n}))
            delivery.wait_sent("orders", timeout_s=30)
    engine.dispose()


def test_an_event_too_large_for_a_record_does_not_delay_the_others(delivery: Delivery) -> None:
    delivery.add("a", 1)
    delivery.add("b", 1)
    with delivery.session("orders") as session:
        session.execute(
            text(
                "WITH added AS (INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
                " VALUES (:id, 'orders', 'a', 'order.created', CAST(:payload AS bytea))"
                " RETURNING shard, seq, id)"
                " INSERT INTO outbox_pending SELECT shard, seq, id FROM added"
            ),
            {"id": uuid7(), "payload": b'"' + b"x" * 1024 * 1024 + b'"'},
        )
    delivery.add("a", 2)
    delivery.add("b", 2)
    with delivery.process("outbox-relay", "run", "orders") as relay:
        delivery.wait_sent("orders")
        delivery.add("a", 3)
        delivery.wait_sent("orders")
        # A refused event does not count as an outage of the broker.
        assert not relay.logged("relay.broker_down")
        assert len(relay.logged("relay.refused")) == 1
    assert first_appearances(delivery.records(ORDERS)) == {"a": [1, 2, 3], "b": [1, 2]}
    ((seq, reason),) = delivery.query("orders", "SELECT seq, reason FROM outbox_refused")
    assert (seq, "MessageSizeTooLargeError" in reason) == (3, True)
    # A replay sends the other five events again, and not the refused one.
    assert delivery.run("outbox-relay", "replay", "orders", "--since", "1h").stdout.startswith("5 ")


@pytest.mark.slow
def test_large_events_are_sent_in_little_memory(delivery: Delivery) -> None:
    """The relay refuses another event, which SQL inserted and which is too large for a record."""
    delivery.add("a", *["x" * 890_000] * 10)
    delivery.query(
        "orders",
        "WITH added AS (INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
        " VALUES (:id, 'orders', 'a', 'order.created',"
        " convert_to(repeat('x', 100000000), 'UTF8'))"
        " RETURNING shard, seq, id)"
        " INSERT INTO outbox_pending SELECT shard, seq, id FROM added",
        id=uuid7(),
    )
    delivery.add("a", 1)

    with delivery.process("outbox-relay", "run", "orders") as relay:
        delivery.wait_sent("orders", timeout_s=60)
        peak = peak_mb(relay.pid)
        refused = relay.logged("relay.refused")

    assert peak < PEAK_MAX_MB
    assert ["MessageSizeTooLargeError" in each["error"] for each in refused] == [True]


def test_the_size_of_a_batch_includes_its_keys(delivery: Delivery) -> None:
    key = "\N{GRINNING FACE}" * KEY_MAX_LENGTH
    delivery.add(key, *range(200))

    with delivery.session("orders") as session:
        connection = session.connection()
        shards = lock_shards(connection, limit=1)
        events = read_pending(connection, shards, limit=10_000, noted_at=[])

    sizes = [len(event.aggregateid.encode()) + len(event.payload) for event in events]
    assert BATCH_MAX_BYTES - max(sizes) < sum(sizes) < BATCH_MAX_BYTES + max(sizes)


def test_an_event_of_an_undeclared_aggregatetype_does_not_delay_the_others(
    delivery: Delivery,
) -> None:
    """The topic of such an event may have a name that Kafka does not accept."""
    delivery.add("a", 1)
    wrong = ["order", "no topic!", "x" * 250]
    with delivery.session("orders") as session:
        outbox.add_all(session, [Event(each, "a", "order.created", {}) for each in wrong])
    delivery.add("a", 2)

    with delivery.process("outbox-relay", "run", "orders") as relay:
        delivery.wait_sent("orders")
        refused = relay.logged("relay.refused")
        assert not relay.logged("relay.broker_down")
        assert not relay.logged("relay.loop_down")

    assert first_appearances(delivery.records(ORDERS)) == {"a": [1, 2]}
    assert [each["seq"] for each in refused] == [2, 3, 4]
    rows = delivery.query("orders", "SELECT reason FROM outbox_refused ORDER BY seq")
    for row, aggregatetype in zip(rows, wrong, strict=True):
        assert f"{aggregatetype!r}; it declares: orders." in row.reason


def test_an_event_that_cannot_become_a_record_does_not_delay_the_others(delivery: Delivery) -> None:
    """The event's time is in the year 10,000 in UTC, which Python cannot represent."""
    delivery.add("a", 1)
    with delivery.session("orders") as session:
        session.execute(
            text(
                "WITH added AS (INSERT INTO outbox"
                " (id, aggregatetype, aggregateid, type, payload, created_at)"
                " VALUES (:id, 'orders', 'a', 'order.created', 'null', '9999-12-31 23:30-01')"
                " RETURNING shard, seq, id)"
                " INSERT INTO outbox_pending SELECT shard, seq, id FROM added"
            ),
            {"id": uuid7()},
        )
    delivery.add("a", 2)

    with delivery.process("outbox-relay", "run", "orders", PGTZ="<-01>+01") as relay:
        delivery.wait_sent("orders")
        assert len(relay.logged("relay.refused")) == 1
        assert not relay.logged("relay.broker_down")
        assert not relay.logged("relay.loop_down")

    assert first_appearances(delivery.records(ORDERS)) == {"a": [1, 2]}


@pytest.mark.parametrize("expected", ["17", "x"])
def test_a_relay_with_another_number_of_shards_does_not_start(
    delivery: Delivery, expected: str
) -> None:
    done = delivery.run("outbox-relay", "run", "orders", OUTBOX_SHARDS=expected)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "OUTBOX_SHARDS" in done.stderr
    assert "Traceback" not in done.stderr


def test_add_refuses_an_event_that_is_too_large_for_the_broker(delivery: Delivery) -> None:
    with delivery.session("orders") as session:
        largest = "x" * (PAYLOAD_MAX_BYTES - len('{"n":""}'))
        outbox.add(session, Event("orders", "a", "order.created", {"n": largest}))
        with pytest.raises(EventTooLargeError, match="900001 bytes"):
            outbox.add(session, Event("orders", "a", "order.created", {"n": largest + "x"}))
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
    assert len(delivery.records(ORDERS)) == 1


def test_add_never_commits(delivery: Delivery) -> None:
    engine = create_engine(delivery.orders_url)
    with Session(engine) as session:
        outbox.add(session, Event("orders", "a", "order.created", {}))
        assert delivery.query("orders", "SELECT id FROM outbox") == []
    engine.dispose()
    assert delivery.query("orders", "SELECT id FROM outbox") == []
    assert delivery.pending("orders") == 0


def test_a_relay_does_not_start_if_the_sequence_of_events_is_behind(
    delivery: Delivery,
) -> None:
    delivery.add("a", 1, 2, 3)
    delivery.query("orders", "ALTER TABLE outbox ALTER COLUMN seq RESTART WITH 1")

    done = delivery.run("outbox-relay", "run", "orders")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        "Error: The next value of the sequence outbox_seq_seq is 1, but outbox.seq is already at 3."
    )
    remedy = "SELECT setval('outbox_seq_seq', (SELECT max(seq) FROM outbox))"
    assert remedy in message
    delivery.query("orders", remedy)
    with delivery.relay("orders"):
        delivery.wait_sent("orders")


def test_another_sequence_that_is_behind_is_logged_and_events_are_sent(delivery: Delivery) -> None:
    delivery.open_account(10)
    delivery.add("a", 1, service="payments")
    delivery.query("payments", "ALTER SEQUENCE transfers_id_seq RESTART WITH 1")

    with delivery.process("outbox-relay", "run", "payments") as relay:
        relay.wait_logged("sequence.behind")
        delivery.wait_sent("payments")

    (line,) = relay.logged("sequence.behind")
    assert (line["column"], line["level"]) == ("transfers.id", "warning")


def test_events_are_sent_although_partitions_cannot_be_maintained(
    delivery: Delivery, tmp_path: Path
) -> None:
    """There is a foreign partition that overlaps a day, and a table with a partition's name."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    low, high = lowest_id(today - timedelta(days=1)), lowest_id(today + timedelta(hours=1))
    delivery.query(
        "orders",
        f"CREATE TABLE outbox_p20250101_old PARTITION OF outbox"
        f" FOR VALUES FROM ('{low}') TO ('{high}')",
    )
    delivery.query("orders", f"CREATE TABLE outbox_p{today + timedelta(days=1):%Y%m%d} ()")
    delivery.add("a", 1)

    with delivery.process("outbox-relay", "run", "orders", HEALTH_DIR=str(tmp_path)) as relay:
        delivery.wait_sent("orders")

        assert len(relay.logged("partition.failed")) == 2
        assert relay.logged("partition.foreign")
        assert len(relay.logged("partition.made")) == 2
        wait_until(
            lambda: "is ready, partition upkeep failed: outbox_p" in health_of("orders", tmp_path)
        )
        assert not relay.logged("relay.loop_down")


def health_of(service: str, directory: Path) -> str:
    try:
        return check_health(str(directory), f"outbox-relay-{service}", 30)
    except StuckError as error:
        return str(error)


def test_pending_rows_without_events_do_not_delay_the_others(delivery: Delivery) -> None:
    delivery.add("a", *range(60))
    delivery.query("orders", "DELETE FROM outbox")
    delivery.add("a", {"n": "new"})

    with delivery.relay("orders", relay_batch=50):
        delivery.wait_sent("orders")

    assert first_appearances(delivery.records(ORDERS)) == {"a": [{"n": "new"}]}
    ((count,),) = delivery.query("orders", "SELECT count(*) FROM outbox_refused")
    assert count == 60
