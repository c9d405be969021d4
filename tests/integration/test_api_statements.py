"""The statement of an account lists every transfer once, with the balance after it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from services.payments import accounts, statements
from services.payments.charges import Charge, charge
from settle_outbox.trace import Trace
from support.plans import most_rows
from support.web import pages, problem_of

if TYPE_CHECKING:
    from uuid import UUID

    from flask.testing import FlaskClient


def open_account(payments: FlaskClient, *deposits: int) -> UUID:
    user_id = uuid4()
    assert payments.post("/accounts", json={"user_id": str(user_id)}).status_code == 201
    for amount in deposits:
        answer = payments.post(f"/accounts/{user_id}/deposit", json={"amount": amount})
        assert answer.status_code == 200
    return user_id


def pay(session: Session, user_id: UUID, *amounts: int) -> list[UUID]:
    """Charge a user for orders of these amounts, in one batch."""
    charges = [Charge(uuid7(), user_id, amount, Trace()) for amount in amounts]
    charge(session, charges)
    session.commit()
    return [each.order_id for each in charges]


def statement(payments: FlaskClient, user_id: UUID, limit: int = 1000) -> list[dict[str, Any]]:
    found = pages(payments, f"/accounts/{user_id}/transfers?limit={limit}")
    return [transfer for page in found for transfer in page]


def test_a_statement_lists_each_transfer_with_the_balance_after_it(
    payments: FlaskClient, payments_session: Session
) -> None:
    user_id = open_account(payments, 1000)
    # The balance does not cover the second order, so it has no transfer.
    (paid, _) = pay(payments_session, user_id, 700, 500)
    newest, first = json.loads(payments.get(f"/accounts/{str(user_id).upper()}/transfers").data)
    assert list(newest.items()) == [
        ("id", newest["id"]),
        ("kind", "charge"),
        ("amount", 700),
        ("order_id", str(paid)),
        ("balance", 300),
        ("created_at", newest["created_at"]),
    ]
    assert (first["kind"], first["amount"], first["order_id"], first["balance"]) == (
        "deposit",
        1000,
        None,
        1000,
    )
    assert newest["id"] > first["id"]


def test_an_account_without_transfers_has_an_empty_statement(payments: FlaskClient) -> None:
    answer = payments.get(f"/accounts/{open_account(payments)}/transfers")
    assert (answer.status_code, answer.json) == (200, [])
    assert "Link" not in answer.headers


def test_an_unknown_account_has_no_statement(payments: FlaskClient) -> None:
    problem_of(payments.get(f"/accounts/{uuid4()}/transfers"), 404)
    problem_of(payments.get(f"/accounts/{uuid4()}/transfers?limit=1"), 404)
    problem_of(payments.get("/accounts/x/transfers"), 404)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "cursor=x", "cursor="])
def test_invalid_paging_parameters_are_refused(payments: FlaskClient, query: str) -> None:
    problem_of(payments.get(f"/accounts/{uuid4()}/transfers?{query}"), 422)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
def test_pages_hold_every_transfer_once_with_its_balance(
    payments: FlaskClient, payments_session: Session, limit: int
) -> None:
    user_id = open_account(payments, 100, 50)
    pay(payments_session, user_id, 30, 30)
    open_account(payments, 7)  # a transfer of another account, between those of this one
    payments.post(f"/accounts/{user_id}/deposit", json={"amount": 5})
    pay(payments_session, user_id, 95)
    found = statement(payments, user_id, limit)
    assert [transfer["balance"] for transfer in found] == [0, 95, 90, 120, 150, 100]


def test_new_transfers_do_not_change_the_following_pages(
    payments: FlaskClient, payments_session: Session
) -> None:
    user_id = open_account(payments, 1, 2, 4, 8)
    first = payments.get(f"/accounts/{user_id}/transfers?limit=2")
    payments.post(f"/accounts/{user_id}/deposit", json={"amount": 100})
    pay(payments_session, user_id, 50)
    second = payments.get(first.headers["Link"].partition(">")[0].removeprefix("<"))
    assert [transfer["balance"] for transfer in first.get_json() + second.get_json()] == [
        15,
        7,
        3,
        1,
    ]


def test_a_statement_adds_up_during_concurrent_transfers(
    payments: FlaskClient, payments_url: str
) -> None:
    """Each page shows one snapshot, and the balance before its oldest transfer is zero."""
    user_id = open_account(payments, 10_000)
    engine = create_engine(payments_url, poolclass=NullPool)

    def deposit(amount: int) -> None:
        for _ in range(15):
            with Session(engine) as session, session.begin():
                accounts.deposit(session, user_id, amount)

    def spend(amount: int) -> None:
        for _ in range(15):
            with Session(engine) as session:
                pay(session, user_id, amount, amount + 1)

    def read() -> statements.Page:
        with Session(engine) as session:
            return statements.read_page(session, user_id, limit=1000)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(deposit, amount) for amount in (3, 5)]
        writing += [pool.submit(spend, amount) for amount in (7, 11)]
        seen = [read()]
        while not all(each.done() for each in writing):
            seen.append(read())
        for each in writing:
            each.result()
    for page in (*seen, read()):
        assert page.entries[-1].balance_before == 0
        assert min(entry.balance for entry in page.entries) >= 0
    # The first deposit, 15 of each `deposit`, and 15 times two charges of each `spend`.
    assert len(read().entries) == 1 + 2 * 15 + 2 * 2 * 15


def test_a_page_reads_few_rows_besides_its_own(
    payments: FlaskClient, payments_session: Session
) -> None:
    """The test reads the first and a middle page of an account with 20,000 transfers."""
    user_id = open_account(payments)
    payments_session.execute(
        text(
            """
            WITH other AS (INSERT INTO accounts (user_id, balance)
                           VALUES (gen_random_uuid(), 0) RETURNING id)
            INSERT INTO transfers (from_account_id, to_account_id, amount, kind)
            SELECT 1, CASE WHEN number % 2 = 0 THEN other.id ELSE mine.id END, 1, 'deposit'
            FROM generate_series(1, 40000) AS number, other, accounts AS mine
            WHERE mine.user_id = :user_id
            """
        ),
        {"user_id": user_id},
    )
    payments_session.execute(text("UPDATE accounts SET balance = 20000 WHERE user_id IS NOT NULL"))
    payments_session.commit()
    payments_session.execute(text("ANALYZE"))
    # `after` is the id of the previous page's last transfer, and the balance before it.
    for after in (None, (20_000, 0)):

        def read(after: tuple[int, int] | None = after) -> None:
            page = statements.read_page(payments_session, user_id, limit=100, after=after)
            assert (len(page.entries), page.more) == (100, True)

        assert most_rows(payments_session, read) < 500


def test_a_page_of_an_inactive_account_does_not_read_newer_transfers_of_others(
    payments: FlaskClient, payments_session: Session
) -> None:
    """The table's statistics are old: nearly all transfers were then of the inactive account."""
    inactive, active = open_account(payments), open_account(payments)
    fill = text(
        """
        INSERT INTO transfers (from_account_id, to_account_id, amount, kind)
        SELECT world.id, account.id, 1, 'deposit'
        FROM generate_series(1, :count) AS number, accounts AS world, accounts AS account
        WHERE world.name = 'world' AND account.user_id = :user_id
        """
    )
    payments_session.execute(text("ALTER TABLE transfers SET (autovacuum_enabled = off)"))
    payments_session.execute(fill, {"count": 50_000, "user_id": inactive})
    payments_session.execute(fill, {"count": 1_000, "user_id": active})
    payments_session.execute(text("UPDATE accounts SET balance = 50000 WHERE user_id IS NOT NULL"))
    payments_session.execute(text("ANALYZE"))
    payments_session.execute(fill, {"count": 10_000, "user_id": active})
    payments_session.commit()

    def read() -> None:
        page = statements.read_page(payments_session, inactive, limit=100)
        assert (len(page.entries), page.more) == (100, True)

    assert most_rows(payments_session, read) <= 2 * 101
