"""The database objects that autogenerate compares with a project's models."""

from __future__ import annotations

import pytest
from sqlalchemy import MetaData, Table

from settle_outbox.storage.migrations import include_object

TABLE = Table("any", MetaData())


def is_compared(name: str, *, reflected: bool = True, compare_to: Table | None = None) -> bool:
    return include_object(TABLE, name, "table", reflected, compare_to)


@pytest.mark.parametrize(
    "name",
    ["outbox", "inbox", "dead_letters", "outbox_default", "inbox_p20261128", "outbox_p20260101"],
)
def test_the_engines_tables_are_ignored(name: str) -> None:
    assert not is_compared(name)


@pytest.mark.parametrize(
    "name", ["orders", "outbox_p2026", "outbox_p20261399", "my_outbox_default", "orders_p20261128"]
)
def test_other_tables_are_compared(name: str) -> None:
    assert is_compared(name)


@pytest.mark.parametrize("compare_to", [None, TABLE])
def test_a_table_in_the_projects_models_is_compared(compare_to: Table | None) -> None:
    """The project may compare the engine's table, or have another table of that name."""
    assert is_compared("inbox", reflected=False, compare_to=compare_to)
