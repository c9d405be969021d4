"""Transactional outbox, relay, inbox and dead letters, for any service.

A service adds events in its transactions with `add`, describes itself with a `Service`, and creates
the tables of settle_outbox in its migrations with `settle_outbox.storage.migrations`.
"""

if __name__ != "settle_outbox":
    raise ImportError("Import it as settle_outbox. Another name would copy its state.")

from settle_outbox.event import Event, ReceivedEvent
from settle_outbox.notifications.notify import announce, notify_after_commit
from settle_outbox.notifications.watcher import NotificationWatcher
from settle_outbox.publish.outbox import (
    EventTooLargeError,
    InvalidEventError,
    UndeclaredAggregateTypeError,
    add,
    add_all,
)
from settle_outbox.service import (
    Handler,
    Outcome,
    Retry,
    Service,
    Subscription,
    Verdict,
    one_by_one,
)

__all__ = [
    "Event",
    "EventTooLargeError",
    "Handler",
    "InvalidEventError",
    "NotificationWatcher",
    "Outcome",
    "ReceivedEvent",
    "Retry",
    "Service",
    "Subscription",
    "UndeclaredAggregateTypeError",
    "Verdict",
    "add",
    "add_all",
    "announce",
    "notify_after_commit",
    "one_by_one",
]
