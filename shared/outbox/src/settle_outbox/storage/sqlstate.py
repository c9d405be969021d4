"""Classify database errors by SQLSTATE (PostgreSQL documentation, appendix A).

The exception classes of psycopg2 are too coarse. A lost connection, a deadlock and a full disk are
all an OperationalError, and a read-only transaction is an InternalError.
"""

from __future__ import annotations

import re

import psycopg2
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
IDLE_IN_TRANSACTION_TIMEOUT = "25P03"
UNIQUE_VIOLATION = "23505"
INSUFFICIENT_PRIVILEGE = "42501"
UNDEFINED_TABLE = "42P01"
READ_ONLY_TRANSACTION = "25006"

_LOGIN_CLASS = "28"  # invalid authorization specification
# The messages of that class: PostgreSQL's (src/backend/libpq/auth.c, utils/init/miscinit.c) and
# libpq's.
_LOGIN_REFUSED = re.compile(
    r"authentication failed for user|role \".*\" does not exist|is not permitted to log in"
    r"|no pg_hba\.conf entry|pg_hba\.conf rejects connection|no password supplied"
)
# Errors after which the unchanged statement can succeed: when the server has restarted or failed
# over, its disk has space again, or an operator has finished a deployment.
_TRANSIENT_CLASSES = frozenset(
    {
        "08",  # connection exception
        _LOGIN_CLASS,
        "3D",  # invalid database name
        "3F",  # invalid schema name
        "40",  # transaction rollback: deadlock, serialization failure
        "53",  # insufficient resources: disk full, too many connections
        "55",  # object not in prerequisite state: lock not available
        "57",  # operator intervention: shutdown, query canceled
        "58",  # system error outside PostgreSQL
        "XX",  # internal error of PostgreSQL
    }
)
_TRANSIENT_CODES = frozenset(
    {
        INSUFFICIENT_PRIVILEGE,
        UNDEFINED_TABLE,
        READ_ONLY_TRANSACTION,
        IDLE_IN_TRANSACTION_TIMEOUT,
    }
)
# Errors after which there is no usable connection: it was refused, or the server ended it.
_UNREACHABLE_CLASSES = frozenset({"08", _LOGIN_CLASS, "3D"})
_UNREACHABLE_CODES = frozenset(
    {"53300", "57P01", "57P02", "57P03", "57P05", IDLE_IN_TRANSACTION_TIMEOUT}
)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of SQLAlchemy or psycopg2, or None if it has none."""
    raised = error.orig if isinstance(error, DBAPIError) else error
    code: object = raised.pgcode if isinstance(raised, psycopg2.Error) else None
    return code if isinstance(code, str) else None


def is_transient(error: BaseException) -> bool:
    """Return whether the same statement can succeed later.

    An error without SQLSTATE comes from the driver or the pool. It is transient if the connection
    failed, or if the pool had no free connection.
    """
    code = sqlstate_of(error)
    if code is not None:
        return code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES
    return _lacks_connection(error)


def is_unreachable(error: BaseException) -> bool:
    """Return whether the server could not be reached, or ended the connection."""
    code = sqlstate_of(error)
    if code is not None:
        return code[:2] in _UNREACHABLE_CLASSES or code in _UNREACHABLE_CODES
    return _lacks_connection(error)


def is_login_refused(error: BaseException) -> bool:
    """Return whether the server refused the login: a wrong password, role or pg_hba.conf.

    psycopg2 gives no SQLSTATE for an error while it connects, so the English message decides. On a
    server with messages in another language, the answer is False.
    """
    code = sqlstate_of(error)
    if code is not None:
        return code.startswith(_LOGIN_CLASS)
    return isinstance(error, OperationalError | psycopg2.OperationalError) and bool(
        _LOGIN_REFUSED.search(str(error))
    )


def _lacks_connection(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(
        error,
        OperationalError
        | InterfaceError
        | PoolTimeoutError
        | psycopg2.OperationalError
        | psycopg2.InterfaceError,
    )
