"""Database errors by SQLSTATE, and their messages on a command line."""

from __future__ import annotations

import psycopg2
import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from settle_outbox.cli.command import error_sentence
from settle_outbox.storage.sqlstate import is_transient, is_unreachable


def error_of(sqlstate: str) -> psycopg2.Error:
    """Return an error as the server sends it. Its code cannot be set in another way."""
    error = psycopg2.errors.lookup(sqlstate)("said the server")
    error.__setstate__({"pgcode": sqlstate})  # type: ignore[no-untyped-call]
    return error


NO_CONNECTION = psycopg2.OperationalError("connection refused")


@pytest.mark.parametrize(
    ("error", "transient", "unreachable"),
    [
        (NO_CONNECTION, True, True),
        (OperationalError("SELECT 1", {}, NO_CONNECTION), True, True),
        (PoolTimeoutError("all in use"), True, True),
        (error_of("57P01"), True, True),  # admin_shutdown
        (error_of("53300"), True, True),  # too_many_connections
        (error_of("40P01"), True, False),  # deadlock_detected
        (error_of("25006"), True, False),  # read_only_sql_transaction
        (ProgrammingError("SELECT 1", {}, error_of("42P01")), True, False),  # undefined_table
        (error_of("23505"), False, False),  # unique_violation
        (error_of("22012"), False, False),  # division_by_zero
        (ValueError("no database"), False, False),
    ],
)
def test_an_error_is_classified_by_its_sqlstate(
    error: Exception, *, transient: bool, unreachable: bool
) -> None:
    assert is_transient(error) is transient
    assert is_unreachable(error) is unreachable


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NO_CONNECTION, "The database cannot be reached: connection refused"),
        (OperationalError("SELECT 1", {}, error_of("57P03")), "The database cannot be reached: "),
        (OperationalError("SELECT 1", {}, error_of("40P01")), "The database refuses: said the"),
        (error_of("25006"), "The database refuses: said the server"),
    ],
)
def test_a_command_reports_whether_the_database_is_unreachable_or_refuses(
    error: Exception, said: str
) -> None:
    assert error_sentence(error).startswith(said)
