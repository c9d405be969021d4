"""Whether the database still has every index, constraint and trigger that the code relies on.

What is missing can only be told of a database at the code's revision. Of another one, the check of
the migrations says what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, UniqueConstraint

from services.orders import models as orders
from services.payments import models as payments
from settle.doctor.check import fail, ok
from settle_outbox.storage import tables as outbox
from settle_outbox.storage.sequences import find_behind
from shared.web.idempotency import tables as idempotency

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import MetaData, Table

    from settle.doctor.check import Check
    from settle.doctor.database import Database

EXPECTED: dict[str, tuple[MetaData, ...]] = {
    "orders": (orders.Base.metadata, outbox.metadata, idempotency.metadata),
    "payments": (payments.Base.metadata, outbox.metadata, idempotency.metadata),
}
# What keeps history as it is; the migrations alone hold them.
TRIGGERS = {
    "orders": {"orders.orders_final"},
    "payments": {"transfers.transfers_append_only", "payments.payments_append_only"},
}
AGAIN = "make it again as the migration in alembic/{} does; see its log for who dropped it"
_UNMIGRATED = "whether one is missing can be told after the migrations"

_INDEXES = """
    SELECT t.relname, i.relname, x.indisunique, x.indisvalid AND x.indisready,
           ARRAY(SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum
                 ORDER BY k.place)
    FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_class t ON t.oid = x.indrelid
    WHERE t.relnamespace = current_schema()::regnamespace
"""
_CONSTRAINTS = """
    SELECT t.relname, c.conname, c.contype::text, c.convalidated,
           ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum
                 ORDER BY k.place)
    FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
    WHERE t.relnamespace = current_schema()::regnamespace
"""
_TRIGGERS = """
    SELECT t.relname || '.' || g.tgname
    FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid
    WHERE t.relnamespace = current_schema()::regnamespace
      AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
"""


def check_indexes(database: Database) -> Iterator[Check]:
    """Indexes that are missing, and those that a failed CREATE INDEX CONCURRENTLY has left."""
    name = f"{database.service} indexes"
    found = database.ask(_INDEXES)
    names = {(table, index) for table, index, *_ in found}
    unique = {(table, tuple(columns)) for table, _, is_unique, _, columns in found if is_unique}
    missing = [
        what
        for table in _tables(database)
        for what in (*_missing_indexes(table, names), *_missing_keys(table, unique))
    ]
    invalid = [index for _, index, _, is_valid, _ in found if not is_valid]
    well = "all {} there and valid" if database.is_migrated else f"{{}} are valid; {_UNMIGRATED}"
    yield _judge(
        name,
        ("missing", missing, AGAIN.format(database.service)),
        ("invalid, so unused", invalid, "REINDEX INDEX CONCURRENTLY each of them"),
        well=well.format(len(found)),
    )


def _judge(name: str, *faults: tuple[str, list[str], str], well: str) -> Check:
    """Tell all faults of a check in one line.

    Args:
        name: of the check.
        faults: what is wrong, with which, and what to do about it.
        well: what was found where nothing is wrong.
    """
    found = [fault for fault in faults if fault[1]]
    if not found:
        return ok(name, well)
    return fail(
        name,
        "; ".join(f"{what}: {', '.join(which)}" for what, which, _ in found),
        "; ".join(remedy for *_, remedy in found),
    )


def _tables(database: Database) -> Iterator[Table]:
    """The tables that the database must have; none are known of other revisions than the code's."""
    if database.is_migrated:
        for metadata in EXPECTED[database.service]:
            yield from metadata.tables.values()


def _missing_indexes(table: Table, names: set[tuple[str, str]]) -> Iterator[str]:
    for index in table.indexes:
        if (table.name, str(index.name)) not in names:
            yield str(index.name)


def _missing_keys(table: Table, unique: set[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    keys = [table.primary_key.columns.keys()]
    keys += [
        constraint.columns.keys()
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    for columns in keys:
        if (table.name, tuple(columns)) not in unique:
            yield f"unique {table.name} ({', '.join(columns)})"


def check_constraints(database: Database) -> Iterator[Check]:
    """Constraints and triggers that are missing, not validated, or switched off."""
    name = f"{database.service} constraints"
    found = database.ask(_CONSTRAINTS)
    checks = {(table, constraint) for table, constraint, kind, *_ in found if kind == "c"}
    references = {(table, tuple(columns)) for table, _, kind, _, columns in found if kind == "f"}
    missing = [
        what
        for table in _tables(database)
        for what in (*_missing_checks(table, checks), *_missing_references(table, references))
    ]
    if database.is_migrated:
        triggers = {trigger for (trigger,) in database.ask(_TRIGGERS)}
        missing += [f"trigger {each}" for each in sorted(TRIGGERS[database.service] - triggers)]
    loose = [constraint for _, constraint, _, is_validated, _ in found if not is_validated]
    count = len(checks) + len(references)
    yield _judge(
        name,
        ("missing or off", missing, AGAIN.format(database.service)),
        (
            "not validated",
            loose,
            "ALTER TABLE ... VALIDATE CONSTRAINT; what it refuses is to be mended first",
        ),
        well=f"all {count} there, history is guarded"
        if database.is_migrated
        else f"{count} are validated; {_UNMIGRATED}",
    )


def _missing_checks(table: Table, found: set[tuple[str, str]]) -> Iterator[str]:
    for constraint in table.constraints:
        if isinstance(constraint, CheckConstraint) and constraint.name is not None:
            name = str(constraint.name)
            if (table.name, name) not in found:
                yield name


def _missing_references(table: Table, found: set[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    for constraint in table.constraints:
        if isinstance(constraint, ForeignKeyConstraint):
            columns = tuple(constraint.column_keys)
            if (table.name, columns) not in found:
                yield f"reference {table.name} ({', '.join(columns)})"


def check_sequences(database: Database) -> Iterator[Check]:
    """Check that no sequence gives values that its column already has."""
    name = f"{database.service} sequences"
    behind = find_behind(database.ask)
    if not behind:
        yield ok(name, "all are past their columns")
        return
    yield fail(
        name,
        "; ".join(
            f"{each.sequence} gives {each.next_value} next, {each.table}.{each.column} is at "
            f"{each.maximum}"
            for each in behind
        ),
        "; ".join(each.remedy for each in behind),
    )
