"""The tables, functions and comments of a database, as lines that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

# A partition has only a `table` line. Its columns, indexes and constraints are those of its parent.
# NOT NULL is shown in the line of the column. The constraints that PostgreSQL 18 and later
# store for NOT NULL are left out. concat_ws() leaves out what is NULL.
_SCHEMA = text(
    """
    WITH tables_and_partitions AS (
        SELECT * FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
            AND relname <> 'alembic_version'
    ), tables AS (
        SELECT * FROM tables_and_partitions WHERE NOT relispartition
    )
    SELECT concat_ws(' ', 'table', relname, 'partitioned by ' || pg_get_partkeydef(oid),
        'partition ' || pg_get_expr(relpartbound, oid), 'with ' || reloptions::text)
    FROM tables_and_partitions
    UNION ALL
    SELECT concat_ws(' ', 'column', relname || '.' || to_char(attnum, 'FM00'), attname,
        format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'not null' END,
        'identity ' || nullif(attidentity::text, ''),
        'generated ' || nullif(attgenerated::text, ''),
        'default ' || pg_get_expr(adbin, adrelid))
    FROM tables JOIN pg_attribute a ON attrelid = tables.oid AND attnum > 0
        AND NOT attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    UNION ALL
    SELECT concat_ws(' ', CASE WHEN indisvalid THEN 'index' ELSE 'invalid index' END,
        pg_get_indexdef(indexrelid))
    FROM tables JOIN pg_index ON indrelid = tables.oid
    UNION ALL
    SELECT concat_ws(' ', 'constraint', relname, conname, pg_get_constraintdef(c.oid))
    FROM tables JOIN pg_constraint c ON conrelid = tables.oid AND contype <> 'n'
    UNION ALL
    SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), tgenabled)
    FROM tables JOIN pg_trigger t ON tgrelid = tables.oid AND NOT tgisinternal
    UNION ALL
    SELECT 'function ' || pg_get_functiondef(oid)
    FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
    UNION ALL
    SELECT concat_ws(' ', 'comment', relname, attname, d.description)
    FROM tables JOIN pg_description d ON objoid = tables.oid
        AND classoid = 'pg_class'::regclass
    LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = nullif(objsubid, 0)
    UNION ALL
    SELECT concat_ws(' ', 'comment', oid::regprocedure, obj_description(oid, 'pg_proc'))
    FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
    """
)


def schema_of(connection: Connection) -> set[str]:
    """Return a line for each table, column, index, constraint, trigger, function and comment."""
    return {" ".join(line.split()) for line in connection.scalars(_SCHEMA)}
