"""docs/reference/events.md describes the events that the services publish."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from services.orders.events import order_created
from services.orders.models import Order
from services.payments.charges import Charge, ChargeResult, Reason
from services.payments.events import payment_decided
from settle_outbox.publish.pending import PendingEvent
from settle_outbox.publish.sender import event_headers
from settle_outbox.service import load_service
from settle_outbox.trace import Trace

if TYPE_CHECKING:
    from settle_outbox import Event

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "events.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

ORDER, USER = UUID(int=1, version=4), UUID(int=2, version=4)
CHARGE = Charge(ORDER, USER, 3900, Trace())
EVENTS = [
    order_created(Order(id=ORDER, user_id=USER, amount=3900, created_at=datetime.now(UTC))),
    payment_decided(ChargeResult(CHARGE, 100, None)),
    payment_decided(ChargeResult(CHARGE, 100, Reason.INSUFFICIENT_FUNDS)),
]


def names(text: str) -> list[str]:
    """Return the names in backticks in the first cells of the tables."""
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)]


def test_every_type_that_is_consumed_or_published_is_described() -> None:
    consumed = {
        each.type for name in ("orders", "payments") for each in load_service(name).subscriptions
    }

    assert set(SECTIONS) == consumed == {event.type for event in EVENTS}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_the_fields_are_those_of_the_event(event: Event) -> None:
    section = SECTIONS[event.type]
    (example,) = re.findall(r"```json\n(.*?)\n```", section)

    assert f"| topic | `{event.aggregatetype}.events` |" in section
    assert names(section) == list(event.data)
    assert list(json.loads(example)) == list(event.data)


def test_the_headers_are_those_of_a_record() -> None:
    now = datetime.now(UTC)
    sent = PendingEvent(ORDER, 1, 0, "orders", str(USER), "order.created", b"{}", "r", "t", now)
    headers = [name for name, _ in event_headers(sent, b"/orders")]

    assert names(PAGE.partition("## `")[0]) == headers
