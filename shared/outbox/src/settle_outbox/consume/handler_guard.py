"""Guard the transaction while a handler runs, and measure the handler's time.

The guard sits in the driver's connection, below SQLAlchemy. There it sees every way to end a
transaction: through the session, the connection, the driver, or a statement's text.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS, connection, cursor
from psycopg2.sql import Composable

from settle_outbox.errors import SettleError
from settle_outbox.runtime.threads import repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

_TICK_S = 0.2
# Without a tick for longer than this, the process was frozen; a busy machine delays less.
_FROZEN_S = 1.0
# The engine's timeouts start before the run: the server counts from its last answer, the deadline
# from the checkout. So the run measures a little less than they do.
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
    """A handler tried to end the transaction, which belongs to the engine."""


class NotGuardableError(SettleError):
    """A transaction's engine was not made with GUARDABLE."""


class SwallowedError(SettleError):
    """A handler caught a database error, and its transaction cannot go on."""


class ActiveClock(threading.Thread):
    """A monotonic clock that stands still while the process is frozen (SIGSTOP, a paused VM).

    A thread ticks. A tick that comes late although the process used no processor time means that
    the process did not run.

    Args:
        on_tick: called by the thread at each tick, a few times a second, with the time.
    """

    def __init__(self, on_tick: Callable[[float], None] = lambda _: None) -> None:
        super().__init__(name="active-clock", daemon=True)
        self._on_tick = on_tick
        self._lock = threading.Lock()
        self._frozen_s = 0.0
        self._ticked_at = time.monotonic()
        self._cpu_s = time.process_time()
        self.start()

    def now(self) -> float:
        """Return seconds that passed while the process could run, from an arbitrary start."""
        now = time.monotonic()
        if now - self._ticked_at < _FROZEN_S:
            return now - self._frozen_s
        return self._record_tick()

    def _record_tick(self) -> float:
        with self._lock:
            now, cpu_s = time.monotonic(), time.process_time()
            late_s = now - self._ticked_at - _TICK_S
            if late_s > _FROZEN_S and cpu_s - self._cpu_s < late_s / 2:
                self._frozen_s += late_s
            self._ticked_at, self._cpu_s = now, cpu_s
            return now - self._frozen_s

    def run(self) -> None:
        """Tick until the process ends."""
        repeat(self._tick, failed_event="consumer.clock_failed")

    def _tick(self) -> None:
        time.sleep(_TICK_S)
        self._on_tick(self._record_tick())


class HandlerRun:
    """One run of a handler: what it did to the transaction, and how long it took.

    Args:
        now: a clock, in seconds from an arbitrary start.

    Attributes:
        ended_by: the call or statement with which the handler tried to end the transaction.
        rolled_back: whether the transaction was rolled back while an error was handled.
        is_broken: whether the transaction could not go on when the run ended.
        errors: the database's errors of the run, whether the handler caught them or not.
        total_s: how long the handler has run, in seconds, without the time the process was frozen.
        longest_pause_s: the longest time between two of its statements, likewise.
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
        """Return whether the run took so long that the engine's timeouts ended its connection."""
        return self.longest_pause_s >= pause_s * _TOLERANCE or self.total_s >= total_s * _TOLERANCE

    def refuse_end(self, how: str) -> None:
        """Refuse to end the transaction.

        Raises:
            TransactionEndedError: always.
        """
        self.ended_by = self.ended_by or how
        raise TransactionEndedError(
            f"A handler must not end the transaction, and called {how}. The engine commits the"
            " event's inbox row and all effects together. Use session.begin_nested() for a part"
            " that may be rolled back."
        )

    def statement_begins(self, text: str) -> None:
        """Measure the pause before a statement, and refuse one that ends the transaction."""
        self.measure()
        if _ends_transaction(text):
            self.refuse_end(repr(text.strip()[:80]))

    def statement_ended(self, error: psycopg2.Error | None) -> None:
        """Start to measure the next pause, and keep the statement's error."""
        self._idle_since = self._now()
        if error is not None and len(self.errors) < _ERRORS_KEPT:
            self.errors.append(error)

    def measure(self) -> None:
        """Update the measured times."""
        now = self._now()
        self.longest_pause_s = max(self.longest_pause_s, now - self._idle_since)
        self.total_s = now - self._began


def _first_error(run: HandlerRun) -> str:
    return f" The first error: {run.errors[0]}" if run.errors else ""


@lru_cache(maxsize=1024)
def _ends_transaction(text: str) -> bool:
    return bool(_MAY_END.search(text)) and any(
        _ENDS.match(each) for each in _without_quoted(text).split(";")
    )


def _without_quoted(text: str) -> str:
    """Replace comments and all that is quoted by spaces; comments may be nested."""
    kept, position = [], 0
    while found := _QUOTED.search(text, position):
        kept.append(text[position : found.start()])
        position = _comment_end(text, found.end()) if found[0] == "/*" else found.end()
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
        run = _run_of(self.connection)
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
        # SQLAlchemy itself rolls back while it handles a failed flush. A refusal would hide the
        # error of the flush; `guarded` fails the run later.
        if self.run is not None and sys.exc_info()[1] is not None:
            self.run.rolled_back = True
        else:
            self._refuse("rollback(), or closed the session")
        super().rollback()

    def reset(self) -> None:
        self._refuse("reset()")
        super().reset()

    # psycopg2 rolls back before these two.

    def set_isolation_level(self, level: int | None) -> None:
        self._refuse("set_isolation_level()")
        super().set_isolation_level(level)

    def set_client_encoding(self, encoding: str) -> None:
        self._refuse("set_client_encoding()")
        super().set_client_encoding(encoding)

    def cursor(  # type: ignore[override]  # one signature for psycopg2's three
        self, name: Any = None, cursor_factory: Any = None, **options: Any
    ) -> Any:
        """Open a cursor; one of another class is guarded, too."""
        if name is None and cursor_factory is None and not options:
            return super().cursor()
        if cursor_factory is not None and not issubclass(cursor_factory, _GuardedCursor):
            cursor_factory = type(cursor_factory.__name__, (_GuardedCursor, cursor_factory), {})
        return super().cursor(name, cursor_factory=cursor_factory, **options)

    def _refuse(self, how: str) -> None:
        if self.run is not None:
            self.run.refuse_end(how)


def _run_of(guarded: connection) -> HandlerRun | None:
    return guarded.run if isinstance(guarded, _GuardedConnection) else None


# The driver's options for an engine whose transactions can be guarded.
GUARDABLE = {"connection_factory": _GuardedConnection, "cursor_factory": _GuardedCursor}


@contextmanager
def guarded(transaction: Connection, run: HandlerRun) -> Iterator[None]:
    """Guard a transaction while the block runs a handler.

    Args:
        transaction: a connection in its transaction, of an engine made with `GUARDABLE`.
        run: of the handler; it is measured.

    Raises:
        TransactionEndedError: the handler tried to end the transaction, even if it caught the
            error.
        NotGuardableError: the engine was made otherwise.
        SwallowedError: the handler caught a database error outside a savepoint. PostgreSQL would
            answer the commit with a rollback, and no error.
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
            # SQLAlchemy's view of the transaction is wrong by now, and the session may have let go
            # of the connection without returning it to the pool.
            transaction.invalidate()
            transaction.close()
    if run.ended_by is not None:
        run.refuse_end(run.ended_by)
    if run.is_broken:
        raise SwallowedError(
            "A handler continued after its transaction was aborted. Put statements that may fail"
            f" into session.begin_nested().{_first_error(run)}"
        )
