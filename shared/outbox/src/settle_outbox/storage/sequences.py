"""Sequences that are behind their columns: the next generated value is one that a row already has.

It happens after ``ALTER SEQUENCE ... RESTART``, or after rows were copied in with their values and
`setval` was forgotten. Each INSERT then fails, or gets a lower number than earlier rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.runtime.process import FatalError
from settle_outbox.storage.catalog import RunQuery, query_runner
from settle_outbox.storage.sqlstate import is_unreachable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

log = structlog.get_logger(__name__)

# outbox.seq has no index: its maximum is taken from this many of the newest rows of each partition.
SAMPLE_ROWS = 100
CHECK_TIMEOUT_MS = 5_000

# Columns whose values a sequence gives: identity columns, and those with a default of nextval.
# Skip descending and cyclic sequences: a maximum says nothing about their next value.
_GENERATED = """
    WITH generated AS (
        SELECT d.refobjid AS table_oid, d.refobjsubid AS column_number, d.objid AS sequence_oid
        FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.deptype = 'i' AND d.refobjsubid > 0
        UNION
        SELECT f.adrelid, f.adnum, d.refobjid
        FROM pg_attrdef f
        JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
        WHERE d.refclassid = 'pg_class'::regclass
    )
    SELECT t.oid, t.relname::text, a.attname::text, t.oid::regclass::text,
           quote_ident(a.attname), s.seqrelid::regclass::text,
           EXISTS (
               SELECT FROM pg_index x
               JOIN pg_class i ON i.oid = x.indexrelid
               JOIN pg_am m ON m.oid = i.relam
               WHERE x.indrelid = t.oid AND x.indkey[0] = a.attnum AND x.indpred IS NULL
                 AND x.indisvalid AND m.amname = 'btree'
           ),
           has_sequence_privilege(s.seqrelid, 'SELECT')
               AND has_column_privilege(t.oid, a.attnum, 'SELECT')
    FROM generated g
    JOIN pg_sequence s ON s.seqrelid = g.sequence_oid
    JOIN pg_class t ON t.oid = g.table_oid
    JOIN pg_attribute a ON a.attrelid = g.table_oid AND a.attnum = g.column_number
    WHERE s.seqincrement > 0 AND NOT s.seqcycle
      AND t.relnamespace = coalesce(%(schema)s, current_schema())::regnamespace
    ORDER BY 2, 3
"""
# A partition's index belongs to the table that is partitioned: that one has the identity column.
_KEY_COLUMNS = """
    SELECT coalesce(pg_partition_root(t.oid), t.oid)::oid, a.attname::text
    FROM pg_class t
    JOIN pg_index x ON x.indrelid = t.oid
    JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY (x.indkey)
    WHERE t.relname = %(table)s AND i.relname = %(constraint)s
      AND t.relnamespace = coalesce(%(schema)s, current_schema())::regnamespace
"""


_KEY_DETAIL = re.compile(r"\((.+)\)=\((.+)\)")


class Diagnostics(Protocol):
    """What PostgreSQL says of a violated constraint; psycopg2's ``error.diag``."""

    schema_name: str | None
    table_name: str | None
    constraint_name: str | None
    message_detail: str | None


@dataclass(frozen=True, slots=True)
class SequenceBehind:
    """A sequence that will give values which its column already has.

    Args:
        table: the table's name.
        column: the column's name.
        sequence: the sequence's name, quoted where it has to be.
        next_value: the value that the sequence gives next.
        maximum: the highest value known to be in the column.
        remedy: the SQL statement that moves the sequence past the column's maximum.
    """

    table: str
    column: str
    sequence: str
    next_value: int
    maximum: int
    remedy: str

    @property
    def is_outbox_seq(self) -> bool:
        """Whether it is the sequence that puts the events in order."""
        return (self.table, self.column) == ("outbox", "seq")


@dataclass(frozen=True, slots=True)
class _GeneratedColumn:
    oid: int
    table: str
    column: str
    quoted_table: str
    quoted_column: str
    sequence: str
    has_index: bool
    is_readable: bool

    @property
    def is_outbox_seq(self) -> bool:
        return (self.table, self.column) == ("outbox", "seq")


class SequenceBehindError(FatalError):
    """The sequence of the outbox gives numbers below those of earlier events."""


def find_behind(run_query: RunQuery, schema: str | None = None) -> list[SequenceBehind]:
    """Return the sequences of a schema whose next value is not above their column's maximum.

    Cheap on large tables: a maximum is read from an index, that of ``outbox.seq`` from
    `outbox_pending` and the newest rows of each partition. A column without an index, or one that
    the role may not read, is left out.

    Args:
        run_query: runs a query; see `query_runner`.
        schema: None for the current schema.
    """
    found = []
    for generated in _generated(run_query, schema):
        if not generated.is_readable or not (generated.has_index or generated.is_outbox_seq):
            continue
        maximum, _, next_value = _values(run_query, generated)
        if maximum is not None and next_value <= maximum:
            found.append(
                SequenceBehind(
                    generated.table,
                    generated.column,
                    generated.sequence,
                    next_value,
                    maximum,
                    _remedy(generated),
                )
            )
    return found


