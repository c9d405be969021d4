"""The database sessions in which handlers run: guarded, and limited in time by PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle_outbox.consume.handler.guard import GUARDABLE
from settle_outbox.notifications.notify import notify_after_commit
from settle_outbox.runtime.process import TRANSACTION_S
from settle_outbox.storage.database import make_engine, make_sessions

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

# PostgreSQL ends the transaction of a frozen consumer after this time. Until then, its locks block
# the next consumer of the same partitions, and all transactions that need the same rows.
IDLE_MS = 10_000
# Maximum wait for a row lock. After that the batch is tried again.
LOCK_WAIT_MS = 30_000

if LOCK_WAIT_MS >= TRANSACTION_S * 1000:
    raise AssertionError("a wait for a lock must end before the transaction is cut")


def make_handler_sessions(
    service: Service, settings: Settings
) -> tuple[Engine, sessionmaker[Session]]:
    """Create an engine with one connection, and its sessions. A commit wakes the relay.

    Args:
        service: whose handlers run in them.
        settings: of that service's process.
    """
    engine = make_engine(
        settings.database_url,
        application_name=f"inbox-consumer {service.name}",
        pool_size=1,
        session_settings={
            "idle_in_transaction_session_timeout": str(IDLE_MS),
            "lock_timeout": str(LOCK_WAIT_MS),
        },
        deadline_s=TRANSACTION_S,
        driver_options=GUARDABLE,
    )
    sessions = make_sessions(engine, aggregatetypes=service.aggregatetypes)
    # A handler may use its session after the end of the transaction. That must not take a
    # connection from the pool.
    sessions.configure(close_resets_only=False)
    notify_after_commit(sessions, settings.database_url)
    return engine, sessions
