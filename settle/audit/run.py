"""Run an audit, from the first query to the report.

Two databases and two topics have no common snapshot. They are read in the order in which an order
passes through them. So an event that had passed a place when that place was read must be found in
the next place. The statuses of orders are read twice: first, and again at the end. An event that
arrived while the audit ran is unknown to the places that were read before. Such events are
suspects: the audit looks them up again by id, in the place that they must have come from.
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
from settle.audit.money import MONEY, check_money
from settle.audit.report import Check, Report, Violation
from settle.audit.retention import add_retention_functions
from settle.audit.rules import CHARGES, FINAL, OPEN_ORDERS, RULES, effects_check, events_check
from settle.audit.scratch import open_scratch
from settle.audit.second_look import drop_cleared
from settle.audit.sequence import check_order, order_check
from settle.audit.topics import TopicContent, read_topic
from settle.progress import Steps
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
    steps: Steps | None = None,
) -> Report:
    """Reconcile both databases and both topics. Orders may be placed meanwhile.

    It reads everything, and writes nothing but a temporary file.

    Args:
        payments: the settings of payments.
        orders: the settings of orders; they name the broker.
        second_look_s: the time until a suspect counts as a violation, in seconds.
        steps: shows the progress; None shows nothing.

    Raises:
        AuditError: a topic cannot be read to its end.
        KafkaError: the broker cannot be reached, or refuses a request.
        SQLAlchemyError: a database cannot be reached, or refuses a query.
    """
    began = time.monotonic()
    with open_scratch() as scratch:
        settings = {"payments": payments, "orders": orders}
        audit = _Audit(scratch, settings, steps or Steps(lambda _: None))
        audit.read()
        audit.judge(second_look_s)
        return Report(list(audit.checks.values()), time.monotonic() - began)


class _Audit:
    def __init__(self, scratch: Scratch, settings: dict[str, Settings], steps: Steps) -> None:
        self._scratch = scratch
        self._settings = settings
        self._steps = steps
        self._days: dict[str, set[datetime]] = {}
        self._topics: dict[str, TopicContent] = {}
        self._foreign: dict[str, int] = {}
        names = [FINAL, CHARGES, MONEY]
        for flow in FLOWS:
            names += [events_check(flow), order_check(flow), effects_check(flow)]
        self.checks = {name: Check(name) for name in names}

    def read(self) -> None:
        """Read everything, upstream first."""
        scratch = self._scratch
        with (
            snapshot(self._settings["orders"]) as database,
            self._steps.step("orders: orders and outbox") as step,
        ):
            read_orders(database, scratch, step)
            self._days["orders"] = read_outbox(database, scratch, ORDERS, step)
        self._read_topic(ORDERS)
        with snapshot(self._settings["payments"]) as database:
            with self._steps.step("payments: payments, outbox and inbox") as step:
                read_payments(database, scratch, step)
                self._days["payments"] = read_outbox(database, scratch, RESULTS, step)
                self._foreign["orders"] = read_inbox(database, scratch, ORDERS, step)
            with self._steps.step("payments: balances and transfers"):
                check_money(database, self.checks[MONEY])
        self._read_topic(RESULTS)
        with (
            snapshot(self._settings["orders"]) as database,
            self._steps.step("orders: inbox") as step,
        ):
            self._foreign["payments"] = read_inbox(database, scratch, RESULTS, step)
            read_latest_statuses(database, scratch)

    def _read_topic(self, flow: Flow) -> None:
        with self._steps.step(f"{flow.topic}: records") as step:
            self._topics[flow.source] = read_topic(
                self._settings[flow.target], self._scratch, flow, step
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
        """Find suspects, look them up again, and report the rest as violations."""
        with self._steps.step("comparing"):
            add_retention_functions(self._scratch, self._days)
            self._read_subscriptions()
            self._scratch.compute_places()
            for rule in RULES:
                self._scratch.add_suspects(rule.check, rule.kind, rule.sql, source=rule.source)
            for flow in FLOWS:
                check_order(self._scratch, flow, self.checks[order_check(flow)])
        with self._steps.step("second look"):
            drop_cleared(self._scratch, self._settings, second_look_s)
        self._count()
        for name, kind, id_, detail in self._scratch.rows("SELECT * FROM suspect"):
            self.checks[name].add(Violation(kind, show_uuid(id_), detail))

    def _count(self) -> None:
        """Count what was read, and add the notes to the checks."""
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