def check_sequences(engine: Engine) -> None:
    """Log the sequences that are behind their columns. Refuse to relay when outbox.seq is.

    New events would get numbers below those of earlier ones, and would overtake them.

    Args:
        engine: of the service's database.

    Raises:
        SequenceBehindError: ``outbox.seq`` is behind.
        SQLAlchemyError: the database cannot be reached.
    """
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {CHECK_TIMEOUT_MS}")
            found = find_behind(query_runner(connection))
    except SQLAlchemyError as error:
        if is_unreachable(error):
            raise
        log.warning("sequence.not_checked", exc_info=error)
        return
    for each in found:
        (log.error if each.is_outbox_seq else log.warning)(
            "sequence.behind",
            sequence=each.sequence,
            column=f"{each.table}.{each.column}",
            next=each.next_value,
            maximum=each.maximum,
            remedy=each.remedy,
        )
    for each in found:
        if each.is_outbox_seq:
            raise SequenceBehindError(
                f"The sequence {each.sequence} gives {each.next_value} next, but outbox.seq is at "
                f"{each.maximum} already: new events would overtake earlier ones. Run "
                f"{each.remedy}; then start the relay again."
            )


def generated_key_behind(connection: Connection, violation: Diagnostics) -> bool:
    """Return whether a unique violation came from a sequence that is behind its column.

    A value that the application itself chose may collide as well. It is told apart by its value:
    the sequence has passed it, and the sequence is behind, or gave this very value last.

    Args:
        connection: the one on which the violation was raised, in a new transaction.
        violation: the diagnostics of the error.

    Raises:
        DBAPIError: the role may not read the sequence or the column, or there is no such table.
    """
    run_query = query_runner(connection)
    schema, table = violation.schema_name, violation.table_name
    names = {"schema": schema, "table": table, "constraint": violation.constraint_name}
    key = {(oid, column) for oid, column in run_query(_KEY_COLUMNS, names)}
    values = _key_values(violation.message_detail)
    # outbox_pending.seq is a copy of outbox.seq.
    is_copy = table == "outbox_pending" and any(column == "seq" for _, column in key)
    for generated in _generated(run_query, schema):
        if (generated.oid, generated.column) not in key and not (
            is_copy and generated.is_outbox_seq
        ):
            continue
        value = values.get(generated.column)
        maximum, last_value, next_value = _values(run_query, generated)
        if is_copy and maximum is not None:
            return next_value <= maximum
        if value is None or maximum is None or value > last_value:
            continue
        if next_value <= maximum:
            return True
        # The sequence has just caught up, or the application chose the newest row's value.
        if value == last_value and _gave_last(run_query, generated):
            return True
    return False


def _key_values(detail: str | None) -> dict[str, int]:
    """Return the whole numbers of a violated key: ``Key (tenant, id)=(5, 1) already exists.``."""
    found = _KEY_DETAIL.search(detail or "")
    if found is None:
        return {}
    columns, values = found[1].split(", "), found[2].split(", ")
    if len(columns) != len(values):
        return {}
    return {
        column.strip('"'): int(value)
        for column, value in zip(columns, values, strict=True)
        if value.removeprefix("-").isdecimal()
    }


def _gave_last(run_query: RunQuery, generated: _GeneratedColumn) -> bool:
    """Return whether this session took the sequence's last value.

    Raises:
        DBAPIError: this session has taken none (55000).
    """
    ((current, last_value),) = run_query(
        "SELECT currval(%(sequence)s::regclass), last_value"  # noqa: S608 - quoted by the catalog
        f" FROM {generated.sequence}",
        {"sequence": generated.sequence},
    )
    return bool(current == last_value)


def _generated(run_query: RunQuery, schema: str | None) -> list[_GeneratedColumn]:
    return [_GeneratedColumn(*row) for row in run_query(_GENERATED, {"schema": schema})]


def _values(run_query: RunQuery, generated: _GeneratedColumn) -> tuple[int | None, int, int]:
    """Return the column's maximum, the sequence's last value, and its next one.

    One statement reads both. The sequence is read after the snapshot is taken, so a concurrent
    insert cannot make it look behind.
    """
    maximum = (
        _outbox_maximum(run_query, generated)
        if generated.is_outbox_seq
        else f"SELECT max({generated.quoted_column}) FROM {generated.quoted_table}"  # noqa: S608
    )
    ((highest, last_value, next_value),) = run_query(
        # Names come quoted from the catalog.
        f"SELECT ({maximum}), s.last_value,"  # noqa: S608
        " s.last_value + CASE WHEN s.is_called THEN p.seqincrement ELSE 0 END"
        f" FROM {generated.sequence} s"
        " JOIN pg_sequence p ON p.seqrelid = %(sequence)s::regclass",
        {"sequence": generated.sequence},
    )
    return highest, last_value, next_value


def _outbox_maximum(run_query: RunQuery, generated: _GeneratedColumn) -> str:
    """Return the query for the highest seq of pending events and of a sample of the sent ones."""
    schema_prefix = generated.quoted_table.removesuffix("outbox")
    of_pending = (
        f"SELECT max((SELECT p.seq FROM {schema_prefix}outbox_pending p WHERE p.shard = s.shard"  # noqa: S608
        f" ORDER BY p.seq DESC LIMIT 1)) AS seq FROM {schema_prefix}outbox_shards s"
    )
    of_partitions = [
        f"(SELECT seq FROM {partition} ORDER BY id DESC LIMIT {SAMPLE_ROWS})"  # noqa: S608
        for (partition,) in run_query(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %(oid)s",
            {"oid": generated.oid},
        )
    ]
    return f"SELECT max(seq) FROM ({' UNION ALL '.join([of_pending, *of_partitions])}) AS sample"  # noqa: S608


def _remedy(generated: _GeneratedColumn) -> str:
    sequence = generated.sequence.replace("'", "''")
    return (
        f"SELECT setval('{sequence}',"  # noqa: S608
        f" (SELECT max({generated.quoted_column}) FROM {generated.quoted_table}))"
    )
