"""The clocks of this machine and of the databases: how far apart they are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from settle_outbox.checks.check import duration, grade
from settle_outbox.checks.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from settle_outbox.checks.check import Finding

SKEW_WARN_S = 1.0
SKEW_FAIL_S = 30.0
# Number of round trips. The fastest is the most exact.
TRIES = 5
REMEDY = "synchronise the clocks of all machines by NTP (chrony, systemd-timesyncd)"


def check_clocks(urls: Mapping[str, str]) -> Iterator[Finding]:
    """Compare this machine's clock with each database's, and those of the first two databases."""
    offsets_s = {}
    for service, url in urls.items():
        with Database(service, url) as database:
            offsets_s[service] = _offset_s(database)
        yield _judge(f"{service} clock", offsets_s[service], "this machine's")
    if len(offsets_s) > 1:
        one, other = sorted(offsets_s)[:2]
        # Both offsets are measured by this machine's clock, so the error of this clock cancels out.
        apart_s = offsets_s[one] - offsets_s[other]
        yield _judge("clocks apart", apart_s, f"that of {other}", f"that of {one} ")


def _offset_s(database: Database) -> float:
    """Return the offset of a database's clock, minus the uncertainty of the round trip."""
    best_s, offset_s = float("inf"), 0.0
    for _ in range(TRIES):
        before, began = time.time(), time.monotonic()
        ((theirs,),) = database.ask("SELECT extract(epoch FROM clock_timestamp())::float")
        took_s = time.monotonic() - began
        if took_s < best_s:
            best_s, offset_s = took_s, theirs - (before + took_s / 2)
    uncertain_s = min(abs(offset_s), best_s / 2)
    return offset_s - uncertain_s if offset_s > 0 else offset_s + uncertain_s


def _judge(name: str, offset_s: float, other: str, subject: str = "") -> Finding:
    direction = "ahead of" if offset_s > 0 else "behind"
    return grade(
        name,
        abs(offset_s),
        f"{subject}{duration(abs(offset_s))} {direction} {other}",
        REMEDY,
        warn_over=SKEW_WARN_S,
        fail_over=SKEW_FAIL_S,
    )
