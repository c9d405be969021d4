"""Each of the doctor's checks of a database reports the problem that it looks for."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import make_url
from uuid_utils.compat import uuid7

from settle_outbox.checks import background, clocks, database, pooling, transactions, upkeep
from settle_outbox.storage.database import connect_autocommit
from settle_outbox.storage.partition_maintenance import maintain
from settle_outbox.storage.partitions import DAY, inbox_partitions, outbox_partitions
from settle_outbox.uuid7 import lowest_id
from shared.migrations import config_of
from support.delivery import Delivery
from support.doctor import NOWHERE, Doctor
from support.pooler import Pooler
from support.ports import free_port, with_port
from support.tcp_proxy import Wire, postgres_client
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.postgres import PostgresServer

pytestmark = pytest.mark.slow

DAY_S = 86_400
SERVICES = ("payments", "orders")


@pytest.fixture
def doctor(tmp_path: Path, orders_url: str) -> Doctor:
    """Return a doctor for the orders database only."""
    return Doctor(tmp_path, {"orders": orders_url})


@pytest.fixture
def run(orders_url: str) -> Callable[[str], None]:
    """Return a function that runs statements on the orders database."""

    def execute(statements: str) -> None:
        opened = connect_autocommit(orders_url, application_name="test")
        with opened.cursor() as cursor:
            cursor.execute(statements)
        opened.close()

    return execute


def test_a_new_database_has_no_problems(doctor: Doctor, orders_url: str) -> None:
    """The two findings are about the servers of the tests: no broker runs, and fsync is off."""
    engine = create_engine(orders_url, poolclass=NullPool)
    maintain(engine, outbox_partitions(DAY_S))
    maintain(engine, inbox_partitions(DAY_S))
    checks = doctor.examine("orders")
    assert {each.name for each in checks.values() if each.verdict != "ok"} == {
        *("broker", "orders durability")
    }
    assert not any(name.startswith("payments") for name in checks)


# By service: a statement that causes a problem, the check that reports the problem, the verdict,
# and a part of the finding's text. All statements of a service run before the doctor does.
PROBLEMS = {
    "orders": [
        ("DROP INDEX orders_by_user", "indexes", "fail", "orders_by_user"),
        ("DROP INDEX inbox_not_applied", "indexes", "fail", "inbox_not_applied"),
        ("DROP TRIGGER orders_final ON orders", "constraints", "fail", "orders_final"),
        (
            (
                "DO $$ BEGIN EXECUTE format("
                "'ALTER DATABASE %I SET track_counts = off', current_database()); END $$"
            ),
            *("autovacuum", "fail", "off on the server"),
        ),
        (
            (
                "DO $$ BEGIN EXECUTE format("
                "'ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$"
            ),
            *("durability", "fail", "synchronous_commit=off"),
        ),
        # A new database has no partitions of days yet, so nothing needs to be done.
        ("SELECT 1", "outbox parts", "warn", "missing: outbox_p"),
        ("SELECT 1", "inbox parts", "warn", "missing: inbox_p"),
        (
            (
                "INSERT INTO outbox_refused (seq, id, reason)"
                " SELECT n, gen_random_uuid(), 'too large' FROM generate_series(1, 7) AS n"
            ),
            *("refused", "fail", "7: "),
        ),
        (
            (
                'INSERT INTO dead_letters (fingerprint, topic, partition, "offset", headers,'
                " reason, detail) SELECT n::text::bytea, 't', 0, n, '[]', 'not_json', ''"
                " FROM generate_series(1, 3) AS n"
            ),
            *("dead letters", "warn", "3 not_json; the last "),
        ),
        (
            (
                "INSERT INTO inbox_brakes VALUES ('payments.events', 'payment.failed',"
                " 'builtins.KeyError', 20, '', now(), now())"
            ),
            *("stopped", "fail", "payment.failed of payments.events for "),
        ),
        *(
            (
                (
                    'INSERT INTO inbox (id, type, source, topic, partition, "offset", outcome)'
                    f" VALUES ('01a00000-0000-7000-{variant}000-000000000000', '', '', '', 0, 0,"
                    f" '{outcome}')"
                ),
                *(outcome, "warn", f"1: 01a00000-0000-7000-{variant}000-000000000000"),
            )
            for variant, outcome in (("8", "parked"), ("9", "anomaly"))
        ),
    ],
    "payments": [
        (
            "ALTER TABLE transfers DROP CONSTRAINT transfers_order_id_key",
            *("indexes", "fail", "unique transfers (order_id)"),
        ),
        (
            "ALTER TABLE accounts DROP CONSTRAINT accounts_balance_not_negative",
            *("constraints", "fail", "accounts_balance_not_negative"),
        ),
        (
            "ALTER TABLE transfers DROP CONSTRAINT transfers_to_account_id_fkey",
            *("constraints", "fail", "reference transfers (to_account_id)"),
        ),
        (
            "ALTER TABLE transfers DISABLE TRIGGER transfers_append_only",
            *("constraints", "fail", "trigger transfers.transfers_append_only"),
        ),
        (
            "ALTER TABLE cursor_secrets DROP CONSTRAINT cursor_secrets_length",
            *("constraints", "fail", "cursor_secrets_length"),
        ),
        (
            "ALTER TABLE accounts SET (autovacuum_enabled = false)",
            *("autovacuum", "fail", "off for accounts"),
        ),
    ],
}
# Objects that exist but are not valid.
INVALID = {
    "orders": [
        (
            # An interrupted CREATE INDEX CONCURRENTLY leaves such an index.
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_newest'::regclass",
            *("indexes", "fail", "invalid, so unused: orders_newest"),
        ),
        (
            (
                "ALTER TABLE orders DROP CONSTRAINT orders_amount_positive,"
                " ADD CONSTRAINT orders_amount_positive CHECK (amount >= 1) NOT VALID"
            ),
            *("constraints", "fail", "not validated: orders_amount_positive"),
        ),
    ],
}


@pytest.mark.parametrize(
    ("service", "problems"),
    [*PROBLEMS.items(), *INVALID.items()],
    ids=["orders", "payments", "invalid"],
)
def test_problems_of_a_database_are_reported(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    service: str,
    problems: list[tuple[str, str, str, str]],
) -> None:
    url = request.getfixturevalue(f"{service}_url")
    opened = connect_autocommit(url, application_name="test")
    with opened.cursor() as cursor:
        for statement, *_ in problems:
            cursor.execute(statement)
    opened.close()
    seen = Doctor(tmp_path, {service: url}).examine(service)
    for _, name, verdict, found in problems:
        check = seen[f"{service} {name}"]
        assert (check.verdict, found in check.found) == (verdict, True), check
        assert check.remedy


def test_missing_and_invalid_indexes_are_both_reported(
    doctor: Doctor, run: Callable[[str], None]
) -> None:
    run("DROP INDEX inbox_not_applied")
    run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_by_user'::regclass")

    verdict, found = doctor.verdict("orders indexes")

    assert verdict == "fail"
    assert found == "missing: inbox_not_applied; invalid, so unused: orders_by_user"
    assert "REINDEX" in doctor.seen["orders indexes"].remedy


@pytest.fixture
def older_url(postgres: PostgresServer) -> Iterator[str]:
    """Yield the URL of an orders database at revision 0004, which is not the newest."""
    url = postgres.create_database("doctor_older")
    config = config_of("orders")
    config.attributes["database_url"] = url
    command.upgrade(config, "0004")
    yield url
    postgres.drop_database("doctor_older")


def test_a_database_of_an_older_revision_only_needs_its_migrations(
    tmp_path: Path, older_url: str
) -> None:
    """No index counts as missing: the doctor knows only the indexes of the newest revision."""
    engine = create_engine(older_url, poolclass=NullPool)
    maintain(engine, outbox_partitions(DAY_S))
    maintain(engine, inbox_partitions(DAY_S))

    checks = Doctor(tmp_path, {"orders": older_url}).examine("orders")

    migrations = checks["orders migrations"]
    assert migrations.verdict == "fail"
    assert "alembic -n orders upgrade head" in migrations.remedy
    problems = {
        each.name
        for each in checks.values()
        if each.verdict != "ok" and each.remedy != "run the migrations, then try again"
    }
    assert problems == {"broker", "orders durability", "orders migrations"}


def test_an_invalid_index_of_an_unfinished_migration_is_reported(
    tmp_path: Path, older_url: str
) -> None:
    """A migration that was interrupted while it built this index leaves it invalid."""
    opened = connect_autocommit(older_url, application_name="test")
    with opened.cursor() as cursor:
        cursor.execute("CREATE INDEX orders_by_user ON orders (user_id, status, created_at, id)")
        cursor.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_by_user'::regclass"
        )
    opened.close()

    verdict, found = Doctor(tmp_path, {"orders": older_url}).verdict("orders indexes")

    assert (verdict, found) == ("fail", "invalid, so unused: orders_by_user")


def test_an_empty_database_is_reported_by_the_migrations_check(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database("doctor_empty")
    try:
        checks = Doctor(tmp_path, {"orders": url}).examine("orders")
        assert checks["orders migrations"].verdict == "fail"
        assert "does not exist" in checks["orders unsent"].found
        assert checks["orders unsent"].remedy == "run the migrations, then try again"
        assert checks["orders indexes"].verdict == "ok"
    finally:
        postgres.drop_database("doctor_empty")


def test_a_long_transaction_is_reported(
    doctor: Doctor, orders_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LONG_WARN_S", 0.0)
    opened = connect_autocommit(orders_url, application_name="forgotten")
    try:
        opened.cursor().execute("BEGIN; SELECT 1")
        verdict, text = doctor.verdict("orders transactions")
        assert (verdict, "(forgotten, idle in transaction)" in text) == ("warn", True), text
        monkeypatch.setattr(transactions, "LONG_FAIL_S", 0.0)
        assert doctor.verdict("orders transactions")[0] == "fail"
    finally:
        opened.close()


def test_dead_rows_are_reported(
    doctor: Doctor, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "DEAD_MIN", 50)
    monkeypatch.setattr(upkeep, "DEAD_WARN_TIMES", 0.01)
    run(
        "INSERT INTO outbox_pending SELECT 1, n, gen_random_uuid() FROM generate_series(1, 500) n;"
        " DELETE FROM outbox_pending"
    )

    def are_reported() -> bool:  # PostgreSQL updates its counts a moment later
        verdict, text = doctor.verdict("orders autovacuum")
        return verdict == "warn" and "outbox_pending: 500 dead rows, vacuumed never" in text

    wait_until(are_reported, what="the dead rows to be reported")


def test_partitions_past_retention_and_rows_in_the_default_partition_are_reported(
    doctor: Doctor, orders_url: str, run: Callable[[str], None]
) -> None:
    engine = create_engine(orders_url, poolclass=NullPool)
    for table in (outbox_partitions(60 * DAY_S), inbox_partitions(60 * DAY_S)):
        maintain(engine, table)
    assert doctor.verdict("orders outbox parts")[0] == "ok"
    maintain(engine, outbox_partitions(60 * DAY_S), datetime.now(UTC) - timedelta(days=30))
    # The retention counts back from the newest row. Without a row, no partition is past it.
    assert doctor.verdict("orders outbox parts")[0] == "ok"
    Delivery("", orders_url, NOWHERE).add("a", 1)
    verdict, text = doctor.verdict("orders outbox parts")
    assert verdict == "warn"
    assert "past retention" in text
    run(
        'INSERT INTO inbox (id, type, source, topic, partition, "offset", outcome)'
        f" VALUES ('{uuid4()}', '', '', '', 0, 0, 'applied')"
    )
    assert doctor.verdict("orders inbox parts") == ("warn", "1 rows in inbox_default")


def test_the_days_of_partitions_follow_the_clock_of_the_database(
    doctor: Doctor, orders_url: str, run: Callable[[str], None]
) -> None:
    engine = create_engine(orders_url, poolclass=NullPool)
    maintain(engine, outbox_partitions(60 * DAY_S))
    run(
        "CREATE SCHEMA skewed; CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz"
        " RETURN pg_catalog.clock_timestamp() + interval '40 days';"
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, skewed,"
        " pg_catalog', current_database()); END $$"
    )

    verdict, text = doctor.verdict("orders outbox parts")

    assert (verdict, text[:17]) == ("warn", "missing: outbox_p"), text


def test_a_renamed_partition_and_a_missing_default_partition_are_reported(
    doctor: Doctor, orders_url: str, run: Callable[[str], None]
) -> None:
    engine = create_engine(orders_url, poolclass=NullPool)
    maintain(engine, outbox_partitions(60 * DAY_S), datetime.now(UTC) - timedelta(days=30))
    maintain(engine, outbox_partitions(60 * DAY_S))
    run(
        "DO $$ DECLARE oldest text := (SELECT min(inhrelid::regclass::text) FROM pg_inherits"
        " WHERE inhparent = 'outbox'::regclass AND inhrelid::regclass::text LIKE '%_p%');"
        " BEGIN EXECUTE format('ALTER TABLE %I RENAME TO outbox_p2025', oldest); END $$"
    )
    assert doctor.verdict("orders outbox parts") == (
        "warn",
        "outbox_p2025: its name is not outbox_pYYYYMMDD",
    )

    run("DROP TABLE outbox_default")
    verdict, text = doctor.verdict("orders outbox parts")
    assert (verdict, "no default partition" in text) == ("fail", True)


@pytest.mark.parametrize(
    ("days", "expected", "found"),
    [(10, "fail", "in the future"), (-2, "warn", "may still come"), (-20, "ok", "since")],
)
def test_the_horizon_of_the_inbox_is_checked(
    doctor: Doctor, run: Callable[[str], None], days: int, expected: str, found: str
) -> None:
    assert doctor.verdict("orders horizon")[0] == "ok"
    run(f"INSERT INTO inbox_horizon VALUES ('{lowest_id(datetime.now(UTC) + days * DAY)}')")

    verdict, text = doctor.verdict("orders horizon")

    assert (verdict, found in text) == (expected, True), text


def test_a_sequence_that_is_behind_is_reported(doctor: Doctor, run: Callable[[str], None]) -> None:
    Delivery("", doctor.urls["orders"], NOWHERE).add("a", 1, 2)
    assert doctor.verdict("orders sequences")[0] == "ok"
    run("ALTER TABLE outbox ALTER COLUMN seq RESTART WITH 1")

    verdict, text = doctor.verdict("orders sequences")

    assert (verdict, text) == ("fail", "outbox_seq_seq gives 1 next, outbox.seq is at 2")
    run(doctor.seen["orders sequences"].remedy)
    assert doctor.verdict("orders sequences")[0] == "ok"


def test_waiting_events_and_orders_are_reported(
    doctor: Doctor, orders_url: str, run: Callable[[str], None]
) -> None:
    delivery = Delivery("", orders_url, NOWHERE)
    order_ids = delivery.place(uuid7(), 10, count=2)
    run("ALTER TABLE orders DISABLE TRIGGER orders_final")
    for age, expected in (("0 s", "ok"), ("2 minutes", "warn"), ("1 hour", "fail")):
        run(
            f"UPDATE outbox SET created_at = now() - interval '{age}';"
            f" UPDATE orders SET created_at = now() - interval '{age}'"
        )
        verdict, text = doctor.verdict("orders unsent")
        assert (verdict, text[:2]) == (expected, "2,")
        open_orders = doctor.seen["orders open"]
        assert open_orders.verdict == expected
    assert all(str(order_id) in open_orders.found for order_id in order_ids)


def test_a_transaction_pooler_is_reported(
    doctor: Doctor, postgres: PostgresServer, orders_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pooler(postgres.port).serving() as pooler:
        url = with_port(orders_url, pooler.port)
        doctor.urls = {"orders": url}
        assert doctor.verdict("orders pooler")[0] == "warn"
        assert doctor.seen["orders notify"].verdict == "warn"
        assert doctor.seen["orders indexes"].verdict == "ok"
        # The doctor is right to warn: a notification through the pooler does not arrive.
        monkeypatch.setattr(pooling, "NOTIFY_TIMEOUT_S", 0.5)
        one, other = (connect_autocommit(url, application_name="test") for _ in range(2))
        found = pooling.check_notify("notify", one, other)
        assert (found.verdict, found.found[:15]) == ("warn", "has not arrived")
        one.close()
        other.close()


def test_clocks_that_differ_are_reported(
    tmp_path: Path, orders_url: str, payments_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor = Doctor(tmp_path, {"orders": orders_url, "payments": payments_url})
    monkeypatch.setattr(
        clocks, "time", SimpleNamespace(time=lambda: time.time() + 10, monotonic=time.monotonic)
    )
    # This process's clock is ahead of both databases.
    verdict, text = doctor.verdict("orders clock")
    assert (verdict, "behind" in text) == ("warn", True), text
    assert doctor.seen["clocks apart"].verdict == "ok"
    opened = connect_autocommit(orders_url, application_name="test")
    with opened.cursor() as cursor:  # simulates a server with another clock
        cursor.execute(
            "CREATE SCHEMA skewed; CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz"
            " RETURN pg_catalog.clock_timestamp() + interval '2 minutes';"
        )
        cursor.execute(
            f"ALTER DATABASE {opened.info.dbname} SET search_path = skewed, public, pg_catalog"
        )
    opened.close()
    verdict, text = doctor.verdict("clocks apart")
    assert (verdict, "ahead of that of payments" in text) == ("fail", True), text
    assert doctor.seen["orders clock"].verdict == "fail"


@pytest.mark.parametrize(
    ("version", "verdict"),
    [(130022, "fail"), (140000, "ok"), (150014, "ok"), (180006, "ok"), (190000, "warn")],
)
def test_the_version_of_the_server_is_checked(version: int, verdict: str) -> None:
    assert database.judge_version("orders db", version).verdict == verdict


def test_a_large_database_is_reported(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WARN_SIZE_BYTES", 1)
    verdict, text = doctor.verdict("orders size")
    assert (verdict, "MB (" in text) == ("warn", True)


def test_a_check_that_lacks_a_privilege_or_waits_for_a_lock_is_reported(
    doctor: Doctor, orders_url: str, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_MS", 200)
    run("CREATE ROLE doctor_stranger LOGIN PASSWORD 'stranger'")
    locking = connect_autocommit(orders_url, application_name="test")
    try:
        locking.cursor().execute("BEGIN; LOCK TABLE dead_letters")
        verdict, text = doctor.verdict("orders dead letters")
        assert (verdict, "not checked: canceling statement" in text) == ("warn", True), text
        url = make_url(orders_url).set(username="doctor_stranger", password="stranger")
        doctor.urls = {"orders": url.render_as_string(hide_password=False)}
        verdict, text = doctor.verdict("orders unsent")
        assert (verdict, "not checked: permission denied" in text) == ("warn", True), text
        assert "are hidden" in doctor.seen["orders transactions"].found
    finally:
        locking.close()
        run("DROP ROLE doctor_stranger")


def test_a_database_that_is_down_is_reported(doctor: Doctor) -> None:
    doctor.urls = {"orders": f"postgresql+psycopg2://orders@127.0.0.1:{free_port()}/orders"}
    verdict, text = doctor.verdict("orders db")
    assert (verdict, "refused" in text) == ("fail", True)
    assert "orders indexes" not in doctor.seen
    doctor.urls = {"orders": "mysql://orders@127.0.0.1/orders"}
    verdict, text = doctor.verdict("orders db")
    assert (verdict, "ORDERS_DATABASE_URL" in text) == ("fail", True)


def test_a_server_that_never_answers_does_not_block_the_doctor(doctor: Doctor) -> None:
    """The server accepts connections to the databases and to the broker, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        doctor.bootstrap = f"127.0.0.1:{port}"
        doctor.urls = {
            service: f"postgresql+psycopg2://{service}@127.0.0.1:{port}/{service}"
            for service in SERVICES
        }
        checks = doctor.examine()
    assert checks["broker"].verdict == "ok"  # the connection succeeds
    bad = {name for name, check in checks.items() if check.verdict == "fail"}
    assert bad == {"orders db", "payments db", "clocks", "cluster"}


def test_a_database_that_freezes_during_the_checks_is_reported(
    doctor: Doctor, postgres: PostgresServer, orders_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SILENCE_S", 3.0)
    with Wire(postgres_client, free_port(), postgres.port) as wire:
        doctor.urls = {"orders": with_port(orders_url, wire.port)}
        frozen = wire.stalled("outbox-doctor")

        def freeze(*_: object) -> list[object]:
            frozen.__enter__()
            return []

        monkeypatch.setattr(transactions, "check_transactions", freeze)
        verdict, text = doctor.verdict("orders answers")
        frozen.__exit__(None, None, None)
    assert (verdict, "not for 3 s" in text) == ("fail", True)


def test_a_database_that_ends_the_connection_during_the_checks_is_reported(
    doctor: Doctor, run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> list[object]:
        run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'outbox-doctor' AND datname = current_database()"
        )
        return []

    monkeypatch.setattr(transactions, "check_transactions", end)
    verdict, text = doctor.verdict("orders answers")
    assert (verdict, "no longer" in text) == ("fail", True)
    assert "orders constraints" not in doctor.seen
