"""Whether first appearances in a topic are in the order that is promised.

Promised is, per key: if A's transaction committed before B's row was added, A appears before B.
Events added at the same time may come in either order, and their sequence numbers say nothing of
that: a transaction may take a low number and commit late. So B before A is a violation only where
A's transaction surely had ended when B's began:

- with ``track_commit_timestamp = on`` PostgreSQL knows when A committed. That moment is taken
  before the commit is on disk and seen by others, for which `VISIBLE_AFTER_S` is allowed;
- without, or for rows older than what it keeps, A is taken to have lasted `LONGEST_S`: requests
  have 5 s a statement and may idle for 10 s (shared/web/app.py).

All times are of the one database's clock. What can be neither shown to be wrong nor right is noted
as concurrent.
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
# Between the clock of the database and that of the relay, which stamps the records.
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
    """The name of the check."""
    return f"{flow.topic}: first appearances in order"


def look_at_order(scratch: Scratch, flow: Flow, check: Check) -> None:
    """Go through the topic, key by key, and note as suspects what came too late."""
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
            # This may be its second appearance: the first may lie before the topic's beginning.
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
    return f"Of key {key}, {show_uuid(newest_id)} comes before it, and was added after its commit"
