"""The SQL blocks of the how-to pages run on a migrated database of the service that they name.

BEGIN and COMMIT are left out, because the test's session has the transaction.
"""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import pytest

from support.delivery import Delivery

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"^ *```sql\n *-- (orders|payments)\n(.*?)```", re.MULTILINE | re.DOTALL)
STATEMENTS = [
    pytest.param(service, sql, id=f"{page.stem}-{number}")
    for page in sorted(FOLDER.glob("*.md"))
    for number, (service, sql) in enumerate(BLOCK.findall(page.read_text("utf-8")))
]
ERASE = (FOLDER / "erase-a-person.md").read_text("utf-8")
USER = UUID("01980000-0000-7000-8000-000000000002")


@pytest.fixture
def delivery(payments_url: str, orders_url: str) -> Delivery:
    """Return both databases, without a broker."""
    return Delivery(payments_url, orders_url, "127.0.0.1:1")


@pytest.mark.parametrize(("service", "sql"), STATEMENTS)
def test_the_statements_of_a_how_to_run(delivery: Delivery, service: str, sql: str) -> None:
    delivery.query(service, sql.replace("BEGIN;", "").replace("COMMIT;", ""))


def test_descriptions_of_a_user_are_erased_and_the_trigger_is_enabled_again(
    delivery: Delivery,
) -> None:
    with delivery.session("orders") as session:
        session.connection().exec_driver_sql(
            "INSERT INTO orders VALUES (gen_random_uuid(), %s, 1, 'for Eve', 'success', NULL,"
            " now(), now())",
            (USER,),
        )
    (erase, *_) = [sql for service, sql in BLOCK.findall(ERASE) if "description" in sql]

    delivery.query("orders", erase.replace("BEGIN;", "").replace("COMMIT;", ""))

    assert delivery.query("orders", "SELECT description FROM orders") == [("",)]
    ((state,),) = delivery.query(
        "orders", "SELECT tgenabled FROM pg_trigger WHERE tgname = 'orders_final'"
    )
    assert state == "O"  # enabled
