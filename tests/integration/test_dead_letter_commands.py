"""`inbox-consumer dead-letters` repairs dead letters. It needs only the database of the service."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from kafka.consumer.fetcher import ConsumerRecord

from settle_outbox.cli.inbox import main
from settle_outbox.service import load_service
from support.delivery import headers
from support.environ import environment
from support.number_service import handler_engine, make_applier
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from support.delivery import Delivery

NOWHERE = "127.0.0.1:9"  # no broker listens here
# With these settings, a command can reach only the database of orders.
ALONE = {
    "KAFKA_BOOTSTRAP_SERVERS": "",
    "PAYMENTS_DATABASE_URL": "",
    "LOG_LEVEL": "ERROR",
}


@pytest.fixture
def command(delivery: Delivery) -> Callable[..., Result]:
    """Return a function that runs a dead-letters command for the orders service.

    The command has access neither to Kafka nor to the payments database.
    """

    def run(action: str, *arguments: str) -> Result:
        with environment(delivery.environ | ALONE):
            return CliRunner().invoke(main, ["dead-letters", action, "orders", *arguments])

    return run


@pytest.fixture
def order_ids(delivery: Delivery) -> list[UUID]:
    """Create three orders, after their payment events became dead letters. Return their ids.

    The events became dead letters because their orders were unknown.
    """
    user = uuid4()
    ids = [uuid4(), uuid4(), uuid4()]
    with handler_engine(delivery.orders_url) as engine:
        make_applier(load_service("orders"), engine).apply(
            [_payment_record(order_id, user, offset=number) for number, order_id in enumerate(ids)]
        )
    delivery.query(
        "orders",
        "INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)"
        " SELECT id, :user, 5, '', 'created', now(), now()"
        " FROM unnest(CAST(:ids AS uuid[])) AS id",
        ids=ids,
        user=user,
    )
    return ids


def _payment_record(order_id: UUID, user: UUID, *, offset: int) -> ConsumerRecord:
    data = {"order_id": str(order_id), "user_id": str(user), "amount": 5, "balance": 1}
    return ConsumerRecord(
        topic="payments.events",
        partition=0,
        leader_epoch=0,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=str(order_id).encode(),
        value=json.dumps(data).encode(),
        headers=headers("payment.succeeded"),
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        serialized_header_size=-1,
    )


def lines_of(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_command_with_force_repairs_a_dead_letter(
    delivery: Delivery, command: Callable[..., Result], order_ids: list[UUID]
) -> None:
    refused = command("retry", "1")
    retry = ("inbox-consumer", "dead-letters", "retry", "orders", "1", "--force")
    done = delivery.run(*retry, "--note", "restored", "--by", "ann", **ALONE)

    assert refused.exit_code == 1
    assert "unknown_order is not retried without --force" in refused.stdout
    assert (done.returncode, done.stdout) == (0, "#1  done  Applied.\n")
    assert delivery.statuses() == {"success": 1, "created": 2}
    shown = json.loads(command("show", "1", "--json").stdout)
    assert shown["state"] == "retried"
    assert [each["answer"] for each in shown["requests"]] == ["refused", "done"]
    assert (shown["requests"][1]["note"], shown["requests"][1]["requested_by"]) == (
        "restored",
        "ann",
    )


def test_all_dead_letters_are_repaired_after_their_number_is_confirmed(
    delivery: Delivery, command: Callable[..., Result], order_ids: list[UUID]
) -> None:
    chosen = ("--all", "--reason", "unknown_order", "--force")

    dry = command("retry", *chosen, "--dry-run")
    unconfirmed = command("retry", *chosen)
    wrong = command("retry", *chosen, "--confirm", "2")
    untouched = delivery.statuses()
    done = command("retry", *chosen, "--confirm", "3", "--json")

    assert dry.exit_code == 0
    assert dry.stdout.splitlines()[-1] == "3 dead letters. Nothing was done."
    assert (unconfirmed.exit_code, wrong.exit_code) == (2, 2)
    assert "give --confirm 3" in wrong.stderr
    assert untouched == {"created": 3}
    assert done.exit_code == 0
    assert lines_of(done) == [
        {"dead_letter_id": number, "answer": "done", "detail": "Applied."} for number in (1, 2, 3)
    ]
    assert delivery.statuses() == {"success": 3}
    assert command("list").stdout == "No open dead letters in orders match.\n"


def test_a_list_shows_the_last_request_even_if_it_was_no_retry(
    command: Callable[..., Result], order_ids: list[UUID]
) -> None:
    command("discard", "1", "--by", "ann")
    command("restore", "1", "--by", "bob")

    listed = command("list").stdout

    assert re.search(r"retries: 0; last request \S+ \S+ by bob: done: It is open again\.", listed)


def test_lists_are_filtered_and_grouped(
    command: Callable[..., Result], order_ids: list[UUID]
) -> None:
    discarded_one = command("discard", "2", "--note", "a test")
    assert discarded_one.exit_code == 0, discarded_one.output

    grouped = lines_of(command("list", "--group", "--state", "all", "--json"))
    discarded = lines_of(command("list", "--state", "discarded", "--json"))
    old = command("list", "--until", "1h")
    shown = command("show", "2").stdout

    assert {(each["state"], each["count"]) for each in grouped} == {("open", 2), ("discarded", 1)}
    assert [each["id"] for each in discarded] == [2]
    assert old.stdout == "No open dead letters in orders match.\n"
    assert "discard by" in shown
    assert "a test" in shown
    assert str(order_ids[1]) in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["1", "99"], 1, "There is no dead letter 99 in orders. Nothing was done."),
        ([], 2, "Give either the ids of dead letters, or --all."),
        (["1", "--all"], 2, "Give either the ids of dead letters, or --all."),
        (["1", "--reason", "x"], 2, "Filters need --all. They cannot be combined with ids."),
        (["--all", "--since", "soon"], 2, "is not a duration"),
        (["1", "--by", "x" * 201], 2, "at most 200 characters"),
        ([str(2**63)], 2, "is not in the range"),
    ],
)
def test_an_invalid_command_does_nothing(
    delivery: Delivery,
    command: Callable[..., Result],
    order_ids: list[UUID],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    done = command("retry", "--force", *arguments)

    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
    assert delivery.statuses() == {"created": 3}


def test_filters_that_match_no_dead_letter_are_reported(command: Callable[..., Result]) -> None:
    done = command("discard", "--all", "--reason", "nosuch")

    assert (done.exit_code, done.stdout) == (0, "No dead letter matches. Nothing was done.\n")


def test_a_consumer_carries_out_repair_requests_while_kafka_is_down(
    delivery: Delivery, command: Callable[..., Result], order_ids: list[UUID]
) -> None:
    """The command only writes rows of dead_letter_requests. The consumer does the rest."""
    written = command("retry", "--all", "--force", "--confirm", "3", "--by-consumer")
    untouched = delivery.statuses()

    with delivery.consumer("orders", kafka_bootstrap_servers=(NOWHERE,)):
        wait_until(lambda: delivery.statuses() == {"success": 3}, timeout_s=30, what="the answers")

    assert written.stdout.startswith("Requests written: 3. ")
    assert untouched == {"created": 3}
