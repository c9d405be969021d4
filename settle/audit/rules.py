"""The rules of the audit: queries on the scratch database that find violations.

The two databases and the two topics were read at different times. The order of reading (run.py)
makes most rules exact. The other rules have queries for a second look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from settle.audit.flow import FLOWS, ORDERS, RESULTS

if TYPE_CHECKING:
    from settle.audit.flow import Flow

FINAL = "every order is final or explained"
CHARGES = "one charge per success, none per failure"


def events_check(flow: Flow) -> str:
    """Return the name of the check that compares outbox, topic and inbox."""
    return f"{flow.topic}: outbox, topic and inbox agree"


def effects_check(flow: Flow) -> str:
    """Return the name of the check that compares the inbox with the effects of its events."""
    return f"{flow.topic}: each applied exactly once"


@dataclass(frozen=True, slots=True)
class SecondLook:
    """A query that clears suspects.

    Args:
        service: the service whose database is queried.
        sql: returns those of ``:ids`` that are no violations.
    """

    service: str
    sql: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A query that finds one kind of violation.

    Args:
        check: the name of the check that the rule belongs to.
        kind: the kind of the violation.
        sql: returns the id and a detail of each suspect; it may use ``:source``.
        source: the service whose events are checked.
        second_looks: queries that clear suspects. Empty if the rule is exact.
    """

    check: str
    kind: str
    sql: str
    source: str = ""
    second_looks: tuple[SecondLook, ...] = ()


_ASKED = "= ANY(CAST(:ids AS uuid[]))"
_PLACED = SecondLook("orders", f"SELECT id FROM orders WHERE id {_ASKED}")  # noqa: S608
_SETTLED = SecondLook("orders", f"{_PLACED.sql} AND status <> 'created'")

# An open order waits for one of two events. Only some places of that event explain the wait
# (`_EXPLAINED`).
OPEN_ORDERS = """
    SELECT o.id, 'order.created' AS awaited, coalesce(
        (SELECT place FROM place e WHERE e.source = 'orders' AND e.order_id = o.id), 'missing'
    ) AS place
    FROM orders o LEFT JOIN payments p ON p.order_id = o.id
    WHERE coalesce(o.latest, o.status) = 'created' AND p.status IS NULL
    UNION ALL
    SELECT o.id, 'payment.' || p.status, coalesce(
        (SELECT place FROM place e WHERE e.source = 'payments' AND e.order_id = o.id), 'missing'
    )
    FROM orders o JOIN payments p ON p.order_id = o.id
    WHERE coalesce(o.latest, o.status) = 'created' AND p.status IS NOT NULL
"""
_EXPLAINED = "('pending', 'unread', 'refused', 'parked', 'dead letter')"

_OF_ORDERS = (
    Rule(
        FINAL,
        "hanging",
        f"""
        SELECT id, 'The order is created, and the ' || awaited || ' it waits for is ' || place
        FROM ({OPEN_ORDERS}) WHERE place NOT IN {_EXPLAINED}
        """,  # noqa: S608 - constants, as everywhere here
        second_looks=(_SETTLED,),
    ),
    Rule(
        CHARGES,
        "success without charge",
        """
        SELECT o.id, 'The payment is ' || coalesce(p.status, 'missing')
            || ', with ' || coalesce(p.charges, 0) || ' charges'
        FROM orders o LEFT JOIN payments p ON p.order_id = o.id
        WHERE o.status = 'success' AND (p.status IS NOT 'succeeded' OR p.charges IS NULL)
        """,
    ),
    Rule(
        CHARGES,
        "failure without decision",
        """
        SELECT o.id, 'The payment is ' || coalesce(p.status, 'missing')
        FROM orders o LEFT JOIN payments p ON p.order_id = o.id
        WHERE o.status = 'failed' AND p.status IS NOT 'failed'
        """,
    ),
    Rule(
        CHARGES,
        "failure with charge",
        """
        SELECT o.id, 'The order is failed, and charged with ' || p.charged
        FROM orders o JOIN payments p ON p.order_id = o.id
        WHERE o.status = 'failed' AND p.charges IS NOT NULL
        """,
    ),
    Rule(
        CHARGES,
        "charged more than once",
        "SELECT order_id, 'It has ' || charges || ' charges' FROM payments WHERE charges > 1",
    ),
    Rule(
        CHARGES,
        "payment and charge disagree",
        """
        SELECT order_id, 'The payment is ' || coalesce(status, 'missing')
            || ', with ' || coalesce(charges, 0) || ' charges'
        FROM payments WHERE (status IS 'succeeded') <> (charges IS NOT NULL)
        """,
    ),
    Rule(
        CHARGES,
        "another amount or user",
        """
        SELECT o.id, 'The order is of ' || o.amount || ', the payment of '
            || coalesce(p.amount, 'none') || ', the charge of ' || coalesce(p.charged, 'none')
        FROM orders o JOIN payments p ON p.order_id = o.id
        WHERE (p.status IS NOT NULL AND (p.amount <> o.amount OR p.user <> o.user))
            OR (p.charges = 1 AND (p.charged <> o.amount OR p.charged_user IS NOT o.user))
        """,
    ),
    Rule(
        CHARGES,
        "charge without order",
        """
        SELECT order_id, 'There is no such order; charged were ' || charged FROM payments
        WHERE charges IS NOT NULL AND order_id NOT IN (SELECT id FROM orders)
        """,
        second_looks=(_PLACED,),
    ),
    Rule(
        events_check(ORDERS),
        "no event",
        """
        SELECT o.id, 'The order has no order.created event' FROM orders o
        WHERE NOT EXISTS (SELECT 1 FROM outbox e WHERE e.source = 'orders' AND e.order_id = o.id)
            AND NOT id_dropped('orders', o.id)
        """,
    ),
    Rule(
        events_check(RESULTS),
        "no event",
        """
        SELECT p.order_id, 'The order is decided, and has no event' FROM payments p
        WHERE p.status IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM outbox e WHERE e.source = 'payments' AND e.order_id = p.order_id
        ) AND NOT time_dropped('payments', p.began_us)
        """,
    ),
    Rule(
        effects_check(ORDERS),
        "no effect",
        """
        SELECT e.id, 'It was applied, and its order has no payment'
        FROM inbox i JOIN outbox e ON e.source = i.source AND e.id = i.id
        LEFT JOIN payments p ON p.order_id = e.order_id
        WHERE i.source = 'orders' AND i.outcome = 'applied' AND p.status IS NULL
        """,
    ),
    Rule(
        effects_check(RESULTS),
        "no effect",
        """
        SELECT e.id, 'It was applied, a ' || e.type || ', and its order is '
            || coalesce(o.latest, o.status)
        FROM inbox i JOIN outbox e ON e.source = i.source AND e.id = i.id
        JOIN orders o ON o.id = e.order_id
        WHERE i.source = 'payments' AND i.outcome = 'applied' AND coalesce(o.latest, o.status)
            <> CASE e.type WHEN 'payment.succeeded' THEN 'success' ELSE 'failed' END
        """,
    ),
    Rule(
        effects_check(ORDERS),
        "effect without event",
        """
        SELECT p.order_id, 'The order is decided, and its order.created event was not applied'
        FROM stray s JOIN payments p ON p.order_id = s.order_id
        WHERE s.source = 'orders' AND p.status IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM place e WHERE e.source = 'orders' AND e.order_id = p.order_id
                AND e.place IN ('applied', 'forgotten'))
        """,
    ),
    Rule(
        effects_check(RESULTS),
        "effect without event",
        """
        SELECT o.id, 'The order is ' || o.status || ', and no result of it was applied'
        FROM stray s JOIN orders o ON o.id = s.order_id
        WHERE s.source = 'payments' AND o.status <> 'created' AND NOT EXISTS (
            SELECT 1 FROM place e WHERE e.source = 'payments' AND e.order_id = o.id
                AND e.place IN ('applied', 'forgotten'))
        """,
    ),
)


