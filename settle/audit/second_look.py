"""Looking at suspects again, by their ids, until what is under way has had its time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from settle.audit.ids import as_uuids
from settle.audit.rules import RULES
from settle_outbox.storage.database import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, Engine

    from settle.audit.rules import Rule
    from settle.audit.scratch import Scratch
    from settle_outbox.settings import Settings

AGAIN_EVERY_S = 0.5
_BATCH = 1_000


def look_again(scratch: Scratch, settings: Mapping[str, Settings], within_s: float) -> None:
    """Let go of suspects that are well by now. Those left when the time is over are violations.

    Where nothing is left earlier, it ends at once.

    Args:
        scratch: knows the suspects.
        settings: by service.
        within_s: how long what is under way may take.

    Raises:
        SQLAlchemyError: a database cannot be reached, or refuses.
    """
    rules = [rule for rule in RULES if rule.looks]
    deadline = time.monotonic() + within_s
    with ExitStack() as opened:
        engines = {
            service: make_engine(each.database_url, application_name="settle-audit", pool_size=1)
            for service, each in settings.items()
        }
        for engine in engines.values():
            opened.callback(engine.dispose)
        while True:
            late = time.monotonic() >= deadline
            rules = [rule for rule in rules if _look(scratch, engines, rule)]
            if not rules or late:
                return
            time.sleep(min(AGAIN_EVERY_S, max(0.0, deadline - time.monotonic())))


def _look(scratch: Scratch, engines: Mapping[str, Engine], rule: Rule) -> bool:
    """Whether suspects of the rule are left."""
    for look in rule.looks:
        with engines[look.service].begin() as connection:
            for ids in _suspects(scratch, rule):
                well = _well(connection, look.sql, ids)
                scratch.add(
                    "DELETE FROM suspect WHERE name = ? AND kind = ? AND id = ?",
                    ((rule.check, rule.kind, id_) for id_ in well),
                )
    return any(True for _ in _suspects(scratch, rule))


def _suspects(scratch: Scratch, rule: Rule) -> Iterator[list[bytes]]:
    """Those of a rule, some at a time; they may be removed meanwhile."""
    last = b""
    while True:
        rows = scratch.rows(
            "SELECT id FROM suspect WHERE name = :name AND kind = :kind AND id > :last"
            " ORDER BY id LIMIT :most",
            name=rule.check,
            kind=rule.kind,
            last=last,
            most=_BATCH,
        )
        ids = [id_ for (id_,) in rows]
        if not ids:
            return
        yield ids
        last = ids[-1]


def _well(connection: Connection, sql: str, ids: list[bytes]) -> list[bytes]:
    found = connection.execute(text(sql), {"ids": as_uuids(ids)}).scalars()
    return [UUID(str(id_)).bytes for id_ in found]
