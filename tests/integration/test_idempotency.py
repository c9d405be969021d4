"""A repeated request with the same Idempotency-Key has one effect and the same answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, event, select, text

from services.payments.models import Account
from settle_outbox.settings import DAY_S
from shared.web.idempotency import key_store
from shared.web.idempotency.key_store import (
    BATCH,
    BATCHES_MAX,
    Scope,
    StoredAnswer,
    remove_expired_keys,
)
from shared.web.idempotency.request_keys import caller, fingerprint_of
from support.delivery import Delivery
from support.waiting import wait_until
from support.web import open_app, problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient
    from sqlalchemy.orm import Session
    from werkzeug.test import TestResponse

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
ORDER = {"user_id": USER, "amount": 100, "description": "Lunch"}
DEPOSIT = f"/accounts/{USER}/deposit"


def send(client: FlaskClient, path: str, body: Any, key: str | None = "k-1") -> TestResponse:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(path, json=body, headers=headers)


def place(orders: FlaskClient, key: str | None = "k-1", **changed: Any) -> TestResponse:
    return send(orders, "/orders", ORDER | changed, key)


def balance(payments: FlaskClient) -> int:
    found: int = payments.get(f"/accounts/balance?user_id={USER}").get_json()["balance"]
    return found


def is_replay(response: TestResponse) -> bool:
    return response.headers.get("Idempotent-Replayed") == "true"


def count(session: Session, table: str) -> int:
    found: int = session.scalar(text(f"SELECT count(*) FROM {table}"))
    session.rollback()
    return found


def same_answer(first: TestResponse, again: TestResponse) -> bool:
    """Return whether two answers are equal, except for headers that differ each time."""
    ignored = {"X-Request-ID", "Date", "Idempotent-Replayed"}
    headers = [
        {name: value for name, value in each.headers if name not in ignored}
        for each in (first, again)
    ]
    return (first.status, first.data, headers[0]) == (again.status, again.data, headers[1])


def test_a_replay_gets_the_same_answer_and_has_no_effect(
    orders: FlaskClient, orders_session: Session
) -> None:
    first = place(orders)
    assert first.status_code == 202
    assert not is_replay(first)
    for _ in range(3):
        again = place(orders)
        assert is_replay(again)
        assert same_answer(first, again)
        assert again.headers["Location"] == first.headers["Location"]
    tables = ("orders", "outbox", "outbox_pending", "idempotency_keys")
    assert [count(orders_session, table) for table in tables] == [1, 1, 1, 1]


def test_every_post_of_payments_accepts_a_key(payments: FlaskClient) -> None:
    opened = [send(payments, "/accounts", {"user_id": USER}) for _ in range(2)]
    # Without a key, the second answer would be 409.
    assert [each.status_code for each in opened] == [201, 201]
    assert same_answer(*opened)
    deposited = [send(payments, DEPOSIT, {"amount": 7}) for _ in range(3)]
    assert [each.status_code for each in deposited] == [200, 200, 200]
    assert [is_replay(each) for each in [*opened, *deposited]] == [False, True, False, True, True]
    assert balance(payments) == 7


def test_requests_without_a_key_are_separate_and_run_no_statement_for_keys(
    orders: FlaskClient, orders_session: Session
) -> None:
    engine = orders.application.extensions["settle-sessions"].kw["bind"]
    statements: list[str] = []
    event.listen(
        engine, "before_cursor_execute", lambda *sent: statements.append(sent[2]), named=False
    )
    assert place(orders, None).headers["Location"] != place(orders, None).headers["Location"]
    assert not [each for each in statements if "idempotency" in each]
    assert count(orders_session, "orders") == 2
    assert count(orders_session, "idempotency_keys") == 0


def test_a_get_ignores_the_idempotency_key(orders: FlaskClient) -> None:
    assert orders.get("/orders", headers={"Idempotency-Key": '"'}).status_code == 200


def test_a_key_is_the_same_quoted_or_bare(orders: FlaskClient) -> None:
    first = place(orders, r"a\b")
    assert same_answer(first, place(orders, r'"a\\b"'))
    longest = place(orders, "x" * 255)
    assert same_answer(longest, place(orders, f'"{"x" * 255}"'))
    for key in ('" "', '"a, b"', r'"\""', "0", "a=b;c", "~!#$%&'()*+-./:<>?@[]^_`{|}"):
        assert place(orders, key).status_code == 202, key


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        '"',
        '"a',
        'a"',
        'a"b',
        '"a"b',
        '"a";p=1',
        '"a", "b"',
        "a, b",
        "a,b",
        "a b",
        r'"\a"',
        '"a\\"',
        "a\tb",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "x" * 256,
        f'"{"x" * 256}"',
    ],
)
def test_a_malformed_key_is_refused_with_the_name_of_the_header(
    orders: FlaskClient, orders_session: Session, key: str
) -> None:
    document = problem_of(place(orders, key), 422)
    assert document["type"] == "/problems/invalid-input"
    assert [error["header"] for error in document["errors"]] == ["Idempotency-Key"]
    assert count(orders_session, "orders") == 0


def test_two_idempotency_keys_are_refused(orders: FlaskClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    problem_of(orders.post("/orders", json=ORDER, headers=headers), 422)


def test_a_key_with_another_body_is_refused_without_effect(
    orders: FlaskClient, orders_session: Session
) -> None:
    first = place(orders)
    for changed in ({"amount": 101}, {"user_id": str(uuid4())}, {"description": ""}):
        document = problem_of(place(orders, **changed), 422)
        assert document["type"] == "/problems/idempotency-key-reused"
    assert count(orders_session, "orders") == 1
    assert same_answer(first, place(orders))


def test_bodies_with_the_same_meaning_are_the_same_request(orders: FlaskClient) -> None:
    first = place(orders, description="")
    alike: list[dict[str, Any]] = [
        {"amount": 100, "description": "", "user_id": USER},
        {"user_id": USER.upper(), "amount": 100, "description": ""},
        {"user_id": USER, "amount": 100},
        {"user_id": USER, "amount": 100, "unknown": [1]},
    ]
    for body in alike:
        assert is_replay(again := send(orders, "/orders", body))
        assert same_answer(first, again)


def test_the_body_is_validated_before_the_key(orders: FlaskClient) -> None:
    place(orders)
    document = problem_of(place(orders, amount=0), 422)
    assert document["type"] == "/problems/invalid-input"
    problem_of(orders.post("/orders", data="{", headers={"Idempotency-Key": "k-1"}), 415)


def test_a_key_belongs_to_one_path(payments: FlaskClient) -> None:
    other = str(uuid4())
    for user_id in (USER, other):
        assert send(payments, "/accounts", {"user_id": user_id}, key=user_id)
    for path in (DEPOSIT, f"/accounts/{other}/deposit"):
        assert not is_replay(send(payments, path, {"amount": 7}))
    # Another spelling of the account id is the same path: the deposit must not happen twice.
    assert is_replay(send(payments, f"/accounts/{USER.upper()}/deposit", {"amount": 7}))
    assert balance(payments) == 7


@pytest.mark.parametrize(
    "held", [("GET", "anonymous"), ("POST", "somebody")], ids=["method", "caller"]
)
def test_a_key_belongs_to_one_method_and_one_caller(
    orders: FlaskClient, orders_session: Session, held: tuple[str, str]
) -> None:
    method, whose = held
    scope = Scope(whose, method, "/orders", "k-1")
    key_store.claim_key(orders_session, scope, b"other", retention_s=DAY_S)
    key_store.store_answer(orders_session, scope, StoredAnswer(200, [], b""))
    orders_session.commit()
    assert not is_replay(place(orders))


def test_an_error_answer_does_not_use_up_the_key(
    payments: FlaskClient, payments_session: Session
) -> None:
    problem_of(send(payments, DEPOSIT, {"amount": 7}), 404)
    assert count(payments_session, "idempotency_keys") == 0
    send(payments, "/accounts", {"user_id": USER}, key="other")
    problem_of(send(payments, "/accounts", {"user_id": USER}, key="third"), 409)
    problem_of(send(payments, DEPOSIT, {"amount": 7, "user_id": str(uuid4())}), 409)
    assert count(payments_session, "idempotency_keys") == 1
    assert send(payments, DEPOSIT, {"amount": 7}).status_code == 200
    assert is_replay(send(payments, DEPOSIT, {"amount": 7}))
    assert balance(payments) == 7


def test_a_503_does_not_use_up_the_key(payments: FlaskClient, payments_session: Session) -> None:
    send(payments, "/accounts", {"user_id": USER}, key=None)
    payments_session.execute(select(Account).with_for_update())
    document = problem_of(send(payments, DEPOSIT, {"amount": 7}), 503)
    assert document["type"] == "/problems/database-too-slow"  # the account was locked, not the key
    payments_session.rollback()
    assert send(payments, DEPOSIT, {"amount": 7}).status_code == 200
    assert balance(payments) == 7


# Concurrent requests with one key.


def hold(session: Session, body: dict[str, Any]) -> Scope:
    """Claim the key of an order as a request does, in a transaction that stays open."""
    scope = Scope(caller(), "POST", "/orders", "k-1")
    loaded = {name: str(value) if name == "user_id" else value for name, value in body.items()}
    assert key_store.claim_key(session, scope, fingerprint_of(loaded), retention_s=DAY_S) is None
    return scope


def lock_waits(url: str) -> bool:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


@pytest.fixture
def start_request(
    orders: FlaskClient, orders_url: str
) -> Iterator[Callable[[], Callable[[], TestResponse]]]:
    """Return a function that sends the order in a thread, and waits until the request is blocked.

    The result of that function is another function, which waits for the answer.
    """
    with ThreadPoolExecutor(1) as pool:

        def start() -> Callable[[], TestResponse]:
            placed = pool.submit(lambda: place(orders.application.test_client()))
            wait_until(lambda: lock_waits(orders_url), what="the request to wait for the key")
            return lambda: placed.result(timeout=30)

        yield start


def test_a_request_waits_at_most_two_seconds_for_another_with_its_key(
    orders: FlaskClient, orders_session: Session
) -> None:
    hold(orders_session, ORDER)
    document = problem_of(place(orders), 409)
    assert document["type"] == "/problems/idempotency-key-in-use"
    assert "k-1" in document["detail"]
    orders_session.rollback()
    engine = orders.application.extensions["settle-sessions"].kw["bind"]
    with engine.connect() as connection:  # this setting limits the wait
        assert connection.scalar(text("SHOW lock_timeout")) == "2s"
    assert place(orders).status_code == 202


def test_a_request_that_waited_for_a_commit_gets_the_stored_answer(
    orders_session: Session, start_request: Callable[[], Callable[[], TestResponse]]
) -> None:
    scope = hold(orders_session, ORDER)
    wait_for_answer = start_request()
    key_store.store_answer(
        orders_session, scope, StoredAnswer(202, [("Location", "/order/1")], b"{}")
    )
    orders_session.commit()
    replayed = wait_for_answer()
    assert is_replay(replayed)
    assert (replayed.status_code, replayed.headers["Location"]) == (202, "/order/1")
    assert count(orders_session, "orders") == 0


def test_a_request_that_waited_for_a_rollback_is_executed(
    orders_session: Session, start_request: Callable[[], Callable[[], TestResponse]]
) -> None:
    hold(orders_session, ORDER)
    wait_for_answer = start_request()
    orders_session.rollback()
    placed = wait_for_answer()
    assert placed.status_code == 202
    assert not is_replay(placed)
    assert count(orders_session, "orders") == 1


# Expiry of keys.


def age(session: Session, by: timedelta) -> None:
    session.execute(text("UPDATE idempotency_keys SET created_at = created_at - :by"), {"by": by})
    session.commit()


def test_a_key_is_stored_for_a_day(orders: FlaskClient, orders_session: Session) -> None:
    place(orders)
    age(orders_session, timedelta(hours=23, minutes=59))
    assert is_replay(place(orders))


def test_an_expired_key_can_be_used_again_before_it_is_removed(
    orders: FlaskClient, orders_session: Session
) -> None:
    first = place(orders)
    age(orders_session, timedelta(hours=24))
    second = place(orders, amount=7)
    assert second.status_code == 202
    assert not is_replay(second)
    assert second.headers["Location"] != first.headers["Location"]
    assert same_answer(second, place(orders, amount=7))
    assert count(orders_session, "idempotency_keys") == 1


def test_the_retention_is_a_setting(orders_url: str, orders_session: Session) -> None:
    with open_app("orders", orders_url, IDEMPOTENCY_RETENTION_S="60") as app:
        place(app.test_client())
        age(orders_session, timedelta(seconds=60))
        assert not is_replay(place(app.test_client()))


def fill(session: Session, rows: int, age_s: int) -> None:
    session.execute(
        text(
            """
            INSERT INTO idempotency_keys (caller, method, path, key, fingerprint, status, headers,
                body, created_at)
            SELECT '', 'POST', '/orders', :age_s || '-' || n, '', 202, '[]', '',
                now() - make_interval(secs => :age_s)
            FROM generate_series(1, :rows) AS n
            """
        ),
        {"rows": rows, "age_s": age_s},
    )
    session.commit()


def test_expired_keys_are_removed_in_bounded_batches(
    orders_session: Session, orders_url: str
) -> None:
    limit = BATCH * BATCHES_MAX
    fill(orders_session, limit + 2, DAY_S)
    fill(orders_session, 5, DAY_S - 60)
    engine = create_engine(orders_url)
    assert remove_expired_keys(engine)  # there may be more
    assert count(orders_session, "idempotency_keys") == 7
    # A key that another transaction has locked is not removed.
    orders_session.execute(
        text(
            "SELECT FROM idempotency_keys WHERE created_at < now() - interval '1 day' LIMIT 1"
            " FOR UPDATE"
        )
    )
    assert not remove_expired_keys(engine)
    orders_session.rollback()
    assert count(orders_session, "idempotency_keys") == 6
    engine.dispose()


def test_expired_keys_are_found_by_an_index(orders_session: Session) -> None:
    fill(orders_session, 2000, 60)
    orders_session.execute(text("ANALYZE idempotency_keys"))
    orders_session.commit()
    plan = "\n".join(
        orders_session.scalars(
            text(f"EXPLAIN {key_store._EXPIRE.text.partition(';')[2]}"),  # noqa: SLF001
            {"retention": timedelta(days=1), "limit": BATCH},
        )
    )
    assert "Index Scan using idempotency_keys_created_at" in plan
    assert "Seq Scan" not in plan


def test_a_relay_removes_expired_keys(orders_session: Session, orders_url: str) -> None:
    """A relay removes keys even if it cannot reach its broker."""
    fill(orders_session, 3, DAY_S)
    with Delivery(orders_url, orders_url, "127.0.0.1:1").relay("orders"):
        wait_until(
            lambda: count(orders_session, "idempotency_keys") == 0,
            what="the relay to remove the keys",
        )
