"""The payments API: accounts, deposits and balances."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text

from support.web import problem_of

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from sqlalchemy.orm import Session
    from werkzeug.test import TestResponse

INT64_MAX = 2**63 - 1


@pytest.fixture
def user_id(payments: FlaskClient) -> str:
    """Create a user with an account, and return the id."""
    created = str(uuid4())
    assert payments.post("/accounts", json={"user_id": created}).status_code == 201
    return created


def deposit(payments: FlaskClient, user_id: str, amount: int) -> TestResponse:
    return payments.post(
        f"/accounts/{user_id}/deposit", json={"user_id": user_id, "amount": amount}
    )


def balance(payments: FlaskClient, user_id: str) -> int:
    response = payments.get("/accounts/balance", query_string={"user_id": user_id})
    assert response.status_code == 200
    found: int = response.get_json()["balance"]
    return found


def test_an_account_is_created(payments: FlaskClient) -> None:
    user_id = str(uuid4())
    response = payments.post("/accounts", json={"user_id": user_id, "unknown": None})
    assert response.status_code == 201
    assert response.data.strip() == b'{"message":"Account created"}'
    assert balance(payments, user_id) == 0


def test_the_case_of_a_user_id_does_not_matter(payments: FlaskClient, user_id: str) -> None:
    for spelling in (user_id, user_id.upper()):
        document = problem_of(payments.post("/accounts", json={"user_id": spelling}), 409)
        assert user_id in document["detail"]


def test_deposits_add_up(payments: FlaskClient, user_id: str) -> None:
    for amount in (100_000, 3_900):
        response = deposit(payments, user_id.upper(), amount)
        assert response.status_code == 200
        assert response.data.strip() == b'{"message":"Balance refilled"}'
    response = payments.get("/accounts/balance", query_string={"user_id": user_id})
    assert response.data.strip() == b'{"balance":103900}'


def test_a_deposit_needs_no_user_id_in_its_body(payments: FlaskClient, user_id: str) -> None:
    response = payments.post(f"/accounts/{user_id}/deposit", json={"amount": 5})
    assert response.status_code == 200
    assert balance(payments, user_id) == 5


def test_a_deposit_with_another_user_in_its_body_is_refused(
    payments: FlaskClient, user_id: str
) -> None:
    body = {"user_id": str(uuid4()), "amount": 5}
    problem_of(payments.post(f"/accounts/{user_id}/deposit", json=body), 409)
    assert balance(payments, user_id) == 0


def test_a_balance_may_reach_the_maximum_of_int64_but_not_exceed_it(
    payments: FlaskClient, user_id: str
) -> None:
    assert deposit(payments, user_id, INT64_MAX).status_code == 200
    assert balance(payments, user_id) == INT64_MAX
    problem_of(deposit(payments, user_id, 1), 409)
    problem_of(deposit(payments, user_id, INT64_MAX), 409)
    assert balance(payments, user_id) == INT64_MAX


def test_an_unknown_user_has_no_account(payments: FlaskClient) -> None:
    unknown = str(uuid4())
    problem_of(deposit(payments, unknown, 5), 404)
    problem_of(payments.get("/accounts/balance", query_string={"user_id": unknown}), 404)


@pytest.mark.parametrize("user_id", ["x", "%00", "00000000-0000-0000-0000-000000000000"])
def test_a_deposit_to_a_malformed_user_id_is_not_found(payments: FlaskClient, user_id: str) -> None:
    problem_of(payments.post(f"/accounts/{user_id}/deposit", json={"amount": 5}), 404)


def test_the_sum_over_all_accounts_is_zero(
    payments: FlaskClient, user_id: str, payments_session: Session
) -> None:
    """A deposit is a transfer from the world's account. A balance is the sum of its transfers."""
    deposit(payments, user_id, 7)
    deposit(payments, user_id, 35)
    rows = payments_session.execute(
        text(
            """
            SELECT account.name, account.balance,
                   coalesce(sum(amount) FILTER (WHERE to_account_id = account.id), 0)
                   - coalesce(sum(amount) FILTER (WHERE from_account_id = account.id), 0)
            FROM accounts AS account LEFT JOIN transfers
                ON account.id IN (from_account_id, to_account_id)
            GROUP BY account.id ORDER BY account.id
            """
        )
    ).all()
    assert rows == [("world", None, -42), ("sales", None, 0), (None, 42, 42)]


def test_the_api_is_alive_and_ready(payments: FlaskClient) -> None:
    assert payments.get("/livez").json == {"status": "ok"}
    assert payments.get("/readyz").json == {"status": "ok"}


def test_the_api_is_not_ready_on_another_revision(
    payments: FlaskClient, payments_session: Session
) -> None:
    payments_session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    payments_session.commit()
    document = problem_of(payments.get("/readyz"), 503)
    assert "0000" in document["detail"]
    assert payments.get("/livez").status_code == 200
