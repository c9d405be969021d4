"""The databases refuse rows and changes that break the services' rules, even from plain SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
OTHER = "1b5d7a8f-14e4-4fce-aa46-7fa0e64a3e2c"
NIL = "00000000-0000-0000-0000-000000000000"
ORDER = "01977f3c-0000-7000-8000-000000000001"
# Account 1 is that of the world, 2 that of sales, and 3 that of USER.
ACCOUNT = f"INSERT INTO accounts (user_id, balance) VALUES ('{USER}', 10)"
TRANSFER = "INSERT INTO transfers (from_account_id, to_account_id, amount, kind, order_id) VALUES "
PAYMENT = "INSERT INTO payments (order_id, user_id, amount, status, reason) VALUES "


@pytest.fixture
def ledger(payments_session: Session) -> Session:
    """Insert an account, a deposit, a charge and its payment."""
    for statement in (
        ACCOUNT,
        f"{TRANSFER} (1, 3, 15, 'deposit', NULL), (3, 2, 5, 'charge', '{ORDER}')",
        f"{PAYMENT} ('{ORDER}', '{USER}', 5, 'succeeded', NULL)",
    ):
        payments_session.execute(text(statement))
    return payments_session


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        (ACCOUNT, "accounts_user_id_key"),
        ("INSERT INTO accounts (name) VALUES ('world')", "accounts_name_key"),
        (f"INSERT INTO accounts (user_id, name, balance) VALUES ('{OTHER}', 'x', 0)",
         "accounts_user_or_system"),
        ("INSERT INTO accounts DEFAULT VALUES", "accounts_user_or_system"),
        ("INSERT INTO accounts (name, balance) VALUES ('x', 0)", "accounts_balance_of_users"),
        (f"INSERT INTO accounts (user_id) VALUES ('{OTHER}')", "accounts_balance_of_users"),
        (f"INSERT INTO accounts (user_id, balance) VALUES ('{NIL}', 0)",
         "accounts_user_id_not_nil"),
        ("UPDATE accounts SET balance = -1 WHERE id = 3", "accounts_balance_not_negative"),
        ("DELETE FROM accounts WHERE id = 3", "transfers_(from|to)_account_id_fkey"),
        (f"{TRANSFER} (1, 3, 0, 'deposit', NULL)", "transfers_amount_positive"),
        (f"{TRANSFER} (1, 3, -1, 'deposit', NULL)", "transfers_amount_positive"),
        (f"{TRANSFER} (1, 3, 1, 'gift', NULL)", "transfers_kind_known"),
        (f"{TRANSFER} (1, 3, 1, 'deposit', '{OTHER}')", "transfers_order_of_charges"),
        (f"{TRANSFER} (3, 2, 1, 'charge', NULL)", "transfers_order_of_charges"),
        (f"{TRANSFER} (3, 3, 1, 'deposit', NULL)", "transfers_between_two"),
        (f"{TRANSFER} (1, 99, 1, 'deposit', NULL)", "transfers_to_account_id_fkey"),
        (f"{TRANSFER} (99, 3, 1, 'deposit', NULL)", "transfers_from_account_id_fkey"),
        (f"{TRANSFER} (3, 2, 1, 'charge', '{ORDER}')", "transfers_order_id_key"),
        ("UPDATE transfers SET amount = 1", "append-only: UPDATE"),
        ("UPDATE transfers SET amount = amount WHERE false", "append-only: UPDATE"),
        ("DELETE FROM transfers", "append-only: DELETE"),
        ("TRUNCATE transfers", "append-only: TRUNCATE"),
        (f"{PAYMENT} ('{ORDER}', '{USER}', 5, 'succeeded', NULL)", "payments_pkey"),
        (f"{PAYMENT} ('{OTHER}', '{USER}', 0, 'succeeded', NULL)", "payments_amount_positive"),
        (f"{PAYMENT} ('{OTHER}', '{USER}', 5, 'pending', NULL)", "payments_status_known"),
        (f"{PAYMENT} ('{OTHER}', '{USER}', 5, 'failed', NULL)", "payments_reason_of_failures"),
        (f"{PAYMENT} ('{OTHER}', '{USER}', 5, 'succeeded', 'x')", "payments_reason_of_failures"),
        ("UPDATE payments SET status = 'failed', reason = 'x'", "append-only: UPDATE"),
        ("DELETE FROM payments", "append-only: DELETE"),
        ("TRUNCATE payments", "append-only: TRUNCATE"),
    ],
)  # fmt: skip
def test_the_payments_database_refuses_the_statement(
    ledger: Session, statement: str, rule: str
) -> None:
    with pytest.raises(IntegrityError, match=rule):
        ledger.execute(text(statement))


NEW_ORDER = {
    "id": ORDER,
    "user_id": USER,
    "amount": 5,
    "description": "x",
    "status": "created",
    "failure_reason": None,
}
INSERT_ORDER = text(
    """
    INSERT INTO orders
        (id, user_id, amount, description, status, failure_reason, created_at, updated_at)
    VALUES (:id, :user_id, :amount, :description, :status, :failure_reason, now(), now())
    """
)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"user_id": NIL}, "orders_user_id_not_nil"),
        ({"amount": 0}, "orders_amount_positive"),
        ({"amount": -1}, "orders_amount_positive"),
        ({"description": "x" * 10_001}, "orders_description_length"),
        ({"description": None}, "null value"),
        ({"status": "paid"}, "orders_status_known"),
        ({"status": "failed"}, "orders_reason_of_failures"),
        ({"failure_reason": "x"}, "orders_reason_of_failures"),
        ({"status": "failed", "failure_reason": ""}, "orders_failure_reason_length"),
        ({"status": "failed", "failure_reason": "x" * 201}, "orders_failure_reason_length"),
    ],
)
def test_the_orders_database_refuses_the_row(
    orders_session: Session, changed: dict[str, object], rule: str
) -> None:
    with pytest.raises(IntegrityError, match=rule):
        orders_session.execute(INSERT_ORDER, NEW_ORDER | changed)


@pytest.mark.parametrize("final", [("success", None), ("failed", "insufficient_funds")])
@pytest.mark.parametrize(
    "change",
    [
        "status = 'created', failure_reason = NULL",
        "status = 'success', failure_reason = NULL",
        "status = 'failed', failure_reason = 'x'",
        "updated_at = now()",
    ],
)
def test_a_final_status_never_changes(
    orders_session: Session, final: tuple[str, str | None], change: str
) -> None:
    status, reason = final
    orders_session.execute(INSERT_ORDER, NEW_ORDER)
    orders_session.execute(
        text("UPDATE orders SET status = :status, failure_reason = :reason"),
        {"status": status, "reason": reason},
    )
    with pytest.raises(IntegrityError, match="never change"):
        orders_session.execute(text(f"UPDATE orders SET {change}"))


@pytest.mark.parametrize(
    "change",
    [
        "id = gen_random_uuid()",
        "user_id = gen_random_uuid()",
        "amount = amount + 1",
        "description = 'y'",
        "created_at = created_at + interval '1 second'",
    ],
)
def test_the_content_of_an_order_never_changes(orders_session: Session, change: str) -> None:
    orders_session.execute(INSERT_ORDER, NEW_ORDER)
    with pytest.raises(IntegrityError, match="never change"):
        orders_session.execute(text(f"UPDATE orders SET {change}"))
