"""A transaction past its deadline loses its connection and fails, even if the server is frozen."""

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
SLEEP_60_S = text("SELECT pg_sleep(60)")
SLEEP_2_5_S = text("SELECT pg_sleep(2.5)")
BACKEND_PID = text("SELECT pg_backend_pid()")
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


def count_open_files() -> int:
    """Return the number of files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_transaction_past_its_deadline_is_cut_and_the_next_one_works(
    postgres: PostgresServer,
) -> None:
    with open_engine(postgres.url()) as engine:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(OperationalError) as caught:
                run_statement(engine, SLEEP_60_S)
            assert DEADLINE_S <= time.monotonic() - began < 20
            assert caught.value.connection_invalidated
            run_statement(engine)


def test_the_deadline_covers_the_whole_transaction(postgres: PostgresServer) -> None:
    """Each statement is shorter than the deadline, but a request waits for all of them."""
    nap = text("SELECT pg_sleep(0.4)")

    def take_naps(engine: Engine) -> None:
        with engine.connect() as connection:
            for _ in range(10):
                connection.execute(nap)

    with open_engine(postgres.url()) as engine, pytest.raises(OperationalError):
        take_naps(engine)


def test_without_deadline_applies_to_one_transaction_only(
    postgres: PostgresServer,
) -> None:
    with open_engine(postgres.url()) as engine:
        with engine.begin() as connection:
            without_deadline(connection)
            connection.execute(SLEEP_2_5_S)
            pid = connection.scalar(BACKEND_PID)
        with engine.begin() as connection:
            assert connection.scalar(BACKEND_PID) == pid
        with pytest.raises(OperationalError):
            run_statement(engine, SLEEP_60_S)


def destination_with_new_topic() -> Destination:
    """Return a destination whose topic has a new id, as if it was deleted and created again."""
    return Destination(
        cluster_id=None, topic_ids={ORDERS: uuid4()}, aggregatetypes={ORDERS: "orders"}
    )


def test_work_that_takes_longer_on_larger_tables_has_no_deadline(orders_url: str) -> None:
    """Two examples: making the events of a lost topic pending again, and dropping a partition."""
    window = timedelta(days=7)
    # If a topic has a new id, record_topics makes the topic's events pending again.
    with open_engine(orders_url) as engine:
        with engine.begin() as connection:
            record_topics(connection, destination_with_new_topic(), window)
        with ThreadPoolExecutor(1) as thread, engine.begin() as requeue_connection:
            # While these rows are locked, record_topics waits. So it runs for longer than the
            # deadline of the engine, as it would with many events.
            with engine.begin() as lock_connection:
                lock_connection.execute(text("SELECT FROM outbox_shards FOR UPDATE"))
                without_deadline(lock_connection)
                requeueing = thread.submit(
                    record_topics, requeue_connection, destination_with_new_topic(), window
                )
                lock_connection.execute(SLEEP_2_5_S)
                assert not requeueing.done()
            assert requeueing.result(timeout=30).queued == {ORDERS: 0}

        # The query takes 2.5 s, as it might on a large table. Its result is false, so the partition
        # is not kept.
        slow = Partitioned("outbox", retention=DAY, keep_if="SELECT pg_sleep(2.5) IS NULL")
        maintain(engine, slow)
        with engine.connect() as connection:
            oldest_day = min(existing_days(connection, "outbox"))
            # Retention counts back from the time in the newest UUIDv7 of the table, so insert one.
            connection.execute(
                text(
                    "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
                    " VALUES (:id, 'orders', 'a', 't', '')"
                ),
                {"id": UUID(int=lowest_id(oldest_day + 2 * DAY).int | 7 << 76)},
            )
            connection.commit()
        maintain(engine, slow, now=oldest_day + 2 * DAY)
        with engine.connect() as connection:
            assert oldest_day not in existing_days(connection, "outbox")


def test_a_connection_that_was_returned_in_time_is_not_cut_in_its_next_transaction(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next transaction takes the connection between the check of the deadline and the cut."""
    current: list[Connection] = []
    cut = DeadlineWatcher.cut
    attempted = threading.Event()

    def reuse_connection_and_cut(
        watcher: DeadlineWatcher, entry: ConnectionPoolEntry, taken_at: float
    ) -> None:
        if attempted.is_set():  # the next transaction may be cut at its own deadline
            return
        current.pop().close()
        current.append(engine.connect())
        cut(watcher, entry, taken_at)
        attempted.set()

    monkeypatch.setattr(DeadlineWatcher, "cut", reuse_connection_and_cut)
    engine = make_engine(
        postgres.url(), application_name="deadline-test", pool_size=1, deadline_s=DEADLINE_S
    )
    current.append(engine.connect())
    first_pid = current[0].scalar(BACKEND_PID)

    assert attempted.wait(10 * DEADLINE_S)

    with current.pop() as reused:
        assert reused.scalar(BACKEND_PID) == first_pid
    engine.dispose()


