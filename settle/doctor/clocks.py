"""How far apart the clocks are: of this machine, of each database, and of what was sent last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from settle.doctor.check import duration, graded
from settle.doctor.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from settle.doctor.check import Check

SKEW_WARN_S = 1.0
SKEW_FAIL_S = 30.0
# Of so many tries, the one that was answered soonest is the most exact.
TRIES = 5
REMEDY = "have all machines keep their time by NTP (chrony, systemd-timesyncd)"


def check_clocks(urls: Mapping[str, str]) -> Iterator[Check]:
    """This machine's clock against each database's, and those against one another."""
    ahead = {}
    for service, url in urls.items():
        with Database(service, url) as database:
            ahead[service] = _ahead_s(database)
        yield _judge(f"{service} clock", ahead[service], "this machine's")
    if len(ahead) > 1:
        one, other = sorted(ahead)
        # Both were asked from here, so that this machine's own error falls out.
        yield _judge(
            "clocks apart", ahead[one] - ahead[other], f"that of {other}", f"that of {one} "
        )


def _ahead_s(database: Database) -> float:
    """How far a database's clock is ahead of ours, in seconds, less what the way may explain."""
    best_s, best_ahead_s = float("inf"), 0.0
    for _ in range(TRIES):
        before, began = time.time(), time.monotonic()
        ((theirs,),) = database.ask("SELECT extract(epoch FROM clock_timestamp())::float")
        took_s = time.monotonic() - began
        if took_s < best_s:
            best_s, best_ahead_s = took_s, theirs - (before + took_s / 2)
    explained_s = min(abs(best_ahead_s), best_s / 2)
    return best_ahead_s - explained_s if best_ahead_s > 0 else best_ahead_s + explained_s


def _judge(name: str, ahead_s: float, others: str, whose: str = "") -> Check:
    return graded(
        name,
        abs(ahead_s),
        f"{whose}{duration(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} {others}",
        REMEDY,
        warn_over=SKEW_WARN_S,
        fail_over=SKEW_FAIL_S,
    )
