"""A program for tests: a consumer of orders that handles numbers, and dies at some of them.

It calls `os._exit` at a number that the environment variable FATAL lists. It does so in the
handler, or, if IN_SCHEMA is set, while it reads the record's data.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from settle_outbox import Service, Subscription
from settle_outbox.cli.common import stop_on_signals
from settle_outbox.consume.consumer import Consumer
from settle_outbox.log import configure_logging
from settle_outbox.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from settle_outbox import ReceivedEvent

EXIT_CODE = 9
_FATAL = {int(number) for number in os.environ.get("FATAL", "").split()}
_IN_SCHEMA = "IN_SCHEMA" in os.environ


def _read(data: Mapping[str, Any]) -> Mapping[str, Any]:
    if _IN_SCHEMA and data["number"] in _FATAL:
        os._exit(EXIT_CODE)
    return data


def _handle(_: Session, events: Sequence[ReceivedEvent]) -> None:
    if any(event.data["number"] in _FATAL for event in events):
        os._exit(EXIT_CODE)


def main() -> None:
    """Consume until SIGTERM, or until a fatal number."""
    settings = read_settings("orders")
    configure_logging(level=settings.log_level, form=settings.log_format)
    subscription = Subscription("orders.events", "number", _read, _handle)
    Consumer(Service("orders", ("orders",), (subscription,)), settings, stop_on_signals()).run()


if __name__ == "__main__":
    main()
