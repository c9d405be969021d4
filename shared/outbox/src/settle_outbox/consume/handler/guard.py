"""Guard the transaction while a handler runs, and measure the handler's time.

The guard is a subclass of psycopg2's connection, below SQLAlchemy. There it sees every way to end a
transaction: with the session, the connection, the driver, or the text of a statement.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS, connection, cursor
from psycopg2.sql import Composable

from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

# The timeouts start before the run: PostgreSQL counts from its last response, and the deadline from
# the checkout of the connection. So the run measures a little less time than the timeouts.
_TOLERANCE = 0.95

_MAY_END = re.compile(r"\b(?:commit|end|rollback|abort|prepare)\b", re.IGNORECASE)
_ENDS = re.compile(
    r"\s*(?:commit|end|abort|prepare\s+transaction"
    r"|rollback(?!\s+(?:work\s+|transaction\s+)?to\b))\b",
    re.IGNORECASE,
)
# Comments, strings, quoted names and dollar-quoted strings (PostgreSQL documentation, 4.1).
_QUOTED = re.compile(
    r"--[^\n\r]*|/\*|(?<![\w$])e'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
    r"|(?<![\w$])(\$(?:[^\W\d]\w*)?\$).*?\1",
    re.IGNORECASE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ERRORS_KEPT = 100


class TransactionEndedError(SettleError):
    """A handler tried to end the transaction. Only the handler's caller may do that."""


class NotGuardableError(SettleError):
    """The SQLAlchemy engine of a transaction was made without GUARDABLE."""


class SwallowedError(SettleError):
    """A handler caught a database error after which its transaction cannot continue."""


