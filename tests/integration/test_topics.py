"""Topics are there for all who ask for them at once, whoever of them creates them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import TYPE_CHECKING

from shared.outbox.clients import make_admin
from shared.outbox.topics import close_quietly, ensure_topics

if TYPE_CHECKING:
    from uuid import UUID

    from kafka import KafkaAdminClient

    from support.delivery import Delivery

WHO, ROUNDS = 4, 10


def test_all_who_ensure_a_topic_at_once_are_told_of_the_same_one(delivery: Delivery) -> None:
    """Else one that others created would be taken for another a moment later, and for lost."""
    settings = delivery.settings("orders")
    together = Barrier(WHO)
    with ThreadPoolExecutor(WHO) as pool, ExitStack() as stack:
        admins = [make_admin(settings, "test") for _ in range(WHO)]
        for admin in admins:
            stack.callback(close_quietly, admin)

        def ensure(admin: KafkaAdminClient, topic: str) -> dict[str, UUID | None]:
            together.wait(30)
            return ensure_topics(admin, [topic], settings)

        for number in range(ROUNDS):
            topic = f"ensured-{number}"
            told = list(pool.map(ensure, admins, [topic] * WHO))
            now = ensure_topics(admins[0], [topic], settings)
            assert now.keys() == {topic}
            assert told == [now] * WHO
