"""SQLAlchemy engines and psycopg2 connections with explicit settings.

libpq and PostgreSQL take missing settings from environment variables (``PGCLIENTENCODING``,
``PGOPTIONS``), a service file, ``ALTER DATABASE`` and ``ALTER ROLE``. So every connection sets what
the code depends on. No code uses ``SET`` for a whole session: behind a transaction
pooler, other clients would inherit the value.

* The encoding is a start-up parameter. PgBouncer tracks it for each client.
* The isolation level is part of each ``BEGIN``.
* The start-up parameter ``options`` has the rest. For a pooler that ignores it, set the same values
  with ``ALTER ROLE`` (docs/reference/limits.md).

Operators decide on ``default_transaction_read_only``, so it is not set.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session, sessionmaker

from settle_outbox.storage.deadlines import limit_transaction_time
from settle_outbox.storage.sqlstate import READ_ONLY_TRANSACTION, sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from psycopg2.extensions import connection
    from sqlalchemy import ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry

# Seconds, except tcp_user_timeout (milliseconds). Keep-alives detect a vanished peer in about 10 s.
CONNECT_ARGS: dict[str, Any] = {
    "client_encoding": "UTF8",
    "connect_timeout": 3,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

ISOLATION_LEVEL = "READ COMMITTED"
# These come last in `options`, because the last value of a setting counts. The isolation level here
# is for statements outside a transaction block.
_REQUIRED_OPTIONS = (
    "-c standard_conforming_strings=on",
    r"-c default_transaction_isolation=read\ committed",
)

# The key of `Session.info` for the aggregatetypes that the session may publish.
AGGREGATETYPES = "aggregatetypes"

_POLL = "settle-poll"


def make_engine(
    url: str,
    *,
    application_name: str,
    pool_size: int,
    session_settings: Mapping[str, str] | None = None,
    deadline_s: float | None = None,
    autocommit: bool = False,
    driver_options: Mapping[str, object] | None = None,
) -> Engine:
    """Create an engine. Call it after fork, because processes must not share connections.

    Args:
        url: ``postgresql+psycopg2://...``. Its ``options`` override the session settings.
        application_name: shown in ``pg_stat_activity``.
        pool_size: maximum number of connections.
        session_settings: PostgreSQL settings of every session, such as ``statement_timeout``.
        deadline_s: maximum time in which a transaction may hold its connection, in seconds.
        autocommit: each statement is a transaction, on all connections. (An option of a single
            `Connection` would be reset when it returns to the pool. If it is dead then, the reset
            raises a psycopg2 error instead of one of SQLAlchemy.)
        driver_options: of ``psycopg2.connect``.
    """
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT" if autocommit else ISOLATION_LEVEL,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=3,
        pool_recycle=1800,
        # The log contains the text of errors, which must not quote what users wrote.
        hide_parameters=True,
        connect_args=connect_args(
            url, application_name=application_name, session_settings=session_settings
        )
        | dict(driver_options or {}),
    )
    event.listen(engine, "checkout", _check_connection)
    event.listen(engine, "handle_error", _discard_read_only_connection)
    if deadline_s is not None:
        limit_transaction_time(engine, deadline_s)
    return engine


def connect_args(
    url: str, *, application_name: str, session_settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the libpq parameters of a connection.

    The ``options`` of the URL override the session settings.
    """
    settings = [f"-c {name}={value}" for name, value in (session_settings or {}).items()]
    given = make_url(url).normalized_query.get("options", ())
    return {
        **CONNECT_ARGS,
        "application_name": application_name,
        # The last value of a setting counts.
        "options": " ".join([*settings, *given, *_REQUIRED_OPTIONS]),
    }


def make_sessions(
    engine: Engine, *, aggregatetypes: Collection[str] | None = None
) -> sessionmaker[Session]:
    """Create the session factory of an engine. Objects stay usable after the commit.

    Args:
        engine: of the database.
        aggregatetypes: the aggregatetypes that the service declares. `settle_outbox.add` raises an
            error for an event of another one. None allows all; services do not use it.
    """
    info = None if aggregatetypes is None else {AGGREGATETYPES: frozenset(aggregatetypes)}
    return sessionmaker(engine, expire_on_commit=False, info=info)


def _discard_read_only_connection(context: ExceptionContext) -> None:
    """Discard a connection after a read-only error.

    A session of PostgreSQL may keep the value of `default_transaction_read_only` that it started
    with. A new one can write as soon as the database is writable again.
    """
    if sqlstate_of(context.original_exception) == READ_ONLY_TRANSACTION:
        context.is_disconnect = True


def _check_connection(pooled: connection, record: ConnectionPoolEntry, _: object) -> None:
    """Refuse to use a pooled connection that the server has closed, for example by a restart.

    Unexpected data to read on an idle connection means that the server closed it. This check takes
    a system call, not a round trip. The error makes SQLAlchemy replace all connections of the pool.
    """
    poll: select.poll | None = record.info.get(_POLL)
    if poll is None:
        # A new connection is not checked: under TLS, the server may still send data that belongs to
        # the handshake.
        record.info[_POLL] = poll = select.poll()
        poll.register(pooled.fileno(), select.POLLIN)
    elif pooled.closed or poll.poll(0):
        raise InvalidatePoolError("The database server closed the connection.")


def connect_autocommit(url: str, *, application_name: str) -> connection:
    """Open a connection of psycopg2 in autocommit mode, outside any pool.

    Raises:
        psycopg2.OperationalError: the database cannot be reached.
    """
    # psycopg2 and libpq accept the URL only without the name of the driver.
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    opened = psycopg2.connect(make_dsn(dsn, **connect_args(url, application_name=application_name)))
    opened.autocommit = True
    return opened
