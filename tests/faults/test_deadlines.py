"""A transaction releases its connection at its deadline, even if the server is frozen."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from settle_outbox.consume.handler import sessions as handler_sessions
from settle_outbox.publish import relay
from settle_outbox.publish.lost_topics import Destination, record_topics
from settle_outbox.storage.database import CONNECT_ARGS, make_engine
from settle_outbox.storage.deadlines import DeadlineWatcher, without_deadline
from settle_outbox.storage.partition_maintenance import maintain
from settle_outbox.storage.partitions import DAY, Partitioned, existing_days
from settle_outbox.uuid7 import lowest_id
from support.delivery import ORDERS, order_created, read_health
from support.frozen_postgres import frozen
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine, TextClause
    from sqlalchemy.pool import ConnectionPoolEntry

    from support.delivery import Delivery
    from support.postgres import PostgresServer

DEADLINE_S = 1.0
FOREVER = text("SELECT pg_sleep(60)")
PAST_DEADLINE = text("SELECT pg_sleep(2.5)")
BACKEND = text("SELECT pg_backend_pid()")
ONE = text("SELECT 1")


@contextmanager
def open_engine(url: str) -> Iterator[Engine]:
    engine = make_engine(url, application_name="deadline-test", pool_size=5, deadline_s=DEADLINE_S)
    try:
        yield engine
    finally:
        engine.dispose()


def run_statement(engine: Engine, statement: TextClause = ONE) -> float:
    """Run a statement in a transaction, and return how many seconds it took."""
    began = time.monotonic()
    with engine.begin() as connection:
        connection.execute(statement)
    return time.monotonic() - began


def open_files() -> int:
    """Return the number of files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_transaction_past_its_deadline_is_cut_and_the_next_one_works(
    postgres: PostgresServer,
) -> None:
    with open_engine(postgres.url()) as engine:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(OperationalError) as caught:
                run_statement(engine, FOREVER)
            assert DEADLINE_S <= time.monotonic() - began < 20
            assert caught.value.connection_invalidated
            run_statement(engine)


def test_the_deadline_covers_the_whole_transaction(postgres: PostgresServer) -> None:
    """The deadline limits the sum of all statements, because a request waits for all of them."""
    nap = text("SELECT pg_sleep(0.4)")

    def take_naps(engine: Engine) -> None:
        with engine.connect() as connection:
            for _ in range(10):
                connection.execute(nap)

    with open_engine(postgres.url()) as engine, pytest.raises(OperationalError):
        take_naps(engine)


def test_a_deadline_is_lifted_for_one_transaction_only(
    postgres: PostgresServer,
) -> None:
    with open_engine(postgres.url()) as engine:
        with engine.begin() as connection:
            without_deadline(connection)
            connection.execute(PAST_DEADLINE)
            backend = connection.scalar(BACKEND)
        with engine.begin() as connection:
            assert connection.scalar(BACKEND) == backend
        with pytest.raises(OperationalError):
            run_statement(engine, FOREVER)


def replaced_topic() -> Destination:
    """Return a destination whose topic was just created again."""
    return Destination(None, {ORDERS: uuid4()}, {ORDERS: "orders"})


def test_work_that_grows_with_the_tables_has_no_deadline(orders_url: str) -> None:
    """Two examples: queueing a week's events again, and moving or dropping a day's rows."""
    window = timedelta(days=7)
    with open_engine(orders_url) as engine:
        with engine.begin() as connection:
            record_topics(connection, replaced_topic(), window)
        with ThreadPoolExecutor(1) as thread, engine.begin() as requeue_connection:
            # The lock makes record_topics wait past the deadline, as many rows would.
            with engine.begin() as holder:
                holder.execute(text("SELECT FROM outbox_shards FOR UPDATE"))
                without_deadline(holder)
                requeueing = thread.submit(
                    record_topics, requeue_connection, replaced_topic(), window
                )
                holder.execute(PAST_DEADLINE)
                assert not requeueing.done()
            assert requeueing.result(timeout=30).queued == {ORDERS: 0}

        # The condition sleeps, as it would on a large table, and keeps no partition.
        slow = Partitioned("outbox", DAY, keep_if="SELECT pg_sleep(2.5) IS NULL")
        maintain(engine, slow)
        with engine.connect() as connection:
            first = min(existing_days(connection, "outbox"))
            connection.execute(
                text(
                    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
                    " VALUES (:id, 'orders', 'a', 't', '')"
                ),
                {"id": UUID(int=lowest_id(first + 2 * DAY).int | 7 << 76)},  # version 7
            )
            connection.commit()
        maintain(engine, slow, now=first + 2 * DAY)
        with engine.connect() as connection:
            assert first not in existing_days(connection, "outbox")


