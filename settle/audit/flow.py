"""The two ways that events go, and how what is read of each is named."""

from __future__ import annotations

from dataclasses import dataclass

from settle_outbox.service import topic_of


@dataclass(frozen=True, slots=True)
class Flow:
    """Events of one service, on their way to the other.

    Args:
        source: the service that publishes them.
        target: the service that applies them.
    """

    source: str
    target: str

    @property
    def topic(self) -> str:
        """The topic that they go through; the setting TOPIC_PREFIX stands before it."""
        return topic_of(self.source)

    @property
    def ce_source(self) -> str:
        """What the events say of where they are from."""
        return f"/{self.source}"


ORDERS = Flow(source="orders", target="payments")
RESULTS = Flow(source="payments", target="orders")
FLOWS = (ORDERS, RESULTS)
