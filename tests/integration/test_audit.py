"""The audit: it sees each kind of trouble, by its id, and none where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle.audit import Report, audit
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.delivery import Delivery


def look(delivery: Delivery, second_look_s: float = 10) -> Report:
    return audit(
        delivery.settings("payments"), delivery.settings("orders"), second_look_s=second_look_s
    )


def test_clean(delivery: Delivery) -> None:
    user_id = delivery.open_account(1_000)
    with (
        delivery.relay("orders"),
        delivery.consumer("payments"),
        delivery.relay("payments"),
        delivery.consumer("orders"),
    ):
        delivery.place(user_id, 30, count=40)
        wait_until(lambda: delivery.statuses() == {"success": 33, "failed": 7}, timeout_s=60)
    report = look(delivery)
    assert report.clean, report
