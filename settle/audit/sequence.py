"""Check that first appearances in a topic are in the promised order.

The promise for two events of a key: if A's transaction committed before B's row was added, A
appears before B. Events added at the same time may appear in either order. Their sequence numbers
do not show which event was first: a transaction may take a low number and commit late. So B before
A is a violation only if A's transaction had certainly ended when B's began:

- With ``track_commit_timestamp = on`` PostgreSQL knows when A committed. It takes that time before
  the commit is on disk and visible, so `VISIBLE_AFTER_S` is added.
- Otherwise, or if PostgreSQL has dropped that time, A is assumed to have lasted `LONGEST_S`. A
  transaction of the API takes less: it has 5 s per statement, and may be idle for 10 s
  (shared/web/app.py). A key of payments has only one event, so there are no pairs.

All times are from the clock of one database. Pairs that prove nothing are noted as concurrent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle.audit.ids import show_uuid

if TYPE_CHECKING:
    from settle.audit.flow import Flow
    from settle.audit.report import Check
    from settle.audit.scratch import Scratch

VISIBLE_AFTER_S = 1
LONGEST_S = 60
# Maximum difference between the database's clock and the relay's, which gives records their time.
CLOCK_SKEW_S = 5
_US = 1_000_000

_APPEARANCES = """
SELECT t.partition, e.key, e.id, e.seq, e.began_us, e.committed_us,
    CASE WHEN p.first_offset > 0 THEN p.first_ms END
FROM topic t
JOIN outbox e ON e.source = t.source AND e.id = t.id
JOIN partition p ON p.source = t.source AND p.number = t.partition
WHERE t.source = :source
ORDER BY t.partition, e.key, t.offset
"""


def order_check(flow: Flow) -> str:
    """Return the name of the check."""
    return f"{flow.topic}: first appearances in order"


def check_order(scratch: Scratch, flow: Flow, check: Check) -> None:
    """Read the topic key by key, and store events that came too late as suspects."""
    place: tuple[int, str] | None = None
    newest_us, newest_id, highest_seq = 0, b"", 0
    for partition, key, id_, seq, began_us, committed_us, begin_ms in scratch.rows(
        _APPEARANCES, source=flow.source
    ):
        check.seen += 1
        if place != (partition, key):
            place = (partition, key)
            newest_us, newest_id, highest_seq = began_us, id_, seq
            continue
        ended_us = (
            committed_us + VISIBLE_AFTER_S * _US if committed_us else began_us + LONGEST_S * _US
        )
        if begin_ms is not None and began_us < (begin_ms / 1000 + CLOCK_SKEW_S) * _US:
            # It may be the second appearance: the first one may have been deleted from the topic.
            check.note("not judged: near the topic's beginning", 1)
        elif ended_us < newest_us:
            late = (check.name, "too late", id_, _detail(newest_id, key))
            scratch.add("INSERT OR IGNORE INTO suspect VALUES (?, ?, ?, ?)", [late])
        elif seq < highest_seq:
            check.note("concurrent", 1)
        if began_us > newest_us:
            newest_us, newest_id = began_us, id_
        highest_seq = max(highest_seq, seq)


def _detail(newest_id: bytes, key: str) -> str:
    return f"It was committed before {show_uuid(newest_id)} of key {key} was added, but comes later"
