"""The declaration of a service, and the settings that change it."""

from __future__ import annotations

import pytest
from marshmallow import Schema

from settle_outbox import Service, Subscription
from settle_outbox.service import InvalidTopicNameError

SERVICE = Service(
    name="orders",
    aggregatetypes=("orders", "refunds"),
    subscriptions=(
        Subscription("payments.events", "payment.succeeded", Schema(), lambda *_: None),
        Subscription("payments.events", "payment.failed", Schema(), lambda *_: None),
    ),
)


def test_a_prefix_is_added_to_each_topic_and_changes_nothing_else() -> None:
    staging = SERVICE.with_topic_prefix("staging.")

    assert staging.published_topics == ("staging.orders.events", "staging.refunds.events")
    assert staging.consumed_topics == ("staging.payments.events",)
    assert [each.key for each in staging.subscriptions] == [
        ("staging.payments.events", "payment.succeeded"),
        ("staging.payments.events", "payment.failed"),
    ]
    assert (staging.name, staging.source) == ("orders", "/orders")
    assert staging.aggregatetypes == SERVICE.aggregatetypes


def test_a_second_prefix_replaces_the_first() -> None:
    staging = SERVICE.with_topic_prefix("staging.")

    assert staging.with_topic_prefix("staging.") == staging
    assert staging.with_topic_prefix("b.") == SERVICE.with_topic_prefix("b.")
    assert staging.with_topic_prefix("") == SERVICE


def test_a_prefix_that_makes_a_name_too_long_is_refused() -> None:
    with pytest.raises(InvalidTopicNameError, match="249"):  # Kafka's limit
        SERVICE.with_topic_prefix("x" * 240)
