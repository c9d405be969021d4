"""What every Flask service here shares: the app factory, problems, bodies, paging, health.

It knows nothing of the delivery engine: a service wires the two.
"""

from shared.web.app import POOL_SIZE, SESSION_SETTINGS, THREADS, TRANSACTION_S, make_app
from shared.web.blueprint import Blueprint
from shared.web.idempotency import created_id, note_created
from shared.web.kinds import Kind
from shared.web.paging import PAGE_BYTES_MAX, CursorField, Limit, Paging, read_paging
from shared.web.sessions import session_factory, transaction
from shared.web.waiting import Waiters, current_waiters, register_waiters

__all__ = [
    "PAGE_BYTES_MAX",
    "POOL_SIZE",
    "SESSION_SETTINGS",
    "THREADS",
    "TRANSACTION_S",
    "Blueprint",
    "CursorField",
    "Kind",
    "Limit",
    "Paging",
    "Waiters",
    "created_id",
    "current_waiters",
    "make_app",
    "note_created",
    "read_paging",
    "register_waiters",
    "session_factory",
    "transaction",
]
