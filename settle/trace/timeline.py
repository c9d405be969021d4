"""Put together what happened to an order, step by step, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from settle.trace import queries

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, RowMapping

    from settle.trace.record_times import RecordTimes


# The reason of an order that waits for nothing.
FINAL = "final"


class Step(NamedTuple):
    """Something that happened to an order.

    Args:
        name: a stable short name, such as ``received``.
        service: where.
        at: when; None if unknown.
        detail: more about it, for JSON.
    """

    name: str
    service: str
    at: datetime | None
    detail: dict[str, Any]


class Wait(NamedTuple):
    """What an order waits for.

    Args:
        reason: a stable short name, such as ``unsent``; ``final`` if it waits for nothing.
        sentence: the same for a person.
        command: what to run next; empty if nothing has to be done.
    """

    reason: str
    sentence: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is known of an order.

    Args:
        order: its row.
        wait: what it waits for.
        steps: what happened, in the order of time.
    """

    order: RowMapping
    wait: Wait
    steps: list[Step] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the timeline in types that JSON can hold."""
        return {
            "order_id": str(self.order["id"]),
            "user_id": str(self.order["user_id"]),
            "amount": self.order["amount"],
            "status": self.order["status"],
            "wait": self.wait._asdict(),
            "steps": [
                each._asdict() | {"at": None if each.at is None else each.at.isoformat()}
                for each in self.steps
            ],
        }


class Tracer:
    """Traces orders through both databases.

    Args:
        orders: a connection to the database of orders.
        payments: a connection to the database of payments.
        times: reads the times of records from Kafka.
    """

    def __init__(self, orders: Connection, payments: Connection, times: RecordTimes) -> None:
        self._databases = {"orders": orders, "payments": payments}
        self._times = times

    def trace(self, order_id: UUID) -> Timeline | None:
        """Return what is known of an order, or None if orders does not have it."""
        order = queries.read_order(self._databases["orders"], order_id)
        if order is None:
            return None
        steps = [Step("accepted", "orders", order["created_at"], {})]
        wait = self._follow_event(
            steps, order, ("orders", "payments"), key=order["user_id"], at=order["created_at"]
        )
        payment = queries.read_payment(self._databases["payments"], order_id)
        if payment is not None:
            name = "charged" if payment["status"] == "succeeded" else "not_charged"
            steps.append(
                Step(name, "payments", payment["created_at"], {"reason": payment["reason"]})
            )
            wait = self._follow_event(
                steps, order, ("payments", "orders"), key=order_id, at=payment["created_at"]
            )
        if order["status"] != "created":
            steps.append(
                Step(order["status"], "orders", order["updated_at"], _failure_detail(order))
            )
            wait = _final_wait(order, payment)
        shown = {step.detail.get("event_id") for step in steps}
        steps += [
            Step(
                "anomaly", "orders", row["received_at"], {"event_id": str(row["id"])} | _detail(row)
            )
            for row in queries.read_anomalies(self._databases["orders"], order_id)
            if str(row["id"]) not in shown
        ]
        if wait is None and self._has_changed(order):
            return self.trace(order_id)
        return Timeline(order, wait or _UNDECIDED, _by_time(steps))

    def _has_changed(self, order: RowMapping) -> bool:
        """Return whether an order became final after it was read."""
        again = queries.read_order(self._databases["orders"], order["id"])
        return again is not None and again["status"] != order["status"]

    def _follow_event(
        self,
        steps: list[Step],
        order: RowMapping,
        flow: tuple[str, str],
        *,
        key: UUID,
        at: datetime,
    ) -> Wait | None:
        """Add the steps of an event from one service to the other.

        Returns:
            What the event waits for; None if the inbox has it, and it was not parked.
        """
        publisher, consumer = flow
        event = queries.read_event(self._databases[publisher], order["id"], key=key, at=at)
        if event is None:
            return Wait(
                "event_gone",
                f"The outbox of {publisher} has no event about it any more. It is older than"
                " OUTBOX_RETENTION_S, or the database was restored.",
                "settle audit",
            )
        ids = {"event_id": str(event["id"]), "request_id": event["request_id"]}
        steps.append(Step("event_added", publisher, event["created_at"], ids))
        received = queries.read_received(self._databases[consumer], event["id"])
        if received is not None:
            place = (received["topic"], received["partition"], received["offset"])
            record = dict(zip(("topic", "partition", "offset"), place, strict=True))
            steps.append(Step("sent", publisher, self._times.sent_at(*place), record))
            outcome = {"outcome": received["outcome"]} | _detail(received)
            steps.append(Step("received", consumer, received["received_at"], outcome))
        letter = self._add_dead_letters(steps, consumer, event["id"])
        if received is not None and received["outcome"] != "parked":
            return None
        if letter is not None:
            return letter
        return self._where_event_waits(publisher, consumer, event)

    def _add_dead_letters(self, steps: list[Step], consumer: str, event_id: UUID) -> Wait | None:
        """Add the dead letters of an event and their repairs; return what the last waits for."""
        wait, previous_id = None, None
        for row in queries.read_dead_letters(self._databases[consumer], event_id):
            if row["id"] != previous_id:
                previous_id = row["id"]
                detail = {"id": row["id"], "reason": row["reason"], "detail": row["detail"]}
                steps.append(Step("dead_letter", consumer, row["parked_at"], detail))
            if row["answer"] is not None:
                answer = {
                    "answer": row["answer"],
                    "detail": row["answer_detail"],
                    "requested_by": row["requested_by"],
                }
                steps.append(Step(row["action"], consumer, row["answered_at"], answer))
            wait = Wait(
                "dead_letter",
                f"Its event is dead letter {row['id']} of {consumer} ({row['state']}):"
                f" {row['reason']}. {row['detail']}",
                f"inbox-consumer dead-letters show {consumer} {row['id']}",
            )
        return wait

    def _where_event_waits(self, publisher: str, consumer: str, event: RowMapping) -> Wait:
        if event["refused"] is not None:
            return Wait(
                "refused",
                f"The relay of {publisher} cannot send its event: {event['refused']}",
                f"outbox-relay refused show {publisher} {event['id']}",
            )
        if event["unsent"]:
            # Kafka is not asked here, but RecordTimes may have asked it before.
            cause = " Kafka does not answer." if self._times.is_away else ""
            return Wait(
                "unsent",
                f"Its event waits for the relay of {publisher}.{cause}",
                f"outbox-relay healthcheck {publisher}",
            )
        database = self._databases[consumer]
        attempts = queries.read_attempts(database, event["id"])
        if attempts is not None:
            return Wait(
                "retrying",
                f"Its event is tried again by {consumer}, after {attempts['attempts']} attempts:"
                f" {attempts['reason']}. {attempts['detail']}",
            )
        if queries.is_stopped(database, event["type"]):
            return Wait(
                "stopped",
                f"The subscription of {consumer} to {event['type']} is stopped.",
                f"settle doctor {consumer}",
            )
        return Wait(
            "not_received",
            f"Its event was sent, and {consumer} has not received it.",
            f"inbox-consumer healthcheck {consumer}",
        )


_UNDECIDED = Wait(
    "undecided",
    "Its event was applied, and nothing was decided. That must not happen.",
    "settle audit",
)


def _by_time(steps: list[Step]) -> list[Step]:
    """Sort steps by time. A step without a time stays after the step before it.

    Kafka's times are in milliseconds, so the steps of a millisecond keep the order of the flow.
    """
    times: list[int] = []
    for step in steps:
        times.append(times[-1] if step.at is None else int(step.at.timestamp() * 1000))
    numbers = sorted(range(len(steps)), key=times.__getitem__)
    return [steps[number] for number in numbers]


def _final_wait(order: RowMapping, payment: RowMapping | None) -> Wait:
    """Return the wait of a final order. An order that contradicts its payment needs an audit."""
    status = order["status"]
    if payment is None or (payment["status"] == "succeeded") == (status == "success"):
        return Wait(FINAL, f"The order is final: {status}.")
    charged = "charged" if payment["status"] == "succeeded" else "not charged"
    return Wait(FINAL, f"The order is {status}, but it was {charged}.", "settle audit")


def _detail(row: RowMapping) -> dict[str, Any]:
    return {"detail": row["detail"]} if row["detail"] else {}


def _failure_detail(order: RowMapping) -> dict[str, Any]:
    return {"reason": order["failure_reason"]} if order["failure_reason"] else {}
