"""Find sequences that are behind: the next value is not above the maximum of the column.

This happens after ``ALTER SEQUENCE ... RESTART``, and after rows were copied with their values but
without a `setval`. INSERT then fails, or gives new rows lower numbers than earlier rows have.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.runtime.process import FatalError
from settle_outbox.storage.catalog import RunQuery, query_runner
from settle_outbox.storage.sqlstate import is_unreachable

if TYPE_CHECKING:
    from psycopg2.extensions import Diagnostics
    from sqlalchemy import Connection, Engine

log = structlog.get_logger(__name__)

# outbox.seq has no index. So its maximum is estimated from outbox_pending, and from this number of
# the newest rows of each table partition.
SAMPLE_ROWS = 100
CHECK_TIMEOUT_MS = 5_000

# Descending and cyclic sequences are skipped, because a maximum does not limit their next value.
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
# The columns of a constraint, and their table. For a table partition, this is the parent table,
# because the sequence belongs to it.
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


@dataclass(frozen=True, slots=True)
class _GeneratedColumn:
    """A column whose values come from a sequence. Quoted names are for SQL."""

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
        """Whether the sequence puts the events in order."""
        return (self.table, self.column) == ("outbox", "seq")


@dataclass(frozen=True, slots=True)
class SequenceBehind(_GeneratedColumn):
    """A sequence whose next value is not above the maximum of its column.

    Args:
        next_value: the next value of the sequence.
        maximum: the highest known value of the column.
    """

    next_value: int
    maximum: int

    @property
    def remedy(self) -> str:
        """The SQL statement that corrects the sequence."""
        sequence = self.sequence.replace("'", "''")
        return (
            f"SELECT setval('{sequence}',"  # noqa: S608
            f" (SELECT max({self.quoted_column}) FROM {self.quoted_table}))"
        )


class SequenceBehindError(FatalError):
    """The sequence of outbox.seq is behind, so new events would overtake earlier ones."""


def find_behind(run_query: RunQuery, schema: str | None = None) -> list[SequenceBehind]:
    """Return the sequences of a schema that are behind their columns.

    It is fast on large tables, because it reads each maximum from an index. The maximum of
    ``outbox.seq`` comes from `outbox_pending` and a sample of the outbox. Other columns without an
    index, and columns that the role may not read, are skipped.

    Args:
        run_query: on the service's database.
        schema: the name of a schema, or None for the current one.
    """
    behind = []
    for generated in _generated(run_query, schema):
        if not generated.is_readable or not (generated.has_index or generated.is_outbox_seq):
            continue
        maximum, _, next_value = _values(run_query, generated)
        if maximum is not None and next_value <= maximum:
            behind.append(
                SequenceBehind(**asdict(generated), next_value=next_value, maximum=maximum)
            )
    return behind


def check_sequences(engine: Engine) -> None:
    """Log each sequence that is behind its column. Raise an error if outbox.seq is behind.

    Raises:
        SequenceBehindError: ``outbox.seq`` is behind.
        SQLAlchemyError: the database cannot be reached.
    """
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {CHECK_TIMEOUT_MS}")
            sequences = find_behind(query_runner(connection))
    except SQLAlchemyError as error:
        if is_unreachable(error):
            raise
        log.warning("sequence.not_checked", exc_info=error)
        return
    for behind in sequences:
        (log.error if behind.is_outbox_seq else log.warning)(
            "sequence.behind",
            sequence=behind.sequence,
            column=f"{behind.table}.{behind.column}",
            next=behind.next_value,
            maximum=behind.maximum,
            remedy=behind.remedy,
        )
    for behind in sequences:
        if behind.is_outbox_seq:
            raise SequenceBehindError(
                f"The next value of the sequence {behind.sequence} is {behind.next_value}, but "
                f"outbox.seq is already at {behind.maximum}. New events would overtake earlier "
                f"ones. Run {behind.remedy}; then start the relay again."
            )


def generated_key_behind(connection: Connection, violation: Diagnostics) -> bool:
    """Return whether a unique violation came from a sequence that is behind its column.

    The application may have chosen the value instead. So the sequence must have passed the value,
    and must be behind its column or have returned this value last.

    Args:
        connection: the connection that had the violation, in a new transaction.
        violation: ``error.diag`` of psycopg2.

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
        # Either the sequence has caught up, or the application chose the value of the newest row.
        # In the first case, this session took the value from the sequence.
        if value == last_value and _gave_last(run_query, generated):
            return True
    return False


def _key_values(detail: str | None) -> dict[str, int]:
    """Return the integers of a violated key: ``Key (tenant, id)=(5, 1) already exists.``."""
    match = _KEY_DETAIL.search(detail or "")
    if match is None:
        return {}
    columns, values = match[1].split(", "), match[2].split(", ")
    if len(columns) != len(values):
        return {}
    return {
        column.strip('"'): int(value)
        for column, value in zip(columns, values, strict=True)
        if value.removeprefix("-").isdecimal()
    }


def _gave_last(run_query: RunQuery, generated: _GeneratedColumn) -> bool:
    """Return whether this session took the last value of the sequence.

    Raises:
        DBAPIError: this session took no value of it (55000).
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
    """Return the maximum of the column, the last value of the sequence, and its next value.

    One statement reads them. It reads the sequence after it has taken the snapshot of the table, so
    a concurrent INSERT cannot make the sequence appear behind.
    """
    maximum = (
        _outbox_maximum(run_query, generated)
        if generated.is_outbox_seq
        else f"SELECT max({generated.quoted_column}) FROM {generated.quoted_table}"  # noqa: S608
    )
    ((highest, last_value, next_value),) = run_query(
        # The catalog has quoted the names.
        f"SELECT ({maximum}), s.last_value,"  # noqa: S608
        " s.last_value + CASE WHEN s.is_called THEN p.seqincrement ELSE 0 END"
        f" FROM {generated.sequence} s"
        " JOIN pg_sequence p ON p.seqrelid = %(sequence)s::regclass",
        {"sequence": generated.sequence},
    )
    return highest, last_value, next_value


def _outbox_maximum(run_query: RunQuery, generated: _GeneratedColumn) -> str:
    """Return the query for the highest seq of all pending events and of a sample of the outbox."""
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
