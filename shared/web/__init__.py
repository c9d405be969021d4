"""What every Flask service here shares: the app factory, problems, bodies, paging, health.

It knows nothing of the delivery engine: a service wires the two.
"""

from shared.web.app import POOL_SIZE, SESSION_SETTINGS, make_app
from shared.web.blueprint import Blueprint
from shared.web.paging import Cursor, CursorField, Limit, next_link
from shared.web.sessions import transaction

__all__ = [
    "POOL_SIZE",
    "SESSION_SETTINGS",
    "Blueprint",
    "Cursor",
    "CursorField",
    "Limit",
    "make_app",
    "next_link",
    "transaction",
]
