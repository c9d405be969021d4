"""Look suspects up again by id, until the events in transit must have arrived."""

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

REPEAT_EVERY_S = 0.5


def drop_cleared(scratch: Scratch, settings: Mapping[str, Settings], within_s: float) -> None:
    """Look suspects up repeatedly, and remove those that are no violations.

    Args:
        scratch: the scratch database with the suspects.
        settings: the settings by service.
        within_s: the time that events under way may take, in seconds.

    Raises:
        SQLAlchemyError: a database cannot be reached, or refuses a query.
    """
    rules = [rule for rule in RULES if rule.second_looks]
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
            rules = [rule for rule in rules if _has_suspects(scratch, engines, rule)]
            if not rules or late:
                return
            time.sleep(min(REPEAT_EVERY_S, max(0.0, deadline - time.monotonic())))


def _has_suspects(scratch: Scratch, engines: Mapping[str, Engine], rule: Rule) -> bool:
    """Remove the cleared suspects of a rule, and return whether others are left."""
    for look in rule.second_looks:
        with engines[look.service].begin() as connection:
            for ids in _suspects(scratch, rule):
                cleared = _cleared(connection, look.sql, ids)
                scratch.add(
                    "DELETE FROM suspect WHERE name = ? AND kind = ? AND id = ?",
                    ((rule.check, rule.kind, id_) for id_ in cleared),
                )
    return any(True for _ in _suspects(scratch, rule))


def _suspects(scratch: Scratch, rule: Rule) -> Iterator[list[bytes]]:
    """Yield the suspects of a rule in batches. They may be removed meanwhile."""
    sql = "SELECT id FROM suspect WHERE name = :name AND kind = :kind AND id > :last"
    return scratch.id_batches(sql, name=rule.check, kind=rule.kind)


def _cleared(connection: Connection, sql: str, ids: list[bytes]) -> list[bytes]:
    found = connection.execute(text(sql), {"ids": as_uuids(ids)}).scalars()
    return [UUID(str(id_)).bytes for id_ in found]
