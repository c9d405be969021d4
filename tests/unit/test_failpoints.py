"""The syntax of the variable FAILPOINTS."""

from __future__ import annotations

import signal

import pytest

from settle_outbox.runtime.failpoints import FailpointError, _parse


def test_each_item_has_a_place_an_action_and_a_count() -> None:
    assert _parse("") == {}
    assert _parse("relay.sent=kill,consumer.applied=stop@3") == {
        "relay.sent": (signal.SIGKILL, 1),
        "consumer.applied": (signal.SIGSTOP, 3),
    }


@pytest.mark.parametrize("text", ["relay.sent", "relay.sent=die", "relay.sent=kill@soon"])
def test_an_invalid_item_is_refused(text: str) -> None:
    with pytest.raises(FailpointError, match="FAILPOINTS"):
        _parse(text)
