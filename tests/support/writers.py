"""Threads that add events concurrently, and the check of the promised order."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import settle_outbox as outbox
from settle_outbox import Event
from support.delivery import first_appearances

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka.consumer.fetcher import ConsumerRecord


@dataclass(frozen=True)
class _Added:
    number: str
    begun_at: float
    committed_at: float


class Writers:
    """Writers of an outbox. Each event is added in a separate transaction.

    Args:
        url: The URL of the database.
        keys: The number of keys. Each writer uses all of them.
        threads: The number of writers.
        each: The number of events of each writer.
        padding: The number of extra characters in each event.
    """

    def __init__(self, url: str, *, keys: int, threads: int, each: int, padding: int = 0) -> None:
        self._engine = create_engine(url, pool_size=threads)
        self._keys, self._threads, self._each = keys, threads, each
        self._padding = "x" * padding
        self._added: dict[str, list[_Added]] = defaultdict(list)

    def run(self) -> None:
        """Add all events, and return after all are committed."""
        threads = [
            threading.Thread(target=self._write, args=(number,)) for number in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self._engine.dispose()
        assert self.count == self._threads * self._each

    @property
    def count(self) -> int:
        return sum(len(added) for added in self._added.values())

    def _write(self, writer: int) -> None:
        for turn in range(self._each):
            key, number = f"key{(turn + writer) % self._keys}", f"{writer}/{turn}"
            with Session(self._engine) as session:
                session.connection()
                begun_at = time.monotonic()
                data = {"number": number, "padding": self._padding}
                outbox.add(session, Event("orders", key, "order.created", data))
                session.commit()
            self._added[key].append(_Added(number, begun_at, time.monotonic()))

    def check(self, records: Iterable[ConsumerRecord]) -> None:
        """Check that no event is lost, and that the order of each key is kept.

        An event that was committed before another one was added must appear before the other one.
        """
        found = first_appearances(records)
        for key, added in self._added.items():
            place = {data["number"]: n for n, data in enumerate(found.get(key, []))}
            lost = {each.number for each in added} - place.keys()
            assert not lost, f"{key}: lost {sorted(lost)}"
            wrong = [
                f"{later.number} before {earlier.number}"
                for earlier in added
                for later in added
                if earlier.committed_at < later.begun_at
                and place[later.number] < place[earlier.number]
            ]
            assert not wrong, f"{key}: {len(wrong)} wrong, such as {wrong[:5]}"