def _of_events(flow: Flow) -> tuple[Rule, ...]:
    received = (
        SecondLook(flow.target, f"SELECT id FROM inbox WHERE id {_ASKED}"),  # noqa: S608
        SecondLook(
            flow.target,
            f"SELECT event_id FROM dead_letters WHERE event_id {_ASKED}",  # noqa: S608
        ),
    )
    queued_again = SecondLook(flow.source, f"SELECT id FROM outbox_pending WHERE id {_ASKED}")  # noqa: S608
    published = SecondLook(flow.source, f"SELECT id FROM outbox WHERE id {_ASKED}")  # noqa: S608
    return (
        Rule(
            events_check(flow),
            "lost",
            """
            SELECT id, 'It is marked as sent, and is neither in the topic nor in the inbox'
            FROM stray WHERE source = :source AND place = 'lost'
            """,
            flow.source,
            (*received, queued_again),
        ),
        Rule(
            events_check(flow),
            "not received",
            """
            SELECT s.id, 'It is in partition ' || t.partition || ' at ' || t.offset
                || ', which the consumers have passed, and not in the inbox'
            FROM stray s JOIN topic t ON t.source = s.source AND t.id = s.id
            WHERE s.source = :source AND s.place = 'not received'
            """,
            flow.source,
            received,
        ),
        Rule(
            events_check(flow),
            "unknown in the topic",
            """
            SELECT t.id, 'It is in partition ' || t.partition || ' at ' || t.offset
                || ', and in no outbox'
            FROM topic t WHERE t.source = :source AND NOT EXISTS (
                SELECT 1 FROM outbox e WHERE e.source = t.source AND e.id = t.id
            ) AND NOT id_dropped(t.source, t.id)
            """,
            flow.source,
            (published,),
        ),
        Rule(
            events_check(flow),
            "unknown in the inbox",
            """
            SELECT i.id, 'It is in the inbox, ' || i.outcome || ', and in no outbox'
            FROM inbox i WHERE i.source = :source AND NOT EXISTS (
                SELECT 1 FROM outbox e WHERE e.source = i.source AND e.id = i.id
            ) AND NOT id_dropped(i.source, i.id)
            """,
            flow.source,
            (published,),
        ),
        Rule(
            events_check(flow),
            "more than one event",
            """
            SELECT order_id, 'The order has ' || count(*) || ' events'
            FROM outbox WHERE source = :source AND order_id IS NOT NULL
            GROUP BY order_id HAVING count(*) > 1
            """,
            flow.source,
        ),
        Rule(
            effects_check(flow),
            "applied more than once",
            """
            SELECT order_id, 'Of its events ' || sum(place = 'applied') || ' are applied'
            FROM place WHERE source = :source AND order_id IN (
                SELECT order_id FROM outbox WHERE source = :source AND order_id IS NOT NULL
                GROUP BY order_id HAVING count(*) > 1
            ) GROUP BY order_id HAVING sum(place = 'applied') > 1
            """,
            flow.source,
        ),
    )


RULES = (*_OF_ORDERS, *(rule for flow in FLOWS for rule in _of_events(flow)))
