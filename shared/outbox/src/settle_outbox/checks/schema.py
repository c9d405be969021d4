"""Check that a database still has every index, constraint and trigger that the code relies on.

Missing objects are only found in a database at the code's revision. For another revision, run the
migrations first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, UniqueConstraint

from settle_outbox.checks.check import fail, ok
from settle_outbox.storage.sequences import find_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import MetaData, Table

    from settle_outbox.checks.check import Finding
    from settle_outbox.checks.database import Database


@dataclass(frozen=True, slots=True)
class ExpectedSchema:
    """The tables and triggers that a database must have.

    Args:
        metadata: the tables with their indexes and constraints; empty if the database is not at the
            code's revision.
        triggers: the triggers that protect history, as ``table.trigger``.
    """

    metadata: Sequence[MetaData] = ()
    triggers: frozenset[str] = frozenset()

    @property
    def tables(self) -> Iterator[Table]:
        """Every expected table."""
        for metadata in self.metadata:
            yield from metadata.tables.values()


_AGAIN = "create it again as the migration of {} does; the server's log shows who dropped it"
_NOT_MIGRATED = "run the migrations to check for missing ones"

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


def check_indexes(
    database: Database, expected_of: Callable[[], ExpectedSchema]
) -> Iterator[Finding]:
    """Check for missing indexes, and for invalid ones of an interrupted CREATE INDEX."""
    name = f"{database.service} indexes"
    expected = expected_of()
    found = database.ask(_INDEXES)
    names = {(table, index) for table, index, *_ in found}
    unique = {(table, tuple(columns)) for table, _, is_unique, _, columns in found if is_unique}
    missing = [
        what
        for table in expected.tables
        for what in (*_missing_indexes(table, names), *_missing_keys(table, unique))
    ]
    invalid = [index for _, index, _, is_valid, _ in found if not is_valid]
    yield _judge(
        name,
        ("missing", missing, _AGAIN.format(database.service)),
        ("invalid, so unused", invalid, "run REINDEX INDEX CONCURRENTLY for each"),
        well=f"all {len(found)} exist and are valid"
        if expected.metadata
        else f"{len(found)} are valid; {_NOT_MIGRATED}",
    )


def _judge(name: str, *faults: tuple[str, list[str], str], well: str) -> Finding:
    """Put all faults of a check into one finding.

    Args:
        name: the check's name.
        faults: what is wrong, the names of the objects, and the remedy.
        well: what to report if there is no fault.
    """
    found = [fault for fault in faults if fault[1]]
    if not found:
        return ok(name, well)
    return fail(
        name,
        "; ".join(f"{what}: {', '.join(which)}" for what, which, _ in found),
        "; ".join(remedy for *_, remedy in found),
    )


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


def check_constraints(
    database: Database, expected_of: Callable[[], ExpectedSchema]
) -> Iterator[Finding]:
    """Check for constraints and triggers that are missing, not validated, or switched off."""
    name = f"{database.service} constraints"
    expected = expected_of()
    found = database.ask(_CONSTRAINTS)
    checks = {(table, constraint) for table, constraint, kind, *_ in found if kind == "c"}
    references = {(table, tuple(columns)) for table, _, kind, _, columns in found if kind == "f"}
    missing = [
        what
        for table in expected.tables
        for what in (*_missing_checks(table, checks), *_missing_references(table, references))
    ]
    triggers = {trigger for (trigger,) in database.ask(_TRIGGERS)}
    missing += [f"trigger {each}" for each in sorted(expected.triggers - triggers)]
    unvalidated = [constraint for _, constraint, _, is_validated, _ in found if not is_validated]
    count = len(checks) + len(references)
    yield _judge(
        name,
        ("missing or off", missing, _AGAIN.format(database.service)),
        (
            "not validated",
            unvalidated,
            "run ALTER TABLE ... VALIDATE CONSTRAINT; correct the rows that it refuses first",
        ),
        well=f"all {count} exist, history is protected"
        if expected.metadata
        else f"{count} are validated; {_NOT_MIGRATED}",
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


def check_sequences(database: Database) -> Iterator[Finding]:
    """Check that the next value of each sequence is above the maximum of its column."""
    name = f"{database.service} sequences"
    behind = find_behind(database.ask)
    if not behind:
        yield ok(name, "all are ahead of their columns")
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