class HandlerRun:
    """One run of a handler: its effect on the transaction, and its time.

    Args:
        now: a clock, in seconds from an arbitrary start.

    Attributes:
        ended_by: the call or statement with which the handler tried to end the transaction.
        rolled_back: whether the transaction was rolled back while an error was handled.
        is_broken: whether the transaction could not continue after the run.
        errors: the database errors of the run, including those that the handler caught.
        total_s: time of the run, in seconds, without the time in which the process was frozen.
        longest_pause_s: the longest time between two statements, likewise.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began = self._idle_since = now()
        self.ended_by: str | None = None
        self.rolled_back = False
        self.is_broken = False
        self.errors: list[psycopg2.Error] = []
        self.total_s = 0.0
        self.longest_pause_s = 0.0

    def exceeded(self, *, pause_s: float, total_s: float) -> bool:
        """Return whether the run exceeded a limit, so that a timeout ended its connection."""
        return self.longest_pause_s >= pause_s * _TOLERANCE or self.total_s >= total_s * _TOLERANCE

    def refuse_end(self, how: str) -> None:
        """Refuse a call or statement that ends the transaction.

        Raises:
            TransactionEndedError: always.
        """
        self.ended_by = self.ended_by or how
        raise TransactionEndedError(
            f"A handler must not end the transaction, but it called {how}. The engine commits the"
            " inbox row of the event together with all effects. Use session.begin_nested() for a"
            " part that may be rolled back."
        )

    def statement_begins(self, text: str) -> None:
        """Measure the pause before a statement. Refuse a statement that ends the transaction."""
        self.measure()
        if _ends_transaction(text):
            self.refuse_end(repr(text.strip()[:80]))

    def statement_ended(self, error: psycopg2.Error | None) -> None:
        """Start to measure the next pause, and keep the error of the statement."""
        self._idle_since = self._now()
        if error is not None and len(self.errors) < _ERRORS_KEPT:
            self.errors.append(error)

    def measure(self) -> None:
        """Update the measured times."""
        now = self._now()
        self.longest_pause_s = max(self.longest_pause_s, now - self._idle_since)
        self.total_s = now - self._began


@lru_cache(maxsize=1024)
def _ends_transaction(text: str) -> bool:
    return bool(_MAY_END.search(text)) and any(
        _ENDS.match(statement) for statement in _without_quoted(text).split(";")
    )


def _without_quoted(text: str) -> str:
    """Replace comments and quoted text by spaces. Comments may be nested."""
    kept, position = [], 0
    while quoted := _QUOTED.search(text, position):
        kept.append(text[position : quoted.start()])
        position = _comment_end(text, quoted.end()) if quoted[0] == "/*" else quoted.end()
    return " ".join([*kept, text[position:]])


def _comment_end(text: str, position: int) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, position)
        if edge is None:
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position


class _GuardedCursor(cursor):
    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - the driver's name
        self._guard(query, super().execute, query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        self._guard(query, super().executemany, query, vars_list)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        self._guard(sql, super().copy_expert, sql, file, size)

    def _guard(self, query: Any, call: Callable[..., None], *arguments: Any) -> None:
        run: HandlerRun | None = getattr(self.connection, "run", None)
        if run is None:
            call(*arguments)
            return
        run.statement_begins(_text(query, self))
        failure = None
        try:
            call(*arguments)
        except psycopg2.Error as error:
            failure = error
            raise
        finally:
            run.statement_ended(failure)


def _text(query: Any, guarded: cursor) -> str:
    if isinstance(query, Composable):
        return query.as_string(guarded)
    return query.decode(errors="replace") if isinstance(query, bytes) else str(query)


class _GuardedConnection(connection):
    """A connection that refuses to end its transaction while `run` is set."""

    run: HandlerRun | None = None

    def commit(self) -> None:
        self._refuse("commit()")
        super().commit()

    def rollback(self) -> None:
        # SQLAlchemy itself rolls back after a failed flush. A refusal would hide the error of the
        # flush. So `guarded` makes the run fail later.
        if self.run is not None and sys.exc_info()[1] is not None:
            self.run.rolled_back = True
        else:
            self._refuse("rollback(), or closed the session")
        super().rollback()

    def reset(self) -> None:
        self._refuse("reset()")
        super().reset()

    # psycopg2 rolls back in the following two methods.

    def set_isolation_level(self, level: int | None) -> None:
        self._refuse("set_isolation_level()")
        super().set_isolation_level(level)

    def set_client_encoding(self, encoding: str) -> None:
        self._refuse("set_client_encoding()")
        super().set_client_encoding(encoding)

    def cursor(  # type: ignore[override]  # one signature for psycopg2's three
        self, name: Any = None, cursor_factory: Any = None, **options: Any
    ) -> Any:
        """Open a cursor. A cursor of another class is guarded as well."""
        if name is None and cursor_factory is None and not options:
            return super().cursor()
        if cursor_factory is not None and not issubclass(cursor_factory, _GuardedCursor):
            cursor_factory = type(cursor_factory.__name__, (_GuardedCursor, cursor_factory), {})
        return super().cursor(name, cursor_factory=cursor_factory, **options)

    def _refuse(self, how: str) -> None:
        if self.run is not None:
            self.run.refuse_end(how)


# Options of psycopg2.connect for a SQLAlchemy engine whose transactions can be guarded.
GUARDABLE = {"connection_factory": _GuardedConnection, "cursor_factory": _GuardedCursor}


@contextmanager
def guarded(transaction: Connection, run: HandlerRun) -> Iterator[None]:
    """Guard a transaction while the block runs a handler.

    Args:
        transaction: a connection in a transaction. Its SQLAlchemy engine must have the options
            `GUARDABLE`.
        run: measures the handler.

    Raises:
        TransactionEndedError: the handler tried to end the transaction. It may have caught this
            error.
        NotGuardableError: the SQLAlchemy engine does not have these options.
        SwallowedError: the handler caught a database error outside a savepoint. At the commit,
            PostgreSQL would roll back without an error.
    """
    driver = transaction.connection.driver_connection
    if not isinstance(driver, _GuardedConnection):
        raise NotGuardableError(
            "The transaction of a handler cannot be guarded: create the engine with"
            " create_engine(..., connect_args=GUARDABLE)."
        )
    driver.run = run
    try:
        yield
    finally:
        driver.run = None
        run.measure()
        run.is_broken = (
            run.rolled_back or driver.info.transaction_status != TRANSACTION_STATUS_INTRANS
        )
        if (run.ended_by is not None or run.rolled_back) and not transaction.closed:
            # SQLAlchemy's state of the transaction is wrong now. The session may have dropped the
            # connection without returning it to the pool.
            transaction.invalidate()
            transaction.close()
    if run.ended_by is not None:
        run.refuse_end(run.ended_by)
    if run.is_broken:
        first_error = f" The first error: {run.errors[0]}" if run.errors else ""
        raise SwallowedError(
            "A handler continued after a database error had aborted its transaction. Put"
            f" statements that may fail into session.begin_nested().{first_error}"
        )