def test_a_late_transaction_does_not_cut_the_next_one_on_its_connection(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another transaction takes the connection between the check of the deadline and the cut."""
    held: list[Connection] = []
    cut = DeadlineWatcher.cut
    tried = threading.Event()

    def reuse_connection_and_cut(
        watcher: DeadlineWatcher, entry: ConnectionPoolEntry, taken_at: float
    ) -> None:
        if tried.is_set():
            return
        held.pop().close()
        held.append(engine.connect())
        cut(watcher, entry, taken_at)
        tried.set()

    monkeypatch.setattr(DeadlineWatcher, "cut", reuse_connection_and_cut)
    engine = make_engine(
        postgres.url(), application_name="deadline-test", pool_size=1, deadline_s=DEADLINE_S
    )
    held.append(engine.connect())
    first = held[0].scalar(BACKEND)

    assert tried.wait(10 * DEADLINE_S)

    with held.pop() as reused:
        assert reused.scalar(BACKEND) == first
    engine.dispose()


def test_the_watcher_outlives_an_error(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_late = DeadlineWatcher.cut_late
    failed = threading.Event()

    def fail_once(watcher: DeadlineWatcher) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("unforeseen")
        cut_late(watcher)

    monkeypatch.setattr(DeadlineWatcher, "cut_late", fail_once)
    with open_engine(postgres.url()) as engine, pytest.raises(OperationalError):
        run_statement(engine, FOREVER)

    assert failed.is_set()


def test_idle_connections_are_not_cut(postgres: PostgresServer) -> None:
    with open_engine(postgres.url()) as engine:
        with engine.begin() as connection:
            first = connection.scalar(BACKEND)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2.5 * DEADLINE_S, what="the deadline")
        with engine.begin() as connection:
            assert connection.scalar(BACKEND) == first


def test_the_server_rolls_back_a_transaction_that_was_cut(postgres: PostgresServer) -> None:
    """The rows of a transaction whose connection was cut are not committed."""
    postgres.execute("CREATE TABLE cut_rows (id int)")

    def insert(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO cut_rows VALUES (1)"))
            connection.execute(FOREVER)

    with open_engine(postgres.url()) as engine, pytest.raises(OperationalError):
        insert(engine)
    # The server still sleeps in the cut transaction, whose lock would block DROP TABLE.
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'deadline-test'"
    )
    assert postgres.execute("SELECT * FROM cut_rows") == []
    postgres.execute("DROP TABLE cut_rows")


def test_closed_connections_leave_no_file_open(postgres: PostgresServer) -> None:
    before = open_files()
    for _ in range(10):
        with open_engine(postgres.url()) as engine, ThreadPoolExecutor(5) as threads:
            list(threads.map(lambda _, engine=engine: run_statement(engine), range(5)))
    assert open_files() <= before + 1


def test_while_a_server_is_silent_one_attempt_waits_and_the_others_fail_soon() -> None:
    """The server is a listener that never answers. The kernel accepts its connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        with open_engine(f"postgresql+psycopg2://x@127.0.0.1:{port}/x") as engine:

            def seconds_until_failure(_: int) -> float:
                began = time.monotonic()
                with pytest.raises(OperationalError):
                    run_statement(engine)
                return time.monotonic() - began

            timeout_s = float(CONNECT_ARGS["connect_timeout"])
            assert seconds_until_failure(0) >= timeout_s - 1.1  # libpq counts in whole seconds
            with ThreadPoolExecutor(5) as threads:
                took = sorted(threads.map(seconds_until_failure, range(5)))
            assert took[-1] >= timeout_s - 1.1
            assert took[2] < took[-1] / 2, took


def test_a_server_that_answers_again_is_used_at_once(own_postgres: PostgresServer) -> None:
    """After one attempt succeeds, the others may connect again."""
    with open_engine(own_postgres.url()) as engine, ThreadPoolExecutor(5) as threads:
        with frozen(own_postgres), pytest.raises(OperationalError):
            run_statement(engine)
        run_statement(engine)
        list(threads.map(lambda _: run_statement(engine), range(20)))


def test_relays_and_consumers_give_up_on_a_silent_server(
    own_postgres: PostgresServer,
    own_postgres_delivery: Delivery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They drop a frozen connection and connect again, as they must after a failover."""
    for module in (relay, handler_sessions):
        monkeypatch.setattr(module, "TRANSACTION_S", DEADLINE_S)
    delivery = own_postgres_delivery
    user = delivery.open_account(100)

    def wait_charged(times: int) -> None:
        wait_until(lambda: len(delivery.charges()) == times, timeout_s=60, what="the charge")

    def waits_for_the_database(process: str) -> bool:
        health = json.loads(read_health(tmp_path, process))
        return (health["state"], health["detail"]) == ("waiting", "database")

    with (
        delivery.relay("orders", health_dir=str(tmp_path)),
        delivery.consumer("payments", health_dir=str(tmp_path)),
    ):
        delivery.place(user, 1)
        wait_charged(1)
        with frozen(own_postgres):
            delivery.produce(ORDERS, order_created(user, 1))
            for process in ("outbox-relay-orders", "inbox-consumer-payments"):
                gives_up = partial(waits_for_the_database, process)
                wait_until(gives_up, timeout_s=40, what=f"{process} to give up")
        wait_charged(2)
        delivery.place(user, 1)
        wait_charged(3)
    assert delivery.balance(user) == 97
