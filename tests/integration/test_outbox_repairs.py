"""`outbox-relay` queues refused and published events again, with one service's database only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import NullPool, create_engine, text

from settle_outbox import Event, add
from settle_outbox.cli.relay import main
from settle_outbox.storage.database import make_engine, make_sessions
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

KEYS = ("a", "b", "a", "c")


@pytest.fixture
def ask(orders_url: str) -> Callable[..., list[Any]]:
    """Return a function that runs a statement on the orders database."""

    def run(statement: str, **parameters: Any) -> list[Any]:
        with create_engine(orders_url, poolclass=NullPool).begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result.scalars()) if result.returns_rows else []

    return run


@pytest.fixture
def events(orders_url: str, ask: Callable[..., list[Any]]) -> list[UUID]:
    """Add four events, mark them as sent, and return their ids. The third has another type."""
    engine = make_engine(orders_url, application_name="test", pool_size=1)
    with make_sessions(engine).begin() as session:
        for number, key in enumerate(KEYS):
            type_ = "order.moved" if number == 2 else "order.created"
            add(session, Event("orders", key, type_, {"number": number}))
    engine.dispose()
    ask("DELETE FROM outbox_pending")
    return ask("SELECT id FROM outbox ORDER BY seq")


@pytest.fixture
def refused(events: list[UUID], ask: Callable[..., list[Any]]) -> list[UUID]:
    """Mark the four events as refused, and return their ids."""
    ask("INSERT INTO outbox_refused (seq, id, reason) SELECT seq, id, 'too large' FROM outbox")
    return events


@pytest.fixture
def command(orders_url: str) -> Callable[..., Result]:
    """Return a function that runs `outbox-relay` without Kafka and the payments database."""
    environ = {
        "ORDERS_DATABASE_URL": orders_url,
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "LOG_LEVEL": "ERROR",
    }

    def run(*arguments: str) -> Result:
        with environment(environ):
            return CliRunner().invoke(main, arguments)

    return run


def pending(ask: Callable[..., list[Any]]) -> list[UUID]:
    return ask("SELECT id FROM outbox_pending ORDER BY seq")


def test_a_replay_queues_the_events_that_match_its_filters(
    events: list[UUID], command: Callable[..., Result], ask: Callable[..., list[Any]]
) -> None:
    expected = {
        ("--since", "1h"): events,
        ("--since", "1h", "--key", "a"): [events[0], events[2]],
        ("--since", "1h", "--type", "order.created"): [events[0], events[1], events[3]],
        ("--since", "1h", "--key", "a", "--type", "order.moved"): [events[2]],
        ("--since", "1h", "--until", "30m"): [],
        ("--id", str(events[3]), "--id", str(events[1])): [events[1], events[3]],
        ("--id", str(uuid4())): [],
    }

    found, dry, output = {}, {}, {}
    for options in expected:
        output[options] = command("replay", "orders", *options, "--dry-run").stdout
        dry[options] = pending(ask)
        done = command("replay", "orders", *options)
        assert done.exit_code == 0, done.output
        found[options] = pending(ask)
        ask("DELETE FROM outbox_pending")

    assert found == expected
    assert all(not ids for ids in dry.values())
    assert {options: int(text.split()[0]) for options, text in output.items()} == {
        options: len(ids) for options, ids in expected.items()
    }


def test_a_replay_counts_only_events_that_were_not_pending(
    events: list[UUID], command: Callable[..., Result]
) -> None:
    first = command("replay", "orders", "--id", str(events[0]))
    rest = command("replay", "orders", "--since", "1h")

    assert first.stdout == "1 events of orders are queued to be sent again.\n"
    assert rest.stdout == "3 events of orders are queued to be sent again.\n"


def test_a_replay_needs_a_time_or_ids(command: Callable[..., Result]) -> None:
    done = command("replay", "orders", "--key", "a")

    assert done.exit_code == 2
    assert "Give --since, or --id for single events." in done.stderr


def test_a_refused_event_is_queued_again(
    refused: list[UUID], command: Callable[..., Result], ask: Callable[..., list[Any]]
) -> None:
    done = command("refused", "retry", "orders", str(refused[1]))

    assert done.stderr == ""
    assert (done.exit_code, done.stdout) == (0, f"{refused[1]}  retry: done\n")
    assert pending(ask) == [refused[1]]
    assert refused[1] not in ask("SELECT id FROM outbox_refused")


def test_all_refused_events_are_queued_after_their_number_is_confirmed(
    refused: list[UUID], command: Callable[..., Result], ask: Callable[..., list[Any]]
) -> None:
    dry = command("refused", "retry", "orders", "--all", "--dry-run")
    unconfirmed = command("refused", "retry", "orders", "--all")
    untouched = pending(ask)
    done = command("refused", "retry", "orders", "--all", "--confirm", "4", "--json")

    assert dry.stdout == "4 to retry. Nothing was done.\n"
    assert unconfirmed.exit_code == 2
    assert "give --confirm 4" in unconfirmed.stderr
    assert untouched == []
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"event_id": str(each), "done": True} for each in refused
    ]
    assert pending(ask) == refused


def test_a_discarded_event_is_not_replayed_and_can_be_retried(
    refused: list[UUID], command: Callable[..., Result], ask: Callable[..., list[Any]]
) -> None:
    discarded = command(
        "refused", "discard", "orders", str(refused[0]), "--by", "ann", "--note", "a test"
    )
    again = command("refused", "discard", "orders", str(refused[0]))
    replayed = command("replay", "orders", "--since", "1h")
    listed = command("refused", "list", "orders", "--json").stdout
    shown = json.loads(command("refused", "show", "orders", str(refused[0]), "--json").stdout)
    retried = command("refused", "retry", "orders", str(refused[0]))

    assert discarded.exit_code == 0
    assert again.exit_code == 1
    assert replayed.stdout.startswith("0 ")
    assert [json.loads(line)["event_id"] for line in listed.splitlines()] == [
        str(each) for each in refused[1:]
    ]
    assert (shown["discarded_by"], shown["note"]) == ("ann", "a test")
    assert json.loads(shown["payload"]) == {"number": 0}
    assert retried.exit_code == 0
    assert pending(ask) == [refused[0]]


def test_a_deleted_event_is_not_queued(
    refused: list[UUID], command: Callable[..., Result], ask: Callable[..., list[Any]]
) -> None:
    ask("DELETE FROM outbox WHERE id = :id", id=refused[0])

    gone = command("refused", "retry", "orders", str(refused[0]))
    unknown = command("refused", "retry", "orders", str(uuid4()))

    assert gone.exit_code == 1
    assert "gone from the outbox" in gone.stdout
    assert "gone from the outbox" in command("refused", "list", "orders").stdout
    assert unknown.exit_code == 1
    assert "has no refused event" in unknown.stderr
    assert pending(ask) == []
