"""Engines and connections, with every option that matters given explicitly.

libpq and PostgreSQL take what a client leaves out from elsewhere: from environment variables
(``PGCLIENTENCODING``, ``PGOPTIONS``), from a service file, from ``ALTER DATABASE`` and ``ALTER
ROLE``. What the code relies on is therefore set on every connection, and only in ways that a
transaction pooler keeps apart: a ``SET`` would stay on a server connection that other clients use.

* The encoding is a start-up parameter. PgBouncer tracks it for each client.
* The isolation level is part of each ``BEGIN``.
* ``options`` set the rest when the connection starts. A pooler that ignores them must get the same
  values by ``ALTER ROLE`` (docs/operations.md).

``default_transaction_read_only`` is left to the operator.
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

# Time-outs in seconds, but for tcp_user_timeout (ms). Keep-alives end a connection whose peer
# vanished without a word, in about 10 s.
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
# These come last in `options`, so that no other source can change them. The isolation level is
# for statements outside a transaction block; `ISOLATION_LEVEL` sets it for the others.
_REQUIRED_OPTIONS = (
    "-c standard_conforming_strings=on",
    r"-c default_transaction_isolation=read\ committed",
)

# The key of `Session.info` under which `settle_outbox` finds what the session may publish.
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
    """Create an engine. Call it after fork: a connection must not cross one.

    Args:
        url: ``postgresql+psycopg2://...``; its ``options`` override the session settings.
        application_name: shown in ``pg_stat_activity``.
        pool_size: connections kept, and the most there will be.
        session_settings: of PostgreSQL, for every session, such as ``statement_timeout``.
        deadline_s: how long a transaction may hold a connection, whatever the server does.
        autocommit: each statement is a transaction, on all connections: one that SQLAlchemy has
            switched to it, and that ends before it is switched back, raises the driver's own error.
        driver_options: of ``psycopg2.connect``.
    """
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT" if autocommit else ISOLATION_LEVEL,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=3,
        pool_recycle=1800,
        # An error's text goes to the log; what users wrote must not go with it.
        hide_parameters=True,
        connect_args=connect_args(
            url, application_name=application_name, session_settings=session_settings
        )
        | dict(driver_options or {}),
    )
    event.listen(engine, "checkout", _check_connection)
    event.listen(engine, "handle_error", _discard_read_only_session)
    if deadline_s is not None:
        limit_transaction_time(engine, deadline_s)
    return engine


def connect_args(
    url: str, *, application_name: str, session_settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the libpq parameters of a connection.

    Args:
        url: of the database; its ``options`` override the session settings.
        application_name: shown in ``pg_stat_activity``.
        session_settings: of PostgreSQL, for every session.
    """
    settings = [f"-c {name}={value}" for name, value in (session_settings or {}).items()]
    given = make_url(url).normalized_query.get("options", ())
    return {
        **CONNECT_ARGS,
        "application_name": application_name,
        # Of two values for one setting, PostgreSQL takes the last.
        "options": " ".join([*settings, *given, *_REQUIRED_OPTIONS]),
    }


def make_sessions(
    engine: Engine, *, aggregatetypes: Collection[str] | None = None
) -> sessionmaker[Session]:
    """Create the session factory of an engine; objects stay usable after the commit.

    Args:
        engine: of the database.
        aggregatetypes: that the service declares. `settle_outbox.add` refuses an event of any
            other. None allows all, for tools that publish nothing.
    """
    info = None if aggregatetypes is None else {AGGREGATETYPES: frozenset(aggregatetypes)}
    return sessionmaker(engine, expire_on_commit=False, info=info)


def _discard_read_only_session(context: ExceptionContext) -> None:
    """Do not use a read-only session again: the database may be writable by then.

    A session keeps `default_transaction_read_only` as it was when it began.
    """
    if sqlstate_of(context.original_exception) == READ_ONLY_TRANSACTION:
        context.is_disconnect = True


def _check_connection(pooled: connection, record: ConnectionPoolEntry, _: object) -> None:
    """Keep a connection that the server has closed, when it restarted say, from being used.

    Something to read where nothing was asked is the end of the connection; to look costs a system
    call, not a round trip. All others of the pool are as old, so they go as well.
    """
    poll: select.poll | None = record.info.get(_POLL)
    if poll is None:
        # It is new. Under TLS a server may send more after the handshake; its first answer takes
        # that along.
        record.info[_POLL] = poll = select.poll()
        poll.register(pooled.fileno(), select.POLLIN)
    elif pooled.closed or poll.poll(0):
        raise InvalidatePoolError("The database server closed the connection.")


def connect_autocommit(url: str, *, application_name: str) -> connection:
    """Open a plain connection in autocommit, for LISTEN and NOTIFY, outside any pool.

    Args:
        url: ``postgresql+psycopg2://...``.
        application_name: shown in ``pg_stat_activity``.

    Raises:
        psycopg2.OperationalError: the database cannot be reached.
    """
    # psycopg2 and libpq know the URL by its plain scheme, escapes and options included.
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    opened = psycopg2.connect(make_dsn(dsn, **connect_args(url, application_name=application_name)))
    opened.autocommit = True
    return opened
