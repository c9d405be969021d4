"""A relay and a consumer lose nothing when their clock is wrong by days."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from support.delivery import PAYMENTS
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from support.delivery import Delivery

# Python runs this before all other code. time.time() and datetime.now() then return a wrong time.
CLOCK = """
import datetime, time
AHEAD = {ahead_s}
true_time, true_datetime = time.time, datetime.datetime
class Wrong(true_datetime):
    @classmethod
    def now(cls, tz=None):
        return true_datetime.now(tz) + datetime.timedelta(seconds=AHEAD)
time.time = lambda: true_time() + AHEAD
datetime.datetime = Wrong
"""
COUNTS = "SELECT (SELECT count(*) FROM inbox), (SELECT count(*) FROM outbox)"
PARTITIONS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits"
    " WHERE inhparent IN ('inbox'::regclass, 'outbox'::regclass) ORDER BY 1"
)


@pytest.mark.parametrize("days", [40, -40])
def test_processes_whose_clock_is_wrong_by_days_drop_nothing(
    delivery: Delivery, tmp_path: Path, days: int
) -> None:
    user = delivery.open_account(100)
    with delivery.relay("orders"), delivery.relay("payments"), delivery.consumer("payments"):
        delivery.place(user, 1, count=3)
        wait_until(lambda: delivery.received("payments") == 3, timeout_s=30, what="three orders")
        delivery.wait_sent("payments")
    before = delivery.query("payments", PARTITIONS)
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(ahead_s=days * 86_400))
    wrong = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    with (
        delivery.process("outbox-relay", "run", "payments", **wrong) as relay,
        delivery.process("inbox-consumer", "run", "payments", **wrong) as consumer,
        delivery.relay("orders"),
    ):
        delivery.place(user, 1)
        wait_until(lambda: delivery.received("payments") == 4, timeout_s=60, what="the next order")
        for process in (relay, consumer):
            process.wait_logged("clock.skew")
            (skew,) = process.logged("clock.skew")
            assert skew["seconds"] == pytest.approx(days * 86_400, abs=60)
        delivery.wait_sent("payments")
    assert delivery.query("payments", PARTITIONS) == before
    assert delivery.query("payments", COUNTS) == [(4, 4)]
    # Retention depends on the timestamps of the records, so they must come from the broker's clock.
    times = [record.timestamp / 1000 for record in delivery.records(PAYMENTS)]
    assert len(times) == 4
    assert all(abs(each - time.time()) < 600 for each in times)
    assert delivery.query("payments", "SELECT before FROM inbox_horizon") == []
    assert delivery.balance(user) == 96
