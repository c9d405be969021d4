"""The two flows of events between the services."""

from __future__ import annotations

from dataclasses import dataclass

from settle_outbox.service import topic_of


@dataclass(frozen=True, slots=True)
class Flow:
    """The events of one service that the other one applies.

    Args:
        source: the service that publishes them.
        target: the service that applies them.
    """

    source: str
    target: str

    @property
    def topic(self) -> str:
        """The topic, without the prefix of the setting TOPIC_PREFIX."""
        return topic_of(self.source)

    @property
    def ce_source(self) -> str:
        """The source that the events' headers name."""
        return f"/{self.source}"


ORDERS = Flow(source="orders", target="payments")
RESULTS = Flow(source="payments", target="orders")
FLOWS = (ORDERS, RESULTS)