def test_the_watcher_outlives_an_error(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_overdue = DeadlineWatcher.cut_overdue
    failed = threading.Event()

    def fail_once(watcher: DeadlineWatcher) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("unforeseen")
        cut_overdue(watcher)

    monkeypatch.setattr(DeadlineWatcher, "cut_overdue", fail_once)
    with open_engine(postgres.url()) as engine, pytest.raises(OperationalError):
        run_statement(engine, SLEEP_60_S)

    assert failed.is_set()


def test_idle_connections_are_not_cut(postgres: PostgresServer) -> None:
    with open_engine(postgres.url()) as engine:
        with engine.begin() as connection:
            first_pid = connection.scalar(BACKEND_PID)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2.5 * DEADLINE_S, what="the deadline")
        with engine.begin() as connection:
            assert connection.scalar(BACKEND_PID) == first_pid


def test_a_transaction_that_was_cut_commits_nothing(postgres: PostgresServer) -> None:
    postgres.execute("CREATE TABLE cut_rows (id int)")

    def insert(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO cut_rows VALUES (1)"))
            connection.execute(SLEEP_60_S)

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
    before = count_open_files()
    for _ in range(10):
        with open_engine(postgres.url()) as engine, ThreadPoolExecutor(5) as threads:
            list(threads.map(lambda _, engine=engine: run_statement(engine), range(5)))
    assert count_open_files() == before


def test_while_a_server_is_silent_one_attempt_waits_and_the_others_fail_soon() -> None:
    """The server is a socket that listens and never answers. The kernel accepts connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        with open_engine(f"postgresql+psycopg2://x@127.0.0.1:{port}/x") as engine:

            def seconds_until_failure(_: int) -> float:
                began = time.monotonic()
                with pytest.raises(OperationalError):
                    run_statement(engine)
                return time.monotonic() - began

            # libpq counts whole seconds, so it may give up almost a second early.
            timeout_s = float(CONNECT_ARGS["connect_timeout"]) - 1.1
            assert seconds_until_failure(0) >= timeout_s
            with ThreadPoolExecutor(5) as threads:
                took = sorted(threads.map(seconds_until_failure, range(5)))
            assert took[-1] >= timeout_s
            assert took[-2] < took[-1] / 2, took


def test_a_server_that_answers_again_is_used_at_once(own_postgres: PostgresServer) -> None:
    """When one thread has connected, all threads may connect."""
    with open_engine(own_postgres.url()) as engine, ThreadPoolExecutor(5) as threads:
        with frozen(own_postgres), pytest.raises(OperationalError):
            run_statement(engine)
        run_statement(engine)
        list(threads.map(lambda _: run_statement(engine), range(20)))


def test_relays_and_consumers_give_up_on_a_frozen_server(
    own_postgres: PostgresServer,
    own_postgres_delivery: Delivery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They close their connections and open new ones, as they must after a failover."""
    for module in (relay, handler_sessions):
        monkeypatch.setattr(module, "TRANSACTION_S", DEADLINE_S)
    delivery = own_postgres_delivery
    user = delivery.open_account(100)

    def wait_for_charges(total: int) -> None:
        wait_until(lambda: len(delivery.charges()) == total, timeout_s=60, what="the charges")

    def has_given_up(process: str) -> bool:
        health = json.loads(read_health(tmp_path, process))
        return (health["state"], health["detail"]) == ("waiting", "database")

    with (
        delivery.relay("orders", health_dir=str(tmp_path)),
        delivery.consumer("payments", health_dir=str(tmp_path)),
    ):
        delivery.place(user, 1)
        wait_for_charges(1)
        with frozen(own_postgres):
            delivery.produce(ORDERS, order_created(user, 1))
            for process in ("outbox-relay-orders", "inbox-consumer-payments"):
                gave_up = partial(has_given_up, process)
                wait_until(gave_up, timeout_s=40, what=f"{process} to give up")
        wait_for_charges(2)
        delivery.place(user, 1)
        wait_for_charges(3)
    assert delivery.balance(user) == 97
