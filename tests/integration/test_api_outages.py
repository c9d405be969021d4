"""The answers of an API while its database is down, frozen, locked, or refuses statements."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from services.wiring import SPARE_CONNECTIONS
from shared.migrations import upgrade
from shared.settings import DEFAULT_THREADS
from shared.web.problems.documents import MEDIA_TYPE
from support.frozen_postgres import frozen
from support.ports import free_port
from support.waiting import wait_until
from support.web import open_app, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from werkzeug.test import TestResponse

    from support.postgres import PostgresServer

pytestmark = pytest.mark.slow

# Below the time-outs of usual clients, and above the limits of the API (shared/web/app.py): 5 s for
# a statement, and 8 s for a transaction on a frozen server.
TIMEOUT_S = 15
UNAVAILABLE = "web.database_unavailable"
LOCK_NOT_AVAILABLE = "55P03"


@pytest.fixture
def payments_api(payments_url: str, tmp_path: Path) -> Iterator[str]:
    with serve("payments", payments_url, tmp_path / "payments-api.log") as url:
        yield url


def refused(response: requests.Response) -> bool:
    """Return whether the answer is a 503. If so, check its problem document and Retry-After."""
    if response.status_code != 503:
        return False
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert response.headers["Retry-After"] == "1"
    assert response.json()["status"] == 503
    return True


def test_a_request_behind_a_lock_whose_holder_is_frozen_ends(
    payments_api: str, payments_url: str, tmp_path: Path
) -> None:
    user_id = str(uuid4())
    requests.post(f"{payments_api}/accounts", json={"user_id": user_id}, timeout=TIMEOUT_S)
    deposit = f"{payments_api}/accounts/{user_id}/deposit"
    with create_engine(payments_url, poolclass=NullPool).connect() as holder:
        holder.execute(text("SELECT FROM accounts WHERE user_id = :id FOR UPDATE"), {"id": user_id})
        began = time.monotonic()
        response = requests.post(deposit, json={"amount": 5}, timeout=TIMEOUT_S)
        took_s = time.monotonic() - began

    assert refused(response)
    assert "in time" in response.json()["detail"]
    # lock_timeout (2 s) ended the wait, before the time-outs of the statement and the transaction.
    log = (tmp_path / "payments-api.log").read_text().splitlines()
    refusals = [each for each in map(json.loads, log) if each["event"] == UNAVAILABLE]
    assert [each["sqlstate"] for each in refusals] == [LOCK_NOT_AVAILABLE]
    assert took_s > 1.5
    assert requests.post(deposit, json={"amount": 5}, timeout=TIMEOUT_S).status_code == 200
    balance = requests.get(f"{payments_api}/accounts/balance?user_id={user_id}", timeout=TIMEOUT_S)
    assert balance.json() == {"balance": 5}


def test_a_request_behind_a_locked_table_ends(payments_api: str, payments_url: str) -> None:
    """A migration that hangs can hold such a lock. Even reads wait for it."""
    with create_engine(payments_url, poolclass=NullPool).connect() as holder:
        holder.execute(text("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE"))
        url = f"{payments_api}/accounts/balance?user_id={uuid4()}"
        assert refused(requests.get(url, timeout=TIMEOUT_S))


def test_a_database_restart_between_requests_fails_no_request(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """Both workers hold connections that the restart ended. No request fails because of that."""
    url = own_postgres.create_database("orders")
    upgrade("orders", url)
    with serve("orders", url, tmp_path / "orders-api.log") as api:

        def place() -> requests.Response:
            body = {"user_id": str(uuid4()), "amount": 1}
            return requests.post(f"{api}/orders", json=body, timeout=TIMEOUT_S)

        for stop in (own_postgres.stop, own_postgres.kill):
            assert {place().status_code for _ in range(40)} == {202}  # from both workers
            stop()
            own_postgres.start()
            assert {place().status_code for _ in range(40)} == {202}


def test_an_api_is_ready_again_after_its_database_comes_back(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """The API stays alive, is not ready during the outage, and is ready again without a restart."""
    url = own_postgres.create_database("payments")
    upgrade("payments", url)
    with serve("payments", url, tmp_path / "payments-api.log") as api:

        def get(path: str) -> requests.Response:
            return requests.get(f"{api}{path}", timeout=TIMEOUT_S)

        assert get("/readyz").json() == {"status": "ok"}
        own_postgres.stop()
        for _ in range(5):
            assert get("/livez").json() == {"status": "ok"}
            assert refused(get("/readyz"))
            assert refused(get(f"/accounts/balance?user_id={uuid4()}"))
        own_postgres.start()
        wait_until(lambda: get("/readyz").ok, what="readiness")


def test_an_api_without_a_broker_is_ready_and_accepts_orders(
    orders_url: str, tmp_path: Path
) -> None:
    """The orders settle after the broker is back, because their events are stored."""
    nobody = f"127.0.0.1:{free_port()}"
    log = tmp_path / "orders-api.log"
    with serve("orders", orders_url, log, KAFKA_BOOTSTRAP_SERVERS=nobody) as api:
        assert requests.get(f"{api}/readyz", timeout=TIMEOUT_S).json() == {"status": "ok"}
        body = {"user_id": str(uuid4()), "amount": 1}
        assert requests.post(f"{api}/orders", json=body, timeout=TIMEOUT_S).status_code == 202


def test_requests_end_while_the_database_is_frozen(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """The time-outs of a frozen server do not run, but its kernel answers TCP keep-alives."""
    url = own_postgres.create_database("payments")
    upgrade("payments", url)
    with (
        serve("payments", url, tmp_path / "payments-api.log") as api,
        ThreadPoolExecutor(40) as pool,
    ):

        def open_accounts(count: int) -> list[requests.Response]:
            def open_one(_: int) -> requests.Response:
                body = {"user_id": str(uuid4())}
                return requests.post(f"{api}/accounts", json=body, timeout=4 * TIMEOUT_S)

            return list(pool.map(open_one, range(count)))

        assert {answer.status_code for answer in open_accounts(40)} == {201}  # fill the pools
        with frozen(own_postgres):
            # There are more requests than threads. The queued ones must not wait one after another.
            answers = open_accounts(40)
            assert all(refused(answer) for answer in answers)
            assert {answer.json()["type"] for answer in answers} == {
                "/problems/database-unavailable"
            }
            assert max(answer.elapsed.total_seconds() for answer in answers) < 2 * TIMEOUT_S
            assert requests.get(f"{api}/livez", timeout=TIMEOUT_S).ok
            assert refused(requests.get(f"{api}/readyz", timeout=TIMEOUT_S))
        wait_until(
            lambda: {answer.status_code for answer in open_accounts(10)} == {201},
            timeout_s=30,
            what="both workers to open accounts again",
        )


def test_a_statement_that_takes_too_long_ends(payments_api: str, payments_url: str) -> None:
    with create_engine(payments_url, poolclass=NullPool).begin() as admin:
        admin.execute(
            text(
                "CREATE FUNCTION sleep_long() RETURNS trigger LANGUAGE plpgsql"
                " AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$"
            )
        )
        admin.execute(
            text(
                "CREATE TRIGGER sleep_long BEFORE INSERT ON accounts FOR EACH ROW"
                " EXECUTE FUNCTION sleep_long()"
            )
        )
    body = {"user_id": str(uuid4())}
    answer = requests.post(f"{payments_api}/accounts", json=body, timeout=2 * TIMEOUT_S)
    assert refused(answer)
    assert answer.json()["type"] == "/problems/database-too-slow"


REFUSING = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def name_of(url: str) -> str:
    name = make_url(url).database
    assert name
    return name


def open_an_account(url: str) -> tuple[TestResponse, list[str]]:
    """Open an account, and return the answer and the logged SQLSTATEs."""
    with open_app("payments", url) as app, capture_logs() as lines:
        answer = app.test_client().post("/accounts", json={"user_id": str(uuid4())})
    failures = [line for line in lines if line["event"] == UNAVAILABLE]
    return answer, [line["sqlstate"] for line in failures]


@pytest.mark.parametrize(
    ("sqlstate", "kind", "detail"),
    [
        ("40P01", "database-unavailable", "because of a concurrent request"),  # deadlock_detected
        (
            "40001",
            "database-unavailable",
            "because of a concurrent request",
        ),  # serialization_failure
        ("53100", "database-unavailable", "refuses this request for now"),  # disk_full
        ("25006", "database-unavailable", "refuses this request for now"),  # read-only
        ("42P01", "database-unavailable", "refuses this request for now"),  # undefined_table
        ("42501", "database-unavailable", "refuses this request for now"),  # no privilege
        ("58030", "database-unavailable", "refuses this request for now"),  # io_error
        ("53300", "database-unavailable", "cannot be reached"),  # too_many_connections
        ("57014", "database-too-slow", "in time"),  # query_canceled
        ("55P03", "database-too-slow", "in time"),  # lock_not_available
    ],
)
def test_a_temporary_refusal_is_answered_with_retry_after_and_the_reason(
    payments_url: str, postgres: PostgresServer, sqlstate: str, kind: str, detail: str
) -> None:
    postgres.execute(REFUSING.format(sqlstate=sqlstate), database=name_of(payments_url))

    answer, logged = open_an_account(payments_url)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.get_json()["type"] == f"/problems/{kind}"
    assert detail in answer.get_json()["detail"]
    assert logged == [sqlstate]


@pytest.mark.parametrize(
    "sqlstate",
    [
        "P0001",  # raise_exception
        "22012",  # division_by_zero
        "42703",  # undefined_column
        "23514",  # check_violation
    ],
)
def test_a_defect_is_not_reported_as_an_outage(
    payments_url: str, postgres: PostgresServer, sqlstate: str
) -> None:
    postgres.execute(REFUSING.format(sqlstate=sqlstate), database=name_of(payments_url))

    answer, logged = open_an_account(payments_url)

    assert (answer.status_code, logged) == (500, [])


def test_a_read_only_database_is_answered_with_retry_after(
    payments_url: str, postgres: PostgresServer
) -> None:
    """An operator made the database read-only, or it is a standby. Reads still work."""
    name = name_of(payments_url)
    postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')

    answer, logged = open_an_account(payments_url)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "refuses" in answer.get_json()["detail"]
    assert logged == ["25006"]
    with open_app("payments", payments_url) as app:
        assert app.test_client().get("/readyz").status_code == 200


def test_writes_succeed_after_the_database_is_writable_again(
    payments_url: str, postgres: PostgresServer
) -> None:
    """A database session keeps the read-only setting, so its connection is not reused."""
    name = name_of(payments_url)
    postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with open_app("payments", payments_url) as app:
        client = app.test_client()
        during = client.post("/accounts", json={"user_id": str(uuid4())})
        postgres.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')

        after = client.post("/accounts", json={"user_id": str(uuid4())})

    assert (during.status_code, after.status_code) == (503, 201)


def test_a_duplicate_key_from_a_sequence_is_answered_with_retry_after(
    payments_url: str, postgres: PostgresServer
) -> None:
    name = name_of(payments_url)
    user = str(uuid4())
    with open_app("payments", payments_url) as app:
        client = app.test_client()
        client.post("/accounts", json={"user_id": user})
        for _ in range(2):
            client.post(f"/accounts/{user}/deposit", json={"amount": 1})
        # The next id, 2, is taken. The id after it, 3, is free.
        postgres.execute("ALTER SEQUENCE transfers_id_seq RESTART WITH 2", database=name)

        answers = [client.post(f"/accounts/{user}/deposit", json={"amount": 1}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [503, 200]


def test_a_missing_privilege_is_not_reported_as_a_missing_migration(
    payments_url: str, postgres: PostgresServer
) -> None:
    url = make_url(payments_url)
    postgres.execute("CREATE ROLE no_rights LOGIN PASSWORD 'secret'")
    no_rights = url.set(username="no_rights", password="secret")

    with (
        open_app("payments", no_rights.render_as_string(hide_password=False)) as app,
        capture_logs() as lines,
    ):
        answer = app.test_client().get("/readyz")
    postgres.execute("DROP ROLE no_rights")

    assert answer.status_code == 503
    assert answer.get_json()["detail"] == "The revision of the database cannot be read."
    assert [line["sqlstate"] for line in lines] == ["42501"]


def test_an_exhausted_connection_pool_is_answered_with_retry_after(payments_url: str) -> None:
    """Only a leak can cause this: a pool has more connections than its worker has threads."""
    with open_app("payments", payments_url) as app, ExitStack() as held:
        client = app.test_client()
        sessions = app.extensions["settle-sessions"]
        for _ in range(DEFAULT_THREADS + SPARE_CONNECTIONS):
            held.enter_context(sessions()).execute(text("SELECT 1"))
        answer = client.get("/readyz")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        answer = client.get(f"/accounts/balance?user_id={uuid4()}")
        assert answer.get_json()["type"] == "/problems/database-unavailable"
        assert answer.headers["Retry-After"] == "1"
        held.close()
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("service", ["payments", "orders"])
def test_a_service_is_not_ready_before_its_migrations_have_run(
    service: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    name = f"{service}_unmigrated"
    url = postgres.create_database(name)
    with serve(service, url, tmp_path / "api.log") as api:
        answer = requests.get(f"{api}/readyz", timeout=TIMEOUT_S)
        assert refused(answer)
        assert "no revision" in answer.json()["detail"]
        upgrade(service, url)
        assert requests.get(f"{api}/readyz", timeout=TIMEOUT_S).status_code == 200
    postgres.drop_database(name)


@pytest.mark.parametrize("service", ["payments", "orders"])
def test_a_service_starts_without_its_database(service: str, tmp_path: Path) -> None:
    """Services and databases may start in any order. The API does not need a broker."""
    unreachable = f"postgresql+psycopg2://settle@127.0.0.1:{free_port()}/{service}"
    with serve(service, unreachable, tmp_path / "api.log") as api:
        assert refused(requests.get(f"{api}/readyz", timeout=TIMEOUT_S))
