"""Engines and connections, with every option that matters given explicitly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from psycopg2.extensions import connection

# Time-outs in seconds, but for tcp_user_timeout (ms). Keep-alives end a connection whose peer
# vanished without a word, in about 10 s.
CONNECT_ARGS = {
    "connect_timeout": 3,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def make_engine(url: str, *, application_name: str, pool_size: int) -> Engine:
    """Create an engine. Call it after fork: a connection must not cross one.

    Args:
        url: ``postgresql+psycopg2://...``.
        application_name: shown in ``pg_stat_activity``.
        pool_size: connections kept, and the most there will be.
    """
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=1800,
        # An error's text goes to the log; what users wrote must not go with it.
        hide_parameters=True,
        connect_args={"application_name": application_name, **CONNECT_ARGS},
    )


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
    opened = psycopg2.connect(make_dsn(dsn, application_name=application_name, **CONNECT_ARGS))
    opened.autocommit = True
    return opened
