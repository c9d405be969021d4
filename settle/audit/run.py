"""An audit, from the first reading to the report.

Two databases and two topics have no common snapshot. They are read in the order in which an order
goes through them: what is downstream was read after what is upstream, and so whatever was through
one place must have come to the next. Only the order's status is read first, and again at the end.
What came in meanwhile is unknown to what was read first: the unknown are suspects, and are asked
for again, by their ids, where they must have come from.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from settle.audit.databases import (
    read_inbox,
    read_latest_statuses,
    read_orders,
    read_outbox,
    read_payments,
    snapshot,
)
from settle.audit.flow import FLOWS, ORDERS, RESULTS, Flow
from settle.audit.ids import show_uuid
from settle.audit.money import MONEY, look_at_money
from settle.audit.report import Check, Report, Violation
from settle.audit.retention import tell_retention
from settle.audit.rules import CHARGES, FINAL, OPEN_ORDERS, RULES, effects_check, events_check
from settle.audit.scratch import open_scratch
from settle.audit.second_look import look_again
from settle.audit.sequence import look_at_order, order_check
from settle.audit.shown import Bars
from settle.audit.topics import TopicSeen, read_topic
from settle_outbox.service import load_service

if TYPE_CHECKING:
    from datetime import datetime

    from settle.audit.scratch import Scratch
    from settle_outbox.settings import Settings

SECOND_LOOK_S = 10.0


def audit(
    payments: Settings,
    orders: Settings,
    *,
    second_look_s: float = SECOND_LOOK_S,
    bars: Bars | None = None,
) -> Report:
    """Reconcile both databases and both topics. Orders may be placed meanwhile.

    It reads all there is and writes nothing but a temporary file. A million orders were seen to
    take 150 MB of memory.

    Args:
        payments: of a process of payments.
        orders: of a process of orders; the broker is the one named here.
        second_look_s: how long a suspect may take to be well.
        bars: show how far it is; None shows nothing.

    Raises:
        AuditError: a topic cannot be read to its end.
        KafkaError: the broker cannot be reached, or refuses.
        SQLAlchemyError: a database cannot be reached, or refuses.
    """
    began = time.monotonic()
    with open_scratch() as scratch:
        auditing = _Audit(scratch, {"payments": payments, "orders": orders}, bars or Bars())
        auditing.read()
        auditing.judge(second_look_s)
        return Report(list(auditing.checks.values()), time.monotonic() - began)


class _Audit:
    def __init__(self, scratch: Scratch, settings: dict[str, Settings], bars: Bars) -> None:
        self._scratch = scratch
        self._settings = settings
        self._bars = bars
        self._days: dict[str, set[datetime]] = {}
        self._topics: dict[str, TopicSeen] = {}
        self._foreign: dict[str, int] = {}
        names = [FINAL, CHARGES, MONEY]
        for flow in FLOWS:
            names += [events_check(flow), order_check(flow), effects_check(flow)]
        self.checks = {name: Check(name) for name in names}

    def read(self) -> None:
        """Read everything, upstream first."""
        scratch = self._scratch
        with snapshot(self._settings["orders"]) as found:
            total = found.count("orders", "outbox")
            with self._bars.bar("orders: orders and outbox", total) as tell:
                read_orders(found, scratch, tell)
                self._days["orders"] = read_outbox(found, scratch, ORDERS, tell)
        self._read_topic(ORDERS)
        with snapshot(self._settings["payments"]) as found:
            total = found.count("payments", "outbox", "inbox")
            with self._bars.bar("payments: payments, outbox and inbox", total) as tell:
                read_payments(found, scratch, tell)
                self._days["payments"] = read_outbox(found, scratch, RESULTS, tell)
                self._foreign["orders"] = read_inbox(found, scratch, ORDERS, tell)
            with self._bars.bar("payments: balances and transfers", None):
                look_at_money(found, self.checks[MONEY])
        self._read_topic(RESULTS)
        with snapshot(self._settings["orders"]) as found:
            total = found.count("inbox")
            with self._bars.bar("orders: inbox", total) as tell:
                self._foreign["payments"] = read_inbox(found, scratch, RESULTS, tell)
                read_latest_statuses(found, scratch)

    def _read_topic(self, flow: Flow) -> None:
        with self._bars.bar(f"{flow.topic}: records", None) as tell:
            self._topics[flow.source] = read_topic(
                self._settings[flow.target], self._scratch, flow, tell
            )

    def _read_subscriptions(self) -> None:
        for flow in FLOWS:
            self._scratch.add(
                "INSERT INTO subscribed VALUES (?, ?)",
                (
                    (flow.source, each.type)
                    for each in load_service(flow.target).subscriptions
                    if each.topic == flow.topic
                ),
            )

    def judge(self, second_look_s: float) -> None:
        """Find suspects, look at them again, and tell of those that are left."""
        with self._bars.bar("comparing", len(RULES) + 1 + len(FLOWS)) as tell:
            tell_retention(self._scratch, self._days)
            self._read_subscriptions()
            self._scratch.place_events()
            tell(1)
            for rule in RULES:
                self._scratch.suspect(rule.check, rule.kind, rule.sql, source=rule.source)
                tell(1)
            for flow in FLOWS:
                look_at_order(self._scratch, flow, self.checks[order_check(flow)])
                tell(1)
        with self._bars.bar("second look", None):
            look_again(self._scratch, self._settings, second_look_s)
        self._count()
        for name, kind, id_, detail in self._scratch.rows("SELECT * FROM suspect"):
            self.checks[name].add(Violation(kind, show_uuid(id_), detail))

    def _count(self) -> None:
        """Say how much was seen, and what is worth knowing of it."""
        rows = self._scratch.count
        self.checks[FINAL].seen = rows("orders")
        open_orders = f"SELECT awaited, place, count(*) FROM ({OPEN_ORDERS}) GROUP BY 1, 2"  # noqa: S608
        for awaited, place, count in self._scratch.rows(open_orders):
            self.checks[FINAL].note(f"open: {awaited} {place}", count)
        self.checks[CHARGES].seen = rows("orders") + rows("payments")
        for flow in FLOWS:
            self._count_events(flow)

    def _count_events(self, flow: Flow) -> None:
        rows, source = self._scratch.count, flow.source
        check, topic = self.checks[events_check(flow)], self._topics[source]
        received = rows("inbox", source) + self._foreign[source]
        check.seen = rows("outbox", source) + topic.records + received
        places = "SELECT place, count(*) FROM stray WHERE source = :source GROUP BY 1"
        for place, count in self._scratch.rows(places, source=source):
            check.note(place, count)
        check.note("sent again", topic.records - topic.foreign - rows("topic", source))
        check.note("foreign in the topic", topic.foreign)
        check.note("batches that could not be read", topic.unreadable)
        for place in topic.places:
            check.note(f"unreadable: {place}", 1)
        check.note("offsets behind an open transaction", topic.behind_open)
        self.checks[effects_check(flow)].seen = received
        self.checks[effects_check(flow)].note("foreign", self._foreign[source])
